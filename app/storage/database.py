"""The database: transactions, what they announce, the clock. The only place that commits."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import sqlalchemy as sa
import uuid_utils.compat
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from app.domain.errors import StorageFull, StorageUnavailable
from app.domain.ids import DEFAULT_TENANT
from app.storage import engines
from app.storage.faults import faults_named, is_read_only
from app.storage.statements import errors_named
from app.storage.tables import goals

P = ParamSpec("P")
T = TypeVar("T")

_ROOM_BYTES = 64 * 1024
"""A database that was full is no longer so when this much can be written: more than a usual goal takes."""
_ANNOUNCED = "planwave_announced"
CHANNEL = "planwave"
"""Of LISTEN and NOTIFY; the message is `request RUN_ID` or `change RUN_ID`."""


class now_ms(FunctionElement[int]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock in integer milliseconds since 1970 UTC, moving within a transaction."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(now_ms, "postgresql")
def _now_ms_postgresql(element: now_ms, compiler: Any, **kw: Any) -> str:
    return "CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS BIGINT)"


@compiles(now_ms, "sqlite")
def _now_ms_sqlite(element: now_ms, compiler: Any, **kw: Any) -> str:
    # unixepoch('subsec') is NULL before SQLite 3.42. Days are whole milliseconds there, as near as a float can say.
    return "CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER)"


def new_id() -> UUID:
    """A UUIDv7: rows made later sort later."""
    return uuid_utils.compat.uuid7()


def unbroken(transaction: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Have a coroutine function run to its end though whoever awaits it is cancelled meanwhile.

    For what writes: a cancel inside a transaction would leave it open, and with it the only writer's lock of SQLite.
    """

    @wraps(transaction)
    async def to_its_end(*args: P.args, **more: P.kwargs) -> T:
        running = asyncio.ensure_future(transaction(*args, **more))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # nobody is left to hear of it
            raise

    return to_its_end


class Database:
    """Transactions on one database. Every write transaction is short: no model or tool is called inside one."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.url = engines.parse_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._engine = engines.make_engine(self.url, pool_size=pool_size)
        self._sync_engine = engines.make_sync_engine(self.url)
        if not self.is_sqlite:
            sa.event.listen(self._sync_engine, "connect", engines.limit_locks)
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planwave-writer")
        self._held: sa.Connection | None = None  # the writer's, opened and used in its thread only
        self._reads = engines.for_reading(self._engine)
        # SQLite has one writer: within a process queueing is fair, and cheaper than to look for its lock every few ms.
        self._writer = asyncio.Lock()
        self._refused_writes = False
        self._watchers: list[Callable[[UUID, bool], None]] = []
        self._workers: list[Callable[[UUID], None]] = []

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction, committed when the block ends and rolled back when it raises.

        Raises `StorageUnavailable` when the database is away, locked or full.
        """
        async with self._turn(), self._begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for SELECTs, each seeing what is committed when it starts."""
        with faults_named():
            async with self._reads.connect() as connection:
                yield connection

    def on_announce(self, listener: Callable[[UUID, bool], None]) -> None:
        """Have `listener(run_id, may_be_over)` called after whatever changed a run, clients' requests included."""
        self._watchers.append(listener)

    def on_request(self, listener: Callable[[UUID], None]) -> None:
        """Have `listener(run_id)` called after client requests only: new runs, cancels and the like."""
        self._workers.append(listener)

    async def announce(self, connection: AsyncConnection, *run_ids: UUID, requested: bool = True) -> None:
        """Tell at the commit that these runs changed: here, and on PostgreSQL in every process that listens."""
        announced = (await connection.get_raw_connection()).info.setdefault(_ANNOUNCED, [])
        announced += [(run_id, requested) for run_id in run_ids]
        await connection.run_sync(notify, *run_ids, requested=requested)

    def tell(self, run_id: UUID, *, requested: bool = False, may_be_over: bool = True) -> None:
        """Call this process's listeners for a run that changed."""
        for watcher in self._watchers:
            watcher(run_id, may_be_over)
        for worker in self._workers if requested else ():
            worker(run_id)

    async def ping(self) -> None:
        """Raises `StorageUnavailable` unless a SELECT works, and a write where one was refused (full, read-only)."""
        async with self.read() as connection:
            await connection.execute(sa.select(goals.c.id).limit(1))  # from the file itself, where it is one
        if self._refused_writes:
            await self._try_to_write()
            self._refused_writes = False

    async def write_in_thread(self, do: Callable[[sa.Connection], T]) -> T:
        """Run `do` in a transaction on a thread and a connection of its own, and return once it is committed.

        For whoever writes all the time: a handful of statements costs one change of threads instead of one each.
        One call at a time. Raises `StorageUnavailable` as `write` does.
        """
        async with self._turn():
            return await asyncio.get_running_loop().run_in_executor(self._writing, self._write_now, do)

    def _write_now(self, do: Callable[[sa.Connection], T]) -> T:
        with faults_named():
            if self._held is None or self._held.closed or self._held.invalidated:
                self._held = self._sync_engine.connect()
            try:
                with self._held.begin():
                    return do(self._held)
            except BaseException:
                self._held.close()
                raise

    async def close(self) -> None:
        """Close every connection; nothing may be in use."""
        self._writing.shutdown()
        if self._held is not None:
            self._held.close()
        self._sync_engine.dispose()
        await self._engine.dispose()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """While it is this call's to write: on SQLite one at a time, of which none waits for ever behind a lock."""
        if self.is_sqlite:
            try:
                async with asyncio.timeout(engines.SQLITE_BUSY_SECONDS):
                    await self._writer.acquire()
            except TimeoutError:
                raise StorageUnavailable("The database is locked.") from None
        try:
            yield
        except StorageUnavailable as error:
            if isinstance(error, StorageFull) or is_read_only(getattr(error.__cause__, "orig", None)):
                self._refused_writes = True
            raise
        finally:
            if self.is_sqlite:
                self._writer.release()

    async def _try_to_write(self) -> None:
        """Write a row that nobody ever sees, on pages of its own."""
        row_id = new_id()
        filler = secrets.token_hex(_ROOM_BYTES // 2)  # which cannot be compressed away
        row = {"tenant_id": DEFAULT_TENANT, "id": row_id, "goal": filler, "metadata": {}, "created_at": 0}
        async with self.write() as connection:
            await connection.execute(sa.insert(goals).values(row))
            await connection.execute(sa.delete(goals).where(goals.c.tenant_id == DEFAULT_TENANT, goals.c.id == row_id))

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncConnection]:
        with faults_named():
            async with self._engine.connect() as connection:
                kept = (await connection.get_raw_connection()).info
                announced: list[tuple[UUID, bool]] = kept.setdefault(_ANNOUNCED, [])
                announced.clear()
                async with connection.begin():
                    yield connection
                to_tell = list(announced)  # the connection, and its list, may be another's in a moment
        for run_id, requested in to_tell:
            self.tell(run_id, requested=requested)


def notify(connection: sa.Connection, *run_ids: UUID, requested: bool) -> None:
    """On PostgreSQL, have every process that listens told of the runs at the commit."""
    if connection.dialect.name == "postgresql":
        kind = "request" if requested else "change"
        with errors_named(connection), closing(connection.connection.cursor()) as cursor:
            messages = [f"{kind} {run_id}" for run_id in run_ids]
            cursor.execute("SELECT pg_notify(%s, message) FROM unnest(%s::text[]) AS message", (CHANNEL, messages))
