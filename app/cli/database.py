"""The schema from the command line: up, down, is it current; and what a process does about it when it starts."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from app.cli.terminal import leave, one_line
from app.domain.errors import ConfigurationError, StorageUnavailable
from app.settings import Settings
from app.storage import migrate
from app.storage.engines import parse_url

BEHIND = "The database's schema is not the one that this version needs. Run: planwave db upgrade"


def prepare(settings: Settings) -> None:
    """Before a service or a worker starts: SQLite is brought up by itself, PostgreSQL has to be there (exit 3).

    A PostgreSQL is shared: who may change it, and when, is for its owner to say.
    """
    with explained():
        if migrate.is_current(settings.database_url):
            return
        if parse_url(settings.database_url).get_backend_name() != "sqlite":
            leave(BEHIND, 3)
        migrate.upgrade(settings.database_url)


def upgrade(settings: Settings, revision: str) -> None:
    """`planwave db upgrade`."""
    with explained():
        migrate.upgrade(settings.database_url, revision)
    typer.echo("The database's schema is current." if revision == "head" else f"The schema is at {revision}.")


def downgrade(settings: Settings, revision: str) -> None:
    """`planwave db downgrade`."""
    with explained():
        migrate.downgrade(settings.database_url, revision)
    typer.echo(f"The schema is at {revision}.")


def check(settings: Settings) -> None:
    """`planwave db check`: exit 0 when the schema is current, 1 in every other case."""
    try:
        with explained():
            current = migrate.is_current(settings.database_url)
    except (ConfigurationError, StorageUnavailable) as error:
        leave(str(error), 1)
    if not current:
        leave(BEHIND, 1)
    typer.echo("The database's schema is current.")


@contextmanager
def explained() -> Iterator[None]:
    """Adds what the driver said to `StorageUnavailable`, and turns the other faults of a migration into ours."""
    try:
        yield
    except StorageUnavailable as error:
        said = getattr(error.__cause__, "orig", None) or error.__cause__
        raise StorageUnavailable(f"{error} {one_line(str(said))}" if said else str(error)) from error
    except CommandError as error:  # an unknown revision: mistyped, or written by a newer Planwave
        raise ConfigurationError(f"The migration cannot be done: {one_line(str(error))}") from error
    except SQLAlchemyError as error:
        said = getattr(error, "orig", None) or error
        raise StorageUnavailable(f"The database cannot be used. {one_line(str(said))}") from error
