"""Events as stored, read."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import RunId, TenantId
from app.storage.records import EventRecord
from app.storage.tables import events


async def list_events(
    connection: AsyncConnection, tenant_id: TenantId, run_id: RunId, *, limit: int, after: int = 0
) -> Sequence[EventRecord]:
    """Events of the run in order, from the one behind `after`."""
    query = (
        sa.select(events)
        .where(events.c.tenant_id == tenant_id, events.c.run_id == run_id, events.c.seq > after)
        .order_by(events.c.seq)
        .limit(limit)
    )
    return [
        EventRecord(seq=row.seq, type=row.type, at=row.at, task_key=row.task_key, data=row.data)
        for row in await connection.execute(query)
    ]
