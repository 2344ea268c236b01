"""Reviews as stored: read, and answered. A worker applies the answers."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import RunId, TenantId
from app.domain.status import Decision, ReviewKind, RunStatus
from app.storage.changes import Changes
from app.storage.records import ReviewRecord, RunRecord
from app.storage.steering import make_due
from app.storage.tables import reviews
from app.storage.writing import write


async def list_reviews(
    connection: AsyncConnection, tenant_id: TenantId, run_id: RunId, *, limit: int, after: UUID | None = None
) -> list[ReviewRecord]:
    """The run's reviews in the order they were opened, from the one behind `after`."""
    query = _of_run(tenant_id, run_id).order_by(reviews.c.id).limit(limit)
    if after is not None:
        query = query.where(reviews.c.id > after)
    return [_record(row) for row in await connection.execute(query)]


async def get_review(
    connection: AsyncConnection, tenant_id: TenantId, run_id: RunId, review_id: UUID
) -> ReviewRecord | None:
    """The review, or None when the run has none of this id."""
    query = _of_run(tenant_id, run_id).where(reviews.c.id == review_id)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _record(row)


async def bearing_reviews(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> list[ReviewRecord]:
    """What bears on a run's way: reviews that are open or whose answers wait for a worker, and all those of plans."""
    bears = reviews.c.closed_at.is_(None) | (reviews.c.kind == ReviewKind.PLAN)
    query = _of_run(tenant_id, run_id).where(bears).order_by(reviews.c.id)
    return [_record(row) for row in await connection.execute(query)]


async def answer_review(
    connection: AsyncConnection, run: RunRecord, review: ReviewRecord, answer: Mapping[str, Any]
) -> None:
    """Record the answer to an open review of a run that the caller has locked; one that nobody holds is queued."""
    changes = Changes(tenant_id=run.tenant_id, run_id=run.id, token=None)
    changes.review_answered(review.id, answer, task_key=review.task_key)
    if not run.held and run.status is not RunStatus.PAUSED:
        if run.status is not RunStatus.QUEUED:
            changes.status = RunStatus.QUEUED
            changes.event("run.queued", review_id=str(review.id))
        await make_due(connection, run)
    await connection.run_sync(write, [changes])


def _of_run(tenant_id: TenantId, run_id: RunId) -> sa.Select[Any]:
    return sa.select(reviews).where(reviews.c.tenant_id == tenant_id, reviews.c.run_id == run_id)


def _record(row: sa.Row[Any]) -> ReviewRecord:
    return ReviewRecord(
        id=row.id,
        kind=ReviewKind(row.kind),
        task_key=row.task_key,
        generation=row.generation,
        tool_call=row.tool_call,
        question=row.question,
        allowed_answers=[Decision(decision) for decision in row.allowed_answers],
        answer=row.answer,
        opened_at=row.opened_at,
        answered_at=row.answered_at,
        closed_at=row.closed_at,
    )
