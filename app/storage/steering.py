"""What clients ask of a run: to end, stand still, go on. Done at once where no worker holds it, else by a flag.

Each answers with the run as it then is and whether the request did anything; None when the tenant has no such run.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import RunId, TaskKey, TenantId
from app.domain.status import FINISHED, RunStatus, StopRequest, TaskStatus
from app.storage.changes import Changes
from app.storage.database import now_ms
from app.storage.records import RunRecord
from app.storage.runs import end_unfinished, get_run, lock_run
from app.storage.tables import attempts, plans, runs, tasks
from app.storage.writing import count_by_status, write

Steered = tuple[RunRecord, bool] | None


async def request_cancel(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> Steered:
    """Cancel the run; a finished one, or one that is asked to cancel already, is left as it is."""
    run = await lock_run(connection, tenant_id, run_id)
    if run is None:
        return None
    if run.status in FINISHED or (run.held and run.stop_requested is StopRequest.CANCEL):
        return run, False
    changes = _changes_of(run)
    if run.held:
        changes.stop_requested = StopRequest.CANCEL
    else:
        await end_unfinished(connection, changes, RunStatus.CANCELLED)
    return await _written(connection, changes)


async def request_pause(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> Steered:
    """Have the run stand still once what is in flight has come back; one that is to stop already is left alone."""
    run = await lock_run(connection, tenant_id, run_id)
    if run is None:
        return None
    if run.status in FINISHED or run.status is RunStatus.PAUSED or run.stop_requested is StopRequest.CANCEL:
        return run, False
    if run.held and run.stop_requested is StopRequest.PAUSE:
        return run, False
    changes = _changes_of(run)
    if run.held:
        changes.stop_requested = StopRequest.PAUSE
    else:
        changes.status = RunStatus.PAUSED
        changes.parked = True
        changes.event("run.paused")
    return await _written(connection, changes)


async def request_resume(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> Steered:
    """Let a paused run go on, or take back the request to pause it; any other run is left as it is."""
    run = await lock_run(connection, tenant_id, run_id)
    if run is None:
        return None
    if run.status is not RunStatus.PAUSED and run.stop_requested is not StopRequest.PAUSE:
        return run, False
    changes = _changes_of(run)
    if run.status is RunStatus.PAUSED:
        changes.status = RunStatus.QUEUED
        changes.event("run.resumed")
        await make_due(connection, run)
    else:
        await connection.execute(_this(run).values(stop_requested=None))
    return await _written(connection, changes)


async def retry_run(
    connection: AsyncConnection,
    run: RunRecord,
    *,
    options: Mapping[str, Any],
    budget: Mapping[str, Any],
    model: str | None = None,
) -> RunRecord:
    """Have a failed or cancelled run, which the caller has locked, go on with these options and this budget.

    `model` is the name of what answers from now on; None: what did.

    Failed and cancelled tasks are pending again, with attempts, rewordings and replans counted afresh. What succeeded,
    what was skipped, and what a replan has replaced stays as it is.
    """
    changes = _changes_of(run)
    of_run = {"tenant_id": run.tenant_id, "run_id": run.id}
    replaced: set[str] = set()
    for (keys,) in await connection.execute(sa.select(plans.c.failed_task_keys).where(_owned(plans)), of_run):
        replaced.update(keys)
    last = sa.select(attempts.c.task_key, sa.func.max(attempts.c.number)).where(_owned(attempts))
    attempted = {row[0]: row[1] for row in await connection.execute(last.group_by(attempts.c.task_key), of_run)}
    statuses: list[str] = []
    query = sa.select(tasks.c.key, tasks.c.status).where(_owned(tasks)).order_by(tasks.c.position)
    for key, status in await connection.execute(query, of_run):
        again = status == TaskStatus.CANCELLED or (status == TaskStatus.FAILED and key not in replaced)
        statuses.append(TaskStatus.PENDING if again else status)
        if again:
            changes.task(TaskKey(key), TaskStatus.PENDING)
            changes.task_begins_anew(TaskKey(key), attempts_before=attempted.get(key, 0))
    changes.status = RunStatus.QUEUED
    changes.progress = count_by_status(statuses)
    changes.event("run.retried")
    await connection.execute(
        _this(run).values(
            model=model or run.model,
            error=None,
            result=None,
            finished_at=None,
            options=options,
            budget=budget,
            budget_warned=None,
            replans=0,
            retried_after=runs.c.llm_calls,
            takeovers=0,
        )
    )
    await make_due(connection, run)
    await connection.run_sync(write, [changes])
    now = await get_run(connection, run.tenant_id, run.id)
    return run if now is None else now


async def make_due(connection: AsyncConnection, run: RunRecord) -> None:
    """Let a worker have the run from now on."""
    await connection.execute(_this(run).values(ready_at=now_ms()))


async def _written(connection: AsyncConnection, changes: Changes) -> Steered:
    await connection.run_sync(write, [changes])
    now = await get_run(connection, changes.tenant_id, changes.run_id)
    return None if now is None else (now, True)


def _changes_of(run: RunRecord) -> Changes:
    return Changes(tenant_id=run.tenant_id, run_id=run.id, token=None)


def _this(run: RunRecord) -> sa.Update:
    return sa.update(runs).where(runs.c.tenant_id == run.tenant_id, runs.c.id == run.id)


def _owned(table: sa.Table) -> sa.ColumnElement[bool]:
    return (table.c.tenant_id == sa.bindparam("tenant_id")) & (table.c.run_id == sa.bindparam("run_id"))
