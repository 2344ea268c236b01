"""One run in a worker's memory: the walk, and what its next requests and records need. Built from stored rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from app.agents.planner import Rejection, TurnedDown
from app.domain.budget import Budget
from app.domain.failures import RunError
from app.domain.generation import Carried, NewPlan, NewTask
from app.domain.ids import TaskKey
from app.domain.plan import PlanProblem
from app.domain.recovery import AskRecovery, Policy
from app.domain.replan import Circumstances
from app.domain.status import (
    Approval,
    AttemptStatus,
    CallStatus,
    Decision,
    Mode,
    OnExhausted,
    OnFailure,
    PlanReason,
    ReviewKind,
    RunStatus,
    Seat,
    TaskStatus,
)
from app.domain.steps import WalkTask
from app.domain.transcript import AskedCall, LoopStep, Transcript
from app.domain.walk import Walk
from app.llm.chat import FormatLevel
from app.storage.changes import Changes
from app.storage.dispatch import Lease
from app.storage.records import ReviewRecord, RunRecord, TaskRecord
from app.storage.resume import StoredAttempt, StoredCall, StoredRun

_USUAL_REPLAN = 7
_GONE = (TaskStatus.SUPERSEDED, TaskStatus.CANCELLED)
_UNSTARTED = (TaskStatus.PENDING, TaskStatus.RETRYING)

Question = tuple[Seat, TaskKey | None]
"""What is asked: the seat, and the task where it is about one."""


@dataclass(slots=True)
class DrivenTask:
    """A task under way. `attempt` is the last one's number, 0 before the first; `attempts_before` no longer count."""

    key: TaskKey
    description: str
    depends_on: Sequence[TaskKey]
    wave: int
    output_schema: Mapping[str, Any] | None = None
    tools: Sequence[str] = ()
    attempt: int = 0
    attempts_before: int = 0
    attempt_open: bool = False
    recovered: bool = False
    """Its worker died while it ran: the same attempt goes on."""
    errors: list[Mapping[str, Any]] = field(default_factory=list)
    """What spoiled its attempts, first to last."""
    skip_reason: str | None = None
    transcript: Transcript = field(default_factory=Transcript)
    goes_on: bool = False
    """It has begun under this lease: what starts is its next step."""
    spent_ms: int = 0
    """How long calls of this attempt were in flight, as far as this lease knows."""
    _since: int | None = None

    def begins(self, now: int) -> None:
        """A call of it is about to be sent."""
        self._since = now if self._since is None else self._since

    def rests(self, now: int) -> None:
        """Nothing of it is in flight."""
        if self._since is not None:
            self.spent_ms += max(0, now - self._since)
        self._since = None

    @property
    def counted(self) -> int:
        """Attempts that count against `max_attempts`."""
        return self.attempt - self.attempts_before

    @property
    def last_error(self) -> Mapping[str, Any]:
        """What spoiled its last attempt."""
        return self.errors[-1] if self.errors else {}


@dataclass(slots=True)
class Ask:
    """What is remembered of a question between its calls."""

    tries: int = 0
    """Transport faults in a row."""
    format_at_most: FormatLevel = FormatLevel.JSON_SCHEMA
    """How strictly JSON may still be asked for, after what the endpoint has refused this run."""
    rejections: list[Rejection] = field(default_factory=list)
    """Answers that could not be used, in a row."""
    shrunk: bool = False
    """The request was too long for the model, and holds less now."""
    in_words: bool = False
    """The endpoint takes no tools: they are described in words, and calls are read out of answers."""
    partial: str | None = None
    """The start of an answer that was cut off at the length limit: the next call goes on from there."""


@dataclass(slots=True)
class RunState:
    """What the driver of a run carries between commits."""

    lease: Lease
    run: RunRecord
    walk: Walk
    budget: Budget
    status: RunStatus
    """As last written."""
    generation: int | None = None
    tasks: dict[TaskKey, DrivenTask] = field(default_factory=dict)
    results: dict[TaskKey, Any] = field(default_factory=dict)
    asks: dict[Question, Ask] = field(default_factory=dict)
    reviews: dict[UUID, ReviewRecord] = field(default_factory=dict)
    """Those that are open, and those whose answers are not carried out yet."""
    plan_reviews: Sequence[ReviewRecord] = ()
    """Of a run that was loaded: all reviews of its plans, first to last."""
    answers: int = 0
    """Answers to reviews that have been looked at."""
    approved: set[int] = field(default_factory=set)
    """Generations that need no approval any more."""
    turned_down: list[TurnedDown] = field(default_factory=list)
    failed_keys: dict[int, Sequence[TaskKey]] = field(default_factory=dict)
    """What each generation stands in for."""
    replaced: set[TaskKey] = field(default_factory=set)
    replans: int = 0
    """As stored."""
    waits: dict[Question, int] = field(default_factory=dict)
    """Of a run that was loaded: when each question whose last call met a fault may be asked again, in ms."""
    failures: Sequence[TaskKey] = ()
    """Of a run that was loaded: the tasks that have failed and are not replaced, in the order they failed."""
    has_stored_error: bool = False
    opens_at: dict[str, int] = field(default_factory=dict)
    """When each model that asked to be left alone may be called again, in ms."""
    last_call: int = 0
    last_tool_call: int = 0
    result: Any = None
    is_synthesized: bool = False
    """Whether `result` is the run's; it may be null."""

    def changes(self) -> Changes:
        """An empty commit of this run."""
        return Changes(tenant_id=self.lease.tenant_id, run_id=self.lease.run_id, token=self.lease.token)

    def ask(self, seat: Seat, key: TaskKey | None) -> Ask:
        """What is remembered of this question."""
        return self.asks.setdefault((seat, key), Ask())

    def settled(self, seat: Seat, key: TaskKey | None) -> None:
        """The question has its answer, or is given up."""
        self.asks.pop((seat, key), None)

    def option(self, name: str) -> Any:
        """One of the run's stored options."""
        return self.run.options[name]

    @property
    def needs_approval(self) -> bool:
        """Whether a person is asked before a plan is walked."""
        asked = self.option("approval") in (Approval.PLAN, Approval.PLAN_AND_TOOLS)
        return asked and self.run.mode is Mode.EXECUTE

    def schema_of(self, key: TaskKey) -> Mapping[str, Any] | None:
        """The JSON Schema of a task's result: the goal's where it is the only task."""
        own, of_goal = self.tasks[key].output_schema, self.option("output_schema")
        return of_goal if of_goal is not None and len(self.live) == 1 else own

    @property
    def live(self) -> list[TaskKey]:
        """The tasks that are neither replaced nor superseded, in plan order."""
        return [k for k in self.tasks if k not in self.replaced and self.walk.status(k) not in _GONE]

    def take_in(self, plan: NewPlan, *, held: bool) -> list[WalkTask]:
        """Know the tasks of a plan that is about to be stored; as the walk takes them."""
        self.generation = plan.generation
        self.failed_keys[plan.generation] = plan.failed_task_keys
        self.replaced.update(plan.failed_task_keys)
        if not held:
            self.approved.add(plan.generation)
        for task in plan.tasks:
            self.tasks[task.key] = _new(task)
        return [
            WalkTask(
                key=task.key,
                position=task.position,
                depends_on=task.depends_on,
                critical=task.critical,
                held=held,
            )
            for task in plan.tasks
        ]

    def of_generation(self, generation: int) -> list[TaskKey]:
        """The tasks that a generation added and that have not started, in plan order."""
        start = f"{generation}."
        return [k for k in self.tasks if k.startswith(start) and self.walk.status(k) in _UNSTARTED]

    @property
    def turned_down_tasks(self) -> list[TaskKey]:
        """What has not started of plans that a person wants the planner to draw anew, and all that waits for it."""
        held = [
            key
            for review in self.reviews.values()
            if review.kind is ReviewKind.PLAN and review.answered_at is not None and review.generation is not None
            if not self.failed_keys.get(review.generation)  # those are recovery's to draw
            for key in self.of_generation(review.generation)
        ]
        gone = {*held, *self.walk.dependents(held)}
        return [key for key in self.tasks if key in gone]

    def replaced_by(self, step: AskRecovery) -> list[TaskKey]:
        """What a new plan would supersede by itself: all that cannot start without what failed."""
        behind = {*self.walk.dependents(step.keys), *step.replaces, *self.walk.dependents(step.replaces)}
        return [key for key in self.tasks if key in behind and self.walk.status(key) in _UNSTARTED]

    def circumstances(self, step: AskRecovery) -> Circumstances:
        """What a new plan for these failures has to heed."""
        behind = dict.fromkeys(self.replaced_by(step))
        gone = {*behind, *step.keys}
        goes_on = [k for k in self.live if k not in gone and self.walk.status(k) is not TaskStatus.FAILED]
        return Circumstances(
            max_tasks=max(self.option("max_tasks"), _USUAL_REPLAN, len(step.keys) + len(behind)),
            failed={key: self._words(key) for key in step.keys},
            replaced={key: self._words(key) for key in behind},
            carried={key: self._words(key) for key in goes_on},
            unstarted=frozenset(k for k in goes_on if self.walk.status(k) in _UNSTARTED),
        )

    def carried(self, *, without: Sequence[TaskKey]) -> dict[TaskKey, Carried]:
        """What goes on beside a new generation that replaces these."""
        gone = set(without)
        return {
            key: Carried(wave=self.tasks[key].wave, depends_on=self.tasks[key].depends_on)
            for key in self.live
            if key not in gone
        }

    def _words(self, key: TaskKey) -> tuple[str, frozenset[str]]:
        task = self.tasks[key]
        return task.description, frozenset(task.depends_on)


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


def _new(task: NewTask) -> DrivenTask:
    return DrivenTask(task.key, task.description, task.depends_on, task.wave, task.output_schema, task.tools)


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


def task_error(key: TaskKey, failure: Mapping[str, Any], *, code: str = "task_failed") -> RunError:
    """The run error that a task's last failure makes: the endpoint's faults are not the task's."""
    kind = failure.get("kind")
    code = str(kind) if kind in ENDPOINT_FAULTS else code
    return RunError(code=code, message=f"Task {key} failed: {failure.get('message', 'unknown')}", task_key=key)


ENDPOINT_FAULTS = ("llm_unavailable", "llm_auth_failed")


def _problem(entry: Mapping[str, Any]) -> PlanProblem:
    return PlanProblem(
        code=entry["code"],
        message=entry["message"],
        pointer=entry["pointer"],
        task_id=entry.get("task_id"),
        path=tuple(entry.get("path", ())),
    )
