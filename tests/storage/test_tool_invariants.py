"""The checker of invariants bites on tool calls: each rule is broken once, and whatever is broken is a finding."""

import pytest
import sqlalchemy as sa

from app.domain.ids import RunId
from app.domain.status import CallStatus, ReviewKind, RunStatus, Seat, SideEffects, TaskStatus, ToolCallStatus
from app.domain.transcript import AskedCall
from app.storage import doctor
from app.storage.database import Database, new_id
from app.storage.dispatch import Lease
from app.storage.writing import count_by_status
from tests.invariants import check
from tests.stored import T, changes_of, claim_one, key, make_run, write_changes

pytestmark = pytest.mark.asyncio(loop_scope="module")


def charge(number: int, *, status: ToolCallStatus = ToolCallStatus.ASKED) -> AskedCall:
    """In a step of its own."""
    return AskedCall(
        number=number,
        step=number,
        attempt=1,
        position=0,
        call_id=f"call{number}",
        tool="charge",
        arguments='{"text": "x"}',
        key="the same",
        side_effects=SideEffects.ONCE,
        status=status,
    )


async def make_acting_run(database: Database) -> Lease:
    """Its task has charged once, and waits for a person who may have it charge once more; another has not begun."""
    await make_run(database, plan={"a": [], "b": []}, tools=["charge"])
    lease = await claim_one(database)
    changes = changes_of(lease)
    changes.begun, changes.status = True, RunStatus.RUNNING
    changes.event("run.started")
    changes.attempt_started(key("a"), 1, description="Do a.", prompt_hash="hash")
    changes.task(key("a"), TaskStatus.RUNNING)
    changes.event("task.started", task_key=key("a"), attempt=1)
    for number in (1, 2):
        changes.call_opened(number, seat=Seat.EXECUTOR, model="m", try_number=1, task_key=key("a"), attempt=1)
        changes.call_ended(number, CallStatus.ANSWERED, answer="")
    changes.tool_asked(charge(1), task_key=key("a"))
    changes.tool_called(1)
    changes.event("tool.called", task_key=key("a"), tool_call=1)
    changes.tool_ended(1, ToolCallStatus.RETURNED, result="paid")
    changes.event("tool.returned", task_key=key("a"), tool_call=1)
    changes.tool_asked(charge(2, status=ToolCallStatus.AWAITING_REVIEW), task_key=key("a"))
    changes.review_opened(
        new_id(), ReviewKind.TOOL_CALL, question={}, allowed_answers=["retry"], task_key=key("a"), tool_call=2
    )
    changes.task(key("a"), TaskStatus.AWAITING_REVIEW)
    changes.progress = count_by_status(["awaiting_review", "pending"])
    await write_changes(database, changes)
    await check(database, lease.run_id)
    return lease


FIRST, SECOND, OF_RUN = "run_id = :run AND number = 1", "run_id = :run AND number = 2", "run_id = :run"
EVENT = "INSERT INTO events (tenant_id, run_id, seq, type, at, task_key, data) VALUES ('default', :run, 99, "
BREAKS = {
    "a gap in the numbers": ("tool_calls_are_counted", f"UPDATE tool_calls SET number = 3 WHERE {SECOND}"),
    "a call that was not counted": ("tool_calls_are_counted", "UPDATE runs SET tool_calls = 0 WHERE id = :run"),
    "a sending that no event tells of": (
        "tool_calls_are_counted",
        f"UPDATE events SET type = 'tool.returned' WHERE {OF_RUN} AND type = 'tool.called'",
    ),
    "an end that is told of twice": (
        "tool_calls_are_counted",
        EVENT + "'tool.returned', 1, '0.a', '{\"tool_call\": 1}')",
    ),
    "a result of what was never sent nor supplied": (
        "a_tool_call_stands_where_its_times_say",
        f"UPDATE tool_calls SET status = 'lost', started_at = NULL WHERE {FIRST}",
    ),
    "an end without its time": (
        "a_tool_call_stands_where_its_times_say",
        f"UPDATE tool_calls SET finished_at = NULL WHERE {FIRST}",
    ),
    "a refused call that was sent": (
        "a_tool_call_stands_where_its_times_say",
        f"UPDATE tool_calls SET status = 'refused' WHERE {FIRST}",
    ),
    "a step that no answer was": ("a_tool_call_is_of_a_step", f"UPDATE calls SET status = 'lost' WHERE {FIRST}"),
    "an attempt that was not made": ("a_tool_call_is_of_a_step", f"UPDATE tool_calls SET attempt = 2 WHERE {FIRST}"),
    "a tool that the task has not": ("a_tool_call_is_of_a_step", f"UPDATE tasks SET tools = '[]' WHERE {OF_RUN}"),
    "two calls in one place": ("a_tool_call_is_of_a_step", f"UPDATE tool_calls SET step = 1 WHERE {SECOND}"),
    "a call that outlives its run": (
        "tool_calls_end_before_their_run",
        "UPDATE runs SET status = 'failed' WHERE id = :run",
    ),
    "a call under way in a run that stands": (
        "tool_calls_end_before_their_run",
        f"UPDATE tool_calls SET status = 'asked' WHERE {SECOND}; "
        "UPDATE runs SET status = 'awaiting_review' WHERE id = :run",
    ),
    "a call of a task that has not begun": (
        "tool_calls_end_before_their_run",
        f"UPDATE tasks SET status = 'pending' WHERE {OF_RUN} AND key = '0.a'",
    ),
    "a review of a call that is not there": (
        "a_tool_call_awaits_its_own_review",
        f"UPDATE reviews SET tool_call = 7 WHERE {OF_RUN}",
    ),
    "a review of another task's call": (
        "a_tool_call_awaits_its_own_review",
        f"UPDATE reviews SET task_key = '0.b' WHERE {OF_RUN}",
    ),
    "a wait without a review": (
        "a_tool_call_awaits_its_own_review",
        f"UPDATE reviews SET closed_at = 1 WHERE {OF_RUN}",
    ),
    "a review of what does not wait": (
        "a_tool_call_awaits_its_own_review",
        f"UPDATE tool_calls SET status = 'asked' WHERE {SECOND}",
    ),
    "a task that runs and whose calls all wait": (
        "a_tool_call_awaits_its_own_review",
        f"UPDATE tasks SET status = 'running' WHERE {OF_RUN} AND key = '0.a'",
    ),
    "a task that waits for nothing": (
        "a_tool_call_awaits_its_own_review",
        f"UPDATE tasks SET status = 'awaiting_review' WHERE {OF_RUN} AND key = '0.b'",
    ),
    "a charge that nobody has asked to repeat": (
        "nothing_is_done_twice_without_a_person",
        f"UPDATE tool_calls SET status = 'open', started_at = 1 WHERE {SECOND}",
    ),
    "one after another that may have acted": (
        "nothing_is_done_twice_without_a_person",
        "UPDATE tool_calls SET status = 'failed', error = '{\"may_have_acted\": true}', started_at = 1 "
        f"WHERE {OF_RUN}",
    ),
}
"""The check that finds it, and the statements that break it."""


async def found_after(database: Database, run_id: RunId, statements: str) -> set[str]:
    """The names of the checks that find something."""
    async with database.write() as connection:
        for statement in statements.split("; "):
            await connection.execute(sa.text(statement).bindparams(sa.bindparam("run", run_id, type_=sa.Uuid)))
    async with database.read() as connection:
        return {finding.check for finding in await doctor.examine(connection, T, run_id)}


@pytest.mark.parametrize("broken", BREAKS)
async def test_the_checker_sees(database: Database, broken: str) -> None:
    lease = await make_acting_run(database)
    name, statements = BREAKS[broken]
    assert name in await found_after(database, lease.run_id, statements)


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE tool_calls SET status = 'failed', error = '{{\"may_have_acted\": false}}' WHERE {FIRST}",
        f"UPDATE tool_calls SET side_effects = 'idempotent' WHERE {OF_RUN}",
        f"UPDATE tool_calls SET idempotency_key = 'another' WHERE {SECOND}",
        f'UPDATE reviews SET answer = \'{{"decision": "retry"}}\' WHERE {OF_RUN}',
    ],
    ids=["the first did nothing", "its key makes it one", "it is another call", "a person wants it"],
)
async def test_a_charge_may_be_made_once_more_where(database: Database, statement: str) -> None:
    lease = await make_acting_run(database)
    sent = f"UPDATE tool_calls SET status = 'open', started_at = 1 WHERE {SECOND}"
    found = await found_after(database, lease.run_id, f"{statement}; {sent}")
    assert "nothing_is_done_twice_without_a_person" not in found
