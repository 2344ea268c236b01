"""New databases of both kinds for tests: empty, or with Planwave's schema."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import cached_property
from pathlib import Path

from app.storage.database import Database
from tests.postgres import Postgres, running_postgres
from tests.service_process import upgrade

KINDS = ("sqlite", "postgresql")


class Databases:
    """Makes them: files under `directory`, and databases of the PostgreSQL that `postgres` gives.

    Without it a server is started when the first is wanted, with or without `fsync`. Each kind's schema is built
    once and then copied.
    """

    def __init__(self, directory: Path, postgres: Callable[[], Postgres] | None = None, *, fsync: bool = True) -> None:
        self._directory = directory
        self._fsync = fsync
        self._given_postgres = postgres
        self._templates: dict[str, str] = {}
        self._kept = ExitStack()
        self._made = 0

    def close(self) -> None:
        """Drop what copies were made from, and stop the server that was started."""
        self._kept.close()

    @cached_property
    def postgres(self) -> Postgres:
        """The server."""
        if self._given_postgres is not None:
            return self._given_postgres()
        return self._kept.enter_context(running_postgres(fsync=self._fsync))

    @contextmanager
    def fresh(self, kind: str, *, migrated: bool = True) -> Iterator[str]:
        """The URL of a new database, which lives as long as the context."""
        template = self._template(kind) if migrated else None
        if kind == "postgresql":
            with self.postgres.fresh_database(template=template) as url:
                yield url
            return
        self._made += 1
        file = self._directory / f"{self._made}.db"
        if template is not None:
            shutil.copy(template.removeprefix("sqlite:///"), file)
        yield f"sqlite:///{file}"

    def _template(self, kind: str) -> str:
        if kind not in self._templates:
            if kind == "postgresql":
                _ = self.postgres  # before what is made on it, so that it is stopped after that is dropped
            url = self._kept.enter_context(self.fresh(kind, migrated=False))
            upgrade(url, self._directory)
            self._templates[kind] = url
        return self._templates[kind]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """The database at this URL, as the service itself opens it."""
    database = Database(url, pool_size=2)
    try:
        yield database
    finally:
        await database.close()
