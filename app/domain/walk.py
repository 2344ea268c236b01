"""The walk: which task starts when, and when a run is over. A pure state machine over one run.

It is built from stored rows, so that a fresh run and a resumed one are the same thing; it is told what happened, and
answers with what to do next. It reads no clock and does no I/O. Each input costs O(log tasks + dependents), never a
scan of all tasks. Times are integer milliseconds.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app.domain.failures import RunError
from app.domain.ids import TaskKey
from app.domain.status import Mode, RunStatus, TaskStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkTask:
    """What the walk must know of a task. `due_at` is when a task that waits for a retry may start again."""

    key: TaskKey
    position: int
    depends_on: tuple[TaskKey, ...] = ()
    status: TaskStatus = TaskStatus.PENDING
    due_at: int | None = None


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """Ask the planner."""


@dataclass(frozen=True, slots=True)
class StartTasks:
    """Start these, in this order."""

    keys: Sequence[TaskKey]


@dataclass(frozen=True, slots=True)
class Synthesize:
    """Ask the synthesizer: every task is done."""


@dataclass(frozen=True, slots=True)
class CutCalls:
    """Close what is in flight: nobody wants the answers."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over, nothing is in flight: write its end."""

    status: RunStatus
    error: RunError | None = None


Step = DrawPlan | StartTasks | Synthesize | CutCalls | Finish


@dataclass(slots=True)
class _Question:
    """A call that the run as a whole waits for: the plan, or the synthesis."""

    needed: bool
    asked: bool = False
    due_at: int | None = None

    def is_due(self, now: int) -> bool:
        return self.needed and not self.asked and (self.due_at is None or self.due_at <= now)


@dataclass(slots=True)
class _Tasks:
    """The tasks as the walk moves them."""

    status: dict[TaskKey, TaskStatus] = field(default_factory=dict)
    position: dict[TaskKey, int] = field(default_factory=dict)
    dependents: dict[TaskKey, list[TaskKey]] = field(default_factory=dict)
    waits_for: dict[TaskKey, int] = field(default_factory=dict)
    counts: dict[TaskStatus, int] = field(default_factory=lambda: dict.fromkeys(TaskStatus, 0))
    unfinished: int = 0


_DONE = (TaskStatus.SUCCEEDED, TaskStatus.SKIPPED)
_FINISHED = (*_DONE, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.SUPERSEDED)


class Walk:
    """One run's way through its plan.

    The caller tells what happened (`plan_accepted`, `succeeded`, `retry_at`, `failed` ...), then asks `next` what to
    do. A task that was running when its worker died is loaded as `running` and simply starts again.
    """

    def __init__(
        self,
        *,
        mode: Mode = Mode.EXECUTE,
        max_parallel: int,
        synthesize: bool = True,
        tasks: Iterable[WalkTask] | None = None,
        error: RunError | None = None,
    ) -> None:
        self._mode = mode
        self._max_parallel = max_parallel
        self._wants_synthesis = synthesize
        self._tasks = _Tasks()
        self._ready: list[tuple[int, TaskKey]] = []  # by plan order
        self._retries: list[tuple[int, int, TaskKey]] = []  # by time, then plan order
        self._in_flight: set[TaskKey] = set()
        self._plan = _Question(needed=tasks is None)
        self._synthesis = _Question(needed=False)
        self._error = error
        self._cancelled = False
        self._finished = False
        if tasks is not None:
            self._add(tasks)

    # What happened.

    def plan_accepted(self, tasks: Iterable[WalkTask]) -> None:
        """A plan is drawn and about to be stored."""
        self._plan = _Question(needed=False)
        self._add(tasks)

    def plan_asked_again(self, due_at: int | None = None) -> None:
        """The last planning call gave no plan; the next may be sent from `due_at` on."""
        self._plan = _Question(needed=True, due_at=due_at)

    def synthesis_asked_again(self, due_at: int | None = None) -> None:
        """The last synthesis call gave no result; the next may be sent from `due_at` on."""
        self._synthesis = _Question(needed=True, due_at=due_at)

    def synthesized(self) -> None:
        """The run's result is there."""
        self._synthesis = _Question(needed=False)

    def succeeded(self, key: TaskKey) -> None:
        """The task has its result; what waited only for it is ready."""
        self._move(key, TaskStatus.SUCCEEDED)
        self._release(key)
        self._note_if_complete()

    def retry_at(self, key: TaskKey, due_at: int) -> None:
        """The task came to nothing and may start again from `due_at` on; meanwhile its place is free."""
        self._move(key, TaskStatus.RETRYING)
        heapq.heappush(self._retries, (due_at, self._tasks.position[key], key))

    def failed(self, key: TaskKey, error: RunError) -> None:
        """The task is given up, and the run with it: what is in flight may finish, nothing else starts."""
        self._move(key, TaskStatus.FAILED)
        self.give_up(error)

    def give_up(self, error: RunError) -> None:
        """The run cannot reach its goal. The first reason stands."""
        self._error = self._error or error

    def cancel(self) -> None:
        """A client wants no more of this run."""
        self._cancelled = True

    def call_cut(self, key: TaskKey | None) -> None:
        """A call in flight, of this task or of the run as a whole, is closed without an answer."""
        if key is None:
            self._plan.asked = self._synthesis.asked = False
        else:
            self._in_flight.discard(key)

    # What to do.

    def next(self, now: int, places: int) -> list[Step]:
        """What to do now, with room for `places` more calls. Starts that it names count as in flight from here on."""
        if self._finished:
            return []
        if self._cancelled:
            return [CutCalls()] if self.in_flight else [self._finish(RunStatus.CANCELLED)]
        if self._error is not None:
            return [] if self.in_flight else [self._finish(RunStatus.FAILED, self._error)]
        if self._plan.needed:
            return self._ask(self._plan, DrawPlan(), now, places)
        if self._mode is Mode.PLAN_ONLY or self._complete:
            if self._synthesis.needed:
                return self._ask(self._synthesis, Synthesize(), now, places)
            return [self._finish(RunStatus.SUCCEEDED)]
        keys = self._take(now, places)
        return [StartTasks(keys)] if keys else []

    def wanted(self, now: int) -> int:
        """How many calls the run would start now if there were places without end."""
        if self._finished or self._cancelled or self._error is not None:
            return 0
        if self._plan.needed:
            return int(self._plan.is_due(now))
        if self._mode is Mode.PLAN_ONLY:
            return 0
        if self._complete:
            return int(self._synthesis.is_due(now))
        self._promote(now)
        return max(0, min(len(self._ready), self._max_parallel - len(self._in_flight)))

    @property
    def in_flight(self) -> int:
        """Calls that are under way."""
        return len(self._in_flight) + self._plan.asked + self._synthesis.asked

    @property
    def wake_at(self) -> int | None:
        """When to ask `next` again though nothing has happened; None when only an answer can change anything."""
        if self._finished or self._cancelled or self._error is not None:
            return None
        for question in (self._plan, self._synthesis):
            if question.needed and not question.asked:
                return question.due_at
        return self._retries[0][0] if self._retries else None

    @property
    def has_plan(self) -> bool:
        """Whether there are tasks."""
        return not self._plan.needed

    def progress(self) -> dict[str, int]:
        """How many tasks there are in each status, and in all that are not superseded."""
        counts = {status.value: count for status, count in self._tasks.counts.items()}
        return {"total": len(self._tasks.status) - counts[TaskStatus.SUPERSEDED], **counts}

    def end_unfinished(self) -> list[TaskKey]:
        """Cancel every task that has no end of its own yet, in plan order; the run is finishing."""
        left = [key for key, status in self._tasks.status.items() if status not in _FINISHED]
        for key in left:
            self._move(key, TaskStatus.CANCELLED)
        return sorted(left, key=self._tasks.position.__getitem__)

    @property
    def last_tasks(self) -> list[TaskKey]:
        """The tasks that nothing depends on, in plan order."""
        tasks = self._tasks
        return sorted((k for k in tasks.status if not tasks.dependents[k]), key=tasks.position.__getitem__)

    @property
    def tasks(self) -> Sequence[TaskKey]:
        """All tasks, in the order they were added."""
        return list(self._tasks.status)

    # Within.

    @property
    def _complete(self) -> bool:
        return not self._plan.needed and self._tasks.unfinished == 0

    def _add(self, added: Iterable[WalkTask]) -> None:
        new = list(added)
        tasks = self._tasks
        for task in new:
            # What ran when its worker died keeps its status, and starts like any ready task.
            tasks.status[task.key] = task.status
            tasks.position[task.key] = task.position
            tasks.dependents.setdefault(task.key, [])
            tasks.counts[task.status] += 1
            tasks.unfinished += task.status not in _FINISHED
        for task in new:
            for dependency in task.depends_on:
                tasks.dependents[dependency].append(task.key)
            tasks.waits_for[task.key] = sum(tasks.status[d] not in _DONE for d in task.depends_on)
            if task.status is TaskStatus.RETRYING:
                heapq.heappush(self._retries, (task.due_at or 0, task.position, task.key))
            elif task.status not in _FINISHED and tasks.waits_for[task.key] == 0:
                heapq.heappush(self._ready, (task.position, task.key))
        self._note_if_complete()

    def _note_if_complete(self) -> None:
        if self._complete and self._mode is Mode.EXECUTE and self._error is None:
            self._synthesis.needed = self._wants_synthesis and len(self._tasks.status) > 1

    def _move(self, key: TaskKey, status: TaskStatus) -> None:
        tasks = self._tasks
        was = tasks.status[key]
        tasks.status[key] = status
        tasks.counts[was] -= 1
        tasks.counts[status] += 1
        tasks.unfinished += (status not in _FINISHED) - (was not in _FINISHED)
        if status is TaskStatus.RUNNING:
            self._in_flight.add(key)
        else:
            self._in_flight.discard(key)

    def _release(self, key: TaskKey) -> None:
        tasks = self._tasks
        for dependent in tasks.dependents[key]:
            tasks.waits_for[dependent] -= 1
            if tasks.waits_for[dependent] == 0 and tasks.status[dependent] is TaskStatus.PENDING:
                heapq.heappush(self._ready, (tasks.position[dependent], dependent))

    def _promote(self, now: int) -> None:
        while self._retries and self._retries[0][0] <= now:
            _, position, key = heapq.heappop(self._retries)
            heapq.heappush(self._ready, (position, key))

    def _take(self, now: int, places: int) -> list[TaskKey]:
        keys: list[TaskKey] = []
        for _ in range(min(places, self.wanted(now))):
            _, key = heapq.heappop(self._ready)
            self._move(key, TaskStatus.RUNNING)
            keys.append(key)
        return keys

    def _ask(self, question: _Question, step: Step, now: int, places: int) -> list[Step]:
        if places < 1 or not question.is_due(now):
            return []
        question.asked = True
        return [step]

    def _finish(self, status: RunStatus, error: RunError | None = None) -> Finish:
        self._finished = True
        return Finish(status, error)
