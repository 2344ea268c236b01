"""What the fence writes of a run: what a commit names, nothing that it does not name, and of no other run."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.ids import RunId
from app.domain.status import RunStatus, StopRequest
from app.storage import tables
from app.storage.database import Database
from app.storage.dispatch import Fenced, Lease, fence
from tests.storage.leases import now
from tests.storage.twins import ANOTHER, all_of, make_twin
from tests.stored import (
    T,
    changes_of,
    claim_due,
    claim_one,
    expire,
    make_goal,
    make_run,
    row_of,
    rows_of,
    set_run,
    write_changes,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOTHING: Mapping[str, Any] = {
    **dict.fromkeys(("events", "llm_calls", "tool_calls", "input_tokens", "output_tokens", "answers", "replans"), 0),
    **dict.fromkeys(("status", "generation", "progress", "result", "error", "stop_requested", "cost_nano_usd")),
    **dict.fromkeys(("budget_warned", "active", "batch_id")),
    **dict.fromkeys(("begun", "over", "release", "outcome"), False),
}
"""A commit that says nothing of its run."""


async def fenced(database: Database, lease: Lease, *, token: UUID | None, **values: Any) -> Fenced | None:
    async with database.write() as connection:
        return await connection.run_sync(
            lambda sync: fence(
                sync, tenant_id=lease.tenant_id, run_id=lease.run_id, token=token, values={**NOTHING, **values}
            )()
        )


async def leased(database: Database, **columns: Any) -> Lease:
    """A run with these columns that its worker holds."""
    await make_run(database)
    lease = await claim_one(database)
    if columns:
        await set_run(database, lease.run_id, **columns)
    return lease


async def passed(database: Database, lease: Lease, **values: Any) -> dict[str, Any]:
    """The run's row after a commit of its worker."""
    assert await fenced(database, lease, token=lease.token, **values) is not None
    return await row_of(database, lease.run_id)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("status", RunStatus.PLANNING, RunStatus.RUNNING),
        ("generation", 0, 1),
        ("progress", {"total": 1}, {"total": 2}),
        ("result", "a draft", {"it": "is"}),
        ("error", {"code": "a"}, {"code": "b"}),
        ("budget_warned", ["max_seconds"], ["max_seconds", "max_llm_calls"]),
        ("stop_requested", "pause", "cancel"),
        ("batch_id", uuid4(), uuid4()),
    ],
)
async def test_what_a_commit_names_takes_the_place_of_what_was_and_else_that_stays(
    database: Database, name: str, first: Any, second: Any
) -> None:
    lease = await leased(database)
    seen = [(await passed(database, lease, **values))[name] for values in ({name: first}, {}, {name: second})]
    assert seen == [first, first, second]


@pytest.mark.parametrize(
    ("name", "column"),
    [("events", "event_seq")]
    + [(name, name) for name in ("llm_calls", "tool_calls", "input_tokens", "output_tokens", "answers", "replans")],
)
async def test_what_a_commit_counts_is_added_to_what_was(database: Database, name: str, column: str) -> None:
    lease = await leased(database)
    before = (await row_of(database, lease.run_id))[column]
    seen = [(await passed(database, lease, **values))[column] for values in ({name: 2}, {}, {name: 3})]
    assert seen == [before + 2, before + 2, before + 5]


async def test_cost_is_unknown_until_a_call_has_a_price_and_then_the_sum_of_them(database: Database) -> None:
    lease = await leased(database)
    seen = [(await passed(database, lease, cost_nano_usd=cost))["cost_nano_usd"] for cost in (None, 5, None, 2)]
    assert seen == [None, 5, 5, 7]


async def test_every_commit_is_one_version_more(database: Database) -> None:
    lease = await leased(database)
    before = (await row_of(database, lease.run_id))["version"]
    assert [(await passed(database, lease))["version"] for _ in range(2)] == [before + 1, before + 2]


@pytest.mark.parametrize("error", [None, {"code": "b"}])
async def test_with_its_end_a_run_has_the_error_of_its_end_or_none(database: Database, error: Any) -> None:
    lease = await leased(database, error={"code": "a"})
    assert (await passed(database, lease, over=True, error=error))["error"] == error


# --- times


async def test_a_runs_clock_begins_when_it_becomes_active(database: Database) -> None:
    lease = await leased(database, active_ms=70)
    before = await now(database)
    row = await passed(database, lease, active=True)
    assert before <= row["active_since"] <= await now(database)
    assert row["active_ms"] == 70


@pytest.mark.parametrize(("active", "since"), [(True, 1_000), (None, 1_000), (None, None)])
async def test_a_runs_clock_goes_on_as_it_did(database: Database, active: bool | None, since: int | None) -> None:
    lease = await leased(database, active_ms=70, active_since=since)
    row = await passed(database, lease, active=active)
    assert (row["active_since"], row["active_ms"]) == (since, 70)


async def test_a_runs_clock_stops_and_what_it_showed_is_added(database: Database) -> None:
    began = await now(database) - 10_000
    lease = await leased(database, active_ms=70, active_since=began)
    before = await now(database)
    row = await passed(database, lease, active=False)
    assert row["active_since"] is None
    assert before - began + 70 <= row["active_ms"] <= await now(database) - began + 70


async def test_a_clock_that_was_set_back_takes_no_time_from_a_run(database: Database) -> None:
    lease = await leased(database, active_ms=70, active_since=await now(database) + 60_000)
    row = await passed(database, lease, active=False)
    assert (row["active_since"], row["active_ms"]) == (None, 70)


async def test_a_clock_that_stands_is_stopped_without_effect(database: Database) -> None:
    lease = await leased(database, active_ms=70)
    row = await passed(database, lease, active=False)
    assert (row["active_since"], row["active_ms"]) == (None, 70)


async def test_a_run_has_begun_when_it_first_says_so(database: Database) -> None:
    lease = await leased(database)
    assert (await passed(database, lease))["started_at"] is None
    before = await now(database)
    began = (await passed(database, lease, begun=True))["started_at"]
    assert before <= began <= await now(database)
    await set_run(database, lease.run_id, started_at=1_000)
    seen = [(await passed(database, lease, begun=begun))["started_at"] for begun in (True, False)]
    assert seen == [1_000, 1_000]


async def test_a_run_is_finished_when_it_is_over_and_not_before(database: Database) -> None:
    lease = await leased(database)
    assert (await passed(database, lease))["finished_at"] is None
    before = await now(database)
    finished = (await passed(database, lease, over=True))["finished_at"]
    assert before <= finished <= await now(database)
    await set_run(database, lease.run_id, finished_at=1_000)
    assert (await passed(database, lease))["finished_at"] == 1_000


# --- the lease


async def test_with_the_lease_goes_what_was_asked_of_its_holder(database: Database) -> None:
    lease = await leased(database, stop_requested="pause")
    row = await passed(database, lease, release=True, stop_requested="cancel")
    assert (row["lease_token"], row["lease_owner"], row["stop_requested"]) == (None, None, None)


async def test_a_lease_that_is_not_let_go_stays_with_its_owner(database: Database) -> None:
    lease = await leased(database)
    row = await passed(database, lease)
    assert (row["lease_token"], row["lease_owner"]) == (lease.token, "a")


async def test_takeovers_are_counted_since_the_last_outcome(database: Database) -> None:
    lease = await leased(database, takeovers=3)
    assert [(await passed(database, lease, outcome=outcome))["takeovers"] for outcome in (False, True)] == [3, 0]


async def test_the_fence_tells_what_it_let_through(database: Database) -> None:
    lease = await leased(database, event_seq=5, answers=2)
    before = await now(database)
    through = await fenced(database, lease, token=lease.token, events=3, answers=1, stop_requested="cancel")
    assert through is not None
    assert before <= through.now <= await now(database)
    assert (through.event_seq, through.answers, through.stop_requested) == (8, 3, StopRequest.CANCEL)


# --- whose run


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


async def test_a_clients_request_passes_the_fence_without_a_token(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    request = changes_of(lease, token=None)
    request.stop_requested = StopRequest.CANCEL
    await write_changes(database, request)
    row = await row_of(database, run_id)
    assert (row["stop_requested"], row["lease_token"]) == ("cancel", lease.token)


@pytest.mark.parametrize("held", [True, False], ids=["its worker", "a client"])
async def test_the_fence_lets_through_to_one_run_only(database: Database, held: bool) -> None:
    """The others have its token (they were claimed together), and its id."""
    goal_id = await make_goal(database)
    for _ in range(2):
        await make_run(database, goal_id=goal_id)
    lease, other = await claim_due(database)
    await make_twin(database, lease.run_id)

    async def others() -> list[Any]:
        return [await all_of(database, other.run_id), await all_of(database, lease.run_id, tenant=ANOTHER)]

    before, mine = await others(), (await all_of(database, lease.run_id))["runs"]
    assert await fenced(database, lease, token=lease.token if held else None, events=1) is not None
    assert await others() == before
    assert (await all_of(database, lease.run_id))["runs"] != mine


async def test_what_is_not_there_passes_no_fence(database: Database) -> None:
    lease = await leased(database)
    gone = Lease(tenant_id=T, run_id=RunId(uuid4()), token=lease.token, epoch=1, takeovers=0, claimed_at=0)
    for token in (lease.token, None):
        assert await fenced(database, gone, token=token) is None


async def test_only_a_worker_has_to_show_a_token(database: Database) -> None:
    lease = await leased(database)
    assert await fenced(database, lease, token=uuid4()) is None
    assert await fenced(database, lease, token=None) is not None
    await set_run(database, lease.run_id, lease_token=None)
    assert await fenced(database, lease, token=lease.token) is None
    assert await fenced(database, lease, token=None) is not None
