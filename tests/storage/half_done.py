"""Runs in the middle of things, for the tests of what is then asked of them."""

from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ids import RunId, TenantId
from app.domain.status import AttemptStatus, CallStatus, RunStatus, Seat, TaskStatus
from app.domain.usage import Usage
from app.storage import tables
from app.storage.database import Database
from app.storage.records import RunRecord
from app.storage.steering import Steered, request_cancel
from tests.invariants import check
from tests.scripted_model import DIAMOND
from tests.stored import T, changes_of, claim_one, key, make_run, rows_of, write_changes

Request = Callable[[AsyncConnection, TenantId, RunId], Awaitable[Steered]]


async def make_half_done_run(database: Database) -> RunId:
    """A diamond whose first task has succeeded and whose second is being called, by a worker that has it."""
    run_id = await make_run(database, plan=DIAMOND)
    lease = await claim_one(database)
    changes = changes_of(lease)
    changes.status, changes.begun = RunStatus.RUNNING, True
    changes.event("run.started")
    for number, task_id in enumerate("ab", start=1):
        changes.task(key(task_id), TaskStatus.RUNNING)
        changes.attempt_started(key(task_id), 1, description="Do it.", prompt_hash="hash")
        changes.event("task.started", task_key=key(task_id))
        changes.call_opened(
            number,
            seat=Seat.EXECUTOR,
            model="m",
            try_number=1,
            task_key=key(task_id),
            attempt=1,
            reserved=Usage(input_tokens=100, output_tokens=50),
            reserved_cost_nano_usd=7,
        )
        if task_id == "a":
            changes.call_ended(number, CallStatus.ANSWERED)
            changes.attempt_ended(key(task_id), 1, AttemptStatus.SUCCEEDED)
            changes.task(key(task_id), TaskStatus.SUCCEEDED, result="done")
            changes.event("task.succeeded", task_key=key(task_id))
    none = dict.fromkeys((status.value for status in TaskStatus), 0)
    changes.progress = {**none, "total": 4, "succeeded": 1, "running": 1, "pending": 2}
    await write_changes(database, changes)
    await check(database, run_id)
    return run_id


async def asked(database: Database, request: Request, run_id: RunId) -> tuple[RunRecord, bool]:
    """What came of a client's request."""
    async with database.write() as connection:
        outcome = await request(connection, T, run_id)
    assert outcome is not None
    return outcome


async def cancelled(database: Database, run_id: RunId) -> tuple[RunRecord, bool]:
    """Asked to cancel."""
    return await asked(database, request_cancel, run_id)


async def last_event(database: Database, run_id: RunId) -> str:
    """The type of what happened to the run last."""
    return str((await rows_of(database, tables.events, run_id))[-1]["type"])
