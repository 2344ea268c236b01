"""Runs as clients see them: made, listed, deleted."""

from typing import Any

import pytest

from app.domain.ids import GoalId, RunId, TenantId
from app.domain.status import Mode, RunStatus
from app.storage import tables
from app.storage.database import Database, new_id
from app.storage.goals import get_goal, list_goals
from app.storage.records import RunRecord
from app.storage.runs import RunFilter, delete_run, get_run, get_version, list_runs
from app.storage.tasks import list_tasks
from tests.invariants import check
from tests.scripted_model import DIAMOND
from tests.storage.half_done import cancelled, make_half_done_run
from tests.stored import (
    T,
    claim_one,
    expire,
    key,
    make_goal,
    make_run,
    rows_of,
    set_run,
    the_run,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

OF_A_RUN = [
    table for table in tables.metadata.sorted_tables if {"tenant_id", "run_id"} <= {*table.primary_key.columns.keys()}
]
ANOTHER = TenantId("another")
ODD_KEYS = ["a.b", "$", "$.a", '"', 'a"b', "a'b", "[0]", "0", " ", "", "a b", "\\", "%", "ü", "🐍", "null", "a" * 64]


async def listed(database: Database, **filters: Any) -> list[RunId]:
    async with database.read() as connection:
        return [run.id for run in await list_runs(connection, T, limit=200, where=RunFilter(**filters))]


async def deleted(database: Database, run_id: RunId) -> RunRecord | None:
    async with database.write() as connection:
        return await delete_run(connection, T, run_id)


# --- made


async def test_a_new_run_is_queued_and_due(database: Database) -> None:
    run_id = await make_run(database)
    await check(database, run_id)
    run = await the_run(database, run_id)
    assert (run.status, run.generation, run.started_at, run.held) == (RunStatus.QUEUED, None, None, False)
    assert (await claim_one(database)).run_id == run_id


async def test_a_clients_plan_is_stored_with_the_run(database: Database) -> None:
    run_id = await make_run(database, plan=DIAMOND)
    await check(database, run_id)
    async with database.read() as connection:
        tasks = await list_tasks(connection, T, run_id, limit=10)
    assert {task.key: (task.depends_on, task.wave, task.status) for task in tasks} == {
        "0.a": ((), 1, "pending"),
        "0.b": (["0.a"], 2, "pending"),
        "0.c": (["0.a"], 2, "pending"),
        "0.d": (["0.b", "0.c"], 3, "pending"),
    }
    assert (await the_run(database, run_id)).progress["total"] == 4


async def test_a_plan_of_thousands_of_tasks_is_stored_whole(database: Database) -> None:
    plan = {str(n): [str(d) for d in range(max(0, n - 2), n)] for n in range(3_000)}
    run_id = await make_run(database, plan=plan)
    async with database.read() as connection:
        tasks = await list_tasks(connection, T, run_id, limit=10_000)
    assert {task.key: tuple(task.depends_on) for task in tasks} == {
        key(task_id): tuple(map(key, before)) for task_id, before in plan.items()
    }


async def test_nobody_but_its_tenant_finds_a_run(database: Database) -> None:
    run_id = await make_run(database, plan=DIAMOND)
    async with database.write() as connection:
        assert await get_run(connection, ANOTHER, run_id) is None
        assert await get_version(connection, ANOTHER, run_id) is None
        assert await list_runs(connection, ANOTHER, limit=10) == []
        assert await list_tasks(connection, ANOTHER, run_id, limit=10) == []
        assert await delete_run(connection, ANOTHER, run_id) is None
    assert (await the_run(database, run_id)).status is RunStatus.QUEUED


# --- listed


async def test_runs_are_listed_newest_first_and_each_on_one_page(database: Database) -> None:
    goal_id = await make_goal(database)
    runs = [await make_run(database, goal_id=goal_id) for _ in range(5)]
    pages: list[list[RunId]] = []
    before: RunId | None = None
    async with database.read() as connection:
        while page := [run.id for run in await list_runs(connection, T, limit=2, before=before)]:
            pages.append(page)
            before = page[-1]
            await make_run(database, goal_id=goal_id)  # newer ones do not push old ones onto a page twice
    assert pages == [[runs[4], runs[3]], [runs[2], runs[1]], [runs[0]]]


async def test_goals_are_listed_newest_first_with_their_runs(database: Database) -> None:
    goals = [await make_goal(database) for _ in range(3)]
    runs = [await make_run(database, goal_id=goals[1]) for _ in range(2)]
    async with database.read() as connection:
        first = await list_goals(connection, T, limit=2)
        rest = await list_goals(connection, T, limit=2, before=first[-1].id)
        absent = await get_goal(connection, T, GoalId(new_id()))
    assert [goal.id for goal in (*first, *rest)] == goals[::-1]
    assert [list(goal.run_ids) for goal in (*first, *rest)] == [[], runs, []]
    assert absent is None


async def test_a_list_shows_what_its_filter_lets_through(database: Database) -> None:
    goal_id = await make_goal(database)
    old, new = [await make_run(database, goal_id=goal_id) for _ in range(2)]
    other = await make_run(database)
    for run_id, created_at in ((old, 1_000), (new, 2_000), (other, 3_000)):
        await set_run(database, run_id, created_at=created_at)
    await set_run(database, old, status=RunStatus.FAILED)
    assert await listed(database) == [other, new, old]
    assert await listed(database, goal_id=goal_id) == [new, old]
    assert await listed(database, statuses=[RunStatus.FAILED]) == [old]
    assert await listed(database, statuses=[RunStatus.FAILED, RunStatus.QUEUED], goal_id=goal_id) == [new, old]
    assert await listed(database, created_after=1_000) == [other, new]
    assert await listed(database, created_before=3_000) == [new, old]
    assert await listed(database, created_after=1_000, created_before=3_000) == [new]


async def test_runs_are_found_by_metadata_whatever_its_keys_and_values(database: Database) -> None:
    goal_id = await make_goal(database)
    by_key = {odd: await make_run(database, goal_id=goal_id, metadata={odd: f"of {odd}"}) for odd in ODD_KEYS}
    for odd, run_id in by_key.items():
        assert await listed(database, metadata={odd: f"of {odd}"}) == [run_id], odd
        assert await listed(database, metadata={odd: "another"}) == [], odd
    odd_value = await make_run(database, goal_id=goal_id, metadata={"k": "\"'\\ü🐍%_"})
    assert await listed(database, metadata={"k": "\"'\\ü🐍%_"}) == [odd_value]


async def test_a_metadata_value_is_compared_as_text(database: Database) -> None:
    texts = ["1", "1.0", "01", "true", "null", "", "1e0"]
    goal_id = await make_goal(database)
    runs = {text: await make_run(database, goal_id=goal_id, metadata={"k": text}) for text in texts}
    for text, run_id in runs.items():
        assert await listed(database, metadata={"k": text}) == [run_id], text


async def test_several_metadata_entries_must_all_be_there(database: Database) -> None:
    goal_id = await make_goal(database)
    both = await make_run(database, goal_id=goal_id, metadata={"a": "1", "b": "2"})
    await make_run(database, goal_id=goal_id, metadata={"a": "1", "b": "3"})
    await make_run(database, goal_id=goal_id, metadata={"a": "1"})
    await make_run(database, goal_id=goal_id, metadata={"a": "2", "b": "1"})
    assert await listed(database, metadata={"a": "1", "b": "2"}) == [both]


# --- deleted


async def test_deleting_a_finished_run_takes_all_its_rows_and_leaves_its_goal(database: Database) -> None:
    run_id = await make_half_done_run(database)
    await expire(database, run_id)
    await cancelled(database, run_id)
    kept = await make_run(database, plan=DIAMOND)
    goal_id = (await the_run(database, run_id)).goal_id
    assert await deleted(database, run_id) is not None
    async with database.read() as connection:
        assert await get_run(connection, T, run_id) is None
        goal = await get_goal(connection, T, goal_id)
    assert goal is not None
    assert list(goal.run_ids) == []
    assert [len(await rows_of(database, table, run_id)) for table in OF_A_RUN] == [0] * len(OF_A_RUN)
    await check(database, kept)


@pytest.mark.parametrize("status", [s for s in RunStatus if s not in ("succeeded", "failed", "cancelled")])
async def test_a_run_that_is_not_finished_is_not_deleted(database: Database, status: RunStatus) -> None:
    run_id = await make_run(database, mode=Mode.PLAN_ONLY)
    await set_run(database, run_id, status=status)
    run = await deleted(database, run_id)
    assert run is not None
    assert run.status is status
    assert (await the_run(database, run_id)).id == run_id
