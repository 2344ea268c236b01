"""What is true of every run at every moment, looked up in its stored rows; see `check`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import sqlalchemy as sa

from app.domain.ids import RunId
from app.domain.status import FINISHED, RunStatus, TaskStatus
from app.storage import tables
from app.storage.database import Database

Row = Mapping[str, Any]

ENDS = {f"run.{status.value}" for status in FINISHED}
DONE = {"task.succeeded", "task.skipped"}
RUN_MOVES = {
    "run.queued": "queued",
    "run.planning": "planning",
    "run.started": "running",
    "run.awaiting_review": "awaiting_review",
    "run.paused": "paused",
    "run.resumed": "queued",
    "run.retried": "queued",
    **{event: event.removeprefix("run.") for event in ENDS},
}
TASK_MOVES = {
    "task.started": "running",
    "task.recovered": "running",
    "task.retry_scheduled": "retrying",
    "task.reworded": "retrying",
    **{f"task.{end}": end for end in ("succeeded", "failed", "skipped", "cancelled", "superseded")},
}


async def check(database: Database, run_id: RunId) -> None:
    """Assert all of it for one run, finished or not, while nobody writes to it."""
    async with database.read() as connection:

        async def rows(table: sa.Table, of_run: str = "run_id") -> Sequence[Row]:
            query = sa.select(table).where(table.c[of_run] == run_id).order_by(*table.primary_key.columns)
            return [dict(row._mapping) for row in await connection.execute(query)]

        (run,) = await rows(tables.runs, "id")
        tasks, events = await rows(tables.tasks), await rows(tables.events)
        calls, attempts = await rows(tables.calls), await rows(tables.attempts)
        plans, dependencies = await rows(tables.plans), await rows(tables.dependencies)
    events_are_numbered_without_gaps(run, events)
    a_run_ends_once(run, events)
    states_follow_from_events(run, tasks, events)
    a_succeeded_task_has_one_result(tasks, attempts, events)
    a_task_starts_after_its_dependencies(dependencies, events)
    attempts_are_counted_from_one(tasks, attempts)
    a_finished_run_has_nothing_open(run, tasks, attempts, calls)
    usage_is_the_sum_of_the_calls(run, calls)
    progress_is_a_count_of_the_tasks(run, tasks)
    generations_count_up(run, plans, tasks)


def events_are_numbered_without_gaps(run: Row, events: Sequence[Row]) -> None:
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert run["event_seq"] == len(events)


def a_run_ends_once(run: Row, events: Sequence[Row]) -> None:
    """Once until it is retried, and nothing comes after the end."""
    types = [event["type"] for event in events]
    for event, following in pairwise(types):
        assert event not in ENDS or following == "run.retried", f"{following} after {event}"
    assert (types[-1] in ENDS) == (run["status"] in FINISHED)


def states_follow_from_events(run: Row, tasks: Iterable[Row], events: Iterable[Row]) -> None:
    status, of_tasks = None, {task["key"]: TaskStatus.PENDING.value for task in tasks}
    for event in events:
        status = RUN_MOVES.get(event["type"], status)
        if event["task_key"] is not None:
            moved = TASK_MOVES.get(event["type"])
            of_tasks[event["task_key"]] = moved or of_tasks[event["task_key"]]
    assert status == run["status"]
    assert of_tasks == {task["key"]: task["status"] for task in tasks}


def a_succeeded_task_has_one_result(tasks: Iterable[Row], attempts: Iterable[Row], events: Iterable[Row]) -> None:
    successes = Counter(event["task_key"] for event in events if event["type"] == "task.succeeded")
    succeeded = Counter(attempt["task_key"] for attempt in attempts if attempt["status"] == "succeeded")
    for task in tasks:
        is_one = int(task["status"] == TaskStatus.SUCCEEDED)
        assert (successes[task["key"]], succeeded[task["key"]]) == (is_one, is_one), task["key"]
        assert (task["result"] is not None) == bool(is_one), task["key"]


def a_task_starts_after_its_dependencies(dependencies: Iterable[Row], events: Iterable[Row]) -> None:
    needs: dict[str, set[str]] = {}
    for row in dependencies:
        needs.setdefault(row["task_key"], set()).add(row["depends_on"])
    done: set[str] = set()
    for event in events:
        if event["type"] in ("task.started", "task.recovered"):
            missing = needs.get(event["task_key"], set()) - done
            assert not missing, f"{event['task_key']} started before {missing}"
        elif event["type"] in DONE:
            done.add(event["task_key"])


def attempts_are_counted_from_one(tasks: Iterable[Row], attempts: Iterable[Row]) -> None:
    for task in tasks:
        own = [attempt for attempt in attempts if attempt["task_key"] == task["key"]]
        assert [attempt["number"] for attempt in own] == list(range(1, len(own) + 1)), task["key"]
        assert all(attempt["status"] != "running" for attempt in own[:-1]), task["key"]


def a_finished_run_has_nothing_open(
    run: Row, tasks: Iterable[Row], attempts: Iterable[Row], calls: Iterable[Row]
) -> None:
    is_finished = run["status"] in FINISHED
    assert (run["finished_at"] is not None) == is_finished
    if not is_finished:
        return
    assert (run["lease_token"], run["stop_requested"]) == (None, None)
    assert (run["error"] is not None) == (run["status"] == RunStatus.FAILED)
    assert not [attempt for attempt in attempts if attempt["status"] == "running"]
    assert not [call for call in calls if call["status"] == "open" or call["finished_at"] is None]
    assert not [task for task in tasks if task["status"] in ("running", "retrying", "awaiting_review")]
    assert all(task["finished_at"] for task in tasks if task["status"] != TaskStatus.PENDING)
    pending = [task["key"] for task in tasks if task["status"] == TaskStatus.PENDING]
    assert not pending or run["mode"] == "plan_only", f"{pending} are left"


def usage_is_the_sum_of_the_calls(run: Row, calls: Sequence[Row]) -> None:
    assert [call["number"] for call in calls] == list(range(1, run["llm_calls"] + 1))
    for tokens in ("input_tokens", "output_tokens"):
        assert run[tokens] == sum(call[tokens] or 0 for call in calls), tokens


def progress_is_a_count_of_the_tasks(run: Row, tasks: Sequence[Row]) -> None:
    counted = Counter(task["status"] for task in tasks)
    expected = {status.value: counted[status.value] for status in TaskStatus}
    assert run["progress"] == {"total": len(tasks) - expected["superseded"], **expected}


def generations_count_up(run: Row, plans: Sequence[Row], tasks: Iterable[Row]) -> None:
    generations = [plan["generation"] for plan in plans]
    assert generations == list(range(len(plans)))
    assert run["generation"] == (generations[-1] if generations else None)
    assert {task["generation"] for task in tasks} <= set(generations)
