"""What clients ask of one run is done to that run alone: not to another with the same keys, nor to another tenant's."""

from typing import Any

import pytest
import sqlalchemy as sa

from app.domain.ids import RunId
from app.storage import tables
from app.storage.database import Database
from app.storage.runs import lock_run
from app.storage.steering import request_cancel, request_pause, request_resume, retry_run
from app.storage.writing import count_by_status
from tests.storage.full_run import make_full_run
from tests.storage.half_done import asked
from tests.storage.twins import ANOTHER, all_of, make_twin
from tests.stored import T, expire, set_run

pytestmark = pytest.mark.asyncio(loop_scope="module")

Rows = dict[str, Any]


async def crowd(database: Database, *, held: bool) -> tuple[RunId, RunId]:
    """A run, and another with the same keys; there is a twin of the first."""
    other, mine = await make_full_run(database), await make_full_run(database)
    if not held:
        await expire(database, mine.run_id)
    await make_twin(database, mine.run_id)
    return mine.run_id, other.run_id


async def others_than(database: Database, mine: RunId, other: RunId) -> list[Rows]:
    return [await all_of(database, other), await all_of(database, mine, tenant=ANOTHER)]


async def retried(database: Database, run_id: RunId) -> None:
    async with database.write() as connection:
        run = await lock_run(connection, T, run_id)
        assert run is not None
        await retry_run(connection, run, options=run.options, budget=run.budget, model="another")


@pytest.mark.parametrize("held", [True, False], ids=["held", "free"])
@pytest.mark.parametrize("ending", ["cancel", "pause and resume", "cancel and retry"])
async def test_a_request_touches_the_run_that_it_names_and_no_other(
    database: Database, held: bool, ending: str
) -> None:
    mine, other = await crowd(database, held=held)
    before, mine_before = await others_than(database, mine, other), await all_of(database, mine)
    first = request_pause if "pause" in ending else request_cancel
    assert (await asked(database, first, mine))[1]
    if "resume" in ending:
        assert (await asked(database, request_resume, mine))[1]
    if "retry" in ending:
        await retried(database, mine)
    assert await others_than(database, mine, other) == before
    assert await all_of(database, mine) != mine_before


async def test_a_retry_goes_by_the_runs_own_tasks_attempts_and_plans(database: Database) -> None:
    """The others have more attempts, and a plan that has replaced the failed task."""
    mine, other = await crowd(database, held=False)
    await asked(database, request_cancel, mine)
    await set_run(database, mine, status="failed")
    theirs: list[tuple[sa.Table, sa.ColumnElement[bool]]] = [
        (table, (table.c.run_id == other) | (table.c.tenant_id == ANOTHER))
        for table in (tables.attempts, tables.plans, tables.tasks)
    ]
    async with database.write() as connection:
        (attempts, bent), (plans, bent_plans), _ = theirs
        await connection.execute(sa.update(attempts).where(bent).values(number=attempts.c.number + 7))
        await connection.execute(sa.update(plans).where(bent_plans).values(failed_task_keys=["0.a"]))
        failed = sa.update(tables.tasks).where(tables.tasks.c.tenant_id == T, tables.tasks.c.run_id == mine)
        await connection.execute(failed.where(tables.tasks.c.key == "0.a").values(status="failed"))
    before = await others_than(database, mine, other)

    await retried(database, mine)

    after = await all_of(database, mine)
    assert {task["key"]: (task["status"], task["attempts_before"]) for task in after["tasks"]} == {
        "0.a": ("pending", 2),
        "0.b": ("pending", 2),
        "0.c": ("pending", 0),
        "0.d": ("pending", 0),
    }
    assert after["runs"][0]["progress"] == count_by_status(["pending"] * 4)
    assert await others_than(database, mine, other) == before
