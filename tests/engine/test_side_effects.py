"""Workers that die while their tasks act: what may be repeated is, and what may not is shown to a person."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from app.domain.errors import ToolRetry
from app.domain.ids import RunId
from app.domain.status import RunStatus, StopRequest
from app.storage.database import Database
from app.storage.steering import request_cancel
from tests.engine.acting_runs import Shop, became, charge, decide, look, open_reviews, put, tool_rows
from tests.engine.conftest import Engine, WorkerHere
from tests.engine.recording_tools import Held
from tests.engine.troubled import dies, is_asked, retried
from tests.invariants import check
from tests.polling import until
from tests.scripted_model import Call, Reply, hang, script, text
from tests.scripted_tools import calls, steps
from tests.stored import T, claim_one, expire, row_of, the_run


@pytest.fixture
def shop(engine: Engine) -> Shop:
    return Shop(engine)


def acts(engine: Engine, *replies: Reply) -> None:
    """The model of task a takes these steps."""
    engine.model.begin(script({("executor", "a"): steps(*replies)}))


async def left_in_flight(engine: Engine, shop: Shop, *wanted: Any) -> RunId:
    """A run whose worker has died with all these calls, of one step, in flight."""
    acts(engine, calls(*wanted), text("done"))
    for tool in shop.tools:
        tool.does = Held()
    first = shop.worker()
    run_id = await shop.run()
    await engine.until_true(lambda: sum(len(tool.made) for tool in shop.tools) == len(wanted))
    await dies(first, engine.database, run_id)
    shop.does_as_told()
    return run_id


async def test_a_call_that_acts_each_time_is_not_repeated_but_shown_to_a_person(
    engine: Engine, database: Database, shop: Shop
) -> None:
    run_id = await left_in_flight(engine, shop, charge("x"))
    shop.worker()
    run = await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert (run.open_reviews, run.progress["awaiting_review"], shop.charge.texts) == (1, 1, ["x"])
    assert await became(database, run_id) == [("charge", "lost"), ("charge", "awaiting_review")]
    (review,) = await open_reviews(database, run_id)
    assert (review.kind, review.task_key, review.tool_call) == ("tool_call", "0.a", 2)
    assert review.question["tool_call"] == {
        "number": 2,
        "tool": "charge",
        "arguments": {"text": "x"},
        "side_effects": "once",
        "outcome_unknown": True,
    }
    assert review.allowed_answers == ["retry", "supply", "fail"]
    assert len(engine.model.calls) == 1


ANSWERS: dict[str, tuple[dict[str, Any], str, list[str], str | None]] = {
    "retry": ({}, "succeeded", ["x", "x"], "done: x"),
    "supply": ({"result": {"receipt": 7}}, "succeeded", ["x"], '{"receipt": 7}'),
    "fail": ({}, "failed", ["x"], None),
}
"""With what, how the run ends, the calls that the tool has had, and what the model reads."""


@pytest.mark.parametrize("at_work", [True, False], ids=["a worker is there", "no worker is there"])
@pytest.mark.parametrize("decision", ANSWERS)
async def test_a_persons_word_on_a_call_whose_outcome_is_unknown_is_carried_out(
    engine: Engine, database: Database, shop: Shop, decision: str, at_work: bool
) -> None:
    given, ends, sent, told = ANSWERS[decision]
    run_id = await left_in_flight(engine, shop, charge("x"))
    worker = shop.worker()
    await engine.until(is_asked, run_id)
    if not at_work:
        await worker.drain()
    await decide(database, run_id, decision, **given)
    if not at_work:
        shop.worker()
    run = await engine.ended(run_id)
    assert (run.status, shop.charge.texts) == (ends, sent)
    assert len({key for _, key in shop.charge.made}) == 1
    if told is None:
        assert run.error is not None
        assert (run.error["code"], len(engine.model.calls)) == ("task_failed", 1)
    else:
        (read,) = engine.model.calls[-1].tool_results.values()
        assert (told in read, len(engine.model.calls)) == (True, 2)


async def test_a_worker_that_dies_right_after_an_answer_has_its_call_asked_about_once_more(
    engine: Engine, database: Database, shop: Shop
) -> None:
    run_id = await left_in_flight(engine, shop, charge("x"))
    second = shop.worker()
    await engine.until(is_asked, run_id)
    shop.charge.does = Held()
    await decide(database, run_id, "retry")
    await engine.until_true(lambda: len(shop.charge.made) == 2)
    await dies(second, database, run_id)
    shop.worker()
    await engine.until(is_asked, run_id)
    assert shop.charge.texts == ["x", "x"]
    await decide(database, run_id, "supply", result="It was charged.")
    run = await engine.ended(run_id)
    assert (run.status, shop.charge.texts) == ("succeeded", ["x", "x"])
    assert await became(database, run_id) == [("charge", "lost"), ("charge", "lost"), ("charge", "returned")]


async def test_an_answer_that_nobody_has_carried_out_yet_is_not_lost(
    engine: Engine, database: Database, shop: Shop
) -> None:
    """The run is claimed, and its worker dies before it has written anything."""
    run_id = await left_in_flight(engine, shop, charge("x"))
    second = shop.worker()
    await engine.until(is_asked, run_id)
    await second.drain()
    await decide(database, run_id, "supply", result="It was charged.")
    await claim_one(database)
    await check(database, run_id)
    await expire(database, run_id)
    shop.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x"]


async def test_a_call_that_may_be_repeated_is_with_the_same_key(engine: Engine, database: Database, shop: Shop) -> None:
    run_id = await left_in_flight(engine, shop, put("x"), look("y"))
    shop.worker()
    run = await engine.ended(run_id)
    assert (run.status, run.tool_calls, shop.put.texts, shop.look.texts) == ("succeeded", 4, ["x", "x"], ["y", "y"])
    assert len({key for _, key in shop.put.made}) == 1
    assert [status for _, status in await became(database, run_id)] == ["lost", "lost", "returned", "returned"]
    assert len(engine.model.calls) == 2


async def test_of_one_step_only_what_acts_each_time_waits_for_a_person(
    engine: Engine, database: Database, shop: Shop
) -> None:
    run_id = await left_in_flight(engine, shop, put("x"), charge("y"), look("z"))
    shop.worker()
    await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert (shop.put.texts, shop.charge.texts, shop.look.texts) == (["x", "x"], ["y"], ["z", "z"])
    await decide(database, run_id, "supply", result="paid")
    assert (await engine.ended(run_id)).status == "succeeded"
    read = list(engine.model.calls[-1].tool_results.values())
    assert [words in one for words, one in zip(["done: x", "paid", "done: z"], read, strict=True)] == [True] * 3


async def test_a_call_that_is_repeated_and_one_that_a_person_has_answered_for_go_on_together(
    engine: Engine, database: Database, shop: Shop
) -> None:
    """The answer comes while the worker that repeats the other is dead."""
    run_id = await left_in_flight(engine, shop, put("x"), charge("y"))
    shop.put.does = Held()
    second = shop.worker()
    await engine.until_true(lambda: len(shop.put.made) == 2)
    await dies(second, database, run_id)
    await decide(database, run_id, "retry")
    shop.does_as_told()
    shop.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert (shop.put.texts, shop.charge.texts, len(engine.model.calls)) == (["x"] * 3, ["y", "y"], 2)


async def test_what_had_returned_when_its_worker_died_is_not_called_again(
    engine: Engine, database: Database, shop: Shop
) -> None:
    acts(engine, calls(charge("x"), charge("y")), text("done"))
    held = Held()
    shop.charge.does = lambda arguments, context: "paid" if arguments["text"] == "x" else held(arguments, context)
    first = shop.worker()
    run_id = await shop.run()

    async def one_is_back() -> bool:
        return ("charge", "returned") in await became(database, run_id)

    await until(one_is_back)
    await dies(first, database, run_id)
    shop.worker()
    await engine.until(is_asked, run_id)
    assert sorted(shop.charge.texts) == ["x", "y"]
    await decide(database, run_id, "supply", result="paid too")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert sorted(shop.charge.texts) == ["x", "y"]


async def test_the_next_worker_tells_the_model_what_the_last_one_did(
    engine: Engine, database: Database, shop: Shop
) -> None:
    """Results, errors, refusals and what was said beside the calls; and nothing that is recorded is called again."""

    def picky(arguments: Mapping[str, Any], _: Any) -> str:
        if arguments["text"] == "bad":
            raise ToolRetry("Say something better.", kind="picky", may_have_acted=False)
        return f"done: {arguments['text']}"

    shop.put.does = picky
    replies = [
        calls(look("a"), put("b"), content="First I look."),
        calls(put("bad"), ("unheard_of", {})),
        calls(charge("c"), charge("c")),
        calls(look("a")),
        calls(("charge", "{not json")),
    ]
    later = {"reply": hang()}

    def reply(call: Call) -> Reply:
        answered = sum(message["role"] == "assistant" for message in call.messages)
        return replies[answered] if answered < len(replies) else later["reply"]

    engine.model.begin(script({("executor", "a"): reply}))
    first = shop.worker()
    run_id = await shop.run()
    await engine.model.until(lambda: len(engine.model.calls) == 6)
    await dies(first, database, run_id)
    later["reply"] = text("done")
    shop.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    *_, lost, again = engine.model.calls
    assert lost.body == again.body
    assert (len(engine.model.calls), shop.look.texts, shop.put.texts, shop.charge.texts) == (
        7,
        ["a", "a"],
        ["b", "bad"],
        ["c"],
    )


async def test_a_worker_that_lost_its_run_while_a_tool_was_called_records_nothing(
    engine: Engine, database: Database, shop: Shop
) -> None:
    acts(engine, calls(charge("x")), text("done"))
    held = Held()
    shop.charge.does = held
    first = shop.worker(lease_seconds=3_600)
    run_id = await shop.run()
    await engine.until_true(lambda: len(shop.charge.made) == 1)
    await expire(database, run_id)
    shop.worker(worker_max_runs=1)
    # Whoever claims it: the one that had it gives up what it was doing.
    run = await engine.until(is_asked, run_id)
    held.gate.set()
    await engine.until_true(lambda: run_id not in first.worker._drivers)
    await check(database, run_id)
    assert (run.open_reviews, shop.charge.texts) == (1, ["x"])
    assert await became(database, run_id) == [("charge", "lost"), ("charge", "awaiting_review")]
    await decide(database, run_id, "supply", result="paid")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x"]


async def test_a_call_that_waited_for_its_turn_is_not_sent_for_a_run_that_was_lost_meanwhile(
    engine: Engine, database: Database, shop: Shop
) -> None:
    """Its worker stood still: it has not heard yet of who has taken over."""
    acts(engine, calls(charge("x"), charge("y")), text("done"))
    held = Held()
    shop.charge.does = held
    first = shop.worker(lease_seconds=3_600, tool_max_concurrency=1, worker_max_runs=1)
    run_id = await shop.run()
    await engine.until_true(lambda: len(shop.charge.made) == 1)
    await expire(database, run_id)
    shop.worker()
    run = await engine.until(is_asked, run_id)
    assert (run.open_reviews, shop.charge.texts) == (2, ["x"])
    clock = first.worker._shop.clock
    clock._offset_ms += 3_600_000
    held.gate.set()
    await engine.until_true(lambda: run_id not in first.worker._drivers)
    assert shop.charge.texts == ["x"]


# --- cancelled, and tried again


async def cancelled_while_held(engine: Engine, worker: WorkerHere, run_id: RunId) -> None:
    async with worker.database.write() as connection:
        assert await request_cancel(connection, T, run_id)
        await worker.database.announce(connection, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"


async def test_calls_of_a_run_that_is_cancelled_are_cut(engine: Engine, database: Database, shop: Shop) -> None:
    acts(engine, calls(put("x"), charge("y")), text("done"))
    was_cut = []

    async def does(arguments: Mapping[str, Any], _: Any) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            was_cut.append(arguments["text"])
        return "never"

    shop.put.does = shop.charge.does = does
    worker = shop.worker()
    run_id = await shop.run()
    await engine.until_true(lambda: len(shop.put.made) + len(shop.charge.made) == 2)
    await cancelled_while_held(engine, worker, run_id)
    assert sorted(was_cut) == ["x", "y"]
    assert await became(database, run_id) == [("put", "cancelled"), ("charge", "cancelled")]


async def test_what_a_cancel_has_cut_is_asked_about_when_the_run_is_tried_again(
    engine: Engine, database: Database, shop: Shop
) -> None:
    acts(engine, calls(put("x"), charge("y")), text("done"))
    shop.put.does = shop.charge.does = Held()
    worker = shop.worker()
    run_id = await shop.run()
    await engine.until_true(lambda: len(shop.put.made) + len(shop.charge.made) == 2)
    await cancelled_while_held(engine, worker, run_id)
    shop.put.does = shop.charge.does = lambda *_: "done"
    await retried(database, run_id)
    await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert (shop.put.texts, shop.charge.texts) == (["x", "x"], ["y"])
    assert len({key for _, key in shop.put.made}) == 1
    (review,) = await open_reviews(database, run_id)
    assert review.question["tool_call"]["outcome_unknown"] is True
    await decide(database, run_id, "retry")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["y", "y"]


async def test_what_was_in_flight_when_a_run_without_a_worker_was_cancelled_is_asked_about_too(
    engine: Engine, database: Database, shop: Shop
) -> None:
    run_id = await left_in_flight(engine, shop, charge("x"))
    async with database.write() as connection:
        assert await request_cancel(connection, T, run_id)
    assert (await the_run(database, run_id)).status == "cancelled"
    await check(database, run_id)
    assert await became(database, run_id) == [("charge", "lost")]
    await retried(database, run_id)
    shop.worker()
    await engine.until(is_asked, run_id)
    assert shop.charge.texts == ["x"]
    await decide(database, run_id, "supply", result="paid")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x"]


async def test_a_call_that_waits_for_a_person_ends_with_its_run(engine: Engine, database: Database, shop: Shop) -> None:
    run_id = await left_in_flight(engine, shop, charge("x"))
    shop.worker()
    await engine.until(is_asked, run_id)
    async with database.write() as connection:
        assert await request_cancel(connection, T, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"
    lost, held = await tool_rows(database, run_id)
    assert (lost["status"], held["status"], held["error"]["kind"]) == ("lost", "refused", "cancelled")


async def test_nothing_is_repeated_for_a_run_that_was_to_be_cancelled_when_its_worker_died(
    engine: Engine, database: Database, shop: Shop
) -> None:
    acts(engine, calls(put("x"), charge("y")), text("done"))
    shop.put.does = shop.charge.does = Held()
    first = shop.worker()
    run_id = await shop.run()
    await engine.until_true(lambda: len(shop.put.made) + len(shop.charge.made) == 2)
    async with database.write() as connection:
        assert await request_cancel(connection, T, run_id)
    assert (await row_of(database, run_id))["stop_requested"] == StopRequest.CANCEL
    await dies(first, database, run_id)
    shop.worker()
    run = await engine.ended(run_id)
    assert (run.status, shop.put.texts, shop.charge.texts) == (RunStatus.CANCELLED, ["x"], ["y"])
    assert await open_reviews(database, run_id) == []
