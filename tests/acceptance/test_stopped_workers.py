"""Workers that stand still for longer than their leases, and come back when others have done their work."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

import psycopg
import pytest

from app.domain.ids import RunId
from app.storage import tables
from app.storage.database import Database
from tests.databases import opened
from tests.invariants import check
from tests.points import FENCED, HIT
from tests.polling import until
from tests.prepared_workers import PreparedWorker, PreparedWorkers
from tests.scripted_model import Call, Plan, Reply, ScriptedModel, script, text
from tests.service_process import against
from tests.sizes import sizes
from tests.stored import is_finished, make_run, row_of, rows_of

LEASE_SECONDS = 1.0
AT_ONCE = 5
PLAN: Plan = {"a": [], "b": [], "c": ["a", "b"]}
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


@pytest.fixture
async def prepared(database_url: str, scripted_model: ScriptedModel, tmp_path: Path) -> AsyncIterator[PreparedWorkers]:
    settings = {**against(database_url, scripted_model), "lease_seconds": LEASE_SECONDS, "poll_seconds": 0.2}
    async with PreparedWorkers(tmp_path, settings) as workers:
        yield workers


class Gate:
    """Lets the answers to tasks through when it is open."""

    def __init__(self) -> None:
        self._is_open = asyncio.Event()

    async def __call__(self, call: Call) -> Reply:
        await self._is_open.wait()
        return text(f"result of {call.task_key}")

    def open(self) -> None:
        self._is_open.set()


@pytest.mark.parametrize("stops", sizes(5, 100))
async def test_what_a_stopped_worker_writes_late_is_refused(
    stops: int, database_url: str, prepared: PreparedWorkers, scripted_model: ScriptedModel
) -> None:
    held_locks = 0
    async with opened(database_url) as database:
        for _ in range(stops // AT_ONCE):
            held_locks += await stop_some(database, prepared, scripted_model)
    print(f"\n{stops} workers stopped; {held_locks} more times one held a lock of the database")  # noqa: T201


async def stop_some(database: Database, prepared: PreparedWorkers, model: ScriptedModel) -> int:
    """Stop workers with a run each, have another one finish these, let them go on; how many stops hit a lock."""
    gate = Gate()
    model.begin(script({"executor": gate}))
    stopped = [await prepared.start(point="tells of fenced writes", worker_max_runs=1) for _ in range(AT_ONCE)]
    runs = [await make_run(database, plan=PLAN) for _ in range(AT_ONCE)]
    await model.until(lambda: len(model.in_flight) == 2 * AT_ONCE)
    held_locks = sum(await asyncio.gather(*(stop_without_locks(worker, database) for worker in stopped)))
    stopped_at = monotonic()
    holder = {worker.pid: run for run in runs for worker in stopped if await holds(database, run, worker)}
    assert len(holder) == AT_ONCE, "a lease ran out before its worker was stopped"

    gate.open()  # also for the calls of those who cannot hear it
    peer = await prepared.start()
    for run in runs:
        await until(partial(is_finished, database, run))
    await until(lambda: monotonic() >= stopped_at + 3 * LEASE_SECONDS)
    before = {run: await everything(database, run) for run in runs}
    calls = len(model.calls)

    for worker in stopped:
        worker.cont()
    await until(
        lambda: all(fenced(worker) == {str(holder[worker.pid])} and lost_its_lease(worker) for worker in stopped)
    )
    for worker in [*stopped, peer]:
        assert await worker.terminate() == 0, worker.log
    for run in runs:
        assert await everything(database, run) == before[run]
        assert [task["result"] for task in before[run]["tasks"]] == [f"result of 0.{i}" for i in PLAN]
        (row,) = before[run]["runs"]
        assert (row["status"], row["epoch"]) == ("succeeded", 2)
        await check(database, run)
    assert len(model.calls) == calls == AT_ONCE * (2 + 3 + 1), "the two in flight once more, and what had not begun"
    return held_locks


async def test_a_worker_stopped_between_an_answer_and_its_transaction_is_refused(
    database_url: str, prepared: PreparedWorkers, scripted_model: ScriptedModel
) -> None:
    async with opened(database_url) as database:
        run = await make_run(database, plan=PLAN)
        # Its lease is so long that no renewal is under way when it stops.
        stopped = await prepared.start(point="stops before a result is recorded", lease_seconds=3)
        await until(lambda: f"{HIT}stops" in stopped.log)
        peer = await prepared.start()
        await until(lambda: is_finished(database, run))
        before = await everything(database, run)
        stopped.cont()
        await until(lambda: fenced(stopped) == {str(run)})
        for worker in (stopped, peer):
            assert await worker.terminate() == 0, worker.log
        assert await everything(database, run) == before
        assert before["runs"][0]["status"] == "succeeded"
        await check(database, run)


async def stop_without_locks(worker: PreparedWorker, database: Database) -> int:
    """Stop it outside of transactions; how often it was within one.

    One that stands still within a transaction keeps what it has locked: on SQLite all writing, on PostgreSQL the rows
    of its runs. Then nobody can take over before it goes on, whatever the lease says; what it writes is not late.
    """
    held = 0
    while True:
        worker.stop()
        await until(partial(stands_still, worker.pid))
        if not await is_locked(worker, database):
            return held
        held += 1
        worker.cont()
        await asyncio.sleep(0.05)


def stands_still(pid: int) -> bool:
    """Whether each of its threads does: a signal is heard at the end of a system call, which may take a lock yet."""
    threads = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(thread.rpartition(")")[2].split()[0] == "T" for thread in threads)


async def is_locked(worker: PreparedWorker, database: Database) -> bool:
    """Whether the stopped worker keeps anybody from writing; what others hold for a moment passes."""
    for _ in range(10):
        if not await asyncio.to_thread(_is_locked, str(worker.pid), database):
            return False
        await asyncio.sleep(0.02)
    return True


def _is_locked(pid: str, database: Database) -> bool:
    if database.is_sqlite:
        with closing(sqlite3.connect(database.url.database or "", timeout=0, isolation_level=None)) as probe:
            try:
                probe.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
        return False
    dsn = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn) as connection:
        owned = connection.execute("SELECT count(*) FROM runs WHERE lease_owner LIKE %s", [f"%:{pid}:%"])
        free = connection.execute(
            "SELECT count(*) FROM (SELECT id FROM runs WHERE lease_owner LIKE %s FOR UPDATE SKIP LOCKED) AS free",
            [f"%:{pid}:%"],
        )
        return owned.fetchone() != free.fetchone()


async def holds(database: Database, run: RunId, worker: PreparedWorker) -> bool:
    """Whether the run is the worker's."""
    return f":{worker.pid}:" in str((await row_of(database, run))["lease_owner"])


async def everything(database: Database, run: RunId) -> Rows:
    """All rows of the run."""
    found: dict[str, Sequence[Mapping[str, Any]]] = {"runs": [await row_of(database, run)]}
    for table in tables.metadata.sorted_tables:
        if "run_id" in table.c:
            found[table.name] = await rows_of(database, table, run)
    return found


def fenced(worker: PreparedWorker) -> set[str]:
    """The runs of which a write of the worker was refused."""
    return {str(UUID(found)) for found in re.findall(rf"{HIT}{FENCED}(\S+)", worker.log)}


def lost_its_lease(worker: PreparedWorker) -> bool:
    """Whether it says so itself."""
    return "lease lost" in worker.log
