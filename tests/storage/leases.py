"""What tests of the lease say to the database, and what they ask of it."""

import asyncio

import sqlalchemy as sa

from app.domain.ids import RunId
from app.domain.status import StopRequest
from app.storage.database import Database, now_ms
from app.storage.dispatch import Lease, release, renew
from tests.stored import MINUTE_MS, make_goal, make_run


async def now(database: Database) -> int:
    """The database's time in ms."""
    async with database.read() as connection:
        return int((await connection.execute(sa.select(now_ms()))).scalar_one())


async def make_runs(database: Database, count: int) -> list[RunId]:
    """Queued runs of one goal."""
    goal_id = await make_goal(database)
    return [await make_run(database, goal_id=goal_id) for _ in range(count)]


async def renewed(database: Database, *leases: Lease, skip_locked: bool = False) -> dict[RunId, StopRequest | None]:
    """What a renewal for a minute answers."""
    async with database.write() as connection:
        return await renew(connection, leases, lease_ms=MINUTE_MS, skip_locked=skip_locked)


async def released(database: Database, lease: Lease, *, ready_in_ms: int = 0, answers: int = 0) -> bool:
    """Whether the run could be given back; its driver knows of so many `answers`."""
    async with database.write() as connection:
        return await release(connection, lease, ready_in_ms=ready_in_ms, answers=answers)


async def somebody_waits_for_a_lock(database: Database) -> None:
    """On PostgreSQL; a test that nobody makes wait fails here."""
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(30), database.read() as connection:
        while (await connection.execute(query)).scalar_one() == 0:
            pass
