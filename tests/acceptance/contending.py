"""Writers of one process on a database that others write as well: `python -m tests.acceptance.contending URL`.

It says "ready", and for each line `TRANSACTIONS SEED` on its standard input writes that many transactions with eight
writers, as the API and a worker write; then it prints how long each took in seconds, as JSON.
"""

import asyncio
import json
import random
import sys
import time
from functools import partial

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import DEFAULT_TENANT, RunId
from app.storage.changes import Changes
from app.storage.database import Database
from app.storage.goals import create_goal
from app.storage.runs import lock_run
from app.storage.tables import runs
from app.storage.writing import write

WRITERS = 8


async def _of_a_client(database: Database, draw: random.Random, known: list[RunId]) -> None:
    """Reads a run, then writes an event of it: what fails at once where a transaction begins as a reader."""
    async with database.write() as connection:
        await create_goal(connection, DEFAULT_TENANT, goal="Find out", context=None, metadata={})
        await _note(connection, draw.choice(known))


async def _note(connection: AsyncConnection, run_id: RunId) -> None:
    run = await lock_run(connection, DEFAULT_TENANT, run_id)
    assert run is not None
    await connection.run_sync(write, [_event(run.id)])


def _event(run_id: RunId) -> Changes:
    changes = Changes(tenant_id=DEFAULT_TENANT, run_id=run_id, token=None)
    changes.event("run.noted")
    return changes


async def _of_a_recorder(database: Database, draw: random.Random, known: list[RunId]) -> None:
    batch = [_event(run_id) for run_id in sorted(draw.sample(known, 2))]
    await database.write_in_thread(partial(_write, batch))


def _write(batch: list[Changes], connection: sa.Connection) -> None:
    write(connection, batch)


async def _write_all(database: Database, transactions: int, seed: str) -> list[float]:
    async with database.read() as connection:
        known = [RunId(id_) for id_ in (await connection.execute(sa.select(runs.c.id).order_by(runs.c.id))).scalars()]
    left = iter(range(transactions))
    took: list[float] = []

    async def writer(number: int) -> None:
        draw = random.Random(f"{seed} {number}")
        transaction = _of_a_recorder if number == 0 else _of_a_client  # one thread writes for all runs of a worker
        for _ in left:
            begun = time.monotonic()
            await transaction(database, draw, known)
            took.append(time.monotonic() - begun)

    async with asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            group.create_task(writer(number))
    return took


async def _main(url: str) -> None:
    database = Database(url)
    print("ready", flush=True)  # noqa: T201 - whoever started it reads this
    while line := await asyncio.to_thread(sys.stdin.readline):
        transactions, seed = line.split()
        print(json.dumps(await _write_all(database, int(transactions), seed)), flush=True)  # noqa: T201
    await database.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
