"""The connection to the database: URLs, transactions, the clock. The only place that commits."""

import asyncio
import secrets
import select
import sqlite3
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import aiosqlite
import psycopg
import sqlalchemy as sa
import uuid_utils.compat
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from app.domain.errors import ConfigurationError, StorageFull, StorageUnavailable
from app.domain.ids import DEFAULT_TENANT
from app.storage.faults import faults_named, is_read_only
from app.storage.statements import errors_named
from app.storage.tables import goals

P = ParamSpec("P")
T = TypeVar("T")

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_NOTICED = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
"""libpq's own parameters, in seconds, and ms for the last: with them a server that vanishes without closing its sockets
is missed within half a minute, on connections that wait for it as on idle ones. Its defaults take hours."""
_SQLITE_BUSY_SECONDS = 30
_LOCK_MS = 10_000
"""How long PostgreSQL waits for a lock, where it was not told otherwise: its own default is for ever."""
_UNWANTED_SECONDS = 0.5
"""How long a cancel waits for the connection that it made unwanted. A server may be hanging."""
_ROOM_BYTES = 64 * 1024
"""A database that was full is no longer so when this much can be written: more than a usual goal takes."""
_ANNOUNCED = "planwave_announced"
_USED = "planwave_used"
_READS = {"planwave_reads": True}
"""The mark of SQLite's connections that only read: they begin nothing (AUTOCOMMIT is dear)."""
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


def parse_url(url: str) -> sa.URL:
    """A `sqlite:///…` or `postgresql://…` URL with the driver that Planwave uses, and how it misses a server."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigurationError("PLANWAVE_DATABASE_URL is not a URL; try sqlite:///./planwave.db.") from None
    driver = _DRIVERS.get(parsed.get_backend_name())
    if driver is None:
        raise ConfigurationError(
            f"PLANWAVE_DATABASE_URL names '{parsed.get_backend_name()}'; Planwave runs on sqlite and postgresql."
        )
    if driver.startswith("sqlite") and parsed.database in (None, "", ":memory:"):
        raise ConfigurationError("PLANWAVE_DATABASE_URL needs a file: in memory every connection has its own database.")
    if driver.startswith("sqlite") and (parsed.query or parsed.username or parsed.password or parsed.host):
        raise ConfigurationError(
            "PLANWAVE_DATABASE_URL: SQLite takes a path and nothing else, no host and no parameters behind a ?; "
            "try sqlite:///./planwave.db."
        )
    if driver.startswith("postgresql"):
        parsed = parsed.set(query={**_NOTICED, **parsed.query})
    return parsed.set(drivername=driver)


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
        self.url = parse_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._engine = self._sqlite_engine() if self.is_sqlite else self._postgresql_engine(pool_size)
        self._sync_engine = make_sync_engine(self.url)
        if not self.is_sqlite:
            sa.event.listen(self._sync_engine, "connect", limit_locks)
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planwave-writer")
        self._held: sa.Connection | None = None  # the writer's, opened and used in its thread only
        reading = _READS if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._reads = self._engine.execution_options(**reading)
        # SQLite has one writer: queueing here is fair and cheaper than its busy wait, which sleeps up to 100 ms.
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
                async with asyncio.timeout(_SQLITE_BUSY_SECONDS):
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

    def _postgresql_engine(self, pool_size: int) -> AsyncEngine:
        engine = create_async_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=10,
            use_native_hstore=False,  # which would cost each new connection a query
            connect_args={"async_creator_fn": connect_or_close},
            hide_parameters=True,  # errors are logged, and rows hold what clients and models wrote
        )
        sa.event.listen(engine.sync_engine, "checkout", refuse_if_cut)
        sa.event.listen(engine.sync_engine, "handle_error", lose_if_read_only)
        return engine

    def _sqlite_engine(self) -> AsyncEngine:
        engine = create_async_engine(
            self.url,
            pool_size=5,
            max_overflow=5,
            pool_timeout=_SQLITE_BUSY_SECONDS,
            connect_args={
                "timeout": _SQLITE_BUSY_SECONDS,
                "factory": TidyConnection,
                "async_creator_fn": open_or_close,
            },
            hide_parameters=True,
        )
        sa.event.listen(engine.sync_engine, "connect", prepare_sqlite)
        sa.event.listen(engine.sync_engine, "begin", begin_sqlite)
        sa.event.listen(engine.sync_engine, "handle_error", lose_if_read_only)
        return engine


class TidyConnection(sqlite3.Connection):
    """Closes its cursors before itself.

    SQLite keeps a connection open, with its file and its read transaction, until no statement of it is left; and what
    was cancelled leaves a cursor, with its statement, to the garbage collector.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()

    def cursor(self, *args: Any, **more: Any) -> Any:
        """Remembered for as long as anybody has it."""
        cursor = super().cursor(*args, **more)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        """With all that holds it open."""
        while self._cursors:  # none is left to a second close, which would be refused
            self._cursors.pop().close()
        super().close()


async def connect_or_close(*args: Any, **more: Any) -> psycopg.AsyncConnection:
    """psycopg's `connect`, closed where it is cancelled: see `made_or_closed`."""
    making = asyncio.ensure_future(_connected(*args, **more))
    return await made_or_closed(making, lambda connection: connection.pgconn.finish())


async def _connected(*args: Any, **more: Any) -> psycopg.AsyncConnection:
    connection = await psycopg.AsyncConnection.connect(*args, autocommit=True, **more)
    try:
        await connection.execute(_lock_limit())
        await connection.set_autocommit(False)
    except BaseException:
        connection.pgconn.finish()
        raise
    return connection


def limit_locks(connection: psycopg.Connection, record: object) -> None:
    """Have a new connection to PostgreSQL not wait for a lock for ever; SQLAlchemy's `connect` event."""
    connection.autocommit = True
    connection.execute(_lock_limit())
    connection.autocommit = False


def _lock_limit() -> bytes:
    limit = f"SELECT set_config('lock_timeout', '{_LOCK_MS}', false) WHERE current_setting('lock_timeout') = '0'"
    return limit.encode()


async def open_or_close(*args: Any, **more: Any) -> aiosqlite.Connection:
    """aiosqlite's `connect`, closed where it is cancelled: see `made_or_closed`."""
    connection = aiosqlite.connect(*args, **more)
    connection._thread.daemon = True  # as SQLAlchemy has it where it connects itself
    return await made_or_closed(asyncio.ensure_future(_opened(connection)), aiosqlite.Connection.stop)


async def _opened(connection: aiosqlite.Connection) -> aiosqlite.Connection:
    return await connection


async def made_or_closed(making: asyncio.Task[T], close: Callable[[T], object]) -> T:
    """The connection. One that nobody awaits any more, being cancelled, is closed when it stands.

    Otherwise it stays open, unknown to the pool, until the garbage collector finds it: with many cancels there are no
    more to be had. A cancel waits for that, but not for long, so that many do not make many connections at once.
    """

    def close_it(made: asyncio.Task[T]) -> None:
        if not made.cancelled() and made.exception() is None:
            close(made.result())

    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(close_it)
        await asyncio.wait([making], timeout=_UNWANTED_SECONDS)
        raise


def refuse_if_cut(connection: Any, record: Any, proxy: object) -> None:
    """Have the pool replace a connection that the server has closed meanwhile; SQLAlchemy's `checkout` event.

    On an idle connection there is something to read only when it has ended. To look costs no round trip, which asking
    the server before every use (`pool_pre_ping`) does.
    """
    is_new = _USED not in record.info
    record.info[_USED] = True
    if is_new:
        return  # the pool gives up after two that are refused
    driver = getattr(connection, "driver_connection", connection)
    if driver.closed:
        raise DisconnectionError
    looking = select.poll()
    looking.register(driver.fileno(), select.POLLIN)
    if looking.poll(0):
        raise DisconnectionError


def lose_if_read_only(context: sa.engine.ExceptionContext) -> None:
    """Keep no connection that cannot write, nor those made with it; SQLAlchemy's `handle_error` event."""
    if is_read_only(context.original_exception):
        context.is_disconnect = True


def notify(connection: sa.Connection, *run_ids: UUID, requested: bool) -> None:
    """On PostgreSQL, have every process that listens told of the runs at the commit."""
    if connection.dialect.name == "postgresql":
        kind = "request" if requested else "change"
        with errors_named(connection), closing(connection.connection.cursor()) as cursor:
            messages = [f"{kind} {run_id}" for run_id in run_ids]
            cursor.execute("SELECT pg_notify(%s, message) FROM unnest(%s::text[]) AS message", (CHANNEL, messages))


def make_sync_engine(url: sa.URL) -> sa.Engine:
    """A blocking engine for the same database, for migrations and the writer's thread."""
    if url.get_backend_name() != "sqlite":
        engine = sa.create_engine(url, pool_size=1, max_overflow=0, hide_parameters=True)
        sa.event.listen(engine, "handle_error", lose_if_read_only)
        return engine
    engine = sa.create_engine(
        url.set(drivername="sqlite"),
        connect_args={"timeout": _SQLITE_BUSY_SECONDS, "check_same_thread": False},
        hide_parameters=True,
    )
    sa.event.listen(engine, "connect", prepare_sqlite)
    sa.event.listen(engine, "begin", begin_sqlite)
    sa.event.listen(engine, "handle_error", lose_if_read_only)
    return engine


def prepare_sqlite(connection: Any, record: object) -> None:
    """Make a new SQLite connection durable and safe under concurrency; SQLAlchemy's `connect` event."""
    connection.isolation_level = None  # we say BEGIN ourselves: the driver's own default loses updates
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = FULL")  # a 202 must survive a power cut
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute(f"PRAGMA busy_timeout = {_SQLITE_BUSY_SECONDS * 1000}")
    cursor.close()


def begin_sqlite(connection: sa.Connection) -> None:
    """Take the write lock at once: a deferred upgrade fails immediately whatever the busy timeout."""
    options = connection.get_execution_options()
    if options.get("isolation_level") != "AUTOCOMMIT" and not options.keys() & _READS.keys():
        connection.exec_driver_sql("BEGIN IMMEDIATE")
