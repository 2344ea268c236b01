"""Workers: whom they serve, how they share places, how they stop runs and how they stop themselves."""

import asyncio
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from app.bootstrap import run_worker
from app.domain.ids import RunId
from app.domain.status import Mode
from app.engine.inbox import Inbox
from app.engine.loading import build
from app.engine.recorder import Recorder
from app.settings import Settings
from app.storage import tables
from app.storage.database import Database
from app.storage.steering import request_cancel
from tests.engine.conftest import WITHIN_SECONDS, Engine, Gates
from tests.invariants import check
from tests.polling import until
from tests.scripted_model import DIAMOND, Plan, error, hang, plan_reply, script, text
from tests.stored import T, expire, make_run, row_of, rows_of, the_run

ONE: Plan = {"a": []}
MANY: Plan = {str(n): [] for n in range(8)}


def waits(seconds: int) -> Any:
    """An answer that asks to be left alone for so long."""
    return error(429, headers={"Retry-After": str(seconds)})


async def cancel(database: Database, run_id: RunId) -> None:
    async with database.write() as connection:
        await request_cancel(connection, T, run_id)
        await database.announce(connection, run_id)


async def due_now(database: Database, run_id: RunId) -> None:
    """Whatever the run waits for, it has waited long enough."""
    async with database.write() as connection:
        of_run = {table: table.c.run_id == run_id for table in (tables.tasks, tables.calls)}
        await connection.execute(sa.update(tables.tasks).where(of_run[tables.tasks]).values(next_attempt_at=0))
        await connection.execute(sa.update(tables.calls).where(of_run[tables.calls]).values(retry_at=0))
    await expire(database, run_id)


# --- whom they serve


async def test_a_worker_is_woken_by_a_new_goal(engine: Engine, database: Database) -> None:
    worker = engine.worker(poll_seconds=3_600)
    await engine.ended(await make_run(worker.database, plan=ONE))


async def test_a_worker_alone_hears_of_goals_and_cancels_of_other_processes(engine: Engine, database: Database) -> None:
    """On PostgreSQL at once, on SQLite by polling."""
    engine.model.begin(script({("executor", "0"): hang()}))
    stop = asyncio.Event()
    values = {**engine.settings, "poll_seconds": 0.05 if database.is_sqlite else 3_600}
    running = asyncio.create_task(run_worker(Settings(_env_file=None, **values), stop))
    run_id = await make_run(database, plan=MANY)
    while not engine.model.calls:  # nothing says from when on it listens
        async with database.write() as connection:
            await database.announce(connection, run_id)
        await asyncio.sleep(0.01)
    await cancel(database, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"
    stop.set()
    async with asyncio.timeout(WITHIN_SECONDS):
        await running


async def test_a_worker_drives_no_more_runs_than_it_may(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    worker = engine.worker(worker_max_runs=2)
    runs = [await make_run(database, plan=ONE) for _ in range(4)]
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    assert len(worker.worker._drivers) == 2
    gates.open("a")
    for run_id in runs:
        await engine.ended(run_id)


async def test_a_run_that_breaks_its_driver_fails_and_the_others_go_on(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = await make_run(database, plan=ONE), await make_run(database, plan=ONE)

    def break_one(stored: Any, lease: Any) -> Any:
        if lease.run_id == broken:
            raise ZeroDivisionError
        return build(stored, lease)

    monkeypatch.setattr("app.engine.driver.build", break_one)
    engine.worker()
    run = await engine.ended(broken)
    assert run.error is not None
    assert (run.status, run.error["code"], run.progress["cancelled"]) == ("failed", "internal_error", 1)
    assert (await engine.ended(sound)).status == "succeeded"


async def test_the_last_event_of_a_run_that_broke_its_driver_says_why(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*given: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("app.engine.driver.build", break_off)
    engine.worker()
    run = await engine.ended(await make_run(database, plan=ONE))
    (*_, last) = await rows_of(database, tables.events, run.id)
    assert (last["type"], last["data"]) == ("run.failed", {"error": run.error})


async def test_a_call_that_breaks_fails_its_run_and_the_others_go_on(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(**asked: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("app.engine.calls.executor.messages", break_off)
    engine.worker()
    run = await engine.ended(await make_run(database, plan=DIAMOND))
    assert run.error is not None
    assert (run.status, run.error["code"]) == ("failed", "internal_error")
    assert (await engine.ended(await make_run(database, mode=Mode.PLAN_ONLY))).status == "succeeded"


async def test_a_worker_whose_recorder_breaks_ends_rather_than_stand_still(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_off(recorder: Recorder) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Recorder, "run", break_off)
    worker = engine.worker()
    engine.workers.remove(worker)
    await make_run(worker.database, plan=ONE)
    ended, _ = await asyncio.wait([worker.running], timeout=5)
    if not ended:
        await worker.die()
    assert ended


# --- places


async def test_runs_share_the_places_of_a_process_and_never_take_more(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    engine.worker(llm_max_concurrency=3)
    runs = [await make_run(database, plan=MANY, synthesize=False) for _ in range(3)]
    await engine.until_true(lambda: gates.most == 3)
    gates.open(*MANY)
    for run_id in runs:
        assert (await engine.ended(run_id)).status == "succeeded"
    assert gates.most == 3


async def test_a_small_run_does_not_wait_for_a_large_one_to_end(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    engine.worker(llm_max_concurrency=2)
    large = await make_run(database, plan=MANY, synthesize=False)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    small = await make_run(database, plan={"small": []})
    await engine.until(lambda run: run.status == "running", small)
    gates.open("0", "1")
    await engine.model.until(lambda: len(engine.model.calls) == 4)
    assert "0.small" in engine.model.order()
    gates.open("small", *MANY)
    for run_id in (large, small):
        assert (await engine.ended(run_id)).status == "succeeded"


async def test_a_run_whose_question_is_due_waits_for_a_place_without_spinning(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates, asked = Gates(), Gates(lambda call: waits(0) if call.turn == 0 else plan_reply(ONE))
    engine.model.begin(script({"executor": gates, "planner": asked}))
    worker = engine.worker(llm_max_concurrency=1)
    planned = await make_run(database)
    await engine.model.until(lambda: engine.model.order() == ["planner"])
    holds_the_place = await make_run(database, plan=ONE)
    await engine.until(lambda run: run.status == "running", holds_the_place)
    asked.open(None)
    await engine.model.until(lambda: engine.model.order() == ["planner", "0.a"])
    looks = 0
    take = Inbox.take

    async def count(inbox: Any, **how: Any) -> Any:
        nonlocal looks
        looks += 1
        return await take(inbox, **how)

    monkeypatch.setattr(Inbox, "take", count)
    for _ in range(30):
        await worker.database.ping()
    assert looks < 10
    gates.open("a")
    for run_id in (planned, holds_the_place):
        await engine.ended(run_id)


# --- cancel


async def test_a_cancel_cuts_the_calls_of_a_held_run(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): hang(), ("executor", "c"): hang()}))
    worker = engine.worker()
    run_id = await make_run(database, plan=DIAMOND)
    await engine.model.until(lambda: len(engine.model.calls) == 3)
    await cancel(worker.database, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"
    await engine.model.until(lambda: [call.disconnected for call in engine.model.calls] == [False, True, True])
    calls = await rows_of(database, tables.calls, run_id)
    assert [call["status"] for call in calls] == ["answered", "cancelled", "cancelled"]


async def test_a_cancel_of_another_process_that_cannot_notify_is_seen_by_polling(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({"executor": hang()}))
    engine.worker()
    run_id = await make_run(database, plan=ONE)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    await cancel(database, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"


@pytest.mark.parametrize("seat", ["planner", "synthesizer"])
async def test_a_run_is_cancelled_while_it_waits_for_an_answer_as_a_whole(
    engine: Engine, database: Database, seat: str
) -> None:
    engine.model.begin(script({seat: hang()}))
    worker = engine.worker()
    run_id = await make_run(database)
    await engine.model.until(lambda: len(engine.model.by_seat(seat)) == 1)
    await cancel(worker.database, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"
    await engine.model.until(lambda: engine.model.by_seat(seat)[0].disconnected)


@pytest.mark.parametrize("seat", ["planner", "executor", "synthesizer"])
async def test_a_run_is_cancelled_while_it_waits_to_try_again(engine: Engine, database: Database, seat: str) -> None:
    engine.model.begin(script({seat: waits(30)}))
    worker = engine.worker()
    run_id = await make_run(database)
    await engine.model.until(lambda: any(call.answered_at for call in engine.model.by_seat(seat)))
    await cancel(worker.database, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"


async def test_a_run_is_cancelled_while_it_waits_for_a_place(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    worker = engine.worker(llm_max_concurrency=1)
    first = await make_run(database, plan=ONE)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    waiting = await make_run(database, plan=ONE)
    await engine.until(lambda run: run.status == "running", waiting)
    await cancel(worker.database, waiting)
    assert (await engine.ended(waiting)).status == "cancelled"
    gates.open("a")
    assert (await engine.ended(first)).status == "succeeded"


async def test_a_cancel_that_comes_with_a_long_wait_is_not_put_off(engine: Engine, database: Database) -> None:
    """The commit that stores the wait tells of the cancel; the run is not given back to wait with it."""
    gates = Gates(lambda call: waits(3_600))
    engine.model.begin(script({"executor": gates}))
    engine.worker()
    run_id = await make_run(database, plan=ONE)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    async with database.write() as connection:  # without a word: only that commit can tell of it in time
        await request_cancel(connection, T, run_id)
    gates.open("a")
    run = await engine.until(lambda run: run.finished_at is not None or not run.held, run_id)
    assert run.status == "cancelled"


async def test_a_call_is_not_sent_when_its_own_commit_tells_of_a_cancel(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    engine.worker()
    run_id = await make_run(database, plan={"a": [], "b": ["a"]})
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    async with database.write() as connection:  # without a word: only the commit that opens b's call tells of it
        await request_cancel(connection, T, run_id)
    gates.open("a", "b")
    assert (await engine.ended(run_id)).status == "cancelled"
    assert engine.model.order() == ["0.a"]


# --- waits


@pytest.mark.parametrize("seat", ["planner", "executor", "synthesizer"])
async def test_a_wait_longer_than_the_lease_gives_the_run_back_until_it_is_due(
    engine: Engine, database: Database, seat: str
) -> None:
    good = {"planner": plan_reply(DIAMOND), "executor": text("done"), "synthesizer": text("the answer")}[seat]
    engine.model.begin(script({seat if seat != "executor" else (seat, "a"): [waits(3_600), good]}))
    engine.worker()
    run_id = await make_run(database)
    await engine.until(lambda run: run.llm_calls > 0 and not run.held, run_id)
    row = await row_of(database, run_id)
    calls = await rows_of(database, tables.calls, run_id)
    assert abs(row["ready_at"] - calls[-1]["retry_at"]) < 1_000
    await due_now(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    tried = [call["try_number"] for call in await rows_of(database, tables.calls, run_id) if call["seat"] == seat]
    assert tried[:2] == [1, 2]
    assert (await row_of(database, run_id))["takeovers"] == 0


async def test_a_worker_does_not_take_its_own_runs_from_itself(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage longer than the lease it must go on with what it has, not throw it away."""
    gates = Gates()
    engine.model.begin(script({("executor", "a"): gates}))
    worker = engine.worker()
    run_id = await make_run(database, plan=ONE)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    looks_for_no_more = asyncio.Event()

    def no_room() -> int:
        looks_for_no_more.set()
        return 0

    with monkeypatch.context() as patched:
        patched.setattr(worker.worker, "_room", no_room)
        worker.worker._work_may_be_due.set()
        await looks_for_no_more.wait()  # a claim under way would find the lease run out a moment after its renewal
        await expire(database, run_id)
        worker.worker._renewed_at = -1e9
    await engine.ended(await make_run(database, plan={"other": []}))  # which it has claimed since
    row = await row_of(database, run_id)
    assert (row["epoch"], row["takeovers"]) == (1, 0)
    gates.open("a")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert len(engine.model.calls_for("0.a")) == 1


async def test_a_call_longer_than_the_lease_is_made_once(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    for _ in range(2):
        engine.worker(lease_seconds=4)
    run_id = await make_run(database, plan=ONE)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    first_end = (await row_of(database, run_id))["ready_at"]
    async with asyncio.timeout(WITHIN_SECONDS):
        while (await row_of(database, run_id))["ready_at"] < first_end + 4_500:
            await database.ping()
    gates.open("a")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert len(engine.model.calls) == 1


# --- drain


async def test_draining_lets_calls_in_flight_finish_and_hands_the_run_on(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    first = engine.worker()
    run_id = await make_run(database, plan=DIAMOND)
    gates.open("a")
    await engine.model.until(lambda: len(engine.model.calls) == 3)
    draining = asyncio.create_task(first.drain())
    await engine.until_true(lambda: all(driver._draining for driver in first.worker._drivers.values()))
    gates.open("b", "c")
    await draining
    await check(database, run_id)
    run, row = await the_run(database, run_id), await row_of(database, run_id)
    assert (run.status, run.progress["succeeded"], row["lease_token"]) == ("running", 3, None)
    gates.open("d")
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert sorted(call.task_key for call in engine.model.by_seat("executor") if call.task_key) == [
        f"0.{task}" for task in "abcd"
    ]
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [(attempt["number"], attempt["status"]) for attempt in attempts] == [(1, "succeeded")] * 4
    assert (await row_of(database, run_id))["takeovers"] == 0


async def test_calls_that_outlast_the_grace_are_cut_and_made_again_by_the_next_worker(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "b"): [hang(), text("done")]}))
    first = engine.worker(drain_seconds=0.1)
    run_id = await make_run(database, plan=DIAMOND)
    await engine.until(lambda run: run.progress["succeeded"] == 2, run_id)
    await first.drain()
    assert (await row_of(database, run_id))["lease_token"] is None
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert len(engine.model.calls_for("0.b")) == 2
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [(attempt["number"], attempt["status"]) for attempt in attempts] == [(1, "succeeded")] * 4


async def test_draining_hands_back_runs_that_wait(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates, "planner": waits(30)}))
    worker = engine.worker(llm_max_concurrency=1)
    for_an_answer = await make_run(database, plan=ONE)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    for_a_place = await make_run(database, plan=ONE)
    await engine.until(lambda run: run.status == "running", for_a_place)
    draining = asyncio.create_task(worker.drain())
    await engine.until_true(lambda: all(driver._draining for driver in worker.worker._drivers.values()))
    gates.open("a")
    await draining
    rows = [await row_of(database, run_id) for run_id in (for_an_answer, for_a_place)]
    assert [(row["status"], row["lease_token"]) for row in rows] == [("succeeded", None), ("running", None)]
    engine.worker()
    assert (await engine.ended(for_a_place)).status == "succeeded"
    assert len(engine.model.calls) == 2


async def test_a_run_with_a_long_wait_keeps_it_through_a_drain(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): waits(30)}))
    worker = engine.worker()
    run_id = await make_run(database, plan=ONE)
    await engine.until(lambda run: run.progress["retrying"] == 1, run_id)
    await worker.drain()
    row, (task,) = await row_of(database, run_id), await rows_of(database, tables.tasks, run_id)
    assert row["lease_token"] is None
    assert abs(row["ready_at"] - task["next_attempt_at"]) < 1_000


async def test_draining_while_nothing_runs_ends_at_once(engine: Engine) -> None:
    await engine.worker().drain()


async def test_a_worker_keeps_more_leases_than_one_statement_names(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.worker._AT_ONCE", 2)
    gates = Gates()
    engine.model.begin(script({("executor", "a"): gates}))
    engine.worker(lease_seconds=0.6)
    runs = [await make_run(database, plan=ONE) for _ in range(5)]
    await engine.model.until(lambda: len(engine.model.calls) == 5)
    claimed = [(await row_of(database, run_id))["ready_at"] for run_id in runs]

    async def renewed(run_id: RunId, due: int) -> bool:
        return bool((await row_of(database, run_id))["ready_at"] > due)

    for run_id, due in zip(runs, claimed, strict=True):
        await until(partial(renewed, run_id, due), within_seconds=WITHIN_SECONDS)
    await cancel(database, runs[-1])
    assert (await engine.ended(runs[-1])).status == "cancelled"
    gates.open("a")
    for run_id in runs[:-1]:
        assert (await engine.ended(run_id)).status == "succeeded"
        assert (await row_of(database, run_id))["epoch"] == 1
