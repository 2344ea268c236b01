"""Bring a database to the newest schema, and say whether it is there."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import OperationalError

from app.domain.errors import ConfigurationError, StorageUnavailable
from app.storage.engines import make_sync_engine, parse_url

_WAL_TRIES = 100
_WAL_PAUSE_SECONDS = 0.1
LOCK = 7_526_274_963  # any number that nobody else takes: one migration at a time on PostgreSQL


def upgrade(url: str, revision: str = "head") -> None:
    """Run the migrations up to `revision`; a process that comes second waits, then finds nothing to do."""
    _run(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Run the migrations back down to `revision` (`base` for none)."""
    _run(url, lambda config: command.downgrade(config, revision))


def is_current(url: str) -> bool:
    """Whether the database has the schema that this version needs. Raises `ConfigurationError` for a newer one."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    engine = make_sync_engine(parse_url(url))
    try:
        with engine.connect() as connection:
            return _schema(connection) == head
    except OperationalError as error:
        raise StorageUnavailable("The database cannot be reached.") from error
    finally:
        engine.dispose()


def config() -> Config:
    """Alembic's configuration: beside the package in an installed wheel, at the top of a checkout."""
    here = Path(__file__).parent
    ini = here / "alembic.ini"
    return Config(str(ini if ini.exists() else here.parent.parent / "alembic.ini"))


@contextmanager
def locked(connection: sa.Connection) -> Iterator[None]:
    """Keep other migrations away until the block's transaction ends; SQLite's BEGIN IMMEDIATE does so by itself."""
    with connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        yield


def _run(url: str, do: Callable[[Config], None]) -> None:
    engine = make_sync_engine(parse_url(url))
    try:
        with engine.connect() as connection:
            use_wal(connection)
            with locked(connection):
                _schema(connection)
                alembic = config()
                alembic.attributes["connection"] = connection
                do(alembic)
    except OperationalError as error:
        raise StorageUnavailable("The database cannot be reached.") from error
    finally:
        engine.dispose()


def _schema(connection: sa.Connection) -> str | None:
    """The revision that the database has. Raises `ConfigurationError` for one that this version does not know."""
    stored = MigrationContext.configure(connection).get_current_revision()
    known = ScriptDirectory.from_config(config()).walk_revisions()
    if stored is not None and all(stored != script.revision for script in known):
        raise ConfigurationError(
            f"The database belongs to a newer Planwave (its schema is {stored}); install that one."
        )
    return stored


def use_wal(connection: sa.Connection) -> None:
    """On SQLite, have readers and the writer not wait for each other. The file remembers it.

    The change heeds no busy timeout: while another process holds the file it is tried again, for some seconds.
    """
    driver = connection.connection.dbapi_connection
    if connection.dialect.name != "sqlite" or driver is None:
        return
    for tries_left in reversed(range(_WAL_TRIES)):
        try:
            driver.cursor().execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if tries_left == 0 or error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StorageUnavailable("The database cannot be reached or is locked by another process.") from error
            time.sleep(_WAL_PAUSE_SECONDS)
        else:
            return
