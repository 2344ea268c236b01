"""All that a worker must know to drive a run, fresh or half done, read at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import TaskKey
from app.domain.status import AttemptStatus, CallStatus, Seat, SideEffects, TaskStatus, ToolCallStatus
from app.domain.transcript import AskedCall
from app.domain.usage import Usage
from app.storage.dispatch import Lease
from app.storage.plans import list_plans
from app.storage.records import PlanRecord, ReviewRecord, RunRecord, TaskRecord
from app.storage.reviews import bearing_reviews
from app.storage.runs import get_run
from app.storage.tables import attempts, calls, tasks, tool_calls
from app.storage.tasks import list_tasks

_ALL = 2**31 - 1
_OVER = (TaskStatus.SUCCEEDED, TaskStatus.SKIPPED, TaskStatus.SUPERSEDED)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredAttempt:
    """One try at a task."""

    number: int
    status: AttemptStatus
    description: str
    error: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredCall:
    """A call whose outcome matters to what comes next; `error` of a rejected plan holds its problems."""

    number: int
    seat: Seat
    task_key: TaskKey | None
    attempt: int | None
    try_number: int
    model: str
    status: CallStatus
    answer: str | None
    error: Mapping[str, Any] | None
    retry_at: int | None
    reserved: Usage
    reserved_cost_nano_usd: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRun:
    """A run with its tasks in plan order, their attempts, and the calls and reviews that bear on what comes next.

    `plans` are there once there is more than one; `reviews` are all of plans, and those of other kinds that are open or
    whose answers wait.
    """

    run: RunRecord
    tasks: Sequence[TaskRecord]
    plans: Sequence[PlanRecord]
    attempts: Mapping[TaskKey, Sequence[StoredAttempt]]
    calls: Sequence[StoredCall]
    tool_calls: Mapping[TaskKey, Sequence[AskedCall]]
    """Of tasks that are not over, in the order they were asked for."""
    reviews: Sequence[ReviewRecord]
    last_call: int
    last_tool_call: int


async def load(connection: AsyncConnection, lease: Lease) -> StoredRun | None:
    """The run of this lease; None when it has been deleted."""
    run = await get_run(connection, lease.tenant_id, lease.run_id)
    if run is None:
        return None
    of_run = (lease.tenant_id, lease.run_id)
    of_plans = [] if run.generation is None else await list_tasks(connection, *of_run, limit=_ALL)
    may_act = run.llm_calls > 0 and any(task.tools for task in of_plans)
    return StoredRun(
        run=run,
        tasks=of_plans,
        plans=await list_plans(connection, *of_run, limit=_ALL) if run.generation else [],
        attempts=await _attempts(connection, lease) if run.llm_calls else {},
        calls=await _calls(connection, lease, after=run.retried_after) if run.llm_calls else [],
        tool_calls=await _tool_calls(connection, lease) if may_act else {},
        reviews=await bearing_reviews(connection, *of_run) if run.open_reviews or run.answers else [],
        last_call=run.llm_calls,
        last_tool_call=await _last_tool_call(connection, lease) if may_act else 0,
    )


async def _attempts(connection: AsyncConnection, lease: Lease) -> dict[TaskKey, list[StoredAttempt]]:
    query = (
        sa.select(attempts)
        .where(attempts.c.tenant_id == lease.tenant_id, attempts.c.run_id == lease.run_id)
        .order_by(attempts.c.task_key, attempts.c.number)
    )
    found: dict[TaskKey, list[StoredAttempt]] = {}
    for row in await connection.execute(query):
        found.setdefault(row.task_key, []).append(
            StoredAttempt(
                number=row.number, status=AttemptStatus(row.status), description=row.description, error=row.error
            )
        )
    return found


async def _calls(connection: AsyncConnection, lease: Lease, *, after: int) -> list[StoredCall]:
    """Those since the last retry; of those before it, the ones that were left open."""
    matters = (calls.c.status == CallStatus.OPEN) | (
        (calls.c.number > after)
        & (
            (calls.c.status == CallStatus.FAILED)
            | calls.c.error.is_not(None)
            | calls.c.answer.is_not(None)
            | (calls.c.seat != Seat.EXECUTOR)
        )
    )
    query = (
        sa.select(calls)
        .where(calls.c.tenant_id == lease.tenant_id, calls.c.run_id == lease.run_id, matters)
        .order_by(calls.c.number)
    )
    return [
        StoredCall(
            number=row.number,
            seat=Seat(row.seat),
            task_key=row.task_key,
            attempt=row.attempt,
            try_number=row.try_number,
            model=row.model,
            status=CallStatus(row.status),
            answer=row.answer,
            error=row.error,
            retry_at=row.retry_at,
            reserved=Usage(input_tokens=row.reserved_input_tokens, output_tokens=row.reserved_output_tokens),
            reserved_cost_nano_usd=row.reserved_cost_nano_usd,
        )
        for row in await connection.execute(query)
    ]


async def _tool_calls(connection: AsyncConnection, lease: Lease) -> dict[TaskKey, list[AskedCall]]:
    of_run = (tool_calls.c.tenant_id == lease.tenant_id, tool_calls.c.run_id == lease.run_id)
    over = sa.select(tasks.c.key).where(
        tasks.c.tenant_id == lease.tenant_id, tasks.c.run_id == lease.run_id, tasks.c.status.in_(_OVER)
    )
    query = sa.select(tool_calls).where(*of_run, tool_calls.c.task_key.not_in(over)).order_by(tool_calls.c.number)
    found: dict[TaskKey, list[AskedCall]] = {}
    for row in await connection.execute(query):
        found.setdefault(row.task_key, []).append(
            AskedCall(
                number=row.number,
                step=row.step,
                attempt=row.attempt,
                position=row.position,
                call_id=row.call_id,
                tool=row.tool,
                arguments=row.arguments,
                key=row.idempotency_key,
                side_effects=SideEffects(row.side_effects),
                status=ToolCallStatus(row.status),
                result=row.result,
                error=row.error,
            )
        )
    return found


async def _last_tool_call(connection: AsyncConnection, lease: Lease) -> int:
    query = sa.select(sa.func.max(tool_calls.c.number)).where(
        tool_calls.c.tenant_id == lease.tenant_id, tool_calls.c.run_id == lease.run_id
    )
    return (await connection.execute(query)).scalar_one() or 0
