"""Runs: made, read, listed, stopped and deleted on behalf of clients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import GoalId, RunId, TaskKey, TenantId
from app.domain.status import (
    FINISHED,
    AttemptStatus,
    CallStatus,
    Mode,
    RunStatus,
    StopRequest,
    TaskStatus,
)
from app.storage.changes import Changes, NewEvent, NewPlan, Rows, count_by_status, write
from app.storage.database import new_id, now_ms
from app.storage.records import RunRecord
from app.storage.tables import attempts, calls, goals, runs, tasks

UNFINISHED_TASKS = (TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.RETRYING, TaskStatus.AWAITING_REVIEW)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFilter:
    """Which runs a list shows; what is None does not matter. Times in ms, `created_after` and `_before` exclusive."""

    statuses: Sequence[RunStatus] = ()
    goal_id: GoalId | None = None
    created_after: int | None = None
    created_before: int | None = None
    metadata: Mapping[str, str] | None = None


async def create_run(
    connection: AsyncConnection,
    tenant_id: TenantId,
    goal_id: GoalId,
    *,
    mode: Mode,
    options: Mapping[str, Any],
    budget: Mapping[str, Any],
    metadata: Mapping[str, str],
    model: str,
    plan: NewPlan | None = None,
) -> RunId:
    """Store a queued run, due at once, with the client's plan where there is one."""
    run_id = RunId(new_id())
    now: int = (await connection.execute(sa.select(now_ms()))).scalar_one()
    new: list[NewEvent] = [("run.queued", None, {"goal_id": str(goal_id)})]
    if plan is not None:
        new.append(("plan.created", None, plan_created(plan)))
    await connection.execute(
        sa.insert(runs).values(
            tenant_id=tenant_id,
            id=run_id,
            goal_id=goal_id,
            mode=mode,
            status=RunStatus.QUEUED,
            generation=None if plan is None else plan.generation,
            options=options,
            budget=budget,
            metadata=metadata,
            model=model,
            progress=count_by_status([TaskStatus.PENDING] * (0 if plan is None else len(plan.tasks))),
            event_seq=len(new),
            created_at=now,
            ready_at=now,
        )
    )
    rows = Rows()
    if plan is not None:
        rows.add_plan(tenant_id, run_id, plan, now)
    rows.add_events(tenant_id, run_id, new, last=len(new), now=now)
    await connection.run_sync(rows.write)
    return run_id


def plan_created(plan: NewPlan) -> dict[str, Any]:
    """The data of a `plan.created` event."""
    return {"generation": plan.generation, "reason": plan.reason, "tasks": len(plan.tasks)}


async def get_run(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> RunRecord | None:
    """The run, or None when the tenant has no such run."""
    found = (await connection.execute(_SELECT_ONE, {"tenant_id": tenant_id, "run_id": run_id})).one_or_none()
    return None if found is None else _record(found)


async def get_version(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> tuple[int, RunStatus] | None:
    """The run's version and status by one indexed read; None when the tenant has no such run."""
    found = (await connection.execute(_SELECT_VERSION, {"tenant_id": tenant_id, "run_id": run_id})).one_or_none()
    return None if found is None else (found.version, RunStatus(found.status))


async def list_runs(
    connection: AsyncConnection,
    tenant_id: TenantId,
    *,
    limit: int,
    before: RunId | None = None,
    where: RunFilter | None = None,
) -> list[RunRecord]:
    """Runs, newest first; those older than `before` where it is given."""
    query = _SELECT_RUN.where(runs.c.tenant_id == tenant_id).order_by(runs.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(runs.c.id < before)
    if where is not None:
        query = query.where(*_conditions(where, connection.dialect.name))
    return [_record(row) for row in await connection.execute(query)]


async def request_cancel(
    connection: AsyncConnection, tenant_id: TenantId, run_id: RunId
) -> tuple[RunRecord, bool] | None:
    """Cancel a run that no worker holds at once; ask the worker that holds it to.

    The run as it then is, and whether this request did anything: a finished run, or one that is asked to cancel
    already, is left as it is. None when there is no such run.
    """
    run = await _locked(connection, tenant_id, run_id)
    if run is None:
        return None
    if run.status in FINISHED or (run.held and run.stop_requested is StopRequest.CANCEL):
        return run, False
    changes = Changes(tenant_id=tenant_id, run_id=run_id, token=None)
    if run.held:
        changes.stop_requested = StopRequest.CANCEL
    else:
        await end_unfinished(connection, changes, RunStatus.CANCELLED)
    await connection.run_sync(write, [changes])
    now = await get_run(connection, tenant_id, run_id)
    return None if now is None else (now, True)


async def end_unfinished(connection: AsyncConnection, changes: Changes, status: RunStatus) -> None:
    """Add to the changes all that a run's end means for what it leaves unfinished, as the rows now have it."""
    of_run = {"tenant_id": changes.tenant_id, "run_id": changes.run_id}
    query = sa.select(tasks.c.key, tasks.c.status).where(_owned(tasks)).order_by(tasks.c.position)
    statuses: list[str] = []
    for key, was in await connection.execute(query, of_run):
        left = was in UNFINISHED_TASKS
        statuses.append(TaskStatus.CANCELLED if left else was)
        if left:
            changes.task(TaskKey(key), TaskStatus.CANCELLED)
            changes.event("task.cancelled", task_key=TaskKey(key))
    for row in await connection.execute(
        sa.select(attempts.c.task_key, attempts.c.number).where(
            _owned(attempts), attempts.c.status == AttemptStatus.RUNNING
        ),
        of_run,
    ):
        changes.attempt_ended(row.task_key, row.number, AttemptStatus.CANCELLED)
    for (number,) in await connection.execute(
        sa.select(calls.c.number).where(_owned(calls), calls.c.status == CallStatus.OPEN), of_run
    ):
        changes.call_ended(number, CallStatus.LOST)
    changes.status = status
    changes.progress = count_by_status(statuses)
    changes.over = True
    if changes.error is None:
        changes.event(f"run.{status}")
    else:
        changes.event(f"run.{status}", error=changes.error)


async def delete_run(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> RunRecord | None:
    """Delete a finished run with all that it holds. The run as it was: one that is not finished is still there."""
    run = await _locked(connection, tenant_id, run_id)
    if run is not None and run.status in FINISHED:
        await connection.execute(sa.delete(runs).where(runs.c.tenant_id == tenant_id, runs.c.id == run_id))
    return run


_SELECT_RUN = sa.select(
    runs,
    goals.c.goal,
    goals.c.context,
    (runs.c.lease_token.is_not(None) & (runs.c.ready_at > now_ms())).label("held"),
).join(goals, (goals.c.tenant_id == runs.c.tenant_id) & (goals.c.id == runs.c.goal_id))
_THIS_RUN = (runs.c.tenant_id == sa.bindparam("tenant_id")) & (runs.c.id == sa.bindparam("run_id"))
_SELECT_ONE = _SELECT_RUN.where(_THIS_RUN)
_SELECT_VERSION = sa.select(runs.c.version, runs.c.status).where(_THIS_RUN)


async def _locked(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> RunRecord | None:
    """The run, kept from changing until this transaction ends."""
    query = _SELECT_ONE.with_for_update(of=runs)
    found = (await connection.execute(query, {"tenant_id": tenant_id, "run_id": run_id})).one_or_none()
    return None if found is None else _record(found)


def _owned(table: sa.Table) -> sa.ColumnElement[bool]:
    return (table.c.tenant_id == sa.bindparam("tenant_id")) & (table.c.run_id == sa.bindparam("run_id"))


def _conditions(where: RunFilter, dialect: str) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if where.statuses:
        found.append(runs.c.status.in_(where.statuses))
    if where.goal_id is not None:
        found.append(runs.c.goal_id == where.goal_id)
    if where.created_after is not None:
        found.append(runs.c.created_at > where.created_after)
    if where.created_before is not None:
        found.append(runs.c.created_at < where.created_before)
    # Not by a JSON path: SQLite's have no way to write every key.
    each = sa.func.json_each if dialect == "sqlite" else sa.func.jsonb_each_text
    for key, value in (where.metadata or {}).items():
        entry = each(runs.c.metadata).table_valued("key", "value")
        found.append(sa.exists().select_from(entry).where(entry.c.key == key, entry.c.value == value))
    return found


def _record(row: sa.Row[Any]) -> RunRecord:
    return RunRecord(
        tenant_id=row.tenant_id,
        id=row.id,
        goal_id=row.goal_id,
        goal=row.goal,
        context=row.context,
        mode=Mode(row.mode),
        status=RunStatus(row.status),
        stop_requested=None if row.stop_requested is None else StopRequest(row.stop_requested),
        generation=row.generation,
        result=row.result,
        error=row.error,
        options=row.options,
        budget=row.budget,
        metadata=row.metadata,
        model=row.model,
        progress=row.progress,
        llm_calls=row.llm_calls,
        tool_calls=row.tool_calls,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        version=row.version,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        held=bool(row.held),
    )
