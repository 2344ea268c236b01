"""One commit: outcomes, starts, calls and their events together, of one run or of many, all of it or nothing."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, StatementError

from app.domain.ids import RunId
from app.domain.status import AttemptStatus, CallStatus, RunStatus, Seat, TaskStatus
from app.domain.usage import Usage
from app.storage import tables
from app.storage.changes import Changes
from app.storage.database import Database
from app.storage.dispatch import Lease
from app.storage.statements import _Compiled
from app.storage.writing import count_by_status
from tests.invariants import check, progress_is_a_count_of_the_tasks, usage_is_the_sum_of_the_calls
from tests.stored import (
    changes_of,
    claim_due,
    claim_one,
    expire,
    key,
    make_goal,
    make_run,
    new_plan,
    row_of,
    rows_of,
    the_run,
    write_changes,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALL_TABLES = (tables.plans, tables.tasks, tables.dependencies, tables.attempts, tables.calls, tables.events)
CHAIN = {"a": [], "b": ["a"]}


def start(changes: Changes, task_id: str, *, number: int) -> None:
    """A task's first attempt starts, with this call."""
    changes.task(key(task_id), TaskStatus.RUNNING)
    changes.attempt_started(key(task_id), 1, description=f"Do {task_id}.", prompt_hash="hash")
    changes.event("task.started", task_key=key(task_id), attempt=1)
    changes.call_opened(number, seat=Seat.EXECUTOR, model="m", try_number=1, task_key=key(task_id), attempt=1)


def succeed(changes: Changes, task_id: str, *, number: int, result: Any = "done") -> None:
    """The task's first attempt succeeds with the answer to this call."""
    changes.call_ended(number, CallStatus.ANSWERED, usage=Usage(input_tokens=10, output_tokens=5))
    changes.attempt_ended(key(task_id), 1, AttemptStatus.SUCCEEDED)
    changes.task(key(task_id), TaskStatus.SUCCEEDED, result=result)
    changes.event("task.succeeded", task_key=key(task_id), attempt=1)


def counts(**statuses: int) -> dict[str, int]:
    return {"total": sum(statuses.values())} | {s.value: statuses.get(s.value, 0) for s in TaskStatus}


async def begun(database: Database) -> Lease:
    """A chain whose first task runs."""
    await make_run(database, plan=CHAIN)
    lease = await claim_one(database)
    changes = changes_of(lease)
    changes.status, changes.begun = RunStatus.RUNNING, True
    changes.event("run.started")
    start(changes, "a", number=1)
    changes.progress = counts(running=1, pending=1)
    await write_changes(database, changes)
    return lease


def outcome_and_start(lease: Lease) -> Changes:
    """The first task's result, and the start of the second that it releases."""
    changes = changes_of(lease)
    succeed(changes, "a", number=1)
    start(changes, "b", number=2)
    changes.progress = counts(succeeded=1, running=1)
    return changes


async def everything(database: Database, run_id: RunId) -> list[Any]:
    return [await row_of(database, run_id), *[await rows_of(database, table, run_id) for table in ALL_TABLES]]


async def test_an_outcome_its_event_and_the_start_it_releases_are_written_together(database: Database) -> None:
    lease = await begun(database)
    await write_changes(database, outcome_and_start(lease))
    await check(database, lease.run_id)
    first, second = await rows_of(database, tables.tasks, lease.run_id)
    assert (first["status"], first["result"], second["status"]) == ("succeeded", "done", "running")
    events = await rows_of(database, tables.events, lease.run_id)
    assert [event["type"] for event in events][-3:] == ["task.started", "task.succeeded", "task.started"]


async def test_all_that_one_commit_writes_has_one_time(database: Database) -> None:
    lease = await begun(database)
    fenced = (await write_changes(database, outcome_and_start(lease)))[lease.run_id]
    first, second = await rows_of(database, tables.tasks, lease.run_id)
    calls = await rows_of(database, tables.calls, lease.run_id)
    events = await rows_of(database, tables.events, lease.run_id)
    times = {first["finished_at"], second["started_at"], calls[0]["finished_at"], calls[1]["started_at"]}
    assert times | {event["at"] for event in events[-2:]} == {fenced.now}


@pytest.mark.parametrize("broken", ["UPDATE runs", "UPDATE tasks", "UPDATE attempts", "UPDATE calls"])
async def test_a_failing_update_leaves_nothing_of_a_commit(database: Database, broken: str) -> None:
    lease = await begun(database)
    await nothing_is_left_of(outcome_and_start(lease), database, broken)


@pytest.mark.parametrize("table", ALL_TABLES, ids=lambda table: table.name)
async def test_a_failing_insert_leaves_nothing_of_a_commit(database: Database, table: sa.Table) -> None:
    await make_run(database)
    changes = changes_of(await claim_one(database))
    changes.plans.append(new_plan(CHAIN))
    changes.status = RunStatus.RUNNING
    start(changes, "a", number=1)
    await nothing_is_left_of(changes, database, f"INSERT INTO {table.name}")


async def nothing_is_left_of(changes: Changes, database: Database, broken: str) -> None:
    """Break the statement that begins so, and compare all rows of the run."""
    before = await everything(database, changes.run_id)
    parameters = _Compiled.parameters

    def break_there(compiled: _Compiled, row: Any) -> Any:
        if compiled.sql.startswith(broken + " "):
            raise ZeroDivisionError
        return parameters(compiled, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Compiled, "parameters", break_there)
        with pytest.raises(ZeroDivisionError):
            await write_changes(database, changes)
    assert await everything(database, changes.run_id) == before


async def test_several_runs_share_a_transaction(database: Database) -> None:
    goal_id = await make_goal(database)
    runs = [await make_run(database, plan=CHAIN, goal_id=goal_id) for _ in range(5)]
    batch = []
    for number, lease in enumerate(await claim_due(database)):
        changes = changes_of(lease)
        changes.status = RunStatus.RUNNING
        changes.event("run.started", number=number)
        start(changes, "a", number=1)
        changes.progress = counts(running=1, pending=1)
        batch.append(changes)
    passed = await write_changes(database, *batch)
    assert set(passed) == set(runs)
    for run_id in runs:
        await check(database, run_id)


async def test_a_lost_run_drops_out_of_a_shared_transaction_alone(database: Database) -> None:
    goal_id = await make_goal(database)
    runs = [await make_run(database, plan=CHAIN, goal_id=goal_id) for _ in range(3)]
    leases = await claim_due(database)
    lost = runs[1]
    await expire(database, lost)
    await claim_one(database, owner="b")
    before = await everything(database, lost)
    batch = []
    for lease in leases:
        changes = changes_of(lease)
        changes.status = RunStatus.RUNNING
        changes.event("run.started")
        start(changes, "a", number=1)
        changes.progress = counts(running=1, pending=1)
        batch.append(changes)
    passed = await write_changes(database, *batch)
    assert set(passed) == set(runs) - {lost}
    assert await everything(database, lost) == before
    for run_id in runs:
        await check(database, run_id)


async def test_usage_is_the_sum_over_the_calls_whatever_became_of_them(database: Database) -> None:
    lease = await begun(database)
    changes = changes_of(lease)
    for number in range(2, 6):
        changes.call_opened(number, seat=Seat.EXECUTOR, model="m", try_number=1, task_key=key("a"), attempt=1)
    await write_changes(database, changes)
    ends: dict[int, tuple[CallStatus, Usage | None]] = {
        1: (CallStatus.FAILED, None),
        2: (CallStatus.ANSWERED, Usage(input_tokens=2**40, output_tokens=7)),
        3: (CallStatus.LOST, None),
        4: (CallStatus.CANCELLED, None),
        5: (CallStatus.ANSWERED, Usage(input_tokens=2**40, output_tokens=0)),
    }
    for number, (status, usage) in ends.items():
        changes = changes_of(lease)
        changes.call_ended(number, status, usage=usage)
        await write_changes(database, changes)
    run = await the_run(database, lease.run_id)
    assert (run.llm_calls, run.input_tokens, run.output_tokens) == (5, 2**41, 7)
    row, calls = await row_of(database, lease.run_id), await rows_of(database, tables.calls, lease.run_id)
    usage_is_the_sum_of_the_calls(row, calls)


async def test_what_a_commit_does_not_mention_stays_as_it_is(database: Database) -> None:
    lease = await begun(database)
    before = await row_of(database, lease.run_id)
    await write_changes(database, changes_of(lease))
    after = await row_of(database, lease.run_id)
    assert {name for name in after if after[name] != before[name]} == {"version"}


async def test_a_task_that_waits_for_a_retry_keeps_its_start_and_is_due_at_the_databases_time(
    database: Database,
) -> None:
    lease = await begun(database)
    (before, _) = await rows_of(database, tables.tasks, lease.run_id)
    waits = changes_of(lease)
    waits.task(key("a"), TaskStatus.RETRYING, retry_in_ms=5_000)
    waits.event("task.retry_scheduled", task_key=key("a"))
    waits.call_ended(1, CallStatus.FAILED, retry_in_ms=5_000)
    waits.progress = counts(retrying=1, pending=1)
    fenced = (await write_changes(database, waits))[lease.run_id]
    (after, _) = await rows_of(database, tables.tasks, lease.run_id)
    assert (after["started_at"], after["next_attempt_at"]) == (before["started_at"], fenced.now + 5_000)
    (call,) = await rows_of(database, tables.calls, lease.run_id)
    assert call["retry_at"] == fenced.now + 5_000
    again = changes_of(lease)
    again.task(key("a"), TaskStatus.RUNNING)
    again.event("task.started", task_key=key("a"))
    again.progress = counts(running=1, pending=1)
    await write_changes(database, again)
    (after, _) = await rows_of(database, tables.tasks, lease.run_id)
    assert (after["started_at"], after["next_attempt_at"]) == (before["started_at"], None)
    await check(database, lease.run_id)


@pytest.mark.parametrize("result", ["", "text", "null", 0, False, [], {"a": [1, None]}, "\u202e \U0001f40d"])
async def test_a_result_comes_back_as_it_was_given(database: Database, result: Any) -> None:
    lease = await begun(database)
    changes = changes_of(lease)
    succeed(changes, "a", number=1, result=result)
    changes.result = result
    await write_changes(database, changes)
    (task, _) = await rows_of(database, tables.tasks, lease.run_id)
    assert (task["result"], (await the_run(database, lease.run_id)).result) == (result, result)


async def test_rows_that_the_database_refuses_are_no_outage(database: Database) -> None:
    lease = await begun(database)
    twice = changes_of(lease)
    start(twice, "a", number=2)
    with pytest.raises(DBAPIError):
        await write_changes(database, twice)
    unspeakable = changes_of(lease)
    unspeakable.event("task.started", what=object())
    with pytest.raises((StatementError, TypeError)):
        await write_changes(database, unspeakable)


async def test_progress_equals_a_recount(database: Database) -> None:
    lease = await begun(database)
    await write_changes(database, outcome_and_start(lease))
    row, tasks = await row_of(database, lease.run_id), await rows_of(database, tables.tasks, lease.run_id)
    progress_is_a_count_of_the_tasks(row, tasks)


async def test_what_was_replaced_counts_among_the_superseded_and_not_in_the_total() -> None:
    progress = count_by_status(["succeeded", "superseded", "superseded", "pending"])
    assert progress == counts(succeeded=1, pending=1) | {"superseded": 2}
