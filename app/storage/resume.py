"""All that a worker must know to drive a run, fresh or half done, read at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import TaskKey
from app.domain.status import AttemptStatus, CallStatus, Seat
from app.storage.dispatch import Lease
from app.storage.records import RunRecord, TaskRecord
from app.storage.runs import get_run
from app.storage.tables import attempts, calls
from app.storage.tasks import list_tasks

_ALL_TASKS = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredAttempt:
    """The last try at a task."""

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
    status: CallStatus
    answer: str | None
    error: Mapping[str, Any] | None
    retry_at: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRun:
    """A run with its tasks in plan order, the last attempt of each, and the calls that bear on what comes next."""

    run: RunRecord
    tasks: Sequence[TaskRecord]
    last_attempts: Mapping[TaskKey, StoredAttempt]
    calls: Sequence[StoredCall]
    last_call: int


async def load(connection: AsyncConnection, lease: Lease) -> StoredRun | None:
    """The run of this lease; None when it has been deleted."""
    run = await get_run(connection, lease.tenant_id, lease.run_id)
    if run is None:
        return None
    tasks: list[TaskRecord] = []
    if run.generation is not None:
        tasks = await list_tasks(connection, lease.tenant_id, lease.run_id, limit=_ALL_TASKS)
    return StoredRun(
        run=run,
        tasks=tasks,
        last_attempts=await _last_attempts(connection, lease) if run.llm_calls else {},
        calls=await _calls(connection, lease) if run.llm_calls else [],
        last_call=run.llm_calls,
    )


async def _last_attempts(connection: AsyncConnection, lease: Lease) -> dict[TaskKey, StoredAttempt]:
    query = (
        sa.select(attempts)
        .where(attempts.c.tenant_id == lease.tenant_id, attempts.c.run_id == lease.run_id)
        .order_by(attempts.c.task_key, attempts.c.number)
    )
    return {
        row.task_key: StoredAttempt(
            number=row.number, status=AttemptStatus(row.status), description=row.description, error=row.error
        )
        for row in await connection.execute(query)
    }


async def _calls(connection: AsyncConnection, lease: Lease) -> list[StoredCall]:
    matters = calls.c.status.in_((CallStatus.OPEN, CallStatus.FAILED)) | (calls.c.seat != Seat.EXECUTOR)
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
            status=CallStatus(row.status),
            answer=row.answer,
            error=row.error,
            retry_at=row.retry_at,
        )
        for row in await connection.execute(query)
    ]
