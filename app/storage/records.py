"""Rows as the rest of the house sees them: plain values, times in integer milliseconds of the database's clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.domain.ids import GoalId, RunId, TaskKey, TenantId
from app.domain.status import (
    AttemptStatus,
    Decision,
    Mode,
    PlanReason,
    ReviewKind,
    RunStatus,
    StopRequest,
    TaskStatus,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class GoalRecord:
    """What was asked."""

    id: GoalId
    goal: str
    context: Any
    metadata: Mapping[str, str]
    run_ids: Sequence[RunId]
    created_at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One execution of a goal."""

    tenant_id: TenantId
    id: RunId
    goal_id: GoalId
    goal: str
    context: Any
    mode: Mode
    status: RunStatus
    stop_requested: StopRequest | None
    generation: int | None
    result: Any
    error: Mapping[str, Any] | None
    options: Mapping[str, Any]
    budget: Mapping[str, Any]
    metadata: Mapping[str, str]
    model: str
    progress: Mapping[str, int]
    llm_calls: int
    tool_calls: int
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int | None
    budget_warned: Sequence[str]
    active_ms: int
    active_since: int | None
    open_reviews: int
    answers: int
    replans: int
    retried_after: int
    version: int
    created_at: int
    started_at: int | None
    finished_at: int | None
    held: bool
    """Whether a worker's lease on it runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRecord:
    """One generation of a run's plan, without its tasks."""

    generation: int
    reason: PlanReason
    failed_task_keys: Sequence[TaskKey]
    parent_generation: int | None
    added: Sequence[TaskKey]
    carried: Sequence[TaskKey]
    superseded: Sequence[TaskKey]
    critical_path: Sequence[TaskKey]
    created_at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRecord:
    """One task, without its attempts."""

    key: TaskKey
    position: int
    generation: int
    description: str
    depends_on: Sequence[TaskKey]
    wave: int
    critical: bool
    tools: Sequence[str]
    output_schema: Mapping[str, Any] | None
    status: TaskStatus
    result: Any
    skip_reason: str | None
    wording: str | None
    reworded: bool
    attempts_before: int
    next_attempt_at: int | None
    started_at: int | None
    finished_at: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewRecord:
    """Something that a run asks of a person."""

    id: UUID
    kind: ReviewKind
    task_key: TaskKey | None
    generation: int | None
    tool_call: int | None
    question: Mapping[str, Any]
    allowed_answers: Sequence[Decision]
    answer: Mapping[str, Any] | None
    opened_at: int
    answered_at: int | None
    closed_at: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageRecord:
    """Sums over calls."""

    llm_calls: int
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRecord:
    """One try at a task, with the sum of its calls."""

    number: int
    status: AttemptStatus
    description: str
    error: Mapping[str, Any] | None
    started_at: int
    finished_at: int | None
    llm_calls: int
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRecord:
    """Something that happened to a run."""

    seq: int
    type: str
    at: int
    task_key: TaskKey | None
    data: Mapping[str, Any]
