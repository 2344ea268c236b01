"""`planwave doctor`: looks over what is stored, while workers may go on, and prints what is wrong."""

import asyncio
from uuid import UUID

import typer

from app.cli.database import BEHIND, explained
from app.cli.terminal import leave, one_line
from app.domain.ids import RunId
from app.settings import Settings
from app.storage import doctor, migrate
from app.storage.database import Database
from app.storage.invariants import Finding


def examine(settings: Settings, run_id: UUID | None) -> None:
    """One line per finding. Exit 0 when there is none, 1 when there are some or no such run, 3 for the database."""
    only = None if run_id is None else RunId(run_id)
    with explained():
        if not migrate.is_current(settings.database_url):
            leave(BEHIND, 3)
        examined, found = asyncio.run(_examine(settings.database_url, only))
    if only is not None and not examined + found:
        leave(f"There is no run {only}.", 1)
    runs = "1 run" if examined == 1 else f"{examined} runs"
    if found:
        leave(f"{found} {'finding' if found == 1 else 'findings'} in {runs}.", 1)
    typer.echo(f"All is well with {runs}.")


async def _examine(url: str, only: RunId | None) -> tuple[int, int]:
    """How many runs were looked at, and how many findings were printed; one run at a time is held in memory."""
    examined = found = 0
    database = Database(url, pool_size=1)
    try:
        async with database.read() as connection:
            async for stray in doctor.strays(connection, only):
                found += 1
                _print(stray)
            async for tenant_id, run_id in doctor.run_ids(connection, only):
                examined += 1
                for finding in await doctor.examine(connection, tenant_id, run_id):
                    found += 1
                    _print(finding)
    finally:
        await database.close()
    return examined, found


def _print(finding: Finding) -> None:
    typer.echo(f"{finding.run_id} {finding.check}: {one_line(finding.message)}")
