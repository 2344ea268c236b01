"""What one commit writes for one run: outcomes, starts, calls and their events together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from app.domain.generation import NewPlan
from app.domain.ids import RunId, TaskKey, TenantId
from app.domain.status import (
    AttemptStatus,
    CallStatus,
    ReviewKind,
    RunStatus,
    Seat,
    TaskStatus,
    ToolCallStatus,
)
from app.domain.transcript import AskedCall
from app.domain.usage import Usage

_NOTHING = Usage()
NewEvent = tuple[str, TaskKey | None, Mapping[str, Any]]
"""Type, task and data of an event that has no number yet."""


@dataclass(kw_only=True, slots=True)
class Changes:
    """Everything that one commit writes for one run, in the words of what happened. Empty, it writes only a version."""

    tenant_id: TenantId
    run_id: RunId
    token: UUID | None
    status: RunStatus | None = None
    progress: Mapping[str, int] | None = None
    result: Any = None
    error: Mapping[str, Any] | None = None
    stop_requested: str | None = None
    budget_warned: Sequence[str] | None = None
    begun: bool = False
    over: bool = False
    parked: bool = False
    """The run stands still from here on, and nobody holds it."""
    plans: list[NewPlan] = field(default_factory=list)
    replans: int = 0
    """How many more of the run's replans are used up."""
    answers: int = 0
    llm_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano_usd: int | None = None
    _tasks: list[dict[str, Any]] = field(default_factory=list)
    _new_attempts: list[dict[str, Any]] = field(default_factory=list)
    _ended_attempts: list[dict[str, Any]] = field(default_factory=list)
    _new_calls: list[dict[str, Any]] = field(default_factory=list)
    _ended_calls: list[dict[str, Any]] = field(default_factory=list)
    _new_tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    _opened_tool_calls: list[int] = field(default_factory=list)
    _approved_tool_calls: list[int] = field(default_factory=list)
    _ended_tool_calls: list[dict[str, Any]] = field(default_factory=list)
    _skip_reasons: list[dict[str, Any]] = field(default_factory=list)
    _wordings: list[dict[str, Any]] = field(default_factory=list)
    _new_reviews: list[dict[str, Any]] = field(default_factory=list)
    _answered_reviews: list[dict[str, Any]] = field(default_factory=list)
    _closed_reviews: list[dict[str, Any]] = field(default_factory=list)
    _events: list[NewEvent] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        written = (
            self._events,
            self._tasks,
            self._new_calls,
            self._ended_calls,
            self._new_tool_calls,
            self._opened_tool_calls,
            self._ended_tool_calls,
            self._closed_reviews,
        )
        return not (any(written) or self.over or self.replans or self.error)

    @property
    def has_outcome(self) -> bool:
        """Whether the run has come further: some call has an end that its own worker saw."""
        ended = (*self._ended_calls, *self._ended_tool_calls)
        lost = (CallStatus.LOST, ToolCallStatus.LOST)
        return any(call["status"] not in lost or call.get("error") is not None for call in ended)

    @property
    def touches_tasks(self) -> bool:
        """Whether the counts of tasks by status may differ afterwards."""
        return bool(self._tasks or self.plans)

    def event(self, type_: str, *, task_key: TaskKey | None = None, **data: Any) -> None:
        """Something that clients may read of, in the order of these calls."""
        self._events.append((type_, task_key, data))

    def task(self, key: TaskKey, status: TaskStatus, *, result: Any = None, retry_in_ms: int | None = None) -> None:
        """A task changes its status."""
        self._tasks.append({"b_key": key, "status": status, "result": result, "retry_in_ms": retry_in_ms})

    def task_skipped(self, key: TaskKey, reason: str) -> None:
        """A task is given up on purpose; its dependents are told why."""
        self.task(key, TaskStatus.SKIPPED)
        self._skip_reasons.append({"b_key": key, "skip_reason": reason})

    def task_begins_anew(
        self, key: TaskKey, *, wording: str | None = None, reworded: bool = False, attempts_before: int
    ) -> None:
        """A task's attempts so far no longer count; without a `wording` the task keeps the one it has."""
        self._wordings.append(
            {"b_key": key, "wording": wording, "reworded": reworded, "attempts_before": attempts_before}
        )

    def review_opened(
        self,
        review_id: UUID,
        kind: ReviewKind,
        *,
        question: Mapping[str, Any],
        allowed_answers: Sequence[str],
        task_key: TaskKey | None = None,
        generation: int | None = None,
        tool_call: int | None = None,
    ) -> None:
        """The run asks something of a person."""
        self._new_reviews.append(
            {
                "id": review_id,
                "kind": kind,
                "task_key": task_key,
                "generation": generation,
                "tool_call": tool_call,
                "question": dict(question),
                "allowed_answers": list(allowed_answers),
            }
        )
        self.event("review.opened", task_key=task_key, review_id=str(review_id), kind=kind)

    def review_answered(self, review_id: UUID, answer: Mapping[str, Any], *, task_key: TaskKey | None = None) -> None:
        """A person has answered; the answer waits for the worker that applies it."""
        self.answers += 1
        self._answered_reviews.append({"b_id": review_id, "answer": dict(answer)})
        self.event("review.answered", task_key=task_key, review_id=str(review_id), decision=answer["decision"])

    def review_closed(self, review_id: UUID) -> None:
        """What a review's answer asked for is done, or the run is over and nobody needs one any more."""
        self._closed_reviews.append({"b_id": review_id})

    @property
    def touches_reviews(self) -> bool:
        """Whether the number of open reviews may differ afterwards."""
        return bool(self._new_reviews or self._answered_reviews or self._closed_reviews)

    def attempt_started(self, key: TaskKey, number: int, *, description: str, prompt_hash: str) -> None:
        """A new try at a task."""
        row = {"task_key": key, "number": number, "description": description, "prompt_hash": prompt_hash}
        self._new_attempts.append(row | {"status": AttemptStatus.RUNNING})

    def attempt_ended(
        self, key: TaskKey, number: int, status: AttemptStatus, *, error: Mapping[str, Any] | None = None
    ) -> None:
        """A try at a task came to its end."""
        self._ended_attempts.append({"b_key": key, "b_number": number, "status": status, "error": error})

    def call_opened(
        self,
        number: int,
        *,
        seat: Seat,
        model: str,
        try_number: int,
        task_key: TaskKey | None = None,
        attempt: int | None = None,
        generation: int = 0,
        reserved: Usage = _NOTHING,
        reserved_cost_nano_usd: int | None = None,
    ) -> None:
        """A request is about to be sent to a model. Counted from here, whatever becomes of it."""
        self.llm_calls += 1
        self._new_calls.append(
            {
                "number": number,
                "seat": seat,
                "task_key": task_key,
                "attempt": attempt,
                "try_number": try_number,
                "status": CallStatus.OPEN,
                "model": model,
                "generation": generation,
                "reserved_input_tokens": reserved.input_tokens,
                "reserved_output_tokens": reserved.output_tokens,
                "reserved_cost_nano_usd": reserved_cost_nano_usd,
            }
        )

    def call_ended(
        self,
        number: int,
        status: CallStatus,
        *,
        usage: Usage | None = None,
        cost_nano_usd: int | None = None,
        answer: str | None = None,
        error: Mapping[str, Any] | None = None,
        retry_in_ms: int | None = None,
    ) -> None:
        """What became of a request."""
        if usage is not None:
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens
        if cost_nano_usd is not None:
            self.cost_nano_usd = (self.cost_nano_usd or 0) + cost_nano_usd
        self._ended_calls.append(
            {
                "b_number": number,
                "status": status,
                "input_tokens": None if usage is None else usage.input_tokens,
                "output_tokens": None if usage is None else usage.output_tokens,
                "cost_nano_usd": cost_nano_usd,
                "answer": answer,
                "error": error,
                "retry_in_ms": retry_in_ms,
            }
        )

    def tool_asked(self, call: AskedCall, *, task_key: TaskKey) -> None:
        """A model has asked for a call of a tool; one that needs no sending has ended already."""
        self._new_tool_calls[call.number] = {
            "number": call.number,
            "task_key": task_key,
            "attempt": call.attempt,
            "step": call.step,
            "position": call.position,
            "call_id": call.call_id,
            "tool": call.tool,
            "arguments": call.arguments,
            "idempotency_key": call.key,
            "side_effects": call.side_effects,
            "status": call.status,
            "result": call.result,
            "error": call.error,
        }

    def tool_approved(self, number: int) -> None:
        """A person has said that a call of a tool may be sent."""
        self._approved_tool_calls.append(number)

    def tool_called(self, number: int) -> None:
        """A call of a tool is about to be sent. Counted from here, whatever becomes of it."""
        self.tool_calls += 1
        if number in self._new_tool_calls:
            self._new_tool_calls[number]["status"] = ToolCallStatus.OPEN
        else:
            self._opened_tool_calls.append(number)

    def tool_ended(
        self,
        number: int,
        status: ToolCallStatus,
        *,
        result: str | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """What became of a call of a tool."""
        self._ended_tool_calls.append({"b_number": number, "status": status, "result": result, "error": error})
