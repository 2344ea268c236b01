"""One run in a worker's memory: the walk, and what its next requests and records need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from app.agents.planner import Rejection, TurnedDown
from app.domain.budget import Budget
from app.domain.failures import RunError
from app.domain.generation import Carried, NewPlan, NewTask
from app.domain.ids import TaskKey
from app.domain.recovery import AskRecovery
from app.domain.replan import Circumstances
from app.domain.status import (
    Approval,
    Mode,
    ReviewKind,
    RunStatus,
    Seat,
    TaskStatus,
)
from app.domain.steps import WalkTask
from app.domain.transcript import Transcript
from app.domain.walk import Walk
from app.llm.chat import FormatLevel
from app.storage.changes import Changes
from app.storage.dispatch import Lease
from app.storage.records import ReviewRecord, RunRecord

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

    def has_time_again(self, now: int) -> None:
        """Its time begins anew."""
        self.spent_ms = 0
        self._since = None if self._since is None else now

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


def _new(task: NewTask) -> DrivenTask:
    return DrivenTask(task.key, task.description, task.depends_on, task.wave, task.output_schema, task.tools)


def task_error(key: TaskKey, failure: Mapping[str, Any], *, code: str = "task_failed") -> RunError:
    """The run error that a task's last failure makes: the endpoint's faults are not the task's."""
    kind = failure.get("kind")
    code = str(kind) if kind in ENDPOINT_FAULTS else code
    return RunError(code=code, message=f"Task {key} failed: {failure.get('message', 'unknown')}", task_key=key)


ENDPOINT_FAULTS = ("llm_unavailable", "llm_auth_failed")
