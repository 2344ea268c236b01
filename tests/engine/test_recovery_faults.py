"""When the recovery seat itself meets faults, or its worker dies: the same question goes on."""

import asyncio
import json
from typing import Any

import pytest
import sqlalchemy as sa

from app.domain import recovery
from app.domain.ids import RunId
from app.storage import tables
from app.storage.database import Database
from tests.engine.conftest import Engine, Gates
from tests.engine.troubled import (
    CHAIN,
    NO_ANSWER,
    PAIR,
    REFUSED,
    REWORDED,
    SKIPPED,
    SPOILED,
    Answers,
    answer,
    choosing,
    code_of,
    dies,
    events_of,
    is_asked,
    retried,
    seats,
    statuses,
    wordings,
)
from tests.invariants import check
from tests.scripted_model import Reply, error, hang, script, text
from tests.stored import expire, row_of, rows_of, the_run

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
    assert (await engine.ended(await choosing(database, PAIR, on_failure=strategy))).status == "succeeded"
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
    run_id = await choosing(database, PAIR, on_failure=strategy)
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
    run_id = await choosing(database, PAIR, on_failure=strategy, on_exhausted="review")
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
    run_id = await choosing(database, CHAIN, on_failure=strategy, on_exhausted="review")
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
    run = await engine.ended(await choosing(database, on_exhausted="review"))
    assert (code_of(run), seats(engine)) == ("llm_unavailable", ["executor"] * 8)


# --- a worker dies


@pytest.mark.parametrize("strategy", ANSWERS)
async def test_a_question_in_flight_is_asked_once_more_and_nothing_that_succeeded_is(
    engine: Engine, database: Database, strategy: str
) -> None:
    answers: Answers = {("executor", "b"): [SPOILED, text("done")], "recovery": [hang(), ANSWERS[strategy]]}
    engine.model.begin(script(answers))
    first = engine.worker()
    run_id = await choosing(database, CHAIN, on_failure=strategy)
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
    run_id = await choosing(database, CHAIN, on_failure=strategy)
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
    run_id = await choosing(database, CHAIN, on_failure=strategy)
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
    run_id = await choosing(database, on_failure=strategy, max_replans=1)
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
    run_id = await choosing(database, PAIR, on_failure="replan", max_replans=1)
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
    run_id = await choosing(database, on_failure="retry")
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
    run_id = await choosing(database, {**PAIR, "c": ["a"]}, on_failure="review")
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
    run_id = await choosing(database, PAIR, on_failure="review")
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
    run_id = await choosing(database, on_failure="retry")
    await engine.model.until(lambda: len(engine.model.by_seat("recovery")) == 1)
    await dies(first, database, run_id)
    engine.worker()
    await engine.ended(run_id)
    assert (await row_of(database, run_id))["takeovers"] == 0
