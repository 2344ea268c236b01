"""Plans as stored: the generations of a run, read, with what was used while each was the newest."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import RunId, TenantId
from app.domain.status import PlanReason
from app.storage.records import PlanRecord, UsageRecord
from app.storage.tables import calls, plans


async def get_plan(
    connection: AsyncConnection, tenant_id: TenantId, run_id: RunId, generation: int | None = None
) -> PlanRecord | None:
    """The generation, by default the newest; None when the run has no such plan."""
    query = _of_run(tenant_id, run_id).order_by(plans.c.generation.desc()).limit(1)
    if generation is not None:
        query = query.where(plans.c.generation == generation)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _record(row)


async def list_plans(
    connection: AsyncConnection, tenant_id: TenantId, run_id: RunId, *, limit: int, after: int = -1
) -> Sequence[PlanRecord]:
    """Generations, oldest first, from the one behind `after`."""
    query = _of_run(tenant_id, run_id).where(plans.c.generation > after).order_by(plans.c.generation).limit(limit)
    return [_record(row) for row in await connection.execute(query)]


async def usage_by_generation(
    connection: AsyncConnection, tenant_id: TenantId, run_id: RunId, generations: Sequence[int]
) -> dict[int, UsageRecord]:
    """The sums over the calls of each of these generations. Over all that a run has, they add up to the run's usage."""
    query = (
        sa.select(
            calls.c.generation,
            sa.func.count().label("llm_calls"),
            sa.func.coalesce(sa.func.sum(calls.c.input_tokens), 0).label("input_tokens"),
            sa.func.coalesce(sa.func.sum(calls.c.output_tokens), 0).label("output_tokens"),
            sa.func.sum(calls.c.cost_nano_usd).label("cost_nano_usd"),
        )
        .where(calls.c.tenant_id == tenant_id, calls.c.run_id == run_id, calls.c.generation.in_(generations))
        .group_by(calls.c.generation)
    )
    nothing = UsageRecord(llm_calls=0, input_tokens=0, output_tokens=0, cost_nano_usd=None)
    found = dict.fromkeys(generations, nothing)
    for row in await connection.execute(query):
        found[row.generation] = UsageRecord(
            llm_calls=row.llm_calls,
            input_tokens=int(row.input_tokens),
            output_tokens=int(row.output_tokens),
            cost_nano_usd=None if row.cost_nano_usd is None else int(row.cost_nano_usd),
        )
    return found


def _of_run(tenant_id: TenantId, run_id: RunId) -> sa.Select[Any]:
    return sa.select(plans).where(plans.c.tenant_id == tenant_id, plans.c.run_id == run_id)


def _record(row: sa.Row[Any]) -> PlanRecord:
    return PlanRecord(
        generation=row.generation,
        reason=PlanReason(row.reason),
        failed_task_keys=row.failed_task_keys,
        parent_generation=row.parent_generation,
        added=row.added,
        carried=row.carried,
        superseded=row.superseded,
        critical_path=row.critical_path,
        created_at=row.created_at,
    )
