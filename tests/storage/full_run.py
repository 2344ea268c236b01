"""A run with rows of every kind, for the tests of what is done to which of them."""

from app.domain.status import ReviewKind, RunStatus, Seat, TaskStatus
from app.storage.database import Database, new_id
from app.storage.dispatch import Lease
from app.storage.writing import count_by_status
from tests.scripted_model import DIAMOND
from tests.stored import changes_of, claim_one, key, make_run, write_changes

REVIEWS = [new_id() for _ in range(3)]


async def make_full_run(database: Database) -> Lease:
    """It has two tasks with two attempts each, four calls, and three open reviews with the ids of every such run."""
    await make_run(database, plan=DIAMOND)
    lease = await claim_one(database)
    changes = changes_of(lease)
    changes.status, changes.begun = RunStatus.RUNNING, True
    for number, (task_id, attempt) in enumerate([("a", 1), ("a", 2), ("b", 1), ("b", 2)], start=1):
        changes.task(key(task_id), TaskStatus.RUNNING, result="a draft")
        changes.attempt_started(key(task_id), attempt, description="Do it.", prompt_hash="hash")
        changes.call_opened(number, seat=Seat.EXECUTOR, model="m", try_number=1, task_key=key(task_id), attempt=attempt)
        changes.task_begins_anew(key(task_id), wording="Do it well.", attempts_before=0)
    for review_id in REVIEWS:
        changes.review_opened(review_id, ReviewKind.PLAN, question={}, allowed_answers=["retry"])
    changes.progress = count_by_status(["running", "running", "pending", "pending"])
    await write_changes(database, changes)
    return lease
