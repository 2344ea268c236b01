"""A run as its stored rows have it, in a worker's memory; a fresh run and a resumed one are the same thing."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.agents.planner import Rejection
from app.domain.budget import Budget
from app.domain.failures import RunError
from app.domain.ids import TaskKey
from app.domain.plan import PlanProblem
from app.domain.recovery import Policy
from app.domain.status import (
    Approval,
    AttemptStatus,
    CallStatus,
    Decision,
    OnExhausted,
    OnFailure,
    PlanReason,
    ReviewKind,
    Seat,
    TaskStatus,
)
from app.domain.steps import WalkTask
from app.domain.transcript import AskedCall, LoopStep
from app.domain.walk import Walk
from app.engine.state import DrivenTask, Question, RunState
from app.storage.changes import Changes
from app.storage.dispatch import Lease
from app.storage.records import TaskRecord
from app.storage.resume import StoredAttempt, StoredCall, StoredRun


def build(stored: StoredRun, lease: Lease) -> tuple[RunState, Changes]:
    """The run as its rows have it, and the records of what a dead worker left open."""
    run = stored.run
    options = run.options
    replaced = {key for plan in stored.plans for key in plan.failed_task_keys}
    approved = _approved(stored)
    needs_approval = options["approval"] in (Approval.PLAN, Approval.PLAN_AND_TOOLS)
    asks_person = {review.task_key for review in stored.reviews if review.closed_at is None}

    def held(task: TaskRecord) -> bool:
        # Of a task that runs, only some of its tool calls wait for a person.
        waits = task.key in asks_person and task.status is not TaskStatus.RUNNING
        return waits or (needs_approval and task.generation not in approved)

    walk = Walk(
        mode=run.mode,
        max_parallel=options["max_parallel"],
        synthesize=options["synthesize"],
        policy=Policy(
            on_failure=OnFailure(options["on_failure"]),
            max_replans=options["max_replans"],
            on_exhausted=OnExhausted(options["on_exhausted"]),
        ),
        replans=run.replans,
        tasks=None if run.generation is None else [_walk_task(task, held=held(task)) for task in stored.tasks],
    )
    budget = Budget(
        run.budget,
        llm_calls=run.llm_calls,
        tool_calls=run.tool_calls,
        tokens=run.input_tokens + run.output_tokens,
        cost_nano_usd=run.cost_nano_usd or 0,
        active_ms=run.active_ms,
        warned=run.budget_warned,
    )
    if run.active_since is not None:
        budget.started(run.active_since)
    state = RunState(
        lease=lease,
        run=run,
        walk=walk,
        budget=budget,
        status=run.status,
        generation=run.generation,
        plan_reviews=[review for review in stored.reviews if review.kind is ReviewKind.PLAN],
        answers=run.answers,
        approved=approved,
        failed_keys={plan.generation: plan.failed_task_keys for plan in stored.plans},
        replaced=replaced,
        replans=run.replans,
        last_call=stored.last_call,
        last_tool_call=stored.last_tool_call,
    )
    open_keys = {call.task_key for call in stored.calls if call.status is CallStatus.OPEN}
    contents = {call.number: call.answer or "" for call in stored.calls if call.seat is Seat.EXECUTOR}
    for task in stored.tasks:
        state.tasks[task.key] = driven = _driven_task(task, stored.attempts.get(task.key, ()))
        _take_up_tools(driven, stored.tool_calls.get(task.key, ()), contents)
        # Between two steps of its loop nothing of it was lost.
        was_cut = task.key in open_keys or bool(driven.transcript.lost())
        driven.goes_on = driven.recovered and driven.attempt_open and not was_cut
        if task.status is TaskStatus.SUCCEEDED:
            state.results[task.key] = task.result
    for review in stored.reviews:
        if review.closed_at is None:
            state.reviews[review.id] = review
            if review.answered_at is None:
                walk.review_opened(review.id)
    changes = state.changes()
    for call in stored.calls:
        _take_up(state, call, changes)
    state.waits = _waits(stored.calls)
    if not walk.has_plan:
        walk.plan_asked_again(state.waits.get((Seat.PLANNER, None)))
    if (due_at := state.waits.get((Seat.SYNTHESIZER, None))) is not None:
        walk.synthesis_asked_again(due_at)
    state.failures = _failures(state, stored.tasks)
    if run.error is not None:
        state.has_stored_error = True
        error = RunError(code=run.error["code"], message=run.error["message"], task_key=run.error["task_key"])
        walk.give_up(error, cut=error.code == "deadline_exceeded")
    return state, changes


def _approved(stored: StoredRun) -> set[int]:
    """What a person has approved, or has drawn in answer to a review."""
    edited = {plan.generation for plan in stored.plans if plan.reason is PlanReason.CLIENT and plan.generation > 0}
    return edited | {
        review.generation
        for review in stored.reviews
        if review.kind is ReviewKind.PLAN
        and review.generation is not None
        and review.closed_at is not None
        and review.answer is not None
        and review.answer["decision"] == Decision.APPROVE
    }


def _walk_task(task: TaskRecord, *, held: bool) -> WalkTask:
    return WalkTask(
        key=task.key,
        position=task.position,
        depends_on=tuple(task.depends_on),
        status=task.status,
        due_at=task.next_attempt_at,
        critical=task.critical,
        reworded=task.reworded,
        held=held,
    )


def _driven_task(task: TaskRecord, attempts: Sequence[StoredAttempt]) -> DrivenTask:
    driven = DrivenTask(
        task.key,
        task.wording or task.description,
        task.depends_on,
        task.wave,
        task.output_schema,
        task.tools,
        attempts_before=task.attempts_before,
        skip_reason=task.skip_reason,
        errors=[attempt.error for attempt in attempts if attempt.error is not None],
    )
    if attempts:
        driven.attempt = attempts[-1].number
        driven.attempt_open = attempts[-1].status is AttemptStatus.RUNNING
        driven.recovered = task.status is TaskStatus.RUNNING
    return driven


def _take_up_tools(task: DrivenTask, calls: Sequence[AskedCall], contents: Mapping[int, str]) -> None:
    """The loop as it stood; of what the task has done before it began anew, only what it has done."""
    for call in calls:
        if call.attempt <= task.attempts_before:
            task.transcript.remember([call])
            continue
        step = task.transcript.step(call.step)
        if step is None:
            step = LoopStep(number=call.step, attempt=call.attempt, content=contents.get(call.step, ""))
            task.transcript.add(step)
        if any(before.position == call.position for before in step.calls):
            task.transcript.replace(call)
        else:
            step.calls.append(call)


def _take_up(state: RunState, call: StoredCall, changes: Changes) -> None:
    """What a stored call says of the question it belongs to; calls come in order, so that the last word stands."""
    if call.status is CallStatus.OPEN:
        changes.call_ended(call.number, CallStatus.LOST, usage=call.reserved, cost_nano_usd=call.reserved_cost_nano_usd)
        tokens = call.reserved.input_tokens + call.reserved.output_tokens
        state.budget.closed(call.number, tokens, call.reserved_cost_nano_usd)
        if call.seat is Seat.RECOVERY:
            state.ask(call.seat, call.task_key)
        return
    kind = (call.error or {}).get("kind")
    if kind == "rate_limited" and call.retry_at is not None:
        state.opens_at[call.model] = max(call.retry_at, state.opens_at.get(call.model, 0))
    task = None if call.task_key is None else state.tasks.get(call.task_key)
    if call.seat is Seat.EXECUTOR and task is not None and not (task.attempt_open and call.attempt == task.attempt):
        return
    ask = state.ask(call.seat, call.task_key)
    if call.status is CallStatus.FAILED:
        ask.tries = call.try_number if call.retry_at is not None else ask.tries
        ask.shrunk = ask.shrunk or kind == "context_length_exceeded"
        ask.in_words = ask.in_words or kind == "tools_refused"
    elif call.status is CallStatus.ANSWERED:
        ask.tries = 0
        if call.error is None and call.answer is not None and call.seat is Seat.EXECUTOR:
            pass  # a step of a loop, which goes on
        elif call.error is None or call.error.get("closed"):
            state.settled(call.seat, call.task_key)
        elif kind == "length" and call.error.get("goes_on"):
            ask.partial = call.answer
        else:
            ask.partial = None
            problems = [_problem(entry) for entry in call.error.get("problems", ())]
            ask.rejections.append(Rejection(answer=call.answer or "", problems=problems))


def _waits(calls: Sequence[StoredCall]) -> dict[Question, int]:
    """What waited for its next try goes on waiting."""
    last: dict[Question, StoredCall] = {(call.seat, call.task_key): call for call in calls}
    return {
        question: call.retry_at
        for question, call in last.items()
        if call.status is CallStatus.FAILED and call.retry_at is not None
    }


def _failures(state: RunState, tasks: Sequence[TaskRecord]) -> list[TaskKey]:
    """What has been asked about before comes first, so that it is the same question again."""
    failed = [t for t in tasks if t.status is TaskStatus.FAILED and t.key not in state.replaced]
    failed.sort(key=lambda t: ((Seat.RECOVERY, t.key) not in state.asks, t.finished_at or 0, t.position))
    return [task.key for task in failed]


def _problem(entry: Mapping[str, Any]) -> PlanProblem:
    return PlanProblem(
        code=entry["code"],
        message=entry["message"],
        pointer=entry["pointer"],
        task_id=entry.get("task_id"),
        path=tuple(entry.get("path", ())),
    )
