"""A task's tool calls: which of those that a model asks for are sent, and what follows when they have ended."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, assert_never

import structlog

from app.agents.briefing import visible
from app.domain.errors import ToolError, ToolFailed
from app.domain.failures import Failure
from app.domain.ids import TaskKey
from app.domain.status import Approval, Decision, ReviewKind, SideEffects, TaskStatus, ToolCallStatus
from app.domain.text import shortened
from app.domain.transcript import MAX_CALLS_AT_ONCE, MAX_EQUAL_CALLS, NEVER_SENT, REPEATED, AskedCall, LoopStep
from app.engine.calls import Call, result_text
from app.engine.clock import Clock
from app.engine.state import RunState
from app.engine.tooling import ToolCaller, ToolCut, ToolFaulted, ToolOutcome, ToolReturned, ToolSending
from app.llm.chat import ToolCall
from app.storage.changes import Changes
from app.storage.database import new_id
from app.storage.records import ReviewRecord
from app.tools.arguments import canonical, read_arguments

log = structlog.get_logger(__name__)

_MAX_SHOWN_CHARACTERS = 1_000
_OF_A_CALL = (Decision.APPROVE, Decision.REJECT)
_OF_A_LOST_CALL = (Decision.RETRY, Decision.SUPPLY, Decision.FAIL)


class Acting:
    """For one run. Tells the walk, and adds to the changes what is to be written."""

    def __init__(self, state: RunState, tools: ToolCaller, clock: Clock) -> None:
        self._state = state
        self._tools = tools
        self._clock = clock

    # What the model asks for.

    def asked(self, call: Call, content: str, wanted: Sequence[ToolCall], changes: Changes) -> Failure | None:
        """The model's answer asks for tools: it is a step of the task's loop. The failure where its time is used up."""
        key, attempt = call.of_task
        task = self._state.tasks[key]
        step = LoopStep(number=call.number, attempt=attempt, content=content)
        task.transcript.add(step)
        for position, one in enumerate(wanted[: MAX_CALLS_AT_ONCE + 1]):
            asked = self._asked_call(key, step, position, one)
            if position == MAX_CALLS_AT_ONCE:
                self._refuse(asked, *_too_many(len(wanted) - position))
            else:
                self._judge(key, asked)
            step.calls.append(asked)
            changes.tool_asked(asked, task_key=key)
            self._tell_of(key, asked, changes)
        return self.go_on(key, changes)

    def _asked_call(self, key: TaskKey, step: LoopStep, position: int, wanted: ToolCall) -> AskedCall:
        self._state.last_tool_call += 1
        number = self._state.last_tool_call
        spec = self._tools.spec(wanted.name)
        return AskedCall(
            number=number,
            step=step.number,
            attempt=step.attempt,
            position=position,
            call_id=wanted.id or f"call{number:05d}",
            tool=wanted.name,
            arguments=wanted.arguments,
            key=None,
            side_effects=SideEffects.NONE if spec is None else spec.side_effects,
            status=ToolCallStatus.ASKED,
        )

    def _judge(self, key: TaskKey, asked: AskedCall) -> None:
        """Whether it is sent, refused, answered from what was done before, or shown to a person first."""
        task = self._state.tasks[key]
        spec = self._tools.spec(asked.tool)
        if spec is None or asked.tool not in task.tools or asked.tool not in self._state.option("tools"):
            log.warning("tool denied", run_id=str(self._state.run.id), task_key=key, tool=shortened(asked.tool, 64))
            names = ", ".join(name for name in task.tools if self._tools.spec(name) is not None) or "none"
            self._refuse(asked, "unknown_tool", f"There is no such tool for this task; there are: {names}.")
            return
        try:
            arguments = read_arguments(spec, asked.arguments)
        except ToolError as error:
            self._refuse(asked, error.kind, error.message)
            return
        asked.key = _key(str(self._state.run.id), key, asked.tool, arguments)
        if task.transcript.is_repeated(asked.key, asked.attempt):
            self._refuse(
                asked,
                REPEATED,
                f"This very call was made {MAX_EQUAL_CALLS} times; again it gives the same. Answer with what you have.",
            )
        elif asked.side_effects is SideEffects.ONCE and (before := self._before(key, asked.tool, arguments)):
            self._judge_again(asked, before)
        elif self._needs_approval(asked):
            asked.status = ToolCallStatus.AWAITING_REVIEW

    def _before(self, key: TaskKey, tool: str, arguments: Mapping[str, Any]) -> list[AskedCall]:
        """Equal calls of this task, and of those whose work a replan has given to others."""
        run_id, tasks = str(self._state.run.id), self._state.tasks
        keys = (key, *(other for other in self._state.replaced if other != key and other in tasks))
        return [call for k in keys for call in tasks[k].transcript.equal(_key(run_id, k, tool, arguments))]

    def _judge_again(self, asked: AskedCall, before: Sequence[AskedCall]) -> None:
        """A call that must not be repeated silently, and that the task has asked for before."""
        done = next((call for call in before if call.status is ToolCallStatus.RETURNED), None)
        if done is not None:
            asked.status, asked.result = ToolCallStatus.RETURNED, done.result
        elif any(call.is_waiting for call in before):
            self._refuse(asked, "under_way", "The same call is under way already.")
        elif any(call.may_have_acted for call in before) or self._needs_approval(asked):
            asked.status = ToolCallStatus.AWAITING_REVIEW

    def _needs_approval(self, asked: AskedCall) -> bool:
        wanted = self._state.option("approval") in (Approval.TOOLS, Approval.PLAN_AND_TOOLS)
        return wanted and asked.side_effects is not SideEffects.NONE

    def _refuse(self, asked: AskedCall, kind: str, message: str) -> None:
        asked.status = ToolCallStatus.REFUSED
        asked.error = Failure(kind=kind, message=message, retryable=True).as_json()

    def _tell_of(self, key: TaskKey, asked: AskedCall, changes: Changes) -> None:
        """What is to be said of a call that has just been asked for and is not simply sent."""
        if asked.status in (ToolCallStatus.REFUSED, ToolCallStatus.RETURNED):
            self._tell_of_end(key, asked, changes)
        elif asked.status is ToolCallStatus.AWAITING_REVIEW:
            self._open_review(key, asked, changes)

    def _tell_of_end(self, key: TaskKey, call: AskedCall, changes: Changes) -> None:
        said: dict[str, Any] = {"tool_call": call.number, "tool": call.tool, "status": call.status}
        if call.error is not None:
            said["error"] = dict(call.error)
        changes.event("tool.returned", task_key=key, **said)

    # Sending.

    def open(self, key: TaskKey, changes: Changes) -> list[ToolSending]:
        """The calls that are to be sent now, written as sent."""
        task = self._state.tasks[key]
        sent = task.transcript.asked
        results = {d: result_text(self._state.results[d]) for d in task.depends_on if d in self._state.results}
        for call in sent:
            call.status = ToolCallStatus.OPEN
            changes.tool_called(call.number)
            changes.event(
                "tool.called",
                task_key=key,
                attempt=call.attempt,
                tool_call=call.number,
                tool=call.tool,
                arguments=shortened(call.arguments, _MAX_SHOWN_CHARACTERS),
                side_effects=call.side_effects,
            )
        seconds = float(self._state.option("task_timeout_seconds")) - task.spent_ms / 1000
        return [
            ToolSending(task_key=key, call=call, results=results, timeout_seconds=max(1.0, seconds)) for call in sent
        ]

    # What comes back.

    def take_in(self, outcome: ToolOutcome, changes: Changes) -> Failure | None:
        """What became of a call; the failure where it has spoiled the attempt, which the caller ends."""
        call, key = outcome.sending.call, outcome.sending.task_key
        match outcome:
            case ToolReturned(_, text):
                call.status, call.result = ToolCallStatus.RETURNED, text
            case ToolFaulted(_, error) if _is_unknown(call, error):
                call.status, call.error = ToolCallStatus.LOST, _stored(error)
            case ToolFaulted(_, error):
                call.status, call.error = ToolCallStatus.FAILED, _stored(error)
            case ToolCut():
                call.status = ToolCallStatus.CANCELLED
            case _:
                assert_never(outcome)
        changes.tool_ended(call.number, call.status, result=call.result, error=call.error)
        self._tell_of_end(key, call, changes)
        if call.status is ToolCallStatus.CANCELLED:
            if not self._state.tasks[key].transcript.in_flight:
                self._state.walk.call_cut(key)
            return None
        if call.status is ToolCallStatus.LOST and not self._state.walk.is_ending:
            self._once_more(key, call, changes)
        return self.go_on(key, changes)

    def go_on(self, key: TaskKey, changes: Changes) -> Failure | None:
        """What comes next in the task's loop, once nothing of it is in flight."""
        task, walk = self._state.tasks[key], self._state.walk
        transcript = task.transcript
        if transcript.in_flight:
            return None
        task.rests(self._clock.now())
        if transcript.is_settled and (final := transcript.final) is not None:
            error = final.error or {}
            return Failure(
                kind=str(error["kind"]), message=f"{final.tool}: {error['message']}", retryable=not error.get("closed")
            )
        seconds = self._state.option("task_timeout_seconds")
        if transcript.is_settled and not walk.is_ending and task.spent_ms >= 1000 * seconds:
            return Failure(kind="timeout", message=f"No result within {seconds:g} s.", retryable=True)
        was = walk.status(key)
        if transcript.asked or transcript.is_settled:
            task.goes_on = True
            walk.goes_on(key)
        else:
            walk.awaits_review(key)
        if walk.status(key) is not was:
            changes.task(key, walk.status(key))
        return None

    # Reviews.

    def _open_review(self, key: TaskKey, call: AskedCall, changes: Changes) -> None:
        """Ask a person whether a call may be sent, or what became of one that nobody knows of."""
        unknown = [before for before in self._equal(key, call) if before.may_have_acted]
        if lost := bool(unknown):
            text = (
                f"Task {key} called {call.tool}, and nobody knows whether it acted. Is it to be called again "
                "(retry), do you know what it gave (supply), or has the task failed (fail)?"
            )
        else:
            text = f"May task {key} call {call.tool} with these arguments?"
        if visible(call.arguments) != call.arguments:
            text += " Some of their characters do not show."
        question: dict[str, Any] = {
            "text": text,
            "tool_call": {
                "number": call.number,
                "tool": call.tool,
                "arguments": json.loads(call.arguments, strict=False),
                "side_effects": call.side_effects,
                "outcome_unknown": lost,
            },
        }
        last = max(unknown, key=lambda before: before.number, default=None)
        if last is not None and last.error is not None:
            question["error"] = dict(last.error)
        review = ReviewRecord(
            id=new_id(),
            kind=ReviewKind.TOOL_CALL,
            task_key=key,
            generation=None,
            tool_call=call.number,
            question=question,
            allowed_answers=_OF_A_LOST_CALL if lost else _OF_A_CALL,
            answer=None,
            opened_at=self._clock.now(),
            answered_at=None,
            closed_at=None,
        )
        changes.review_opened(
            review.id,
            review.kind,
            question=question,
            allowed_answers=review.allowed_answers,
            task_key=key,
            tool_call=call.number,
        )
        self._state.reviews[review.id] = review
        self._state.walk.review_opened(review.id)

    def _equal(self, key: TaskKey, call: AskedCall) -> list[AskedCall]:
        if call.key is None or call.side_effects is not SideEffects.ONCE:
            return []
        arguments = json.loads(call.arguments, strict=False)
        return [other for other in self._before(key, call.tool, arguments) if other is not call]

    def answered(self, review: ReviewRecord, changes: Changes) -> tuple[TaskKey, Failure] | None:
        """Carry out what a person has said of a call; the failure where it has spoiled the attempt."""
        key, answer = review.task_key, review.answer or {}
        changes.review_closed(review.id)
        self._state.reviews.pop(review.id, None)
        call = None
        if key is not None and review.tool_call is not None:
            call = self._state.tasks[key].transcript.find(review.tool_call)
        if key is None or call is None or call.status is not ToolCallStatus.AWAITING_REVIEW:
            return None  # the task has begun anew since
        decision = Decision(answer["decision"])
        if decision in (Decision.RETRY, Decision.SUPPLY):
            self._state.tasks[key].has_time_again(self._clock.now())  # used up, a person's word would come to nothing
        match decision:
            case Decision.APPROVE | Decision.RETRY:
                call.status = ToolCallStatus.ASKED
                changes.tool_approved(call.number)
            case Decision.SUPPLY:
                call.status, call.result = ToolCallStatus.RETURNED, result_text(answer["result"])
            case Decision.REJECT:
                words = answer.get("instructions")
                self._refuse(call, "rejected", f"A person has refused this call{f': {words}' if words else '.'}")
            case _:
                call.status = ToolCallStatus.FAILED
                call.error = {
                    **Failure(
                        kind="tool_failed", message="A person says that the call has failed.", retryable=False
                    ).as_json(),
                    "closed": True,
                }
        if call.status is not ToolCallStatus.ASKED:
            changes.tool_ended(call.number, call.status, result=call.result, error=call.error)
            self._tell_of_end(key, call, changes)
        if not self._state.tasks[key].transcript.in_flight:
            self._state.walk.awaits_review(key)  # it may be about to go on already, and starts once
        failure = self.go_on(key, changes)
        return None if failure is None else (key, failure)

    # A run that is loaded.

    def take_up(self, changes: Changes) -> None:
        """What was in flight when the run's last worker left it is lost; as far as it may be, it is sent again."""
        state = self._state
        for key, task in state.tasks.items():
            if not task.transcript.steps:
                continue
            for call in task.transcript.lost():
                call.status = ToolCallStatus.LOST
                changes.tool_ended(call.number, call.status)
                self._tell_of_end(key, call, changes)
                if not state.walk.is_ending and task.attempt_open:
                    self._once_more(key, call, changes)
            waits = task.transcript.awaits_review and not task.transcript.asked
            if waits and state.walk.status(key) is TaskStatus.RUNNING:
                state.walk.awaits_review(key)
                changes.task(key, TaskStatus.AWAITING_REVIEW)

    def finish(self, key: TaskKey, changes: Changes) -> None:
        """The run ends: what has not been sent never will be."""
        for call in self._state.tasks[key].transcript.unsent():
            call.status, call.error = ToolCallStatus.REFUSED, NEVER_SENT.as_json()
            changes.tool_ended(call.number, call.status, error=call.error)

    def _once_more(self, key: TaskKey, lost: AskedCall, changes: Changes) -> None:
        """The lost call again, in its place: sent as far as it may be, else a person is asked."""
        self._state.last_tool_call += 1
        again = AskedCall(
            number=self._state.last_tool_call,
            step=lost.step,
            attempt=lost.attempt,
            position=lost.position,
            call_id=lost.call_id,
            tool=lost.tool,
            arguments=lost.arguments,
            key=lost.key,
            side_effects=lost.side_effects,
            status=ToolCallStatus.ASKED,
        )
        if lost.side_effects is SideEffects.ONCE:
            again.status = ToolCallStatus.AWAITING_REVIEW
        self._state.tasks[key].transcript.replace(again)
        changes.tool_asked(again, task_key=key)
        self._tell_of(key, again, changes)


def _key(run_id: str, task_key: TaskKey, tool: str, arguments: Mapping[str, Any]) -> str:
    """The same for the same task, tool and arguments, and for no others."""
    return sha256(json.dumps([run_id, task_key, tool, canonical(arguments)]).encode()).hexdigest()


def _is_unknown(call: AskedCall, error: ToolError) -> bool:
    """Whether it may have done what must not be done twice, and nobody knows."""
    return call.side_effects is SideEffects.ONCE and error.may_have_acted and not error.answered


def _too_many(left_out: int) -> tuple[str, str]:
    more = f"This call and {left_out - 1} more were" if left_out > 1 else "This call was"
    return "too_many_calls", f"{more} not made: {MAX_CALLS_AT_ONCE} at most at once. Ask again for what you still need."


def _stored(error: ToolError) -> dict[str, Any]:
    failure = Failure(kind=error.kind, message=error.message, retryable=not isinstance(error, ToolFailed))
    return {**failure.as_json(), "may_have_acted": error.may_have_acted}
