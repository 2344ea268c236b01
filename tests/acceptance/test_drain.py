"""A service that is told to stop: it hands its runs on at once, answers who waits, and ends well; nobody is charged."""

import asyncio
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from app.domain.ids import RunId
from app.storage.tables import runs as runs_table
from tests.databases import opened
from tests.invariants import check
from tests.scripted_model import Call, Reply, ScriptedModel, hang, script, text
from tests.service_process import Json, ServiceProcess, StartProcess, finished, start_run
from tests.sizes import sizes

ONE_TASK = {"tasks": [{"id": "a", "description": "Do a.", "depends_on": []}]}
RUNS = 10
SETTINGS = {"drain_seconds": 3, "lease_seconds": 120}
"""A lease so long that only what was handed back is ever taken up by another worker."""


class Answers:
    """On its first call a run of the goal `answered` waits until it may be answered, and one of `cut` for ever."""

    def __init__(self) -> None:
        self.may_be_answered = asyncio.Event()

    async def __call__(self, call: Call) -> Reply:
        if call.turn == 0 and "Goal of the plan: cut" in call.text:
            return hang()
        if call.turn == 0:
            await self.may_be_answered.wait()
        return text("result")


async def polls_of(client: httpx.AsyncClient, runs: list[Json]) -> list[asyncio.Task[httpx.Response]]:
    """Long polls that wait for the next change of these runs, and have been begun."""
    paths = [f"/runs/{run['id']}" for run in runs]
    tags = [(await client.get(path)).headers["ETag"] for path in paths]
    polls = [
        asyncio.create_task(client.get(path, headers={"If-None-Match": tag, "Prefer": "wait=60"}))
        for path, tag in zip(paths, tags, strict=True)
    ]
    await client.get("/readyz")  # answered after what was asked before it was begun
    return polls


async def idle_connection(service: ServiceProcess) -> asyncio.StreamReader:
    """A connection that has had its answer and is kept."""
    url = httpx.URL(service.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    await reader.readexactly(len(b'{"status":"ok"}'))
    return reader


async def turns_unready(client: httpx.AsyncClient) -> None:
    """Ask until it says that it is not ready; it must not refuse to speak before."""
    async with asyncio.timeout(30):
        while (answer := await client.get("/readyz")).status_code == 200:
            pass
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")


@pytest.mark.parametrize("drains", sizes(1, 100))
async def test_a_stopped_service_loses_nothing_and_charges_nobody(
    database_url: str, start_process: StartProcess, scripted_model: ScriptedModel, drains: int
) -> None:
    service = await start_process("serve", **SETTINGS)
    for _ in range(drains):
        answers = Answers()
        scripted_model.begin(script({"executor": answers}))
        async with service.client() as client:
            goals = ["cut" if number % 2 else "answered" for number in range(RUNS)]
            runs = [await start_run(client, goal=goal, plan=ONE_TASK) for goal in goals]
            await scripted_model.until(lambda: len(scripted_model.in_flight) == RUNS)
            peer = await start_process("serve", **SETTINGS)
            idle = await idle_connection(service)
            polls = await polls_of(client, runs * 2)
            ending = asyncio.create_task(service.terminate())
            await turns_unready(client)
            answers.may_be_answered.set()
            assert {answer.status_code for answer in await asyncio.gather(*polls)} <= {200, 304}
        assert await ending == 0
        assert await idle.read() == b""

        async with peer.client() as client:
            ended = [await finished(client, run["id"]) for run in runs]
            tasks = [(await client.get(f"/runs/{run['id']}/tasks/0.a")).json() for run in runs]
        calls = [scripted_model.of_run(run["id"]) for run in runs]
        assert [run["status"] for run in ended] == ["succeeded"] * RUNS
        assert [len(task["attempts"]) for task in tasks] == [1] * RUNS
        assert [len(of_run) for of_run in calls] == [2 if goal == "cut" else 1 for goal in goals]
        assert [of_run[0].disconnected for of_run in calls] == [goal == "cut" for goal in goals]
        async with opened(database_url) as database:
            for run in runs:
                await check(database, RunId(UUID(run["id"])))
            async with database.read() as connection:
                takeovers = sa.select(sa.func.max(runs_table.c.takeovers))
                assert (await connection.execute(takeovers)).scalar_one() == 0
        service = peer


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_requests_that_are_cut_at_the_end_do_not_flood_the_log(start_process: StartProcess) -> None:
    service = await start_process("serve")
    url = httpx.URL(service.url)
    begun = [await asyncio.open_connection(url.host, url.port) for _ in range(5)]
    for _, writer in begun:
        writer.write(b"POST /goals HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
    async with service.client() as client:
        await client.get("/readyz")  # answered after what was sent before it was read
    assert await service.terminate() == 0
    assert "Cancel 5 running task(s)" in service.log
    assert "Traceback" not in service.log
