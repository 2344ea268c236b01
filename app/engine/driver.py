"""Drives one run: asks the walk what is next, records it, sends the calls, and takes in what comes back."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import structlog

from app.agents import executor
from app.domain.errors import LeaseLost, StorageUnavailable
from app.domain.failures import Backoff
from app.domain.ids import TaskKey
from app.domain.status import AttemptStatus, Mode, RunStatus, Seat, StopRequest, TaskStatus
from app.domain.walk import CutCalls, DrawPlan, Finish, StartTasks, Step, Synthesize
from app.engine.calls import Call, Caller, Cut, Outcome
from app.engine.clock import Clock
from app.engine.inbox import Inbox
from app.engine.outcomes import Outcomes
from app.engine.places import Places
from app.engine.recorder import Recorder
from app.engine.state import RunState, build
from app.storage.changes import Changes
from app.storage.database import Database
from app.storage.dispatch import Lease, release
from app.storage.resume import load

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """What all drivers of a process share. `lease_ms` is also the longest wait that a driver sits out."""

    database: Database
    recorder: Recorder
    caller: Caller
    places: Places
    clock: Clock
    backoff: Backoff
    lease_ms: int


class Driver:
    """One run, for as long as this worker has its lease."""

    def __init__(self, lease: Lease, workshop: Workshop) -> None:
        self.lease = lease
        self._shop = workshop
        self._inbox: Inbox[Outcome] = Inbox()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._granted = 0  # places handed to us that no call uses yet
        self._waits_for_place = False
        self._stop: StopRequest | None = None
        self._draining = False

    def ask_to_stop(self, request: StopRequest) -> None:
        """A client wants the run stopped; the driver moves it."""
        self._stop = request
        self._inbox.nudge()

    def drain(self) -> None:
        """Start nothing more; `drive` returns when what is in flight has been recorded."""
        self._draining = True
        self._inbox.nudge()

    async def drive(self) -> None:
        """Drive the run until it is over, has long to wait, is drained, or is lost to another worker."""
        async with self._shop.database.read() as connection:
            stored = await load(connection, self.lease)
        if stored is None:
            return
        state, changes = build(stored, self.lease)
        try:
            async with asyncio.TaskGroup() as group:
                await self._drive(state, changes, group)
        except* LeaseLost:
            log.info("lease lost", run_id=str(self.lease.run_id), epoch=self.lease.epoch)
        except* StorageUnavailable as errors:
            raise errors.exceptions[0] from None
        finally:
            self._give_back_places()

    async def _drive(self, state: RunState, changes: Changes, group: asyncio.TaskGroup) -> None:
        outcomes = Outcomes(state, self._shop.clock, self._shop.backoff)
        begins = True
        while True:
            if self._stop is StopRequest.CANCEL:
                state.walk.cancel()
            steps = self._steps(state)
            calls = self._record(steps, state, changes, begins=begins)
            over = changes.over
            if begins or calls or not changes.is_empty:
                fenced = await self._shop.recorder.commit(changes)
                if fenced.stop_requested is not None and self._stop is None:
                    self.ask_to_stop(fenced.stop_requested)
            begins = False
            self._send(calls, state, group)
            if over:
                return
            if not state.walk.in_flight and await self._let_go(state):
                return
            changes = state.changes()
            for outcome in await self._inbox.take(within_seconds=self._sleep_seconds(state)):
                outcomes.take_in(outcome, changes)

    def _steps(self, state: RunState) -> Sequence[Step]:
        """What the walk wants now, within the places that are free."""
        now = self._shop.clock.now()
        wanted = 0 if self._draining else state.walk.wanted(now)
        if wanted > self._granted:
            self._granted += self._shop.places.take(wanted - self._granted)
        places = min(wanted, self._granted)
        if wanted > places and not self._waits_for_place:
            self._waits_for_place = True
            self._shop.places.wait(self._place_granted)
        steps = state.walk.next(now, places)
        if wanted <= places and self._granted > places:
            self._shop.places.give_back(self._granted - places)
            self._granted = places
        return steps

    def _record(self, steps: Sequence[Step], state: RunState, changes: Changes, *, begins: bool) -> list[Call]:
        """Add what the steps mean to the changes; the calls to send once these are committed."""
        calls: list[Call] = []
        if begins:
            self._begin(state, changes)
        for step in steps:
            match step:
                case DrawPlan():
                    calls.append(self._open_call(Seat.PLANNER, state, changes))
                case StartTasks(keys):
                    calls += [self._start_task(key, state, changes) for key in keys]
                case Synthesize():
                    calls.append(self._open_call(Seat.SYNTHESIZER, state, changes))
                case CutCalls():
                    for call in self._calls.values():
                        call.cancel()
                case Finish():
                    self._finish(step, state, changes)
                case _:
                    assert_never(step)
        if changes.touches_tasks or changes.over or begins:
            changes.progress = state.walk.progress()
        return calls

    def _begin(self, state: RunState, changes: Changes) -> None:
        """The first commit of this lease: the run leaves the queue."""
        if state.run.status is not RunStatus.QUEUED:
            return
        changes.begun = True
        if state.walk.has_plan:
            changes.status = RunStatus.RUNNING
            changes.event("run.started")
        else:
            changes.status = RunStatus.PLANNING
            changes.event("run.planning")

    def _start_task(self, key: TaskKey, state: RunState, changes: Changes) -> Call:
        task = state.tasks[key]
        if not task.attempt_open:
            task.attempt += 1
            task.attempt_open = True
            changes.attempt_started(key, task.attempt, description=task.description, prompt_hash=executor.prompt_hash())
        changes.task(key, TaskStatus.RUNNING)
        event = "task.recovered" if task.recovered else "task.started"
        changes.event(event, task_key=key, attempt=task.attempt)
        task.recovered = False
        return self._open_call(Seat.EXECUTOR, state, changes, key=key, attempt=task.attempt)

    def _open_call(
        self, seat: Seat, state: RunState, changes: Changes, *, key: TaskKey | None = None, attempt: int | None = None
    ) -> Call:
        state.last_call += 1
        call = Call(
            number=state.last_call,
            seat=seat,
            model=self._shop.caller.model_for(seat, state.run.options),
            try_number=state.tries.get((seat, key), 0) + 1,
            task_key=key,
            attempt=attempt,
        )
        changes.call_opened(
            call.number, seat=seat, model=call.model, try_number=call.try_number, task_key=key, attempt=attempt
        )
        return call

    def _finish(self, end: Finish, state: RunState, changes: Changes) -> None:
        """Write the run's end, and that of everything it leaves unfinished."""
        for key in [] if end.status is RunStatus.SUCCEEDED else state.walk.end_unfinished():
            changes.task(key, TaskStatus.CANCELLED)
            changes.event("task.cancelled", task_key=key)
            if state.tasks[key].attempt_open:
                changes.attempt_ended(key, state.tasks[key].attempt, AttemptStatus.CANCELLED)
        changes.status = end.status
        changes.over = True
        if end.error is not None:
            changes.error = end.error.as_json()
            changes.event("run.failed", error=changes.error)
        else:
            changes.event(f"run.{end.status}")
        if end.status is RunStatus.SUCCEEDED and state.run.mode is Mode.EXECUTE:
            changes.result = _result(state)

    def _send(self, calls: Sequence[Call], state: RunState, group: asyncio.TaskGroup) -> None:
        for call in calls:
            self._granted -= 1
            sending = group.create_task(self._shop.caller.send(call, state, self._inbox.put))
            self._calls[call.number] = sending
            sending.add_done_callback(partial(self._call_ended, call))

    def _call_ended(self, call: Call, ended: asyncio.Task[None]) -> None:
        del self._calls[call.number]
        self._shop.places.give_back()
        if ended.cancelled():
            self._inbox.put(Cut(call))

    async def _let_go(self, state: RunState) -> bool:
        """Give the run back where this worker has nothing to do for it: drained, or a wait longer than the lease."""
        now, wake_at = self._shop.clock.now(), state.walk.wake_at
        wait_ms = 0 if wake_at is None else wake_at - now
        has_work = self._stop is not None or wait_ms <= self._shop.lease_ms or state.walk.wanted(now) > 0
        if has_work and not self._draining:
            return False
        async with self._shop.database.write() as connection:
            await release(connection, self.lease, ready_in_ms=max(0, wait_ms))
            await self._shop.database.announce(connection, self.lease.run_id)
        return True

    def _sleep_seconds(self, state: RunState) -> float | None:
        wake_at = state.walk.wake_at
        if wake_at is None or self._waits_for_place or self._draining:
            return None  # time alone starts nothing
        return (wake_at - self._shop.clock.now()) / 1000

    def _place_granted(self) -> None:
        self._waits_for_place = False
        self._granted += 1
        self._inbox.nudge()

    def _give_back_places(self) -> None:
        if self._waits_for_place:
            self._shop.places.leave(self._place_granted)
        self._shop.places.give_back(self._granted)
        self._granted = 0


def _result(state: RunState) -> object:
    """The run's result: the synthesis, a single task's own result, or those of the tasks that nothing depends on."""
    if state.result is not None:
        return state.result
    if len(state.tasks) == 1:
        return next(iter(state.results.values()))
    return {key: state.results[key] for key in state.walk.last_tasks}
