"""Bodies as clients get them, and how they are made from what is stored."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, PlainSerializer, WithJsonSchema

from app.api.schemas.requests import Budget, Options
from app.domain.status import FINISHED, AttemptStatus, Mode, PlanReason, RunStatus, StopRequest, TaskStatus
from app.storage.records import AttemptRecord, EventRecord, GoalRecord, PlanRecord, RunRecord, TaskRecord

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _iso(milliseconds: int) -> str:
    moment = _EPOCH + timedelta(milliseconds=milliseconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Time = Annotated[
    int,
    PlainSerializer(_iso, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-01T00:00:00.000Z"]}),
]
Item = TypeVar("Item")


class Answer(BaseModel):
    """Every field is always there; null where there is nothing."""

    model_config = ConfigDict(frozen=True, from_attributes=True, use_attribute_docstrings=True)


class Page(Answer, Generic[Item]):
    """A part of a list."""

    data: list[Item]
    has_more: bool
    next_cursor: str | None
    """Give it as `cursor` to get what follows."""


class Goal(Answer):
    """What was asked, with its runs, oldest first."""

    id: UUID
    goal: str
    context: Any
    metadata: dict[str, str]
    run_ids: list[UUID]
    created_at: Time


class RunOptions(Options):
    """The options that the run follows, defaults filled in."""

    model_config = ConfigDict(extra="ignore")


class RunBudget(Budget):
    """The budget that the run keeps to."""

    model_config = ConfigDict(extra="ignore")


class RunError(Answer):
    """Why a run failed."""

    code: str
    message: str
    task_key: str | None


class Progress(Answer):
    """How many tasks are in each status; `total` leaves out the superseded ones."""

    total: int
    pending: int
    running: int
    retrying: int
    awaiting_review: int
    succeeded: int
    failed: int
    skipped: int
    cancelled: int
    superseded: int


class Usage(Answer):
    """What was used; `cost_usd` is null where no price is known."""

    llm_calls: int
    tool_calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None


class Links(Answer):
    """Where the rest is."""

    self: str
    goal: str
    plan: str
    tasks: str
    events: str


class AttemptError(Answer):
    """What spoiled an attempt."""

    kind: str
    message: str
    retryable: bool


class Attempt(Answer):
    """One try at a task."""

    number: int
    status: AttemptStatus
    description: str
    """The task's description as this attempt was given it."""
    error: AttemptError | None
    started_at: Time
    finished_at: Time | None
    usage: Usage
    tool_calls: list[dict[str, Any]]


class Task(Answer):
    """A task of a run; `attempts` is null in lists."""

    key: str
    generation: int
    description: str
    depends_on: list[str]
    wave: int
    critical: bool
    tools: list[str]
    status: TaskStatus
    result: Any
    skip_reason: str | None
    attempts: list[Attempt] | None = None
    next_attempt_at: Time | None
    started_at: Time | None
    finished_at: Time | None


class Run(Answer):
    """One execution of a goal."""

    id: UUID
    goal_id: UUID
    goal: str
    mode: Mode
    status: RunStatus
    stop_requested: StopRequest | None
    generation: int | None
    result: Any
    error: RunError | None
    progress: Progress
    usage: Usage
    budget: RunBudget
    options: RunOptions
    metadata: dict[str, str]
    model: str
    """What answers; `offline` for the built-in model."""
    open_reviews: int
    allowed_actions: list[Literal["cancel", "pause", "resume", "retry", "delete"]]
    links: Links
    version: int
    """Grows with every change that a reader could see."""
    created_at: Time
    started_at: Time | None
    finished_at: Time | None


class RunWithTasks(Run):
    """A run with the tasks of its newest generation, without results, at most 500."""

    tasks: list[Task]
    tasks_truncated: bool


class Plan(Answer):
    """A generation of a run's plan; its tasks come without results and attempts."""

    generation: int
    reason: PlanReason
    failed_task_keys: list[str]
    parent_generation: int | None
    added: list[str]
    carried: list[str]
    superseded: list[str]
    critical_path: list[str]
    tasks: list[Task]
    waves: list[list[str]]
    """Keys by the longest path of dependencies before them. For reading: no task waits for the rest of a wave."""
    created_at: Time


class Event(Answer):
    """Something that happened to a run; `seq` counts 1, 2, 3 ... without gaps."""

    seq: int
    type: str
    at: Time
    run_id: UUID
    task_key: str | None
    data: dict[str, Any]


class GoalPage(Page[Goal]):
    """Goals, newest first."""


class RunPage(Page[Run]):
    """Runs, newest first."""


class PlanPage(Page[Plan]):
    """Generations, oldest first."""


class TaskPage(Page[Task]):
    """Tasks in plan order."""


class EventPage(Page[Event]):
    """Events in order."""


class Health(Answer):
    """The service answers."""

    status: Literal["ok", "ready"]


class ProblemError(Answer):
    """One thing that is wrong with a request."""

    model_config = ConfigDict(extra="allow")

    pointer: str | None
    """A JSON pointer (RFC 6901) into the body."""
    code: str
    message: str
    query: str | None = None
    """The query parameter concerned."""
    header: str | None = None
    """The header concerned."""
    task_id: str | None = None
    """The task of a plan that is concerned."""
    path: list[str] | None = None
    """The cycle in a plan, each task depending on the next."""


class Problem(Answer):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    """Stable; decide by this."""
    request_id: str | None
    errors: list[ProblemError]
    allowed_actions: list[str] | None = None
    """With `invalid_transition`: what the run allows."""


def goal_of(record: GoalRecord) -> Goal:
    """The goal as shown."""
    return Goal.model_validate(record)


def run_of(record: RunRecord) -> Run:
    """The run as shown."""
    return Run(**_run_fields(record))


def run_with_tasks_of(record: RunRecord, tasks: Sequence[TaskRecord], *, most: int) -> RunWithTasks:
    """The run with the first `most` of these tasks."""
    shown = [task_of(task) for task in tasks[:most]]
    return RunWithTasks(**_run_fields(record), tasks=shown, tasks_truncated=len(tasks) > most)


def allowed_actions(record: RunRecord) -> list[str]:
    """What a client may do with the run as it is."""
    if record.status in FINISHED:
        return ["delete"]
    return [] if record.stop_requested == StopRequest.CANCEL else ["cancel"]


def task_of(record: TaskRecord, attempts: Sequence[AttemptRecord] | None = None) -> Task:
    """The task as shown, with its attempts where they were read."""
    task = Task.model_validate(record)
    if attempts is None:
        return task
    return task.model_copy(update={"attempts": [_attempt_of(attempt) for attempt in attempts]})


def plan_of(record: PlanRecord, tasks: Sequence[TaskRecord]) -> Plan:
    """The generation with its tasks."""
    waves: dict[int, list[str]] = {}
    for task in tasks:
        waves.setdefault(task.wave, []).append(task.key)
    return Plan(
        generation=record.generation,
        reason=record.reason,
        failed_task_keys=list(record.failed_task_keys),
        parent_generation=record.parent_generation,
        added=list(record.added),
        carried=list(record.carried),
        superseded=list(record.superseded),
        critical_path=list(record.critical_path),
        tasks=[task_of(task) for task in tasks],
        waves=[waves[wave] for wave in sorted(waves)],
        created_at=record.created_at,
    )


def event_of(record: EventRecord, run_id: UUID) -> Event:
    """The event as shown."""
    return Event(
        seq=record.seq,
        type=record.type,
        at=record.at,
        run_id=run_id,
        task_key=record.task_key,
        data=dict(record.data),
    )


def _run_fields(record: RunRecord) -> Mapping[str, Any]:
    path = f"/runs/{record.id}"
    return {
        "id": record.id,
        "goal_id": record.goal_id,
        "goal": record.goal,
        "mode": record.mode,
        "status": record.status,
        "stop_requested": record.stop_requested,
        "generation": record.generation,
        "result": record.result,
        "error": record.error,
        "progress": record.progress,
        "usage": _usage_of(record, record.tool_calls),
        "budget": record.budget,
        "options": record.options,
        "metadata": record.metadata,
        "model": record.model,
        "open_reviews": 0,
        "allowed_actions": allowed_actions(record),
        "links": Links(
            self=path,
            goal=f"/goals/{record.goal_id}",
            plan=f"{path}/plan",
            tasks=f"{path}/tasks",
            events=f"{path}/events",
        ),
        "version": record.version,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
    }


def _usage_of(record: RunRecord | AttemptRecord, tool_calls: int) -> Usage:
    return Usage(
        llm_calls=record.llm_calls,
        tool_calls=tool_calls,
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        cost_usd=None,
    )


def _attempt_of(record: AttemptRecord) -> Attempt:
    return Attempt(
        number=record.number,
        status=record.status,
        description=record.description,
        error=None if record.error is None else AttemptError.model_validate(record.error),
        started_at=record.started_at,
        finished_at=record.finished_at,
        usage=_usage_of(record, 0),
        tool_calls=[],
    )
