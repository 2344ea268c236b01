"""Runs made for tests of storage and engine, and their rows looked at and bent past the code under test."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from app.domain.generation import NewPlan, first_plan
from app.domain.ids import DEFAULT_TENANT, GoalId, RunId, TaskKey, task_key
from app.domain.plan import PlannedTask
from app.domain.status import FINISHED, Mode, PlanReason
from app.storage import tables
from app.storage.changes import Changes
from app.storage.database import Database
from app.storage.dispatch import Fenced, Lease, claim
from app.storage.goals import create_goal
from app.storage.records import RunRecord
from app.storage.runs import create_run, get_run
from app.storage.writing import write
from tests.scripted_model import Plan

T = DEFAULT_TENANT
MINUTE_MS = 60_000
OPTIONS: Mapping[str, Any] = {
    "model": None,
    "planner_model": None,
    "synthesizer_model": None,
    "min_tasks": 1,
    "max_tasks": 7,
    "max_parallel": 8,
    "max_attempts": 3,
    "max_steps": 20,
    "task_timeout_seconds": 300,
    "on_failure": "fail",  # nothing is mended unless a test wants it
    "max_replans": 2,
    "on_exhausted": "fail",
    "tools": [],
    "approval": "none",
    "synthesize": True,
    "output_schema": None,
}


def new_plan(plan: Plan, tools: Sequence[str] = ()) -> NewPlan:
    """A client's plan, given in short; every task may use the tools."""
    tasks = [
        PlannedTask(id=i, description=f"Do {i}.", depends_on=tuple(before), tools=tuple(tools))
        for i, before in plan.items()
    ]
    return first_plan(tasks, PlanReason.CLIENT)


async def make_goal(database: Database, *, goal: str = "Find out") -> GoalId:
    """A goal of the default tenant."""
    async with database.write() as connection:
        return await create_goal(connection, T, goal=goal, context={}, metadata={})


async def make_run(
    database: Database,
    *,
    plan: Plan | NewPlan | None = None,
    mode: Mode = Mode.EXECUTE,
    goal_id: GoalId | None = None,
    metadata: Mapping[str, str] | None = None,
    budget: Mapping[str, Any] | None = None,
    priority: int = 0,
    takeovers: int = 0,
    announced: bool = True,
    **options: Any,
) -> RunId:
    """A queued run, of a goal of its own unless `goal_id` says otherwise; `options` differ from `OPTIONS`."""
    goal_id = goal_id or await make_goal(database)
    async with database.write() as connection:
        run = await create_run(
            connection,
            T,
            goal_id,
            mode=mode,
            options={**OPTIONS, **options},
            budget=budget or {},
            metadata=metadata or {},
            model="scripted",
            plan=new_plan(plan, options.get("tools", ())) if isinstance(plan, Mapping) else plan,
        )
        run_id = run.id
        if takeovers:
            died = sa.update(tables.runs).where(tables.runs.c.id == run_id).values(takeovers=takeovers)
            await connection.execute(died)
        if announced:
            await database.announce(connection, run_id)
    if priority:
        await set_run(database, run_id, priority=priority)
    return run_id


async def the_run(database: Database, run_id: RunId) -> RunRecord:
    """The run as stored; it is there."""
    async with database.read() as connection:
        run = await get_run(connection, T, run_id)
    assert run is not None
    return run


async def is_finished(database: Database, run_id: RunId) -> bool:
    """Whether it has come to its end."""
    return (await the_run(database, run_id)).status in FINISHED


async def claim_one(database: Database, *, owner: str = "a", lease_ms: int = MINUTE_MS) -> Lease:
    """The lease of the one run that is due."""
    (lease,) = await claim_due(database, owner=owner, lease_ms=lease_ms)
    return lease


async def claim_due(
    database: Database, *, owner: str = "a", limit: int = 100, lease_ms: int = MINUTE_MS, abandoned: bool = True
) -> list[Lease]:
    """Leases of what is due."""
    async with database.write() as connection:
        return await claim(connection, owner=owner, limit=limit, lease_ms=lease_ms, abandoned=abandoned)


def changes_of(lease: Lease, *, token: Any = "the lease's") -> Changes:
    """Empty changes of the leased run."""
    taken = lease.token if token == "the lease's" else token
    return Changes(tenant_id=lease.tenant_id, run_id=lease.run_id, token=taken)


async def write_changes(database: Database, *batch: Changes) -> dict[RunId, Fenced]:
    """Written and committed in one transaction."""
    async with database.write() as connection:
        return await connection.run_sync(write, batch)


async def row_of(database: Database, run_id: RunId) -> dict[str, Any]:
    """The run's own row, every column."""
    (row,) = await rows_of(database, tables.runs, run_id, run_column="id")
    return row


async def rows_of(
    database: Database, table: sa.Table, run_id: RunId, *, run_column: str = "run_id"
) -> Sequence[dict[str, Any]]:
    """The run's rows of a table by its primary key."""
    query = sa.select(table).where(table.c[run_column] == run_id).order_by(*table.primary_key.columns)
    async with database.read() as connection:
        return [dict(row._mapping) for row in await connection.execute(query)]


async def set_run(database: Database, run_id: RunId, **columns: Any) -> None:
    """Bend the run's row."""
    async with database.write() as connection:
        await connection.execute(sa.update(tables.runs).where(tables.runs.c.id == run_id).values(**columns))


async def expire(database: Database, run_id: RunId) -> None:
    """Its lease, or its wait, is over."""
    await set_run(database, run_id, ready_at=0)


def key(task_id: str) -> TaskKey:
    """In generation 0."""
    return task_key(0, task_id)


async def forget_everything(database: Database) -> None:
    """Delete every goal, and with it whatever hangs on it."""
    async with database.write() as connection:
        await connection.execute(sa.delete(tables.goals))
