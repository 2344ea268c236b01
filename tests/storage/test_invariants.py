"""The checker of invariants bites: each rule is broken once."""

import pytest
import sqlalchemy as sa

from app.storage.database import Database
from app.storage.steering import request_cancel
from tests.invariants import check
from tests.scripted_model import DIAMOND
from tests.stored import T, make_run

pytestmark = pytest.mark.asyncio(loop_scope="module")

OF_RUN = "WHERE run_id = :run"
BREAKS = {
    "a gap in the events": f"UPDATE events SET seq = 99 {OF_RUN} AND seq = 3",
    "a lost event": f"DELETE FROM events {OF_RUN} AND seq = 7",
    "two ends": f"UPDATE events SET type = 'run.failed' {OF_RUN} AND seq = 3",
    "an event after the end": f"UPDATE events SET type = 'run.cancelled', task_key = NULL {OF_RUN} AND seq = 6",
    "a status that no event tells of": f"UPDATE tasks SET status = 'failed' {OF_RUN} AND position = 0",
    "a result of a task that did not succeed": f"UPDATE tasks SET result = '1' {OF_RUN} AND position = 0",
    "a start before its dependencies": (
        f"UPDATE events SET type = 'task.started', task_key = '0.d' {OF_RUN} AND seq = 3"
    ),
    "usage without a call": "UPDATE runs SET input_tokens = 1 WHERE id = :run",
    "a call that was not counted": "UPDATE runs SET llm_calls = 1 WHERE id = :run",
    "a wrong count of tasks": f"DELETE FROM tasks {OF_RUN} AND position = 3",
    "a generation without a plan": f"DELETE FROM plans {OF_RUN}",
    "a lease on a finished run": "UPDATE runs SET lease_token = id WHERE id = :run",
    "a finished run without an end": "UPDATE runs SET finished_at = NULL WHERE id = :run",
    "an error of a run that did not fail": "UPDATE runs SET error = '{}' WHERE id = :run",
    "an open attempt": (
        "INSERT INTO attempts (tenant_id, run_id, task_key, number, status, description, started_at) "
        "VALUES ('default', :run, '0.a', 1, 'running', 'Do a.', 1)"
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
async def test_the_checker_sees(database: Database, broken: str) -> None:
    run_id = await make_run(database, plan=DIAMOND)
    async with database.write() as connection:
        await request_cancel(connection, T, run_id)
    await check(database, run_id)
    async with database.write() as connection:
        statement = sa.text(BREAKS[broken]).bindparams(sa.bindparam("run", run_id, type_=sa.Uuid))
        await connection.execute(statement)
    with pytest.raises(AssertionError):
        await check(database, run_id)
