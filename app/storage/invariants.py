"""What is true of every run at every moment, as pure functions over its stored rows: each yields what is not.

Two promises need a witness outside the database and are not looked at here: that a request that was answered with 202
is stored, and that the model was asked no more often than the calls tell.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any

from app.domain.ids import RunId
from app.domain.status import ACTIVE, FINISHED, Mode, ReviewKind, RunStatus, TaskStatus
from app.storage import tool_invariants
from app.storage.run_rows import Row, RunRows


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong with one run: which check saw it, and what it saw."""

    run_id: RunId
    check: str
    message: str


def findings(run_id: RunId, rows: RunRows) -> list[Finding]:
    """What every check says of these rows."""
    found = []
    for check in CHECKS:
        try:
            found += [Finding(run_id=run_id, check=check.__name__, message=message) for message in check(rows)]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            message = f"cannot be told from rows like these: {error!r}"
            found.append(Finding(run_id=run_id, check=check.__name__, message=message))
    return found


# Where events move a run and its tasks, and from where.
ENDS = {f"run.{status.value}" for status in FINISHED}
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


def moved_by(event: str, status: str) -> str:
    """The status of a task after an event of it."""
    if event == "task.reworded":  # a person's words for a task that awaits review move nothing
        return "retrying" if status == "failed" else status
    return "awaiting_review" if event == "review.opened" else TASK_MOVES.get(event, status)


def events_are_numbered_without_gaps(rows: RunRows) -> Iterator[str]:
    """1, 2, 3 ..., as many as the run counts."""
    for expected, event in enumerate(rows.events, start=1):
        if event["seq"] != expected:
            yield f"event {expected} is missing: {event['seq']} comes in its place"
            break
    if rows.run["event_seq"] != len(rows.events):
        yield f"the run counts {rows.run['event_seq']} events and has {len(rows.events)}"


def a_run_ends_once(rows: RunRows) -> Iterator[str]:
    """Once until it is retried, and nothing comes after the end."""
    types = [event["type"] for event in rows.events]
    for event, following in pairwise(types):
        if event in ENDS and following != "run.retried":
            yield f"{following} comes after {event}"
    last, status = types[-1] if types else "none", rows.run["status"]
    if (last in ENDS) != (status in FINISHED):
        yield f"the run is {status} and its last event is {last}"


def states_follow_from_events(rows: RunRows) -> Iterator[str]:
    """Replayed from the first event on, run and tasks come to the states that are stored, by ways that exist."""
    status, of_tasks = None, {task["key"]: TaskStatus.PENDING.value for task in rows.tasks}
    replaced: set[str] = set()
    for event in rows.events:
        key, type_ = event["task_key"], event["type"]
        status = RUN_MOVES.get(type_, status)
        if type_ == "plan.created":
            replaced.update(event["data"].get("failed_task_keys", ()))
        elif type_ == "run.retried":
            again = {k for k, s in of_tasks.items() if s == "cancelled" or (s == "failed" and k not in replaced)}
            of_tasks |= dict.fromkeys(again, "pending")
        elif key is not None and key not in of_tasks:
            yield f"event {event['seq']}: {type_} of task {key}, which the run does not have"
        elif key is not None and not _is_about_a_call(event):
            if of_tasks[key] not in MAY_FOLLOW.get(type_, of_tasks.values()):
                yield f"event {event['seq']}: {type_} of task {key}, which was {of_tasks[key]}"
            of_tasks[key] = moved_by(type_, of_tasks[key])
    if status != rows.run["status"]:
        yield f"the run is {rows.run['status']}, by its events {status}"
    held = {call["task_key"] for call in rows.tool_calls if call["status"] == "awaiting_review"}
    for task in rows.tasks:
        # Of a task whose tool call waits for a person no event says whether others are under way.
        waits = task["key"] in held and task["status"] == TaskStatus.AWAITING_REVIEW
        if (TaskStatus.RUNNING if waits else task["status"]) != of_tasks[task["key"]]:
            yield f"task {task['key']} is {task['status']}, by its events {of_tasks[task['key']]}"
    if (rows.run["active_since"] is not None) != (rows.run["status"] in ACTIVE):
        yield f"the run is {rows.run['status']}, and active since {rows.run['active_since']}"


def _is_about_a_call(event: Row) -> bool:
    return bool(event["type"] == "review.opened" and event["data"].get("kind") == ReviewKind.TOOL_CALL)


def a_succeeded_task_has_one_result(rows: RunRows) -> Iterator[str]:
    """From one attempt, or from a person."""
    successes = [event for event in rows.events if event["type"] == "task.succeeded"]
    told = Counter(event["task_key"] for event in successes)
    supplied = {event["task_key"] for event in successes if "review_id" in event["data"]}
    succeeded = Counter(attempt["task_key"] for attempt in rows.attempts if attempt["status"] == "succeeded")
    for task in rows.tasks:
        key, is_one = task["key"], task["status"] == TaskStatus.SUCCEEDED
        if told[key] != is_one:
            yield f"task {key} is {task['status']} and has {told[key]} events of its success"
        if succeeded[key] != (is_one and key not in supplied):
            yield f"task {key} is {task['status']} and has {succeeded[key]} attempts that succeeded"
        if task["has_result"] and not is_one:
            yield f"task {key} is {task['status']} and has a result"


def a_task_starts_after_its_dependencies(rows: RunRows) -> Iterator[str]:
    """Each has succeeded, or was skipped, before."""
    needs: dict[str, set[str]] = {}
    for row in rows.dependencies:
        needs.setdefault(row["task_key"], set()).add(row["depends_on"])
    done: set[str] = set()
    for event in rows.events:
        key = event["task_key"]
        if event["type"] in ("task.started", "task.recovered"):
            if missing := needs.get(key, set()) - done:
                yield f"event {event['seq']}: task {key} started before {_list(missing)}"
        elif event["type"] in ("task.succeeded", "task.skipped"):
            done.add(key)


def attempts_are_counted_from_one(rows: RunRows) -> Iterator[str]:
    """And only a task's last may be under way."""
    of_tasks: dict[str, list[Row]] = {}
    for attempt in rows.attempts:
        of_tasks.setdefault(attempt["task_key"], []).append(attempt)
    for key, own in of_tasks.items():
        if [attempt["number"] for attempt in own] != list(range(1, len(own) + 1)):
            yield f"the attempts of task {key} are {_list(attempt['number'] for attempt in own)}"
        if any(attempt["status"] == "running" for attempt in own[:-1]):
            yield f"an attempt of task {key} runs, although it is not the last"


def attempts_are_those_of_tasks(rows: RunRows) -> Iterator[str]:
    """No attempt is at a task that the run does not have."""
    known = {task["key"] for task in rows.tasks}
    for key in sorted({attempt["task_key"] for attempt in rows.attempts} - known):
        yield f"attempts of task {key}, which the run does not have"


def a_finished_run_has_nothing_open(rows: RunRows) -> Iterator[str]:
    """No attempt, call, review or task, no worker, no request; an error where it failed, and only there."""
    run, status = rows.run, rows.run["status"]
    if (run["finished_at"] is not None) != (status in FINISHED):
        yield f"the run is {status}, and finished at {run['finished_at']}"
    if status not in FINISHED:
        return
    yield from _nobody_has_it(run)
    if (run["error"] is not None) != (status == RunStatus.FAILED):
        yield f"the run is {status}, and {'has no' if run['error'] is None else 'has an'} error"
    for attempt in rows.attempts:
        if attempt["status"] == "running":
            yield f"attempt {attempt['number']} of task {attempt['task_key']} is running"
    for call in rows.calls:
        if call["status"] == "open" or call["finished_at"] is None:
            yield f"call {call['number']} is open"
    for review in rows.reviews:
        if review["closed_at"] is None:
            yield f"review {review['id']} is not closed"
    for task in rows.tasks:
        waits = task["status"] == TaskStatus.PENDING
        if task["status"] in ("running", "retrying", "awaiting_review") or (waits and run["mode"] != Mode.PLAN_ONLY):
            yield f"task {task['key']} is {task['status']}"
        elif not waits and task["finished_at"] is None:
            yield f"task {task['key']} is {task['status']} and has no time of its end"


def a_run_that_stands_is_nobodys(rows: RunRows) -> Iterator[str]:
    """No worker holds what is paused or awaits review, and what awaits review has one."""
    if rows.run["status"] in (RunStatus.PAUSED, RunStatus.AWAITING_REVIEW):
        yield from _nobody_has_it(rows.run)
    if rows.run["status"] == RunStatus.AWAITING_REVIEW and not rows.run["open_reviews"]:
        yield "the run awaits review, and no review is open"


def _nobody_has_it(run: Row) -> Iterator[str]:
    if run["lease_token"] is not None:
        yield f"the run is {run['status']}, and a worker holds it"
    if run["stop_requested"] is not None:
        yield f"the run is {run['status']}, and is asked to {run['stop_requested']}"


def reviews_are_counted_and_answered_once(rows: RunRows) -> Iterator[str]:
    """Each is told of once; a task that awaits review has at most one about its failure."""
    is_open = [r for r in rows.reviews if r["answered_at"] is None and r["closed_at"] is None]
    if rows.run["open_reviews"] != len(is_open):
        yield f"the run counts {rows.run['open_reviews']} open reviews and has {len(is_open)}"
    answers = sum(review["answered_at"] is not None for review in rows.reviews)
    if rows.run["answers"] != answers:
        yield f"the run counts {rows.run['answers']} answers and has {answers}"
    told = Counter((event["type"], event["data"].get("review_id")) for event in rows.events)
    for review in rows.reviews:
        for type_, times in {"review.opened": 1, "review.answered": int(review["answered_at"] is not None)}.items():
            if told[type_, str(review["id"])] != times:
                yield f"review {review['id']} has {told[type_, str(review['id'])]} events {type_}, not {times}"
    waiting = {task["key"] for task in rows.tasks if task["status"] == TaskStatus.AWAITING_REVIEW}
    for key, count in Counter(review["task_key"] for review in is_open if review["kind"] == "failure").items():
        if count > 1 or key not in waiting:
            yield f"task {key} has {count} open reviews, and {'awaits' if key in waiting else 'does not await'} one"


def usage_is_the_sum_of_the_calls(rows: RunRows) -> Iterator[str]:
    """Of those of every seat, numbered without a gap."""
    run, calls = rows.run, rows.calls
    if [call["number"] for call in calls] != list(range(1, run["llm_calls"] + 1)):
        yield f"the run counts {run['llm_calls']} calls, and those stored are {_list(c['number'] for c in calls)}"
    for name in ("input_tokens", "output_tokens", "cost_nano_usd"):
        used = [call[name] for call in calls if call[name] is not None]
        total = sum(used) if used or name != "cost_nano_usd" else None  # no price, no cost
        if run[name] != total:
            yield f"{name} of the run is {run[name]}, of its calls {total}"
    for call in calls:
        if call["generation"] > (run["generation"] or 0):
            yield f"call {call['number']} is of generation {call['generation']}, which the run has not reached"


def progress_is_a_count_of_the_tasks(rows: RunRows) -> Iterator[str]:
    """By status; what is superseded is not in the total."""
    counted = Counter(task["status"] for task in rows.tasks)
    expected = {status.value: counted[status.value] for status in TaskStatus}
    expected["total"] = len(rows.tasks) - expected["superseded"]
    for name in sorted(expected.keys() | rows.run["progress"].keys()):
        if rows.run["progress"].get(name) != expected.get(name):
            yield f"progress says {name}: {rows.run['progress'].get(name)}, the tasks say {expected.get(name)}"


def generations_count_up(rows: RunRows) -> Iterator[str]:
    """0, 1, 2 ..., the last of them the run's, and every task is of one of them."""
    generations = [plan["generation"] for plan in rows.plans]
    if generations != list(range(len(generations))):
        yield f"the plans are of generations {_list(generations)}"
    if rows.run["generation"] != (generations[-1] if generations else None):
        yield f"the run is in generation {rows.run['generation']}, and its plans are {_list(generations)}"
    for task in rows.tasks:
        if task["generation"] not in generations:
            yield f"task {task['key']} is of generation {task['generation']}, which has no plan"


def every_generation_accounts_for_all_tasks(rows: RunRows) -> Iterator[str]:
    """What an earlier generation left alive is carried, replaced or dropped by the next."""
    status = {task["key"]: task["status"] for task in rows.tasks}
    before: set[str] = set()
    for plan in rows.plans:
        number = plan["generation"]
        added = {task["key"] for task in rows.tasks if task["generation"] == number}
        carried, superseded, failed = set(plan["carried"]), set(plan["superseded"]), set(plan["failed_task_keys"])
        if added != set(plan["added"]):
            yield f"plan {number} and its tasks differ in {_list(added ^ set(plan['added']))}"
        if plan["parent_generation"] != (number - 1 if number else None):
            yield f"plan {number} follows {plan['parent_generation']}"
        if twice := (carried & superseded) | (carried & failed) | (superseded & failed):
            yield f"plan {number} accounts twice for {_list(twice)}"
        if unknown := (carried | superseded) - before:
            yield f"plan {number} takes over {_list(unknown)}, which was not there"
        if lost := before - carried - superseded - failed:
            yield f"plan {number} has lost {_list(lost)}"
        for expected, keys in {"superseded": superseded, "failed": failed}.items():
            if other := {key for key in keys if status.get(key) != expected}:
                yield f"plan {number} takes as {expected} what is not: {_list(other)}"
        if astray := set(plan["critical_path"]) - added - carried:
            yield f"the critical path of plan {number} leads over {_list(astray)}"
        before = added | carried


def what_is_skipped_says_why(rows: RunRows) -> Iterator[str]:
    """Dependents are told the reason."""
    for task in rows.tasks:
        if task["status"] == TaskStatus.SKIPPED and not task["skip_reason"]:
            yield f"task {task['key']} is skipped for no reason"


def use_stays_within_the_budget(rows: RunRows) -> Iterator[str]:
    """But for what single answers exceed their reservations, and what was used before a retry with a smaller one."""
    run, budget = rows.run, rows.run["budget"]
    limit = budget.get("max_llm_calls")
    if limit is not None and run["llm_calls"] > max(limit, run["retried_after"]):
        yield f"{run['llm_calls']} calls were made, and {limit} allowed"
    for name, parts, units in (
        ("max_tokens", ("input_tokens", "output_tokens"), 1),
        ("max_cost_usd", ("cost_nano_usd",), 1_000_000_000),
    ):
        if budget.get(name) is None:
            continue
        before = after = 0
        for call in rows.calls:
            used, reserved = (sum(call[of + part] or 0 for part in parts) for of in ("", "reserved_"))
            if call["number"] <= run["retried_after"]:
                before += used
            else:
                after += min(used, reserved)
        allowed = int(Decimal(str(budget[name])) * units)
        if after and before + after > allowed:
            yield f"{name} of {budget[name]} was passed by more than answers exceeded their reservations"


def _list(things: Any, shown: int = 5) -> str:
    """The first of them, and how many more there are."""
    names = sorted(map(str, things)) if isinstance(things, set) else [str(thing) for thing in things]
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more if names else "none"


CHECKS: tuple[Callable[[RunRows], Iterator[str]], ...] = (
    events_are_numbered_without_gaps,
    a_run_ends_once,
    states_follow_from_events,
    a_succeeded_task_has_one_result,
    a_task_starts_after_its_dependencies,
    attempts_are_counted_from_one,
    attempts_are_those_of_tasks,
    a_finished_run_has_nothing_open,
    a_run_that_stands_is_nobodys,
    reviews_are_counted_and_answered_once,
    usage_is_the_sum_of_the_calls,
    progress_is_a_count_of_the_tasks,
    generations_count_up,
    every_generation_accounts_for_all_tasks,
    what_is_skipped_says_why,
    use_stays_within_the_budget,
    *tool_invariants.CHECKS,
)
