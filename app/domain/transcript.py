"""A task's ReAct loop so far: its steps, the tool calls that each asked for, and what the rules say of the next."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.domain.failures import Failure
from app.domain.status import SideEffects, ToolCallStatus

MAX_CALLS_AT_ONCE = 16
"""Tool calls that one step may ask for; more are left out, and the model is told."""

MAX_EQUAL_CALLS = 2
"""How often a loop may make the same call of the same tool; whoever asks for one more is to answer with what it has."""

UNFINISHED_TOOL_CALLS = (ToolCallStatus.ASKED, ToolCallStatus.AWAITING_REVIEW, ToolCallStatus.OPEN)
_UNKNOWN = (ToolCallStatus.LOST, ToolCallStatus.CANCELLED)
REPEATED = "repeated_call"
NEVER_SENT = Failure(kind="cancelled", message="The run ended before this call was sent.", retryable=True)


@dataclass(kw_only=True, slots=True)
class AskedCall:
    """A tool call that a model has asked for, and what became of it.

    `number` is unique in the run, `position` its place in the step, `call_id` the model's own name for it. `arguments`
    are as the model wrote them; `key` is the same for equal calls of one task, None where the call makes no sense.
    """

    number: int
    step: int
    attempt: int
    position: int
    call_id: str
    tool: str
    arguments: str
    key: str | None
    side_effects: SideEffects
    status: ToolCallStatus
    result: str | None = None
    error: Mapping[str, Any] | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether it has not come to an end."""
        return self.status in UNFINISHED_TOOL_CALLS

    @property
    def may_have_acted(self) -> bool:
        """Whether nobody knows what it did: it was sent, and came back without a result."""
        if self.status is ToolCallStatus.FAILED:
            return bool((self.error or {}).get("may_have_acted"))
        return self.status in _UNKNOWN

    @property
    def is_final(self) -> bool:
        """Whether nothing that the model says helps: its failure spoils the attempt."""
        return self.status is ToolCallStatus.FAILED and not (self.error or {}).get("retryable", True)


@dataclass(kw_only=True, slots=True)
class LoopStep:
    """One answer of the model that asked for tools. `number` is that of the model's call."""

    number: int
    attempt: int
    content: str
    calls: list[AskedCall] = field(default_factory=list)


class Transcript:
    """One task's. A step's calls have all come to an end before the next step is asked for."""

    def __init__(self) -> None:
        self.steps: list[LoopStep] = []
        self._earlier: list[AskedCall] = []
        self._lost: list[AskedCall] = []  # of the steps, where another call has taken their place

    def add(self, step: LoopStep) -> None:
        """The model has asked for tools."""
        self.steps.append(step)

    def begin_anew(self) -> None:
        """The task starts again in other words: what was said is forgotten, what was done is not."""
        self._earlier += [*self._lost, *self._calls()]
        self.steps, self._lost = [], []

    def remember(self, calls: Iterable[AskedCall]) -> None:
        """Calls that the task made before it began anew."""
        self._earlier += calls

    def step(self, number: int) -> LoopStep | None:
        """The step of this number."""
        return next((step for step in self.steps if step.number == number), None)

    def replace(self, call: AskedCall) -> None:
        """The same call once more, in place of one that was lost. Raises LookupError where there is none."""
        step = next(step for step in self.steps if step.number == call.step)
        lost = next(n for n, before in enumerate(step.calls) if before.position == call.position)
        self._lost.append(step.calls[lost])
        step.calls[lost] = call

    def lost(self) -> list[AskedCall]:
        """Of a loop that is loaded: the calls that were in flight."""
        return [call for call in self._calls() if call.status is ToolCallStatus.OPEN]

    def unsent(self) -> list[AskedCall]:
        """The calls that have been asked for and not been sent."""
        waiting = (ToolCallStatus.ASKED, ToolCallStatus.AWAITING_REVIEW)
        return [call for call in self._calls() if call.status in waiting]

    def find(self, number: int) -> AskedCall | None:
        """The call of this number."""
        return next((call for call in self._calls() if call.number == number), None)

    @property
    def asked(self) -> list[AskedCall]:
        """The calls that are to be sent next."""
        return [call for call in self._last() if call.status is ToolCallStatus.ASKED]

    @property
    def in_flight(self) -> int:
        """How many calls are under way."""
        return sum(call.status is ToolCallStatus.OPEN for call in self._last())

    @property
    def awaits_review(self) -> bool:
        """Whether a person is to say something of a call first."""
        return any(call.status is ToolCallStatus.AWAITING_REVIEW for call in self._last())

    @property
    def is_settled(self) -> bool:
        """Whether every call has come to an end, and the model may be asked again."""
        return not any(call.is_waiting for call in self._last())

    @property
    def final(self) -> AskedCall | None:
        """The call of the last step that spoils the attempt, if there is one; a person's word goes first."""
        finals = [call for call in self._last() if call.is_final]
        return min(finals, key=lambda call: not (call.error or {}).get("closed"), default=None)

    def must_answer(self, attempt: int, max_steps: int) -> bool:
        """Whether the next step is the last one: the model may call no more tools, and is to answer."""
        steps = sum(step.attempt == attempt for step in self.steps)
        repeats = any((call.error or {}).get("kind") == REPEATED for call in self._last())
        return steps + 1 >= max_steps or repeats

    def is_repeated(self, key: str, attempt: int) -> bool:
        """Whether this attempt has made this call as often as it may."""
        return sum(call.key == key and call.attempt == attempt for call in self._calls()) >= MAX_EQUAL_CALLS

    def equal(self, key: str) -> list[AskedCall]:
        """All equal calls that the task has ever asked for, first to last."""
        return [call for call in self._ever() if call.key == key]

    @property
    def acts(self) -> list[AskedCall]:
        """The calls that have, or may have, changed something outside, first to last."""
        return _acts(self._ever())

    @property
    def earlier_acts(self) -> list[AskedCall]:
        """Those of them that the steps do not show: made before the task began anew."""
        return _acts(self._earlier)

    def _last(self) -> list[AskedCall]:
        return self.steps[-1].calls if self.steps else []

    def _ever(self) -> Iterator[AskedCall]:
        yield from self._earlier
        yield from self._lost
        yield from self._calls()

    def _calls(self) -> Iterator[AskedCall]:
        for step in self.steps:
            yield from step.calls


def _acts(calls: Iterable[AskedCall]) -> list[AskedCall]:
    done = [call for call in calls if call.side_effects is not SideEffects.NONE]
    return [call for call in done if call.status is ToolCallStatus.RETURNED or call.may_have_acted]
