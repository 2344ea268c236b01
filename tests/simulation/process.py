"""A simulated process: a real worker, or a client, which can die, stand still as after SIGSTOP, or be drained."""

import asyncio
from contextvars import copy_context
from typing import Any

from app.engine.worker import Worker
from app.llm.chat import ChatModel
from app.settings import Settings
from app.tools.toolbox import Toolbox
from tests.simulation.loop import PROCESS, VirtualLoop
from tests.simulation.storage import SimulatedDatabase, Storage


class Process:
    """What has its own memory, its own clock, and its own way to the database."""

    def __init__(self, name: str, loop: VirtualLoop, storage: Storage) -> None:
        self.name = name
        self.is_dead = False
        self.is_drained = False
        self.clock_skew_seconds = 0.0
        self.database_away_until = self.commits_shaky_until = 0.0
        self.disturbed_at: float | None = None
        """When something last happened to it that may have cost it a lease."""
        self._held: list[asyncio.Handle] | None = None
        self._loop, self._storage = loop, storage
        self.context = copy_context()
        self.context.run(PROCESS.set, self)
        self.database = self.context.run(SimulatedDatabase, storage, self)
        storage.processes.append(self)

    def __str__(self) -> str:
        return self.name

    @property
    def is_up(self) -> bool:
        """Whether it lives, even if it stands still."""
        return not (self.is_dead or self.is_drained)

    @property
    def is_stalled(self) -> bool:
        """Whether it stands still."""
        return self._held is not None

    def was_well(self, seconds: float) -> bool:
        """Whether nothing has happened to it for so long."""
        now = self._loop.time()
        is_well = not self.is_stalled and max(self.database_away_until, self.commits_shaky_until) <= now
        return is_well and (self.disturbed_at is None or self.disturbed_at < now - seconds)

    def disturb(self) -> None:
        """Something happens to it."""
        self.disturbed_at = self._loop.time()

    def reaches_database(self) -> None:
        """Nothing is wrong with its way to the database any more; what was may have cost it a lease."""
        if max(self.database_away_until, self.commits_shaky_until) > self._loop.time():
            self.disturb()
        self.database_away_until = self.commits_shaky_until = 0.0

    def may_run(self, handle: asyncio.Handle) -> bool:
        """Whether this callback of it runs now."""
        if self.is_dead:
            return False
        if self._held is not None:
            self._held.append(handle)
            return False
        return True

    def die(self) -> None:
        """As by kill -9: nothing of it happens any more, and what it was writing is undone."""
        self.disturb()
        self.is_dead = True
        self._held = None
        self._storage.end_alone(self)

    def stall(self) -> None:
        """As by SIGSTOP."""
        self.disturb()
        if self._held is None:
            self._held = []

    def go_on(self) -> None:
        """As by SIGCONT: what has happened meanwhile happens to it now."""
        if self._held is not None:
            self.disturb()
            held, self._held = self._held, None
            self._loop._ready.extend(held)


class WorkerProcess(Process):
    """A worker as `planwave worker` runs it."""

    def __init__(
        self,
        name: str,
        loop: VirtualLoop,
        storage: Storage,
        model: ChatModel,
        settings: Settings,
        *,
        toolbox: Toolbox,
        skew: float,
    ) -> None:
        super().__init__(name, loop, storage)
        self.clock_skew_seconds = skew
        self._places = settings.llm_max_concurrency
        self._stop = asyncio.Event()
        self.worker: Worker = self.context.run(Worker, self.database, model, settings, toolbox)
        self.running = loop.create_task(self.worker.run(self._stop), context=self.context)

    @property
    def broke(self) -> bool:
        """Whether it ended by itself."""
        return self.running.done() and not self.is_drained

    async def drain(self) -> None:
        """End it as SIGTERM does; its places must all be free then."""
        self.disturb()
        self._loop.call_soon(self._stop.set, context=self.context)
        await asyncio.wait([self.running])
        self.is_drained = True
        self.running.result()
        places: Any = self.worker._shop.places
        assert (places._free, len(places._waiting)) == (self._places, 0), "places were leaked"

    def drives(self, run_id: Any, token: Any) -> bool:
        """Whether it believes that it drives this run under this lease."""
        driver = self.worker._drivers.get(run_id)
        return self.is_up and driver is not None and driver.lease.token == token
