"""The lease: who may drive a run, from claim to release."""

from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from app.domain.ids import RunId, TenantId
from app.domain.status import CLAIMABLE, CallStatus, RunStatus, Seat, StopRequest
from app.storage import dispatch
from app.storage.database import Database
from app.storage.dispatch import Flags, Lease, flags, flags_locked, release, set_owner
from tests.storage.leases import make_runs, now, released, renewed
from tests.storage.twins import ANOTHER, all_of, make_twin, set_twin
from tests.stored import (
    MINUTE_MS,
    T,
    changes_of,
    claim_due,
    claim_one,
    expire,
    make_goal,
    make_run,
    row_of,
    set_run,
    the_run,
    write_changes,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- claim


async def test_the_most_urgent_runs_are_claimed_first_and_of_equals_the_one_due_longest(database: Database) -> None:
    late, early = await make_runs(database, 2)
    await set_run(database, late, ready_at=2)
    await set_run(database, early, ready_at=1)
    urgent = await make_run(database, priority=5)
    assert [(await claim_one_of_many(database)).run_id for _ in range(3)] == [urgent, early, late]


async def claim_one_of_many(database: Database) -> Lease:
    (lease,) = await claim_due(database, limit=1)
    return lease


async def test_leases_claimed_together_come_in_the_order_of_their_urgency(database: Database) -> None:
    goal_id = await make_goal(database)
    by_urgency = {
        priority: await make_run(database, goal_id=goal_id, priority=priority) for priority in (3, 9, 1, 7, 5)
    }
    leases = await claim_due(database)
    assert [lease.run_id for lease in leases] == [by_urgency[number] for number in (9, 7, 5, 3, 1)]


async def test_a_claim_takes_no_more_than_its_limit(database: Database) -> None:
    await make_runs(database, 3)
    assert len(await claim_due(database, limit=2)) == 2


async def test_a_run_is_not_claimed_before_it_is_due(database: Database) -> None:
    run_id = await make_run(database)
    await set_run(database, run_id, ready_at=await now(database) + MINUTE_MS)
    assert await claim_due(database) == []
    await expire(database, run_id)
    assert (await claim_one(database)).run_id == run_id


@pytest.mark.parametrize("status", [status for status in RunStatus if status not in CLAIMABLE])
async def test_a_run_that_is_over_or_stands_still_is_not_claimed(database: Database, status: RunStatus) -> None:
    run_id = await make_run(database)
    await set_run(database, run_id, status=status, ready_at=0)
    assert await claim_due(database) == []


async def test_a_claim_reads_the_index_of_what_is_claimable(database: Database) -> None:
    """A worker claims every second, and most of a grown table is finished runs."""
    seen: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    sa.event.listen(database._engine.sync_engine, "before_cursor_execute", note)
    await claim_due(database)
    sa.event.remove(database._engine.sync_engine, "before_cursor_execute", note)
    statement, parameters = next(one for one in seen if "picked" in one[0])
    async with database.write() as connection:
        if not database.is_sqlite:  # which finds a table as small as this one quicker to read whole
            await connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
        plan = [row[-1] for row in await connection.exec_driver_sql(f"{explain} {statement}", parameters)]
    assert any("ix_runs_claimable" in step for step in plan), plan


async def test_an_expired_lease_is_claimed_anew_and_counted_as_a_takeover(database: Database) -> None:
    await make_run(database)
    first = await claim_one(database)
    await expire(database, first.run_id)
    second = await claim_one(database)
    assert (first.epoch, first.takeovers, second.epoch, second.takeovers) == (1, 0, 2, 1)
    assert first.token != second.token


async def test_only_runs_that_nobody_has_are_claimed_while_other_workers_may_come_back(database: Database) -> None:
    given_back, abandoned = await make_run(database), await make_run(database)
    for lease in await claim_due(database):
        if lease.run_id == given_back:
            await released(database, lease)
    await expire(database, abandoned)
    queued = await make_run(database)
    leases = await claim_due(database, abandoned=False)
    assert {lease.run_id for lease in leases} == {given_back, queued}


async def test_a_run_that_was_released_is_claimed_anew_without_a_takeover(database: Database) -> None:
    await make_run(database)
    first = await claim_one(database)
    await released(database, first)
    second = await claim_one(database)
    assert (second.epoch, second.takeovers) == (2, 0)


async def test_a_lease_runs_as_long_as_it_was_asked_for(database: Database) -> None:
    await make_run(database)
    before = await now(database)
    lease = await claim_one(database, lease_ms=5_000)
    assert before + 5_000 <= (await row_of(database, lease.run_id))["ready_at"] <= await now(database) + 5_000


async def test_a_run_is_held_while_its_lease_runs(database: Database) -> None:
    run_id = await make_run(database)
    seen = [(await the_run(database, run_id)).held]
    await claim_one(database)
    seen.append((await the_run(database, run_id)).held)
    await expire(database, run_id)
    seen.append((await the_run(database, run_id)).held)
    assert seen == [False, True, False]


async def test_what_is_not_due_does_not_use_up_a_claims_limit(database: Database) -> None:
    due, later = await make_runs(database, 2)
    await set_run(database, later, priority=5, ready_at=await now(database) + MINUTE_MS)
    over = await make_run(database, priority=9)
    await set_run(database, over, status=RunStatus.SUCCEEDED)
    assert (await claim_one_of_many(database)).run_id == due


async def test_a_run_is_due_from_the_very_millisecond_on(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held up to this one; nobody's in between."""
    await set_run(database, await make_run(database), ready_at=1_000)
    for time, due in ((999, 0), (1_000, 1)):
        monkeypatch.setattr(dispatch, "now_ms", partial(sa.literal, time, sa.BigInteger))
        assert len(await claim_due(database)) == due


async def test_the_end_of_a_holder_that_did_not_drive_yet_is_not_charged(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    async with database.write() as connection:
        assert await set_owner(connection, lease, None)
    await expire(database, run_id)
    assert (await claim_one(database)).takeovers == 0
    await expire(database, run_id)
    assert (await claim_one(database)).takeovers == 1


async def test_an_owner_is_named_for_a_run_that_is_still_held_only(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    await expire(database, run_id)
    await claim_one(database)
    async with database.write() as connection:
        assert not await set_owner(connection, lease, "late")
    assert (await row_of(database, run_id))["lease_owner"] == "a"


async def test_a_claim_takes_only_what_it_has_picked_though_another_tenants_run_has_its_id(database: Database) -> None:
    run_id = await make_run(database)
    await make_twin(database, run_id)
    leases = [await claim_one_of_many(database) for _ in range(2)]
    assert {(lease.tenant_id, lease.run_id) for lease in leases} == {(T, run_id), (ANOTHER, run_id)}
    assert await claim_due(database) == []


async def test_equally_urgent_leases_come_in_the_order_in_which_their_runs_were_made(database: Database) -> None:
    runs = await make_runs(database, 4)
    for run_id in (runs[2], runs[0], runs[3], runs[1]):
        await set_run(database, run_id, ready_at=1)
    assert [lease.run_id for lease in await claim_due(database)] == runs


async def test_a_lease_tells_whose_it_is_and_since_when(database: Database) -> None:
    run_id = await make_run(database)
    before = await now(database)
    lease = await claim_one(database, owner="worker 7")
    row = await row_of(database, run_id)
    assert (row["lease_token"], row["lease_owner"], row["epoch"]) == (lease.token, "worker 7", lease.epoch)
    assert before <= lease.claimed_at <= await now(database)


# --- renew


async def test_renewing_extends_what_is_ours_and_leaves_out_what_is_lost(database: Database) -> None:
    await make_runs(database, 3)
    kept, lost, others = await claim_due(database, lease_ms=1_000)
    await expire(database, lost.run_id)
    taken_over = await claim_one(database, owner="b", lease_ms=1_000)
    before = await now(database)
    assert await renewed(database, kept, lost) == {kept.run_id: None}
    ends = {lease.run_id: (await row_of(database, lease.run_id))["ready_at"] for lease in (kept, taken_over, others)}
    assert ends[kept.run_id] >= before + MINUTE_MS
    assert ends[taken_over.run_id] < before + MINUTE_MS
    assert ends[others.run_id] < before + MINUTE_MS


async def test_a_lease_that_ran_out_and_was_not_taken_is_renewed(database: Database) -> None:
    await make_run(database)
    lease = await claim_one(database)
    await expire(database, lease.run_id)
    assert await renewed(database, lease) == {lease.run_id: None}
    assert (await the_run(database, lease.run_id)).held


async def test_renewing_a_hundred_leases_is_one_statement(database: Database) -> None:
    runs = await make_runs(database, 100)
    leases = await claim_due(database, limit=100)
    assert set(await renewed(database, *leases)) == set(runs)


async def test_what_is_renewed_is_no_other_tenants_run(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    await make_twin(database, run_id)
    await set_twin(database, run_id, ready_at=1)
    before = await all_of(database, run_id, tenant=ANOTHER)
    assert await renewed(database, lease) == {run_id: None}
    assert await all_of(database, run_id, tenant=ANOTHER) == before
    assert await renewed(database, replace(lease, tenant_id=TenantId("a third"))) == {}


async def test_a_lease_of_one_run_renews_no_other_of_the_same_claim(database: Database) -> None:
    await make_runs(database, 2)
    first, second = await claim_due(database)
    before = await row_of(database, second.run_id)
    assert await renewed(database, first) == {first.run_id: None}
    assert await row_of(database, second.run_id) == before


# --- what clients ask


async def seen(database: Database, *leases: Lease) -> dict[RunId, Flags]:
    """What their owner is told of these."""
    async with database.read() as connection:
        found = await flags(connection, "a")
    named = {lease.run_id: (lease.tenant_id, lease.run_id, lease.token) for lease in leases}
    return {run_id: found[lease] for run_id, lease in named.items() if lease in found}


async def seen_locked(database: Database, lease: Lease) -> Flags | None:
    async with database.write() as connection:
        return await flags_locked(connection, lease)


@pytest.mark.parametrize(
    "asked",
    [
        Flags(stop_requested=StopRequest.PAUSE, answers=0),
        Flags(stop_requested=None, answers=1),
        Flags(stop_requested=StopRequest.CANCEL, answers=2),
    ],
)
async def test_a_look_at_the_flags_tells_of_those_of_our_runs_of_which_something_is_asked(
    database: Database, asked: Flags
) -> None:
    await make_runs(database, 4)
    ours, silent, lost, others = await claim_due(database)
    for lease in (ours, lost, others):
        await set_run(database, lease.run_id, stop_requested=asked.stop_requested, answers=asked.answers)
    await make_twin(database, ours.run_id)
    await set_twin(database, ours.run_id, answers=99)
    await set_run(database, lost.run_id, lease_token=uuid4())
    await set_run(database, others.run_id, lease_owner="another")
    assert await seen(database, ours, silent, lost, others) == {ours.run_id: asked}
    assert await seen_locked(database, ours) == asked
    assert await seen_locked(database, silent) == Flags(stop_requested=None, answers=0)
    assert await seen_locked(database, lost) is None


async def test_fence_renewal_and_a_look_at_the_flags_all_tell_of_a_cancel(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    assert (await renewed(database, lease), await seen(database, lease)) == ({run_id: None}, {})
    request = changes_of(lease, token=None)
    request.stop_requested = StopRequest.CANCEL
    await write_changes(database, request)
    fenced = await write_changes(database, changes_of(lease))
    assert fenced[run_id].stop_requested is StopRequest.CANCEL
    assert await renewed(database, lease) == {run_id: StopRequest.CANCEL}
    assert await seen(database, lease) == {run_id: Flags(stop_requested=StopRequest.CANCEL, answers=0)}


async def test_an_outcome_ends_the_count_of_takeovers_and_a_lost_call_does_not(database: Database) -> None:
    run_id = await make_run(database)
    await claim_one(database)
    await expire(database, run_id)
    lease = await claim_one(database)
    opened = changes_of(lease)
    for number in (1, 2):
        opened.call_opened(number, seat=Seat.PLANNER, model="m", try_number=1)
    await write_changes(database, opened)
    counts = []
    for number, status in ((1, CallStatus.LOST), (2, CallStatus.FAILED)):
        changes = changes_of(lease)
        changes.call_ended(number, status)
        await write_changes(database, changes)
        counts.append((await row_of(database, run_id))["takeovers"])
    assert counts == [1, 0]


# --- release


async def test_a_released_run_is_due_when_it_is_said_to_be(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    before = await now(database)
    assert await released(database, lease, ready_in_ms=5_000)
    row = await row_of(database, run_id)
    assert (row["lease_token"], row["lease_owner"]) == (None, None)
    assert before + 5_000 <= row["ready_at"] <= await now(database) + 5_000
    assert not (await the_run(database, run_id)).held


async def test_a_run_that_a_client_wants_stopped_is_due_at_once_when_it_is_released(database: Database) -> None:
    """Otherwise nobody would move it for as long as it had to wait."""
    run_id = await make_run(database)
    lease = await claim_one(database)
    await set_run(database, run_id, stop_requested="cancel")
    await released(database, lease, ready_in_ms=MINUTE_MS)
    assert [lease.run_id for lease in await claim_due(database)] == [run_id]


async def test_a_stale_token_neither_renews_nor_releases(database: Database) -> None:
    run_id = await make_run(database)
    stale = await claim_one(database)
    await expire(database, run_id)
    current = await claim_one(database)
    assert await renewed(database, stale) == {}
    assert not await released(database, stale)
    assert (await row_of(database, run_id))["lease_token"] == current.token


async def test_what_has_been_released_passes_no_fence_any_more(database: Database) -> None:
    await make_run(database)
    lease = await claim_one(database)
    await released(database, lease)
    assert await write_changes(database, changes_of(lease)) == {}
    assert await renewed(database, lease) == {}
    assert not await released(database, lease)


@pytest.mark.parametrize(
    ("asked", "known"), [({"stop_requested": "pause"}, 0), ({"answers": 1}, 0), ({"answers": 3}, 2)]
)
async def test_a_run_of_which_something_new_is_asked_is_due_at_once_when_it_is_released(
    database: Database, asked: dict[str, Any], known: int
) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    await set_run(database, run_id, **asked)
    before = await now(database)
    await released(database, lease, ready_in_ms=MINUTE_MS, answers=known)
    assert before <= (await row_of(database, run_id))["ready_at"] <= await now(database)


async def test_answers_that_a_driver_knows_do_not_make_its_run_due(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    await set_run(database, run_id, answers=2)
    await released(database, lease, ready_in_ms=MINUTE_MS, answers=2)
    assert await claim_due(database) == []


async def test_a_release_assumes_that_no_answer_is_known(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    await set_run(database, run_id, answers=1)
    async with database.write() as connection:
        await release(connection, lease, ready_in_ms=MINUTE_MS)
    assert [lease.run_id for lease in await claim_due(database)] == [run_id]


async def test_a_release_gives_back_one_run_only(database: Database) -> None:
    """The others have its token (they were claimed together), and its id."""
    await make_runs(database, 2)
    lease, other = await claim_due(database)
    await make_twin(database, lease.run_id)

    async def others() -> list[Any]:
        return [await all_of(database, other.run_id), await all_of(database, lease.run_id, tenant=ANOTHER)]

    before = await others()
    assert await released(database, lease)
    assert await others() == before
    (mine,) = (await all_of(database, lease.run_id))["runs"]
    assert (mine["lease_token"], mine["lease_owner"]) == (None, None)
