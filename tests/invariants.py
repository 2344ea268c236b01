"""What is true of every run at every moment, asserted; see `check`."""

from collections.abc import Sequence

from app.domain.ids import RunId
from app.storage import doctor, invariants
from app.storage.database import Database
from app.storage.invariants import RUN_MOVES, moved_by
from app.storage.run_rows import Row, RunRows

__all__ = ["RUN_MOVES", "Row", "check", "moved_by", "progress_is_a_count_of_the_tasks", "usage_is_the_sum_of_the_calls"]


async def check(database: Database, run_id: RunId) -> None:
    """Assert all of it for one run, finished or not."""
    async with database.read() as connection:
        (tenant_id,) = [tenant_id async for tenant_id, _ in doctor.run_ids(connection, only=run_id)]
        found = await doctor.examine(connection, tenant_id, run_id)
    assert not found, "\n".join(f"{finding.check}: {finding.message}" for finding in found)


def usage_is_the_sum_of_the_calls(run: Row, calls: Sequence[Row]) -> None:
    """Assert this alone."""
    assert not list(invariants.usage_is_the_sum_of_the_calls(RunRows(run=run, calls=calls)))


def progress_is_a_count_of_the_tasks(run: Row, tasks: Sequence[Row]) -> None:
    """Assert this alone."""
    assert not list(invariants.progress_is_a_count_of_the_tasks(RunRows(run=run, tasks=tasks)))
