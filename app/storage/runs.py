"""Runs: made, read, listed, ended and deleted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.generation import NewPlan
from app.domain.ids import GoalId, RunId, TaskKey, TenantId
from app.domain.status import (
    FINISHED,
    AttemptStatus,
    CallStatus,
    Mode,
    RunStatus,
    StopRequest,
    TaskStatus,
    ToolCallStatus,
)
from app.domain.transcript import NEVER_SENT, UNFINISHED_TOOL_CALLS
from app.domain.usage import Usage
from app.storage.changes import Changes, NewEvent
from app.storage.database import new_id, now_ms
from app.storage.queries import Query
from app.storage.records import RunRecord
from app.storage.statements import Statement
from app.storage.tables import attempts, calls, goals, reviews, runs, tasks, tool_calls
from app.storage.writing import Rows, count_by_status

UNFINISHED_TASKS = (TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.RETRYING, TaskStatus.AWAITING_REVIEW)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFilter:
    """Which runs a list shows; what is None does not matter. Times in ms, `created_after` and `_before` exclusive."""

    statuses: Sequence[RunStatus] = ()
    goal_id: GoalId | None = None
    created_after: int | None = None
    created_before: int | None = None
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstRun:
    """A new goal, and how its first run is to go."""

    tenant_id: TenantId
    goal: str
    context: Any
    mode: Mode
    options: Mapping[str, Any]
    budget: Mapping[str, Any]
    metadata: Mapping[str, str]
    model: str


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
) -> RunRecord:
    """Store a queued run, due at once, with the client's plan where there is one. The run, without its context."""
    run_id = RunId(new_id())
    new = [_queued(goal_id)]
    if plan is not None:
        new.append(("plan.created", None, plan_created(plan)))
    stored = await _INSERT_RUN.one(
        connection,
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
    )
    run = _record(stored)
    rows = Rows()
    if plan is not None:
        rows.add_plan(tenant_id, run_id, plan, run.created_at)
    rows.add_events(tenant_id, run_id, new, last=len(new), now=run.created_at)
    await connection.run_sync(rows.write)
    return run


def create_first_runs(connection: sa.Connection, asked: Sequence[FirstRun]) -> list[RunRecord]:
    """Store goals, each with a queued run that is due at once; as many statements for all as for one.

    The runs, without their contexts.
    """
    now: int = connection.execute(_SELECT_NOW).scalar_one()
    new_goals: list[dict[str, Any]] = []
    new_runs: list[dict[str, Any]] = []
    made: list[RunRecord] = []
    rows = Rows()
    for first in asked:
        of_both = {"tenant_id": first.tenant_id, "metadata": first.metadata, "created_at": now}
        goal_id, run_id = GoalId(new_id()), RunId(new_id())
        run: dict[str, Any] = {
            **of_both,
            "id": run_id,
            "goal_id": goal_id,
            "mode": first.mode,
            "status": RunStatus.QUEUED,
            "options": first.options,
            "budget": first.budget,
            "model": first.model,
            "progress": count_by_status(()),
        }
        new_goals.append({**of_both, "id": goal_id, "goal": first.goal, "context": first.context})
        new_runs.append({**run, "event_seq": 1, "ready_at": now})
        rows.add_events(first.tenant_id, run_id, [_queued(goal_id)], last=1, now=now)
        made.append(RunRecord(**run, goal=first.goal, **_UNTOUCHED))
    _INSERT_GOALS.write(connection, new_goals)
    _INSERT_RUNS.write(connection, new_runs)
    rows.write(connection)
    return made


def plan_created(plan: NewPlan) -> dict[str, Any]:
    """The data of a `plan.created` event."""
    data: dict[str, Any] = {"generation": plan.generation, "reason": plan.reason, "tasks": len(plan.tasks)}
    if plan.parent_generation is not None:
        data["failed_task_keys"] = list(plan.failed_task_keys)
    return data


async def get_run(
    connection: AsyncConnection, tenant_id: TenantId, run_id: RunId, *, with_context: bool = True
) -> RunRecord | None:
    """The run, or None when the tenant has no such run. Its context, which may be large, is None unless asked for."""
    this_run = {"tenant_id": tenant_id, "run_id": run_id}
    if not with_context:  # as it is polled
        shown = await _SHOWN.one_or_none(connection, **this_run)
        return None if shown is None else _record(shown)
    found = (await connection.execute(_SELECT_ONE, this_run)).one_or_none()
    return None if found is None else _record(found._asdict())


async def lock_run(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> RunRecord | None:
    """The run, kept from changing until this transaction ends."""
    query = _SELECT_ONE.with_for_update(of=runs)
    found = (await connection.execute(query, {"tenant_id": tenant_id, "run_id": run_id})).one_or_none()
    return None if found is None else _record(found._asdict())


async def get_version(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> tuple[int, RunStatus] | None:
    """The run's version and status by one indexed read; None when the tenant has no such run."""
    found = await _VERSION.one_or_none(connection, tenant_id=tenant_id, run_id=run_id)
    return None if found is None else (found["version"], RunStatus(found["status"]))


async def list_runs(
    connection: AsyncConnection,
    tenant_id: TenantId,
    *,
    limit: int,
    before: RunId | None = None,
    where: RunFilter | None = None,
) -> list[RunRecord]:
    """Runs, newest first, without their contexts; those older than `before` where it is given."""
    query = _SELECT_RUN.where(runs.c.tenant_id == tenant_id).order_by(runs.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(runs.c.id < before)
    if where is not None:
        query = query.where(*_conditions(where, connection.dialect.name))
    return [_record(row._asdict()) for row in await connection.execute(query)]


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
    opened = sa.select(calls).where(_owned(calls), calls.c.status == CallStatus.OPEN)
    for row in await connection.execute(opened, of_run):
        reserved = Usage(input_tokens=row.reserved_input_tokens, output_tokens=row.reserved_output_tokens)
        changes.call_ended(row.number, CallStatus.LOST, usage=reserved, cost_nano_usd=row.reserved_cost_nano_usd)
    asked = sa.select(tool_calls).where(_owned(tool_calls), tool_calls.c.status.in_(UNFINISHED_TOOL_CALLS))
    for row in await connection.execute(asked, of_run):
        if row.status != ToolCallStatus.OPEN:
            changes.tool_ended(row.number, ToolCallStatus.REFUSED, error=NEVER_SENT.as_json())
            continue
        changes.tool_ended(row.number, ToolCallStatus.LOST)
        lost = {"tool_call": row.number, "tool": row.tool, "status": ToolCallStatus.LOST}
        changes.event("tool.returned", task_key=TaskKey(row.task_key), **lost)
    waiting = sa.select(reviews.c.id).where(_owned(reviews), reviews.c.closed_at.is_(None))
    for (review_id,) in await connection.execute(waiting, of_run):
        changes.review_closed(review_id)
    changes.status = status
    changes.progress = count_by_status(statuses)
    changes.over = True
    if changes.error is None:
        changes.event(f"run.{status}")
    else:
        changes.event(f"run.{status}", error=changes.error)


async def delete_run(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> RunRecord | None:
    """Delete a finished run with all that it holds. The run as it was: one that is not finished is still there."""
    run = await lock_run(connection, tenant_id, run_id)
    if run is not None and run.status in FINISHED:
        await connection.execute(sa.delete(runs).where(runs.c.tenant_id == tenant_id, runs.c.id == run_id))
    return run


# What a `RunRecord` holds and no more: each column of a result costs, and a run is polled.
_OF_RUN: list[Any] = [runs.c[field.name] for field in fields(RunRecord) if field.name in runs.c]
_OF_GOAL = (goals.c.tenant_id == runs.c.tenant_id) & (goals.c.id == runs.c.goal_id)
_HELD = (runs.c.lease_token.is_not(None) & (runs.c.ready_at > now_ms())).label("held")
# In its own words: SQLAlchemy names no table in RETURNING.
_ITS_GOAL = sa.literal_column(
    "(SELECT goals.goal FROM goals WHERE goals.tenant_id = runs.tenant_id AND goals.id = runs.goal_id)", sa.Text
)
_INSERT_RUN = Query(
    sa.insert(runs).values(created_at=now_ms(), ready_at=now_ms()).returning(*_OF_RUN, _ITS_GOAL.label("goal"), _HELD)
)
_INSERT_GOALS = Statement(sa.insert(goals))
_INSERT_RUNS = Statement(sa.insert(runs))
_SELECT_NOW = sa.select(now_ms())
_UNTOUCHED: dict[str, Any] = {
    "context": None,
    "stop_requested": None,
    "generation": None,
    "result": None,
    "error": None,
    "llm_calls": 0,
    "tool_calls": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "cost_nano_usd": None,
    "budget_warned": (),
    "active_ms": 0,
    "active_since": None,
    "open_reviews": 0,
    "answers": 0,
    "replans": 0,
    "retried_after": 0,
    "version": 1,
    "started_at": None,
    "finished_at": None,
    "held": False,
}
"""What is stored of a run that nobody has taken up yet, beside what it was given."""
_SELECT_RUN = sa.select(*_OF_RUN, goals.c.goal, _HELD).join(goals, _OF_GOAL)
_THIS_RUN = (runs.c.tenant_id == sa.bindparam("tenant_id")) & (runs.c.id == sa.bindparam("run_id"))
_SELECT_SHOWN = _SELECT_RUN.where(_THIS_RUN)
_SELECT_ONE = _SELECT_SHOWN.add_columns(goals.c.context)
_SHOWN = Query(_SELECT_SHOWN)
_VERSION = Query(sa.select(runs.c.version, runs.c.status).where(_THIS_RUN))


def _queued(goal_id: GoalId) -> NewEvent:
    return ("run.queued", None, {"goal_id": str(goal_id)})


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


def _record(row: Mapping[str, Any]) -> RunRecord:
    stop_requested = row["stop_requested"]
    typed = {
        "mode": Mode(row["mode"]),
        "status": RunStatus(row["status"]),
        "stop_requested": None if stop_requested is None else StopRequest(stop_requested),
        "budget_warned": row["budget_warned"] or (),
        "held": bool(row["held"]),
    }
    return RunRecord(**{"context": None, **row, **typed})
