"""Looks a stored database over: reads each run as one commit left it, and says what is wrong with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import RunId, TenantId
from app.storage import tables
from app.storage.invariants import Finding, findings
from app.storage.run_rows import RunRows

# What the checks look at: texts, which may be large, stay where they are.
_READ = {
    tables.plans: "generation parent_generation failed_task_keys added carried superseded critical_path",
    tables.tasks: "key generation status skip_reason finished_at tools",
    tables.dependencies: "task_key depends_on",
    tables.attempts: "task_key number status",
    tables.calls: "number generation status input_tokens output_tokens cost_nano_usd finished_at "
    "reserved_input_tokens reserved_output_tokens reserved_cost_nano_usd",
    tables.tool_calls: "number task_key attempt step position tool idempotency_key side_effects status error "
    "started_at finished_at",
    tables.reviews: "id kind task_key tool_call answer answered_at closed_at",
    tables.events: "seq type task_key data",
}
# Repeatable reads: a run that a worker goes on writing is seen as one commit left it.
_SNAPSHOT = {"sqlite": "BEGIN DEFERRED", "postgresql": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"}
_PAGE = 500


async def run_ids(connection: AsyncConnection, only: RunId | None = None) -> AsyncIterator[tuple[TenantId, RunId]]:
    """Every run with its tenant, read page by page; `only` the one of this id where it is given."""
    place = sa.tuple_(tables.runs.c.tenant_id, tables.runs.c.id)
    query = sa.select(tables.runs.c.tenant_id, tables.runs.c.id).order_by(*tables.runs.primary_key.columns)
    if only is not None:
        query = query.where(tables.runs.c.id == only)
    page = (await connection.execute(query.limit(_PAGE))).all()
    while page:
        for tenant_id, run_id in page:
            yield tenant_id, run_id
        page = (await connection.execute(query.where(place > tuple(page[-1])).limit(_PAGE))).all()


async def examine(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> list[Finding]:
    """What is wrong with this run, which may be under way; nothing where it has been deleted.

    The connection is one of `Database.read`: the snapshot that is taken here is a transaction of its own.
    """
    async with _snapshot(connection):
        try:
            rows = await _rows(connection, tenant_id, run_id)
        except (TypeError, ValueError) as error:  # as from text in a column of JSON that is none
            return [Finding(run_id=run_id, check="its_rows_can_be_read", message=str(error))]
    return [] if rows is None else findings(run_id, rows)


async def strays(connection: AsyncConnection, only: RunId | None = None) -> AsyncIterator[Finding]:
    """Rows whose run or goal is missing, or is another tenant's: what the foreign keys forbid."""
    for table in tables.metadata.sorted_tables:
        run_id = table.c.run_id if "run_id" in table.c else table.c.id
        for constraint in table.foreign_key_constraints:
            belongs = sa.and_(*(part.parent == part.column for part in constraint.elements))
            stray = ~sa.exists().where(belongs)
            query = sa.select(run_id, sa.func.count()).where(stray).group_by(run_id)
            if only is not None:
                query = query.where(run_id == only)
            for of_run, count in (await connection.execute(query)).all():
                message = f"{count} of {table.name} without their row in {constraint.referred_table.name}"
                yield Finding(run_id=of_run, check="rows_belong_to_a_row_of_their_tenant", message=message)


@asynccontextmanager
async def _snapshot(connection: AsyncConnection) -> AsyncIterator[None]:
    await connection.exec_driver_sql(_SNAPSHOT[connection.dialect.name])
    try:
        yield
    finally:
        await connection.exec_driver_sql("ROLLBACK")


async def _rows(connection: AsyncConnection, tenant_id: TenantId, run_id: RunId) -> RunRows | None:
    of_run = {"tenant_id": tenant_id, "run_id": run_id}
    run = (await connection.execute(_SELECT_RUN, of_run)).one_or_none()
    if run is None:
        return None
    found = {name: [row._mapping for row in await connection.execute(_SELECT[name], of_run)] for name in _SELECT}
    return RunRows(run=run._mapping, **found)


def _of_run(table: sa.Table, columns: str) -> sa.Select[Any]:
    wanted: list[sa.ColumnElement[Any]] = [table.c[name] for name in columns.split()]
    if table is tables.tasks:
        wanted.append(table.c.result.is_not(None).label("has_result"))
    return _owned(sa.select(*wanted), table, table.c.run_id).order_by(*table.primary_key.columns)


def _owned(query: sa.Select[Any], table: sa.Table, run_id: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return query.where(table.c.tenant_id == sa.bindparam("tenant_id"), run_id == sa.bindparam("run_id"))


_SELECT_RUN = _owned(
    sa.select(*(column for column in tables.runs.c if column.name != "result")), tables.runs, tables.runs.c.id
)
_SELECT = {table.name: _of_run(table, columns) for table, columns in _READ.items()}
