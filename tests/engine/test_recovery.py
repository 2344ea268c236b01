"""What follows when a task has failed: rewording, skipping, choosing, giving up, and what the recovery seat spoils."""

import re

import pytest

from app.domain import recovery
from app.storage import tables
from app.storage.database import Database
from tests.engine.conftest import Engine, Gates
from tests.engine.troubled import (
    CHAIN,
    NO_ANSWER,
    ONE,
    PAIR,
    REPLANNED,
    REWORDED,
    SKIPPED,
    SPOILED,
    Answers,
    answer,
    choosing,
    code_of,
    events_of,
    is_asked,
    say,
    seats,
    statuses,
    wordings,
)
from tests.invariants import check
from tests.scripted_model import DIAMOND, Reply, script, text
from tests.stored import make_run, rows_of

# --- rewording


@pytest.mark.parametrize("strategy", ["retry", "auto"])
async def test_a_task_that_is_reworded_runs_in_its_new_words(engine: Engine, database: Database, strategy: str) -> None:
    engine.model.begin(script({"executor": [SPOILED, text("done")], "recovery": REWORDED}))
    engine.worker()
    run_id = await choosing(database, on_failure=strategy)
    assert (await engine.ended(run_id)).result == "done"
    assert seats(engine) == ["executor", "recovery", "executor"]
    assert engine.model.calls[-1].text.endswith("Do it in another way.")
    (event,) = await events_of(database, run_id, "task.reworded")
    assert event["data"]["description"] == "Do it in another way."


async def test_a_task_is_reworded_once_and_then_fails_the_run(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": SPOILED, "recovery": REWORDED}))
    engine.worker()
    run = await engine.ended(await choosing(database, on_failure="retry"))
    assert (code_of(run), seats(engine)) == ("task_failed", ["executor", "recovery", "executor"])


async def test_a_task_is_reworded_once_and_then_shown_to_a_person(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": [SPOILED, SPOILED, text("done")], "recovery": REWORDED}))
    engine.worker()
    run_id = await choosing(database, on_failure="retry", on_exhausted="review")
    await engine.until(is_asked, run_id)
    await check(database, run_id)
    await answer(database, run_id, "retry", description="Do it my way.")
    assert (await engine.ended(run_id)).result == "done"
    assert seats(engine) == ["executor", "recovery", "executor", "executor"]
    assert await wordings(database, run_id) == [(1, "Do a."), (2, "Do it in another way."), (3, "Do it my way.")]


async def test_a_reworded_task_has_all_its_attempts_again(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": SPOILED, "recovery": REWORDED}))
    engine.worker()
    run_id = await make_run(database, plan=ONE, on_failure="retry", max_attempts=2)
    assert code_of(await engine.ended(run_id)) == "task_failed"
    assert seats(engine) == ["executor", "executor", "recovery", "executor", "executor"]
    old, new = "Do a.", "Do it in another way."
    assert await wordings(database, run_id) == [(1, old), (2, old), (3, new), (4, new)]


async def test_the_rewording_is_asked_for_with_every_error_of_the_task(engine: Engine, database: Database) -> None:
    schema = {"type": "integer"}
    answers = [text('"one"'), text('"two"'), text("3")]
    engine.model.begin(script({"executor": answers, "recovery": REWORDED}))
    engine.worker()
    run_id = await make_run(database, plan=ONE, on_failure="retry", max_attempts=2, output_schema=schema)
    await engine.ended(run_id)
    (call,) = engine.model.by_seat("recovery")
    assert call.text.count("<error-") >= 2
    assert call.task_key == "0.a"


async def test_rewordings_are_asked_for_side_by_side(engine: Engine, database: Database) -> None:
    gates = Gates(lambda call: REWORDED)
    engine.model.begin(script({"executor": [SPOILED, text("done")], "recovery": gates}))
    engine.worker()
    run_id = await choosing(database, PAIR, on_failure="retry")
    await engine.until_true(lambda: gates.most == 2)
    gates.open("a", "b")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_everything_else_goes_on_while_a_rewording_is_asked_for(engine: Engine, database: Database) -> None:
    gates = Gates(lambda call: REWORDED)
    engine.model.begin(script({("executor", "a"): [SPOILED, text("done")], "recovery": gates}))
    engine.worker()
    run_id = await choosing(database, {"a": [], "b": [], "c": ["b"]}, on_failure="retry")
    await engine.model.until(lambda: len(engine.model.by_seat("recovery")) == 1)
    run = await engine.until(lambda run: run.progress["succeeded"] == 2, run_id)
    assert (run.status, run.progress["failed"]) == ("running", 1)
    gates.open("a")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_a_plain_description_is_a_rewording(engine: Engine, database: Database) -> None:
    recovery_answer = text('{"description": "Do it plainly."}')
    engine.model.begin(script({"executor": [SPOILED, text("done")], "recovery": recovery_answer}))
    engine.worker()
    run_id = await choosing(database, on_failure="retry")
    assert (await engine.ended(run_id)).result == "done"
    assert await wordings(database, run_id) == [(1, "Do a."), (2, "Do it plainly.")]


async def test_a_rewording_in_the_same_words_is_asked_for_again(engine: Engine, database: Database) -> None:
    same = say("retry", description=" do A. ")
    engine.model.begin(script({"executor": [SPOILED, text("done")], "recovery": [same, REWORDED]}))
    engine.worker()
    run_id = await choosing(database, on_failure="retry")
    assert (await engine.ended(run_id)).result == "done"
    (rejected,) = await events_of(database, run_id, "plan.rejected")
    assert (rejected["task_key"], rejected["data"]["attempt"]) == ("0.a", 1)
    assert [problem["code"] for problem in rejected["data"]["errors"]] == ["same_as_failed"]
    _, again = engine.model.by_seat("recovery")
    assert rejected["data"]["errors"][0]["message"] in again.text


@pytest.mark.parametrize(("on_exhausted", "then"), [("fail", "failed"), ("review", "awaiting_review")])
async def test_a_rewording_that_never_comes_is_used_up(
    engine: Engine, database: Database, on_exhausted: str, then: str
) -> None:
    engine.model.begin(script({"executor": SPOILED, "recovery": NO_ANSWER}))
    engine.worker()
    run_id = await choosing(database, on_failure="retry", on_exhausted=on_exhausted)
    run = await engine.until(lambda run: run.status.value == then, run_id)
    await check(database, run_id)
    assert seats(engine) == ["executor", *["recovery"] * 3]
    assert code_of(run) == ("task_failed" if on_exhausted == "fail" else None)
    assert run.replans == 0


# --- choosing


async def test_one_that_chooses_may_still_skip_when_all_else_is_used_up(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): SPOILED, "recovery": [REWORDED, SKIPPED]}))
    engine.worker()
    run_id = await choosing(database, PAIR, max_replans=0)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert await statuses(database, run_id) == {"0.a": "skipped", "0.b": "succeeded"}
    first, second = engine.model.by_seat("recovery")
    assert 'Used up: "replan".' in first.text
    assert 'Used up: "retry" and "replan".' in second.text


@pytest.mark.parametrize(
    ("choice", "code"),
    [(say("retry", description="Once more."), "task_failed"), (REPLANNED, "replans_exhausted")],
    ids=["retry", "replan"],
)
async def test_choosing_what_is_used_up_ends_the_run_without_another_call(
    engine: Engine, database: Database, choice: Reply, code: str
) -> None:
    engine.model.begin(script({"executor": SPOILED, "recovery": [REWORDED, choice]}))
    engine.worker()
    run = await engine.ended(await choosing(database, max_replans=0))
    assert (code_of(run), seats(engine)) == (code, ["executor", "recovery"] * 2)


async def test_choosing_what_is_used_up_is_shown_to_a_person_where_the_goal_says_so(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({"executor": SPOILED, "recovery": REPLANNED}))
    engine.worker()
    run_id = await choosing(database, max_replans=0, on_exhausted="review")
    await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert seats(engine) == ["executor", "recovery"]


async def test_a_choice_settles_its_task_alone_and_the_other_is_asked_about_next(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "GATHER_MS", 500)
    both = Gates(lambda call: SPOILED)
    answers: Answers = {"executor": both, ("executor", "c"): text("done"), "recovery": SKIPPED}
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await choosing(database, {**PAIR, "c": []})
    await engine.model.until(lambda: len(engine.model.calls) == 3)
    both.open("a")
    await engine.until(lambda run: run.progress["failed"] == 1, run_id)
    both.open("b")
    assert (await engine.ended(run_id)).status == "succeeded"
    first, second = engine.model.by_seat("recovery")
    assert "These failed too" in first.text
    assert "Do b." in first.text
    assert (second.task_key, "These failed too" in second.text) == ("0.b", False)
    assert await statuses(database, run_id) == {"0.a": "skipped", "0.b": "skipped", "0.c": "succeeded"}


async def test_a_choice_that_never_comes_uses_up_replans_and_then_gives_the_task_up(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({"executor": SPOILED, "recovery": NO_ANSWER}))
    engine.worker()
    run = await engine.ended(await choosing(database, max_replans=2))
    assert (code_of(run), run.replans) == ("replans_exhausted", 2)
    assert seats(engine) == ["executor", *["recovery"] * 6]


# --- skipping


async def test_dependents_and_the_synthesizer_are_told_what_is_missing(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): SPOILED, ("executor", "d"): SPOILED}))
    engine.worker()
    run_id = await choosing(database, {"a": [], "b": ["a"], "c": ["b"], "d": ["b"]}, on_failure="skip")
    assert (await engine.ended(run_id)).result == "the answer"
    told = {c.task_key or c.seat: re.findall(r'<missing-\w+ task="(.*?)">', c.text) for c in engine.model.calls}
    assert told == {"0.a": [], "0.b": ["0.a"], "0.c": [], "0.d": [], "synthesizer": ["0.d"]}
    tasks = {task["key"]: task for task in await rows_of(database, tables.tasks, run_id)}
    assert tasks["0.a"]["skip_reason"] in engine.model.by_seat("executor")[1].text
    assert tasks["0.d"]["skip_reason"] in engine.model.by_seat("synthesizer")[0].text


async def test_a_run_whose_tasks_are_all_skipped_has_failed(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": SPOILED}))
    engine.worker()
    run_id = await choosing(database, CHAIN, on_failure="skip")
    run = await engine.ended(run_id)
    assert (code_of(run), seats(engine)) == ("task_failed", ["executor"] * 3)
    assert set((await statuses(database, run_id)).values()) == {"skipped"}


async def test_the_synthesizer_has_results_to_work_from_when_the_last_task_was_skipped(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "c"): SPOILED}))
    engine.worker()
    await engine.ended(await choosing(database, CHAIN, on_failure="skip"))
    (call,) = engine.model.by_seat("synthesizer")
    assert "result of 0.b" in call.text


async def test_without_synthesis_a_last_task_that_was_skipped_has_no_result(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): SPOILED}))
    engine.worker()
    run = await engine.ended(await choosing(database, PAIR, on_failure="skip", synthesize=False))
    assert run.result == {"0.a": "result of 0.a", "0.b": None}


# --- giving up


async def test_a_failed_run_says_what_was_reached_and_what_was_not(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "c"): SPOILED}))
    engine.worker()
    run = await engine.ended(await choosing(database, DIAMOND, on_failure="replan", max_replans=0))
    assert run.error is not None
    assert (run.error["code"], run.error["task_key"]) == ("replans_exhausted", "0.c")
    assert "2 of 4 tasks succeeded (0.a, 0.b). Not reached: 0.c, 0.d." in run.error["message"]


async def test_without_replans_recovery_is_not_asked_for_one(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": SPOILED}))
    engine.worker()
    run = await engine.ended(await choosing(database, on_failure="replan", max_replans=0))
    assert (code_of(run), seats(engine)) == ("replans_exhausted", ["executor"])


async def test_a_failure_of_a_run_that_is_giving_up_asks_nobody(engine: Engine, database: Database) -> None:
    gates = Gates(lambda call: SPOILED)
    engine.model.begin(script({("executor", "a"): SPOILED, ("executor", "b"): gates}))
    engine.worker()
    run_id = await choosing(database, PAIR, on_failure="review")
    await engine.until(lambda run: run.open_reviews == 1, run_id)
    await answer(database, run_id, "fail")
    await engine.until(lambda run: run.progress["failed"] == 1, run_id)
    gates.open("b")
    assert code_of(await engine.ended(run_id)) == "task_failed"
    assert await statuses(database, run_id) == {"0.a": "failed", "0.b": "failed"}
    assert len(await rows_of(database, tables.reviews, run_id)) == 1
