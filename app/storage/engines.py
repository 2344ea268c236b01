"""Engines of SQLAlchemy for one database, and their connections: how they are made, judged and closed."""

import asyncio
import select
import sqlite3
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import aiosqlite
import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.domain.errors import ConfigurationError
from app.storage.faults import is_read_only

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
SQLITE_BUSY_SECONDS = 30
_LOOK_SECONDS = 0.005
"""How often who waits to write to a file looks whether it can: see `_PromptCursor`."""
_BEGIN = "BEGIN IMMEDIATE"
LOCK_MS = 10_000
"""How long PostgreSQL waits for a lock, where it was not told otherwise: its own default is for ever."""
_UNWANTED_SECONDS = 0.5
"""How long a cancel waits for the connection that it made unwanted. A server may be hanging."""
_USED = "planwave_used"
_READS = {"planwave_reads": True}
"""The mark of SQLite's connections that only read: they begin nothing (AUTOCOMMIT is dear)."""


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


def make_engine(url: sa.URL, *, pool_size: int) -> AsyncEngine:
    """An engine for the event loop. SQLite has a pool of its own size, whose connections are threads."""
    return _sqlite_engine(url) if url.get_backend_name() == "sqlite" else _postgresql_engine(url, pool_size)


def make_sync_engine(url: sa.URL) -> sa.Engine:
    """A blocking engine for the same database, for migrations and the writer's thread."""
    if url.get_backend_name() != "sqlite":
        engine = sa.create_engine(url, pool_size=1, max_overflow=0, hide_parameters=True)
        sa.event.listen(engine, "handle_error", lose_if_read_only)
        return engine
    engine = sa.create_engine(
        url.set(drivername="sqlite"),
        connect_args={"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False, "factory": SQLiteConnection},
        hide_parameters=True,
    )
    sa.event.listen(engine, "connect", prepare_sqlite)
    sa.event.listen(engine, "begin", begin_sqlite)
    sa.event.listen(engine, "handle_error", lose_if_read_only)
    return engine


def for_reading(engine: AsyncEngine) -> AsyncEngine:
    """The same engine, and the same pool, for what only reads: no transaction is begun."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**_READS)
    reading = engine.execution_options()
    sa.event.listen(reading.sync_engine, "engine_connect", _begin_nothing)
    return reading


def _begin_nothing(connection: sa.Connection) -> None:
    """Have a connection of PostgreSQL's begin no transactions; SQLAlchemy's `engine_connect` event.

    As an option of the engine this would lose a connection whose caller is cancelled meanwhile: nobody gives it back
    to the pool until the collector finds it. It is closed instead, since it may have none for whoever comes next.
    """
    try:
        connection.execution_options(isolation_level="AUTOCOMMIT")
    except BaseException:
        connection.invalidate()
        raise


def _postgresql_engine(url: sa.URL, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
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


def _sqlite_engine(url: sa.URL) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=5,
        max_overflow=5,
        pool_timeout=SQLITE_BUSY_SECONDS,
        connect_args={
            "timeout": SQLITE_BUSY_SECONDS,
            "factory": SQLiteConnection,
            "async_creator_fn": open_or_close,
        },
        hide_parameters=True,
    )
    sa.event.listen(engine.sync_engine, "connect", prepare_sqlite)
    sa.event.listen(engine.sync_engine, "begin", begin_sqlite)
    sa.event.listen(engine.sync_engine, "handle_error", lose_if_read_only)
    return engine


class SQLiteConnection(sqlite3.Connection):
    """Closes its cursors before itself, and has cursors that get their turn to write.

    SQLite keeps a connection open, with its file and its read transaction, until no statement of it is left; and what
    was cancelled leaves a cursor, with its statement, to the garbage collector.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()

    def cursor(self, factory: Any = None) -> Any:
        """Remembered for as long as anybody has it."""
        cursor = super().cursor(factory or _PromptCursor)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        """With all that holds it open."""
        while self._cursors:  # none is left to a second close, which would be refused
            self._cursors.pop().close()
        super().close()


class _PromptCursor(sqlite3.Cursor):
    """Looks for the write lock every few milliseconds.

    SQLite looks more and more seldom, in the end every 100 ms. Between two transactions of a busy process the lock is
    free for less than one, so that the writers of another can miss it for seconds.
    """

    def execute(self, statement: str, parameters: Any = (), /) -> Any:
        """As `sqlite3.Cursor` does it."""
        if statement != _BEGIN:
            return super().execute(statement, parameters)
        deadline = time.monotonic() + SQLITE_BUSY_SECONDS
        _wait_when_busy(self.connection, _LOOK_SECONDS)
        try:
            while True:
                try:
                    return super().execute(_BEGIN)
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
        finally:
            _wait_when_busy(self.connection, SQLITE_BUSY_SECONDS)


def _wait_when_busy(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout = {seconds * 1000:.0f}").close()


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
    limit = f"SELECT set_config('lock_timeout', '{LOCK_MS}', false) WHERE current_setting('lock_timeout') = '0'"
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


def prepare_sqlite(connection: Any, record: object) -> None:
    """Make a new SQLite connection durable and safe under concurrency; SQLAlchemy's `connect` event."""
    connection.isolation_level = None  # we say BEGIN ourselves: the driver's own default loses updates
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = FULL")  # a 202 must survive a power cut
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_SECONDS * 1000:.0f}")
    cursor.close()


def begin_sqlite(connection: sa.Connection) -> None:
    """Take the write lock at once: a deferred upgrade fails immediately whatever the busy timeout."""
    options = connection.get_execution_options()
    if options.get("isolation_level") != "AUTOCOMMIT" and not options.keys() & _READS.keys():
        connection.exec_driver_sql(_BEGIN)
