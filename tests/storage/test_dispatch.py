"""The lease: who may drive a run, from claim to release, and the fence that keeps everybody else out."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from app.domain.ids import RunId
from app.domain.status import CLAIMABLE, CallStatus, RunStatus, Seat, StopRequest
from app.storage import tables
from app.storage.database import Database, now_ms
from app.storage.dispatch import Flags, Lease, claim, flags, release, renew
from tests.service_process import environment
from tests.stored import (
    MINUTE_MS,
    changes_of,
    claim_due,
    claim_one,
    expire,
    make_goal,
    make_run,
    row_of,
    rows_of,
    set_run,
    the_run,
    write_changes,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLAIM_UNTIL_NOTHING_IS_DUE = """
import asyncio, json, sys
from app.storage.database import Database
from app.storage.dispatch import claim

async def main():
    database = Database(sys.argv[1])
    await database.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    runs, leases = [], True
    while leases:
        async with database.write() as connection:
            leases = await claim(connection, owner="process", limit=3, lease_ms=60_000)
        runs += [str(lease.run_id) for lease in leases]
    await database.close()
    print(json.dumps(runs), flush=True)

asyncio.run(main())
"""


async def now(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(sa.select(now_ms()))).scalar_one())


async def make_runs(database: Database, count: int) -> list[RunId]:
    goal_id = await make_goal(database)
    return [await make_run(database, goal_id=goal_id) for _ in range(count)]


async def claim_all(database: Database, *, limit: int) -> list[Lease]:
    """As a worker that takes so many at a time, until nothing is due."""
    leases: list[Lease] = []
    while taken := await claim_due(database, limit=limit):
        leases += taken
    return leases


async def renewed(database: Database, *leases: Lease) -> dict[RunId, StopRequest | None]:
    async with database.write() as connection:
        return await renew(connection, leases, lease_ms=MINUTE_MS)


async def released(database: Database, lease: Lease, *, ready_in_ms: int = 0) -> bool:
    async with database.write() as connection:
        return await release(connection, lease, ready_in_ms=ready_in_ms)


# --- claim


async def test_each_run_is_claimed_once_however_many_claim_at_once(database: Database, database_url: str) -> None:
    runs = await make_runs(database, 30)
    other = Database(database_url)
    claimed = await asyncio.gather(*(claim_all(where, limit=4) for where in (database, other) * 3))
    await other.close()
    assert Counter(lease.run_id for leases in claimed for lease in leases) == Counter(runs)


async def test_each_run_is_claimed_once_by_several_processes(database: Database, database_url: str) -> None:
    runs = await make_runs(database, 30)
    command = [sys.executable, "-c", CLAIM_UNTIL_NOTHING_IS_DUE, database_url]
    pipe = subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(*command, env=environment(), stdin=pipe, stdout=pipe) for _ in range(3)
    ]
    async with asyncio.timeout(60):
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        ended = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    claimed = [run_id for output, _ in ended for run_id in json.loads(output)]
    assert Counter(claimed) == Counter(str(run_id) for run_id in runs)


async def test_without_skip_locked_each_run_is_still_claimed_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sa.Select, "with_for_update", lambda query, **how: query)
    runs = await make_runs(database, 12)
    meet = asyncio.Barrier(6)

    async def claim_together() -> list[Lease]:
        leases: list[Lease] = []
        for _ in range(4):
            await meet.wait()
            leases += await claim_due(database, limit=3)
        return leases

    claimed = await asyncio.gather(*(claim_together() for _ in range(6)))
    assert Counter(lease.run_id for leases in claimed for lease in leases) == Counter(runs)


async def test_a_claim_that_waited_for_another_takes_nothing_of_what_that_one_took(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compare-and-set by itself: both have picked the run before either has it."""
    monkeypatch.setattr(sa.Select, "with_for_update", lambda query, **how: query)
    await make_run(database)
    async with database.write() as first:
        (lease,) = await claim(first, owner="first", limit=1, lease_ms=MINUTE_MS)
        second = asyncio.create_task(claim_due(database))
        if not database.is_sqlite:
            await waits_for_a_lock(database)
    assert await second == []
    assert (await row_of(database, lease.run_id))["lease_owner"] == "first"


async def waits_for_a_lock(database: Database) -> None:
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(30), database.read() as connection:
        while (await connection.execute(query)).scalar_one() == 0:
            pass


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


async def test_a_group_commit_and_a_renewal_of_the_same_runs_do_not_wait_for_each_other(database: Database) -> None:
    await make_runs(database, 20)
    leases = await claim_due(database)

    async def commit() -> None:
        for _ in range(10):
            await write_changes(database, *map(changes_of, leases[::-1]))

    async def keep() -> None:
        for _ in range(10):
            await renewed(database, *leases)

    await asyncio.gather(commit(), keep(), commit(), keep())


# --- fence


async def test_only_the_current_token_passes_the_fence(database: Database) -> None:
    run_id = await make_run(database)
    stale = await claim_one(database)
    await expire(database, run_id)
    current = await claim_one(database)
    assert await write_changes(database, changes_of(stale)) == {}
    assert await write_changes(database, changes_of(current, token=uuid4())) == {}
    assert set(await write_changes(database, changes_of(current))) == {run_id}


async def test_a_lease_that_has_run_out_still_passes_until_another_has_the_run(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    await expire(database, run_id)
    assert set(await write_changes(database, changes_of(lease))) == {run_id}


async def test_another_tenants_run_does_not_pass_the_fence(database: Database) -> None:
    await make_run(database)
    lease = await claim_one(database)
    foreign = changes_of(replace(lease, tenant_id="another"))  # type: ignore[arg-type]
    assert await write_changes(database, foreign) == {}


async def test_the_fence_numbers_events_without_gaps_or_twins(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)

    async def write(count: int) -> None:
        changes = changes_of(lease)
        for _ in range(count):
            changes.event("task.started")
        await write_changes(database, changes)

    await asyncio.gather(*(write(count) for count in (1, 3, 0, 2, 5)))
    seqs = [event["seq"] for event in await rows_of(database, tables.events, run_id)]
    assert seqs == list(range(1, 13))
    assert (await row_of(database, run_id))["event_seq"] == 12


async def test_the_fence_leaves_the_end_of_the_lease_alone(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    await set_run(database, run_id, ready_at=1_234)
    await write_changes(database, changes_of(lease))
    assert (await row_of(database, run_id))["ready_at"] == 1_234
    over = changes_of(lease)
    over.over, over.status = True, RunStatus.SUCCEEDED
    await write_changes(database, over)
    assert (await row_of(database, run_id))["ready_at"] == 1_234


async def test_the_fence_counts_a_version_for_every_commit(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    before = (await the_run(database, run_id)).version
    await write_changes(database, changes_of(lease))
    await write_changes(database, changes_of(lease))
    assert (await the_run(database, run_id)).version == before + 2


async def test_a_clients_request_passes_the_fence_without_a_token(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    request = changes_of(lease, token=None)
    request.stop_requested = StopRequest.CANCEL
    await write_changes(database, request)
    row = await row_of(database, run_id)
    assert (row["stop_requested"], row["lease_token"]) == ("cancel", lease.token)


async def test_fence_renewal_and_a_look_at_the_flags_all_tell_of_a_cancel(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)

    async def seen() -> dict[RunId, Flags]:
        async with database.read() as connection:
            return await flags(connection, [lease])

    assert (await renewed(database, lease), await seen()) == ({run_id: None}, {})
    request = changes_of(lease, token=None)
    request.stop_requested = StopRequest.CANCEL
    await write_changes(database, request)
    fenced = await write_changes(database, changes_of(lease))
    assert fenced[run_id].stop_requested is StopRequest.CANCEL
    assert await renewed(database, lease) == {run_id: StopRequest.CANCEL}
    assert await seen() == {run_id: Flags(stop_requested=StopRequest.CANCEL, answers=0)}


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
