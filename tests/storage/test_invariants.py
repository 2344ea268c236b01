"""The checker of invariants bites: each rule is broken once, and whatever is broken is a finding."""

import sqlite3
from contextlib import closing

import pytest
import sqlalchemy as sa

from app.domain.ids import RunId
from app.storage import doctor, tables
from app.storage.database import Database
from app.storage.engines import make_sync_engine
from app.storage.invariants import Finding, use_stays_within_the_budget
from app.storage.run_rows import RunRows
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
    "an attempt at nothing": (
        "INSERT INTO attempts (tenant_id, run_id, task_key, number, status, description, started_at) "
        "VALUES ('default', :run, '9.z', 1, 'failed', 'Do z.', 1)"
    ),
    "an attempt that is not the first": (
        "INSERT INTO attempts (tenant_id, run_id, task_key, number, status, description, started_at) "
        "VALUES ('default', :run, '0.a', 2, 'failed', 'Do a.', 1)"
    ),
    "a review that is counted and not there": "UPDATE runs SET open_reviews = 1 WHERE id = :run",
    "a wait for a review that nobody has opened": "UPDATE runs SET status = 'awaiting_review' WHERE id = :run",
    "more calls than the budget allows": (
        "UPDATE runs SET llm_calls = 2, budget = '{\"max_llm_calls\": 1}' WHERE id = :run"
    ),
    "a task skipped for no reason": f"UPDATE tasks SET status = 'skipped' {OF_RUN} AND position = 0",
    "a plan without one of its tasks": f"UPDATE plans SET added = '[]' {OF_RUN}",
    "a column that holds something else": "UPDATE runs SET progress = '[]' WHERE id = :run",
    "no event at all": f"DELETE FROM events {OF_RUN}",
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


async def found_in(database: Database, run_id: RunId) -> list[Finding]:
    async with database.read() as connection:
        return await doctor.examine(connection, T, run_id)


def call_using(tokens: int, *, number: int = 1, reserved: int = 50) -> dict[str, int | None]:
    """A call's row as far as budgets go."""
    return {
        "number": number,
        "input_tokens": tokens,
        "output_tokens": None,
        "cost_nano_usd": None,
        "reserved_input_tokens": reserved,
        "reserved_output_tokens": 0,
        "reserved_cost_nano_usd": None,
    }


@pytest.mark.parametrize(
    ("calls", "retried_after", "passed"),
    [
        ([call_using(50), call_using(50, number=2)], 0, False),
        ([call_using(50), call_using(51, number=2)], 0, False),  # a single answer may exceed what was reserved
        ([call_using(60, reserved=60), call_using(50, number=2)], 0, True),
        ([call_using(200)], 1, False),  # used before a retry with a smaller budget
        ([call_using(200), call_using(1, number=2)], 1, True),
    ],
)
async def test_tokens_pass_the_budget_only_by_what_was_not_foreseen(
    calls: list[dict[str, int | None]], retried_after: int, passed: bool
) -> None:
    run = {"budget": {"max_tokens": 100}, "llm_calls": len(calls), "retried_after": retried_after}
    assert bool(list(use_stays_within_the_budget(RunRows(run=run, calls=calls)))) is passed


async def test_a_finding_names_the_run_the_check_and_the_task(database: Database) -> None:
    run_id = await make_run(database, plan=DIAMOND)
    async with database.write() as connection:
        await connection.execute(sa.update(tables.tasks).where(tables.tasks.c.key == "0.b").values(status="skipped"))
    (finding,) = [f for f in await found_in(database, run_id) if f.check == "states_follow_from_events"]
    assert finding == Finding(
        run_id=run_id, check="states_follow_from_events", message="task 0.b is skipped, by its events pending"
    )


async def test_a_run_that_was_deleted_meanwhile_has_nothing_wrong(database: Database) -> None:
    run_id = await make_run(database)
    async with database.write() as connection:
        await connection.execute(sa.delete(tables.runs))
    assert await found_in(database, run_id) == []


async def test_a_run_is_read_as_one_commit_left_it(database: Database) -> None:
    run_id = await make_run(database, plan=DIAMOND)
    commits: list[RunId] = []

    def commit_once(connection: sa.Connection, cursor: object, statement: str, *rest: object) -> None:
        if "FROM runs" not in statement or commits:
            return
        engine = make_sync_engine(database.url)
        with engine.begin() as other:  # between the reading of the run and that of its events
            event = {"tenant_id": T, "run_id": run_id, "seq": 3, "type": "budget.warning", "at": 1, "data": {}}
            other.execute(sa.insert(tables.events).values(event))
            other.execute(sa.update(tables.runs).values(event_seq=3))
        engine.dispose()
        commits.append(run_id)

    async with database.read() as connection:
        sa.event.listen(connection.sync_connection, "after_cursor_execute", commit_once)
        assert await doctor.examine(connection, T, run_id) == []
        assert commits == [run_id]
        assert await doctor.examine(connection, T, run_id) == []


async def test_rows_without_their_run_are_found(database: Database) -> None:
    run_id = await make_run(database, plan=DIAMOND)
    kept = await make_run(database, plan=DIAMOND)
    await delete_past_foreign_keys(database, run_id)
    async with database.read() as connection:
        found = [finding async for finding in doctor.strays(connection)]
        assert [ids async for ids in doctor.run_ids(connection)] == [(T, kept)]
    assert {finding.run_id for finding in found} == {run_id}
    assert "4 of tasks without their row in runs" in [finding.message for finding in found]


async def delete_past_foreign_keys(database: Database, run_id: RunId) -> None:
    if database.is_sqlite:
        with closing(sqlite3.connect(str(database.url.database))) as connection:
            connection.execute("DELETE FROM runs WHERE id = ?", [run_id.hex])
            connection.commit()
        return
    async with database.write() as writing:
        await writing.execute(sa.text("SET LOCAL session_replication_role = replica"))
        await writing.execute(sa.delete(tables.runs).where(tables.runs.c.id == run_id))


async def test_every_run_is_looked_at_however_many_pages_they_fill(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_PAGE", 2)
    made = [await make_run(database) for _ in range(5)]
    async with database.read() as connection:
        assert [run_id async for _, run_id in doctor.run_ids(connection)] == made
        assert [ids async for ids in doctor.run_ids(connection, only=made[3])] == [(T, made[3])]
