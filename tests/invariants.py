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
        reviews = await rows(tables.reviews)
    events_are_numbered_without_gaps(run, events)
    a_run_ends_once(run, events)
    states_follow_from_events(run, tasks, events)
    a_succeeded_task_has_one_result(tasks, attempts, events)
    a_task_starts_after_its_dependencies(dependencies, events)
    attempts_are_counted_from_one(tasks, attempts)
    a_finished_run_has_nothing_open(run, tasks, attempts, calls, reviews)
    a_run_that_stands_is_nobodys(run)
    reviews_are_counted_and_answered_once(run, tasks, reviews, events)
    usage_is_the_sum_of_the_calls(run, calls)
    progress_is_a_count_of_the_tasks(run, tasks)
    generations_count_up(run, plans, tasks)
    every_generation_accounts_for_all_tasks(plans, tasks)
    what_is_skipped_says_why(tasks)
    calls_stay_within_the_budget(run)


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
    replaced: set[str] = set()
    for event in events:
        status = RUN_MOVES.get(event["type"], status)
        key, type_ = event["task_key"], event["type"]
        if type_ == "plan.created":
            replaced.update(event["data"].get("failed_task_keys", ()))
        elif type_ == "run.retried":
            again = {k for k, s in of_tasks.items() if s == "cancelled" or (s == "failed" and k not in replaced)}
            of_tasks |= dict.fromkeys(again, "pending")
        elif key is not None:
            assert key in of_tasks, f"{type_} of {key}, which the run does not have"
            may_move(of_tasks[key], type_, key)
            of_tasks[key] = moved_by(type_, of_tasks[key])
    assert status == run["status"]
    assert of_tasks == {task["key"]: task["status"] for task in tasks}
    assert (run["active_since"] is not None) == (run["status"] in ("planning", "running"))


def moved_by(event: str, status: str) -> str:
    if event == "task.reworded":  # a person's words for a task that awaits review move nothing
        return "retrying" if status == "failed" else status
    return "awaiting_review" if event == "review.opened" else TASK_MOVES.get(event, status)


MAY_FOLLOW = {
    "task.started": ("pending", "retrying", "awaiting_review", "running"),
    "task.recovered": ("running",),
    "task.retry_scheduled": ("running",),
    "task.reworded": ("failed", "awaiting_review"),
    "task.succeeded": ("running", "awaiting_review"),
    "task.failed": ("running", "awaiting_review"),
    "task.skipped": ("failed", "awaiting_review"),
    "task.cancelled": ("pending", "running", "retrying", "awaiting_review"),
    "task.superseded": ("pending", "retrying"),
}


def may_move(status: str, event: str, key: str) -> None:
    allowed = MAY_FOLLOW.get(event)
    assert allowed is None or status in allowed, f"{event} of {key}, which was {status}"


def a_succeeded_task_has_one_result(tasks: Iterable[Row], attempts: Iterable[Row], events: Iterable[Row]) -> None:
    """From one attempt, or from a person."""
    successes = [event for event in events if event["type"] == "task.succeeded"]
    told = Counter(event["task_key"] for event in successes)
    supplied = {event["task_key"] for event in successes if "review_id" in event["data"]}
    succeeded = Counter(attempt["task_key"] for attempt in attempts if attempt["status"] == "succeeded")
    for task in tasks:
        is_one = int(task["status"] == TaskStatus.SUCCEEDED)
        from_attempt = int(is_one and task["key"] not in supplied)
        assert (told[task["key"]], succeeded[task["key"]]) == (is_one, from_attempt), task["key"]
        assert is_one or task["result"] is None, task["key"]


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
    run: Row, tasks: Iterable[Row], attempts: Iterable[Row], calls: Iterable[Row], reviews: Iterable[Row]
) -> None:
    is_finished = run["status"] in FINISHED
    assert (run["finished_at"] is not None) == is_finished
    if not is_finished:
        return
    assert (run["lease_token"], run["stop_requested"]) == (None, None)
    assert (run["error"] is not None) == (run["status"] == RunStatus.FAILED)
    assert not [attempt for attempt in attempts if attempt["status"] == "running"]
    assert not [call for call in calls if call["status"] == "open" or call["finished_at"] is None]
    assert not [review for review in reviews if review["closed_at"] is None]
    assert not [task for task in tasks if task["status"] in ("running", "retrying", "awaiting_review")]
    assert all(task["finished_at"] for task in tasks if task["status"] != TaskStatus.PENDING)
    pending = [task["key"] for task in tasks if task["status"] == TaskStatus.PENDING]
    assert not pending or run["mode"] == "plan_only", f"{pending} are left"


def usage_is_the_sum_of_the_calls(run: Row, calls: Sequence[Row]) -> None:
    assert [call["number"] for call in calls] == list(range(1, run["llm_calls"] + 1))
    for tokens in ("input_tokens", "output_tokens"):
        assert run[tokens] == sum(call[tokens] or 0 for call in calls), tokens
    costs = [call["cost_nano_usd"] for call in calls if call["cost_nano_usd"] is not None]
    assert run["cost_nano_usd"] == (sum(costs) if costs else None)
    assert all(call["generation"] <= (run["generation"] or 0) for call in calls)


def progress_is_a_count_of_the_tasks(run: Row, tasks: Sequence[Row]) -> None:
    counted = Counter(task["status"] for task in tasks)
    expected = {status.value: counted[status.value] for status in TaskStatus}
    assert run["progress"] == {"total": len(tasks) - expected["superseded"], **expected}


def generations_count_up(run: Row, plans: Sequence[Row], tasks: Iterable[Row]) -> None:
    generations = [plan["generation"] for plan in plans]
    assert generations == list(range(len(plans)))
    assert run["generation"] == (generations[-1] if generations else None)
    assert {task["generation"] for task in tasks} <= set(generations)


def a_run_that_stands_is_nobodys(run: Row) -> None:
    if run["status"] in ("paused", "awaiting_review"):
        assert (run["lease_token"], run["stop_requested"]) == (None, None)
        assert run["status"] == "paused" or run["open_reviews"] > 0


def reviews_are_counted_and_answered_once(
    run: Row, tasks: Iterable[Row], reviews: Sequence[Row], events: Iterable[Row]
) -> None:
    is_open = [r for r in reviews if r["answered_at"] is None and r["closed_at"] is None]
    assert run["open_reviews"] == len(is_open)
    assert run["answers"] == sum(review["answered_at"] is not None for review in reviews)
    told = Counter((event["type"], event["data"].get("review_id")) for event in events)
    for review in reviews:
        assert told["review.opened", str(review["id"])] == 1
        assert told["review.answered", str(review["id"])] == (review["answered_at"] is not None)
    asked = Counter(review["task_key"] for review in is_open if review["kind"] == "failure")
    assert all(count == 1 for count in asked.values())
    assert set(asked) <= {task["key"] for task in tasks if task["status"] == "awaiting_review"}


def every_generation_accounts_for_all_tasks(plans: Sequence[Row], tasks: Sequence[Row]) -> None:
    """What an earlier generation left alive is carried, replaced or dropped by the next."""
    status = {task["key"]: task["status"] for task in tasks}
    before: set[str] = set()
    for plan in plans:
        added = {task["key"] for task in tasks if task["generation"] == plan["generation"]}
        assert added == set(plan["added"])
        assert plan["parent_generation"] == (plan["generation"] - 1 if plan["generation"] else None)
        carried, superseded, failed = set(plan["carried"]), set(plan["superseded"]), set(plan["failed_task_keys"])
        assert len(carried | superseded | failed) == len(carried) + len(superseded) + len(failed)
        assert carried | superseded <= before
        assert before - carried - superseded - failed == set(), "lost by a replan"
        assert all(status[key] == "superseded" for key in superseded)
        assert all(status[key] == "failed" for key in failed)
        assert set(plan["critical_path"]) <= added | carried
        before = added | carried


def what_is_skipped_says_why(tasks: Iterable[Row]) -> None:
    assert all(task["skip_reason"] for task in tasks if task["status"] == "skipped")


def calls_stay_within_the_budget(run: Row) -> None:
    limit = run["budget"].get("max_llm_calls")
    assert limit is None or run["llm_calls"] <= limit
