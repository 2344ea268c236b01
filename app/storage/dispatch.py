"""How runs reach workers: claim, renew, release and fence. The `runs` table is the queue; there is no second list.

Correctness rests on two compare-and-sets: a claim takes a run only while its `ready_at` has passed, and every write of
an outcome passes the fence, which matches the token of that claim. SKIP LOCKED only spares workers each other's waits.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import RunId, TenantId
from app.domain.status import StopRequest
from app.storage.database import now_ms
from app.storage.statements import Statement
from app.storage.tables import ASKED_RUNS, CLAIMABLE_RUNS, runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The right to drive a run, until somebody else's claim replaces the token.

    `epoch` is for order and logs; `claimed_at` is the database's time of the claim, in ms.
    """

    tenant_id: TenantId
    run_id: RunId
    token: UUID
    epoch: int
    takeovers: int
    claimed_at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Fenced:
    """What the fence let through: the database's time (ms) and the number of the last event reserved."""

    now: int
    event_seq: int
    stop_requested: StopRequest | None
    answers: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """What clients have done to a run that a worker holds: `answers` counts those to its reviews."""

    stop_requested: StopRequest | None
    answers: int


async def claim(connection: AsyncConnection, *, owner: str, limit: int, lease_ms: int, abandoned: bool) -> list[Lease]:
    """Lease up to `limit` due runs, the most urgent first: queued, delayed and abandoned runs are one predicate.

    A run whose lease ran out under its `lease_owner` is charged with a take-over; without `abandoned` it is left.
    """
    token = uuid4()
    due = sa.and_(CLAIMABLE_RUNS, runs.c.ready_at <= now_ms())
    if not abandoned:
        due &= runs.c.lease_owner.is_(None)
    picked = (
        sa.select(runs.c.tenant_id, runs.c.id)
        .where(due)
        .order_by(runs.c.priority.desc(), runs.c.ready_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    statement = (
        sa.update(runs)
        .where(runs.c.tenant_id == picked.c.tenant_id, runs.c.id == picked.c.id, due)
        .values(
            lease_token=token,
            lease_owner=owner,
            epoch=runs.c.epoch + 1,
            takeovers=runs.c.takeovers + sa.case((runs.c.lease_owner.is_not(None), 1), else_=0),
            ready_at=now_ms() + lease_ms,
        )
        .returning(runs.c.tenant_id, runs.c.id, runs.c.epoch, runs.c.takeovers, runs.c.priority, now_ms().label("now"))
    )
    rows = (await connection.execute(statement)).all()
    return [
        Lease(
            tenant_id=row.tenant_id,
            run_id=row.id,
            token=token,
            epoch=row.epoch,
            takeovers=row.takeovers,
            claimed_at=row.now,
        )
        for row in sorted(rows, key=lambda row: (-row.priority, row.id))
    ]


async def renew(
    connection: AsyncConnection, leases: Collection[Lease], *, lease_ms: int, skip_locked: bool = False
) -> dict[RunId, StopRequest | None]:
    """Extend the leases; a run that is missing from the answer is lost, or locked where those are skipped.

    The values are what clients ask of the runs.
    """
    # Locked in the order of their ids, like a group commit: the two must not wait for each other.
    held = (
        sa.select(runs.c.tenant_id, runs.c.id)
        .where(_held_by(leases))
        .order_by(runs.c.id)
        .with_for_update(skip_locked=skip_locked)
        .cte("held")
    )
    statement = (
        sa.update(runs)
        .where(runs.c.tenant_id == held.c.tenant_id, runs.c.id == held.c.id)
        .values(ready_at=now_ms() + lease_ms)
        .returning(runs.c.id, runs.c.stop_requested)
    )
    return {RunId(row.id): _stop(row.stop_requested) for row in await connection.execute(statement)}


async def set_owner(connection: AsyncConnection, lease: Lease, owner: str | None) -> bool:
    """Say who drives a run that we hold; False when it is no longer ours.

    None is for a run that is held and not driven yet: the death of its holder is not charged to it.
    """
    statement = sa.update(runs).where(_held_by([lease])).values(lease_owner=owner)
    return (await connection.execute(statement)).rowcount == 1


async def flags(connection: AsyncConnection, owner: str) -> dict[tuple[TenantId, RunId, UUID], Flags]:
    """What clients ask of an owner's runs, by tenant, run and token: of those of which they ask, or have answered."""
    statement = sa.select(runs.c.tenant_id, runs.c.id, runs.c.lease_token, runs.c.stop_requested, runs.c.answers).where(
        runs.c.lease_owner == owner, ASKED_RUNS
    )
    rows = await connection.execute(statement)
    return {(TenantId(row.tenant_id), RunId(row.id), row.lease_token): _flags(row) for row in rows}


async def flags_locked(connection: AsyncConnection, lease: Lease) -> Flags | None:
    """The same of one run, which keeps from changing until this transaction ends; None when it is not ours."""
    statement = sa.select(runs.c.stop_requested, runs.c.answers).where(_held_by([lease])).with_for_update()
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else _flags(row)


async def release(connection: AsyncConnection, lease: Lease, *, ready_in_ms: int, answers: int = 0) -> bool:
    """Give the run back, due after `ready_in_ms`; False when it was no longer ours.

    It is due at once where a client wants it stopped, or has given more than the `answers` that its driver knows.
    """
    asked = runs.c.stop_requested.is_not(None) | (runs.c.answers > answers)
    statement = (
        sa.update(runs)
        .where(runs.c.tenant_id == lease.tenant_id, runs.c.id == lease.run_id, runs.c.lease_token == lease.token)
        .values(
            lease_token=None,
            lease_owner=None,
            ready_at=sa.case((asked, now_ms()), else_=now_ms() + ready_in_ms),
        )
    )
    return (await connection.execute(statement)).rowcount == 1


def _bound(name: str, type_: Any) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=type_)


def _fence(*, held: bool) -> Statement:
    """One statement for every writer: the event numbers, the version and the run's own columns, or no row at all.

    A NULL leaves a column as it is, so that every commit of every run uses the same prepared statement. `ready_at` is
    never written: it is indexed, and this is the hottest UPDATE.
    """
    keep = sa.func.coalesce
    now = now_ms()
    statement = sa.update(runs).where(
        runs.c.tenant_id == sa.bindparam("b_tenant_id"), runs.c.id == sa.bindparam("b_run_id")
    )
    if held:
        statement = statement.where(runs.c.lease_token == sa.bindparam("b_token"))
    over = _bound("b_over", sa.Boolean)
    cost = _bound("b_cost_nano_usd", sa.BigInteger)
    error = _bound("b_error", runs.c.error.type)
    active = _bound("b_active", sa.Boolean)
    let_go = _bound("b_release", sa.Boolean)
    statement = statement.values(
        event_seq=runs.c.event_seq + _bound("b_events", sa.Integer),
        version=runs.c.version + 1,
        status=keep(_bound("b_status", sa.String), runs.c.status),
        generation=keep(_bound("b_generation", sa.Integer), runs.c.generation),
        progress=keep(_bound("b_progress", runs.c.progress.type), runs.c.progress),
        result=keep(_bound("b_result", runs.c.result.type), runs.c.result),
        # Known before the run is over, where calls in flight are waited for.
        error=sa.case((over, error), else_=keep(error, runs.c.error)),
        llm_calls=runs.c.llm_calls + _bound("b_llm_calls", sa.Integer),
        tool_calls=runs.c.tool_calls + _bound("b_tool_calls", sa.Integer),
        input_tokens=runs.c.input_tokens + _bound("b_input_tokens", sa.BigInteger),
        output_tokens=runs.c.output_tokens + _bound("b_output_tokens", sa.BigInteger),
        cost_nano_usd=keep(runs.c.cost_nano_usd + cost, cost, runs.c.cost_nano_usd),
        budget_warned=keep(_bound("b_budget_warned", runs.c.budget_warned.type), runs.c.budget_warned),
        answers=runs.c.answers + _bound("b_answers", sa.Integer),
        replans=runs.c.replans + _bound("b_replans", sa.Integer),
        # The run's clock: NULL leaves it as it is, true has it run, false stops it. It never runs backwards.
        active_ms=runs.c.active_ms
        + sa.case((active.is_(sa.false()) & (now > runs.c.active_since), now - runs.c.active_since), else_=0),
        active_since=sa.case(
            (active.is_(sa.true()), keep(runs.c.active_since, now)),
            (active.is_(sa.false()), None),
            else_=runs.c.active_since,
        ),
        started_at=sa.case((_bound("b_begun", sa.Boolean), keep(runs.c.started_at, now)), else_=runs.c.started_at),
        finished_at=sa.case((over, now), else_=runs.c.finished_at),
        stop_requested=sa.case(
            (let_go, None), else_=keep(_bound("b_stop_requested", sa.String), runs.c.stop_requested)
        ),
        takeovers=sa.case((_bound("b_outcome", sa.Boolean), 0), else_=runs.c.takeovers),
        lease_token=sa.case((let_go, None), else_=runs.c.lease_token),
        lease_owner=sa.case((let_go, None), else_=runs.c.lease_owner),
        batch_id=keep(_bound("b_batch_id", sa.Uuid), runs.c.batch_id),
    )
    return Statement(statement.returning(now.label("now"), runs.c.event_seq, runs.c.stop_requested, runs.c.answers))


_FENCE_HELD = _fence(held=True)
_FENCE_ANY = _fence(held=False)


def fence(
    connection: sa.Connection,
    *,
    tenant_id: TenantId,
    run_id: RunId,
    token: UUID | None,
    values: Mapping[str, Any],
) -> Callable[[], Fenced | None]:
    """Reserve event numbers and write the run's columns, if the run is still ours; None when it is not.

    What is returned gives the answer. Those of several runs may be asked for before the first is waited for.

    `token` None is for a client's request, which needs no lease; its caller has looked at the run in this transaction.
    """
    bound: dict[str, Any] = {"b_tenant_id": tenant_id, "b_run_id": run_id}
    bound.update((f"b_{name}", value) for name, value in values.items())
    if token is not None:
        bound["b_token"] = token
    statement = _FENCE_ANY if token is None else _FENCE_HELD
    answer = statement.ask(connection, bound)

    def passed() -> Fenced | None:
        row = answer()
        if row is None:
            return None
        now, event_seq, stop_requested, answers = row
        return Fenced(now=now, event_seq=event_seq, stop_requested=_stop(stop_requested), answers=answers)

    return passed


def _held_by(leases: Collection[Lease]) -> sa.ColumnElement[bool]:
    held = [(lease.tenant_id, lease.run_id, lease.token) for lease in leases]
    return sa.tuple_(runs.c.tenant_id, runs.c.id, runs.c.lease_token).in_(held)


def _flags(row: Any) -> Flags:
    return Flags(stop_requested=_stop(row.stop_requested), answers=row.answers)


def _stop(value: str | None) -> StopRequest | None:
    return None if value is None else StopRequest(value)
