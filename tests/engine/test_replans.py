"""New generations of a run's plan: what they replace, carry and drop, and answers that are none."""

from collections.abc import Mapping

import pytest

from app.domain import recovery
from app.storage import tables
from app.storage.database import Database
from tests.engine.conftest import Engine, Gates
from tests.engine.troubled import (
    CHAIN,
    NO_ANSWER,
    PAIR,
    SPOILED,
    Answers,
    anew,
    answer,
    asked,
    calls_of,
    code_of,
    events_of,
    executed,
    fragile,
    is_asked,
    seats,
    statuses,
    the_plan,
)
from tests.invariants import check
from tests.scripted_model import DIAMOND, Reply, error, script, text
from tests.stored import rows_of

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
