"""Tool calls as stored, read: those of a task, and how many each generation has made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import RunId, TaskKey, TenantId
from app.domain.status import SideEffects, ToolCallStatus
from app.storage.tables import calls, tool_calls


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCallRecord:
    """A call of a tool; `arguments` as the model wrote them, `step` 1 where the attempt's first step asked for it."""

    number: int
    attempt: int
    step: int
    tool: str
    arguments: str
    side_effects: SideEffects
    status: ToolCallStatus
    result: str | None
    error: Mapping[str, Any] | None
    asked_at: int
    started_at: int | None
    finished_at: int | None


async def list_tool_calls(
    connection: AsyncConnection, tenant_id: TenantId, run_id: RunId, key: TaskKey
) -> list[ToolCallRecord]:
    """The tool calls of a task, of all its attempts, in the order in which they were asked for."""
    step = sa.func.dense_rank().over(partition_by=tool_calls.c.attempt, order_by=tool_calls.c.step)
    query = (
        sa.select(tool_calls, step.label("step_of_attempt"))
        .where(tool_calls.c.tenant_id == tenant_id, tool_calls.c.run_id == run_id, tool_calls.c.task_key == key)
        .order_by(tool_calls.c.number)
    )
    return [
        ToolCallRecord(
            number=row.number,
            attempt=row.attempt,
            step=row.step_of_attempt,
            tool=row.tool,
            arguments=row.arguments,
            side_effects=SideEffects(row.side_effects),
            status=ToolCallStatus(row.status),
            result=row.result,
            error=row.error,
            asked_at=row.asked_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )
        for row in await connection.execute(query)
    ]


async def tool_calls_by_generation(
    connection: AsyncConnection, tenant_id: TenantId, run_id: RunId, generations: Sequence[int]
) -> dict[int, int]:
    """How many calls of tools were made for steps of each of these generations; over all, they add up to the run's."""
    asked_by = (
        (calls.c.tenant_id == tool_calls.c.tenant_id)
        & (calls.c.run_id == tool_calls.c.run_id)
        & (calls.c.number == tool_calls.c.step)
    )
    query = (
        sa.select(calls.c.generation, sa.func.count().label("made"))
        .select_from(tool_calls.join(calls, asked_by))
        .where(
            tool_calls.c.tenant_id == tenant_id,
            tool_calls.c.run_id == run_id,
            tool_calls.c.started_at.is_not(None),
            calls.c.generation.in_(generations),
        )
        .group_by(calls.c.generation)
    )
    found = dict.fromkeys(generations, 0)
    for generation, made in await connection.execute(query):
        found[generation] = made
    return found
