"""A run that may be what kills its workers is driven alone, and given up in the end; its neighbours are spared."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from app.domain.ids import RunId
from app.domain.status import StopRequest
from app.storage.database import Database
from tests.engine.conftest import WITHIN_SECONDS, Engine, Gates, WorkerHere
from tests.engine.test_retry import failed, retried
from tests.invariants import check
from tests.scripted_model import Plan, error, script, text
from tests.stored import claim_one, expire, make_run, row_of, set_run, the_run

ONE: Plan = {"a": []}
CHAIN: Plan = {"x": [], "y": ["x"], "z": ["y"]}


async def suspect(database: Database, plan: Plan = ONE, *, takeovers: int = 2) -> RunId:
    """A run that so many workers have died with, and that is due."""
    return await make_run(database, plan=plan, takeovers=takeovers)


async def abandoned(database: Database, *, takeovers: int) -> RunId:
    """A run whose last worker has just died too."""
    run_id = await make_run(database, plan=ONE)
    await claim_one(database)
    await set_run(database, run_id, takeovers=takeovers)
    await expire(database, run_id)
    return run_id


async def until_row(database: Database, run_id: RunId, **columns: object) -> None:
    """Return once the run's row has these."""

    def holds(row: Mapping[str, object]) -> bool:
        return all(row[name] == value for name, value in columns.items())

    async with asyncio.timeout(WITHIN_SECONDS):
        while not holds(await row_of(database, run_id)):
            await database.ping()


async def succeed(engine: Engine, runs: Sequence[RunId]) -> None:
    assert [(await engine.ended(run_id)).status for run_id in runs] == ["succeeded"] * len(runs)


# --- given up


async def test_a_run_that_is_taken_over_a_fifth_time_fails_and_the_others_go_on(
    engine: Engine, database: Database
) -> None:
    poison = await abandoned(database, takeovers=4)
    others = [await make_run(database, plan=CHAIN) for _ in range(3)]
    engine.worker()
    run = await failed(engine, poison, "worker_crash_loop")
    assert run.error is not None
    assert run.error["message"].startswith("5 workers in a row")
    assert f"POST /runs/{poison}/retry" in run.error["message"]
    await succeed(engine, others)
    assert not engine.model.of_run(str(poison))


async def test_a_run_that_is_given_up_while_its_client_wants_it_cancelled_is_cancelled(
    engine: Engine, database: Database
) -> None:
    poison = await abandoned(database, takeovers=4)
    await set_run(database, poison, stop_requested=StopRequest.CANCEL)
    engine.worker()
    run = await engine.ended(poison)
    assert (run.status, run.error) == ("cancelled", None)


async def test_a_run_that_is_taken_over_a_fourth_time_is_driven(engine: Engine, database: Database) -> None:
    run_id = await abandoned(database, takeovers=3)
    engine.worker()
    await succeed(engine, [run_id])


async def test_a_worker_with_room_for_one_run_goes_on_at_once_after_it_gave_one_up(
    engine: Engine, database: Database
) -> None:
    poison = await abandoned(database, takeovers=4)
    other = await make_run(database, plan=ONE)
    await set_run(database, poison, priority=1)
    engine.worker(worker_max_runs=1, poll_seconds=3_600)
    await succeed(engine, [other])


async def test_a_run_that_was_given_up_goes_on_when_it_is_retried(engine: Engine, database: Database) -> None:
    poison = await abandoned(database, takeovers=4)
    engine.worker()
    await failed(engine, poison, "worker_crash_loop")
    await retried(database, poison)
    await succeed(engine, [poison])


async def test_five_deaths_without_an_outcome_are_what_it_takes(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    run_id = await make_run(database, plan=ONE)
    for deaths in range(1, 6):
        worker = engine.worker()
        await engine.model.until(lambda deaths=deaths: len(engine.model.calls) == deaths)  # type: ignore[misc]
        await worker.die()
        await expire(database, run_id)
        await check(database, run_id)
    engine.worker()
    await failed(engine, run_id, "worker_crash_loop")
    assert len(engine.model.calls) == 5


# --- driven alone


async def test_what_was_claimed_with_a_suspect_is_handed_back_and_a_death_charges_only_the_suspect(
    engine: Engine, database: Database
) -> None:
    gates = Gates()
    engine.model.begin(script({("executor", "a"): gates}))
    alone = await suspect(database)
    others = [await make_run(database, plan=CHAIN) for _ in range(3)]
    worker = engine.worker()
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    for run_id in others:
        await until_row(database, run_id, lease_token=None, epoch=1)
    await worker.die()
    await expire(database, alone)
    rows = [await row_of(database, run_id) for run_id in (alone, *others)]
    assert [row["takeovers"] for row in rows] == [2, 0, 0, 0]
    assert engine.model.order() == ["0.a"]
    gates.open("a")
    engine.worker()
    await succeed(engine, [alone, *others])


async def test_no_other_run_gets_a_call_before_the_suspect_has_an_outcome(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({("executor", "a"): gates}))
    alone = await suspect(database)
    others = [await make_run(database, plan=CHAIN) for _ in range(3)]
    worker = engine.worker()
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    later = await make_run(worker.database, plan=CHAIN)  # whose announcement wakes the worker
    await until_row(database, others[-1], lease_token=None, epoch=1)
    gates.open("a")
    await succeed(engine, [alone, *others, later])
    answered_at = engine.model.calls_for("0.a")[0].answered_at
    assert answered_at is not None
    assert all(call.arrived_at > answered_at for call in engine.model.calls_for("0.x"))


async def test_other_workers_take_what_is_handed_back(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({("executor", "a"): gates}))
    alone = await suspect(database)
    others = [await make_run(database, plan=CHAIN) for _ in range(3)]
    engine.worker()
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    engine.worker()
    await succeed(engine, others)
    assert (await the_run(database, alone)).status == "running"
    gates.open("a")
    await succeed(engine, [alone])


async def in_flight_beside_a_suspect(engine: Engine, database: Database) -> tuple[WorkerHere, RunId, RunId]:
    """A worker in the middle of a call of the second run when it finds the first."""
    worker = engine.worker()
    neighbour = await make_run(database, plan=CHAIN)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    alone = await suspect(database)
    await engine.until_true(lambda: alone in worker.worker._drivers)
    assert worker.worker._drivers[neighbour]._draining
    return worker, alone, neighbour


async def test_calls_in_flight_come_back_before_the_suspect_begins_and_are_not_made_again(
    engine: Engine, database: Database
) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates, ("executor", "other"): text("done")}))
    _, alone, neighbour = await in_flight_beside_a_suspect(engine, database)
    elsewhere = engine.worker()
    await succeed(engine, [await make_run(database, plan={"other": []})])  # time enough for a suspect to begin
    await elsewhere.drain()
    assert (await the_run(database, alone)).status == "queued"
    gates.open("x")
    await engine.model.until(lambda: len(engine.model.calls) == 3)
    row = await row_of(database, neighbour)
    assert (row["lease_token"], row["progress"]["succeeded"], row["takeovers"]) == (None, 1, 0)
    gates.open("a", "y", "z")
    await succeed(engine, [alone, neighbour])
    assert engine.model.order()[:3] == ["0.x", "0.other", "0.a"]
    assert len(engine.model.calls_for("0.x")) == 1


async def test_a_death_while_a_suspect_waits_for_its_neighbours_is_not_charged_to_it(
    engine: Engine, database: Database
) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    worker, alone, neighbour = await in_flight_beside_a_suspect(engine, database)
    await worker.die()
    for run_id in (alone, neighbour):
        await expire(database, run_id)
    gates.open("x", "a", "y", "z")
    engine.worker()
    await engine.until_true(lambda: len(engine.model.calls_for("0.a")) == 1)
    rows = [await row_of(database, run_id) for run_id in (alone, neighbour)]
    assert rows[0]["takeovers"] in (0, 2)  # 0 once its call has come back
    await succeed(engine, [alone, neighbour])


async def test_a_worker_that_is_drained_while_a_suspect_waits_hands_both_back(
    engine: Engine, database: Database
) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    worker, alone, neighbour = await in_flight_beside_a_suspect(engine, database)
    draining = asyncio.create_task(worker.drain())
    await engine.until_true(lambda: worker.worker._drivers[alone]._draining)
    gates.open("x")
    await draining
    rows = [await row_of(database, run_id) for run_id in (alone, neighbour)]
    assert [(row["lease_token"], row["takeovers"]) for row in rows] == [(None, 2), (None, 0)]
    assert engine.model.order() == ["0.x"]


async def test_two_suspects_are_driven_one_after_the_other(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    first, second = await suspect(database), await suspect(database)
    engine.worker()
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    waiting = second if engine.model.calls[0].run_id == str(first) else first
    await until_row(database, waiting, lease_token=None, epoch=1, takeovers=2)
    gates.open("a")
    await succeed(engine, [first, second])
    one, other = engine.model.calls
    assert one.answered_at is not None
    assert (gates.most, other.arrived_at > one.answered_at) == (1, True)


# --- no longer a suspect


async def test_its_first_outcome_ends_the_suspicion(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({("executor", "y"): gates}))
    run_id = await suspect(database, CHAIN)
    other = await make_run(database, plan=ONE)
    engine.worker(poll_seconds=3_600)
    await engine.model.until(lambda: len(engine.model.calls_for("0.y")) == 1)
    await succeed(engine, [other])
    row = await row_of(database, run_id)
    assert (row["takeovers"], row["lease_token"] is None) == (0, False)
    gates.open("y")
    await succeed(engine, [run_id])


@pytest.mark.parametrize("request_", [StopRequest.CANCEL, StopRequest.PAUSE])
async def test_a_suspect_that_its_client_stops_holds_nobody_up(
    engine: Engine, database: Database, request_: StopRequest
) -> None:
    stopped, other = await suspect(database), await make_run(database, plan=ONE)
    await set_run(database, stopped, stop_requested=request_)
    engine.worker(poll_seconds=3_600)
    await succeed(engine, [other])
    assert not engine.model.of_run(str(stopped))


async def test_a_suspect_that_has_long_to_wait_holds_nobody_up(engine: Engine, database: Database) -> None:
    away = error(503, headers={"Retry-After": "3600"})
    engine.model.begin(script({("executor", "a"): away}))
    waiting = await make_run(database, plan=ONE)
    first = engine.worker()
    await engine.until(lambda run: run.llm_calls == 1 and not run.held, waiting)
    await first.drain()
    await set_run(database, waiting, takeovers=2, ready_at=0)
    other = await make_run(database, plan=CHAIN)
    engine.worker(poll_seconds=3_600)
    await succeed(engine, [other])
    row = await row_of(database, waiting)
    assert (row["takeovers"], row["lease_token"], len(engine.model.calls_for("0.a"))) == (2, None, 1)
