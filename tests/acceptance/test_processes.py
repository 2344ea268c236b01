"""The API and the worker as processes of their own, meeting in the database."""

import asyncio
from collections import Counter
from uuid import UUID

import pytest

from app.domain.ids import RunId
from tests.databases import opened
from tests.invariants import check
from tests.scripted_model import DIAMOND, ScriptedModel, hang, script
from tests.service_process import StartProcess, finished, start_run
from tests.sizes import sizes


async def test_a_worker_of_its_own_runs_what_the_api_took(
    start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    api = await start_process("serve", "--no-worker")
    async with api.client() as client:
        run = await start_run(client)
        assert run["status"] == "queued"
        await start_process("worker")
        assert (await finished(client, run["id"]))["result"] == "the answer"


async def test_a_cancel_reaches_calls_in_flight_in_another_process(
    start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    scripted_model.begin(script({"executor": hang()}))
    api = await start_process("serve", "--no-worker")
    await start_process("worker")
    async with api.client() as client:
        run = await start_run(client)
        await scripted_model.until(lambda: "0.a" in scripted_model.order())
        await client.post(f"/runs/{run['id']}/cancel")
        await scripted_model.until(lambda: scripted_model.calls_for("0.a")[0].disconnected)
        assert (await finished(client, run["id"]))["status"] == "cancelled"


@pytest.mark.parametrize("runs", sizes(30, 1_000))
async def test_two_services_with_workers_of_their_own_share_the_runs_and_call_for_each_task_once(
    database_url: str, start_process: StartProcess, scripted_model: ScriptedModel, runs: int
) -> None:
    services = await asyncio.gather(*(start_process("serve", worker_max_runs=runs // 4) for _ in range(2)))
    async with services[0].client() as one, services[1].client() as other:
        places = asyncio.Semaphore(30)

        async def posted_here_and_read_there(number: int) -> str:
            async with places:
                run_id: str = (await start_run((one, other)[number % 2]))["id"]
                ended = await finished((other, one)[number % 2], run_id)
                assert (ended["status"], ended["result"]) == ("succeeded", "the answer")
                return run_id

        ids = await asyncio.gather(*map(posted_here_and_read_there, range(runs)))
    made = Counter((call.run_id, call.task_key or call.seat) for call in scripted_model.calls)
    places_called = ["planner", *(f"0.{i}" for i in DIAMOND), "synthesizer"]
    assert made == {(run_id, place): 1 for run_id in ids for place in places_called}
    async with opened(database_url) as database:
        for run_id in ids:
            await check(database, RunId(UUID(run_id)))
