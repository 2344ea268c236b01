"""What one run has stored at one moment, as the checks of its invariants read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRows:
    """Each table by its primary key."""

    run: Row
    plans: Sequence[Row] = ()
    tasks: Sequence[Row] = ()
    dependencies: Sequence[Row] = ()
    attempts: Sequence[Row] = ()
    calls: Sequence[Row] = ()
    tool_calls: Sequence[Row] = ()
    reviews: Sequence[Row] = ()
    events: Sequence[Row] = ()
