"""A retried run as a worker sees it: what failed begins afresh, and nothing that succeeded is called again."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from app.domain.ids import RunId
from app.domain.status import RunStatus
from app.storage import tables
from app.storage.database import Database
from app.storage.records import RunRecord
from app.storage.runs import lock_run
from app.storage.steering import request_cancel, retry_run
from tests.engine.conftest import Engine
from tests.engine.test_pause import answered
from tests.scripted_model import Answer, Plan, error, hang, plan_reply, script, tasks_of, text
from tests.stored import T, make_run, rows_of

CHAIN: Plan = {"a": [], "b": ["a"], "c": ["b"]}
EMPTY = text("")
AWAY = error(503)
NO_KEY = error(401)
NO_PLAN = text("I would rather not say.")
WELL = ["0.a", "0.b", "0.c", "synthesizer"]


def replan(tasks: Plan) -> Any:
    """A recovery answer with these tasks."""
    return text(json.dumps({"strategy": "replan", "tasks": tasks_of(tasks)}))


async def retried(database: Database, run_id: RunId, **options: Any) -> None:
    """As a client does it; the run goes on with these options."""
    async with database.write() as connection:
        run = await lock_run(connection, T, run_id)
        assert run is not None
        assert run.finished_at is not None
        again = await retry_run(connection, run, options={**run.options, **options}, budget=run.budget)
    assert (again.status, again.error, again.result, again.finished_at) == (RunStatus.QUEUED, None, None, None)


async def failed(engine: Engine, run_id: RunId, code: str) -> RunRecord:
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.status, run.error["code"]) == ("failed", code)
    return run


async def goes_on(engine: Engine, run_id: RunId, *expected: str) -> RunRecord:
    """Everything answers well now: retried, the run makes these calls and no others, and succeeds."""
    engine.model.begin(script(plan={"a": [], "b": ["a"], "c": ["b"]}))
    await retried(engine.database, run_id)
    run = await engine.ended(run_id)
    assert (run.status, run.result, run.error) == ("succeeded", "the answer", None)
    assert engine.model.order() == list(expected)
    assert run.llm_calls == len(await rows_of(engine.database, tables.calls, run_id))
    return run


async def statuses(database: Database, run_id: RunId) -> dict[str, str]:
    return {task["key"]: task["status"] for task in await rows_of(database, tables.tasks, run_id)}


# --- after each kind of failure


CASES: Mapping[str, tuple[str, Mapping[str | tuple[str, str], Answer], dict[str, Any], list[str]]] = {
    "plan_invalid": ("plan_invalid", {"planner": NO_PLAN}, {}, ["planner", *WELL]),
    "an outage at the planner": ("llm_unavailable", {"planner": AWAY}, {}, ["planner", *WELL]),
    "an outage at a task": ("llm_unavailable", {("executor", "b"): AWAY}, {}, WELL[1:]),
    "an outage at recovery": (
        "llm_unavailable",
        {("executor", "b"): EMPTY, "recovery": AWAY},
        {"on_failure": "auto"},
        WELL[1:],
    ),
    "an outage at the rewording": (
        "llm_unavailable",
        {("executor", "b"): EMPTY, "recovery": AWAY},
        {"on_failure": "retry"},
        WELL[1:],
    ),
    "an outage at the synthesizer": ("llm_unavailable", {"synthesizer": AWAY}, {}, WELL[3:]),
    "a wrong key at a task": ("llm_auth_failed", {("executor", "b"): NO_KEY}, {}, WELL[1:]),
    "a wrong key at the synthesizer": ("llm_auth_failed", {"synthesizer": NO_KEY}, {}, WELL[3:]),
    "task_failed": ("task_failed", {("executor", "c"): EMPTY}, {}, WELL[2:]),
    "reworded in vain": (
        "task_failed",
        {("executor", "b"): EMPTY, "recovery": text('{"description": "Otherwise."}')},
        {"on_failure": "retry"},
        WELL[1:],
    ),
    "no replan to be had": (
        "replans_exhausted",
        {("executor", "b"): EMPTY, "recovery": NO_PLAN},
        {"on_failure": "replan"},
        WELL[1:],
    ),
    "no replan allowed": (
        "replans_exhausted",
        {("executor", "b"): EMPTY},
        {"on_failure": "replan", "max_replans": 0},
        WELL[1:],
    ),
    "synthesis_failed": ("synthesis_failed", {"synthesizer": EMPTY}, {}, WELL[3:]),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_failed_run_goes_on_where_it_failed(engine: Engine, database: Database, case: str) -> None:
    code, places, options, expected = CASES[case]
    engine.model.begin(script(places, plan=CHAIN))
    engine.worker()
    run_id = await make_run(database, max_attempts=2, **options)
    before = await failed(engine, run_id, code)
    run = await goes_on(engine, run_id, *expected)
    assert run.llm_calls == before.llm_calls + len(expected)


async def test_a_cancelled_run_goes_on_where_it_was_cut(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): hang()}))
    engine.worker()
    run_id = await make_run(database, plan=CHAIN)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    async with database.write() as connection:
        await request_cancel(connection, T, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"
    await goes_on(engine, run_id, *WELL[1:])
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [(a["task_key"], a["number"], a["status"]) for a in attempts if a["task_key"] == "0.b"] == [
        ("0.b", 1, "cancelled"),
        ("0.b", 2, "succeeded"),
    ]


async def test_a_run_that_was_cancelled_before_it_began_begins(engine: Engine, database: Database) -> None:
    run_id = await make_run(database)
    async with database.write() as connection:
        await request_cancel(connection, T, run_id)
    engine.worker()
    await goes_on(engine, run_id, "planner", *WELL)


async def test_a_run_that_a_person_failed_goes_on(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): EMPTY}))
    engine.worker()
    run_id = await make_run(database, plan=CHAIN, max_attempts=1, on_failure="review")
    await engine.until(lambda run: run.status is RunStatus.AWAITING_REVIEW, run_id)
    await answered(database, run_id, "fail")
    await failed(engine, run_id, "task_failed")
    await goes_on(engine, run_id, *WELL[1:])


async def test_a_rejected_plan_is_asked_about_again(engine: Engine, database: Database) -> None:
    engine.model.begin(script(plan=CHAIN))
    engine.worker()
    run_id = await make_run(database, approval="plan")
    await engine.until(lambda run: run.status is RunStatus.AWAITING_REVIEW, run_id)
    await answered(database, run_id, "reject")
    await failed(engine, run_id, "review_rejected")
    await retried(database, run_id)
    await engine.until(lambda run: run.status is RunStatus.AWAITING_REVIEW, run_id)
    await answered(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert engine.model.order() == ["planner", *WELL]


# --- afresh


async def test_a_retried_task_has_all_its_attempts_again(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): EMPTY}))
    engine.worker()
    run_id = await make_run(database, plan={"a": []}, max_attempts=2)
    await failed(engine, run_id, "task_failed")
    await retried(database, run_id)
    await failed(engine, run_id, "task_failed")
    assert engine.model.order() == ["0.a"] * 4
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [(attempt["number"], attempt["status"]) for attempt in attempts] == [(n, "failed") for n in (1, 2, 3, 4)]


async def test_a_retried_task_may_be_reworded_again(engine: Engine, database: Database) -> None:
    wordings = [text(f'{{"description": "Wording {n}."}}') for n in (1, 2)]
    engine.model.begin(script({("executor", "a"): EMPTY, "recovery": wordings}))
    engine.worker()
    run_id = await make_run(database, plan={"a": []}, max_attempts=1, on_failure="retry")
    await failed(engine, run_id, "task_failed")
    await retried(database, run_id)
    await failed(engine, run_id, "task_failed")
    said = [call.messages[-1]["content"] for call in engine.model.by_seat("executor")]
    assert [words.rsplit("Your task: ", 1)[1] for words in said] == ["Do a.", "Wording 1.", "Wording 1.", "Wording 2."]


async def test_a_retried_run_may_be_replanned_again(engine: Engine, database: Database) -> None:
    plans = [replan({name: []}) for name in "xyz"]
    engine.model.begin(script({"executor": EMPTY, "recovery": plans}))
    engine.worker()
    run_id = await make_run(database, plan={"a": []}, max_attempts=1, on_failure="replan", max_replans=1)
    await failed(engine, run_id, "replans_exhausted")
    await retried(database, run_id)
    run = await failed(engine, run_id, "replans_exhausted")
    assert (run.generation, run.replans) == (2, 1)
    called = [call.task_key for call in engine.model.by_seat("executor")]
    assert called == ["0.a", "1.x", "1.x", "2.y"]


async def test_answers_rejected_before_a_retry_are_not_shown_to_the_planner_again(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({"planner": [NO_PLAN, NO_PLAN, NO_PLAN, NO_PLAN, plan_reply(CHAIN)]}))
    engine.worker()
    run_id = await make_run(database)
    await failed(engine, run_id, "plan_invalid")
    await retried(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    planner = engine.model.by_seat("planner")
    assert [len(call.messages) for call in planner] == [2, 4, 4, 2, 4]
    events = await rows_of(database, tables.events, run_id)
    rejected = [event["data"]["attempt"] for event in events if event["type"] == "plan.rejected"]
    assert rejected == [1, 2, 3, 1]


async def test_answers_rejected_before_a_retry_are_not_shown_to_recovery_again(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(
        script(
            {("executor", "a"): [EMPTY, EMPTY, text("a")], "recovery": [*[NO_PLAN] * 3, text('{"strategy": "skip"}')]}
        )
    )
    engine.worker()
    run_id = await make_run(database, plan={"a": [], "b": []}, max_attempts=1, max_replans=1, on_failure="auto")
    await failed(engine, run_id, "replans_exhausted")
    await retried(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert [len(call.messages) for call in engine.model.by_seat("recovery")] == [2, 4, 4, 2]


async def test_waits_from_before_a_retry_are_forgotten(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): error(503, headers={"Retry-After": "3600"})}))
    engine.worker(lease_seconds=2)
    run_id = await make_run(database, plan=CHAIN)
    await engine.until(lambda run: run.progress["retrying"] == 1 and not run.held, run_id)
    async with database.write() as connection:
        await request_cancel(connection, T, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"
    await goes_on(engine, run_id, *WELL)


async def test_transport_faults_before_a_retry_do_not_count(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): [*[AWAY] * 8, *[AWAY] * 7, text("at last")]}))
    engine.worker()
    run_id = await make_run(database, plan={"a": []})
    await failed(engine, run_id, "llm_unavailable")
    await retried(database, run_id)
    run = await engine.ended(run_id)
    assert (run.status, run.result, run.llm_calls) == ("succeeded", "at last", 16)


async def test_a_failure_of_a_task_before_a_retry_is_not_held_against_its_next_answer(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "a"): [EMPTY, text("a")]}))
    engine.worker()
    run_id = await make_run(database, plan={"a": [], "b": ["a"]}, max_attempts=1)
    await failed(engine, run_id, "task_failed")
    await retried(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    first, second = engine.model.calls_for("0.a")
    assert first.messages == second.messages


# --- with what replans have done


async def test_what_a_replan_has_replaced_stays_failed(engine: Engine, database: Database) -> None:
    engine.model.begin(
        script({("executor", "b"): EMPTY, ("executor", "x"): EMPTY, "recovery": replan({"x": ["0.a"], "y": ["x"]})})
    )
    engine.worker()
    run_id = await make_run(database, plan=CHAIN, max_attempts=1, on_failure="replan", max_replans=1)
    await failed(engine, run_id, "replans_exhausted")
    assert await statuses(database, run_id) == {
        "0.a": "succeeded",
        "0.b": "failed",
        "0.c": "superseded",
        "1.x": "failed",
        "1.y": "cancelled",
    }
    await goes_on(engine, run_id, "1.x", "1.y", "synthesizer")
    assert await statuses(database, run_id) == {
        "0.a": "succeeded",
        "0.b": "failed",
        "0.c": "superseded",
        "1.x": "succeeded",
        "1.y": "succeeded",
    }


async def test_what_was_skipped_stays_skipped(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): EMPTY, "synthesizer": EMPTY}))
    engine.worker()
    run_id = await make_run(database, plan=CHAIN, max_attempts=1, on_failure="skip")
    await failed(engine, run_id, "synthesis_failed")
    await goes_on(engine, run_id, "synthesizer")
    assert await statuses(database, run_id) == {"0.a": "skipped", "0.b": "succeeded", "0.c": "succeeded"}


async def test_a_run_can_be_retried_twice(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): [EMPTY, text("b")], ("executor", "c"): EMPTY}))
    engine.worker()
    run_id = await make_run(database, plan=CHAIN, max_attempts=1)
    await failed(engine, run_id, "task_failed")
    await retried(database, run_id)
    await failed(engine, run_id, "task_failed")
    assert engine.model.order() == ["0.a", "0.b", "0.b", "0.c"]
    run = await goes_on(engine, run_id, "0.c", "synthesizer")
    assert run.llm_calls == 6
    types = Counter(event["type"] for event in await rows_of(database, tables.events, run_id))
    assert (types["run.retried"], types["run.failed"], types["run.succeeded"]) == (2, 2, 1)


async def test_a_retry_may_change_what_follows_a_failure(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): EMPTY}))
    engine.worker()
    run_id = await make_run(database, plan=CHAIN, max_attempts=1)
    await failed(engine, run_id, "task_failed")
    await retried(database, run_id, on_failure="skip")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert engine.model.order() == ["0.a", "0.b", "0.b", "0.c", "synthesizer"]
