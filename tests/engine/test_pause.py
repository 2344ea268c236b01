"""Standing still, going on, and ending on request, whatever the run is about at that moment."""

from typing import Any

import pytest

from app.domain.ids import RunId
from app.domain.status import RunStatus, StopRequest
from app.engine.driver import Driver
from app.engine.state import RunState
from app.storage import tables
from app.storage.database import Database
from app.storage.reviews import answer_review, list_reviews
from app.storage.runs import lock_run
from app.storage.steering import request_cancel, request_pause, request_resume
from tests.engine.conftest import Engine, Gates, WorkerHere
from tests.invariants import check
from tests.scripted_model import DIAMOND, Call, Plan, Reply, error, plan_reply, script, text
from tests.stored import T, claim_due, expire, make_run, row_of, rows_of, the_run

ONE: Plan = {"a": []}
PAIR: Plan = {"a": [], "b": []}
CHAIN: Plan = {"a": [], "b": ["a"]}
EMPTY = text("")
LATER = error(503, headers={"Retry-After": "3600"})
REPLAN = text('{"strategy": "replan", "tasks": [{"id": "x", "description": "Do x.", "depends_on": []}]}')


def at_gate(gates: Gates, reply: Reply) -> Any:
    """This reply once the gate of a call without a task is opened."""

    async def wait(call: Call) -> Reply:
        await gates._gates[None].wait()
        return reply

    return wait


async def asked(worker: WorkerHere, request: Any, run_id: RunId, *, heeded: bool = True) -> None:
    """Asked by a client of the worker's own process, which the worker has heard of; or which it has not yet."""
    async with worker.database.write() as connection:
        assert await request(connection, T, run_id)
        if heeded:
            await worker.database.announce(connection, run_id)


async def pausing(engine: Engine, worker: WorkerHere, run_id: RunId) -> None:
    """Asked to pause, and its driver knows."""
    await asked(worker, request_pause, run_id)
    await engine.until_true(lambda: worker.worker._drivers[run_id]._stop is StopRequest.PAUSE)


async def paused(engine: Engine, run_id: RunId) -> None:
    """The run stands still, with nothing in flight, and nobody can claim it."""
    await engine.until(lambda run: run.status is RunStatus.PAUSED, run_id)
    await check(engine.database, run_id)
    row = await row_of(engine.database, run_id)
    assert (row["lease_token"], row["lease_owner"], row["stop_requested"], row["active_since"]) == (None,) * 4
    await expire(engine.database, run_id)
    assert await claim_due(engine.database) == []
    assert not engine.model.in_flight


async def resumed(database: Database, run_id: RunId) -> None:
    async with database.write() as connection:
        steered = await request_resume(connection, T, run_id)
    assert steered is not None
    assert (steered[0].status, steered[1]) == (RunStatus.QUEUED, True)


async def answered(database: Database, run_id: RunId, decision: str, **more: Any) -> None:
    """The run's open review, answered as over HTTP, with nobody told."""
    async with database.write() as connection:
        run = await lock_run(connection, T, run_id)
        assert run is not None
        reviews = await list_reviews(connection, T, run_id, limit=100)
        (review,) = [review for review in reviews if review.answered_at is None and review.closed_at is None]
        await answer_review(connection, run, review, {"decision": decision, **more})


async def run_events(database: Database, run_id: RunId) -> list[str]:
    types = [event["type"] for event in await rows_of(database, tables.events, run_id)]
    return [type_.removeprefix("run.") for type_ in types if type_.startswith("run.")]


# --- standing still


async def test_a_pause_lets_running_calls_finish_and_starts_none(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    worker = engine.worker()
    run_id = await make_run(database, plan=DIAMOND)
    gates.open("a")
    await engine.model.until(lambda: len(engine.model.calls) == 3)
    await pausing(engine, worker, run_id)
    gates.open("b")
    await engine.until(lambda run: run.progress["succeeded"] == 2, run_id)
    run = await the_run(database, run_id)
    assert (run.status, run.stop_requested) == (RunStatus.RUNNING, StopRequest.PAUSE)
    gates.open("c", "d")
    await paused(engine, run_id)
    assert engine.model.order().count("0.d") == 0
    assert not any(call.disconnected for call in engine.model.calls)
    await resumed(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert sorted(engine.model.order()) == ["0.a", "0.b", "0.c", "0.d", "synthesizer"]
    assert await run_events(database, run_id) == ["queued", "started", "paused", "resumed", "started", "succeeded"]


@pytest.mark.parametrize("at_work", [True, False], ids=["a worker is there", "no worker is there"])
async def test_a_queued_run_is_paused_at_once(engine: Engine, database: Database, at_work: bool) -> None:
    run_id = await make_run(database, announced=False)
    async with database.write() as connection:
        steered = await request_pause(connection, T, run_id)
    assert steered is not None
    assert steered[0].status is RunStatus.PAUSED
    if at_work:
        engine.worker()
    await paused(engine, run_id)
    await resumed(database, run_id)
    if not at_work:
        engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_a_pause_while_planning_keeps_the_plan(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"planner": at_gate(gates, plan_reply(CHAIN))}))
    worker = engine.worker()
    run_id = await make_run(database)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    await pausing(engine, worker, run_id)
    gates.open(None)
    await paused(engine, run_id)
    assert (await the_run(database, run_id)).generation == 0
    await resumed(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert engine.model.order() == ["planner", "0.a", "0.b", "synthesizer"]


async def test_a_pause_while_the_answer_is_written_lets_the_run_succeed(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"synthesizer": at_gate(gates, text("the answer"))}))
    worker = engine.worker()
    run_id = await make_run(database, plan=PAIR)
    await engine.model.until(lambda: len(engine.model.calls) == 3)
    await pausing(engine, worker, run_id)
    gates.open(None)
    await engine.until(lambda run: run.status in (RunStatus.PAUSED, RunStatus.SUCCEEDED), run_id)
    if (await the_run(database, run_id)).status is RunStatus.PAUSED:
        await resumed(database, run_id)
    run = await engine.ended(run_id)
    assert (run.status, run.result, engine.model.order().count("synthesizer")) == ("succeeded", "the answer", 1)


@pytest.mark.parametrize(
    ("on_failure", "reply", "then"),
    [
        ("retry", text('{"description": "Do b otherwise."}'), ["0.b", "synthesizer"]),
        ("replan", REPLAN, ["1.x", "synthesizer"]),
        ("auto", text('{"strategy": "skip"}'), ["synthesizer"]),
    ],
)
async def test_a_pause_while_recovery_is_asked_keeps_its_answer(
    engine: Engine, database: Database, on_failure: str, reply: Reply, then: list[str]
) -> None:
    gates = Gates()
    engine.model.begin(
        script({("executor", "b"): [EMPTY, text("b")], "recovery": at_gate(gates, reply), ("executor", "x"): text("x")})
    )
    worker = engine.worker()
    run_id = await make_run(database, plan=PAIR, max_attempts=1, on_failure=on_failure)
    await engine.model.until(lambda: bool(engine.model.by_seat("recovery")))
    await pausing(engine, worker, run_id)
    gates.open(None)
    await paused(engine, run_id)
    before = len(engine.model.calls)
    await resumed(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert engine.model.order()[before:] == then
    assert len(engine.model.by_seat("recovery")) == 1


async def test_a_failure_met_while_pausing_is_taken_to_recovery_after_the_resume(
    engine: Engine, database: Database
) -> None:
    gates = Gates(lambda call: EMPTY if call.turn == 0 else text("b"))
    engine.model.begin(script({"executor": gates, "recovery": text('{"description": "Do b otherwise."}')}))
    worker = engine.worker()
    run_id = await make_run(database, plan=ONE, max_attempts=1, on_failure="retry")
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    await pausing(engine, worker, run_id)
    gates.open("a")
    await paused(engine, run_id)
    assert len(engine.model.calls) == 1
    await resumed(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert engine.model.order() == ["0.a", "0.a", "0.a"]


@pytest.mark.parametrize("lease_seconds", [60, 2], ids=["held", "released"])
async def test_a_pause_while_a_retry_waits_stands_still_and_keeps_the_wait(
    engine: Engine, database: Database, lease_seconds: float
) -> None:
    wait = 3_600 if lease_seconds == 2 else 30
    engine.model.begin(script({"executor": error(503, headers={"Retry-After": str(wait)})}))
    worker = engine.worker(lease_seconds=lease_seconds)
    run_id = await make_run(database, plan=ONE)
    await engine.until(lambda run: run.progress["retrying"] == 1 and run.held == (lease_seconds == 60), run_id)
    due = (await rows_of(database, tables.tasks, run_id))[0]["next_attempt_at"]
    await asked(worker, request_pause, run_id)
    await paused(engine, run_id)
    await resumed(database, run_id)
    # It is looked at again, and goes on waiting as long as the endpoint asked.
    await engine.until(lambda run: run.status is RunStatus.RUNNING, run_id)
    assert (await rows_of(database, tables.tasks, run_id))[0]["next_attempt_at"] == due
    assert len(engine.model.calls) == 1
    await asked(worker, request_cancel, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"


async def test_a_pause_keeps_what_an_endpoint_has_asked_of_all_tasks(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": error(429, headers={"Retry-After": "3600"})}))
    worker = engine.worker()
    run_id = await make_run(database, plan={"a": [], "b": ["a"], "c": []}, max_parallel=1)
    await engine.until(lambda run: run.progress["retrying"] == 1, run_id)
    await asked(worker, request_pause, run_id)
    await paused(engine, run_id)
    await resumed(database, run_id)
    await engine.until(lambda run: run.status is RunStatus.RUNNING and not run.held, run_id)
    assert engine.model.order() == ["0.a"]
    await asked(worker, request_cancel, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"


async def test_a_paused_run_can_be_answered_and_goes_on_only_once_it_is_resumed(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "a"): EMPTY}))
    worker = engine.worker()
    run_id = await make_run(database, plan=CHAIN, max_attempts=1, on_failure="review")
    await engine.until(lambda run: run.status is RunStatus.AWAITING_REVIEW, run_id)
    await asked(worker, request_pause, run_id)
    await paused(engine, run_id)
    await answered(database, run_id, "supply", result="by hand")
    await paused(engine, run_id)
    await resumed(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert engine.model.order() == ["0.a", "0.b", "synthesizer"]
    assert "by hand" in engine.model.calls_for("0.b")[0].text


async def test_a_run_that_is_resumed_before_its_review_is_answered_waits_for_the_answer_again(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "a"): EMPTY}))
    worker = engine.worker()
    run_id = await make_run(database, plan=CHAIN, max_attempts=1, on_failure="review")
    await engine.until(lambda run: run.status is RunStatus.AWAITING_REVIEW, run_id)
    await asked(worker, request_pause, run_id)
    await paused(engine, run_id)
    await resumed(database, run_id)
    await engine.until(lambda run: run.status is RunStatus.AWAITING_REVIEW, run_id)
    await check(database, run_id)
    assert len(await rows_of(database, tables.reviews, run_id)) == 1
    await answered(database, run_id, "skip")
    await engine.ended(run_id)
    assert engine.model.order() == ["0.a", "0.b", "synthesizer"]


async def test_a_pause_asked_of_a_dead_worker_is_kept_by_the_next(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    first = engine.worker()
    run_id = await make_run(database, plan=PAIR, max_parallel=1)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    await first.die()
    async with database.write() as connection:
        await request_pause(connection, T, run_id)
    await expire(database, run_id)
    engine.worker()
    await paused(engine, run_id)
    assert len(engine.model.calls) == 1
    gates.open("a", "b")
    await resumed(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert engine.model.order() == ["0.a", "0.a", "0.b", "synthesizer"]


async def test_a_pause_whose_worker_is_drained_is_kept_by_the_next(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    first = engine.worker(drain_seconds=0)
    run_id = await make_run(database, plan=PAIR, max_parallel=1)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    await pausing(engine, first, run_id)
    await first.drain()
    engine.worker()
    await paused(engine, run_id)
    assert len(engine.model.calls) == 1
    async with database.write() as connection:
        await request_cancel(connection, T, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"


async def test_a_paused_run_is_left_alone_by_every_worker(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    workers = [engine.worker(), engine.worker()]
    run_id = await make_run(database, plan=CHAIN)
    other = await make_run(database, plan=ONE)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    driving = next(worker for worker in workers if run_id in worker.worker._drivers)
    await pausing(engine, driving, run_id)
    gates.open("a")
    await paused(engine, run_id)
    assert (await engine.ended(other)).status == "succeeded"
    gates.open("b")
    await resumed(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert sorted(engine.model.order(run_id=str(run_id))) == ["0.a", "0.b", "synthesizer"]


async def test_a_pause_through_another_process_is_followed(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    worker = engine.worker()
    run_id = await make_run(database, plan=CHAIN)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    async with database.write() as connection:  # the client's own: on SQLite nothing tells the worker
        await request_pause(connection, T, run_id)
    await engine.until_true(lambda: worker.worker._drivers[run_id].is_stopping)
    gates.open("a")
    await paused(engine, run_id)
    assert engine.model.order() == ["0.a"]


# --- going on


async def test_a_resume_before_the_pause_took_effect_takes_it_back(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    worker = engine.worker()
    run_id = await make_run(database, plan=CHAIN)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    await pausing(engine, worker, run_id)
    await asked(worker, request_resume, run_id)
    await engine.until_true(lambda: not worker.worker._drivers[run_id].is_stopping)
    gates.open("a", "b")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert await run_events(database, run_id) == ["queued", "started", "succeeded"]


@pytest.mark.parametrize("budget", [{}, {"max_seconds": 100_000}], ids=["no budget", "a deadline far away"])
async def test_a_resume_that_the_worker_has_not_heard_of_when_it_would_stand_still_goes_on(
    engine: Engine, database: Database, budget: dict[str, int]
) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    worker = engine.worker()
    run_id = await make_run(database, plan=CHAIN, budget=budget)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    await pausing(engine, worker, run_id)
    await asked(worker, request_resume, run_id, heeded=False)
    gates.open("a", "b")
    run = await engine.ended(run_id)
    assert run.status == "succeeded"
    assert await run_events(database, run_id) == ["queued", "started", "succeeded"]


# --- ending


async def test_a_cancel_while_pausing_cuts_what_is_in_flight(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": Gates()}))
    worker = engine.worker()
    run_id = await make_run(database, plan=PAIR)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    await pausing(engine, worker, run_id)
    await asked(worker, request_cancel, run_id)
    run = await engine.ended(run_id)
    assert (run.status, run.progress["cancelled"]) == ("cancelled", 2)
    await engine.model.until(lambda: all(call.disconnected for call in engine.model.calls))
    assert await run_events(database, run_id) == ["queued", "started", "cancelled"]


async def test_a_paused_run_is_cancelled_at_once(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    worker = engine.worker()
    run_id = await make_run(database, plan=CHAIN)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    await pausing(engine, worker, run_id)
    gates.open("a")
    await paused(engine, run_id)
    async with database.write() as connection:
        steered = await request_cancel(connection, T, run_id)
    assert steered is not None
    assert steered[0].status is RunStatus.CANCELLED
    run = await engine.ended(run_id)
    assert (run.progress["succeeded"], run.progress["cancelled"]) == (1, 1)


@pytest.mark.parametrize("on_failure", ["retry", "replan", "auto"])
async def test_a_cancel_wins_over_recovery_in_flight_and_closes_its_connection(
    engine: Engine, database: Database, on_failure: str
) -> None:
    engine.model.begin(script({("executor", "b"): EMPTY, "recovery": Reply(hangs=True)}))
    worker = engine.worker()
    run_id = await make_run(database, plan={"a": [], "b": ["a"], "c": ["b"]}, max_attempts=1, on_failure=on_failure)
    await engine.model.until(lambda: bool(engine.model.by_seat("recovery")))
    (call,) = engine.model.by_seat("recovery")
    await asked(worker, request_cancel, run_id)
    run = await engine.ended(run_id)
    await engine.model.until(lambda: call.disconnected)
    assert (run.status, run.generation) == ("cancelled", 0)
    statuses = {task["key"]: task["status"] for task in await rows_of(database, tables.tasks, run_id)}
    assert statuses == {"0.a": "succeeded", "0.b": "failed", "0.c": "cancelled"}


async def test_a_cancel_wins_over_a_replan_that_answers_all_the_same(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({("executor", "b"): EMPTY, "recovery": at_gate(gates, REPLAN)}))
    worker = engine.worker()
    run_id = await make_run(database, plan=CHAIN, max_attempts=1, on_failure="replan")
    await engine.model.until(lambda: bool(engine.model.by_seat("recovery")))
    await asked(worker, request_cancel, run_id, heeded=False)
    gates.open(None)
    run = await engine.ended(run_id)
    assert (run.status, engine.model.order()) == ("cancelled", ["0.a", "0.b", "0.b"])


async def test_a_run_that_awaits_review_is_cancelled_at_once_and_its_review_is_closed(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "a"): EMPTY}))
    engine.worker()
    run_id = await make_run(database, plan=CHAIN, max_attempts=1, on_failure="review")
    await engine.until(lambda run: run.status is RunStatus.AWAITING_REVIEW, run_id)
    async with database.write() as connection:
        await request_cancel(connection, T, run_id)
    run = await engine.ended(run_id)
    assert (run.status, run.open_reviews) == ("cancelled", 0)


# --- answers that come while nobody holds the run, or just as it is let go


async def test_an_answer_wakes_a_run_that_waits_for_something_else(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): LATER, ("executor", "b"): EMPTY}))
    worker = engine.worker(lease_seconds=2)
    run_id = await make_run(database, plan={"a": [], "b": [], "c": ["b"]}, max_attempts=1, on_failure="review")
    await engine.until(lambda run: run.open_reviews == 1 and run.progress["retrying"] == 1 and not run.held, run_id)
    await answered(database, run_id, "supply", result="by hand")
    await engine.until(lambda run: run.progress["succeeded"] == 2, run_id)
    assert sorted(engine.model.order()) == ["0.a", "0.b", "0.c"]
    await asked(worker, request_cancel, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"


async def test_an_answer_that_comes_as_the_run_is_let_go_is_carried_out(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, was_answered = Driver._let_go, False

    async def answered_just_before(driver: Driver, state: RunState) -> bool:
        nonlocal was_answered
        if not was_answered:
            was_answered = True
            await answered(database, run_id, "supply", result="by hand")
        return await let_go(driver, state)

    gates = Gates(lambda call: LATER if call.task_id == "a" else EMPTY if call.task_id == "b" else text("c"))
    engine.model.begin(script({"executor": gates}))
    gates.open("b", "c")
    worker = engine.worker(lease_seconds=2)
    run_id = await make_run(database, plan={"a": [], "b": [], "c": ["b"]}, max_attempts=1, on_failure="review")
    await engine.until(lambda run: run.open_reviews == 1, run_id)
    monkeypatch.setattr(Driver, "_let_go", answered_just_before)
    gates.open("a")
    await engine.until(lambda run: run.progress["succeeded"] == 2, run_id)
    await asked(worker, request_cancel, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"
