"""Many writers in several processes on one SQLite file: they wait for each other, and none is turned away."""

import asyncio
import json
import os
import random
import sys
from statistics import quantiles

import pytest
import sqlalchemy as sa

from app.storage.tables import events, goals
from tests.databases import Databases, opened
from tests.invariants import check
from tests.service_process import environment
from tests.sizes import sizes
from tests.stored import make_run

PROCESSES = 2
RUNS = 20
_LONGEST_LINE = 2**24


async def said(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


@pytest.mark.parametrize("transactions", sizes(2_000, 50_000))
async def test_writers_of_two_processes_are_never_told_that_the_file_is_locked(
    databases: Databases, transactions: int
) -> None:
    seed = random.randrange(10**6)
    with databases.fresh("sqlite") as url:
        async with opened(url) as database:
            known = [await make_run(database, plan={"a": []}) for _ in range(RUNS)]
            processes = [
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.acceptance.contending", url),
                    env=environment(),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=_LONGEST_LINE,
                )
                for _ in range(PROCESSES)
            ]
            assert [await said(process) for process in processes] == ["ready"] * PROCESSES
            for number, process in enumerate(processes):
                assert process.stdin is not None
                process.stdin.write(f"{transactions // PROCESSES} {seed}-{number}\n".encode())
            wrote = [json.loads(await said(process) or "[]") for process in processes]
            wal_bytes = os.path.getsize(f"{url.removeprefix('sqlite:///')}-wal")  # noqa: ASYNC240, PTH202 - takes no time
            ended = []
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
                ended.append(await process.wait())
            assert ended == [0] * PROCESSES, f"seed {seed}"
            took = sorted(seconds for of_process in wrote for seconds in of_process)
            assert len(took) == transactions

            async with database.read() as connection:
                made = (await connection.execute(sa.select(sa.func.count()).select_from(goals))).scalar_one() - RUNS
                noted = sa.select(sa.func.count()).where(events.c.type == "run.noted")
                # A client's transaction makes a goal and an event, a recorder's two events.
                assert (await connection.execute(noted)).scalar_one() == made + 2 * (transactions - made)
            assert 0 < made < transactions
            for run_id in known:
                await check(database, run_id)
    p99 = quantiles(took, n=100)[98]
    print(  # noqa: T201 - `make soak` shows it
        f"{transactions} transactions: p50 {took[len(took) // 2]:.4f} s, p99 {p99:.4f} s, max {took[-1]:.4f} s, "
        f"WAL {wal_bytes / 2**20:.1f} MiB"
    )
