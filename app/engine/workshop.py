"""What all drivers of a process share."""

from dataclasses import dataclass

from app.domain.failures import Backoff
from app.engine.calls import Caller
from app.engine.clock import Clock
from app.engine.places import Places
from app.engine.recorder import Recorder
from app.engine.tooling import ToolCaller
from app.storage.database import Database


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """One per worker. `lease_ms` is also the longest wait that a driver sits out."""

    database: Database
    recorder: Recorder
    caller: Caller
    tools: ToolCaller
    places: Places
    clock: Clock
    backoff: Backoff
    lease_ms: int
