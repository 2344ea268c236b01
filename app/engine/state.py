"""One run in a worker's memory: the walk, and what its next requests and records need. Built from stored rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.agents.planner import Rejection
from app.domain.failures import RunError
from app.domain.ids import TaskKey
from app.domain.plan import PlanProblem
from app.domain.status import AttemptStatus, CallStatus, Seat, StopRequest, TaskStatus
from app.domain.walk import Walk, WalkTask
from app.llm.chat import FormatLevel
from app.storage.changes import Changes, NewTask
from app.storage.dispatch import Lease
from app.storage.records import RunRecord, TaskRecord
from app.storage.resume import StoredCall, StoredRun


@dataclass(slots=True)
class DrivenTask:
    """A task under way. `attempt` is the last one's number, 0 before the first."""

    key: TaskKey
    description: str
    depends_on: Sequence[TaskKey]
    attempt: int = 0
    attempt_open: bool = False
    recovered: bool = False
    """Its worker died while it ran: the same attempt goes on."""


@dataclass(slots=True)
class RunState:
    """What the driver of a run carries between commits."""

    lease: Lease
    run: RunRecord
    walk: Walk
    tasks: dict[TaskKey, DrivenTask] = field(default_factory=dict)
    results: dict[TaskKey, Any] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    format_at_most: FormatLevel = FormatLevel.JSON_SCHEMA
    """How strictly the planner may still be asked for JSON, after what the endpoint has refused this run."""
    spoiled_syntheses: int = 0
    tries: dict[tuple[Seat, TaskKey | None], int] = field(default_factory=dict)
    """Transport faults in a row, of the question now open at each seat."""
    last_call: int = 0
    result: Any = None

    def changes(self) -> Changes:
        """An empty commit of this run."""
        return Changes(tenant_id=self.lease.tenant_id, run_id=self.lease.run_id, token=self.lease.token)

    def add_tasks(self, new: Sequence[NewTask]) -> None:
        """Take in the tasks of a plan that has just been drawn."""
        for task in new:
            self.tasks[task.key] = DrivenTask(task.key, task.description, task.depends_on)

    def option(self, name: str) -> Any:
        """One of the run's stored options."""
        return self.run.options[name]


def build(stored: StoredRun, lease: Lease) -> tuple[RunState, Changes]:
    """The run as its rows have it, and the records of what a dead worker left open."""
    run = stored.run
    walk = Walk(
        mode=run.mode,
        max_parallel=run.options["max_parallel"],
        synthesize=run.options["synthesize"],
        tasks=None if run.generation is None else [_walk_task(task) for task in stored.tasks],
        error=_known_error(stored),
    )
    state = RunState(lease=lease, run=run, walk=walk, last_call=stored.last_call)
    for task in stored.tasks:
        state.tasks[task.key] = _driven_task(task, stored)
        if task.status is TaskStatus.SUCCEEDED:
            state.results[task.key] = task.result
    changes = state.changes()
    for call in stored.calls:
        _take_up(state, call, changes)
    _restore_waits(state, stored.calls)
    if run.stop_requested is StopRequest.CANCEL:
        walk.cancel()
    return state, changes


def _walk_task(task: TaskRecord) -> WalkTask:
    return WalkTask(
        key=task.key,
        position=task.position,
        depends_on=tuple(task.depends_on),
        status=task.status,
        due_at=task.next_attempt_at,
    )


def _driven_task(task: TaskRecord, stored: StoredRun) -> DrivenTask:
    driven = DrivenTask(task.key, task.description, task.depends_on)
    if (last := stored.last_attempts.get(task.key)) is not None:
        driven.attempt = last.number
        driven.attempt_open = last.status is AttemptStatus.RUNNING
        driven.recovered = task.status is TaskStatus.RUNNING
    return driven


def _take_up(state: RunState, call: StoredCall, changes: Changes) -> None:
    """What a stored call says of the question it belongs to; calls come in order, so that the last word stands."""
    question = (call.seat, call.task_key)
    if call.status is CallStatus.OPEN:
        changes.call_ended(call.number, CallStatus.LOST)
    elif call.status is CallStatus.ANSWERED:
        state.tries.pop(question, None)
    task = None if call.task_key is None else state.tasks.get(call.task_key)
    if task is not None and call.attempt != task.attempt:
        return
    if call.status is CallStatus.FAILED and call.retry_at is not None:
        state.tries[question] = call.try_number
    if call.status is CallStatus.ANSWERED and call.error is not None:
        if call.seat is Seat.PLANNER:
            problems = [_problem(entry) for entry in call.error.get("problems", ())]
            state.rejections.append(Rejection(answer=call.answer or "", problems=problems))
        elif call.seat is Seat.SYNTHESIZER:
            state.spoiled_syntheses += 1


def _restore_waits(state: RunState, calls: Sequence[StoredCall]) -> None:
    """Planning or synthesis that waited for its next try goes on waiting."""
    of_run = [call for call in calls if call.task_key is None]
    if not of_run or of_run[-1].status is not CallStatus.FAILED:
        return
    last = of_run[-1]
    if last.seat is Seat.PLANNER and not state.walk.has_plan:
        state.walk.plan_asked_again(last.retry_at)
    elif last.seat is Seat.SYNTHESIZER:
        state.walk.synthesis_asked_again(last.retry_at)


def _known_error(stored: StoredRun) -> RunError | None:
    """Why the run was already failing when its worker died."""
    for task in stored.tasks:
        if task.status is TaskStatus.FAILED:
            attempt = stored.last_attempts.get(task.key)
            return task_error(task.key, {} if attempt is None else attempt.error or {})
    return None


def task_error(key: TaskKey, failure: Mapping[str, Any]) -> RunError:
    """The run error that a task's last failure makes: the endpoint's faults are not the task's."""
    kind = failure.get("kind")
    code = kind if kind in ("llm_unavailable", "llm_auth_failed") else "task_failed"
    return RunError(code=str(code), message=f"Task {key} failed: {failure.get('message', 'unknown')}", task_key=key)


def _problem(entry: Mapping[str, Any]) -> PlanProblem:
    return PlanProblem(
        code=entry["code"],
        message=entry["message"],
        pointer=entry["pointer"],
        task_id=entry.get("task_id"),
        path=tuple(entry.get("path", ())),
    )
