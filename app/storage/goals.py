"""Goals: what was asked, each with the runs made for it."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import GoalId, RunId, TenantId
from app.storage.database import new_id, now_ms
from app.storage.records import GoalRecord
from app.storage.statements import Statement
from app.storage.tables import goals, runs


async def create_goal(
    connection: AsyncConnection, tenant_id: TenantId, *, goal: str, context: Any, metadata: Mapping[str, str]
) -> GoalId:
    """Store what was asked."""
    goal_id = GoalId(new_id())
    values = {"tenant_id": tenant_id, "id": goal_id, "goal": goal, "context": context, "metadata": metadata}
    await connection.run_sync(_INSERT.write, [values])
    return goal_id


async def get_goal(connection: AsyncConnection, tenant_id: TenantId, goal_id: GoalId) -> GoalRecord | None:
    """The goal with its runs, oldest first; None when the tenant has no such goal."""
    found = await list_goals(connection, tenant_id, limit=1, only=goal_id)
    return found[0] if found else None


async def list_goals(
    connection: AsyncConnection,
    tenant_id: TenantId,
    *,
    limit: int,
    before: GoalId | None = None,
    only: GoalId | None = None,
) -> Sequence[GoalRecord]:
    """Goals, newest first; those older than `before` where it is given."""
    query = sa.select(goals).where(goals.c.tenant_id == tenant_id).order_by(goals.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(goals.c.id < before)
    if only is not None:
        query = query.where(goals.c.id == only)
    rows = (await connection.execute(query)).all()
    of_goals = sa.select(runs.c.goal_id, runs.c.id).where(
        runs.c.tenant_id == tenant_id, runs.c.goal_id.in_([row.id for row in rows])
    )
    run_ids: dict[GoalId, list[RunId]] = {row.id: [] for row in rows}
    for goal_id, run_id in await connection.execute(of_goals.order_by(runs.c.id)):
        run_ids[goal_id].append(run_id)
    return [
        GoalRecord(
            id=row.id,
            goal=row.goal,
            context=row.context,
            metadata=row.metadata,
            run_ids=run_ids[row.id],
            created_at=row.created_at,
        )
        for row in rows
    ]


_INSERT = Statement(sa.insert(goals).values(created_at=now_ms()))
