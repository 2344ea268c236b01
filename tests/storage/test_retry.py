"""Failed and cancelled runs go on: what begins anew, and what stays as it is."""

from typing import Any

import pytest

from app.domain.generation import Carried, next_plan
from app.domain.ids import RunId, TaskKey
from app.domain.plan import PlannedTask
from app.domain.status import AttemptStatus, PlanReason, RunStatus, TaskStatus
from app.storage import tables
from app.storage.changes import Changes
from app.storage.database import Database
from app.storage.records import RunRecord
from app.storage.runs import lock_run
from app.storage.steering import retry_run
from app.storage.writing import count_by_status
from tests.invariants import check
from tests.scripted_model import DIAMOND
from tests.storage.half_done import cancelled, last_event, make_half_done_run
from tests.stored import (
    T,
    changes_of,
    claim_one,
    expire,
    key,
    make_run,
    row_of,
    rows_of,
    set_run,
    write_changes,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def retried(database: Database, run_id: RunId, **given: Any) -> RunRecord:
    async with database.write() as connection:
        run = await lock_run(connection, T, run_id)
        assert run is not None
        return await retry_run(connection, run, **{"options": run.options, "budget": run.budget, **given})


def _attempts(changes: Changes, task: TaskKey, *ends: AttemptStatus, first: int = 1) -> None:
    for number, end in enumerate(ends, start=first):
        changes.task(task, TaskStatus.RUNNING)
        changes.attempt_started(task, number, description="Do it.", prompt_hash="hash")
        changes.event("task.started", task_key=task)
        changes.attempt_ended(task, number, end)
        if end is AttemptStatus.FAILED and number < first + len(ends) - 1:
            changes.event("task.retry_scheduled", task_key=task)


def _end(changes: Changes, task: TaskKey, status: TaskStatus, result: Any = None) -> None:
    changes.task(task, status, result=result)
    changes.event(f"task.{status}", task_key=task)


async def make_failed_run(database: Database) -> RunId:
    """0.b failed and was replaced by 1.b, which failed too, reworded: the run with it.

    0.a has succeeded, 0.e was skipped, 0.c superseded, 0.d and 1.c were cancelled.
    """
    run_id = await make_run(database, plan={"a": [], "b": ["a"], "c": ["b"], "d": ["a"], "e": []})
    changes = changes_of(await claim_one(database))
    changes.status, changes.begun = RunStatus.RUNNING, True
    changes.event("run.started")
    _attempts(changes, key("a"), AttemptStatus.SUCCEEDED)
    _end(changes, key("a"), TaskStatus.SUCCEEDED, "found")
    _attempts(changes, key("b"), AttemptStatus.FAILED, AttemptStatus.FAILED)
    _end(changes, key("b"), TaskStatus.FAILED)
    _attempts(changes, key("e"), AttemptStatus.FAILED)
    _end(changes, key("e"), TaskStatus.FAILED)
    changes.task_skipped(key("e"), "It is of no use.")
    changes.event("task.skipped", task_key=key("e"))
    _end(changes, key("c"), TaskStatus.SUPERSEDED)
    goes_on = {key("a"): (1, ()), key("d"): (2, (key("a"),)), key("e"): (1, ())}
    plan = next_plan(
        [
            PlannedTask(id="b", description="Do b otherwise."),
            PlannedTask(id="c", description="Do c.", depends_on=("b",)),
        ],
        PlanReason.TASK_FAILED,
        generation=1,
        position=5,
        carried={k: Carried(wave=wave, depends_on=needs) for k, (wave, needs) in goes_on.items()},
        failed=[key("b")],
        superseded=[key("c")],
    )
    changes.plans.append(plan)
    changes.replans = 1
    changes.event("plan.created", generation=1, failed_task_keys=["0.b"])
    new_b = TaskKey("1.b")
    await write_changes(database, changes)

    changes = changes_of(await _lease_of(database, run_id))
    _attempts(changes, new_b, AttemptStatus.FAILED)
    _end(changes, new_b, TaskStatus.FAILED)
    changes.task(new_b, TaskStatus.RETRYING)
    changes.task_begins_anew(new_b, wording="Do b gently.", reworded=True, attempts_before=1)
    changes.event("task.reworded", task_key=new_b)
    _attempts(changes, new_b, AttemptStatus.FAILED, AttemptStatus.FAILED, first=2)
    _end(changes, new_b, TaskStatus.FAILED)
    for task in (key("d"), TaskKey("1.c")):
        _end(changes, task, TaskStatus.CANCELLED)
    changes.status, changes.over = RunStatus.FAILED, True
    changes.error = {"code": "task_failed", "message": "Task 1.b failed.", "task_key": "1.b"}
    changes.budget_warned = ["max_llm_calls"]
    changes.progress = count_by_status(
        ["succeeded", "failed", "superseded", "cancelled", "skipped", "failed", "cancelled"]
    )
    changes.event("run.failed", error=changes.error)
    await write_changes(database, changes)
    await check(database, run_id)
    return run_id


async def _lease_of(database: Database, run_id: RunId) -> Any:
    await expire(database, run_id)
    return await claim_one(database)


async def test_a_retry_begins_anew_what_failed_and_what_was_cancelled_and_nothing_else(database: Database) -> None:
    run_id = await make_failed_run(database)

    run = await retried(database, run_id)

    tasks = {task["key"]: task for task in await rows_of(database, tables.tasks, run_id)}
    assert {k: task["status"] for k, task in tasks.items()} == {
        "0.a": "succeeded",
        "0.b": "failed",  # a replan has replaced it
        "0.c": "superseded",
        "0.d": "pending",
        "0.e": "skipped",
        "1.b": "pending",
        "1.c": "pending",
    }
    assert tasks["0.a"]["result"] == "found"
    assert run.progress == count_by_status(task["status"] for task in tasks.values())
    await check(database, run_id)


async def test_attempts_and_rewordings_are_counted_afresh_and_the_last_wording_stays(database: Database) -> None:
    run_id = await make_failed_run(database)

    await retried(database, run_id)

    tasks = {task["key"]: task for task in await rows_of(database, tables.tasks, run_id)}
    anew = {k: (task["attempts_before"], bool(task["reworded"]), task["wording"]) for k, task in tasks.items()}
    assert anew["1.b"] == (3, False, "Do b gently.")
    assert anew["0.d"] == anew["1.c"] == (0, False, None)
    assert anew["0.b"] == (0, False, None)
    assert {(task["next_attempt_at"], task["finished_at"]) for k, task in tasks.items() if k in ("0.d", "1.b")} == {
        (None, None)
    }
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [row["number"] for row in attempts if row["task_key"] == "1.b"] == [1, 2, 3]


async def test_a_retried_run_is_queued_due_and_free_of_its_end(database: Database) -> None:
    run_id = await make_failed_run(database)
    await set_run(database, run_id, takeovers=4, ready_at=2**53, result="what there was")

    run = await retried(database, run_id, options={"max_attempts": 9}, budget={"max_llm_calls": 7}, model="another")

    row = await row_of(database, run_id)
    assert (run.status, run.error, run.result, run.finished_at) == (RunStatus.QUEUED, None, None, None)
    assert (run.options, run.budget, run.model) == ({"max_attempts": 9}, {"max_llm_calls": 7}, "another")
    assert (run.replans, run.budget_warned, row["takeovers"]) == (0, (), 0)
    assert await last_event(database, run_id) == "run.retried"
    assert (await claim_one(database)).run_id == run_id


async def test_without_another_model_a_retried_run_keeps_its_own(database: Database) -> None:
    run_id = await make_run(database)
    await cancelled(database, run_id)

    assert (await retried(database, run_id)).model == "scripted"


async def test_calls_before_a_retry_are_told_from_those_after_it(database: Database) -> None:
    run_id = await make_half_done_run(database)
    await expire(database, run_id)
    await cancelled(database, run_id)

    run = await retried(database, run_id)

    assert (run.llm_calls, run.retried_after) == (2, 2)
    await check(database, run_id)


async def test_a_run_is_retried_as_often_as_it_ends(database: Database) -> None:
    run_id = await make_half_done_run(database)
    for _ in range(3):
        await expire(database, run_id)
        await cancelled(database, run_id)
        await retried(database, run_id)

    statuses = [task["status"] for task in await rows_of(database, tables.tasks, run_id)]
    assert statuses == ["succeeded", "pending", "pending", "pending"]
    await check(database, run_id)


async def test_a_retry_touches_no_other_run(database: Database) -> None:
    run_id, other = await make_failed_run(database), await make_run(database, plan=DIAMOND)
    await cancelled(database, other)
    before = (await row_of(database, other), await rows_of(database, tables.tasks, other))

    await retried(database, run_id)

    assert (await row_of(database, other), await rows_of(database, tables.tasks, other)) == before
