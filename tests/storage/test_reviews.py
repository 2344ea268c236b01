"""Reviews: opened, read, answered once, closed with their run."""

from uuid import UUID

import pytest

from app.domain.ids import RunId, TaskKey, TenantId
from app.domain.status import Decision, ReviewKind, RunStatus, TaskStatus
from app.storage import tables
from app.storage.database import Database, new_id
from app.storage.dispatch import Lease
from app.storage.records import ReviewRecord
from app.storage.reviews import answer_review, get_review, list_reviews
from app.storage.runs import lock_run
from app.storage.writing import count_by_status
from tests.invariants import check
from tests.scripted_model import DIAMOND
from tests.stored import (
    T,
    changes_of,
    claim_due,
    claim_one,
    key,
    make_run,
    row_of,
    rows_of,
    set_run,
    the_run,
    write_changes,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANOTHER = TenantId("another")
ANSWER = {"decision": "reject", "instructions": "Shorter, \N{SNAKE}."}


async def make_asking_run(database: Database, *, parks: bool = True) -> tuple[RunId, UUID, Lease]:
    """It asks whether its plan may be carried out; it stands still, or its worker holds it."""
    run_id = await make_run(database, plan=DIAMOND)
    lease = await claim_one(database)
    changes, review_id = changes_of(lease), new_id()
    changes.review_opened(
        review_id, ReviewKind.PLAN, question={"text": "May it?"}, allowed_answers=["approve", "reject"], generation=0
    )
    if parks:
        changes.status, changes.parked = RunStatus.AWAITING_REVIEW, True
        changes.event("run.awaiting_review")
    await write_changes(database, changes)
    await check(database, run_id)
    return run_id, review_id, lease


async def read(database: Database, run_id: RunId, review_id: UUID, tenant: TenantId = T) -> ReviewRecord | None:
    async with database.read() as connection:
        return await get_review(connection, tenant, run_id, review_id)


async def answered(database: Database, run_id: RunId, review_id: UUID) -> ReviewRecord:
    async with database.write() as connection:
        run, review = await lock_run(connection, T, run_id), await get_review(connection, T, run_id, review_id)
        assert run is not None
        assert review is not None
        await answer_review(connection, run, review, ANSWER)
    after = await read(database, run_id, review_id)
    assert after is not None
    return after


async def test_a_review_is_read_as_it_was_opened(database: Database) -> None:
    run_id, review_id, _ = await make_asking_run(database)

    review = await read(database, run_id, review_id)

    assert review is not None
    assert review == ReviewRecord(
        id=review_id,
        kind=ReviewKind.PLAN,
        task_key=None,
        generation=0,
        tool_call=None,
        question={"text": "May it?"},
        allowed_answers=[Decision.APPROVE, Decision.REJECT],
        answer=None,
        opened_at=review.opened_at,
        answered_at=None,
        closed_at=None,
    )
    assert (await the_run(database, run_id)).open_reviews == 1


async def test_nobody_but_its_tenant_finds_a_review_and_only_in_its_run(database: Database) -> None:
    run_id, review_id, _ = await make_asking_run(database)
    other = await make_run(database)

    assert await read(database, run_id, review_id, ANOTHER) is None
    assert await read(database, other, review_id) is None
    assert await read(database, run_id, new_id()) is None
    async with database.read() as connection:
        assert await list_reviews(connection, ANOTHER, run_id, limit=10) == []
        assert await list_reviews(connection, T, other, limit=10) == []


async def test_reviews_are_listed_in_the_order_of_opening(database: Database) -> None:
    await make_run(database, plan=DIAMOND)
    changes, ids = changes_of(await claim_one(database)), [new_id() for _ in range(4)]
    for review_id, task_id in zip(ids, "dbca", strict=True):
        changes.task(key(task_id), TaskStatus.AWAITING_REVIEW)
        changes.review_opened(
            review_id, ReviewKind.FAILURE, question={}, allowed_answers=["skip"], task_key=key(task_id)
        )
    changes.progress = count_by_status([TaskStatus.AWAITING_REVIEW] * 4)
    await write_changes(database, changes)
    await check(database, changes.run_id)

    async with database.read() as connection:
        first = await list_reviews(connection, T, changes.run_id, limit=3)
        rest = await list_reviews(connection, T, changes.run_id, limit=3, after=first[-1].id)

    assert [review.id for review in (*first, *rest)] == ids
    assert [review.task_key for review in rest] == [TaskKey("0.a")]


async def test_an_answer_queues_the_run_that_waited_for_it(database: Database) -> None:
    run_id, review_id, _ = await make_asking_run(database)
    await set_run(database, run_id, ready_at=2**53)
    assert await claim_due(database) == []

    review = await answered(database, run_id, review_id)

    run = await the_run(database, run_id)
    assert (review.answer, review.closed_at) == (ANSWER, None)
    assert review.answered_at is not None
    assert (run.status, run.open_reviews, run.answers) == (RunStatus.QUEUED, 0, 1)
    events = [(event["type"], event["data"]) for event in await rows_of(database, tables.events, run_id)]
    assert events[-2:] == [
        ("review.answered", {"review_id": str(review_id), "decision": "reject"}),
        ("run.queued", {"review_id": str(review_id)}),
    ]
    assert (await claim_one(database)).run_id == run_id
    await check(database, run_id)


async def test_an_answer_to_a_run_that_a_worker_holds_leaves_it_its_run(database: Database) -> None:
    run_id, review_id, lease = await make_asking_run(database, parks=False)
    before = await row_of(database, run_id)

    await answered(database, run_id, review_id)

    after = await row_of(database, run_id)
    assert {name for name in after if after[name] != before[name]} == {
        "event_seq",
        "version",
        "open_reviews",
        "answers",
    }
    assert (await write_changes(database, changes_of(lease)))[run_id].answers == 1
    await check(database, run_id)


async def test_an_answer_to_a_paused_run_leaves_it_paused(database: Database) -> None:
    run_id, review_id, _ = await make_asking_run(database)
    await set_run(database, run_id, status=RunStatus.PAUSED)

    await answered(database, run_id, review_id)

    assert (await the_run(database, run_id)).status is RunStatus.PAUSED
    assert await claim_due(database) == []
