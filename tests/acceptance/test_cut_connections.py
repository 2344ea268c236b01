"""Connections to PostgreSQL that are cut, idle or in the middle of a transaction."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from app.domain.ids import RunId
from app.storage.database import Database, new_id
from app.storage.listen import listen
from tests.acceptance.traffic import Traffic
from tests.databases import Databases, opened
from tests.invariants import check
from tests.scripted_model import Call, Plan, Reply, ScriptedModel, script, tasks_of, text
from tests.service_process import ServiceProcess, against, every

SEED = 6
CUTS = 500
CLIENTS = 12
POOL_SIZE = 4
PLAN: Plan = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
OURS = "datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
BROKEN = ("driver broke", "worker broke", "request_failed", "commit failed")


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    """Of a database that only PostgreSQL can give."""
    with databases.fresh("postgresql") as url:
        yield url


@pytest.fixture
async def operator(url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """Looks at the server's connections and cuts them; its own is not among them."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        yield connection


async def cut_all(operator: psycopg.AsyncConnection) -> int:
    cut = await operator.execute(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {OURS}".encode())
    return cut.rowcount


async def test_connections_cut_while_they_are_idle_are_replaced_without_a_fault(
    url: str, operator: psycopg.AsyncConnection
) -> None:
    async with opened(url) as database:
        at_once = asyncio.Barrier(2)

        async def ask() -> None:
            async with database.read() as connection, asyncio.timeout(60):
                await at_once.wait()  # so that each has a connection of its own
                await connection.exec_driver_sql("SELECT 1")

        await asyncio.gather(ask(), ask())
        assert await cut_all(operator) == 2
        await asyncio.gather(ask(), ask())


async def test_a_listener_whose_connection_is_cut_listens_again(
    url: str, operator: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.listen._RECONNECT_SECONDS", 0.05)
    async with opened(url) as here, opened(url) as there:
        heard: asyncio.Queue[UUID] = asyncio.Queue()
        there.on_request(heard.put_nowait)
        listening = asyncio.create_task(listen(there))
        await hears(here, heard)
        assert await cut_all(operator) >= 1
        while not heard.empty():
            heard.get_nowait()
        await hears(here, heard)
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening


async def hears(here: Database, heard: asyncio.Queue[UUID]) -> None:
    """Announce until it is heard: nothing says from when on it listens."""
    async with asyncio.timeout(60):
        while heard.empty():
            async with here.write() as connection:
                await here.announce(connection, new_id())
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    heard.put_nowait(await heard.get())


class Scissors:
    """Cuts random connections of a service, preferring such as are in the middle of something."""

    def __init__(self, operator: psycopg.AsyncConnection, seed: int) -> None:
        self._operator = operator
        self._chance = random.Random(seed)
        self.cuts: Counter[str] = Counter()
        """By what the connection was doing."""

    async def cut(self, times: int, traffic: Traffic) -> None:
        """So many times, the service having answered something after each."""
        while self.cuts.total() < times:
            before = len(traffic.answers)
            found = await self._operator.execute(f"SELECT pid, state FROM pg_stat_activity WHERE {OURS}".encode())
            backends = [(pid, state) for pid, state in await found.fetchall() if state is not None]
            busy = [backend for backend in backends if backend[1] != "idle"]
            if busy and self._chance.random() < 0.7:
                backends = busy
            if not backends:
                continue
            pid, state = self._chance.choice(backends)
            cut = await self._operator.execute("SELECT pg_terminate_backend(%s)", [pid])
            if await cut.fetchone() == (True,):
                self.cuts[state] += 1
            await asyncio.sleep(self._chance.uniform(0, 0.05))  # the next anywhere between two answers
            await traffic.until_answers(before + 1)


def slow(call: Call) -> Reply:
    return text(f"result of {call.task_key}").after(random.Random(f"{call.run_id} {call.task_key}").uniform(0, 0.2))


@pytest.mark.soak
async def test_connections_cut_at_random_cost_no_failure_no_outcome_and_no_connection(
    url: str, operator: psycopg.AsyncConnection, scripted_model: ScriptedModel, tmp_path: Path
) -> None:
    scripted_model.begin(script({"executor": slow}))
    settings = {**against(url, scripted_model), "database_pool_size": POOL_SIZE}
    async with (
        ServiceProcess("serve", directory=tmp_path, settings=settings) as service,
        service.client() as client,
        asyncio.timeout(3_600),
    ):
        traffic = Traffic(client)
        scissors = Scissors(operator, SEED)
        cutting = asyncio.create_task(scissors.cut(CUTS, traffic))

        async def ask_on(number: int) -> list[str]:
            """Runs one after the other, for as long as connections are cut."""
            runs: list[str] = []
            while not cutting.done():
                key = f"goal {number}.{len(runs)}"
                run = await traffic.run_to_its_end(key, goal="Find out", plan={"tasks": tasks_of(PLAN)})
                assert (run["status"], run["result"]) == ("succeeded", "the answer"), run
                runs.append(run["id"])
            return runs

        runs = [run for of_one in await asyncio.gather(*map(ask_on, range(CLIENTS))) for run in of_one]
        await cutting
        # Had connections been lost to the pool, these would wait for each other's.
        await asyncio.gather(*(traffic.ask("GET", "/runs") for _ in range(4 * POOL_SIZE)))
        listed = [run["id"] async for run in every(client, "/runs")]
        held = await (await operator.execute(f"SELECT pid FROM pg_stat_activity WHERE {OURS}".encode())).fetchall()

    left = await (await operator.execute(f"SELECT pid FROM pg_stat_activity WHERE {OURS}".encode())).fetchall()
    print(  # noqa: T201 - soak shows it
        f"\n{scissors.cuts.total()} cuts ({dict(scissors.cuts)}), seed {SEED}: {len(traffic.answers)} answers, "
        f"{traffic.refused} of them 503; {traffic.replayed} goals taken without an answer; {len(runs)} runs; "
        f"{len(held)} connections at the end, {len(left)} after it"
    )
    assert scissors.cuts["active"] + scissors.cuts["idle in transaction"] >= CUTS / 20
    assert sorted(listed) == sorted(set(runs))
    assert not [word for word in BROKEN if word in service.log]
    assert len(held) <= POOL_SIZE + 2  # the writer's and the listener's
    assert not left
    made = Counter((call.run_id, call.task_key or call.seat) for call in scripted_model.calls)
    assert made == {(run, what): 1 for run in runs for what in (*(f"0.{i}" for i in PLAN), "synthesizer")}
    async with opened(url) as database:
        for run in runs:
            await check(database, RunId(UUID(run)))
