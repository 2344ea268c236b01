"""Tasks that act while their run is paused or their worker is drained: what is in flight comes back, nothing starts."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from app.domain.ids import RunId
from app.domain.status import StopRequest
from app.storage.database import Database
from app.storage.steering import request_pause, request_resume
from tests.engine.acting_runs import Shop, became, charge, decide, look, put
from tests.engine.conftest import Engine, WorkerHere
from tests.engine.recording_tools import Held
from tests.engine.troubled import is_asked
from tests.invariants import check
from tests.scripted_model import Reply, script, text
from tests.scripted_tools import calls, steps
from tests.stored import T, expire


@pytest.fixture
def shop(engine: Engine) -> Shop:
    return Shop(engine)


def acts(engine: Engine, *replies: Reply) -> None:
    """The model of task a takes these steps."""
    engine.model.begin(script({("executor", "a"): steps(*replies)}))


async def pausing(engine: Engine, worker: WorkerHere, run_id: RunId) -> None:
    """Asked to pause, and its driver knows."""
    async with worker.database.write() as connection:
        assert await request_pause(connection, T, run_id)
        await worker.database.announce(connection, run_id)
    await engine.until_true(lambda: worker.worker._drivers[run_id]._stop is StopRequest.PAUSE)


async def resumed(database: Database, run_id: RunId) -> None:
    async with database.write() as connection:
        assert await request_resume(connection, T, run_id)


async def test_a_pause_lets_calls_come_back_and_the_loop_goes_on_from_there(
    engine: Engine, database: Database, shop: Shop
) -> None:
    acts(engine, calls(look("before")), calls(put("x"), charge("y")), calls(look("after")), text("done"))
    held = Held()
    shop.put.does = shop.charge.does = held
    worker = shop.worker()
    run_id = await shop.run()
    await engine.until_true(lambda: len(shop.put.made) + len(shop.charge.made) == 2)
    await pausing(engine, worker, run_id)
    held.gate.set()
    await engine.until(lambda run: run.status == "paused", run_id)
    await check(database, run_id)
    assert len(engine.model.calls) == 2
    assert [status for _, status in await became(database, run_id)] == ["returned"] * 3
    await resumed(database, run_id)
    run = await engine.ended(run_id)
    assert (run.status, run.tool_calls, len(engine.model.calls)) == ("succeeded", 4, 4)
    assert (shop.look.texts, shop.put.texts, shop.charge.texts) == (["before", "after"], ["x"], ["y"])


async def test_a_pause_while_the_model_is_asked_keeps_the_calls_that_it_asks_for(
    engine: Engine, database: Database, shop: Shop
) -> None:
    gate = asyncio.Event()
    told = steps(calls(charge("x")), text("done"))

    async def reply(call: Any) -> Any:
        await gate.wait()
        return told(call)

    engine.model.begin(script({("executor", "a"): reply}))
    worker = shop.worker()
    run_id = await shop.run()
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    await pausing(engine, worker, run_id)
    gate.set()
    await engine.until(lambda run: run.status == "paused", run_id)
    await check(database, run_id)
    assert (await became(database, run_id), shop.charge.texts) == ([("charge", "asked")], [])
    await resumed(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert (len(engine.model.calls), shop.charge.texts) == (2, ["x"])


async def test_a_worker_that_dies_while_its_run_is_to_pause_leaves_what_it_did_to_a_person(
    engine: Engine, database: Database, shop: Shop
) -> None:
    acts(engine, calls(put("x"), charge("y")), text("done"))
    shop.put.does = shop.charge.does = Held()
    worker = shop.worker()
    run_id = await shop.run()
    await engine.until_true(lambda: len(shop.put.made) + len(shop.charge.made) == 2)
    await pausing(engine, worker, run_id)
    await worker.die()
    await expire(database, run_id)
    shop.does_as_told()
    shop.worker()
    await engine.until(lambda run: run.status == "paused", run_id)
    await check(database, run_id)
    assert (shop.put.texts, shop.charge.texts) == (["x"], ["y"])
    await resumed(database, run_id)
    await engine.until(is_asked, run_id)
    assert (shop.put.texts, shop.charge.texts) == (["x", "x"], ["y"])
    await decide(database, run_id, "supply", result="paid")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_a_drained_worker_records_what_comes_back_and_another_goes_on(
    engine: Engine, database: Database, shop: Shop
) -> None:
    acts(engine, calls(charge("x")), text("done"))
    held = Held()
    shop.charge.does = held
    worker = shop.worker()
    run_id = await shop.run()
    await engine.until_true(lambda: len(shop.charge.made) == 1)
    draining = asyncio.create_task(worker.drain())
    await engine.until_true(lambda: worker.worker._drivers[run_id]._draining)
    held.gate.set()
    await draining
    await check(database, run_id)
    assert (await became(database, run_id), len(engine.model.calls)) == ([("charge", "returned")], 1)
    shop.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert (len(engine.model.calls), shop.charge.texts) == (2, ["x"])


async def test_what_outlasts_a_drain_is_left_to_a_person(engine: Engine, database: Database, shop: Shop) -> None:
    acts(engine, calls(put("x"), charge("y")), text("done"))
    was_cut: list[str] = []

    async def does(arguments: Mapping[str, Any], _: Any) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            was_cut.append(arguments["text"])
        return "never"

    shop.put.does = shop.charge.does = does
    worker = shop.worker(drain_seconds=0.05)
    run_id = await shop.run()
    await engine.until_true(lambda: len(shop.put.made) + len(shop.charge.made) == 2)
    await worker.drain()
    assert sorted(was_cut) == ["x", "y"]
    await check(database, run_id)
    shop.does_as_told()
    shop.worker()
    await engine.until(is_asked, run_id)
    assert (shop.put.texts, shop.charge.texts) == (["x", "x"], ["y"])
    await decide(database, run_id, "supply", result="paid")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_calls_that_were_asked_for_and_not_sent_are_sent_by_the_next_worker(
    engine: Engine, database: Database, shop: Shop
) -> None:
    """A drained worker takes the model's answer in and starts none of what it asks for."""
    gate = asyncio.Event()
    told = steps(calls(charge("x"), put("y")), text("done"))

    async def reply(call: Any) -> Any:
        await gate.wait()
        return told(call)

    engine.model.begin(script({("executor", "a"): reply}))
    worker = shop.worker()
    run_id = await shop.run()
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    draining = asyncio.create_task(worker.drain())
    await engine.until_true(lambda: worker.worker._drivers[run_id]._draining)
    gate.set()
    await draining
    assert await became(database, run_id) == [("charge", "asked"), ("put", "asked")]
    await check(database, run_id)
    shop.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert (len(engine.model.calls), shop.charge.texts, shop.put.texts) == (2, ["x"], ["y"])
