"""Bodies as clients get them."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, PlainSerializer, WithJsonSchema

from app.api.schemas.event_types import described
from app.api.schemas.requests import Budget, Options
from app.domain.status import (
    AttemptStatus,
    Decision,
    Mode,
    PlanReason,
    ReviewKind,
    RunStatus,
    SideEffects,
    StopRequest,
    TaskStatus,
    ToolCallStatus,
)

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

    output_schema: dict[str, Any] | None = None  # checked when it was sent, and not each time it is shown


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
    reviews: str
    events: str


class AttemptError(Answer):
    """What spoiled an attempt, or why a tool gave no result."""

    kind: str
    message: str
    retryable: bool


class ToolCall(Answer):
    """A call of a tool that a task's model has asked for, and what became of it."""

    number: int
    """Counts the tool calls of the run."""
    step: int
    """Which of the attempt's steps asked for it: 1, 2, 3 ..."""
    tool: str
    arguments: Any
    """As the model gave them; a text where that is not JSON."""
    side_effects: SideEffects
    status: ToolCallStatus
    """`asked`, `awaiting_review` and `refused` calls have not been made; of `lost` and `cancelled` ones nobody knows
    what they did."""
    result: str | None
    """What the tool gave, without secrets, and cut where it was too long to be kept."""
    error: AttemptError | None
    asked_at: Time
    started_at: Time | None
    """When it was made; null as long as it was not."""
    finished_at: Time | None


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
    tool_calls: list[ToolCall]
    """In the order in which they were asked for; `usage` counts those that were made."""


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
    """A run with the tasks of its newest generation and those it carries, without results, at most 500."""

    tasks: list[Task]
    tasks_truncated: bool


class Plan(Answer):
    """A generation of a run's plan: what it added and what it carries, without results and attempts."""

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
    usage: Usage
    """Of the model's calls while it was the newest, and of the tools' calls that these asked for; before there is a
    plan, of generation 0."""
    created_at: Time


class Review(Answer):
    """Something that a run asks of a person."""

    id: UUID
    kind: ReviewKind
    task_key: str | None
    question: dict[str, Any]
    """What is asked in words (`text`), with the plan, the error or the call that it is about.

    A `tool_call` has `number`, `tool`, `arguments` and `side_effects`. With `outcome_unknown` it was made before, and
    nobody knows whether it acted: is it to be made again (`retry`), is its result known (`supply`), or has it failed
    (`fail`)? `error` says what was seen of it, where anything was.
    """
    allowed_answers: list[Decision]
    """The decisions it takes; none where the run ended unanswered."""
    answer: dict[str, Any] | None
    opened_at: Time
    answered_at: Time | None


class Event(Answer):
    """Something that happened to a run; `seq` counts 1, 2, 3 ... without gaps."""

    seq: int
    type: Annotated[str, WithJsonSchema({"type": "string", "description": described()})]
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


class ReviewPage(Page[Review]):
    """Reviews in the order they were opened."""


class EventPage(Page[Event]):
    """Events in order."""


class Tool(Answer):
    """Something that tasks can call."""

    name: str
    description: str
    input_schema: dict[str, Any]
    """JSON Schema of its arguments."""
    side_effects: SideEffects
    """`none`: it changes nothing. `idempotent`: the same call may be made again, and is after a crash. `once`: a call
    whose outcome is not known is not made again unless a person says so."""


class ToolPage(Page[Tool]):
    """Tools by name."""


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
