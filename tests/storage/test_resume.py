"""What a worker reads of a run: all that bears on what comes next, of this run, in the order of its plan."""

import pytest
import sqlalchemy as sa

from app.domain.status import CallStatus, ReviewKind, Seat
from app.storage import tables
from app.storage.database import Database, new_id
from app.storage.dispatch import Lease
from app.storage.resume import StoredRun, load
from tests.storage.full_run import REVIEWS, make_full_run
from tests.storage.twins import ANOTHER, make_twin
from tests.stored import changes_of, claim_one, forget_everything, key, make_run, set_run, write_changes

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def loaded(database: Database, lease: Lease) -> StoredRun:
    """By plans that read the tables as they lie, as PostgreSQL may choose: no order must hang on an index."""
    async with database.write() as connection:
        for way in () if database.is_sqlite else ("indexscan", "indexonlyscan", "bitmapscan"):
            await connection.execute(sa.text(f"SET LOCAL enable_{way} = off"))
        stored = await load(connection, lease)
    assert stored is not None
    return stored


async def test_a_worker_reads_the_rows_of_its_run_and_of_no_other(database: Database) -> None:
    """The others have the same keys, numbers and review ids."""
    await make_full_run(database)
    mine = await make_full_run(database)
    before = await loaded(database, mine)
    await make_twin(database, mine.run_id)
    async with database.write() as connection:
        of_attempts = tables.attempts.c
        theirs = (of_attempts.tenant_id == ANOTHER) | (of_attempts.run_id != mine.run_id)
        await connection.execute(sa.update(tables.attempts).where(theirs).values(number=of_attempts.number + 7))

    stored = await loaded(database, mine)

    assert stored == before
    assert [task.key for task in stored.tasks] == [key(task_id) for task_id in "abcd"]
    numbers = {task: [attempt.number for attempt in attempts] for task, attempts in stored.attempts.items()}
    assert numbers == {key("a"): [1, 2], key("b"): [1, 2]}
    assert [call.number for call in stored.calls] == [1, 2, 3, 4]
    assert [review.id for review in stored.reviews] == REVIEWS
    assert (stored.run.tenant_id, stored.run.id, stored.last_call) == (mine.tenant_id, mine.run_id, 4)


async def test_of_its_calls_a_worker_reads_those_that_bear_on_what_comes_next(database: Database) -> None:
    await make_run(database)
    lease = await claim_one(database)
    changes = changes_of(lease)
    calls = [
        (Seat.EXECUTOR, None, None),  # left open before the retry
        (Seat.PLANNER, CallStatus.FAILED, {"code": "a"}),  # of before the retry
        (Seat.EXECUTOR, CallStatus.ANSWERED, None),  # its task has the result
        (Seat.EXECUTOR, CallStatus.FAILED, None),
        (Seat.EXECUTOR, CallStatus.ANSWERED, {"code": "a"}),  # of no use
        (Seat.PLANNER, CallStatus.ANSWERED, None),
        (Seat.EXECUTOR, None, None),
    ]
    for number, (seat, status, error) in enumerate(calls, start=1):
        changes.call_opened(number, seat=seat, model="m", try_number=1)
        if status is not None:
            changes.call_ended(number, status, error=error)
    await write_changes(database, changes)
    await set_run(database, lease.run_id, retried_after=2)
    assert [call.number for call in (await loaded(database, lease)).calls] == [1, 4, 5, 6, 7]


async def test_a_worker_reads_an_answer_that_its_task_has_not_taken_over(database: Database) -> None:
    """One that asks for tools is kept with its call: the task goes on from there."""
    await make_run(database)
    lease = await claim_one(database)
    changes = changes_of(lease)
    changes.call_opened(1, seat=Seat.EXECUTOR, model="m", try_number=1)
    changes.call_ended(1, CallStatus.ANSWERED, answer="I need to look this up.")
    await write_changes(database, changes)
    assert [call.answer for call in (await loaded(database, lease)).calls] == ["I need to look this up."]


async def test_attempts_and_calls_come_in_their_order_however_they_were_written(database: Database) -> None:
    await make_run(database, plan={"a": []})
    lease = await claim_one(database)
    for number in (3, 1, 2):
        changes = changes_of(lease)
        changes.attempt_started(key("a"), number, description="Do it.", prompt_hash="hash")
        changes.call_opened(number, seat=Seat.EXECUTOR, model="m", try_number=1, task_key=key("a"), attempt=number)
        await write_changes(database, changes)
    stored = await loaded(database, lease)
    assert [attempt.number for attempt in stored.attempts[key("a")]] == [1, 2, 3]
    assert [call.number for call in stored.calls] == [1, 2, 3]


async def test_a_worker_reads_the_plans_of_a_run_that_has_more_than_one(database: Database) -> None:
    await make_run(database, plan={"a": []})
    lease = await claim_one(database)
    assert not (await loaded(database, lease)).plans
    await set_run(database, lease.run_id, generation=1)
    assert [plan.generation for plan in (await loaded(database, lease)).plans] == [0]


async def test_a_worker_reads_a_review_whose_answer_waits_though_none_is_open(database: Database) -> None:
    await make_run(database, plan={"a": []})
    lease = await claim_one(database)
    changes, review_id = changes_of(lease), new_id()
    changes.review_opened(review_id, ReviewKind.PLAN, question={}, allowed_answers=["retry"])
    await write_changes(database, changes)
    changes = changes_of(lease)
    changes.review_answered(review_id, {"decision": "retry"})
    await write_changes(database, changes)
    stored = await loaded(database, lease)
    assert (stored.run.open_reviews, stored.run.answers) == (0, 1)
    assert [review.id for review in stored.reviews] == [review_id]


async def test_a_run_without_a_plan_and_without_calls_is_read_as_it_is(database: Database) -> None:
    await make_run(database)
    stored = await loaded(database, await claim_one(database))
    assert (stored.tasks, stored.plans, stored.attempts, stored.calls, stored.reviews) == ([], [], {}, [], [])
    assert (stored.last_call, stored.tool_calls, stored.last_tool_call) == (0, {}, 0)


async def test_of_a_run_that_was_deleted_a_worker_reads_nothing(database: Database) -> None:
    await make_run(database)
    lease = await claim_one(database)
    await forget_everything(database)
    async with database.read() as connection:
        assert await load(connection, lease) is None
