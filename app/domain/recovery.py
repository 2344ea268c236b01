"""What is done about failed tasks: which means are left, what is asked of the recovery seat, and when.

A part of the walk, as pure as the rest of it. Rewordings are asked for side by side; whatever may become a replan is
asked one at a time, so that no two answers replace the same tasks, and failures that come together share one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from app.domain.ids import TaskKey
from app.domain.status import OnExhausted, OnFailure

GATHER_MS = 100
"""How long a replan waits for further failures: what breaks together comes within moments, and a call costs more."""


class Asked(StrEnum):
    """What the recovery seat is asked."""

    # To choose among rewording, skipping and a new plan.
    AUTO = "auto"
    # To reword one task.
    RETRY = "retry"
    # To draw a new plan for what failed.
    REPLAN = "replan"


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What a goal says of failures."""

    on_failure: OnFailure = OnFailure.AUTO
    max_replans: int = 2
    on_exhausted: OnExhausted = OnExhausted.FAIL


class Means(StrEnum):
    """What comes of a failed task."""

    # The recovery seat is asked, or has been answered already.
    ASK = "ask"
    # It is left out; its dependents are told.
    SKIP = "skip"
    # A person decides.
    REVIEW = "review"
    # The run ends with it.
    GIVE_UP = "give_up"


@dataclass(frozen=True, kw_only=True, slots=True)
class Remedy:
    """What comes of a failed task; `code` is the run's error where it is given up."""

    means: Means
    code: str = "task_failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class AskRecovery:
    """Ask the recovery seat about a failed task; a replan is about `also` as well, and supersedes `replaces`.

    `requested` when a person asked for the new plan, with `instructions` where there are any.
    """

    asked: Asked
    key: TaskKey
    also: tuple[TaskKey, ...] = ()
    replaces: tuple[TaskKey, ...] = ()
    requested: bool = False
    instructions: str | None = None

    @property
    def keys(self) -> tuple[TaskKey, ...]:
        """The failed tasks that a replan would replace."""
        return (self.key, *self.also)


@dataclass(slots=True)
class Question:
    """Something that a call is made for; `due_at` is when the next may be sent."""

    asked: bool = False
    due_at: int | None = None

    def is_due(self, now: int) -> bool:
        """Whether a call for it may be sent now."""
        return not self.asked and (self.due_at is None or self.due_at <= now)


@dataclass(slots=True)
class _Open:
    """A question to the recovery seat that has been, or is about to be, asked."""

    step: AskRecovery
    question: Question = field(default_factory=Question)
    sent: int = 0


class Recovery:
    """The failures of one run for which something can still be done."""

    def __init__(self, policy: Policy, *, replans: int = 0) -> None:
        self._policy = policy
        self._replans = replans
        self._rewordings: dict[TaskKey, _Open] = {}
        self._failures: dict[TaskKey, int] = {}  # wait for `auto` or `replan`, with the time they came
        self._requests: list[AskRecovery] = []
        self._replan: _Open | None = None
        self._not_before: int | None = None

    # What happened.

    def failed(self, key: TaskKey, *, critical: bool, reworded: bool, now: int) -> Remedy:
        """A task is given up by its executor; what comes of it."""
        policy = self._policy
        if not critical or policy.on_failure is OnFailure.SKIP:
            return Remedy(means=Means.SKIP)
        match policy.on_failure:
            case OnFailure.RETRY if not reworded:
                self._rewordings[key] = _Open(AskRecovery(asked=Asked.RETRY, key=key))
                return Remedy(means=Means.ASK)
            case OnFailure.RETRY:
                return self._exhausted("task_failed")
            case OnFailure.REPLAN if self._replans >= policy.max_replans:
                return self._exhausted("replans_exhausted")
            case OnFailure.AUTO | OnFailure.REPLAN:
                self._failures[key] = now
                return Remedy(means=Means.ASK)
            case OnFailure.REVIEW:
                return Remedy(means=Means.REVIEW)
            case _:
                return Remedy(means=Means.GIVE_UP)

    def requested(self, keys: Sequence[TaskKey], instructions: str | None, replaces: Sequence[TaskKey]) -> None:
        """A person wants a new plan in place of these failed tasks, and of these which have not started."""
        self._requests.append(
            AskRecovery(
                asked=Asked.REPLAN,
                key=keys[0],
                also=tuple(keys[1:]),
                replaces=tuple(replaces),
                requested=True,
                instructions=instructions,
            )
        )

    def asked_again(self, step: AskRecovery, due_at: int | None) -> None:
        """The last call gave no answer that can be used; the next may be sent from `due_at` on."""
        self._open(step).question = Question(due_at=due_at)

    def resumed(self, key: TaskKey, due_at: int | None) -> None:
        """Before this worker, the last call about this task failed; the next may be sent from `due_at` on."""
        if key in self._rewordings:
            self._rewordings[key].question.due_at = due_at
        else:
            self._not_before = due_at

    def retry_chosen(self, step: AskRecovery, *, reworded: bool) -> Remedy:
        """The task is to be reworded; `reworded` when it was before."""
        self._close(step)
        return self._exhausted("task_failed") if reworded else Remedy(means=Means.ASK)

    def skip_chosen(self, step: AskRecovery) -> None:
        """The task is to be left out."""
        self._close(step)

    def may_replan(self, step: AskRecovery) -> bool:
        """Whether a new plan can be taken: there is one left, or a person asked for it."""
        return step.requested or self._replans < self._policy.max_replans

    def replan_refused(self, step: AskRecovery) -> Remedy:
        """A new plan was chosen when none was left."""
        self._close(step)
        return self._exhausted("replans_exhausted")

    def replanned(self, step: AskRecovery) -> Mapping[TaskKey, Remedy]:
        """A new plan replaces what failed; what comes of other tasks that have waited for one."""
        self._replans += not step.requested
        for key in step.keys:
            self._failures.pop(key, None)
            self._rewordings.pop(key, None)
        self._replan = None
        return self._exhaust_rest()

    def spoiled(self, step: AskRecovery, *, again: bool) -> Mapping[TaskKey, Remedy]:
        """No usable answer came; what comes of the tasks it was about. Not `again`: another call would be no use.

        A replan that never came about is used up all the same. What may be asked once more waits for that by itself.
        """
        if step.asked is Asked.RETRY:
            self._close(step)
            return {step.key: self._exhausted("task_failed")}
        if step.requested:
            self._replan = None
            return dict.fromkeys(step.keys, Remedy(means=Means.REVIEW))
        self._replans += self.replans_left > 0
        if again and self._replans < self._policy.max_replans:
            self._replan = None
            return {}
        self._replan = None
        concerned = step.keys if step.asked is Asked.REPLAN else (step.key,)
        for key in concerned:
            self._failures.pop(key, None)
        remedy = self._exhausted("replans_exhausted" if again else "task_failed")
        return {**dict.fromkeys(concerned, remedy), **self._exhaust_rest()}

    def cut(self) -> None:
        """Every call of this seat is closed without an answer."""
        for open_ in self._all_open():
            open_.question.asked = False

    # What to do.

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to be asked or answered."""
        return not (self._rewordings or self._failures or self._requests or self._replan)

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return sum(open_.question.asked for open_ in self._all_open())

    @property
    def replans(self) -> int:
        """How many replans are used up."""
        return self._replans

    @property
    def replans_left(self) -> int:
        """How many may still be drawn."""
        return max(0, self._policy.max_replans - self._replans)

    @property
    def wake_at(self) -> int | None:
        """When something becomes due by time alone."""
        times = [o.question.due_at for o in self._all_open() if not o.question.asked and o.question.due_at is not None]
        if self._replan is None and (self._failures or self._requests):
            times.append(self._gathered_at)
        return min(times, default=None)

    def wanted(self, now: int) -> int:
        """How many calls could be sent now."""
        due = sum(open_.question.is_due(now) for open_ in self._all_open())
        return due + (self._replan is None and self._is_gathered(now))

    def take(self, now: int, places: int) -> list[AskRecovery]:
        """The questions to send now; they count as asked from here on."""
        if self._replan is None and self._is_gathered(now) and places > 0:
            self._replan = _Open(self._requests.pop(0) if self._requests else self._of_failures())
            self._not_before = None
        taken = [open_ for open_ in self._all_open() if open_.question.is_due(now)][:places]
        for open_ in taken:
            open_.question.asked = True
            open_.sent += 1
        return [open_.step for open_ in taken]

    def put_back(self, step: AskRecovery) -> None:
        """A question that was taken is not sent after all; as long as it never was, more failures can join it."""
        open_ = self._open(step)
        open_.question.asked = False
        open_.sent -= 1
        if open_ is self._replan and not open_.sent:
            self._replan = None
            if step.requested:
                self._requests.insert(0, step)

    # Within.

    def _is_gathered(self, now: int) -> bool:
        return bool(self._requests or self._failures) and self._gathered_at <= now

    @property
    def _gathered_at(self) -> int:
        """What a person asks for waits for nothing but the endpoint."""
        gathered = 0 if self._requests else min(self._failures.values()) + GATHER_MS
        return max(gathered, self._not_before or 0)

    def _of_failures(self) -> AskRecovery:
        first, *rest = self._failures
        asked = Asked.REPLAN if self._policy.on_failure is OnFailure.REPLAN else Asked.AUTO
        return AskRecovery(asked=asked, key=first, also=tuple(rest))

    def _all_open(self) -> Iterator[_Open]:
        if self._replan is not None:
            yield self._replan
        yield from self._rewordings.values()

    def _open(self, step: AskRecovery) -> _Open:
        open_ = self._rewordings[step.key] if step.asked is Asked.RETRY else self._replan
        if open_ is None:
            raise ValueError("no such question is open")
        return open_

    def _close(self, step: AskRecovery) -> None:
        """The one task that was asked about has its answer; others that would have shared a replan go on waiting."""
        if step.asked is Asked.RETRY:
            self._rewordings.pop(step.key, None)
        else:
            self._failures.pop(step.key, None)
            self._replan = None

    def _exhaust_rest(self) -> Mapping[TaskKey, Remedy]:
        """What comes of those that have waited for a replan, when none is left; `auto` may still skip them."""
        if self._policy.on_failure is not OnFailure.REPLAN or self.replans_left:
            return {}
        rest, self._failures = self._failures, {}
        return dict.fromkeys(rest, self._exhausted("replans_exhausted"))

    def _exhausted(self, code: str) -> Remedy:
        if self._policy.on_exhausted is OnExhausted.REVIEW:
            return Remedy(means=Means.REVIEW, code=code)
        return Remedy(means=Means.GIVE_UP, code=code)
