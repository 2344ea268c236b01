"""Where the tasks of a run stand: which are ready in plan order, which wait, which are done, and what hangs on them."""

import heapq
from collections.abc import Callable, Iterable

from app.domain.ids import TaskKey
from app.domain.status import TaskStatus
from app.domain.steps import WalkTask

DONE = (TaskStatus.SUCCEEDED, TaskStatus.SKIPPED)
_FINISHED = (*DONE, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.SUPERSEDED)
_DEAD = (TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.SUPERSEDED)
_UNSTARTED = (TaskStatus.PENDING, TaskStatus.RETRYING)
_BEGUN = 2**32
"""Puts tasks that have begun before all positions of a plan."""


class Board:
    """A part of the walk. Each change costs O(log tasks + dependents); only `supersede` looks at all that wait."""

    def __init__(self) -> None:
        self.status: dict[TaskKey, TaskStatus] = {}
        self.counts: dict[TaskStatus, int] = dict.fromkeys(TaskStatus, 0)
        self.unfinished = 0
        self.in_flight: set[TaskKey] = set()
        self.optional: set[TaskKey] = set()
        """Not critical: skipped without asking."""
        self.reworded: set[TaskKey] = set()
        self._position: dict[TaskKey, int] = {}
        self._dependents: dict[TaskKey, list[TaskKey]] = {}
        self._waits_for: dict[TaskKey, int] = {}
        self._held: set[TaskKey] = set()
        self._ready: list[tuple[int, TaskKey]] = []  # what has begun, then by plan order
        self._retries: list[tuple[int, int, TaskKey]] = []  # by time, then plan order

    def add(self, added: Iterable[WalkTask]) -> None:
        """Tasks of a plan, or of a run that is loaded. Dependencies are among them, or were added before."""
        new = list(added)
        for task in new:
            # What ran when its worker died keeps its status, and starts like any ready task.
            self.status[task.key] = task.status
            self._position[task.key] = task.position
            self._dependents.setdefault(task.key, [])
            self.counts[task.status] += 1
            self.unfinished += task.status not in _FINISHED
            for mark, noted in (
                (not task.critical, self.optional),
                (task.reworded, self.reworded),
                (task.held, self._held),
            ):
                if mark:
                    noted.add(task.key)
        for task in new:
            for dependency in task.depends_on:
                self._dependents[dependency].append(task.key)
            self._waits_for[task.key] = sum(self.status[d] not in DONE for d in task.depends_on)
            if task.status is TaskStatus.RETRYING:
                heapq.heappush(self._retries, (task.due_at or 0, task.position, task.key))
            elif task.status not in _FINISHED:
                self._start_if_ready(task.key)

    def move(self, key: TaskKey, status: TaskStatus) -> None:
        """A task changes its status; when it is done, what waited only for it is ready."""
        was = self.status[key]
        self.status[key] = status
        self.counts[was] -= 1
        self.counts[status] += 1
        self.unfinished += (status not in _FINISHED) - (was not in _FINISHED)
        if status is TaskStatus.RUNNING:
            self.in_flight.add(key)
        else:
            self.in_flight.discard(key)
        if status in DONE:
            for dependent in self._dependents[key]:
                self._waits_for[dependent] -= 1
                if self.status[dependent] is TaskStatus.PENDING:
                    self._start_if_ready(dependent)

    def retry_at(self, key: TaskKey, due_at: int) -> None:
        """The task is ready again from then on."""
        self.move(key, TaskStatus.RETRYING)
        heapq.heappush(self._retries, (due_at, self._position[key], key))

    def make_ready(self, key: TaskKey) -> None:
        """The task may start, whatever its status."""
        heapq.heappush(self._ready, (self._position[key], key))

    def go_on(self, key: TaskKey) -> None:
        """The task has begun, and may make its next calls: before any that has not begun."""
        if self.status[key] is TaskStatus.RUNNING and key not in self.in_flight:
            return  # it is ready already: two of its calls were answered for at once
        self.move(key, TaskStatus.RUNNING)
        self.in_flight.discard(key)
        heapq.heappush(self._ready, (self._position[key] - _BEGUN, key))

    def rest(self, key: TaskKey) -> None:
        """The task has begun, and waits for a person."""
        self.move(key, TaskStatus.AWAITING_REVIEW)
        self._ready = [entry for entry in self._ready if entry[-1] != key]
        heapq.heapify(self._ready)

    def let_go(self, keys: Iterable[TaskKey]) -> None:
        """These are held no longer."""
        for key in keys:
            self._held.discard(key)
            if self.status[key] is TaskStatus.PENDING:
                self._start_if_ready(key)

    def supersede(self, keys: Iterable[TaskKey]) -> None:
        """These have not started and never will."""
        gone = set(keys)
        for key in gone:
            self.move(key, TaskStatus.SUPERSEDED)
        if gone:
            self._held -= gone
            self._ready = [entry for entry in self._ready if entry[-1] not in gone]
            self._retries = [entry for entry in self._retries if entry[-1] not in gone]
            heapq.heapify(self._ready)
            heapq.heapify(self._retries)

    def startable(self, now: int, max_parallel: int) -> int:
        """How many could start now."""
        while self._retries and self._retries[0][0] <= now:
            _, position, key = heapq.heappop(self._retries)
            heapq.heappush(self._ready, (position, key))
        return max(0, min(len(self._ready), max_parallel - len(self.in_flight)))

    def start(self, most: int, admit: Callable[[TaskKey], bool]) -> list[TaskKey]:
        """Start up to so many in plan order, until one is not admitted."""
        keys: list[TaskKey] = []
        for _ in range(most):
            if not admit(self._ready[0][1]):
                break
            _, key = heapq.heappop(self._ready)
            self.move(key, TaskStatus.RUNNING)
            keys.append(key)
        return keys

    @property
    def next_retry(self) -> int | None:
        """When the first of those that wait for a retry may start."""
        return self._retries[0][0] if self._retries else None

    def cancel_unfinished(self) -> list[TaskKey]:
        """Cancel what has no end of its own yet, in plan order."""
        left = [key for key, status in self.status.items() if status not in _FINISHED]
        for key in left:
            self.move(key, TaskStatus.CANCELLED)
        return self._in_plan_order(left)

    def last(self) -> list[TaskKey]:
        """The tasks whose results no other builds on, in plan order: whatever is behind them is gone or was skipped."""
        return self._in_plan_order(key for key, status in self.status.items() if self._is_last(key, status))

    def _is_last(self, key: TaskKey, status: TaskStatus) -> bool:
        behind = {self.status[dependent] for dependent in self._dependents[key]}
        if status is not TaskStatus.SKIPPED:
            behind.discard(TaskStatus.SKIPPED)  # it has built nothing
        return status not in _DEAD and behind <= set(_DEAD)

    def behind(self, keys: Iterable[TaskKey]) -> list[TaskKey]:
        """All that have not started and cannot without these, however far behind, in plan order."""
        found: set[TaskKey] = set()
        front = list(keys)
        while front:
            for dependent in self._dependents[front.pop()]:
                if dependent not in found and self.status[dependent] in _UNSTARTED:
                    found.add(dependent)
                    front.append(dependent)
        return self._in_plan_order(found)

    def _start_if_ready(self, key: TaskKey) -> None:
        if self._waits_for[key] == 0 and key not in self._held:
            self.make_ready(key)

    def _in_plan_order(self, keys: Iterable[TaskKey]) -> list[TaskKey]:
        return sorted(keys, key=self._position.__getitem__)
