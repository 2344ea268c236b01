"""Endpoints that stall or cannot be reached at all: every call has its end."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import UUID

import pytest
import sqlalchemy as sa

from app.storage import tables
from tests.acceptance.looks import calls_at, looked_at, run_at
from tests.databases import Databases, opened
from tests.faults import SEATS, STALLS, Fault, staged, well_after
from tests.scripted_model import Call, Reply, ScriptedModel, hang
from tests.service_process import StartProcess, finished

pytestmark = pytest.mark.usefixtures("runs_hold_together")


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """One kind of database is enough: these tests start many processes, and what they store others store too."""
    with databases.fresh("sqlite") as url:
        yield url


# Stalls.


async def test_whatever_stalls_is_cut_at_its_time_limit(
    start_process: StartProcess, scripted_model: ScriptedModel, database_url: str
) -> None:
    def stalled(call: Call) -> Reply:
        return staged(STALLS[call.body["model"]])(call)

    scripted_model.begin(stalled)
    service = await start_process(llm_timeout_seconds=0.7)
    async with service.client() as client, asyncio.TaskGroup() as group:

        async def cut(name: str, how: str, seat: str) -> None:
            end = STALLS[name].ways[how][seat]
            run = await run_at(seat, how, client, model=name, task_timeout_seconds=1)
            run = await finished(client, run["id"])
            calls = calls_at(seat, run, scripted_model)
            code = run["error"] and run["error"]["code"]
            assert (name, how, seat, code, len(calls)) == (name, how, seat, end.code, end.calls)
            assert all(call.disconnected for call in (calls if end.code else calls[:-1]))
            await looked_at(client, run)

        for name, fault in STALLS.items():
            for how, ends in fault.ways.items():
                for seat in ends:
                    group.create_task(cut(name, how, seat))


# Endpoints that cannot be reached.


async def test_an_endpoint_that_refuses_connections_fails_the_run_and_a_retry_goes_on(
    start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    def shuts(call: Call) -> Reply:
        scripted_model.shut()
        return hang()

    scripted_model.begin(staged(Fault(replies=[shuts], once=well_after(1), always={})))
    service = await start_process()
    async with service.client() as client:
        for seat in SEATS:
            run = await finished(client, (await run_at(seat, "once", client))["id"])
            assert (run["status"], run["error"]["code"]) == ("failed", "llm_unavailable")
            await looked_at(client, run)
            await scripted_model.open()
            assert (await client.post(f"/runs/{run['id']}/retry")).status_code == 202
            assert (await finished(client, run["id"]))["status"] == "succeeded"
            assert len(scripted_model.calls_for("0.a", run_id=run["id"])) == 1


async def test_an_endpoint_that_is_back_in_time_costs_nothing_but_time(
    start_process: StartProcess, scripted_model: ScriptedModel, database_url: str
) -> None:
    def shuts(call: Call) -> Reply:
        scripted_model.shut()
        return hang()

    scripted_model.begin(staged(Fault(replies=[shuts], once=well_after(1), always={})))
    service = await start_process(llm_backoff_base_seconds=0.2, llm_backoff_cap_seconds=2)
    refused = sa.select(sa.func.count()).where(tables.calls.c.status == "failed", tables.calls.c.try_number > 1)
    async with service.client() as client, opened(database_url) as database:
        for seat in SEATS:
            run = await run_at(seat, "once", client)
            async with asyncio.timeout(60):
                while True:
                    async with database.read() as connection:
                        of_run = refused.where(tables.calls.c.run_id == UUID(run["id"]))
                        if (await connection.execute(of_run)).scalar_one():
                            break
                    await asyncio.sleep(0.02)
            await scripted_model.open()
            assert (await finished(client, run["id"]))["status"] == "succeeded"


@pytest.fixture
async def no_tls() -> AsyncIterator[str]:
    """Where something listens that is not what `https` expects."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"220 ready\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1")
    yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    server.close()


async def test_a_wrong_address_fails_every_run_and_once_it_is_right_a_retry_goes_on(
    start_process: StartProcess, scripted_model: ScriptedModel, no_tls: str
) -> None:
    scripted_model.begin(staged(Fault(replies=[hang()], once=well_after(1), always={})))
    service = await start_process(drain_seconds=0)
    async with service.client() as client:
        runs = [await run_at(seat, "once", client) for seat in SEATS]
    there = {(run["id"], seat) for run, seat in zip(runs, SEATS, strict=True)}
    await scripted_model.until(lambda: {(call.run_id, call.seat) for call in scripted_model.in_flight} == there)
    await service.terminate()
    for settings in ({"llm_base_url": "http://planwave.invalid/v1"}, {"llm_base_url": no_tls}, {}):
        service = await start_process(**settings)
        async with service.client() as client:
            for run in runs:
                await client.post(f"/runs/{run['id']}/retry")
            for run in runs:
                over = await finished(client, run["id"])
                code = over["error"] and over["error"]["code"]
                assert (settings, code) == (settings, "llm_unavailable" if settings else None), over["error"]
                await looked_at(client, run)
        await service.terminate()
    assert all(len(scripted_model.calls_for("0.a", run_id=run["id"])) == 1 for run in runs)
