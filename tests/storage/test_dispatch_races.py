"""Many who want the same runs at once: nobody gets what another has, and nobody waits for whom he need not."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
import sqlalchemy as sa

from app.domain.ids import RunId
from app.domain.status import RunStatus
from app.storage import tables
from app.storage.database import Database
from app.storage.dispatch import Flags, Lease, claim, flags_locked, renew
from tests.service_process import environment
from tests.storage.leases import make_runs, renewed, somebody_waits_for_a_lock
from tests.stored import MINUTE_MS, changes_of, claim_due, claim_one, make_run, row_of, set_run, write_changes

pytestmark = pytest.mark.asyncio(loop_scope="module")

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True, scope="module")
"""Where rows are locked; SQLite has one writer."""

CLAIM_UNTIL_NOTHING_IS_DUE = """
import asyncio, json, sys
from app.storage.database import Database
from app.storage.dispatch import claim

async def main():
    database = Database(sys.argv[1])
    await database.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    runs, leases = [], True
    while leases:
        async with database.write() as connection:
            leases = await claim(connection, owner="process", limit=3, lease_ms=60_000, abandoned=True)
        runs += [str(lease.run_id) for lease in leases]
    await database.close()
    print(json.dumps(runs), flush=True)

asyncio.run(main())
"""


async def claim_all(database: Database, *, limit: int) -> list[Lease]:
    """As a worker that takes so many at a time, until nothing is due; runs that stay due end it, too."""
    leases: list[Lease] = []
    while len(leases) < 100 and (taken := await claim_due(database, limit=limit)):
        leases += taken
    return leases


async def test_each_run_is_claimed_once_however_many_claim_at_once(database: Database, database_url: str) -> None:
    runs = await make_runs(database, 30)
    other = Database(database_url)
    claimed = await asyncio.gather(*(claim_all(where, limit=4) for where in (database, other) * 3))
    await other.close()
    assert Counter(lease.run_id for leases in claimed for lease in leases) == Counter(runs)


async def test_each_run_is_claimed_once_by_several_processes(database: Database, database_url: str) -> None:
    runs = await make_runs(database, 30)
    command = [sys.executable, "-c", CLAIM_UNTIL_NOTHING_IS_DUE, database_url]
    pipe = subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(*command, env=environment(), stdin=pipe, stdout=pipe) for _ in range(3)
    ]
    async with asyncio.timeout(60):
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        ended = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    claimed = [run_id for output, _ in ended for run_id in json.loads(output)]
    assert Counter(claimed) == Counter(str(run_id) for run_id in runs)


async def test_without_skip_locked_each_run_is_still_claimed_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sa.Select, "with_for_update", lambda query, **how: query)
    runs = await make_runs(database, 12)
    meet = asyncio.Barrier(6)

    async def claim_together() -> list[Lease]:
        leases: list[Lease] = []
        for _ in range(4):
            await meet.wait()
            leases += await claim_due(database, limit=3)
        return leases

    claimed = await asyncio.gather(*(claim_together() for _ in range(6)))
    assert Counter(lease.run_id for leases in claimed for lease in leases) == Counter(runs)


async def test_a_claim_that_waited_for_another_takes_nothing_of_what_that_one_took(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compare-and-set by itself: both have picked the run before either has it."""
    monkeypatch.setattr(sa.Select, "with_for_update", lambda query, **how: query)
    await make_run(database)
    async with database.write() as first:
        (lease,) = await claim(first, owner="first", limit=1, lease_ms=MINUTE_MS, abandoned=True)
        second = asyncio.create_task(claim_due(database))
        if not database.is_sqlite:
            await somebody_waits_for_a_lock(database)
    assert await second == []
    assert (await row_of(database, lease.run_id))["lease_owner"] == "first"


async def test_a_group_commit_and_a_renewal_of_the_same_runs_do_not_wait_for_each_other(database: Database) -> None:
    await make_runs(database, 20)
    leases = await claim_due(database)

    async def commit() -> None:
        for _ in range(10):
            await write_changes(database, *map(changes_of, leases[::-1]))

    async def keep() -> None:
        for _ in range(10):
            await renewed(database, *leases)

    await asyncio.gather(commit(), keep(), commit(), keep())


@on_postgresql
async def test_a_claim_passes_over_what_another_has_locked(database: Database) -> None:
    locked, free = await make_runs(database, 2)
    await set_run(database, locked, priority=1)
    async with database.write() as other, asyncio.timeout(30):
        await other.execute(sa.select(tables.runs.c.id).where(tables.runs.c.id == locked).with_for_update())
        assert [lease.run_id for lease in await claim_due(database, limit=1)] == [free]


@on_postgresql
async def test_a_renewal_passes_over_what_another_has_locked_where_it_is_told_to(database: Database) -> None:
    locked, free = await make_runs(database, 2)
    leases = await claim_due(database)
    async with database.write() as other, asyncio.timeout(30):
        await other.execute(sa.select(tables.runs.c.id).where(tables.runs.c.id == locked).with_for_update())
        assert (await renewed(database, *leases, skip_locked=True)).keys() == {free}


@on_postgresql
async def test_a_claim_that_waited_for_a_pause_does_not_take_the_run(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sa.Select, "with_for_update", lambda query, **how: query)
    run_id = await make_run(database)
    async with database.write() as other:
        await other.execute(sa.update(tables.runs).values(status=RunStatus.PAUSED))
        claiming = asyncio.create_task(claim_due(database))
        await somebody_waits_for_a_lock(database)
    assert await claiming == []
    assert (await row_of(database, run_id))["lease_token"] is None


async def unlocked(database: Database) -> set[RunId]:
    """The runs that nobody has locked."""
    query = sa.select(tables.runs.c.id).with_for_update(skip_locked=True)
    async with database.write() as connection:
        return set((await connection.execute(query)).scalars())


async def lay_out(database: Database, order: Sequence[RunId]) -> None:
    """Have the rows of these, all the runs that there are, lie in the table in this order.

    A new version lies last where no gap is before it. Vacuuming leaves what is dead and somebody may still see, such as
    an autovacuum of another table, and the gaps that come of it: then once more.
    """
    lie: Sequence[RunId] = []
    async with asyncio.timeout(60):
        while list(lie) != list(order):
            async with database.read() as connection:
                await connection.execute(sa.text("VACUUM FULL runs"))
            for run_id in order:
                await set_run(database, run_id, ready_at=2**53)
            async with database.read() as connection:
                lie = (await connection.execute(sa.select(tables.runs.c.id).order_by(sa.text("ctid")))).scalars().all()


async def renewed_by_another_plan(database: Database, leases: Sequence[Lease]) -> Mapping[RunId, object]:
    """By one that reads the table as it lies, as PostgreSQL may choose: the order must not hang on the plan."""
    async with database.write() as connection:
        for way in ("nestloop", "mergejoin", "indexscan", "indexonlyscan", "bitmapscan"):
            await connection.execute(sa.text(f"SET LOCAL enable_{way} = off"))
        return await renew(connection, leases, lease_ms=MINUTE_MS)


@on_postgresql
@pytest.mark.parametrize("writer", ["a renewal", "a group commit"])
async def test_whoever_writes_several_runs_locks_them_in_the_order_of_their_ids(
    database: Database, writer: str
) -> None:
    """So that two of them cannot wait for each other: who waits for the first has locked none of the rest."""
    await make_runs(database, 5)
    leases = sorted(await claim_due(database), key=lambda lease: lease.run_id, reverse=True)
    await lay_out(database, [lease.run_id for lease in leases])
    *rest, first = [lease.run_id for lease in leases]
    async with database.write() as other:
        await other.execute(sa.select(tables.runs.c.id).where(tables.runs.c.id == first).with_for_update())
        writing: asyncio.Task[Mapping[RunId, object]] = asyncio.create_task(
            renewed_by_another_plan(database, leases)
            if writer == "a renewal"
            else write_changes(database, *map(changes_of, leases))
        )
        await somebody_waits_for_a_lock(database)
        assert await unlocked(database) == set(rest)
    assert set(await writing) == {first, *rest}


@on_postgresql
async def test_flags_that_were_read_to_be_followed_stay_until_they_are(database: Database) -> None:
    await make_run(database)
    lease = await claim_one(database)
    async with database.write() as connection:
        assert await flags_locked(connection, lease) == Flags(stop_requested=None, answers=0)
        assert await unlocked(database) == set()
    assert await unlocked(database) == {lease.run_id}
