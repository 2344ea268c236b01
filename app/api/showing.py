"""How what is stored becomes what clients are shown."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from starlette.responses import Response

from app.api.reading import is_too_deep
from app.api.schemas.answers import (
    Answer,
    Attempt,
    AttemptError,
    Event,
    Goal,
    Links,
    Plan,
    Review,
    Run,
    RunWithTasks,
    Task,
    Tool,
    ToolCall,
    Usage,
)
from app.domain.status import FINISHED, RunStatus, StopRequest
from app.storage.records import (
    AttemptRecord,
    EventRecord,
    GoalRecord,
    PlanRecord,
    ReviewRecord,
    RunRecord,
    TaskRecord,
    UsageRecord,
)
from app.storage.tool_calls import ToolCallRecord
from app.tools.tool import ToolSpec

_NANO = 1_000_000_000
_DECODER = json.JSONDecoder(strict=False)  # models write line breaks into strings as they are


def answer_shown(body: Answer, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The answer with this body. From a model the framework would make it too, after validating the model again."""
    return Response(body.model_dump_json(), status, headers, media_type="application/json")


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
        return ["delete"] if record.status is RunStatus.SUCCEEDED else ["retry", "delete"]
    if record.stop_requested is StopRequest.CANCEL:
        return []
    stops = record.status is RunStatus.PAUSED or record.stop_requested is StopRequest.PAUSE
    return ["cancel", "resume"] if stops else ["cancel", "pause"]


def task_of(
    record: TaskRecord, attempts: Sequence[AttemptRecord] | None = None, tool_calls: Sequence[ToolCallRecord] = ()
) -> Task:
    """The task as shown, with its attempts where they were read, each with those of the tool calls that are its own."""
    task = Task.model_validate(record)
    if attempts is None:
        return task
    shown = [
        _attempt_of(attempt, [call for call in tool_calls if call.attempt == attempt.number]) for attempt in attempts
    ]
    return task.model_copy(update={"attempts": shown})


def tool_of(spec: ToolSpec) -> Tool:
    """The tool as shown."""
    return Tool(
        name=spec.name,
        description=spec.description,
        input_schema=dict(spec.input_schema),
        side_effects=spec.side_effects,
    )


def plan_of(record: PlanRecord, tasks: Sequence[TaskRecord], usage: UsageRecord, tool_calls: int) -> Plan:
    """The generation with its tasks, and what was used while it was the newest."""
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
        usage=_usage_of(usage, tool_calls),
        created_at=record.created_at,
    )


def review_of(record: ReviewRecord) -> Review:
    """The review as shown."""
    review = Review.model_validate(record)
    withdrawn = record.closed_at is not None and record.answered_at is None
    return review.model_copy(update={"allowed_answers": []}) if withdrawn else review


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
        "error": record.error if record.status is RunStatus.FAILED else None,
        "progress": record.progress,
        "usage": _usage_of(record, record.tool_calls),
        "budget": record.budget,
        "options": record.options,
        "metadata": record.metadata,
        "model": record.model,
        "open_reviews": record.open_reviews,
        "allowed_actions": allowed_actions(record),
        "links": Links(
            self=path,
            goal=f"/goals/{record.goal_id}",
            plan=f"{path}/plan",
            tasks=f"{path}/tasks",
            reviews=f"{path}/reviews",
            events=f"{path}/events",
        ),
        "version": record.version,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
    }


def _usage_of(record: RunRecord | AttemptRecord | UsageRecord, tool_calls: int) -> Usage:
    return Usage(
        llm_calls=record.llm_calls,
        tool_calls=tool_calls,
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        cost_usd=None if record.cost_nano_usd is None else record.cost_nano_usd / _NANO,
    )


def _attempt_of(record: AttemptRecord, tool_calls: Sequence[ToolCallRecord]) -> Attempt:
    return Attempt(
        number=record.number,
        status=record.status,
        description=record.description,
        error=None if record.error is None else AttemptError.model_validate(record.error),
        started_at=record.started_at,
        finished_at=record.finished_at,
        usage=_usage_of(record, sum(call.started_at is not None for call in tool_calls)),
        tool_calls=[_tool_call_of(call) for call in tool_calls],
    )


def _tool_call_of(record: ToolCallRecord) -> ToolCall:
    return ToolCall(
        number=record.number,
        step=record.step,
        tool=record.tool,
        arguments=_arguments_of(record.arguments),
        side_effects=record.side_effects,
        status=record.status,
        result=record.result,
        error=None if record.error is None else AttemptError.model_validate(record.error),
        asked_at=record.asked_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
    )


def _arguments_of(text: str) -> Any:
    """As JSON where that is what they are; otherwise, and where no answer could carry it, as the model wrote them."""
    try:
        arguments = _DECODER.decode(text)
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return text
    return text if is_too_deep(arguments) else arguments
