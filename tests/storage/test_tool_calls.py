"""Calls of tools as rows: written for their own run, with every column that a change names, and read back from it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from app.domain.ids import RunId, TenantId
from app.domain.status import CallStatus, Seat, SideEffects, TaskStatus, ToolCallStatus
from app.domain.transcript import AskedCall
from app.storage import tables
from app.storage.changes import Changes
from app.storage.database import Database
from app.storage.dispatch import Lease
from app.storage.resume import StoredRun, load
from tests.storage.twins import ANOTHER, make_twin
from tests.stored import OPTIONS, T, changes_of, claim_one, key, make_run, set_run, write_changes

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = "the time of the commit"
STATUSES = {1: ToolCallStatus.OPEN, 2: ToolCallStatus.ASKED, 3: ToolCallStatus.AWAITING_REVIEW}


def asked(number: int, *, status: ToolCallStatus = ToolCallStatus.ASKED, **columns: Any) -> AskedCall:
    """Every field has a value of its own."""
    return AskedCall(
        number=number,
        step=number + 10,
        attempt=number + 20,
        position=number + 30,
        call_id=f"call_{number}",
        tool=f"tool {number}",
        arguments=f'{{"n": {number}}}',
        key=f"key {number}",
        side_effects=SideEffects.IDEMPOTENT,
        status=status,
        **columns,
    )


async def claimed(database: Database, plan: Mapping[str, Sequence[str]] | None = None) -> Lease:
    """A run that may use tools and has made one call of its model."""
    await make_run(database, plan={"a": []} if plan is None else plan, tools=["calculator"])
    lease = await claim_one(database)
    changes = changes_of(lease)
    changes.call_opened(1, seat=Seat.EXECUTOR, model="m", try_number=1, task_key=key("a"), attempt=1)
    changes.call_ended(1, CallStatus.ANSWERED, answer="")
    await write_changes(database, changes)
    return lease


async def with_tool_calls(database: Database) -> Lease:
    """One call of each status of `STATUSES`; every such run has the same numbers."""
    lease = await claimed(database)
    changes = changes_of(lease)
    for number, status in STATUSES.items():
        changes.tool_asked(asked(number, status=status), task_key=key("a"))
    await write_changes(database, changes)
    return lease


async def make_twin_with_tool_calls(database: Database, run_id: RunId) -> None:
    await make_twin(database, run_id)
    columns = [sa.literal(ANOTHER) if column.name == "tenant_id" else column for column in tables.tool_calls.columns]
    mine = sa.select(*columns).where(tables.tool_calls.c.tenant_id == T, tables.tool_calls.c.run_id == run_id)
    async with database.write() as connection:
        insert = sa.insert(tables.tool_calls).from_select(tables.tool_calls.columns.keys(), mine)
        await connection.execute(insert)


async def rows(database: Database, run_id: RunId, tenant: TenantId = T) -> dict[int, dict[str, Any]]:
    """The calls of one tenant's run, by their numbers."""
    table = tables.tool_calls
    query = sa.select(table).where(table.c.tenant_id == tenant, table.c.run_id == run_id)
    async with database.read() as connection:
        return {row.number: dict(row._mapping) for row in await connection.execute(query)}


async def loaded(database: Database, lease: Lease) -> StoredRun:
    """By plans that read the tables as they lie, as PostgreSQL may choose: no order must hang on an index."""
    async with database.write() as connection:
        for way in () if database.is_sqlite else ("indexscan", "indexonlyscan", "bitmapscan"):
            await connection.execute(sa.text(f"SET LOCAL enable_{way} = off"))
        stored = await load(connection, lease)
    assert stored is not None
    return stored


# --- written


def _end(changes: Changes) -> None:
    changes.tool_ended(1, ToolCallStatus.RETURNED, result="42", error={"code": "a"})


CHANGES: Mapping[str, tuple[Callable[[Changes], None], int, Mapping[str, Any]]] = {
    "a call is approved": (lambda changes: changes.tool_approved(3), 3, {"status": "asked"}),
    "a call is sent": (lambda changes: changes.tool_called(2), 2, {"status": "open", "started_at": NOW}),
    "a call ends": (_end, 1, {"status": "returned", "result": "42", "error": {"code": "a"}, "finished_at": NOW}),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_what_becomes_of_a_tool_call_is_written_to_its_row_and_no_other(database: Database, what: str) -> None:
    """The other run has the same numbers; so has another tenant's run, and the id, too."""
    change, number, expected = CHANGES[what]
    other, mine = await with_tool_calls(database), await with_tool_calls(database)
    await make_twin_with_tool_calls(database, mine.run_id)

    async def others() -> list[Any]:
        return [await rows(database, other.run_id), await rows(database, mine.run_id, ANOTHER)]

    before, before_others = await rows(database, mine.run_id), await others()
    changes = changes_of(mine)
    change(changes)
    now = (await write_changes(database, changes))[mine.run_id].now

    columns = {name: now if value == NOW else value for name, value in expected.items()}
    assert await rows(database, mine.run_id) == before | {number: before[number] | columns}
    assert await others() == before_others


async def test_a_tool_call_is_written_as_it_was_asked_for(database: Database) -> None:
    lease = await claimed(database)
    changes = changes_of(lease)
    changes.tool_asked(asked(7, result="so far", error={"code": "a"}), task_key=key("a"))
    now = (await write_changes(database, changes))[lease.run_id].now
    assert await rows(database, lease.run_id) == {
        7: {
            "tenant_id": lease.tenant_id,
            "run_id": lease.run_id,
            "number": 7,
            "task_key": key("a"),
            "attempt": 27,
            "step": 17,
            "position": 37,
            "call_id": "call_7",
            "tool": "tool 7",
            "arguments": '{"n": 7}',
            "idempotency_key": "key 7",
            "side_effects": "idempotent",
            "status": "asked",
            "result": "so far",
            "error": {"code": "a"},
            "asked_at": now,
            "started_at": None,
            "finished_at": None,
        }
    }


@pytest.mark.parametrize("status", ToolCallStatus)
async def test_a_tool_call_that_was_sent_has_a_start_and_one_that_never_will_be_has_an_end(
    database: Database, status: ToolCallStatus
) -> None:
    lease = await claimed(database)
    changes = changes_of(lease)
    changes.tool_asked(asked(1, status=status), task_key=key("a"))
    now = (await write_changes(database, changes))[lease.run_id].now
    (row,) = (await rows(database, lease.run_id)).values()
    unended = (ToolCallStatus.ASKED, ToolCallStatus.AWAITING_REVIEW, ToolCallStatus.OPEN)
    assert row["started_at"] == (now if status is ToolCallStatus.OPEN else None)
    assert row["finished_at"] == (None if status in unended else now)


async def test_tool_calls_that_were_sent_are_counted(database: Database) -> None:
    lease = await with_tool_calls(database)
    changes = changes_of(lease)
    changes.tool_asked(asked(4), task_key=key("a"))
    changes.tool_called(4)
    changes.tool_called(2)
    await write_changes(database, changes)
    assert (await loaded(database, lease)).run.tool_calls == 2
    assert {number: row["status"] for number, row in (await rows(database, lease.run_id)).items()} == {
        1: "open",
        2: "open",
        3: "awaiting_review",
        4: "open",
    }


# --- read


async def test_a_worker_reads_a_tool_call_as_it_was_asked_for(database: Database) -> None:
    lease = await claimed(database)
    call = asked(7, result="so far", error={"code": "a"})
    changes = changes_of(lease)
    changes.tool_asked(call, task_key=key("a"))
    await write_changes(database, changes)
    stored = await loaded(database, lease)
    assert (stored.tool_calls, stored.last_tool_call) == ({key("a"): [call]}, 7)


async def test_a_worker_reads_the_tool_calls_of_its_run_and_of_no_other(database: Database) -> None:
    """The others have higher numbers, and their task of the same key is over."""
    other, mine = await with_tool_calls(database), await with_tool_calls(database)
    await make_twin_with_tool_calls(database, mine.run_id)
    before = await loaded(database, mine)
    async with database.write() as connection:
        for table, changed in (
            (tables.tool_calls, {"number": tables.tool_calls.c.number + 7}),
            (tables.tasks, {"status": TaskStatus.SUCCEEDED}),
        ):
            theirs = (table.c.tenant_id == ANOTHER) | (table.c.run_id == other.run_id)
            await connection.execute(sa.update(table).where(theirs).values(changed))
    stored = await loaded(database, mine)
    assert stored == before
    assert [call.number for call in stored.tool_calls[key("a")]] == [1, 2, 3]
    assert stored.last_tool_call == 3


@pytest.mark.parametrize("status", TaskStatus)
async def test_of_a_task_that_is_over_for_good_a_worker_reads_no_tool_calls(
    database: Database, status: TaskStatus
) -> None:
    """A retry takes up those that failed or were cancelled. The last call's number is the run's."""
    lease = await claimed(database, {"a": [], "b": []})
    changes = changes_of(lease)
    changes.tool_asked(asked(1), task_key=key("a"))
    changes.tool_asked(asked(2), task_key=key("b"))
    changes.task(key("b"), status)
    await write_changes(database, changes)
    stored = await loaded(database, lease)
    over = status in (TaskStatus.SUCCEEDED, TaskStatus.SKIPPED, TaskStatus.SUPERSEDED)
    assert set(stored.tool_calls) == ({key("a")} if over else {key("a"), key("b")})
    assert stored.last_tool_call == 2


async def test_tool_calls_come_in_their_order_however_they_were_written(database: Database) -> None:
    lease = await claimed(database)
    for number in (3, 1, 2):
        changes = changes_of(lease)
        changes.tool_asked(asked(number), task_key=key("a"))
        await write_changes(database, changes)
    assert [call.number for call in (await loaded(database, lease)).tool_calls[key("a")]] == [1, 2, 3]


async def test_a_run_from_which_a_retry_has_taken_its_tools_still_knows_what_it_called(database: Database) -> None:
    """Its tasks may ask for them still, and be refused: that is a call, which needs a number of its own."""
    lease = await with_tool_calls(database)
    await set_run(database, lease.run_id, options={**OPTIONS, "tools": []})
    stored = await loaded(database, lease)
    assert ([call.number for call in stored.tool_calls[key("a")]], stored.last_tool_call) == ([1, 2, 3], 3)


async def test_a_run_that_may_use_tools_and_has_not_yet_has_called_none(database: Database) -> None:
    stored = await loaded(database, await claimed(database))
    assert (stored.tool_calls, stored.last_tool_call) == ({}, 0)
