"""What the API costs beside bare FastAPI: requests per second and CPU per request, on the same database.

The bare service is what everybody writes: one SQLAlchemy Core statement, and an answer of the same size. Both are
uvicorn processes with the same loop and parser, asked in turn by the same connections. Shown is Planwave's share of the
bare route's figure: the median of the pairs of rounds with its 95 % interval.

    python -m benchmarks.api [--database postgresql] [--rounds 15] [--requests 1500] [--connections 16]
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import sqlalchemy as sa
import uvloop
from fastapi import FastAPI, Response
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import create_async_engine

from app.storage.database import new_id
from app.storage.engines import begin_sqlite, make_sync_engine, parse_url, prepare_sqlite
from benchmarks.rig import cpu_seconds
from tests.databases import KINDS, Databases
from tests.service_process import ROOT, ServiceProcess, environment, free_port

_GOAL = "Write a report about the history of the bicycle"
_THINGS = sa.Table(
    "bare_things",
    sa.MetaData(),
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)


class NewThing(BaseModel):
    """What the bare service is sent."""

    goal: str


class Thing(BaseModel):
    """What it answers."""

    id: UUID
    version: int
    text: str


def bare() -> FastAPI:
    """The bare service; its database and the length of its answers' text come from the environment."""
    url = parse_url(os.environ["BARE_DATABASE_URL"])
    padding = "x" * int(os.environ["BARE_TEXT_LENGTH"])
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, pool_size=5, max_overflow=5)
        sa.event.listen(engine.sync_engine, "connect", prepare_sqlite)
        sa.event.listen(engine.sync_engine, "begin", begin_sqlite)
        reads = engine.execution_options(planwave_reads=True)  # no transaction, as ours: AUTOCOMMIT would cost more
    else:
        engine = create_async_engine(url, pool_size=10, max_overflow=0)
        reads = engine.execution_options(isolation_level="AUTOCOMMIT")
    writing = asyncio.Lock() if url.get_backend_name() == "sqlite" else None
    app = FastAPI()

    @app.get("/things/{thing_id}")
    async def get_thing(thing_id: UUID) -> Thing:
        async with reads.connect() as connection:
            row = (await connection.execute(sa.select(_THINGS).where(_THINGS.c.id == thing_id))).one()
        return Thing(id=row.id, version=row.version, text=row.text)

    @app.get("/unchanged/{thing_id}", status_code=304)
    async def get_unchanged_thing(thing_id: UUID) -> Response:
        async with reads.connect() as connection:
            version = await connection.scalar(sa.select(_THINGS.c.version).where(_THINGS.c.id == thing_id))
        return Response(status_code=304, headers={"ETag": f'"{version}"'})

    @app.post("/things", status_code=202)
    async def post_thing(new: NewThing) -> Thing:
        thing = Thing(id=new_id(), version=1, text=padding)
        async with AsyncExitStack() as stack:
            if writing is not None:  # SQLite's busy wait sleeps
                await stack.enter_async_context(writing)
            connection = await stack.enter_async_context(engine.begin())
            await connection.execute(sa.insert(_THINGS).values(id=thing.id, version=1, text=new.goal))
        return thing

    return app


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process that answers."""

    pid: int
    port: int


@asynccontextmanager
async def bare_service(database_url: str, text_length: int) -> AsyncIterator[Service]:
    """`bare` under uvicorn, with the settings of `planwave serve`."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "--factory", "benchmarks.api:bare", "--port", str(port)),
        *("--no-access-log", "--no-server-header", "--log-level", "warning"),
        env={**environment(), "BARE_DATABASE_URL": database_url, "BARE_TEXT_LENGTH": str(text_length)},
        cwd=ROOT,
    )
    try:
        async with httpx.AsyncClient() as client, asyncio.timeout(60):
            while process.returncode is None:
                try:
                    await client.get(f"http://127.0.0.1:{port}/openapi.json")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        yield Service(pid=process.pid, port=port)
    finally:
        process.terminate()
        await process.wait()


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """Sends the same request again and again while the round has some left; reads no more of an answer than it must."""

    def __init__(self, sent: bytes, expected: int, left: list[int], done: asyncio.Future[None]) -> None:
        self._sent, self._left, self._done = sent, left, done
        self._start = f"HTTP/1.1 {expected} ".encode()
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.lower().find(b"content-length:")
        if at >= 0 and len(body) < int(head[at + 15 :].split(b"\r\n", 1)[0]):
            return
        if not head.startswith(self._start):
            self._done.set_exception(RuntimeError(self._answer.decode()))
            return
        self._answer = b""
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("The service closed the connection."))

    def _next(self) -> None:
        if self._left[0] > 0:
            self._left[0] -= 1
            self._transport.write(self._sent)
        else:
            self._done.set_result(None)
            self._transport.close()


async def ask(service: Service, sent: bytes, expected: int, *, count: int, connections: int) -> tuple[float, float]:
    """Ask so many times; requests per second, and CPU milliseconds of the service per request."""
    loop = asyncio.get_running_loop()
    left = [count]
    cpu, began = cpu_seconds(service.pid), time.perf_counter()
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(connections)]
    for end in ends:
        protocol = partial(Connection, sent, expected, left, end)
        await loop.create_connection(protocol, "127.0.0.1", service.port)
    await asyncio.gather(*ends)
    return count / (time.perf_counter() - began), 1000 * (cpu_seconds(service.pid) - cpu) / count


def shown(values: Sequence[float]) -> str:
    """The median with its distribution-free 95 % interval (order statistics of the binomial)."""
    ordered, n = sorted(values), len(values)
    low = 0
    while low + 1 < n / 2 and 2 * sum(math.comb(n, i) for i in range(low + 2)) / 2**n <= 0.05:
        low += 1
    return f"{statistics.median(ordered):.2f} [{ordered[low]:.2f}, {ordered[n - 1 - low]:.2f}]"


async def measure(kind: str, *, rounds: int, count: int, connections: int) -> None:
    """Print the table of one kind of database."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(stack.enter_context(closing(Databases(directory))).fresh(kind))
        planwave = await stack.enter_async_context(
            ServiceProcess("serve", "--no-worker", directory=directory, settings={"database_url": url})
        )
        async with planwave.client() as client:
            posted = await client.post("/goals", json={"goal": _GOAL})
            answer = await client.get(posted.headers["Location"])
        run = answer.json()["id"]
        thing = {"id": str(new_id()), "version": 1, "text": ""}
        length = len(answer.content) - len(json.dumps(thing, separators=(",", ":")))
        engine = make_sync_engine(parse_url(url))
        with engine.begin() as connection:
            _THINGS.create(connection)
            connection.execute(
                sa.insert(_THINGS).values(**thing | {"id": UUID(str(thing["id"])), "text": "x" * length})
            )
        engine.dispose()
        ours = Service(pid=planwave.pid, port=httpx.URL(planwave.url).port or 0)
        theirs = await stack.enter_async_context(bare_service(url, length))
        body = json.dumps({"goal": _GOAL}).encode()
        get_run, get_thing = request("GET", f"/runs/{run}"), request("GET", f"/things/{thing['id']}")
        unchanged = request("GET", f"/runs/{run}", If_None_Match=answer.headers["ETag"])
        post_goal, post_thing = request("POST", "/goals", body), request("POST", "/things", body)
        pairs: dict[str, tuple[tuple[bytes, int], tuple[bytes, int]]] = {
            "GET /runs/{id}": ((get_run, 200), (get_thing, 200)),
            "304": ((unchanged, 304), (get_thing, 200)),
            "304, bare too": ((unchanged, 304), (request("GET", f"/unchanged/{thing['id']}"), 304)),
            "POST /goals": ((post_goal, 202), (post_thing, 202)),
        }
        size = len(answer.content)
        print(f"\n{kind}, {rounds} rounds of {count} requests on {connections} connections, answers of {size} bytes")
        print(f"{'':16}{'bare/s':>8}{'ours/s':>8}{'share':>20}{'bare CPU ms':>13}{'ours CPU ms':>13}{'share':>20}")
        for name, (our, their) in pairs.items():
            figures: list[tuple[float, float, float, float]] = []
            for turn in range(rounds + 1):
                sides = [(ours, our), (theirs, their)]
                measured = {}
                for service, asked in sides if turn % 2 else reversed(sides):
                    measured[service] = await ask(service, *asked, count=count, connections=connections)
                if turn:  # the first warms up
                    figures.append((*measured[ours], *measured[theirs]))
            our_rate, our_cpu, bare_rate, bare_cpu = (statistics.median(f[i] for f in figures) for i in range(4))
            print(
                f"{name:16}{bare_rate:8.0f}{our_rate:8.0f}{shown([f[0] / f[2] for f in figures]):>20}"
                f"{bare_cpu:13.3f}{our_cpu:13.3f}{shown([f[3] / f[1] for f in figures]):>20}",
                flush=True,
            )


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", choices=KINDS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--connections", type=int, default=16)
    arguments = parser.parse_args()
    for kind in KINDS if arguments.database is None else (arguments.database,):
        uvloop.run(measure(kind, rounds=arguments.rounds, count=arguments.requests, connections=arguments.connections))


if __name__ == "__main__":
    main()
