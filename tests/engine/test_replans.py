"""New generations of a run's plan: what they replace, carry and drop, and the people who approve or ask for them."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from app.domain import recovery
from app.domain.ids import RunId
from app.domain.status import RunStatus
from app.engine import worker
from app.storage import tables
from app.storage.database import Database
from app.storage.records import RunRecord
from app.storage.reviews import answer_review, list_reviews
from app.storage.runs import lock_run
from tests.engine.conftest import Engine, Gates, WorkerHere
from tests.invariants import check
from tests.scripted_model import DIAMOND, Answer, Call, Plan, Reply, error, hang, plan_reply, script, text
from tests.stored import T, expire, make_run, rows_of, the_run

ONE: Plan = {"a": []}
PAIR: Plan = {"a": [], "b": []}
CHAIN: Plan = {"a": [], "b": ["a"], "c": ["b"]}
SPOILED = text("")
Answers = dict[str | tuple[str, str], Answer]
NO_ANSWER = text("I would rather not say.")
REFUSED = text("No.", finish_reason="content_filter")


def anew(plan: Plan, *, drop: Sequence[str] = (), words: str = "Redo") -> Reply:
    """A replan with tasks that say `Redo ID.`."""
    tasks = [{"id": i, "description": f"{words} {i}.", "depends_on": list(before)} for i, before in plan.items()]
    return text(json.dumps({"strategy": "replan", "tasks": tasks, "drop": list(drop)}))


async def fragile(database: Database, plan: Plan | None = CHAIN, **options: Any) -> RunId:
    """A run whose tasks have one attempt each, and whose failures are replanned."""
    return await make_run(database, plan=plan, **{"max_attempts": 1, "on_failure": "replan", **options})


async def statuses(database: Database, run_id: RunId) -> dict[str, str]:
    tasks = await rows_of(database, tables.tasks, run_id)
    return {task["key"]: task["status"] for task in sorted(tasks, key=lambda task: task["position"])}


async def the_plan(database: Database, run_id: RunId, generation: int) -> Mapping[str, Any]:
    return (await rows_of(database, tables.plans, run_id))[generation]


async def events_of(database: Database, run_id: RunId, type_: str) -> list[Mapping[str, Any]]:
    return [event for event in await rows_of(database, tables.events, run_id) if event["type"] == type_]


def seats(engine: Engine) -> list[str]:
    return [call.seat for call in engine.model.calls]


def asked(engine: Engine, seat: str = "recovery") -> list[Call]:
    return engine.model.by_seat(seat)


def executed(engine: Engine) -> list[str | None]:
    return [call.task_key for call in engine.model.by_seat("executor")]


def code_of(run: RunRecord) -> str | None:
    return None if run.error is None else run.error["code"]


def is_asked(run: RunRecord) -> bool:
    return run.status is RunStatus.AWAITING_REVIEW


async def answer(
    database: Database, run_id: RunId, decision: str, *, announced: bool = True, about: int | None = None, **given: Any
) -> None:
    """A person's answer to the only review that is open, or to that about a generation."""
    async with database.write() as connection:
        run = await lock_run(connection, T, run_id)
        assert run is not None
        reviews = await list_reviews(connection, T, run_id, limit=100)
        open_ = [r for r in reviews if r.answered_at is None and r.closed_at is None]
        (review,) = [r for r in open_ if about is None or r.generation == about]
        assert decision in review.allowed_answers
        await answer_review(connection, run, review, {"decision": decision, **given})
        if announced:
            await database.announce(connection, run_id)


async def dies(worker: WorkerHere, database: Database, run_id: RunId) -> None:
    """The worker is gone, and its lease on the run has run out."""
    await worker.die()
    await expire(database, run_id)
    await check(database, run_id)


# --- what a new generation is


async def test_a_new_generation_is_stored_with_what_it_adds_carries_and_replaces(
    engine: Engine, database: Database
) -> None:
    plan = {"a": [], "b": ["a"], "c": ["b"], "d": ["a"], "e": ["d"]}
    new = anew({"x": ["0.a"], "y": ["x", "0.e"]})
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": new}))
    engine.worker()
    run_id = await fragile(database, plan)
    run = await engine.ended(run_id)
    assert (run.status, run.generation, run.replans) == ("succeeded", 1, 1)
    row = await the_plan(database, run_id, 1)
    names = ("reason", "parent_generation", "failed_task_keys", "added", "carried", "superseded")
    assert {name: row[name] for name in names} == {
        "reason": "task_failed",
        "parent_generation": 0,
        "failed_task_keys": ["0.b"],
        "added": ["1.x", "1.y"],
        "carried": ["0.a", "0.d", "0.e"],
        "superseded": ["0.c"],
    }
    assert row["critical_path"] == ["0.a", "0.d", "0.e", "1.y"]
    tasks = {task["key"]: task for task in await rows_of(database, tables.tasks, run_id)}
    assert {key: tasks[key]["wave"] for key in ("0.a", "0.d", "0.e", "1.x", "1.y")} == {
        "0.a": 1,
        "0.d": 2,
        "0.e": 3,
        "1.x": 2,
        "1.y": 4,
    }
    assert await statuses(database, run_id) == {
        "0.a": "succeeded",
        "0.b": "failed",
        "0.c": "superseded",
        "0.d": "succeeded",
        "0.e": "succeeded",
        "1.x": "succeeded",
        "1.y": "succeeded",
    }
    (created,) = [e for e in await events_of(database, run_id, "plan.created") if e["data"]["generation"] == 1]
    assert created["data"]["failed_task_keys"] == ["0.b"]
    assert [e["task_key"] for e in await events_of(database, run_id, "task.superseded")] == ["0.c"]
    of_generation = [(call["seat"], call["task_key"], call["generation"]) for call in await calls_of(database, run_id)]
    assert ("recovery", "0.b", 0) in of_generation
    assert ("executor", "1.x", 1) in of_generation


async def calls_of(database: Database, run_id: RunId) -> Sequence[Mapping[str, Any]]:
    return await rows_of(database, tables.calls, run_id)


async def test_new_tasks_are_shown_the_results_of_earlier_ones(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": anew({"x": ["0.a"]})}))
    engine.worker()
    await engine.ended(await fragile(database))
    (call,) = engine.model.calls_for("1.x")
    assert "result of 0.a" in call.text
    assert call.text.endswith("Redo x.")


async def test_the_same_ids_name_other_tasks_in_every_generation(engine: Engine, database: Database) -> None:
    answers: Answers = {
        ("executor", "b"): lambda call: SPOILED if call.task_key != "2.b" else text("done"),
        "recovery": lambda call: anew({"b": ["0.a"], "c": ["b"]}, words=f"In place of {call.task_key} do"),
    }
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await fragile(database)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert executed(engine) == ["0.a", "0.b", "1.b", "2.b", "2.c"]
    assert len(asked(engine)) == 2
    assert (await the_plan(database, run_id, 2))["failed_task_keys"] == ["1.b"]
    assert (await the_plan(database, run_id, 2))["carried"] == ["0.a"]


async def test_new_tasks_that_need_a_running_one_wait_for_it(engine: Engine, database: Database) -> None:
    gates = Gates()
    answers: Answers = {("executor", "a"): SPOILED, ("executor", "b"): gates, "recovery": anew({"x": ["0.b"], "y": []})}
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await fragile(database, PAIR)
    await engine.until(lambda run: run.progress["succeeded"] == 1, run_id)
    assert executed(engine) == ["0.a", "0.b", "1.y"]
    gates.open("b")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert executed(engine) == ["0.a", "0.b", "1.y", "1.x"]
    assert "result of 0.b" in engine.model.calls_for("1.x")[0].text


async def test_everything_else_goes_on_while_a_replan_is_drawn(engine: Engine, database: Database) -> None:
    gates = Gates(lambda call: anew({"x": []}))
    engine.model.begin(script({("executor", "a"): SPOILED, "recovery": gates}))
    engine.worker()
    run_id = await fragile(database, {"a": [], "b": [], "c": ["b"], "d": ["c"]})
    await engine.model.until(lambda: len(asked(engine)) == 1)
    run = await engine.until(lambda run: run.progress["succeeded"] == 3, run_id)
    assert (run.status, run.generation) == ("running", 0)
    gates.open("a")
    assert (await engine.ended(run_id)).status == "succeeded"


@pytest.mark.parametrize("strategy", ["replan", "auto"])
async def test_failures_that_come_together_share_a_replan(
    engine: Engine, database: Database, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "GATHER_MS", 500)
    gates = Gates(lambda call: SPOILED)
    answers: Answers = {("executor", "b"): gates, ("executor", "c"): gates, "recovery": anew({"x": ["0.a"]})}
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await fragile(database, DIAMOND, on_failure=strategy)
    await engine.until_true(lambda: gates.most == 2)
    gates.open("b")
    await engine.until(lambda run: run.progress["failed"] == 1, run_id)
    gates.open("c")
    assert (await engine.ended(run_id)).status == "succeeded"
    (call,) = asked(engine)
    assert (call.task_key, "Do b." in call.text, "Do c." in call.text) == (None, True, True)
    row = await the_plan(database, run_id, 1)
    assert (row["failed_task_keys"], row["carried"], row["superseded"]) == (["0.b", "0.c"], ["0.a"], ["0.d"])


async def test_a_failure_after_the_request_was_sent_waits_for_the_next_replan(
    engine: Engine, database: Database
) -> None:
    spoiled, drawn = Gates(lambda call: SPOILED), Gates(lambda call: anew({"x" if call.task_id == "a" else "y": []}))
    engine.model.begin(script({("executor", "a"): SPOILED, ("executor", "b"): spoiled, "recovery": drawn}))
    engine.worker()
    run_id = await fragile(database, {"a": [], "b": [], "c": ["b"]})
    await engine.model.until(lambda: len(asked(engine)) == 1)
    spoiled.open("b")
    await engine.until(lambda run: run.progress["failed"] == 2, run_id)
    drawn.open("a")
    await engine.until(lambda run: run.generation == 1, run_id)
    await engine.model.until(lambda: len(asked(engine)) == 2)
    await check(database, run_id)
    drawn.open("b")
    assert (await engine.ended(run_id)).status == "succeeded"
    first, second = [await the_plan(database, run_id, generation) for generation in (1, 2)]
    assert (first["failed_task_keys"], first["carried"], first["superseded"]) == (["0.a"], ["0.b", "0.c"], [])
    assert (second["failed_task_keys"], second["carried"], second["superseded"]) == (["0.b"], ["1.x"], ["0.c"])
    assert executed(engine).count("1.x") == 1


async def test_a_failure_before_the_request_could_be_sent_joins_it(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint asks to be left alone for a while, so that the request waits though it is due."""
    monkeypatch.setattr(recovery, "GATHER_MS", 0)
    gates = Gates(lambda call: SPOILED)
    held_off = error(429, headers={"Retry-After": "2"})
    answers: Answers = {
        ("executor", "a"): gates,
        ("executor", "b"): gates,
        ("executor", "c"): [held_off, text("done")],
        "recovery": lambda call: anew({f"instead of {call.task_id}": []}),
    }
    engine.model.begin(script(answers))
    engine.worker(llm_backoff_cap_seconds=10)
    run_id = await fragile(database, {**PAIR, "c": []})
    await engine.until(lambda run: run.progress["retrying"] == 1, run_id)
    gates.open("a")
    await engine.until(lambda run: run.progress["failed"] == 1, run_id)
    gates.open("b")
    await engine.until(lambda run: run.progress["failed"] == 2, run_id)
    assert asked(engine) == []
    assert (await engine.ended(run_id)).status == "succeeded"
    assert len(asked(engine)) == 1


async def test_no_replan_is_asked_for_a_failure_that_waited_when_they_are_used_up(
    engine: Engine, database: Database
) -> None:
    spoiled, drawn = Gates(lambda call: SPOILED), Gates(lambda call: anew({"x": []}))
    engine.model.begin(script({("executor", "a"): SPOILED, ("executor", "b"): spoiled, "recovery": drawn}))
    engine.worker()
    run_id = await fragile(database, PAIR, max_replans=1)
    await engine.model.until(lambda: len(asked(engine)) == 1)
    spoiled.open("b")
    await engine.until(lambda run: run.progress["failed"] == 2, run_id)
    drawn.open("a", "b")
    run = await engine.ended(run_id)
    assert (code_of(run), run.error and run.error["task_key"]) == ("replans_exhausted", "0.b")
    assert len(asked(engine)) == 1


async def test_replans_are_counted_and_then_used_up(engine: Engine, database: Database) -> None:
    answers: Answers = {
        ("executor", "b"): SPOILED,
        "recovery": lambda call: anew({"b": ["0.a"]}, words=f"In place of {call.task_key} do"),
    }
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await fragile(database, max_replans=2)
    run = await engine.ended(run_id)
    assert (code_of(run), run.replans, len(asked(engine))) == ("replans_exhausted", 2, 2)
    assert run.error is not None
    assert run.error["task_key"] == "2.b"
    assert "1 of 2 tasks succeeded (0.a). Not reached: 2.b." in run.error["message"]


async def test_a_run_that_a_replan_leaves_one_task_is_not_synthesized(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): SPOILED, "recovery": anew({"x": []})}))
    engine.worker()
    run = await engine.ended(await fragile(database, CHAIN))
    assert (run.result, seats(engine)) == ("result of 1.x", ["executor", "recovery", "executor"])


async def test_without_synthesis_the_result_is_that_of_the_last_live_tasks(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": anew({"x": ["0.a"], "y": ["x"]})}))
    engine.worker()
    run = await engine.ended(await fragile(database, {**CHAIN, "d": ["a"]}, synthesize=False))
    assert run.result == {"0.d": "result of 0.d", "1.y": "result of 1.y"}


# --- drop


async def test_what_is_dropped_is_superseded_with_what_depends_on_it(engine: Engine, database: Database) -> None:
    gates = Gates()
    plan = {"a": [], "b": [], "c": ["b"], "d": ["c"], "e": ["b"]}
    answers: Answers = {("executor", "a"): SPOILED, ("executor", "b"): gates, "recovery": anew({"x": []}, drop=["0.c"])}
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await fragile(database, plan)
    await engine.until(lambda run: run.generation == 1, run_id)
    gates.open("b")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert await statuses(database, run_id) == {
        "0.a": "failed",
        "0.b": "succeeded",
        "0.c": "superseded",
        "0.d": "superseded",
        "0.e": "succeeded",
        "1.x": "succeeded",
    }
    row = await the_plan(database, run_id, 1)
    assert (row["superseded"], row["carried"]) == (["0.c", "0.d"], ["0.b", "0.e"])


async def test_a_drop_of_what_has_started_is_ignored(engine: Engine, database: Database) -> None:
    gates = Gates()
    new = anew({"x": []}, drop=["0.b", "0.c", "0.a"])
    answers: Answers = {("executor", "a"): SPOILED, ("executor", "b"): gates, "recovery": new}
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await fragile(database, {**PAIR, "c": []})
    await engine.until(lambda run: run.generation == 1, run_id)
    gates.open("b")
    assert (await engine.ended(run_id)).status == "succeeded"
    row = await the_plan(database, run_id, 1)
    assert (row["superseded"], row["carried"]) == ([], ["0.b", "0.c"])


async def test_a_drop_of_what_waits_for_its_next_try_leaves_nothing_open(engine: Engine, database: Database) -> None:
    """After a transport fault the attempt goes on."""
    wait = error(503, headers={"Retry-After": "30"})
    answers: Answers = {("executor", "a"): SPOILED, ("executor", "b"): wait, "recovery": anew({"x": []}, drop=["0.b"])}
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await fragile(database, PAIR)
    run = await engine.until(lambda run: run.generation == 1, run_id)
    if run.progress["retrying"] == 0:  # whether such a task counts as started is left open
        await engine.ended(run_id)


# --- answers that are no plan

SAME = anew({"b": ["0.a"]}, words="Do")
WRONG: Mapping[str, tuple[Reply, str]] = {
    "no json": (NO_ANSWER, "not_json"),
    "no tasks": (text('{"strategy": "replan", "tasks": []}'), "empty"),
    "same as failed": (SAME, "same_as_failed"),
    "work of the run": (text('{"tasks": [{"id": "z", "description": "Do a."}]}'), "repeats_task"),
    "needs what failed": (anew({"x": ["0.b"]}), "unknown_dependency"),
    "needs what is replaced": (anew({"x": ["0.c"]}), "unknown_dependency"),
    "needs nothing known": (anew({"x": ["0.zz"]}), "unknown_dependency"),
    "drops nothing known": (anew({"x": []}, drop=["0.zz"]), "unknown_drop"),
    "a cycle": (anew({"x": ["y"], "y": ["x"]}), "cycle"),
    "too many": (anew({str(n): [] for n in range(8)}), "too_many_tasks"),
    "another strategy": (text('{"strategy": "skip"}'), "wrong_strategy"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_replan_that_is_none_is_asked_for_again_with_its_problems(
    engine: Engine, database: Database, wrong: str
) -> None:
    reply, code = WRONG[wrong]
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": [reply, anew({"x": ["0.a"]})]}))
    engine.worker()
    run_id = await fragile(database)
    run = await engine.ended(run_id)
    assert (run.status, run.replans) == ("succeeded", 1)
    _, again = asked(engine)
    (rejected,) = await events_of(database, run_id, "plan.rejected")
    assert (rejected["task_key"], rejected["data"]["attempt"]) == ("0.b", 1)
    assert rejected["data"]["errors"][0]["code"] == code
    assert all(problem["message"] in again.text for problem in rejected["data"]["errors"])


@pytest.mark.parametrize(
    "plain",
    ['{"tasks": [{"id": "x", "description": "Redo."}]}', '[{"id": "x", "description": "Redo."}]'],
    ids=["tasks", "array"],
)
async def test_a_plain_plan_is_a_replan(engine: Engine, database: Database, plain: str) -> None:
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": text(plain)}))
    engine.worker()
    assert (await engine.ended(await fragile(database))).status == "succeeded"
    assert executed(engine) == ["0.a", "0.b", "1.x"]


async def test_a_replan_that_never_comes_uses_one_up(engine: Engine, database: Database) -> None:
    answers = [NO_ANSWER, NO_ANSWER, NO_ANSWER, anew({"x": ["0.a"]})]
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": answers}))
    engine.worker()
    run_id = await fragile(database, max_replans=2)
    run = await engine.ended(run_id)
    assert (run.status, run.replans, run.generation, len(asked(engine))) == ("succeeded", 2, 1, 4)
    last = asked(engine)[-1]
    assert "not a valid answer" not in last.text


@pytest.mark.parametrize("on_exhausted", ["fail", "review"])
async def test_replans_that_never_come_are_used_up(engine: Engine, database: Database, on_exhausted: str) -> None:
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": NO_ANSWER}))
    engine.worker()
    run_id = await fragile(database, max_replans=1, on_exhausted=on_exhausted)
    if on_exhausted == "review":
        await engine.until(is_asked, run_id)
        assert await statuses(database, run_id) == {"0.a": "succeeded", "0.b": "awaiting_review", "0.c": "pending"}
        await answer(database, run_id, "supply", result="by hand")
    run = await engine.ended(run_id)
    assert (code_of(run), len(asked(engine))) == ("replans_exhausted" if on_exhausted == "fail" else None, 3)
    if on_exhausted == "review":
        assert "by hand" in engine.model.calls_for("0.c")[0].text


async def test_all_failures_of_a_replan_that_never_came_are_shown_to_a_person(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "GATHER_MS", 500)
    engine.model.begin(script({"executor": SPOILED, "recovery": NO_ANSWER}))
    engine.worker()
    run_id = await fragile(database, PAIR, max_replans=1, on_exhausted="review")
    run = await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert (run.open_reviews, len(asked(engine))) == (2, 3)


async def test_failures_that_wait_for_a_replan_that_is_used_up_cost_no_more_calls(
    engine: Engine, database: Database
) -> None:
    spoiled, drawn = Gates(lambda call: SPOILED), Gates(lambda call: NO_ANSWER)
    engine.model.begin(script({("executor", "a"): SPOILED, ("executor", "b"): spoiled, "recovery": drawn}))
    engine.worker()
    run_id = await fragile(database, PAIR, max_replans=1, on_exhausted="review")
    await engine.model.until(lambda: len(asked(engine)) == 1)
    spoiled.open("b")
    await engine.until(lambda run: run.progress["failed"] == 2, run_id)
    drawn.open("a", "b", None)
    run = await engine.until(is_asked, run_id)
    assert (run.open_reviews, len(asked(engine)), run.replans) == (2, 3, 1)


# --- approval of plans


async def test_a_plan_is_held_until_it_is_approved(engine: Engine, database: Database) -> None:
    engine.model.begin(script())
    engine.worker()
    run_id = await make_run(database, approval="plan")
    run = await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert (run.open_reviews, seats(engine)) == (1, ["planner"])
    (review,) = await rows_of(database, tables.reviews, run_id)
    assert (review["kind"], review["generation"]) == ("plan", 0)
    assert [task["key"] for task in review["question"]["plan"]["tasks"]] == ["0.a", "0.b", "0.c", "0.d"]
    await answer(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert len(asked(engine, "planner")) == 1


async def test_a_clients_plan_is_held_too(engine: Engine, database: Database) -> None:
    engine.worker()
    run_id = await make_run(database, plan=PAIR, approval="plan")
    await engine.until(is_asked, run_id)
    assert engine.model.calls == []
    await answer(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"


EDITED = {
    "tasks": [
        {"id": "x", "description": "Do x.", "depends_on": []},
        {"id": "y", "description": "Do y.", "depends_on": ["x"]},
    ]
}


async def test_a_persons_own_plan_stands_in_for_the_one_that_was_held(engine: Engine, database: Database) -> None:
    engine.worker()
    run_id = await make_run(database, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "edit", plan=EDITED)
    assert (await engine.ended(run_id)).status == "succeeded"
    row = await the_plan(database, run_id, 1)
    assert (row["reason"], row["added"], row["carried"]) == ("client", ["1.x", "1.y"], [])
    assert row["superseded"] == ["0.a", "0.b", "0.c", "0.d"]
    assert (seats(engine).count("planner"), executed(engine)) == (1, ["1.x", "1.y"])


async def test_a_plan_that_is_rejected_with_words_is_drawn_again(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"planner": [plan_reply(PAIR), plan_reply({"c": []})]}))
    engine.worker()
    run_id = await make_run(database, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "reject", instructions="One task is enough, I say.")
    await engine.until(lambda run: is_asked(run) and run.generation == 1, run_id)
    await check(database, run_id)
    _, again = asked(engine, "planner")
    assert "One task is enough, I say." in again.text
    assert "Do a." in again.text
    row = await the_plan(database, run_id, 1)
    assert (row["reason"], row["superseded"], row["failed_task_keys"]) == ("requested", ["0.a", "0.b"], [])
    await answer(database, run_id, "approve")
    run = await engine.ended(run_id)
    assert (run.status, executed(engine), run.replans) == ("succeeded", ["1.c"], 0)


async def test_a_planner_is_told_of_everything_that_was_turned_down(engine: Engine, database: Database) -> None:
    plans = [plan_reply(PAIR), plan_reply({"c": []}), plan_reply({"d": []})]
    engine.model.begin(script({"planner": plans}))
    engine.worker()
    run_id = await make_run(database, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "reject", instructions="Not a pair.")
    await engine.until(lambda run: is_asked(run) and run.generation == 1, run_id)
    await answer(database, run_id, "reject", instructions="Not c.")
    await engine.until(lambda run: is_asked(run) and run.generation == 2, run_id)
    last = asked(engine, "planner")[-1].text
    assert ("Not a pair." in last, "Not c." in last) == (True, True)


async def test_a_plan_that_is_rejected_without_words_fails_the_run(engine: Engine, database: Database) -> None:
    engine.worker()
    run_id = await make_run(database, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "reject")
    run = await engine.ended(run_id)
    assert (code_of(run), seats(engine)) == ("review_rejected", ["planner"])
    assert set((await statuses(database, run_id)).values()) == {"cancelled"}


async def test_of_a_replan_only_the_new_tasks_are_held(engine: Engine, database: Database) -> None:
    gates = Gates()
    answers: Answers = {("executor", "a"): SPOILED, ("executor", "b"): gates, "recovery": anew({"x": ["0.b"], "y": []})}
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await fragile(database, {"a": [], "b": [], "c": ["b"]}, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "approve")
    run = await engine.until(lambda run: run.generation == 1, run_id)
    assert (run.status, run.open_reviews) == ("running", 1)
    gates.open("b")
    await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert executed(engine) == ["0.a", "0.b", "0.c"]
    await answer(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert sorted(map(str, executed(engine)[3:])) == ["1.x", "1.y"]


async def held_replan(engine: Engine, database: Database, recovery_says: Sequence[Reply], **options: Any) -> RunId:
    """A run that asks whether its replan may be carried out."""
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": recovery_says}))
    engine.worker()
    run_id = await fragile(database, CHAIN, approval="plan", **options)
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "approve")
    await engine.until(lambda run: is_asked(run) and run.generation == 1, run_id)
    return run_id


async def test_a_replan_that_is_rejected_with_words_is_asked_of_recovery_again(
    engine: Engine, database: Database
) -> None:
    run_id = await held_replan(engine, database, [anew({"x": []}), anew({"y": ["0.a"]})], max_replans=1)
    await answer(database, run_id, "reject", instructions="Build on what there is.")
    run = await engine.until(lambda run: is_asked(run) and run.generation == 2, run_id)
    await check(database, run_id)
    assert run.replans == 1
    assert "Build on what there is." in asked(engine)[1].text
    row = await the_plan(database, run_id, 2)
    assert (row["reason"], row["superseded"], row["carried"]) == ("requested", ["1.x"], ["0.a"])
    assert row["failed_task_keys"] == ["0.b"]
    await answer(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert executed(engine) == ["0.a", "0.b", "2.y"]


async def test_a_replan_that_is_rejected_without_words_fails_the_run(engine: Engine, database: Database) -> None:
    run_id = await held_replan(engine, database, [anew({"x": []})])
    await answer(database, run_id, "reject")
    assert code_of(await engine.ended(run_id)) == "review_rejected"


async def test_a_replan_may_be_edited(engine: Engine, database: Database) -> None:
    run_id = await held_replan(engine, database, [anew({"x": []})])
    mine = {"tasks": [{"id": "x", "description": "Do x my way.", "depends_on": ["0.a"]}]}
    await answer(database, run_id, "edit", plan=mine)
    assert (await engine.ended(run_id)).status == "succeeded"
    row = await the_plan(database, run_id, 2)
    assert (row["reason"], row["superseded"], row["carried"]) == ("client", ["1.x"], ["0.a"])
    assert executed(engine) == ["0.a", "0.b", "2.x"]


async def test_when_no_other_plan_comes_of_a_rejection_the_first_is_asked_about_again(
    engine: Engine, database: Database
) -> None:
    run_id = await held_replan(engine, database, [anew({"x": []}), NO_ANSWER])
    await answer(database, run_id, "reject", instructions="Otherwise.")
    await engine.model.until(lambda: len(asked(engine)) == 4)
    await engine.until(is_asked, run_id)
    await check(database, run_id)
    await answer(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert executed(engine) == ["0.a", "0.b", "1.x"]


# --- answers that outlive workers


@pytest.mark.parametrize("decision", ["approve", "edit", "reject", "reject with words"])
@pytest.mark.parametrize("about", ["plan", "replan"])
async def test_an_answer_about_a_plan_outlives_the_worker_that_was_to_carry_it_out(
    engine: Engine, database: Database, about: str, decision: str
) -> None:
    with_it: dict[str, dict[str, Any]] = {"edit": {"plan": EDITED}, "reject with words": {"instructions": "So."}}
    given = with_it.get(decision, {})
    if about == "replan":
        run_id = await held_replan(engine, database, [anew({"x": []}), anew({"y": []})])
    else:
        engine.model.begin(script({"planner": [plan_reply(PAIR), plan_reply({"c": []})]}))
        engine.worker()
        run_id = await make_run(database, approval="plan")
        await engine.until(is_asked, run_id)
    generation = 1 if about == "replan" else 0
    await engine.workers[0].drain()
    await answer(database, run_id, decision.split(maxsplit=1)[0], **given)
    await check(database, run_id)
    dying = engine.worker(worker_max_runs=1)
    await engine.until(lambda run: run.status is not RunStatus.QUEUED, run_id)
    await dying.die()
    await expire(database, run_id)
    engine.worker()
    if decision == "reject with words":
        await engine.until(lambda run: is_asked(run) and run.generation == generation + 1, run_id)
        await answer(database, run_id, "approve")
    run = await engine.ended(run_id)
    assert code_of(run) == ("review_rejected" if decision == "reject" else None)
    assert run.generation == generation + (decision in ("edit", "reject with words"))


async def test_a_rejection_is_not_forgotten_while_calls_are_in_flight(engine: Engine, database: Database) -> None:
    gates = Gates()
    answers: Answers = {
        ("executor", "a"): SPOILED,
        ("executor", "b"): hang(),
        "executor": gates,
        "recovery": anew({"x": []}),
    }
    engine.model.begin(script(answers))
    first = engine.worker()
    run_id = await fragile(database, {**PAIR, "c": [], "d": []}, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "approve")
    await engine.until(lambda run: run.generation == 1, run_id)
    await answer(database, run_id, "reject")
    gates.open("c")
    await engine.until(lambda run: run.progress["succeeded"] == 1, run_id)
    gates.open("d")  # what was written with the end of c has been read before the end of this one is written
    await engine.until(lambda run: run.progress["succeeded"] == 2, run_id)
    await dies(first, database, run_id)
    engine.worker()
    run = await engine.until(lambda run: run.finished_at is not None or run.open_reviews == 1, run_id)
    assert code_of(run) == "review_rejected"


async def test_a_redrawn_plan_waits_as_the_endpoint_asked_after_a_takeover(engine: Engine, database: Database) -> None:
    wait = error(503, headers={"Retry-After": "30"})
    engine.model.begin(script({"planner": [plan_reply(PAIR), wait]}))
    first = engine.worker()
    run_id = await make_run(database, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "reject", instructions="Otherwise.")
    await engine.until(lambda run: run.llm_calls == 2, run_id)
    await no_call_is_open(database, run_id)
    await dies(first, database, run_id)
    before = await the_run(database, run_id)
    engine.worker()
    await engine.until(lambda run: run.version > before.version, run_id)
    assert (await the_run(database, run_id)).llm_calls == 2


async def test_a_replan_that_a_person_asked_for_waits_as_the_endpoint_asked_after_a_takeover(
    engine: Engine, database: Database
) -> None:
    wait = error(503, headers={"Retry-After": "30"})
    engine.model.begin(script({"executor": SPOILED, "recovery": wait}))
    first = engine.worker()
    run_id = await fragile(database, ONE, on_failure="review")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "replan", instructions="Otherwise.")
    await engine.until(lambda run: run.llm_calls == 2, run_id)
    await no_call_is_open(database, run_id)
    await dies(first, database, run_id)
    before = await the_run(database, run_id)
    engine.worker()
    await engine.until(lambda run: run.version > before.version, run_id)
    assert (await the_run(database, run_id)).llm_calls == 2


async def no_call_is_open(database: Database, run_id: RunId) -> None:
    async with asyncio.timeout(20):
        while any(call["status"] == "open" for call in await calls_of(database, run_id)):
            await database.ping()


# --- a person's replan


async def test_a_replan_that_a_person_asks_for_does_not_count(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": anew({"x": ["0.a"]})}))
    engine.worker()
    run_id = await fragile(database, max_replans=0, on_exhausted="review")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "replan", instructions="Go another way, I say.")
    run = await engine.ended(run_id)
    assert (run.status, run.replans, len(asked(engine))) == ("succeeded", 0, 1)
    assert "Go another way, I say." in asked(engine)[0].text
    row = await the_plan(database, run_id, 1)
    assert (row["reason"], row["failed_task_keys"], row["superseded"]) == ("requested", ["0.b"], ["0.c"])


@pytest.mark.parametrize("spoils", [NO_ANSWER, REFUSED], ids=["no answer", "refusal"])
async def test_when_no_plan_comes_of_a_persons_replan_they_are_asked_again(
    engine: Engine, database: Database, spoils: Reply
) -> None:
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": spoils}))
    engine.worker()
    run_id = await fragile(database, on_failure="review")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "replan")
    await engine.model.until(lambda: len(asked(engine)) == (3 if spoils is NO_ANSWER else 1))
    run = await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert (run.open_reviews, run.replans) == (1, 0)
    assert await statuses(database, run_id) == {"0.a": "succeeded", "0.b": "awaiting_review", "0.c": "pending"}
    await answer(database, run_id, "skip")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_a_persons_replan_outlives_the_worker_that_asked_for_it(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": [hang(), anew({"x": ["0.a"]})]}))
    first = engine.worker()
    run_id = await fragile(database, on_failure="review", max_replans=0)
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "replan", instructions="Go another way, I say.")
    await engine.model.until(lambda: len(asked(engine)) == 1)
    await dies(first, database, run_id)
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    lost, again = asked(engine)
    assert lost.messages == again.messages
    assert executed(engine) == ["0.a", "0.b", "1.x"]


async def two_held_plans(engine: Engine, database: Database, third: Reply) -> RunId:
    """A run that asks about two replans; the third answer of recovery about task 0.a and after is this one."""
    drawn = Gates(lambda call: third if call.turn else anew({"x" if call.task_id == "a" else "y": []}))
    spoiled = Gates(lambda call: SPOILED)
    drawn.open("a", "b")
    engine.model.begin(script({("executor", "a"): SPOILED, ("executor", "b"): spoiled, "recovery": drawn}))
    engine.worker()
    run_id = await fragile(database, {"a": [], "b": [], "c": ["b"]}, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "approve")
    await engine.until(lambda run: run.generation == 1, run_id)
    spoiled.open("b")
    await engine.until(lambda run: is_asked(run) and run.open_reviews == 2, run_id)
    return run_id


async def test_an_earlier_replan_may_be_rejected_with_words_too(engine: Engine, database: Database) -> None:
    run_id = await two_held_plans(engine, database, anew({"z": []}))
    await answer(database, run_id, "reject", about=1, instructions="Otherwise.")
    await engine.until(lambda run: is_asked(run) and run.generation == 3, run_id)
    await check(database, run_id)
    row = await the_plan(database, run_id, 3)
    assert (row["failed_task_keys"], row["superseded"], row["carried"]) == (["0.a"], ["1.x"], ["2.y"])
    for generation in (2, 3):
        await answer(database, run_id, "approve", about=generation)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert sorted(map(str, executed(engine)[2:])) == ["2.y", "3.z"]


async def test_when_no_other_plan_comes_of_an_earlier_rejection_that_plan_is_asked_about_again(
    engine: Engine, database: Database
) -> None:
    run_id = await two_held_plans(engine, database, NO_ANSWER)
    await answer(database, run_id, "reject", about=1, instructions="Otherwise.")
    await engine.model.until(lambda: len(asked(engine)) == 5)
    run = await engine.until(is_asked, run_id)
    assert run.open_reviews == 2


async def test_an_answer_about_one_plan_is_not_closed_by_another_that_comes_first(
    engine: Engine, database: Database
) -> None:
    """Generation 2 is stored after generation 1 was rejected, and before another is drawn in its place."""
    drawn = Gates(lambda call: anew({f"{call.task_id}1": []}))
    redrawn = Gates(lambda call: anew({f"{call.task_id}2": []}))
    spoiled = Gates(lambda call: SPOILED)
    answers: Answers = {
        ("executor", "a"): SPOILED,
        ("executor", "b"): spoiled,
        "recovery": lambda call: (redrawn if call.turn else drawn)(call),
    }
    engine.model.begin(script(answers))
    first = engine.worker()
    run_id = await fragile(database, {"a": [], "b": [], "c": []}, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "approve")
    drawn.open("a")
    await engine.until(lambda run: run.generation == 1, run_id)
    spoiled.open("b")
    await engine.model.until(lambda: len(asked(engine)) == 2)
    await answer(database, run_id, "reject", about=1, instructions="Otherwise.")
    await first.worker._look_at_flags()
    drawn.open("b")
    await engine.until(lambda run: run.generation == 2, run_id)
    await engine.model.until(lambda: len(asked(engine)) == 3)
    await dies(first, database, run_id)
    redrawn.open("a")
    engine.worker()
    run = await engine.until(is_asked, run_id)
    assert (run.generation, run.open_reviews) == (3, 2)
    assert (await the_plan(database, run_id, 3))["superseded"] == ["1.a1"]


async def test_an_edit_that_builds_on_what_is_gone_is_asked_about_again(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generation 1 waits for a person, whose plan builds on a task that generation 2 replaces meanwhile."""
    monkeypatch.setattr(worker, "_FLAGS_SECONDS", 600)  # the answer is found with the commit of generation 2
    drawn = Gates(lambda call: anew({"x" if call.task_id == "a" else "y": []}))
    spoiled = Gates(lambda call: SPOILED)
    answers: Answers = {("executor", "a"): SPOILED, ("executor", "b"): spoiled, "recovery": drawn}
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await fragile(database, {"a": [], "b": [], "c": ["b"]}, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "approve")
    drawn.open("a")
    await engine.until(lambda run: run.generation == 1, run_id)
    spoiled.open("b")
    await engine.model.until(lambda: len(asked(engine)) == 2)
    mine = {"tasks": [{"id": "z", "description": "Do z.", "depends_on": ["0.c"]}]}
    await answer(database, run_id, "edit", announced=False, about=1, plan=mine)
    drawn.open("b")
    await engine.until(lambda run: run.generation == 2, run_id)
    await engine.until(is_asked, run_id)
    await check(database, run_id)
    for generation in (1, 2):
        await answer(database, run_id, "approve", about=generation)
    assert (await engine.ended(run_id)).status == "succeeded"
