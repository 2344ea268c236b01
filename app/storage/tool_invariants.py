"""What is true of every run's tool calls at every moment; see `invariants`."""

from collections import Counter
from collections.abc import Callable, Iterator

from app.domain.status import FINISHED, Decision, ReviewKind, RunStatus, SideEffects, TaskStatus, ToolCallStatus
from app.storage.run_rows import Row, RunRows

_UNSENT = (ToolCallStatus.ASKED, ToolCallStatus.AWAITING_REVIEW)
_UNENDED = (*_UNSENT, ToolCallStatus.OPEN)
_UNDER_WAY = (ToolCallStatus.ASKED, ToolCallStatus.OPEN)
# Whether one of this status was sent; of any other, a person may have spoken for it.
_WAS_SENT = {
    ToolCallStatus.ASKED: False,
    ToolCallStatus.AWAITING_REVIEW: False,
    ToolCallStatus.REFUSED: False,
    ToolCallStatus.OPEN: True,
    ToolCallStatus.CANCELLED: True,
    ToolCallStatus.LOST: True,
}


def tool_calls_are_counted(rows: RunRows) -> Iterator[str]:
    """From one, without a gap; those that were sent are the run's use of tools, and each is told of once."""
    calls, events = rows.tool_calls, rows.events
    if (numbers := [call["number"] for call in calls]) != list(range(1, len(calls) + 1)):
        yield f"the tool calls are numbered {numbers}"
    sent = [call["number"] for call in calls if call["started_at"] is not None]
    if rows.run["tool_calls"] != len(sent):
        yield f"the run counts {rows.run['tool_calls']} tool calls, and {len(sent)} were sent"
    told = Counter(event["data"].get("tool_call") for event in events if event["type"] == "tool.called")
    if told != Counter(sent):
        yield f"events tell of the sending of {sorted(map(str, told.elements()))}, and {sent} were sent"
    returned = Counter(event["data"].get("tool_call") for event in events if event["type"] == "tool.returned")
    ended = {call["number"] for call in calls if call["finished_at"] is not None}
    for number in sent:
        if returned[number] != (number in ended):
            yield f"tool call {number} has {returned[number]} events of its end"


def a_tool_call_stands_where_its_times_say(rows: RunRows) -> Iterator[str]:
    """Sent or not, ended or not."""
    for call in rows.tool_calls:
        status = ToolCallStatus(call["status"])
        was_sent, has_ended = call["started_at"] is not None, call["finished_at"] is not None
        if was_sent is not _WAS_SENT.get(status, was_sent) or has_ended is (status in _UNENDED):
            yield f"tool call {call['number']} is {status}, sent {call['started_at']}, ended {call['finished_at']}"


def a_tool_call_is_of_a_step(rows: RunRows) -> Iterator[str]:
    """A model's answer in an attempt at its task, and of a tool of that; what took its place there before is lost."""
    tools = {task["key"]: task["tools"] for task in rows.tasks}
    attempts = {(attempt["task_key"], attempt["number"]) for attempt in rows.attempts}
    answers = {call["number"] for call in rows.calls if call["status"] == "answered"}
    places: dict[tuple[int, int], Row] = {}
    for call in rows.tool_calls:
        number, place = call["number"], (call["step"], call["position"])
        if (call["task_key"], call["attempt"]) not in attempts or call["step"] not in answers:
            yield f"tool call {number} is of no attempt, or of no answer"
        if call["started_at"] is not None and call["tool"] not in tools.get(call["task_key"], ()):
            yield f"tool call {number} was sent, and {call['tool']} is no tool of task {call['task_key']}"
        if place in places and places[place]["status"] != ToolCallStatus.LOST:
            yield f"tool call {number} stands in place of {places[place]['number']}, which is not lost"
        places[place] = call


def tool_calls_end_before_their_run(rows: RunRows) -> Iterator[str]:
    """And what has not ended belongs to a task that is under way."""
    status = rows.run["status"]
    of_tasks = {task["key"]: task["status"] for task in rows.tasks}
    for call in rows.tool_calls:
        if call["status"] not in _UNENDED:
            continue
        if status in FINISHED or (status == RunStatus.AWAITING_REVIEW and call["status"] in _UNDER_WAY):
            yield f"tool call {call['number']} is {call['status']}, and the run {status}"
        elif of_tasks.get(call["task_key"]) not in (TaskStatus.RUNNING, TaskStatus.AWAITING_REVIEW):
            yield f"tool call {call['number']} is {call['status']}, its task {of_tasks.get(call['task_key'])}"


def a_tool_call_awaits_its_own_review(rows: RunRows) -> Iterator[str]:
    """One that is not closed, and no other is; its task waits, unless another call of it is under way."""
    of_calls = {call["number"]: call for call in rows.tool_calls}
    asked = Counter[int]()
    for review in rows.reviews:
        if review["kind"] != ReviewKind.TOOL_CALL:
            continue
        call = of_calls.get(review["tool_call"])
        if call is None or call["task_key"] != review["task_key"]:
            yield f"review {review['id']} is about tool call {review['tool_call']}, which its task has not made"
        elif review["closed_at"] is None:
            asked[call["number"]] += 1
    waiting = {call["number"] for call in rows.tool_calls if call["status"] == ToolCallStatus.AWAITING_REVIEW}
    if asked != Counter(waiting):
        yield f"reviews are open of tool calls {sorted(asked.elements())}, and {sorted(waiting)} await one"
    held = {of_calls[number]["task_key"] for number in waiting}
    moving = {call["task_key"] for call in rows.tool_calls if call["status"] in _UNDER_WAY}
    failed = {review["task_key"] for review in rows.reviews if review["kind"] == ReviewKind.FAILURE}
    for task in rows.tasks:
        waits = task["key"] in held - moving
        if task["status"] == TaskStatus.RUNNING and waits:
            yield f"task {task['key']} is running, and all its tool calls await review"
        if task["status"] == TaskStatus.AWAITING_REVIEW and not waits and task["key"] not in failed:
            yield f"task {task['key']} awaits review, and none of its tool calls does"


def nothing_is_done_twice_without_a_person(rows: RunRows) -> Iterator[str]:
    """A call with effects each time is sent again only where the last is known to have done nothing, or one says so."""
    wanted = {
        review["tool_call"]
        for review in rows.reviews
        if review["kind"] == ReviewKind.TOOL_CALL and (review["answer"] or {}).get("decision") == Decision.RETRY
    }
    done: dict[tuple[str, str], int] = {}
    for call in rows.tool_calls:
        if call["side_effects"] != SideEffects.ONCE or call["idempotency_key"] is None:
            continue
        what = call["task_key"], call["idempotency_key"]
        if call["started_at"] is not None and what in done and call["number"] not in wanted:
            yield f"tool call {call['number']} does again what {done[what]} did, or may have done"
        harmless = call["status"] == ToolCallStatus.FAILED and not (call["error"] or {}).get("may_have_acted")
        if call["started_at"] is not None and not harmless:
            done[what] = call["number"]


CHECKS: tuple[Callable[[RunRows], Iterator[str]], ...] = (
    tool_calls_are_counted,
    a_tool_call_stands_where_its_times_say,
    a_tool_call_is_of_a_step,
    tool_calls_end_before_their_run,
    a_tool_call_awaits_its_own_review,
    nothing_is_done_twice_without_a_person,
)
