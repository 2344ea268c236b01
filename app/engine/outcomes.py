"""What an outcome means: for the walk, for the records, for the next request of the same seat."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from app.agents import planner
from app.domain.errors import (
    AuthFailed,
    CallRefused,
    FormatRefused,
    ModelDeclined,
    ModelError,
    SpoiledAnswer,
    TransportFault,
)
from app.domain.failures import MAX_REASKS, MAX_TRANSPORT_TRIES, Backoff, Failure, RunError
from app.domain.plan import PlanProblem
from app.domain.status import AttemptStatus, CallStatus, PlanReason, RunStatus, Seat, TaskStatus
from app.domain.usage import Usage
from app.domain.walk import WalkTask
from app.engine.calls import Answered, Broke, Call, Cut, Faulted, Outcome
from app.engine.clock import Clock
from app.engine.state import RunState, task_error
from app.llm.chat import ChatAnswer, FormatLevel
from app.storage.changes import Changes, first_plan
from app.storage.runs import plan_created

_MAX_STORED_PROBLEMS = 1_000


class Outcomes:
    """Takes in the outcomes of one run's calls."""

    def __init__(self, state: RunState, clock: Clock, backoff: Backoff) -> None:
        self._state = state
        self._clock = clock
        self._backoff = backoff

    def take_in(self, outcome: Outcome, changes: Changes) -> None:
        """Tell the walk, and add to the changes what is to be written."""
        match outcome:
            case Answered(call, answer):
                self._state.tries.pop((call.seat, call.task_key), None)
                self._answered(call, answer, changes)
            case Faulted(call, error):
                self._faulted(call, error, changes)
            case Cut(call):
                changes.call_ended(call.number, CallStatus.CANCELLED)
                self._state.walk.call_cut(call.task_key)
            case Broke(call, error):
                changes.call_ended(call.number, CallStatus.FAILED)
                self._state.walk.call_cut(call.task_key)
                self._state.walk.give_up(
                    RunError(code="internal_error", message=f"{type(error).__name__} in Planwave.")
                )
            case _:
                assert_never(outcome)

    # Answers.

    def _answered(self, call: Call, answer: ChatAnswer, changes: Changes) -> None:
        match call.seat:
            case Seat.PLANNER:
                self._plan_answered(call, answer, changes)
            case Seat.SYNTHESIZER:
                changes.call_ended(call.number, CallStatus.ANSWERED, usage=answer.usage)
                self._state.result = answer.content
                self._state.walk.synthesized()
            case _:
                changes.call_ended(call.number, CallStatus.ANSWERED, usage=answer.usage)
                self._task_succeeded(call, answer.content, changes)

    def _task_succeeded(self, call: Call, result: str, changes: Changes) -> None:
        key, attempt = call.of_task
        changes.attempt_ended(key, attempt, AttemptStatus.SUCCEEDED)
        changes.task(key, TaskStatus.SUCCEEDED, result=result)
        changes.event("task.succeeded", task_key=key, attempt=attempt)
        self._state.tasks[key].attempt_open = False
        self._state.results[key] = result
        self._state.walk.succeeded(key)

    def _plan_answered(self, call: Call, answer: ChatAnswer, changes: Changes) -> None:
        tasks, problems = planner.read(
            answer.content, min_tasks=self._state.option("min_tasks"), max_tasks=self._state.option("max_tasks")
        )
        if problems:
            self._plan_rejected(call, answer.content, problems, answer.usage, changes)
            return
        changes.call_ended(call.number, CallStatus.ANSWERED, usage=answer.usage)
        plan = first_plan(tasks, PlanReason.INITIAL, prompt_hash=planner.prompt_hash())
        changes.plan = plan
        changes.status = RunStatus.RUNNING
        changes.event("plan.created", **plan_created(plan))
        changes.event("run.started")
        self._state.add_tasks(plan.tasks)
        self._state.walk.plan_accepted(
            WalkTask(key=task.key, position=task.position, depends_on=task.depends_on) for task in plan.tasks
        )

    def _plan_rejected(
        self, call: Call, text: str, problems: Sequence[PlanProblem], usage: Usage, changes: Changes
    ) -> None:
        errors = [problem.as_json() for problem in problems[:_MAX_STORED_PROBLEMS]]
        self._state.rejections.append(planner.Rejection(answer=text, problems=problems))
        attempt = len(self._state.rejections)
        changes.call_ended(call.number, CallStatus.ANSWERED, usage=usage, answer=text, error={"problems": errors})
        changes.event("plan.rejected", attempt=attempt, errors=errors)
        if attempt <= MAX_REASKS:
            self._state.walk.plan_asked_again()
            return
        words = "; ".join(problem.message for problem in problems[:5])
        self._give_up(call, "plan_invalid", f"No valid plan after {attempt} answers. The last one: {words}")

    # Faults.

    def _faulted(self, call: Call, error: ModelError, changes: Changes) -> None:
        spoiled_by_time = error.kind == "timeout" and call.seat is Seat.EXECUTOR
        match error:
            case TransportFault() if not spoiled_by_time:
                self._transport_fault(call, error, changes)
            case FormatRefused():
                changes.call_ended(call.number, CallStatus.FAILED, error=_stored(error, retryable=True))
                self._state.format_at_most = FormatLevel(max(0, error.level - 1))
                self._state.walk.plan_asked_again()
            case CallRefused():
                changes.call_ended(call.number, CallStatus.FAILED, error=_stored(error, retryable=False))
                self._refused(call, error, changes)
            case _:
                self._spoiled(call, error, changes)

    def _transport_fault(self, call: Call, fault: TransportFault, changes: Changes) -> None:
        question = (call.seat, call.task_key)
        if call.try_number >= MAX_TRANSPORT_TRIES:
            message = f"The model's endpoint gave no answer in {call.try_number} tries. The last: {fault.message}"
            changes.call_ended(call.number, CallStatus.FAILED, error=_stored(fault, retryable=True))
            self._state.tries.pop(question, None)
            self._end(call, Failure(kind="llm_unavailable", message=message, retryable=True), changes)
            return
        self._state.tries[question] = call.try_number
        wait_ms = self._wait_ms(call.try_number, fault.retry_after_seconds)
        error = _stored(fault, retryable=True)
        changes.call_ended(call.number, CallStatus.FAILED, error=error, retry_in_ms=wait_ms)
        due_at = self._clock.now() + wait_ms
        match call.seat:
            case Seat.PLANNER:
                self._state.walk.plan_asked_again(due_at)
            case Seat.SYNTHESIZER:
                self._state.walk.synthesis_asked_again(due_at)
            case _:
                self._retry_task(call, error, wait_ms, changes)

    def _refused(self, call: Call, refusal: CallRefused, changes: Changes) -> None:
        """The endpoint will not take this request, however often it is sent."""
        if isinstance(refusal, AuthFailed):
            kind = "llm_auth_failed"
        elif call.seat is Seat.PLANNER:
            kind = "llm_unavailable"
        else:
            kind = refusal.kind
        self._end(call, Failure(kind=kind, message=refusal.message, retryable=False), changes)

    def _spoiled(self, call: Call, error: ModelError, changes: Changes) -> None:
        """An answer came and cannot be used, or none came within the task's time."""
        usage = error.usage if isinstance(error, SpoiledAnswer) else Usage()
        declined = isinstance(error, ModelDeclined)
        stored = _stored(error, retryable=not declined)
        if call.seat is Seat.PLANNER and not declined:
            self._state.tries.pop((call.seat, None), None)
            problem = PlanProblem(code="not_json", message=error.message, pointer="")
            self._plan_rejected(call, "", [problem], usage, changes)
            return
        status = CallStatus.ANSWERED if isinstance(error, SpoiledAnswer) else CallStatus.FAILED
        changes.call_ended(call.number, status, usage=usage, error=stored)
        self._state.tries.pop((call.seat, call.task_key), None)
        failure = Failure(kind=error.kind, message=error.message, retryable=not declined)
        if call.seat is Seat.SYNTHESIZER:
            self._state.spoiled_syntheses += 1
            if not declined and self._state.spoiled_syntheses <= MAX_REASKS:
                self._state.walk.synthesis_asked_again()
                return
        elif call.task_key is not None and not declined:
            key, attempt = call.of_task
            if attempt < self._state.option("max_attempts"):
                changes.attempt_ended(key, attempt, AttemptStatus.FAILED, error=failure.as_json())
                self._state.tasks[key].attempt_open = False
                self._retry_task(call, stored, self._wait_ms(attempt, None), changes)
                return
        self._end(call, failure, changes)

    # What follows from them.

    def _retry_task(self, call: Call, error: Mapping[str, Any], wait_ms: int, changes: Changes) -> None:
        key, attempt = call.of_task
        changes.task(key, TaskStatus.RETRYING, retry_in_ms=wait_ms)
        changes.event(
            "task.retry_scheduled",
            task_key=key,
            attempt=attempt,
            try_number=call.try_number,
            wait_seconds=wait_ms / 1000,
            error=error,
        )
        self._state.walk.retry_at(key, self._clock.now() + wait_ms)

    def _end(self, call: Call, failure: Failure, changes: Changes) -> None:
        """Nothing more is tried for this question; the run fails with it."""
        if call.task_key is None:
            planner_code = "plan_refused" if failure.kind in ("refusal", "content_filter") else failure.kind
            code = planner_code if call.seat is Seat.PLANNER else "synthesis_failed"
            if failure.kind in ("llm_unavailable", "llm_auth_failed"):
                code = failure.kind
            self._give_up(call, code, failure.message)
            return
        key, attempt = call.of_task
        stored = failure.as_json()
        changes.attempt_ended(key, attempt, AttemptStatus.FAILED, error=stored)
        changes.task(key, TaskStatus.FAILED)
        changes.event("task.failed", task_key=key, attempt=attempt, error=stored)
        self._state.tasks[key].attempt_open = False
        self._state.walk.failed(key, task_error(key, stored))

    def _give_up(self, call: Call, code: str, message: str) -> None:
        self._state.walk.call_cut(call.task_key)
        self._state.walk.give_up(RunError(code=code, message=message))

    def _wait_ms(self, tries: int, retry_after_seconds: float | None) -> int:
        chance = random.random()  # noqa: S311 - spreads retries, guards nothing
        return int(1000 * self._backoff.wait_seconds(tries, chance=chance, retry_after_seconds=retry_after_seconds))


def _stored(error: ModelError, *, retryable: bool) -> dict[str, Any]:
    return Failure(kind=error.kind, message=error.message, retryable=retryable).as_json()
