"""Which of a run's calls may be sent now: by the places that are free, by its endpoint, and by its budget."""

from collections.abc import Callable, Sequence
from functools import partial

from app.domain.ids import TaskKey
from app.domain.status import Seat
from app.domain.steps import Call as Purpose
from app.domain.steps import StartTasks, Step
from app.engine.calls import Call, seat_of
from app.engine.state import RunState
from app.engine.workshop import Workshop


class Admission:
    """Of one run. `nudge` has its driver look again, when a place has come free for it."""

    def __init__(self, workshop: Workshop, nudge: Callable[[], None]) -> None:
        self._shop = workshop
        self._nudge = nudge
        self._granted = 0  # places handed to us that no call uses yet
        self._calls: dict[tuple[Seat, TaskKey | None], Call] = {}
        self.waits_for_place = False
        self.opens_at: int | None = None
        """When an endpoint that wants to be left alone may be called again, in ms."""
        self.refused_by: str | None = None
        """The limit of the budget that the next call would have passed; calls in flight may give room back."""

    @property
    def is_held_up(self) -> bool:
        """Whether there is nothing to try before some time has come, or some call has ended."""
        return self.opens_at is not None or self.refused_by is not None

    def steps(self, state: RunState, *, starting: bool) -> Sequence[Step]:
        """What the walk wants now, as far as it is admitted; without `starting` no call is."""
        now = self._shop.clock.now()
        if self.opens_at is not None and self.opens_at <= now:
            self.opens_at = None
        steps: list[Step] = []
        goes_on = True
        while goes_on:
            wanted = state.walk.wanted(now) if starting and not self.is_held_up else 0
            if wanted > self._unused:
                self._granted += self._shop.places.take(wanted - self._unused)
            places = min(wanted, self._unused)
            found = state.walk.next(now, places, partial(self._admit, state))
            steps += found
            # A task whose tools are called has left its place to whatever else is wanted.
            goes_on = wanted > places and self._unused > 0 and any(isinstance(step, StartTasks) for step in found)
        if wanted <= places or self.is_held_up:
            self._stop_waiting()
        self._give_back_unused()
        if wanted > places and not self.is_held_up and not self.waits_for_place:
            self.waits_for_place = True
            self._shop.places.wait(self._place_granted)
        return steps

    def take(self, purpose: Purpose) -> Call:
        """The call that was admitted for this."""
        return self._calls.pop(seat_of(purpose))

    def sent(self) -> None:
        """A call that was admitted is sent: its place is its own now, given back when it ends."""
        self._granted -= 1

    def call_ended(self) -> None:
        """The budget may have room again."""
        self.refused_by = None

    def leave(self) -> None:
        """Give back all places that no call uses."""
        self._stop_waiting()
        self._calls.clear()
        self._give_back_unused()

    def _admit(self, state: RunState, purpose: Purpose) -> bool:
        """Whether a call may be sent now; if so, it is made, and counted in the budget."""
        if isinstance(purpose, str) and (asked := state.tasks[purpose].transcript.asked):
            return self._admit_tools(state, len(asked))
        call = self._shop.caller.make(purpose, state, number=state.last_call + 1)
        opens_at = max(self._shop.caller.opens_at(call.model) or 0, state.opens_at.get(call.model, 0))
        if opens_at > self._shop.clock.now():
            self.opens_at = opens_at if self.opens_at is None else min(opens_at, self.opens_at)
            return False
        self.refused_by = state.budget.refuses(call.reservation)
        if self.refused_by is not None:
            return False
        state.last_call += 1
        state.budget.opened(call.number, call.reservation)
        self._calls[call.seat, call.task_key] = call
        return True

    def _admit_tools(self, state: RunState, calls: int) -> bool:
        """Tools take none of the model's places: the one that was taken for them goes back with the others."""
        self.refused_by = state.budget.refuses_tools(calls)
        if self.refused_by is None:
            state.budget.tools_opened(calls)
        return self.refused_by is None

    @property
    def _unused(self) -> int:
        """Places that are ours, and that no call is to take."""
        return self._granted - len(self._calls)

    def _give_back_unused(self) -> None:
        unused = self._unused
        self._granted -= unused  # before somebody who waits is told
        self._shop.places.give_back(unused)

    def _place_granted(self) -> None:
        self.waits_for_place = False
        self._granted += 1
        self._nudge()

    def _stop_waiting(self) -> None:
        if self.waits_for_place:
            self._shop.places.leave(self._place_granted)
            self.waits_for_place = False
