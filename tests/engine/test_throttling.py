"""An endpoint that wants to be left alone is left alone by all, and waiting for it, or for a budget, costs nothing."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from app.domain.ids import RunId
from app.domain.status import RunStatus
from app.domain.walk import Walk
from app.storage import tables
from app.storage.database import Database
from app.storage.steering import request_cancel
from tests.engine.conftest import Engine, Gates, WorkerHere
from tests.scripted_model import Answer, Call, Plan, Reply, error, hang, script, text
from tests.stored import T, expire, make_run, row_of, rows_of

FIFTY: Plan = {f"{number:02}": [] for number in range(50)}
PAIR: Plan = {"a": [], "b": []}


def too_many(seconds: float | None = None) -> Reply:
    """A 429, with or without a word on how long to wait."""
    return error(429, headers={} if seconds is None else {"Retry-After": str(seconds)})


class Turns:
    """How often walks were asked what is next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        asked = Walk.next

        def counted(walk: Walk, *arguments: Any) -> Any:
            self.count += 1
            return asked(walk, *arguments)

        monkeypatch.setattr(Walk, "next", counted)

    async def while_waiting(self, engine: Engine, rounds: int = 50) -> int:
        """How often while the database was looked at so many times, which any loop that spins would outrun."""
        before = self.count
        for _ in range(rounds):
            await engine.database.ping()
            await asyncio.sleep(0)
        return self.count - before


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """Counted from the start of the test."""
    return Turns(monkeypatch)


async def cancelled(engine: Engine, *run_ids: RunId) -> None:
    for run_id in run_ids:
        async with engine.database.write() as connection:
            await request_cancel(connection, T, run_id)
    for run_id in run_ids:
        assert (await engine.ended(run_id)).status == "cancelled"


def places_of(worker: WorkerHere) -> Any:
    return worker.worker._shop.places


# --- one for all


async def test_after_a_429_no_other_task_of_the_run_is_sent_before_its_time(engine: Engine, database: Database) -> None:
    gates = Gates(lambda call: too_many(1) if call.turn == 0 and call.task_id == "00" else text("done"))
    engine.model.begin(script({"executor": gates}))
    gates.open(*FIFTY)
    engine.worker()
    run_id = await make_run(database, plan=FIFTY, max_parallel=1)
    assert (await engine.ended(run_id)).status == "succeeded"
    told, *later = engine.model.by_seat("executor")
    assert told.answered_at is not None
    assert len(later) == 50
    assert min(call.arrived_at for call in later) >= told.answered_at + 0.8  # clocks are set between


async def test_fifty_tasks_do_not_hammer_an_endpoint_together(engine: Engine, database: Database) -> None:
    """Those in flight may all be told; nothing else is sent until the wait is over."""
    opens: list[float] = []

    def reply(call: Call) -> Reply:
        opens.append(call.arrived_at + 1)
        return too_many(1) if call.arrived_at < opens[0] else text("done")

    engine.model.begin(script({"executor": reply}))
    engine.worker(llm_max_concurrency=10)
    run_id = await make_run(database, plan=FIFTY, max_parallel=50)
    assert (await engine.ended(run_id)).status == "succeeded"
    early = [call for call in engine.model.by_seat("executor") if call.arrived_at < opens[0]]
    assert len(early) <= 10
    assert len(engine.model.by_seat("executor")) == 50 + len(early)


async def test_the_other_runs_of_a_process_are_held_off_no_longer_than_the_cap(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "told"): too_many(3_600)}))
    engine.worker(llm_backoff_cap_seconds=0.5)
    told = await make_run(database, plan={"told": []})
    await engine.until(lambda run: run.progress["retrying"] == 1, told)
    other = await make_run(database, plan={"b": []})
    assert (await engine.ended(other)).status == "succeeded"
    ((first,), (second,)) = engine.model.calls_for("0.told"), engine.model.calls_for("0.b")
    assert first.answered_at is not None
    assert second.arrived_at >= first.answered_at + 0.4  # clocks are set between
    await cancelled(engine, told)


async def test_the_runs_of_another_model_are_not_held_off(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "told"): too_many(3_600)}))
    engine.worker(llm_backoff_cap_seconds=3_600)
    told = await make_run(database, plan={"told": []})
    await engine.until(lambda run: run.progress["retrying"] == 1, told)
    other = await make_run(database, plan={"b": []}, model="another")
    assert (await engine.ended(other)).status == "succeeded"
    await cancelled(engine, told)


async def test_a_429_without_a_word_does_not_shorten_what_another_has_asked_for(
    engine: Engine, database: Database
) -> None:
    gates = Gates(lambda call: too_many(3_600) if call.task_id == "a" else too_many())
    engine.model.begin(script({"executor": gates}))
    engine.worker(lease_seconds=2)
    run_id = await make_run(database, plan={task: [] for task in "abcd"}, max_parallel=2)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    gates.open("a")
    await engine.until(lambda run: run.progress["retrying"] == 1, run_id)
    gates.open("b")
    released = await engine.until(lambda run: run.progress["retrying"] == 2 and not run.held, run_id)
    assert engine.model.order() == ["0.a", "0.b"]
    await expire(database, run_id)  # nor for whoever takes the run up before its time
    await engine.until(lambda run: not run.held and run.version > released.version, run_id)
    assert engine.model.order() == ["0.a", "0.b"]
    await cancelled(engine, run_id)


@pytest.mark.parametrize("seat", ["planner", "executor", "recovery", "synthesizer"])
async def test_a_run_that_can_only_wait_for_its_endpoint_is_released(
    engine: Engine, database: Database, seat: str
) -> None:
    places: Mapping[str | tuple[str, str], Answer] = {("executor", "a"): text(""), seat: too_many(3_600)}
    engine.model.begin(script(places if seat == "recovery" else {seat: too_many(3_600)}, plan=PAIR))
    engine.worker(lease_seconds=2)
    run_id = await make_run(database, max_attempts=1, on_failure="auto")
    await engine.model.until(lambda: bool(engine.model.by_seat(seat)))
    await engine.until(lambda run: run.status in (RunStatus.PLANNING, RunStatus.RUNNING) and not run.held, run_id)
    row, last = await row_of(database, run_id), (await rows_of(database, tables.calls, run_id))[-1]
    assert row["lease_token"] is None
    assert last["retry_at"] - last["finished_at"] >= 3_600_000
    assert abs(row["ready_at"] - last["retry_at"]) < 60_000
    await cancelled(engine, run_id)


async def test_the_next_worker_leaves_an_endpoint_alone_that_asked_the_last_one(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "a"): too_many(3_600)}))
    first = engine.worker()
    run_id = await make_run(database, plan=PAIR, max_parallel=1)
    await engine.until(lambda run: run.progress["retrying"] == 1, run_id)
    await first.die()
    version = (await row_of(database, run_id))["version"]
    await expire(database, run_id)
    engine.worker(lease_seconds=2)
    await engine.until(lambda run: not run.held and run.version > version, run_id)
    assert engine.model.order() == ["0.a"]
    await cancelled(engine, run_id)


# --- slow start


async def test_a_burst_of_429s_halves_the_width_once_and_answers_bring_it_back(
    engine: Engine, database: Database
) -> None:
    burst, again = Gates(lambda call: too_many()), Gates()
    engine.model.begin(script({"executor": lambda call: (again if call.turn else burst)(call)}))
    worker = engine.worker(llm_max_concurrency=8)
    plan: Plan = {f"{number}": [] for number in range(8)}
    run_id = await make_run(database, plan=plan, synthesize=False)
    await engine.model.until(lambda: len(engine.model.in_flight) == 8)
    burst.open(*plan)
    await engine.until(lambda run: run.progress["retrying"] + run.progress["running"] == 8, run_id)
    await engine.until_true(lambda: again.most == 4)
    assert (places_of(worker)._allowed, len(engine.model.calls)) == (4, 12)
    again.open(*plan)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert again.most < 8
    quick = Gates()
    quick.open(*FIFTY)
    engine.model.begin(script({"executor": quick}))
    assert (await engine.ended(await make_run(database, plan=FIFTY, synthesize=False))).status == "succeeded"
    assert places_of(worker)._allowed == 8
    wide = Gates()
    engine.model.begin(script({"executor": wide}))
    last = await make_run(database, plan=plan, synthesize=False)
    await engine.model.until(lambda: len(engine.model.in_flight) == 8)
    wide.open(*plan)
    assert (await engine.ended(last)).status == "succeeded"


# --- waiting costs nothing


async def test_a_throttled_run_waits_without_turning(engine: Engine, database: Database, turns: Turns) -> None:
    engine.model.begin(script({"executor": too_many(20)}))
    engine.worker(llm_backoff_cap_seconds=20)
    runs = [await make_run(database, plan=FIFTY, max_parallel=5) for _ in range(3)]
    for run_id in runs:
        await engine.until(lambda run: run.status is RunStatus.RUNNING, run_id)
    await engine.model.until(lambda: not engine.model.in_flight)
    await engine.until(lambda run: run.progress["running"] == 0, runs[0])
    assert await turns.while_waiting(engine) <= 5
    assert turns.count < 60
    await cancelled(engine, *runs)


async def test_a_run_whose_budget_has_no_room_until_a_call_ends_waits_without_turning(
    engine: Engine, database: Database, turns: Turns
) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    engine.worker()
    run_id = await make_run(database, plan=FIFTY, budget={"max_llm_calls": 3}, max_parallel=50)
    await engine.model.until(lambda: len(engine.model.in_flight) == 3)
    assert await turns.while_waiting(engine) <= 2
    gates.open(*FIFTY)
    assert (await engine.ended(run_id)).status == "failed"
    assert turns.count < 20


async def test_a_run_with_two_limits_of_time_behind_it_waits_without_turning(
    engine: Engine, database: Database, turns: Turns
) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    engine.worker()
    run_id = await make_run(database, plan=PAIR, budget={"max_seconds": 10_000})
    await engine.model.until(lambda: len(engine.model.in_flight) == 2)
    assert await turns.while_waiting(engine) <= 2
    gates.open("a", "b")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert turns.count < 12


async def test_a_paused_run_that_waits_for_its_last_call_does_not_turn(
    engine: Engine, database: Database, turns: Turns
) -> None:
    engine.model.begin(script({"executor": hang()}))
    worker = engine.worker()
    run_id = await make_run(database, plan=PAIR, budget={"max_seconds": 10_000})
    await engine.model.until(lambda: len(engine.model.in_flight) == 2)
    async with worker.database.write() as connection:
        await connection.execute(tables.runs.update().where(tables.runs.c.id == run_id).values(stop_requested="pause"))
        await worker.database.announce(connection, run_id)
    await engine.until_true(lambda: worker.worker._drivers[run_id].is_stopping)
    assert await turns.while_waiting(engine) <= 5
    await cancelled(engine, run_id)


async def test_a_deadline_cuts_calls_without_turning(engine: Engine, database: Database, turns: Turns) -> None:
    """However long the connections take to close."""
    cuts = 0

    class Slow:
        """A model that takes its time to notice that nobody waits any more."""

        async def complete(self, request: Any) -> Any:
            nonlocal cuts
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.2)  # as a connection that is closed in good order
                cuts += 1

        async def close(self) -> None:
            pass

    engine.worker(model=Slow())
    run_id = await make_run(database, plan=PAIR, budget={"max_seconds": 0.3})
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], cuts) == ("deadline_exceeded", 2)
    assert turns.count < 12
