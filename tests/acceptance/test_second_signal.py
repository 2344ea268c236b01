"""A second signal, or one while a process starts or migrates: it leaves at once, and nothing is lost by that."""

import os
import random
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from app.domain.ids import RunId
from app.storage import migrate
from tests.cli.processes import running
from tests.databases import Databases, opened
from tests.invariants import check
from tests.polling import until
from tests.scripted_model import ScriptedModel, hang, script
from tests.service_process import ServiceProcess, StartProcess, finished, free_port, start_run
from tests.sizes import sizes

TERM, INT = signal.SIGTERM, signal.SIGINT
PAIRS = [(TERM, TERM), (INT, INT), (TERM, INT), (INT, TERM)]
BOOT_SECONDS = 3.0


def is_draining(process: ServiceProcess) -> bool:
    return "draining" in process.log


@pytest.mark.parametrize("processes", sizes(1, 40))
async def test_a_process_killed_by_a_second_signal_leaves_its_run_to_the_next(
    database_url: str, start_process: StartProcess, scripted_model: ScriptedModel, processes: int
) -> None:
    api = await start_process("serve", "--no-worker")
    runs: list[str] = []
    async with api.client() as client:
        for number, (first, second), command in zip(range(processes), cycle(PAIRS), cycle(["worker", "serve"])):
            process = await start_process(command, drain_seconds=600, lease_seconds=1)
            for run in runs[-1:]:
                assert (await finished(client, run))["result"] == "the answer", number
            scripted_model.begin(script({"executor": hang()}))
            runs.append((await start_run(client))["id"])
            await scripted_model.until(lambda: bool(scripted_model.by_seat("executor")))
            os.kill(process.pid, first)
            await until(partial(is_draining, process))
            assert await (process.terminate() if second == TERM else process.interrupt()) == 128 + second
            scripted_model.begin(script())
        await start_process("worker")
        assert (await finished(client, runs[-1]))["result"] == "the answer"
    async with opened(database_url) as database:
        for run in runs:
            await check(database, RunId(UUID(run)))


@contextmanager
def locked_sqlite(file: Path) -> Iterator[None]:
    """Nobody else may read or write it: what wants to waits in SQLite's own busy wait, for half a minute."""
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        yield


def reached(port: int) -> None:
    """Return when somebody listens there."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("nobody listens")


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_signal_ends_a_service_that_waits_for_its_database_to_migrate(
    databases: Databases, tmp_path: Path, number: signal.Signals
) -> None:
    with databases.fresh("sqlite", migrated=False) as url:
        port = free_port()
        with (
            locked_sqlite(Path(url.removeprefix("sqlite:///"))),
            running("serve", "--port", str(port), directory=tmp_path, database_url=url) as process,
        ):
            reached(port)
            process.send_signal(number)
            assert process.wait(20) == 128 + number
        migrate.upgrade(url)
        assert migrate.is_current(url)


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_signal_ends_a_migration_that_waits_for_another(
    databases: Databases, tmp_path: Path, number: signal.Signals
) -> None:
    with databases.fresh("postgresql", migrated=False) as url, psycopg.connect(url, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [migrate.LOCK])
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        with running("db", "upgrade", directory=tmp_path, database_url=url) as process:
            end = time.monotonic() + 60
            while holder.execute(waiting).fetchone() == (0,):
                assert time.monotonic() < end, "it never came to wait"
            process.send_signal(number)
            assert process.wait(20) != 0
        holder.execute("SELECT pg_advisory_unlock(%s)", [migrate.LOCK])
        migrate.upgrade(url)
        assert migrate.is_current(url)


@pytest.mark.soak
@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_signal_at_any_moment_of_the_start_ends_it(databases: Databases, tmp_path: Path, command: str) -> None:
    """Also before there is anything that could hear it, and after all has begun."""
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    codes = set()
    for _ in range(50):
        with databases.fresh("sqlite", migrated=False) as url:
            arguments = ["--port", "0"] if command == "serve" else []
            with running(command, *arguments, directory=tmp_path, database_url=url) as process:
                time.sleep(draw.uniform(0, BOOT_SECONDS))  # the moment is what is drawn
                number = draw.choice([TERM, INT])
                process.send_signal(number)
                codes.add(process.wait(20))
            migrate.upgrade(url)
            assert migrate.is_current(url), f"seed {seed}"
    # 1: what Python makes of SIGINT while it still imports.
    assert codes <= {0, 1, -TERM, -INT, 128 + TERM, 128 + INT}, f"seed {seed}: {codes}"
