"""Clients that leave while they post a goal: its run is there and comes to an end, or was never there."""

import asyncio
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit
from uuid import UUID

import pytest

from app.domain.ids import RunId
from tests.databases import Databases, opened
from tests.invariants import check
from tests.scripted_model import Plan, ScriptedModel, script, tasks_of
from tests.service_process import StartProcess, ended, every, finished
from tests.sizes import sizes

SEED = 14
PLAN: Plan = {"a": []}
AT_ONCE = 20


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
def database_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """The database has little to do with it."""
    with databases.fresh(request.param) as url:
        yield url


def request_of(number: int) -> tuple[bytes, bytes]:
    """Headers and body of a POST of a goal that carries its number."""
    body = json.dumps(
        {
            "goal": "Find out",
            "plan": {"tasks": tasks_of(PLAN)},
            "metadata": {"number": str(number)},
            "options": {"synthesize": False},
        }
    ).encode()
    lines = ("POST /goals HTTP/1.1", "Host: planwave", "Content-Type: application/json", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode(), body


async def abandon(url: str, number: int) -> str:
    """Send it, or some of it, and leave; says how far it got."""
    chance = random.Random(f"{SEED} {number}")
    headers, body = request_of(number)
    place = chance.choice(("within the headers", "before the body", "within the body", "whole", "whole", "answered"))
    sent = {
        "within the headers": lambda: headers[: chance.randrange(len(headers))],
        "before the body": lambda: headers,
        "within the body": lambda: headers + body[: chance.randrange(1, len(body))],
    }.get(place, lambda: headers + body)()
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    if chance.random() < 0.5:  # a reset in place of an orderly end
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with suppress(ConnectionError):
        writer.write(sent)
        await writer.drain()
        if place == "whole":
            await asyncio.sleep(chance.choice((0, 0.001, 0.005, 0.02)))  # anywhere in what the service does with it
        elif place == "answered":
            await reader.readexactly(1)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return place


@pytest.mark.parametrize("requests", sizes(50, 1_000))
async def test_a_goal_whose_client_leaves_is_absent_or_comes_to_its_end(
    requests: int, database_url: str, start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    scripted_model.begin(script())
    service = await start_process("serve")
    at_once = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> str:
        async with at_once:
            return await abandon(service.url, number)

    places = await asyncio.gather(*map(one, range(requests)))
    async with service.client() as client:
        await ended(client, plan={"tasks": tasks_of(PLAN)}, metadata={"number": "last"})
        # The last one was asked for, and ended, after everything that the others had sent was there.
        runs = [await finished(client, run["id"]) async for run in every(client, "/runs")]

    made = Counter(run["metadata"]["number"] for run in runs)
    there = Counter(place for number, place in enumerate(places) if made[str(number)])
    print(f"\n{requests} requests left, seed {SEED}: of {Counter(places)} these were taken: {there}")  # noqa: T201
    assert {run["status"] for run in runs} == {"succeeded"}
    assert max(made.values()) == 1
    assert there.keys() <= {"whole", "answered"}
    assert there["answered"] == Counter(places)["answered"]
    assert there["whole"], "none was taken whose client had left"
    assert Counter(call.run_id for call in scripted_model.calls) == {run["id"]: 1 for run in runs}
    assert "request_failed" not in service.log
    async with opened(database_url) as database:
        for run in runs:
            await check(database, RunId(UUID(run["id"])))
