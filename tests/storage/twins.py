"""A run of another tenant with the same id and the same rows: what is done to the one must not touch the other."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from app.domain.ids import RunId, TenantId
from app.storage import tables
from app.storage.database import Database
from tests.stored import T

ANOTHER = TenantId("another")
OF_RUNS = (
    tables.plans,
    tables.tasks,
    tables.dependencies,
    tables.attempts,
    tables.calls,
    tables.reviews,
    tables.events,
)


async def make_twin(database: Database, run_id: RunId, *, of: TenantId = T) -> None:
    """Copy the goal, the run with its lease, and all of its rows to the other tenant."""
    goal_id = sa.select(tables.runs.c.goal_id).where(tables.runs.c.id == run_id).scalar_subquery()
    owned = {tables.goals: tables.goals.c.id == goal_id, tables.runs: tables.runs.c.id == run_id}
    owned |= {table: table.c.run_id == run_id for table in OF_RUNS}
    async with database.write() as connection:
        for table, belongs in owned.items():
            columns = [sa.literal(ANOTHER) if column.name == "tenant_id" else column for column in table.columns]
            rows = sa.select(*columns).where(table.c.tenant_id == of, belongs)
            await connection.execute(sa.insert(table).from_select(table.columns.keys(), rows))


async def all_of(database: Database, run_id: RunId, *, tenant: TenantId = T) -> dict[str, Sequence[dict[str, Any]]]:
    """Every row of one tenant's run, by table."""
    found: dict[str, Sequence[dict[str, Any]]] = {}
    async with database.read() as connection:
        for table, column in ((tables.runs, tables.runs.c.id), *((table, table.c.run_id) for table in OF_RUNS)):
            query = sa.select(table).where(table.c.tenant_id == tenant, column == run_id)
            rows = await connection.execute(query.order_by(*table.primary_key.columns))
            found[table.name] = [dict(row._mapping) for row in rows]
    return found


async def set_twin(database: Database, run_id: RunId, **columns: Any) -> None:
    """Bend the other tenant's run."""
    this = (tables.runs.c.tenant_id == ANOTHER, tables.runs.c.id == run_id)
    async with database.write() as connection:
        await connection.execute(sa.update(tables.runs).where(*this).values(**columns))
