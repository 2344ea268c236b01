"""The walk: which task starts when, what follows a failure, and when a run is over. A pure state machine over one run.

It is built from stored rows, so that a fresh run and a resumed one are the same thing; it is told what happened, and
answers with what to do next. It reads no clock and does no I/O. Each input costs O(log tasks + dependents), never a
scan of all tasks; only a new generation does. Times are integer milliseconds.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence

from app.domain.board import Board
from app.domain.failures import RunError
from app.domain.ids import TaskKey
from app.domain.recovery import AskRecovery, Means, Policy, Question, Recovery, Remedy
from app.domain.status import Mode, RunStatus, TaskStatus
from app.domain.steps import Admit, Call, CutCalls, DrawPlan, Finish, Park, StartTasks, Step, Synthesize, WalkTask


def _admit_all(call: Call) -> bool:
    return True


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
        policy: Policy | None = None,
        replans: int = 0,
        tasks: Iterable[WalkTask] | None = None,
    ) -> None:
        self._mode = mode
        self._max_parallel = max_parallel
        self._wants_synthesis = synthesize
        self._tasks = Board()
        self._plan: Question | None = None
        self._synthesis: Question | None = None
        self._recovery = Recovery(policy or Policy(), replans=replans)
        self._reviews: set[Hashable] = set()
        self._error: RunError | None = None
        self._cuts = False
        self._cancelled = False
        self._pausing = False
        self._over = False
        if tasks is None:
            self._plan = Question()
        else:
            self._tasks.add(tasks)

    # What happened to the run.

    def plan_accepted(self, tasks: Iterable[WalkTask], *, superseded: Iterable[TaskKey] = ()) -> None:
        """A plan is drawn, in place of one that was turned down where that is `superseded`, and about to be stored."""
        self._plan = None
        self._tasks.supersede(superseded)
        self._tasks.add(tasks)

    def plan_asked_again(self, due_at: int | None = None) -> None:
        """The last planning call gave no plan, or a person wants another; the next may be sent from `due_at` on."""
        self._plan = Question(due_at=due_at)

    def synthesis_asked_again(self, due_at: int | None = None) -> None:
        """The last synthesis call gave no result; the next may be sent from `due_at` on."""
        self._synthesis = Question(due_at=due_at)

    def synthesized(self) -> None:
        """The run's result is there."""
        self._synthesis = None
        self._wants_synthesis = False

    def give_up(self, error: RunError, *, cut: bool = False) -> None:
        """The run cannot reach its goal. The first reason stands; `cut` what is in flight, or let it finish."""
        self._error = self._error or error
        self._cuts = self._cuts or cut

    def cancel(self) -> None:
        """A client wants no more of this run."""
        self._cancelled = True

    def pause(self, wanted: bool = True) -> None:
        """A client wants the run to stand still once what is in flight has come back, or no longer."""
        self._pausing = wanted

    def go_on(self) -> None:
        """A `Park` was not carried out: something has happened meanwhile."""
        self._over = False

    def call_cut(self, call: Call) -> None:
        """A call in flight is closed without an answer."""
        match call:
            case DrawPlan():
                self._plan = Question()
            case Synthesize():
                self._synthesis = Question()
            case AskRecovery():
                self._recovery.asked_again(call, None)
            case _:
                self._tasks.in_flight.discard(call)

    # What happened to a task.

    def succeeded(self, key: TaskKey) -> None:
        """The task has its result; what waited only for it is ready."""
        self._tasks.move(key, TaskStatus.SUCCEEDED)

    def skipped(self, key: TaskKey) -> None:
        """The task is left out; what waited only for it is ready."""
        self._tasks.move(key, TaskStatus.SKIPPED)

    def retry_at(self, key: TaskKey, due_at: int) -> None:
        """The task came to nothing and may start again from `due_at` on; meanwhile its place is free."""
        self._tasks.retry_at(key, due_at)

    def goes_on(self, key: TaskKey) -> None:
        """Nothing of the task is in flight, and its next calls may be made: of tools, or of its model."""
        self._tasks.go_on(key)

    def awaits_review(self, key: TaskKey) -> None:
        """Nothing of the task is in flight, and it cannot go on without a person."""
        self._tasks.rest(key)

    def failed(self, key: TaskKey, now: int) -> Remedy:
        """The task's attempts are used up, or it failed for good; what comes of it, which the caller carries out."""
        self._tasks.move(key, TaskStatus.FAILED)
        tasks = self._tasks
        return self._recovery.failed(key, critical=key not in tasks.optional, reworded=key in tasks.reworded, now=now)

    def failed_for_good(self, key: TaskKey, error: RunError) -> None:
        """The task is given up, and the run with it: what is in flight may finish, nothing else starts."""
        self._tasks.move(key, TaskStatus.FAILED)
        self.give_up(error)

    # What the recovery seat said.

    def recovery_asked_again(self, step: AskRecovery, due_at: int | None = None) -> None:
        """The last call gave no answer that can be used; the next may be sent from `due_at` on."""
        self._recovery.asked_again(step, due_at)

    def recovery_resumed(self, key: TaskKey, due_at: int | None) -> None:
        """Before this worker, the last call about this task failed; the next may be sent from `due_at` on."""
        self._recovery.resumed(key, due_at)

    def recovery_spoiled(self, step: AskRecovery, *, again: bool) -> Mapping[TaskKey, Remedy]:
        """No usable answer came (`again`: another call might give one); what comes of the tasks it was about."""
        return self._recovery.spoiled(step, again=again)

    def retry_chosen(self, step: AskRecovery, now: int) -> Remedy:
        """The answer rewords the task, which starts again unless it was reworded before."""
        remedy = self._recovery.retry_chosen(step, reworded=step.key in self._tasks.reworded)
        if remedy.means is Means.ASK:
            self._tasks.reworded.add(step.key)
            self.retry_at(step.key, now)
        return remedy

    def skip_chosen(self, step: AskRecovery) -> None:
        """The answer leaves the task out."""
        self._recovery.skip_chosen(step)
        self.skipped(step.key)

    def replan_chosen(self, step: AskRecovery) -> Remedy | None:
        """The answer is a new plan: None when it can be taken (`replanned` follows), or what comes of the task."""
        return None if self._recovery.may_replan(step) else self._recovery.replan_refused(step)

    def replanned(
        self, step: AskRecovery, tasks: Iterable[WalkTask], *, superseded: Iterable[TaskKey]
    ) -> Mapping[TaskKey, Remedy]:
        """A new generation, about to be stored, stands in for what failed; what comes of others that waited for one."""
        self._tasks.supersede(superseded)
        self._tasks.add(tasks)
        return self._recovery.replanned(step)

    # What a person said.

    def review_opened(self, review: Hashable, key: TaskKey | None = None) -> None:
        """A person is asked, about this task where it is one; only what depends on the answer waits for it."""
        self._reviews.add(review)
        if key is not None:
            self._tasks.move(key, TaskStatus.AWAITING_REVIEW)

    def review_answered(self, review: Hashable) -> None:
        """A person has answered; what the answer means is told by itself."""
        self._reviews.discard(review)

    def approved(self, keys: Iterable[TaskKey]) -> None:
        """These tasks need not be held any longer."""
        self._tasks.let_go(keys)

    def replace_held(self, tasks: Iterable[WalkTask], *, superseded: Iterable[TaskKey]) -> None:
        """A person's own plan stands in for one that was held."""
        self._tasks.supersede(superseded)
        self._tasks.add(tasks)

    def answered_retry(self, key: TaskKey) -> None:
        """The task that waited for a person may start again."""
        self._tasks.reworded.discard(key)
        self._tasks.make_ready(key)

    def answered_replan(
        self, keys: Sequence[TaskKey], instructions: str | None = None, *, replaces: Sequence[TaskKey] = ()
    ) -> None:
        """A person wants a new plan in place of these failed tasks, and of these which have not started."""
        for key in keys:
            self._tasks.move(key, TaskStatus.FAILED)
        self._recovery.requested(keys, instructions, replaces)

    # What to do.

    def next(self, now: int, places: int, admit: Admit = _admit_all) -> list[Step]:
        """What to do now, with room for `places` more calls. What it names counts as in flight from here on.

        Where `admit` refuses a call, it and all that come behind it in its line wait.
        """
        if self._over:
            return []
        if self._cancelled or self._error is not None or self._pausing:
            return self._stop()
        if self._plan is not None:
            return self._ask(self._plan, DrawPlan(), now, places, admit)
        if self._mode is Mode.PLAN_ONLY:
            return [self._finish(RunStatus.SUCCEEDED)]
        if self._complete:
            return self._end(now, places, admit)
        return self._go(now, places, admit)

    def wanted(self, now: int) -> int:
        """How many calls the run would start now if there were places without end."""
        if self._over or self._cancelled or self._error is not None or self._pausing:
            return 0
        if self._plan is not None:
            return int(self._plan.is_due(now))
        if self._mode is Mode.PLAN_ONLY:
            return 0
        if self._complete:
            synthesis = self._synthesis or (Question() if self._needs_synthesis else None)
            return int(synthesis is not None and synthesis.is_due(now))
        return self._recovery.wanted(now) + self._tasks.startable(now, self._max_parallel)

    @property
    def in_flight(self) -> int:
        """Calls that are under way."""
        of_run = sum(question is not None and question.asked for question in (self._plan, self._synthesis))
        return len(self._tasks.in_flight) + of_run + self._recovery.in_flight

    @property
    def wake_at(self) -> int | None:
        """When to ask `next` again though nothing has happened; None when only an answer can change anything."""
        if self._over or self._cancelled or self._error is not None or self._pausing:
            return None
        for question in (self._plan, self._synthesis):
            if question is not None and not question.asked:
                return question.due_at
        times = (self._tasks.next_retry, self._recovery.wake_at)
        return min((at for at in times if at is not None), default=None)

    @property
    def has_plan(self) -> bool:
        """Whether there is a plan to walk, drawn and not turned down."""
        return self._plan is None

    @property
    def error(self) -> RunError | None:
        """Why the run is given up, as soon as it is."""
        return self._error

    @property
    def is_ending(self) -> bool:
        """Whether the run only waits for what is in flight, to fail or to be cancelled."""
        return self._error is not None or self._cancelled

    @property
    def is_cutting(self) -> bool:
        """Whether what is in flight is being closed."""
        return self._cancelled or self._cuts

    @property
    def replans(self) -> int:
        """How many replans are used up."""
        return self._recovery.replans

    @property
    def replans_left(self) -> int:
        """How many replans may still be drawn."""
        return self._recovery.replans_left

    def status(self, key: TaskKey) -> TaskStatus:
        """The task's."""
        return self._tasks.status[key]

    def was_reworded(self, key: TaskKey) -> bool:
        """Whether recovery has reworded the task since it last began anew."""
        return key in self._tasks.reworded

    def progress(self) -> dict[str, int]:
        """How many tasks there are in each status, and in all that are not superseded."""
        counts = {status.value: count for status, count in self._tasks.counts.items()}
        return {"total": len(self._tasks.status) - counts[TaskStatus.SUPERSEDED], **counts}

    def end_unfinished(self) -> list[TaskKey]:
        """Cancel every task that has no end of its own yet, in plan order; the run is finishing."""
        return self._tasks.cancel_unfinished()

    @property
    def last_tasks(self) -> list[TaskKey]:
        """The tasks whose results no other builds on, in plan order."""
        return self._tasks.last()

    @property
    def tasks(self) -> Sequence[TaskKey]:
        """All tasks, in plan order."""
        return list(self._tasks.status)

    def dependents(self, keys: Iterable[TaskKey]) -> list[TaskKey]:
        """All live tasks that cannot start without these, however far behind, in plan order."""
        return self._tasks.behind(keys)

    # Within.

    @property
    def _complete(self) -> bool:
        return (
            self._mode is Mode.EXECUTE and self._plan is None and self._tasks.unfinished == 0 and self._recovery.is_idle
        )

    @property
    def _needs_synthesis(self) -> bool:
        counts = self._tasks.counts
        succeeded, skipped = counts[TaskStatus.SUCCEEDED], counts[TaskStatus.SKIPPED]
        return self._wants_synthesis and succeeded > 0 and succeeded + skipped > 1

    def _stop(self) -> list[Step]:
        """To an end or a stand, once nothing is in flight."""
        if self.in_flight:
            return [CutCalls()] if self._cancelled or self._cuts else []
        if self._cancelled:
            return [self._finish(RunStatus.CANCELLED)]
        if self._error is not None:
            return [self._finish(RunStatus.FAILED, self._error)]
        if self._complete and self._synthesis is None and not self._needs_synthesis:
            return [self._end_complete()]  # nothing is left to stand still for
        return [self._park(RunStatus.PAUSED)]

    def _go(self, now: int, places: int, admit: Admit) -> list[Step]:
        """Recovery first: what it decides may change what is worth starting."""
        steps: list[Step] = []
        for step in self._recovery.take(now, places):
            if admit(step):
                steps.append(step)
            else:
                self._recovery.put_back(step)
        keys = self._tasks.start(min(places - len(steps), self._tasks.startable(now, self._max_parallel)), admit)
        if keys:
            steps.append(StartTasks(keys))
        if not steps and not self.in_flight and self._reviews and not self.wanted(now) and self.wake_at is None:
            return [self._park(RunStatus.AWAITING_REVIEW)]
        return steps

    def _end(self, now: int, places: int, admit: Admit) -> list[Step]:
        if self._synthesis is None and self._needs_synthesis:
            self._synthesis = Question()
        if self._synthesis is not None:
            return self._ask(self._synthesis, Synthesize(), now, places, admit)
        return [self._end_complete()]

    def _end_complete(self) -> Finish:
        if self._tasks.counts[TaskStatus.SUCCEEDED]:
            return self._finish(RunStatus.SUCCEEDED)
        error = RunError(code="task_failed", message="Nothing was reached: every task was skipped.")
        return self._finish(RunStatus.FAILED, error)

    def _ask(self, question: Question, step: DrawPlan | Synthesize, now: int, places: int, admit: Admit) -> list[Step]:
        if places < 1 or not question.is_due(now) or not admit(step):
            return []
        question.asked = True
        return [step]

    def _park(self, status: RunStatus) -> Park:
        self._over = True
        return Park(status)

    def _finish(self, status: RunStatus, error: RunError | None = None) -> Finish:
        self._over = True
        return Finish(status, error)
