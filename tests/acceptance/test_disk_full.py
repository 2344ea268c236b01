"""A database without room: what is there can be read, nothing is half written, and it goes on once there is room."""

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol
from uuid import UUID

import httpx
import psycopg
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from app.domain.ids import RunId
from app.main import create_app
from app.settings import Settings
from tests.databases import Databases, opened
from tests.invariants import check
from tests.scripted_model import Call, Plan, Reply, ScriptedModel, script, tasks_of, text
from tests.service_process import against, every, finished, start_run
from tests.sizes import sizes

SEED = 11
PLAN: Plan = {"a": [], "b": ["a"]}
LARGE = "word " * 4_000
LARGER = LARGE * 3
"""Where the one found no room, the other does not, however the pages fall."""
_FULL = """
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER no_room BEFORE INSERT ON goals EXECUTE FUNCTION no_room();
CREATE TRIGGER no_room BEFORE INSERT ON events EXECUTE FUNCTION no_room();
"""


class Disk(Protocol):
    """What the database lies on."""

    def fill(self, pages_left: int) -> None: ...

    def free(self) -> None: ...

    def check(self) -> None: ...


class SqliteDisk:
    """`PRAGMA max_page_count`, on every connection of this process as each of its transactions begins."""

    def __init__(self, url: str) -> None:
        self._file = url.removeprefix("sqlite:///")
        self._most: int | None = None

    def fill(self, pages_left: int) -> None:
        with closing(sqlite3.connect(self._file)) as looking:
            self._most = looking.execute("PRAGMA page_count").fetchone()[0] + pages_left

    def free(self) -> None:
        self._most = None

    def check(self) -> None:
        with closing(sqlite3.connect(self._file)) as looking:
            assert looking.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def limit(self, connection: sa.Connection) -> None:
        # Without a limit of ours it is SQLite's own.
        connection.exec_driver_sql(f"PRAGMA max_page_count = {self._most or 1_073_741_823}")


class PostgresDisk:
    """The server's own error, raised where it would be: by what adds rows."""

    def __init__(self, url: str) -> None:
        self._url = url

    def fill(self, pages_left: int) -> None:
        self._execute(_FULL)

    def free(self) -> None:
        self._execute("DROP FUNCTION no_room CASCADE")

    def check(self) -> None:
        pass

    def _execute(self, statements: str) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(statements.encode())


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
def database_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """On PostgreSQL the error is a made one, which shows less: for `make soak`."""
    with databases.fresh(request.param) as url:
        yield url


@pytest.fixture
def disk(database_url: str) -> Iterator[Disk]:
    if database_url.startswith("postgresql"):
        yield PostgresDisk(database_url)
        return
    disk = SqliteDisk(database_url)
    sa.event.listen(sa.Engine, "begin", disk.limit)
    yield disk
    sa.event.remove(sa.Engine, "begin", disk.limit)


@pytest.fixture
async def client(database_url: str, scripted_model: ScriptedModel) -> AsyncIterator[httpx.AsyncClient]:
    """Asks a service with a worker, in this process."""
    app = create_app(Settings(_env_file=None, **against(database_url, scripted_model)))  # type: ignore[arg-type]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service", timeout=120) as asking,
    ):
        yield asking


@contextmanager
def full(disk: Disk, pages_left: int) -> Iterator[None]:
    disk.fill(pages_left)
    try:
        yield
    finally:
        disk.free()


@pytest.mark.parametrize("times", sizes(5, 50))
async def test_a_full_disk_costs_clients_some_patience_and_nothing_else(
    times: int, database_url: str, disk: Disk, client: httpx.AsyncClient, scripted_model: ScriptedModel
) -> None:
    chance = random.Random(SEED)
    may_answer = asyncio.Event()

    async def gated(call: Call) -> Reply:
        await may_answer.wait()
        return text(f"result of {call.task_key}: {LARGER}")

    scripted_model.begin(script({"executor": gated}))
    accepted: list[str] = []
    for _ in range(times):
        may_answer.clear()
        with capture_logs() as logged:
            waiting = (await start_run(client, plan={"tasks": tasks_of(PLAN)}))["id"]
            accepted.append(waiting)
            await scripted_model.until(lambda: len(scripted_model.in_flight) == 1)
            with full(disk, pages_left=chance.randrange(12)):
                refused = await until_refused(client, accepted)
                assert (refused.json()["code"], refused.status_code) == ("storage_full", 503)
                assert int(refused.headers["Retry-After"]) >= 1
                assert (await client.get("/readyz")).json()["code"] == "storage_full"
                assert (await client.get(f"/runs/{waiting}")).json()["status"] == "running"
                may_answer.set()
                async with asyncio.timeout(60):
                    while not outcomes_wait(logged):
                        # An outcome that nobody can write down is told to nobody.
                        assert (await client.get(f"/runs/{waiting}/tasks/0.b")).json()["status"] == "pending"
            async with asyncio.timeout(60):
                while (await client.get("/readyz")).status_code != 200:
                    pass
            for run in accepted:
                assert (await finished(client, run))["status"] == "succeeded"
        accepted.append((await start_run(client, plan={"tasks": tasks_of(PLAN)}))["id"])
        assert (await finished(client, accepted[-1]))["status"] == "succeeded"

    assert sorted([run["id"] async for run in every(client, "/runs")]) == sorted(accepted)
    assert len([goal async for goal in every(client, "/goals")]) == len(accepted)
    made = Counter((call.run_id, call.task_key or call.seat) for call in scripted_model.calls)
    assert made == {(run, what): 1 for run in accepted for what in (*(f"0.{i}" for i in PLAN), "synthesizer")}
    disk.check()
    async with opened(database_url) as database:
        for run in accepted:
            await check(database, RunId(UUID(run)))


async def until_refused(client: httpx.AsyncClient, accepted: list[str]) -> httpx.Response:
    """Post goals until one is not taken; the runs of the others join `accepted`."""
    while True:
        body: dict[str, Any] = {"goal": LARGE, "plan": {"tasks": tasks_of(PLAN)}}
        response = await client.post("/goals", json=body)
        if response.status_code != 202:
            return response
        accepted.append(response.json()["id"])


def outcomes_wait(logged: list[Any]) -> bool:
    return any(entry["event"] == "database away, outcomes wait" for entry in logged)
