"""What clients ask of runs: to end, stand still, go on."""

from typing import Any

import pytest

from app.domain.ids import RunId, TenantId
from app.domain.status import ReviewKind, RunStatus
from app.storage import tables
from app.storage.database import Database, new_id
from app.storage.records import RunRecord
from app.storage.steering import request_cancel, request_pause, request_resume
from tests.invariants import check
from tests.scripted_model import DIAMOND
from tests.storage.half_done import Request, asked, cancelled, last_event, make_half_done_run
from tests.stored import (
    T,
    changes_of,
    claim_due,
    claim_one,
    expire,
    make_run,
    row_of,
    rows_of,
    set_run,
    the_run,
    write_changes,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANOTHER = TenantId("another")
FINISHED = [RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED]


async def paused(database: Database, run_id: RunId) -> tuple[RunRecord, bool]:
    return await asked(database, request_pause, run_id)


async def resumed(database: Database, run_id: RunId) -> tuple[RunRecord, bool]:
    return await asked(database, request_resume, run_id)


async def changed_columns(database: Database, run_id: RunId, before: dict[str, Any]) -> set[str]:
    after = await row_of(database, run_id)
    return {name for name in after if after[name] != before[name]}


@pytest.mark.parametrize("request_", [request_cancel, request_pause, request_resume])
async def test_what_is_not_there_and_what_is_another_tenants_is_not_found(
    database: Database, request_: Request
) -> None:
    run_id = await make_run(database)
    async with database.write() as connection:
        assert await request_(connection, T, RunId(new_id())) is None
        assert await request_(connection, ANOTHER, run_id) is None
    assert (await the_run(database, run_id)).status is RunStatus.QUEUED


# --- cancel


@pytest.mark.parametrize("plan", [None, DIAMOND], ids=["before its plan", "with a plan"])
async def test_a_queued_run_is_cancelled_at_once(database: Database, plan: Any) -> None:
    run_id = await make_run(database, plan=plan)
    run, did = await cancelled(database, run_id)
    assert (run.status, did) == (RunStatus.CANCELLED, True)
    await check(database, run_id)


async def test_a_run_whose_worker_has_died_is_cancelled_at_once_with_all_that_was_under_way(
    database: Database,
) -> None:
    run_id = await make_half_done_run(database)
    await expire(database, run_id)
    run, did = await cancelled(database, run_id)
    assert (run.status, did) == (RunStatus.CANCELLED, True)
    await check(database, run_id)
    tasks = await rows_of(database, tables.tasks, run_id)
    assert [task["status"] for task in tasks] == ["succeeded", "cancelled", "cancelled", "cancelled"]
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [attempt["status"] for attempt in attempts] == ["succeeded", "cancelled"]
    calls = await rows_of(database, tables.calls, run_id)
    assert [call["status"] for call in calls] == ["answered", "lost"]
    assert (run.input_tokens, run.output_tokens, run.cost_nano_usd) == (100, 50, 7)
    events = [(event["type"], event["task_key"]) for event in await rows_of(database, tables.events, run_id)]
    assert events[-4:] == [
        ("task.cancelled", "0.b"),
        ("task.cancelled", "0.c"),
        ("task.cancelled", "0.d"),
        ("run.cancelled", None),
    ]


async def test_a_worker_that_comes_back_to_a_run_cancelled_meanwhile_is_refused(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    await expire(database, run_id)
    await cancelled(database, run_id)
    assert await write_changes(database, changes_of(lease)) == {}
    await check(database, run_id)


async def test_of_a_held_run_a_cancel_only_sets_the_flag(database: Database) -> None:
    run_id = await make_half_done_run(database)
    before = await row_of(database, run_id)
    run, did = await cancelled(database, run_id)
    assert (run.status, run.stop_requested, did) == (RunStatus.RUNNING, "cancel", True)
    after = await row_of(database, run_id)
    assert {name for name in after if after[name] != before[name]} == {"stop_requested", "version"}
    await check(database, run_id)


async def test_cancelling_a_held_run_again_does_nothing_more(database: Database) -> None:
    run_id = await make_half_done_run(database)
    await cancelled(database, run_id)
    before = await row_of(database, run_id)
    assert not (await cancelled(database, run_id))[1]
    assert await row_of(database, run_id) == before


async def test_cancelling_again_ends_a_run_whose_worker_died_before_it_could(database: Database) -> None:
    """Nobody holds it any more, so that the request itself moves it."""
    run_id = await make_half_done_run(database)
    await cancelled(database, run_id)
    await expire(database, run_id)
    run, did = await cancelled(database, run_id)
    assert (run.status, did) == (RunStatus.CANCELLED, True)
    await check(database, run_id)


async def test_a_cancel_closes_what_nobody_has_answered(database: Database) -> None:
    run_id = await make_run(database, plan=DIAMOND)
    changes = changes_of(await claim_one(database))
    review_id = new_id()
    changes.review_opened(review_id, ReviewKind.PLAN, question={}, allowed_answers=["approve"], generation=0)
    changes.status, changes.parked = RunStatus.AWAITING_REVIEW, True
    changes.event("run.awaiting_review")
    await write_changes(database, changes)
    await check(database, run_id)

    run, _ = await cancelled(database, run_id)

    (review,) = await rows_of(database, tables.reviews, run_id)
    *_, end = await rows_of(database, tables.events, run_id)
    assert (end["type"], review["closed_at"]) == ("run.cancelled", end["at"])
    assert (review["answered_at"], run.open_reviews) == (None, 0)
    await check(database, run_id)


# --- pause


async def test_a_queued_run_is_paused_at_once_and_nobody_gets_it(database: Database) -> None:
    run_id = await make_run(database, plan=DIAMOND)

    run, did = await paused(database, run_id)

    assert (run.status, run.stop_requested, did) == (RunStatus.PAUSED, None, True)
    assert await last_event(database, run_id) == "run.paused"
    assert await claim_due(database) == []
    await check(database, run_id)


async def test_of_a_held_run_a_pause_only_sets_the_flag(database: Database) -> None:
    run_id = await make_half_done_run(database)
    before = await row_of(database, run_id)

    run, did = await paused(database, run_id)

    assert (run.status, run.stop_requested, did) == (RunStatus.RUNNING, "pause", True)
    assert await changed_columns(database, run_id, before) == {"stop_requested", "version"}
    await check(database, run_id)


async def test_a_run_whose_worker_has_died_is_paused_at_once_and_its_clock_stands(database: Database) -> None:
    run_id = await make_half_done_run(database)
    await paused(database, run_id)
    await expire(database, run_id)
    await set_run(database, run_id, active_ms=5, active_since=0)

    run, did = await paused(database, run_id)

    assert (run.status, run.stop_requested, did) == (RunStatus.PAUSED, None, True)
    assert run.active_since is None
    assert run.active_ms > 1_000_000_000  # since 1970
    await check(database, run_id)


async def test_a_worker_that_comes_back_to_a_run_paused_meanwhile_is_refused(database: Database) -> None:
    run_id = await make_run(database)
    lease = await claim_one(database)
    await expire(database, run_id)
    await paused(database, run_id)

    assert await write_changes(database, changes_of(lease)) == {}
    assert (await the_run(database, run_id)).status is RunStatus.PAUSED


@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
async def test_pausing_again_does_nothing_more(database: Database, held: bool) -> None:
    run_id = await make_half_done_run(database) if held else await make_run(database)
    await paused(database, run_id)
    before = await row_of(database, run_id)

    assert not (await paused(database, run_id))[1]
    assert await row_of(database, run_id) == before


async def test_a_run_that_is_to_be_cancelled_is_not_paused(database: Database) -> None:
    run_id = await make_half_done_run(database)
    await cancelled(database, run_id)

    run, did = await paused(database, run_id)

    assert (run.stop_requested, did) == ("cancel", False)


async def test_a_cancel_takes_the_place_of_a_pause(database: Database) -> None:
    run_id = await make_half_done_run(database)
    await paused(database, run_id)

    run, did = await cancelled(database, run_id)

    assert (run.stop_requested, did) == ("cancel", True)


# --- resume


async def test_a_paused_run_is_queued_and_due_at_once(database: Database) -> None:
    run_id = await make_run(database, plan=DIAMOND)
    await set_run(database, run_id, ready_at=2**53)  # it waited for a retry
    await paused(database, run_id)

    run, did = await resumed(database, run_id)

    assert (run.status, did) == (RunStatus.QUEUED, True)
    assert await last_event(database, run_id) == "run.resumed"
    assert (await claim_one(database)).run_id == run_id
    await check(database, run_id)


async def test_a_pause_that_was_not_followed_yet_is_taken_back_and_the_lease_stays(database: Database) -> None:
    run_id = await make_half_done_run(database)
    before = await row_of(database, run_id)
    await paused(database, run_id)

    run, did = await resumed(database, run_id)

    assert (run.status, run.stop_requested, did) == (RunStatus.RUNNING, None, True)
    assert await changed_columns(database, run_id, before) == {"version"}
    await check(database, run_id)


@pytest.mark.parametrize("status", [status for status in RunStatus if status is not RunStatus.PAUSED])
async def test_resuming_a_run_that_is_not_paused_leaves_it_alone(database: Database, status: RunStatus) -> None:
    run_id = await make_run(database)
    await set_run(database, run_id, status=status)
    before = await row_of(database, run_id)

    run, did = await resumed(database, run_id)

    assert (run.status, did) == (status, False)
    assert await row_of(database, run_id) == before


@pytest.mark.parametrize("request_", [request_cancel, request_pause])
@pytest.mark.parametrize("status", FINISHED)
async def test_a_finished_run_is_neither_cancelled_nor_paused(
    database: Database, status: RunStatus, request_: Request
) -> None:
    run_id = await make_run(database)
    await set_run(database, run_id, status=status)
    before = await row_of(database, run_id)

    run, did = await asked(database, request_, run_id)

    assert (run.status, did) == (status, False)
    assert await row_of(database, run_id) == before
