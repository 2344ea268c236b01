"""Idempotency keys: written in the run's own transaction, so that a key and its run exist together or not at all."""

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.errors import PlanwaveError
from app.domain.ids import RunId, TenantId
from app.storage.database import now_ms
from app.storage.tables import idempotency_keys

KEPT_MS = 72 * 3600 * 1000
_LOCK_WAIT_MS = 2_000
_LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's code for a lock_timeout


class KeyTaken(PlanwaveError):
    """Another request has bound the key since it was looked up; this transaction must be given up."""

    code = "idempotency_key_taken"


class KeyBusy(PlanwaveError):
    """Another request is binding the key and does not come to its end; this transaction must be given up."""

    code = "idempotency_in_progress"


async def find_key(
    connection: AsyncConnection, tenant_id: TenantId, *, route: str, key: str
) -> tuple[str, RunId] | None:
    """The request hash and the run that this key was used for in the last 72 hours."""
    query = sa.select(idempotency_keys.c.request_hash, idempotency_keys.c.run_id).where(
        _this(tenant_id, route, key), idempotency_keys.c.created_at >= now_ms() - KEPT_MS
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else (row.request_hash, row.run_id)


async def keep_key(
    connection: AsyncConnection, tenant_id: TenantId, *, route: str, key: str, request_hash: str, run_id: RunId
) -> None:
    """Bind the key to the run, as the last write of its transaction; raises `KeyTaken` or `KeyBusy`."""
    if connection.dialect.name == "postgresql":
        # An equal key that is not committed yet makes the insert wait for what becomes of it.
        await connection.execute(sa.text(f"SET LOCAL lock_timeout = {_LOCK_WAIT_MS}"))
    too_old = idempotency_keys.c.created_at < now_ms() - KEPT_MS
    binding = sa.insert(idempotency_keys).values(
        tenant_id=tenant_id, route=route, key=key, request_hash=request_hash, run_id=run_id, created_at=now_ms()
    )
    try:
        await connection.execute(sa.delete(idempotency_keys).where(_this(tenant_id, route, key), too_old))
        await connection.execute(binding)
    except IntegrityError as error:
        raise KeyTaken("The key was bound by another request.") from error
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        raise KeyBusy("Another request is binding the key.") from error


async def forget_old_keys(connection: AsyncConnection) -> None:
    """Delete the keys that are past their 72 hours, of every tenant."""
    await connection.execute(sa.delete(idempotency_keys).where(idempotency_keys.c.created_at < now_ms() - KEPT_MS))


def _this(tenant_id: TenantId, route: str, key: str) -> sa.ColumnElement[bool]:
    return (
        (idempotency_keys.c.tenant_id == tenant_id)
        & (idempotency_keys.c.route == route)
        & (idempotency_keys.c.key == key)
    )
