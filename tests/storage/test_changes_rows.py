"""Which rows a change touches: its own, with every column that it names, and no other of this or another run."""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import pytest

from app.domain.status import AttemptStatus, CallStatus, TaskStatus
from app.domain.usage import Usage
from app.storage import tables
from app.storage.changes import Changes
from app.storage.database import Database
from tests.storage.full_run import REVIEWS, make_full_run
from tests.storage.twins import ANOTHER, all_of, make_twin
from tests.stored import changes_of, key, rows_of, set_run, write_changes

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = "the time of the commit"
LATER = "five seconds later"
Row = tuple[str, tuple[object, ...]]
"""A table, and what tells its row from the run's others."""
IDENTITY = {
    "tasks": ("key",),
    "attempts": ("task_key", "number"),
    "calls": ("number",),
    "reviews": ("id",),
    "plans": ("generation",),
    "dependencies": ("task_key", "depends_on"),
}


def _end_call(changes: Changes) -> None:
    changes.call_ended(
        2,
        CallStatus.FAILED,
        usage=Usage(input_tokens=10, output_tokens=5),
        cost_nano_usd=7,
        answer="No.",
        error={"code": "a"},
        retry_in_ms=5_000,
    )


CHANGES: dict[str, tuple[Callable[[Changes], None], Row, Mapping[str, Any]]] = {
    "a task starts": (
        lambda changes: changes.task(key("c"), TaskStatus.RUNNING),
        ("tasks", (key("c"),)),
        {"status": "running", "started_at": NOW},
    ),
    "a task waits": (
        lambda changes: changes.task(key("c"), TaskStatus.RETRYING, retry_in_ms=5_000),
        ("tasks", (key("c"),)),
        {"status": "retrying", "next_attempt_at": LATER},
    ),
    "a task succeeds": (
        lambda changes: changes.task(key("a"), TaskStatus.SUCCEEDED, result="done"),
        ("tasks", (key("a"),)),
        {"status": "succeeded", "result": "done", "finished_at": NOW},
    ),
    "a task fails and keeps what it had": (
        lambda changes: changes.task(key("a"), TaskStatus.FAILED),
        ("tasks", (key("a"),)),
        {"status": "failed", "finished_at": NOW},
    ),
    "a task is skipped": (
        lambda changes: changes.task_skipped(key("c"), "It is of no use."),
        ("tasks", (key("c"),)),
        {"status": "skipped", "skip_reason": "It is of no use.", "finished_at": NOW},
    ),
    "a task is reworded": (
        lambda changes: changes.task_begins_anew(key("a"), wording="Gently.", reworded=True, attempts_before=2),
        ("tasks", (key("a"),)),
        {"wording": "Gently.", "reworded": True, "attempts_before": 2},
    ),
    "a task begins anew with its wording": (
        lambda changes: changes.task_begins_anew(key("a"), attempts_before=2),
        ("tasks", (key("a"),)),
        {"attempts_before": 2},
    ),
    "an attempt ends": (
        lambda changes: changes.attempt_ended(key("a"), 2, AttemptStatus.FAILED, error={"code": "a"}),
        ("attempts", (key("a"), 2)),
        {"status": "failed", "error": {"code": "a"}, "finished_at": NOW},
    ),
    "a call ends": (
        _end_call,
        ("calls", (2,)),
        {
            "status": "failed",
            "input_tokens": 10,
            "output_tokens": 5,
            "cost_nano_usd": 7,
            "answer": "No.",
            "error": {"code": "a"},
            "retry_at": LATER,
            "finished_at": NOW,
        },
    ),
    "a review is answered": (
        lambda changes: changes.review_answered(REVIEWS[1], {"decision": "retry"}),
        ("reviews", (REVIEWS[1],)),
        {"answer": {"decision": "retry"}, "answered_at": NOW},
    ),
    "a review is closed": (
        lambda changes: changes.review_closed(REVIEWS[1]),
        ("reviews", (REVIEWS[1],)),
        {"closed_at": NOW},
    ),
}


def different(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[Row, dict[str, Any]]:
    """What has changed below the run's own row: the columns, by row."""
    found: dict[Row, dict[str, Any]] = {}
    for table, names in IDENTITY.items():
        assert len(before[table]) == len(after[table])
        for old, new in zip(before[table], after[table], strict=True):
            if columns := {name: new[name] for name in new if new[name] != old[name]}:
                found[table, tuple(new[name] for name in names)] = columns
    return found


@pytest.mark.parametrize("what", CHANGES)
async def test_a_change_touches_its_own_row_and_no_other(database: Database, what: str) -> None:
    """The other run has the same keys, numbers and review ids; so has another tenant's run, and the id, too."""
    change, row, expected = CHANGES[what]
    other, mine = await make_full_run(database), await make_full_run(database)
    await make_twin(database, mine.run_id)

    async def others() -> list[Any]:
        return [await all_of(database, other.run_id), await all_of(database, mine.run_id, tenant=ANOTHER)]

    before, before_others = await all_of(database, mine.run_id), await others()
    changes = changes_of(mine)
    change(changes)
    now = (await write_changes(database, changes))[mine.run_id].now

    times = {NOW: now, LATER: now + 5_000}
    columns = {name: times.get(value, value) if isinstance(value, str) else value for name, value in expected.items()}
    assert different(before, await all_of(database, mine.run_id)) == {row: columns}
    assert await others() == before_others


async def test_a_task_keeps_the_time_of_its_first_start(database: Database) -> None:
    lease = await make_full_run(database)
    (before, *_) = await rows_of(database, tables.tasks, lease.run_id)
    assert before["started_at"] is not None
    changes = changes_of(lease)
    changes.task(key("a"), TaskStatus.RETRYING, retry_in_ms=1)
    changes.task(key("c"), TaskStatus.SUCCEEDED)
    await write_changes(database, changes)
    (after, _, never_started, _) = await rows_of(database, tables.tasks, lease.run_id)
    assert (after["started_at"], never_started["started_at"]) == (before["started_at"], None)


@pytest.mark.parametrize(
    ("answered", "closed", "open_"),
    [([], [], 3), (REVIEWS[:1], [], 2), ([], REVIEWS[:2], 1), (REVIEWS, REVIEWS[1:], 0)],
)
async def test_a_run_counts_its_own_reviews_that_wait_for_an_answer(
    database: Database, answered: list[UUID], closed: list[UUID], open_: int
) -> None:
    await make_full_run(database)
    mine = await make_full_run(database)
    await make_twin(database, mine.run_id)
    changes = changes_of(mine)
    for review_id in answered:
        changes.review_answered(review_id, {"decision": "retry"})
    for review_id in closed:
        changes.review_closed(review_id)
    await write_changes(database, changes)
    assert (await all_of(database, mine.run_id))["runs"][0]["open_reviews"] == open_


async def test_what_a_refused_commit_says_of_reviews_is_not_counted(database: Database) -> None:
    lease = await make_full_run(database)
    await set_run(database, lease.run_id, lease_token=None, open_reviews=9)
    changes = changes_of(lease)
    changes.review_closed(REVIEWS[0])
    assert await write_changes(database, changes) == {}
    assert (await all_of(database, lease.run_id))["runs"][0]["open_reviews"] == 9


async def test_a_commit_that_says_nothing_of_reviews_does_not_count_them(database: Database) -> None:
    """It is one statement more for each of a worker's commits."""
    lease = await make_full_run(database)
    await set_run(database, lease.run_id, open_reviews=9)
    assert set(await write_changes(database, changes_of(lease))) == {lease.run_id}
    assert (await all_of(database, lease.run_id))["runs"][0]["open_reviews"] == 9
