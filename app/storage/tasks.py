"""Tasks as stored, read: pages for clients, attempts of one, all of a run."""

import json
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import RunId, TaskKey, TenantId
from app.domain.status import AttemptStatus, TaskStatus
from app.storage.records import AttemptRecord, TaskRecord
from app.storage.tables import attempts, calls, dependencies, tasks

_ALL_BUT_RESULT = [column for column in tasks.c if column.name != "result"]


async def list_tasks(
    connection: AsyncConnection,
    tenant_id: TenantId,
    run_id: RunId,
    *,
    limit: int,
    after: int = -1,
    generation: int | None = None,
    keys: Collection[TaskKey] | None = None,
    statuses: Sequence[TaskStatus] = (),
    with_results: bool = True,
) -> list[TaskRecord]:
    """Tasks in plan order, from the position behind `after`; without results `result` is None throughout.

    `generation` keeps those that it added, `keys` those of these names; with both, whichever fits.
    """
    columns = list(tasks.c) if with_results else [*_ALL_BUT_RESULT, sa.null().label("result")]
    query = sa.select(*columns).where(
        tasks.c.tenant_id == tenant_id, tasks.c.run_id == run_id, tasks.c.position > after
    )
    wanted = [] if generation is None else [tasks.c.generation == generation]
    if keys:
        # One value whatever their number: a plan carries thousands, and databases bound the parameters of a statement.
        wanted.append(tasks.c.key.in_(_members(connection, keys)))
    if wanted:
        query = query.where(sa.or_(*wanted))
    if statuses:
        query = query.where(tasks.c.status.in_(statuses))
    rows = (await connection.execute(query.order_by(tasks.c.position).limit(limit))).all()
    needs = await _dependencies(connection, tenant_id, run_id, rows)
    return [_record(row, needs.get(row.key, ())) for row in rows]


async def get_task(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId, key: TaskKey) -> TaskRecord | None:
    """The task, or None when the run has none of that key."""
    query = sa.select(tasks).where(tasks.c.tenant_id == tenant_id, tasks.c.run_id == run_id, tasks.c.key == key)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None
    needs = await _dependencies(connection, tenant_id, run_id, [row])
    return _record(row, needs.get(key, ()))


async def list_attempts(
    connection: AsyncConnection, tenant_id: TenantId, run_id: RunId, keys: Sequence[TaskKey]
) -> dict[TaskKey, list[AttemptRecord]]:
    """The attempts of these tasks by key, first to last, each with the sums over its calls."""
    summed = (
        sa.select(
            calls.c.task_key,
            calls.c.attempt,
            sa.func.count().label("llm_calls"),
            sa.func.coalesce(sa.func.sum(calls.c.input_tokens), 0).label("input_tokens"),
            sa.func.coalesce(sa.func.sum(calls.c.output_tokens), 0).label("output_tokens"),
            sa.func.sum(calls.c.cost_nano_usd).label("cost_nano_usd"),
        )
        .where(calls.c.tenant_id == tenant_id, calls.c.run_id == run_id, calls.c.task_key.in_(keys))
        .group_by(calls.c.task_key, calls.c.attempt)
        .subquery()
    )
    query = (
        sa.select(attempts, summed.c.llm_calls, summed.c.input_tokens, summed.c.output_tokens, summed.c.cost_nano_usd)
        .join(
            summed,
            (summed.c.task_key == attempts.c.task_key) & (summed.c.attempt == attempts.c.number),
            isouter=True,
        )
        .where(attempts.c.tenant_id == tenant_id, attempts.c.run_id == run_id, attempts.c.task_key.in_(keys))
        .order_by(attempts.c.task_key, attempts.c.number)
    )
    found: dict[TaskKey, list[AttemptRecord]] = {key: [] for key in keys}
    for row in await connection.execute(query):
        found[row.task_key].append(
            AttemptRecord(
                number=row.number,
                status=AttemptStatus(row.status),
                description=row.description,
                error=row.error,
                started_at=row.started_at,
                finished_at=row.finished_at,
                llm_calls=row.llm_calls or 0,
                input_tokens=int(row.input_tokens or 0),
                output_tokens=int(row.output_tokens or 0),
                cost_nano_usd=None if row.cost_nano_usd is None else int(row.cost_nano_usd),
            )
        )
    return found


async def _dependencies(
    connection: AsyncConnection, tenant_id: TenantId, run_id: RunId, rows: Sequence[sa.Row[Any]]
) -> dict[TaskKey, list[TaskKey]]:
    query = (
        sa.select(dependencies.c.task_key, dependencies.c.depends_on)
        .where(dependencies.c.tenant_id == tenant_id, dependencies.c.run_id == run_id)
        .order_by(dependencies.c.task_key, dependencies.c.position)
    )
    if len(rows) <= 500:
        query = query.where(dependencies.c.task_key.in_([row.key for row in rows]))
    found: dict[TaskKey, list[TaskKey]] = {}
    for task_key, depends_on in await connection.execute(query):
        found.setdefault(task_key, []).append(depends_on)
    return found


def _members(connection: AsyncConnection, keys: Collection[TaskKey]) -> sa.ScalarSelect[Any]:
    """The keys as a subquery over one JSON document."""
    document = json.dumps(list(keys))
    if connection.dialect.name == "sqlite":
        each = sa.func.json_each(sa.bindparam(None, document, sa.Text, unique=True)).table_valued("value")
    else:
        value = sa.cast(sa.bindparam(None, document, sa.Text, unique=True), postgresql.JSONB)
        each = sa.func.jsonb_array_elements_text(value).table_valued("value")
    return sa.select(each.c.value).scalar_subquery()


def _record(row: sa.Row[Any], depends_on: Sequence[TaskKey]) -> TaskRecord:
    return TaskRecord(
        key=row.key,
        position=row.position,
        generation=row.generation,
        description=row.description,
        depends_on=depends_on,
        wave=row.wave,
        critical=bool(row.critical),
        tools=row.tools,
        output_schema=row.output_schema,
        status=TaskStatus(row.status),
        result=row.result,
        skip_reason=row.skip_reason,
        wording=row.wording,
        reworded=bool(row.reworded),
        attempts_before=row.attempts_before,
        next_attempt_at=row.next_attempt_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
