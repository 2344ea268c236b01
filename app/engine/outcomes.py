"""What an outcome means: for the walk, for the records, for the next request of the same seat."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, assert_never

from app.agents import planner
from app.agents.json_reading import Unreadable
from app.agents.output import read_output
from app.agents.tool_words import read_calls
from app.domain.errors import (
    AuthFailed,
    CallRefused,
    FormatRefused,
    ModelDeclined,
    ModelError,
    SpoiledAnswer,
    ToolsRefused,
    TransportFault,
)
from app.domain.failures import MAX_REASKS, MAX_TRANSPORT_TRIES, Backoff, Failure, RunError
from app.domain.generation import next_plan
from app.domain.ids import TaskKey
from app.domain.plan import PlannedTask, PlanProblem
from app.domain.status import AttemptStatus, CallStatus, PlanReason, ReviewKind, Seat, TaskStatus
from app.domain.transcript import Transcript
from app.domain.usage import Usage
from app.engine.acting import Acting
from app.engine.calls import Answered, Broke, Call, Cut, Faulted, Outcome
from app.engine.clock import Clock
from app.engine.remedies import Remedies
from app.engine.state import ENDPOINT_FAULTS, RunState, task_error
from app.engine.tooling import ToolCut, ToolFaulted, ToolOutcome, ToolReturned
from app.llm.chat import ChatAnswer, FormatLevel, ToolCall
from app.storage.changes import Changes
from app.storage.records import ReviewRecord

_MAX_STORED_PROBLEMS = 1_000
_NOTHING = Usage()


class Outcomes:
    """Takes in the outcomes of one run's calls."""

    def __init__(self, state: RunState, remedies: Remedies, acting: Acting, clock: Clock, backoff: Backoff) -> None:
        self._state = state
        self._remedies = remedies
        self._acting = acting
        self._clock = clock
        self._backoff = backoff

    def take_in(self, outcome: Outcome | ToolOutcome, changes: Changes) -> None:
        """Tell the walk, and add to the changes what is to be written."""
        match outcome:
            case ToolReturned() | ToolFaulted() | ToolCut():
                failure = self._acting.take_in(outcome, changes)
                if failure is not None:
                    self._tool_failed(outcome.sending.task_key, failure, changes)
            case Answered(call, answer):
                self._state.ask(call.seat, call.task_key).tries = 0
                self._answered(call, answer, changes)
            case Faulted(call, error):
                self._faulted(call, error, changes)
            case Cut(call):
                self._end_call(call, changes, CallStatus.CANCELLED, usage=call.reserved)
                self._state.walk.call_cut(call.purpose)
            case Broke(call, error):
                self._end_call(call, changes, CallStatus.FAILED)
                self._state.walk.call_cut(call.purpose)
                self._state.walk.give_up(
                    RunError(code="internal_error", message=f"{type(error).__name__} in Planwave.")
                )
            case _:
                assert_never(outcome)

    def take_up(self, changes: Changes) -> None:
        """For a run that is loaded: what people have said of tool calls, and nobody has carried out."""
        for review in list(self._state.reviews.values()):
            if review.kind is ReviewKind.TOOL_CALL and review.answered_at is not None:
                self.review_answered(review, changes)

    def review_answered(self, review: ReviewRecord, changes: Changes) -> None:
        """A person has answered."""
        if review.kind is not ReviewKind.TOOL_CALL:
            self._remedies.answered(review, changes)
            return
        self._state.walk.review_answered(review.id)
        if (failed := self._acting.answered(review, changes)) is not None:
            self._tool_failed(*failed, changes)

    # Answers.

    def _answered(self, call: Call, answer: ChatAnswer, changes: Changes) -> None:
        text = (self._state.ask(call.seat, call.task_key).partial or "") + answer.content
        match call.seat:
            case Seat.PLANNER:
                self._plan_answered(call, text, answer.usage, changes)
            case Seat.RECOVERY:
                self._recovery_answered(call, text, answer.usage, changes)
            case Seat.SYNTHESIZER:
                self._synthesis_answered(call, text, answer.usage, changes)
            case Seat.EXECUTOR:
                self._executor_answered(call, text, answer, changes)
            case _:
                assert_never(call.seat)

    def _executor_answered(self, call: Call, text: str, answer: ChatAnswer, changes: Changes) -> None:
        """A task's result, or a step of its loop."""
        wanted: Sequence[ToolCall] = answer.tool_calls
        if call.in_words:
            try:
                wanted = [replace(one, id="") for one in read_calls(answer.content, call.offers)]
            except Unreadable as unreadable:
                problem = SpoiledAnswer(unreadable.problem.message, kind="not_json", usage=answer.usage)
                self._spoiled(call, problem, changes)
                return
        if not wanted:
            self._task_answered(call, text, answer.usage, changes)
        elif call.must_answer:
            message = "The model went on asking for tools where it had to answer."
            self._end_call(call, changes, CallStatus.ANSWERED, usage=answer.usage)
            self._end(call, Failure(kind="max_steps", message=message, retryable=False), changes)
        else:
            content = "" if call.in_words else answer.content
            self._end_call(call, changes, CallStatus.ANSWERED, usage=answer.usage, answer=content)
            self._state.ask(call.seat, call.task_key).partial = None
            if (failed := self._acting.asked(call, content, wanted, changes)) is not None:
                self._tool_failed(call.of_task[0], failed, changes)

    def _task_answered(self, call: Call, text: str, usage: Usage, changes: Changes) -> None:
        key, attempt = call.of_task
        result: Any = text
        if (schema := call.schema) is not None:
            result, mismatch = read_output(text, schema)
            if mismatch is not None:
                self._spoiled(call, SpoiledAnswer(mismatch, kind="output_mismatch", usage=usage), changes)
                return
        self._end_call(call, changes, CallStatus.ANSWERED, usage=usage)
        self._state.settled(call.seat, key)
        changes.attempt_ended(key, attempt, AttemptStatus.SUCCEEDED)
        changes.task(key, TaskStatus.SUCCEEDED, result=result)
        changes.event("task.succeeded", task_key=key, attempt=attempt)
        self._state.tasks[key].attempt_open = False
        self._state.tasks[key].transcript = Transcript()
        self._state.results[key] = result
        self._state.walk.succeeded(key)

    def _synthesis_answered(self, call: Call, text: str, usage: Usage, changes: Changes) -> None:
        result: Any = text
        if (schema := call.schema) is not None:
            result, mismatch = read_output(text, schema)
            if mismatch is not None:
                self._spoiled(call, SpoiledAnswer(mismatch, kind="output_mismatch", usage=usage), changes)
                return
        self._end_call(call, changes, CallStatus.ANSWERED, usage=usage)
        self._state.result, self._state.is_synthesized = result, True
        self._state.walk.synthesized()

    def _plan_answered(self, call: Call, text: str, usage: Usage, changes: Changes) -> None:
        tasks, problems = planner.read(
            text,
            min_tasks=self._state.option("min_tasks"),
            max_tasks=self._state.option("max_tasks"),
            tools=self._state.option("tools"),
        )
        if problems:
            self._rejected(call, text, problems, usage, changes)
            return
        self._end_call(call, changes, CallStatus.ANSWERED, usage=usage)
        self._state.settled(Seat.PLANNER, None)
        self._plan_drawn(tasks, changes)

    def _plan_drawn(self, tasks: Sequence[PlannedTask], changes: Changes) -> None:
        """Store the planner's plan: the first one, or another in place of one that a person turned down."""
        state = self._state
        generation = 0 if state.generation is None else state.generation + 1
        superseded = state.turned_down_tasks
        plan = next_plan(
            tasks,
            PlanReason.REQUESTED if generation else PlanReason.INITIAL,
            generation=generation,
            position=len(state.tasks),
            carried=state.carried(without=superseded),
            superseded=superseded,
            prompt_hash=planner.prompt_hash(with_tools=bool(state.option("tools"))),
        )
        self._remedies.store(
            plan,
            changes,
            lambda added: state.walk.plan_accepted(added, superseded=superseded),
        )

    def _recovery_answered(self, call: Call, text: str, usage: Usage, changes: Changes) -> None:
        step = call.about
        answer = self._remedies.read(step, text)
        if isinstance(answer, list):
            self._rejected(call, text, answer, usage, changes)
            return
        self._end_call(call, changes, CallStatus.ANSWERED, usage=usage)
        self._state.settled(Seat.RECOVERY, step.key)
        self._remedies.take(step, answer, changes)

    def _rejected(self, call: Call, text: str, problems: Sequence[PlanProblem], usage: Usage, changes: Changes) -> None:
        """An answer of the planner or of recovery that cannot be used."""
        ask = self._state.ask(call.seat, call.task_key)
        ask.rejections.append(planner.Rejection(answer=text, problems=problems))
        ask.tries, ask.partial = 0, None
        attempt = len(ask.rejections)
        errors = [problem.as_json() for problem in problems[:_MAX_STORED_PROBLEMS]]
        is_last = attempt > MAX_REASKS
        stored = {"problems": errors} | ({"closed": True} if is_last else {})
        self._end_call(call, changes, CallStatus.ANSWERED, usage=usage, answer=text, error=stored)
        changes.event("plan.rejected", task_key=call.task_key, attempt=attempt, errors=errors)
        if not is_last:
            self._ask_again(call, None, stored, changes)
            return
        words = "; ".join(problem.message for problem in problems[:5])
        if call.seat is Seat.PLANNER:
            self._give_up(call, "plan_invalid", f"No valid plan after {attempt} answers. The last one: {words}")
        else:
            self._state.settled(Seat.RECOVERY, call.task_key)
            self._remedies.spoiled(call.about, f"No usable answer to it: {words}", changes, again=True)

    # Faults.

    def _faulted(self, call: Call, error: ModelError, changes: Changes) -> None:
        spoiled_by_time = error.kind == "timeout" and call.seat is Seat.EXECUTOR
        ask = self._state.ask(call.seat, call.task_key)
        match error:
            case TransportFault() if not spoiled_by_time:
                self._transport_fault(call, error, changes)
            case FormatRefused():
                self._end_call(call, changes, CallStatus.FAILED, error=_stored(error, retryable=True))
                ask.format_at_most = FormatLevel(max(0, error.level - 1))
                self._ask_again(call, 0, _stored(error, retryable=True), changes)
            case ToolsRefused() if not ask.in_words:
                self._end_call(call, changes, CallStatus.FAILED, error=_stored(error, retryable=True))
                ask.in_words = True
                self._ask_again(call, 0, _stored(error, retryable=True), changes)
            case CallRefused(kind="context_length_exceeded") if not ask.shrunk:
                self._end_call(call, changes, CallStatus.FAILED, error=_stored(error, retryable=True))
                ask.shrunk = True
                self._ask_again(call, 0, _stored(error, retryable=True), changes)
            case CallRefused():
                self._end_call(call, changes, CallStatus.FAILED, error=_stored(error, retryable=False))
                self._refused(call, error, changes)
            case SpoiledAnswer(kind="length") if error.content and ask.partial is None and not call.asks_for_json:
                self._cut_off(call, error, changes)
            case _:
                self._spoiled(call, error, changes)

    def _transport_fault(self, call: Call, fault: TransportFault, changes: Changes) -> None:
        ask = self._state.ask(call.seat, call.task_key)
        # Whoever did not answer in all that time may have worked, and be paid, all the same.
        usage = call.reserved if fault.kind == "timeout" else None
        error = _stored(fault, retryable=True)
        if call.try_number >= MAX_TRANSPORT_TRIES:
            message = f"The model's endpoint gave no answer in {call.try_number} tries. The last: {fault.message}"
            self._end_call(call, changes, CallStatus.FAILED, usage=usage, error=error)
            ask.tries = 0
            self._end(call, Failure(kind="llm_unavailable", message=message, retryable=True), changes)
            return
        ask.tries = call.try_number
        wait_ms = self._wait_ms(call.try_number, fault.retry_after_seconds)
        if fault.kind == "rate_limited":
            opens_at = self._state.opens_at
            opens_at[call.model] = max(self._clock.now() + wait_ms, opens_at.get(call.model, 0))
        self._end_call(call, changes, CallStatus.FAILED, usage=usage, error=error, retry_in_ms=wait_ms)
        self._ask_again(call, wait_ms, error, changes)

    def _cut_off(self, call: Call, error: SpoiledAnswer, changes: Changes) -> None:
        """The answer ended at the length limit: once, the next call goes on where it stops."""
        stored = _stored(error, retryable=True) | {"goes_on": True}
        ask = self._state.ask(call.seat, call.task_key)
        ask.partial, ask.tries = error.content, 0
        self._end_call(call, changes, CallStatus.ANSWERED, usage=error.usage, answer=error.content, error=stored)
        self._ask_again(call, 0, _stored(error, retryable=True), changes)

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
        usage = error.usage if isinstance(error, SpoiledAnswer) else call.reserved
        declined = isinstance(error, ModelDeclined)
        if call.seat in (Seat.PLANNER, Seat.RECOVERY) and not declined:
            problem = PlanProblem(code="not_json", message=error.message, pointer="")
            self._rejected(call, "", [problem], usage, changes)
            return
        stored = _stored(error, retryable=not declined)
        problem = PlanProblem(code=error.kind, message=error.message, pointer="")
        if call.seat is Seat.SYNTHESIZER:
            stored["problems"] = [problem.as_json()]
        status = CallStatus.ANSWERED if isinstance(error, SpoiledAnswer) else CallStatus.FAILED
        self._end_call(call, changes, status, usage=usage, error=stored)
        ask = self._state.ask(call.seat, call.task_key)
        ask.tries, ask.partial = 0, None
        failure = Failure(kind=error.kind, message=error.message, retryable=not declined)
        if call.seat is Seat.SYNTHESIZER:
            ask.rejections.append(planner.Rejection(answer="", problems=[problem]))
            if not declined and len(ask.rejections) <= MAX_REASKS:
                self._ask_again(call, None, stored, changes)
                return
        elif call.task_key is not None and not declined:
            key, attempt = call.of_task
            task = self._state.tasks[key]
            if task.counted < self._state.option("max_attempts"):
                self._end_attempt(key, attempt, failure, changes)
                self._retry_task(call, stored, self._wait_ms(task.counted, None), changes)
                return
        self._end(call, failure, changes)

    def _tool_failed(self, key: TaskKey, failure: Failure, changes: Changes) -> None:
        """A tool has spoiled the attempt."""
        task = self._state.tasks[key]
        if failure.retryable and task.counted < self._state.option("max_attempts"):
            stored = self._end_attempt(key, task.attempt, failure, changes)
            self._retry(key, stored, self._wait_ms(task.counted, None), changes, attempt=task.attempt, try_number=1)
        else:
            self._task_failed(key, task.attempt, failure, changes)

    # What follows from them.

    def _ask_again(self, call: Call, wait_ms: int | None, error: Mapping[str, Any], changes: Changes) -> None:
        """The same question once more, after the wait where there is one."""
        due_at = self._clock.now() + wait_ms if wait_ms else None
        match call.seat:
            case Seat.PLANNER:
                self._state.walk.plan_asked_again(due_at)
            case Seat.SYNTHESIZER:
                self._state.walk.synthesis_asked_again(due_at)
            case Seat.RECOVERY:
                self._state.walk.recovery_asked_again(call.about, due_at)
            case Seat.EXECUTOR:
                self._retry_task(call, error, wait_ms or 0, changes)
            case _:
                assert_never(call.seat)

    def _retry_task(self, call: Call, error: Mapping[str, Any], wait_ms: int, changes: Changes) -> None:
        key, attempt = call.of_task
        self._retry(key, error, wait_ms, changes, attempt=attempt, try_number=call.try_number)

    def _retry(
        self,
        key: TaskKey,
        error: Mapping[str, Any],
        wait_ms: int,
        changes: Changes,
        *,
        attempt: int,
        try_number: int,
    ) -> None:
        task = self._state.tasks[key]
        task.rests(self._clock.now())
        task.goes_on = False
        changes.task(key, TaskStatus.RETRYING, retry_in_ms=wait_ms)
        changes.event(
            "task.retry_scheduled",
            task_key=key,
            attempt=attempt,
            try_number=try_number,
            wait_seconds=wait_ms / 1000,
            error=error,
        )
        self._state.walk.retry_at(key, self._clock.now() + wait_ms)

    def _end(self, call: Call, failure: Failure, changes: Changes) -> None:
        """Nothing more is tried for this question."""
        endpoint = failure.kind in ENDPOINT_FAULTS
        match call.seat:
            case Seat.PLANNER:
                code = "plan_refused" if failure.kind in ("refusal", "content_filter") else failure.kind
                self._give_up(call, code, failure.message)
            case Seat.SYNTHESIZER:
                self._give_up(call, failure.kind if endpoint else "synthesis_failed", failure.message)
            case Seat.RECOVERY if endpoint:
                self._give_up(call, failure.kind, failure.message)
            case Seat.RECOVERY:
                self._state.settled(call.seat, call.task_key)
                self._remedies.spoiled(call.about, failure.message, changes, again=False)
            case Seat.EXECUTOR:
                self._task_failed(*call.of_task, failure, changes)
            case _:
                assert_never(call.seat)

    def _task_failed(self, key: TaskKey, attempt: int, failure: Failure, changes: Changes) -> None:
        stored = self._end_attempt(key, attempt, failure, changes)
        self._state.settled(Seat.EXECUTOR, key)
        changes.task(key, TaskStatus.FAILED)
        changes.event("task.failed", task_key=key, attempt=attempt, error=stored)
        if failure.kind in ENDPOINT_FAULTS:
            self._state.walk.failed_for_good(key, task_error(key, stored))
        else:
            self._remedies.apply(key, self._state.walk.failed(key, self._clock.now()), changes)

    def _end_attempt(self, key: TaskKey, attempt: int, failure: Failure, changes: Changes) -> Mapping[str, Any]:
        stored = failure.as_json()
        changes.attempt_ended(key, attempt, AttemptStatus.FAILED, error=stored)
        task = self._state.tasks[key]
        task.attempt_open = task.recovered = False
        task.rests(self._clock.now())
        task.spent_ms = 0
        task.errors.append(stored)
        return stored

    def _end_call(
        self,
        call: Call,
        changes: Changes,
        status: CallStatus,
        *,
        usage: Usage | None = None,
        answer: str | None = None,
        error: Mapping[str, Any] | None = None,
        retry_in_ms: int | None = None,
    ) -> None:
        """Write the call's end, and count what it used in place of what it had reserved."""
        used = usage or _NOTHING
        cost = None if call.price is None or usage is None else call.price.cost_nano_usd(used)
        self._state.budget.closed(call.number, used.input_tokens + used.output_tokens, cost)
        changes.call_ended(
            call.number,
            status,
            usage=usage,
            cost_nano_usd=cost,
            answer=answer,
            error=error,
            retry_in_ms=retry_in_ms,
        )

    def _give_up(self, call: Call, code: str, message: str) -> None:
        self._state.walk.call_cut(call.purpose)
        self._state.walk.give_up(RunError(code=code, message=message))

    def _wait_ms(self, tries: int, retry_after_seconds: float | None) -> int:
        chance = random.random()  # noqa: S311 - spreads retries, guards nothing
        return int(1000 * self._backoff.wait_seconds(tries, chance=chance, retry_after_seconds=retry_after_seconds))


def _stored(error: ModelError, *, retryable: bool) -> dict[str, Any]:
    return Failure(kind=error.kind, message=error.message, retryable=retryable).as_json()
