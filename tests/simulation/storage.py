"""One SQLite database in memory for all simulated processes: virtual latencies, a virtual clock, faults on demand.

`Database` itself is the application's. Under it lies one connection of the driver; since nothing here runs in parallel,
who writes is alone on it until its transaction ends, and each SELECT sees what was committed when it ran.
"""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from app.domain.ids import RunId
from app.storage import tables
from app.storage.database import Database
from app.storage.engines import prepare_sqlite
from tests.simulation.loop import PROCESS
from tests.simulation.trace import Trace

BASE_MS = 1_800_000_000_000
"""The database's time when a simulation begins."""
_DAY_MS = 86_400_000
_READS = "reads"


class Storage:
    """The database, and what may go wrong with it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, dice: random.Random, trace: Trace) -> None:
        global _current  # noqa: PLW0603 - the engine, whose statements are compiled once, outlives a simulation
        _current = self
        self._loop = loop
        self.dice = dice
        self.trace = trace
        self.latency_seconds = 0.002
        self.processes: list[Any] = []
        self.noted: Callable[[RunId, str], None] = lambda run_id, type_: None
        """Hears of every event that is committed: its run and type."""
        self.notices_lost = 0.0
        """How many of the notices from process to process do not arrive: 1 is none at all."""
        self._writer: Any = None
        self._waiting: list[asyncio.Future[None]] = []
        self._last_event = 0
        self.driver: sqlite3.Connection = _ENGINE.raw_connection().dbapi_connection  # type: ignore[assignment]
        if self.driver.in_transaction:
            self.driver.rollback()
        for table in reversed(tables.metadata.sorted_tables):
            self.driver.execute(f"DELETE FROM {table.name}")
        self.reading = _ENGINE.connect().execution_options(**{_READS: True})

    def now_ms(self) -> int:
        """What the database's clock says."""
        return BASE_MS + int(self._loop.time() * 1000)

    async def pause(self) -> None:
        """As long as a statement takes; now and then no time at all."""
        if self.dice.random() < 0.6:
            await asyncio.sleep(self.dice.random() * self.latency_seconds)

    def check(self, process: Any) -> None:
        """Raise what the driver does when the database is away."""
        if process.database_away_until > self._loop.time():
            raise _fault("the database is away")

    async def begin_alone(self, process: Any) -> None:
        """Wait until nobody else writes."""
        while self._writer is not None:
            turn = self._loop.create_future()
            self._waiting.append(turn)
            await turn
        self._writer = process

    def is_writing(self, process: Any) -> bool:
        """Whether it is in a transaction."""
        return self._writer is process

    @asynccontextmanager
    async def alone(self) -> AsyncIterator["_Connection"]:
        """A connection for SELECTs while nobody writes."""
        witness = _Nobody()
        await self.begin_alone(witness)
        try:
            yield _Connection(self, witness, self.reading, is_alone=True)
        finally:
            self.end_alone(witness)

    def end_alone(self, process: Any) -> None:
        """Its transaction has ended; after a death it is undone."""
        if self._writer is not process:
            return
        self._writer = None
        if self.driver.in_transaction:
            self.driver.rollback()
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)

    def at_commit(self) -> None:
        """Called just before every COMMIT: what may go wrong with it does."""
        process: Any = PROCESS.get()
        shaky = process.commits_shaky_until > self._loop.time() and self.dice.random() < 0.5
        if process.database_away_until > self._loop.time() or shaky:
            done = self.dice.random() < 0.5
            self.trace.note(f"COMMIT unknown, {'done' if done else 'not done'}")
            process.disturb()
            if done:
                self.driver.commit()
                self.note_events()
            raise _fault("the connection was lost in COMMIT")

    def note_events(self) -> None:
        """Put what was committed into the trace."""
        query = "SELECT rowid, seq, type, task_key, run_id FROM events WHERE rowid > ? ORDER BY rowid"
        for row, seq, type_, key, run_id in self.driver.execute(query, (self._last_event,)).fetchall():
            self._last_event = row
            self.trace.note(f"{self.trace.short(UUID(run_id))} {seq} {type_} {key or ''}")
            self.noted(RunId(UUID(run_id)), type_)

    def spread(self, sender: Any, run_id: UUID) -> None:
        """Have the other processes hear of a request, as by NOTIFY: later, or never."""
        for process in self.processes:
            if process is not sender and process.is_up and self.dice.random() >= self.notices_lost:
                tell = process.database.tell_here
                self._loop.call_later(self.dice.random() * 0.05, _quietly(tell, run_id), context=process.context.copy())


def _quietly(tell: Callable[..., None], run_id: UUID) -> Callable[[], None]:
    return lambda: tell(run_id, requested=True)


def _fault(message: str) -> OperationalError:
    return OperationalError("", {}, sqlite3.OperationalError(message))


class SimulatedDatabase(Database):
    """The application's own, over the storage of a simulation."""

    def __init__(self, storage: Storage, process: Any) -> None:
        self._storage, self._process = storage, process
        super().__init__("sqlite:///simulated.db")
        self._writing: Any = _Thread(storage, process)
        self._engine: Any = _Engine(storage, process)
        self._reads: Any = self._engine.execution_options()

    def tell_here(self, run_id: UUID, *, requested: bool) -> None:
        """As `tell`, for what another process has told of."""
        super().tell(run_id, requested=requested)

    def tell(self, run_id: UUID, *, requested: bool = False, may_be_over: bool = True) -> None:
        super().tell(run_id, requested=requested, may_be_over=may_be_over)
        if requested:
            self._storage.spread(self._process, run_id)

    async def close(self) -> None:
        """There is nothing to close: the one connection is all processes'."""


class _Thread:
    """The writer's: what is run on it is alone on the database."""

    def __init__(self, storage: Storage, process: Any) -> None:
        self._storage, self._process = storage, process

    async def run(self, func: Callable[..., Any], *args: Any) -> Any:
        await self._storage.pause()
        await self._storage.begin_alone(self._process)
        try:
            done = func(*args)
            self._storage.note_events()
        finally:
            self._storage.end_alone(self._process)
        await self._storage.pause()
        return done


class _Engine:
    """Stands in for SQLAlchemy's `AsyncEngine`."""

    def __init__(self, storage: Storage, process: Any, *, reads: bool = False) -> None:
        self._storage, self._process, self._reads = storage, process, reads

    def execution_options(self, **options: Any) -> "_Engine":
        return _Engine(self._storage, self._process, reads=True)  # nothing else has options

    @asynccontextmanager
    async def connect(self) -> AsyncIterator["_Connection"]:
        await self._storage.pause()
        self._storage.check(self._process)
        yield _Connection(self._storage, self._process, self._storage.reading if self._reads else None)


class _Nobody:
    """Who looks on, and is never in trouble."""

    database_away_until = 0.0


class _Raw:
    """A connection of the pool, which remembers what was told of it."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = {}


class _Connection:
    """Stands in for SQLAlchemy's `AsyncConnection`."""

    def __init__(
        self, storage: Storage, process: Any, reading: sa.Connection | None, *, is_alone: bool = False
    ) -> None:
        self._storage, self._process = storage, process
        self._is_alone = is_alone
        self._reads = reading is not None
        self._connection = reading
        self._raw = _Raw()
        self.dialect = _ENGINE.dialect

    async def get_raw_connection(self) -> _Raw:
        return self._raw

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[None]:
        storage = self._storage
        await storage.begin_alone(self._process)
        try:
            self._connection = _ENGINE.connect()
            try:
                with self._connection.begin():
                    yield
                    await storage.pause()
                storage.note_events()
            finally:
                self._connection.close()
        finally:
            storage.end_alone(self._process)
        await storage.pause()

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        storage = self._storage
        if self._is_alone:
            assert self._connection is not None
            return self._connection.execute(statement, parameters)
        await storage.pause()
        storage.check(self._process)
        if self._reads:  # not what another process is about to write
            while storage._writer is not None:
                turn = storage._loop.create_future()
                storage._waiting.append(turn)
                await turn
        assert self._connection is not None
        result = self._connection.execute(statement, parameters)
        if result.returns_rows and storage.dice.random() < 0.3:
            kept = result.freeze()
            await storage.pause()
            return kept()
        return result

    async def exec_driver_sql(self, statement: str) -> Any:
        assert self._connection is not None
        return self._connection.exec_driver_sql(statement)

    async def run_sync(self, do: Callable[..., Any], *args: Any, **more: Any) -> Any:
        await self._storage.pause()
        self._storage.check(self._process)
        return do(self._connection, *args, **more)


# The engine, for all simulations of this process: compiling a statement costs more than running it.

_current: Storage | None = None


def _make_engine() -> sa.Engine:
    engine = sa.create_engine(
        "sqlite://", poolclass=StaticPool, pool_reset_on_return=None, connect_args={"check_same_thread": False}
    )
    sa.event.listen(engine, "connect", prepare_sqlite)
    sa.event.listen(engine, "connect", _make_time_virtual)
    sa.event.listen(engine, "begin", _begin)
    sa.event.listen(engine, "commit", _commit)
    return engine


def _make_time_virtual(connection: sqlite3.Connection, record: object) -> None:
    connection.create_function("julianday", 1, _julianday)


def _julianday(when: str) -> float:
    assert _current is not None
    # Half a millisecond more: as a float of days it must not come out as the millisecond before.
    return (_current.now_ms() + 0.5) / _DAY_MS + 2440587.5


def _begin(connection: sa.Connection) -> None:
    if not connection.get_execution_options().get(_READS):
        if _current is not None and PROCESS.get() is not None:
            _current.check(PROCESS.get())
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _commit(connection: sa.Connection) -> None:
    if _current is not None and PROCESS.get() is not None:
        _current.at_commit()


_ENGINE = _make_engine()
STAND_INS: Mapping[str, Any] = {"app.storage.engines.make_sync_engine": lambda url: _ENGINE}
"""What has to take the place of the application's while databases are made."""
tables.metadata.create_all(_ENGINE)
