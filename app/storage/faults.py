"""What a database's faults are called, and what to do about those that pass: try again, or wait."""

import asyncio
import random
import sqlite3
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import structlog
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.domain.errors import StorageConflict, StorageFull, StorageUnavailable

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_PG_FULL = "53100"
_PG_READ_ONLY = "25006"
_PG_CONFLICTS = ("40001", "40P01")  # serialization failure, deadlock
# Classes of SQLSTATE, and some of a class that is otherwise about what was asked: no connection, too few resources,
# locked, ended by an operator, I/O; a transaction that is read-only (after a failover to a standby) or took too long.
_PG_AWAY = ("08", "40", "53", "55P03", "57", "58", "25006", "25P03", "25P04")
_SQLITE_AWAY = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
)
_TRIES = 5
_PAUSE_SECONDS = 0.02
_AWAY_SECONDS = 1.0


def is_read_only(error: BaseException | None) -> bool:
    """Whether a driver says that its connection cannot write. A new one may: a standby was promoted, a file mounted."""
    code = getattr(error, "sqlite_errorcode", None)
    return getattr(error, "sqlstate", None) == _PG_READ_ONLY or (
        code is not None and code & 0xFF == sqlite3.SQLITE_READONLY
    )


class faults_named:  # noqa: N801 - used as a with-statement's word
    """Turns the drivers' ways of saying "away, locked, full" into `StorageUnavailable`; their other errors are bugs."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PoolTimeout | OSError):
            raise StorageUnavailable("The database cannot be reached.") from error
        if isinstance(error, DBAPIError) and (named := _named(error)) is not None:
            raise named from error


def _named(error: DBAPIError) -> StorageUnavailable | None:
    code = getattr(error.orig, "sqlite_errorcode", None)
    state = getattr(error.orig, "sqlstate", None)
    if state == _PG_FULL or code == sqlite3.SQLITE_FULL:
        return StorageFull("The database has no room for the write.")
    if state in _PG_CONFLICTS:
        return StorageConflict("The database gave up the transaction in favour of another.")
    if (
        error.connection_invalidated
        or (code is not None and code & 0xFF in _SQLITE_AWAY)
        or (state is not None and state.startswith(_PG_AWAY))
        # Without a code it is no answer of a server: there is none, or the connection broke.
        or (state is None and code is None and isinstance(error, OperationalError))
    ):
        return StorageUnavailable("The database cannot be reached or cannot take the write.")
    return None


def tried_again(transaction: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Have a coroutine function that makes one transaction begin anew, a few times, when that gave way to another.

    Raises `StorageConflict` when it gave way each time.
    """

    @wraps(transaction)
    async def up_to_some_times(*args: P.args, **more: P.kwargs) -> T:
        for tried in range(1, _TRIES):
            try:
                return await transaction(*args, **more)
            except StorageConflict:
                # Whom it collided with is in the same position: by chance, and longer each time.
                await asyncio.sleep(random.uniform(0, _PAUSE_SECONDS * 2**tried))  # noqa: S311 - no secret
        return await transaction(*args, **more)

    return up_to_some_times


def patient(transaction: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Have a coroutine function that makes one transaction wait for a database that is away, as long as it takes."""

    @wraps(transaction)
    async def when_it_is_back(*args: P.args, **more: P.kwargs) -> T:
        while True:
            try:
                return await transaction(*args, **more)
            except StorageUnavailable as error:
                log.warning("database away, waiting", doing=transaction.__name__, reason=str(error.__cause__))
                await asyncio.sleep(random.uniform(_AWAY_SECONDS / 2, _AWAY_SECONDS))  # noqa: S311 - no secret

    return when_it_is_back
