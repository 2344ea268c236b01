"""What follows when a task has failed: rewording, skipping, choosing, giving up, and what the recovery seat spoils."""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from app.domain import recovery
from app.domain.ids import RunId
from app.domain.status import RunStatus
from app.storage import tables
from app.storage.database import Database
from app.storage.records import RunRecord
from app.storage.reviews import answer_review, list_reviews
from app.storage.runs import lock_run
from app.storage.steering import retry_run
from tests.engine.conftest import Engine, Gates, WorkerHere
from tests.invariants import check
from tests.scripted_model import DIAMOND, Answer, Plan, Reply, error, hang, script, text
from tests.stored import T, expire, make_run, row_of, rows_of, the_run

ONE: Plan = {"a": []}
PAIR: Plan = {"a": [], "b": []}
CHAIN: Plan = {"a": [], "b": ["a"], "c": ["b"]}
SPOILED = text("")
Answers = dict[str | tuple[str, str], Answer]
NO_ANSWER = text("I would rather not say.")
REFUSED = text("No.", finish_reason="content_filter")


def say(strategy: str, **fields: Any) -> Reply:
    return text(json.dumps({"strategy": strategy, **fields}))


REWORDED = say("retry", description="Do it in another way.")
SKIPPED = say("skip")
REPLANNED = say("replan", tasks=[{"id": "m", "description": "Do m.", "depends_on": []}])


async def fragile(database: Database, plan: Plan = ONE, **options: Any) -> RunId:
    """A run whose tasks have one attempt each."""
    return await make_run(database, plan=plan, **{"max_attempts": 1, "on_failure": "auto", **options})


async def statuses(database: Database, run_id: RunId) -> dict[str, str]:
    tasks = await rows_of(database, tables.tasks, run_id)
    return {task["key"]: task["status"] for task in sorted(tasks, key=lambda task: task["position"])}


async def wordings(database: Database, run_id: RunId) -> list[tuple[int, str]]:
    return [(row["number"], row["description"]) for row in await rows_of(database, tables.attempts, run_id)]


async def events_of(database: Database, run_id: RunId, type_: str) -> list[Mapping[str, Any]]:
    return [event for event in await rows_of(database, tables.events, run_id) if event["type"] == type_]


def seats(engine: Engine) -> list[str]:
    return [call.seat for call in engine.model.calls]


def code_of(run: RunRecord) -> str | None:
    return None if run.error is None else run.error["code"]


def is_asked(run: RunRecord) -> bool:
    return run.status is RunStatus.AWAITING_REVIEW


async def answer(database: Database, run_id: RunId, decision: str, *, announced: bool = True, **given: Any) -> None:
    """A person's answer to the only review that is open."""
    async with database.write() as connection:
        run = await lock_run(connection, T, run_id)
        assert run is not None
        reviews = await list_reviews(connection, T, run_id, limit=100)
        (review,) = [r for r in reviews if r.answered_at is None and r.closed_at is None]
        assert decision in review.allowed_answers
        await answer_review(connection, run, review, {"decision": decision, **given})
        if announced:
            await database.announce(connection, run_id)


async def dies(worker: WorkerHere, database: Database, run_id: RunId) -> None:
    """The worker is gone, and its lease on the run has run out."""
    await worker.die()
    await expire(database, run_id)
    await check(database, run_id)


async def retried(database: Database, run_id: RunId) -> None:
    async with database.write() as connection:
        run = await lock_run(connection, T, run_id)
        assert run is not None
        await retry_run(connection, run, options=run.options, budget=run.budget)
        await database.announce(connection, run_id)


# --- rewording


@pytest.mark.parametrize("strategy", ["retry", "auto"])
async def test_a_task_that_is_reworded_runs_in_its_new_words(engine: Engine, database: Database, strategy: str) -> None:
    engine.model.begin(script({"executor": [SPOILED, text("done")], "recovery": REWORDED}))
    engine.worker()
    run_id = await fragile(database, on_failure=strategy)
    assert (await engine.ended(run_id)).result == "done"
    assert seats(engine) == ["executor", "recovery", "executor"]
    assert engine.model.calls[-1].text.endswith("Do it in another way.")
    (event,) = await events_of(database, run_id, "task.reworded")
    assert event["data"]["description"] == "Do it in another way."


async def test_a_task_is_reworded_once_and_then_fails_the_run(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": SPOILED, "recovery": REWORDED}))
    engine.worker()
    run = await engine.ended(await fragile(database, on_failure="retry"))
    assert (code_of(run), seats(engine)) == ("task_failed", ["executor", "recovery", "executor"])


async def test_a_task_is_reworded_once_and_then_shown_to_a_person(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": [SPOILED, SPOILED, text("done")], "recovery": REWORDED}))
    engine.worker()
    run_id = await fragile(database, on_failure="retry", on_exhausted="review")
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
    run_id = await fragile(database, PAIR, on_failure="retry")
    await engine.until_true(lambda: gates.most == 2)
    gates.open("a", "b")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_everything_else_goes_on_while_a_rewording_is_asked_for(engine: Engine, database: Database) -> None:
    gates = Gates(lambda call: REWORDED)
    engine.model.begin(script({("executor", "a"): [SPOILED, text("done")], "recovery": gates}))
    engine.worker()
    run_id = await fragile(database, {"a": [], "b": [], "c": ["b"]}, on_failure="retry")
    await engine.model.until(lambda: len(engine.model.by_seat("recovery")) == 1)
    run = await engine.until(lambda run: run.progress["succeeded"] == 2, run_id)
    assert (run.status, run.progress["failed"]) == ("running", 1)
    gates.open("a")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_a_plain_description_is_a_rewording(engine: Engine, database: Database) -> None:
    recovery_answer = text('{"description": "Do it plainly."}')
    engine.model.begin(script({"executor": [SPOILED, text("done")], "recovery": recovery_answer}))
    engine.worker()
    run_id = await fragile(database, on_failure="retry")
    assert (await engine.ended(run_id)).result == "done"
    assert await wordings(database, run_id) == [(1, "Do a."), (2, "Do it plainly.")]


async def test_a_rewording_in_the_same_words_is_asked_for_again(engine: Engine, database: Database) -> None:
    same = say("retry", description=" do A. ")
    engine.model.begin(script({"executor": [SPOILED, text("done")], "recovery": [same, REWORDED]}))
    engine.worker()
    run_id = await fragile(database, on_failure="retry")
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
    run_id = await fragile(database, on_failure="retry", on_exhausted=on_exhausted)
    run = await engine.until(lambda run: run.status.value == then, run_id)
    await check(database, run_id)
    assert seats(engine) == ["executor", *["recovery"] * 3]
    assert code_of(run) == ("task_failed" if on_exhausted == "fail" else None)
    assert run.replans == 0


# --- choosing


async def test_one_that_chooses_may_still_skip_when_all_else_is_used_up(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): SPOILED, "recovery": [REWORDED, SKIPPED]}))
    engine.worker()
    run_id = await fragile(database, PAIR, max_replans=0)
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
    run = await engine.ended(await fragile(database, max_replans=0))
    assert (code_of(run), seats(engine)) == (code, ["executor", "recovery"] * 2)


async def test_choosing_what_is_used_up_is_shown_to_a_person_where_the_goal_says_so(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({"executor": SPOILED, "recovery": REPLANNED}))
    engine.worker()
    run_id = await fragile(database, max_replans=0, on_exhausted="review")
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
    run_id = await fragile(database, {**PAIR, "c": []})
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
    run = await engine.ended(await fragile(database, max_replans=2))
    assert (code_of(run), run.replans) == ("replans_exhausted", 2)
    assert seats(engine) == ["executor", *["recovery"] * 6]


# --- skipping


async def test_dependents_and_the_synthesizer_are_told_what_is_missing(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): SPOILED, ("executor", "d"): SPOILED}))
    engine.worker()
    run_id = await fragile(database, {"a": [], "b": ["a"], "c": ["b"], "d": ["b"]}, on_failure="skip")
    assert (await engine.ended(run_id)).result == "the answer"
    told = {c.task_key or c.seat: re.findall(r'<missing-\w+ task="(.*?)">', c.text) for c in engine.model.calls}
    assert told == {"0.a": [], "0.b": ["0.a"], "0.c": [], "0.d": [], "synthesizer": ["0.d"]}
    tasks = {task["key"]: task for task in await rows_of(database, tables.tasks, run_id)}
    assert tasks["0.a"]["skip_reason"] in engine.model.by_seat("executor")[1].text
    assert tasks["0.d"]["skip_reason"] in engine.model.by_seat("synthesizer")[0].text


async def test_a_run_whose_tasks_are_all_skipped_has_failed(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": SPOILED}))
    engine.worker()
    run_id = await fragile(database, CHAIN, on_failure="skip")
    run = await engine.ended(run_id)
    assert (code_of(run), seats(engine)) == ("task_failed", ["executor"] * 3)
    assert set((await statuses(database, run_id)).values()) == {"skipped"}


async def test_the_synthesizer_has_results_to_work_from_when_the_last_task_was_skipped(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "c"): SPOILED}))
    engine.worker()
    await engine.ended(await fragile(database, CHAIN, on_failure="skip"))
    (call,) = engine.model.by_seat("synthesizer")
    assert "result of 0.b" in call.text


async def test_without_synthesis_a_last_task_that_was_skipped_has_no_result(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): SPOILED}))
    engine.worker()
    run = await engine.ended(await fragile(database, PAIR, on_failure="skip", synthesize=False))
    assert run.result == {"0.a": "result of 0.a", "0.b": None}


# --- giving up


async def test_a_failed_run_says_what_was_reached_and_what_was_not(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "c"): SPOILED}))
    engine.worker()
    run = await engine.ended(await fragile(database, DIAMOND, on_failure="replan", max_replans=0))
    assert run.error is not None
    assert (run.error["code"], run.error["task_key"]) == ("replans_exhausted", "0.c")
    assert "2 of 4 tasks succeeded (0.a, 0.b). Not reached: 0.c, 0.d." in run.error["message"]


async def test_without_replans_recovery_is_not_asked_for_one(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": SPOILED}))
    engine.worker()
    run = await engine.ended(await fragile(database, on_failure="replan", max_replans=0))
    assert (code_of(run), seats(engine)) == ("replans_exhausted", ["executor"])


async def test_a_failure_of_a_run_that_is_giving_up_asks_nobody(engine: Engine, database: Database) -> None:
    gates = Gates(lambda call: SPOILED)
    engine.model.begin(script({("executor", "a"): SPOILED, ("executor", "b"): gates}))
    engine.worker()
    run_id = await fragile(database, PAIR, on_failure="review")
    await engine.until(lambda run: run.open_reviews == 1, run_id)
    await answer(database, run_id, "fail")
    await engine.until(lambda run: run.progress["failed"] == 1, run_id)
    gates.open("b")
    assert code_of(await engine.ended(run_id)) == "task_failed"
    assert await statuses(database, run_id) == {"0.a": "failed", "0.b": "failed"}
    assert len(await rows_of(database, tables.reviews, run_id)) == 1


# --- faults of the recovery seat

ANSWERS = {
    "retry": REWORDED,
    "auto": SKIPPED,
    "replan": text(json.dumps({"tasks": [{"id": "m", "description": "Do m.", "depends_on": []}]})),
}


@pytest.mark.parametrize("strategy", ANSWERS)
@pytest.mark.parametrize(
    "fault",
    [error(503), error(429), text("{", finish_reason="length"), error(400, code="context_length_exceeded"), NO_ANSWER],
    ids=["503", "429", "length", "context length", "no answer"],
)
async def test_a_fault_of_the_recovery_seat_is_got_over(
    engine: Engine, database: Database, strategy: str, fault: Reply
) -> None:
    answers: Answers = {("executor", "a"): [SPOILED, text("done")], "recovery": [fault, ANSWERS[strategy]]}
    engine.model.begin(script(answers))
    engine.worker()
    assert (await engine.ended(await fragile(database, PAIR, on_failure=strategy))).status == "succeeded"
    assert len(engine.model.by_seat("recovery")) == 2


@pytest.mark.parametrize("strategy", ANSWERS)
@pytest.mark.parametrize(
    "refusal",
    [REFUSED, error(404), error(400), error(400, code="context_length_exceeded")],
    ids=["refusal", "404", "400", "context length"],
)
async def test_a_question_that_is_refused_for_good_gives_the_task_up(
    engine: Engine, database: Database, strategy: str, refusal: Reply
) -> None:
    engine.model.begin(script({("executor", "a"): SPOILED, "recovery": refusal}))
    engine.worker()
    run_id = await fragile(database, PAIR, on_failure=strategy)
    run = await engine.ended(run_id)
    assert (code_of(run), run.error and run.error["task_key"]) == ("task_failed", "0.a")
    assert await statuses(database, run_id) == {"0.a": "failed", "0.b": "succeeded"}
    assert len(engine.model.by_seat("recovery")) <= 3


@pytest.mark.parametrize("strategy", ANSWERS)
async def test_a_question_that_is_refused_for_good_is_shown_to_a_person_where_the_goal_says_so(
    engine: Engine, database: Database, strategy: str
) -> None:
    engine.model.begin(script({("executor", "a"): SPOILED, "recovery": REFUSED}))
    engine.worker()
    run_id = await fragile(database, PAIR, on_failure=strategy, on_exhausted="review")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "skip")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert len(engine.model.by_seat("recovery")) == 1


@pytest.mark.parametrize(("fault", "outcome"), [(503, ("llm_unavailable", 8)), (401, ("llm_auth_failed", 1))])
@pytest.mark.parametrize("strategy", ANSWERS)
async def test_an_outage_at_the_recovery_seat_ends_the_run_and_a_retry_goes_on(
    engine: Engine, database: Database, strategy: str, fault: int, outcome: tuple[str, int]
) -> None:
    answers: Answers = {("executor", "b"): [SPOILED, text("done")], "recovery": error(fault)}
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await fragile(database, CHAIN, on_failure=strategy, on_exhausted="review")
    run = await engine.ended(run_id)
    assert (code_of(run), len(engine.model.by_seat("recovery"))) == outcome
    assert await statuses(database, run_id) == {"0.a": "succeeded", "0.b": "failed", "0.c": "cancelled"}
    await retried(database, run_id)
    run = await engine.ended(run_id)
    assert (run.status, len(engine.model.by_seat("recovery"))) == ("succeeded", outcome[1])
    executed = [call.task_key for call in engine.model.by_seat("executor")]
    assert executed == ["0.a", "0.b", "0.b", "0.c"]


async def test_an_outage_at_a_task_asks_no_recovery(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": error(503)}))
    engine.worker()
    run = await engine.ended(await fragile(database, on_exhausted="review"))
    assert (code_of(run), seats(engine)) == ("llm_unavailable", ["executor"] * 8)


# --- a worker dies


@pytest.mark.parametrize("strategy", ANSWERS)
async def test_a_question_in_flight_is_asked_once_more_and_nothing_that_succeeded_is(
    engine: Engine, database: Database, strategy: str
) -> None:
    answers: Answers = {("executor", "b"): [SPOILED, text("done")], "recovery": [hang(), ANSWERS[strategy]]}
    engine.model.begin(script(answers))
    first = engine.worker()
    run_id = await fragile(database, CHAIN, on_failure=strategy)
    await engine.model.until(lambda: len(engine.model.by_seat("recovery")) == 1)
    await dies(first, database, run_id)
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert seats(engine)[:4] == ["executor", "executor", "recovery", "recovery"]
    assert [call.task_key for call in engine.model.by_seat("executor")].count("0.a") == 1
    assert len(engine.model.by_seat("recovery")) == 2


@pytest.mark.parametrize("strategy", ANSWERS)
async def test_a_failure_that_was_stored_is_asked_about_by_the_next_worker(
    engine: Engine, database: Database, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "GATHER_MS", 600_000)
    answers: Answers = {("executor", "b"): [SPOILED, text("done")], "recovery": [hang(), ANSWERS[strategy]]}
    engine.model.begin(script(answers))
    first = engine.worker()
    run_id = await fragile(database, CHAIN, on_failure=strategy)
    await engine.until(lambda run: run.progress["failed"] == 1, run_id)
    await dies(first, database, run_id)
    asked = len(engine.model.by_seat("recovery"))
    assert asked == (strategy == "retry")
    monkeypatch.setattr(recovery, "GATHER_MS", 0)
    answers["recovery"] = ANSWERS[strategy]
    engine.model.script = script(answers)
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert len(engine.model.by_seat("recovery")) == asked + 1
    assert [call.task_key for call in engine.model.by_seat("executor")].count("0.a") == 1


async def all_calls_are_recorded(database: Database, run_id: RunId) -> None:
    async with asyncio.timeout(20):
        while any(call["status"] == "open" for call in await rows_of(database, tables.calls, run_id)):
            await database.ping()


async def come_due(database: Database, run_id: RunId) -> None:
    async with database.write() as connection:
        of_run = tables.calls.c.run_id == run_id
        await connection.execute(sa.update(tables.calls).where(of_run).values(retry_at=0))


@pytest.mark.parametrize("strategy", ANSWERS)
async def test_a_wait_of_the_recovery_seat_is_not_cut_short_by_a_takeover(
    engine: Engine, database: Database, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "GATHER_MS", 0)  # but for the wait, the question would be asked at once
    wait = error(503, headers={"Retry-After": "30"})
    answers: Answers = {("executor", "b"): [SPOILED, text("done")], "recovery": wait}
    engine.model.begin(script(answers))
    first = engine.worker()
    run_id = await fragile(database, CHAIN, on_failure=strategy)
    await engine.model.until(lambda: any(call.answered_at for call in engine.model.by_seat("recovery")))
    await all_calls_are_recorded(database, run_id)
    await dies(first, database, run_id)
    before = await the_run(database, run_id)
    second = engine.worker()
    await engine.until(lambda run: run.version > before.version, run_id)
    assert len(engine.model.by_seat("recovery")) == 1
    await dies(second, database, run_id)
    await come_due(database, run_id)
    answers["recovery"] = ANSWERS[strategy]
    engine.model.script = script(answers)
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    tries = [call["try_number"] for call in await rows_of(database, tables.calls, run_id) if call["seat"] == "recovery"]
    assert tries == [1, 2]


@pytest.mark.parametrize("strategy", ["retry", "auto"])
async def test_rejected_answers_of_recovery_are_counted_across_workers(
    engine: Engine, database: Database, strategy: str
) -> None:
    engine.model.begin(script({"executor": SPOILED, "recovery": [NO_ANSWER, hang(), NO_ANSWER]}))
    first = engine.worker()
    run_id = await fragile(database, on_failure=strategy, max_replans=1)
    await engine.model.until(lambda: len(engine.model.by_seat("recovery")) == 2)
    await dies(first, database, run_id)
    engine.worker()
    assert (await engine.ended(run_id)).status == "failed"
    assert len(engine.model.by_seat("recovery")) == 4
    lost, again = engine.model.by_seat("recovery")[1:3]
    assert lost.messages == again.messages


async def test_the_question_about_two_failures_is_the_same_after_a_takeover(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "GATHER_MS", 500)
    gates = Gates(lambda call: SPOILED)
    engine.model.begin(script({"executor": gates, "recovery": [NO_ANSWER, hang(), NO_ANSWER]}))
    first = engine.worker()
    run_id = await fragile(database, PAIR, on_failure="replan", max_replans=1)
    gates.open("b")
    await engine.until(lambda run: run.progress["failed"] == 1, run_id)
    gates.open("a")
    await engine.model.until(lambda: len(engine.model.by_seat("recovery")) == 2)
    await dies(first, database, run_id)
    engine.worker()
    assert code_of(await engine.ended(run_id)) == "replans_exhausted"
    rejected = await events_of(database, run_id, "plan.rejected")
    assert [event["data"]["attempt"] for event in rejected] == [1, 2, 3]


async def test_a_reworded_task_keeps_its_words_across_workers(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": [SPOILED, hang(), SPOILED], "recovery": REWORDED}))
    first = engine.worker()
    run_id = await fragile(database, on_failure="retry")
    await engine.model.until(lambda: len(engine.model.by_seat("executor")) == 2)
    await dies(first, database, run_id)
    engine.worker()
    assert code_of(await engine.ended(run_id)) == "task_failed"
    assert seats(engine) == ["executor", "recovery", "executor", "executor"]
    assert engine.model.calls[-1].text.endswith("Do it in another way.")
    assert await wordings(database, run_id) == [(1, "Do a."), (2, "Do it in another way.")]


@pytest.mark.parametrize("decision", ["retry", "skip", "supply", "replan", "fail"])
async def test_an_answer_outlives_the_worker_that_was_to_carry_it_out(
    engine: Engine, database: Database, decision: str
) -> None:
    new_plan = text(json.dumps({"tasks": [{"id": "m", "description": "Do m.", "depends_on": ["0.b"]}]}))
    answers: Answers = {("executor", "a"): [SPOILED, text("done")], ("executor", "b"): [hang(), text("done")]}
    engine.model.begin(script({**answers, "recovery": new_plan}))
    first = engine.worker()
    run_id = await fragile(database, {**PAIR, "c": ["a"]}, on_failure="review")
    await engine.until(lambda run: run.open_reviews == 1, run_id)
    await first.die()
    given: dict[str, Any] = {"result": "supplied"} if decision == "supply" else {}
    await answer(database, run_id, decision, **given)
    await expire(database, run_id)
    await check(database, run_id)
    engine.worker()
    run = await engine.ended(run_id)
    assert code_of(run) == ("task_failed" if decision == "fail" else None)
    of_a = {"retry": "succeeded", "skip": "skipped", "supply": "succeeded", "replan": "failed", "fail": "failed"}
    assert (await statuses(database, run_id))["0.a"] == of_a[decision]
    assert len(await rows_of(database, tables.reviews, run_id)) == 1


async def test_an_answer_that_fails_the_run_is_not_forgotten_while_calls_are_in_flight(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "a"): SPOILED, ("executor", "b"): hang()}))
    first = engine.worker()
    run_id = await fragile(database, PAIR, on_failure="review")
    await engine.until(lambda run: run.open_reviews == 1, run_id)
    await answer(database, run_id, "fail")
    await engine.until(lambda run: run.progress["failed"] == 1, run_id)
    await dies(first, database, run_id)
    engine.worker()
    run = await engine.until(lambda run: run.finished_at is not None or run.open_reviews == 1, run_id)
    assert (run.status, code_of(run), len(engine.model.calls)) == ("failed", "task_failed", 2)


async def test_a_takeover_count_is_unharmed_by_recovery(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": [SPOILED, text("done")], "recovery": [hang(), REWORDED]}))
    first = engine.worker()
    run_id = await fragile(database, on_failure="retry")
    await engine.model.until(lambda: len(engine.model.by_seat("recovery")) == 1)
    await dies(first, database, run_id)
    engine.worker()
    await engine.ended(run_id)
    assert (await row_of(database, run_id))["takeovers"] == 0
