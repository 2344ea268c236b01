"""Drives one run: asks the walk what is next, records it, sends the calls, and takes in what comes back."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import assert_never

import structlog

from app.agents import executor
from app.domain.errors import LeaseLost
from app.domain.failures import RunError
from app.domain.ids import TaskKey
from app.domain.recovery import AskRecovery
from app.domain.status import ACTIVE, AttemptStatus, Mode, RunStatus, StopRequest, TaskStatus
from app.domain.steps import Call as Purpose
from app.domain.steps import CutCalls, DrawPlan, Finish, Park, StartTasks, Step, Synthesize
from app.domain.text import shortened
from app.engine.acting import Acting
from app.engine.admission import Admission
from app.engine.calls import Call, Cut, Outcome
from app.engine.inbox import Inbox
from app.engine.loading import build
from app.engine.outcomes import Outcomes
from app.engine.remedies import Remedies
from app.engine.state import RunState
from app.engine.suspects import is_suspect
from app.engine.tooling import ToolCut, ToolOutcome, ToolSending
from app.engine.workshop import Workshop
from app.storage.changes import Changes
from app.storage.database import unbroken
from app.storage.dispatch import Flags, Lease, flags_locked, release, renew
from app.storage.faults import patient
from app.storage.records import ReviewRecord
from app.storage.resume import StoredRun, load
from app.storage.reviews import bearing_reviews
from app.storage.writing import write

log = structlog.get_logger(__name__)

_LONGEST_WAIT_MS = 366 * 86_400_000
_MAX_NAMED = 20


class Driver:
    """One run, for as long as this worker has its lease. `on_cleared` hears when it is no longer a suspect."""

    def __init__(self, lease: Lease, workshop: Workshop, on_cleared: Callable[[], None]) -> None:
        self.lease = lease
        self.is_suspect = is_suspect(lease)
        self.is_leaving = False
        """Whether it is about to give its lease up by itself, and so can hardly lose it."""
        self._on_cleared = on_cleared
        self._shop = workshop
        self._inbox: Inbox[Outcome | ToolOutcome] = Inbox()
        self._calls: set[asyncio.Task[None]] = set()
        self._admission = Admission(workshop, self._inbox.nudge)
        self.heard = 0
        """How often it has been told what clients want."""
        self._stop: StopRequest | None = None
        self._answers = 0  # how many answers to reviews there are
        self._held_at = lease.claimed_at  # when the run was last known to be ours
        self._draining = False

    @property
    def is_stopping(self) -> bool:
        """Whether a client has asked for a stop."""
        return self._stop is not None

    def heed(self, flags: Flags) -> None:
        """What clients want of the run, which the driver does."""
        self._stop = StopRequest.CANCEL if self._stop is StopRequest.CANCEL else flags.stop_requested
        self._answers = max(self._answers, flags.answers)
        self.heard += 1
        self._inbox.nudge()

    def drain(self) -> None:
        """Start nothing more; `drive` returns when what is in flight has been recorded."""
        self._draining = True
        self._inbox.nudge()

    async def drive(self) -> None:
        """Drive the run until it is over, has long to wait, is drained, or is lost to another worker."""
        stored = await self._load()
        if stored is None:
            return
        self._stop = self._stop or stored.run.stop_requested
        state, changes = build(stored, self.lease)
        remedies = Remedies(state, self._shop.clock)
        acting = Acting(state, self._shop.tools, self._shop.clock)
        outcomes = Outcomes(state, remedies, acting, self._shop.clock, self._shop.backoff)
        remedies.take_up(changes)
        acting.take_up(changes)
        outcomes.take_up(changes)
        try:
            async with asyncio.TaskGroup() as group:
                await self._drive(state, outcomes, acting, changes, group)
        except* LeaseLost:
            log.info("lease lost", run_id=str(self.lease.run_id), epoch=self.lease.epoch)
        finally:
            self._admission.leave()

    async def _drive(
        self, state: RunState, outcomes: Outcomes, acting: Acting, changes: Changes, group: asyncio.TaskGroup
    ) -> None:
        begins = True
        while True:
            self._tell_of_stops(state)
            self._tell_of_time(state, changes)
            steps = self._steps(state, changes)
            calls = self._record(steps, state, acting, changes, begins=begins)
            if begins or calls or not changes.is_empty:
                self.is_leaving = changes.over
                fenced = await self._shop.recorder.commit(changes)
                self._held_at = fenced.now
                if self.is_suspect and changes.has_outcome:
                    self.is_suspect = False
                    self._on_cleared()
                if fenced.answers > self._answers or (fenced.stop_requested is not None and self._stop is None):
                    self.heed(Flags(stop_requested=fenced.stop_requested, answers=fenced.answers))
            begins = False
            if calls:
                await self._hold()
            self._send(calls, state, group)
            if changes.over:
                return
            changes = state.changes()
            parking = [step.status for step in steps if isinstance(step, Park)]
            if parking:
                if await self._park(parking[0], state):
                    return
                await self._take_answers(state, outcomes, changes)
                continue
            if not state.walk.in_flight and await self._let_go(state):
                return
            for outcome in await self._inbox.take(within_seconds=self._sleep_seconds(state)):
                outcomes.take_in(outcome, changes)
                self._admission.call_ended()
            await self._take_answers(state, outcomes, changes)

    def _tell_of_stops(self, state: RunState) -> None:
        if self._stop is StopRequest.CANCEL:
            state.walk.cancel()
        state.walk.pause(self._stop is StopRequest.PAUSE)

    def _tell_of_time(self, state: RunState, changes: Changes) -> None:
        """Time goes on by itself: what is in flight when it is used up is cut."""
        now = self._shop.clock.now()
        deadline = state.budget.deadline(now)
        if deadline is None or deadline > now:
            return
        if not state.walk.is_ending:
            self._tell_of_limit("budget.exceeded", "max_seconds", state, changes)
        message = f"The run's {state.budget.limit('max_seconds'):g} seconds are used up."
        state.walk.give_up(RunError(code="deadline_exceeded", message=message), cut=True)

    async def _take_answers(self, state: RunState, outcomes: Outcomes, changes: Changes) -> None:
        """Carry out what people have answered since we last looked."""
        if self._answers <= state.answers:
            return
        state.answers = self._answers
        for review in await self._reviews():
            known = state.reviews.get(review.id)
            if known is not None and known.answered_at is None and review.answered_at is not None:
                outcomes.review_answered(review, changes)

    @patient
    async def _load(self) -> StoredRun | None:
        async with self._shop.database.read() as connection:
            return await load(connection, self.lease)

    @patient
    async def _reviews(self) -> Sequence[ReviewRecord]:
        async with self._shop.database.read() as connection:
            return await bearing_reviews(connection, self.lease.tenant_id, self.lease.run_id)

    def _steps(self, state: RunState, changes: Changes) -> Sequence[Step]:
        """What is to be done now; a run without room in its budget for another call is given up."""
        steps = self._admission.steps(state, starting=not self._draining)
        limit = self._admission.refused_by
        if limit is None or state.walk.in_flight or state.walk.is_ending:
            return steps
        self._tell_of_limit("budget.exceeded", limit, state, changes)
        message = f"The budget's {limit} of {state.budget.limit(limit)} leaves no room for the next call."
        state.walk.give_up(RunError(code="budget_exceeded", message=message))
        return self._admission.steps(state, starting=False)

    def _tell_of_limit(self, event: str, limit: str, state: RunState, changes: Changes) -> None:
        used = state.budget.use_of(limit, self._shop.clock.now())
        changes.event(event, limit=limit, used=used, of=state.budget.limit(limit))

    def _record(
        self, steps: Sequence[Step], state: RunState, acting: Acting, changes: Changes, *, begins: bool
    ) -> list[Call | ToolSending]:
        """Add what the steps mean to the changes; the calls to send once these are committed."""
        calls: list[Call | ToolSending] = []
        if begins:
            self._begin(state, changes)
        for step in steps:
            match step:
                case DrawPlan() | AskRecovery() | Synthesize():
                    calls.append(self._open_call(step, state, changes))
                case StartTasks(keys):
                    for key in keys:
                        calls += self._start_task(key, state, acting, changes)
                case CutCalls():
                    for call in self._calls:
                        if not call.cancelling():  # once: again would break into the closing of its connection
                            call.cancel()
                case Finish():
                    self._finish(step, state, acting, changes)
                case Park():
                    pass  # once all that is known is committed
                case _:
                    assert_never(step)
        self._note_budget(state, changes)
        if state.walk.error is not None and not state.has_stored_error and not changes.over:
            state.has_stored_error = True
            changes.error = state.walk.error.as_json()
        if changes.touches_tasks or changes.over or begins:
            changes.progress = state.walk.progress()
        changes.replans = state.walk.replans - state.replans
        state.replans = state.walk.replans
        state.status = changes.status or state.status
        return calls

    def _note_budget(self, state: RunState, changes: Changes) -> None:
        now = self._shop.clock.now()
        if changes.status is not None:
            (state.budget.started if changes.status in ACTIVE else state.budget.stopped)(now)
        for limit in [] if changes.over or state.walk.is_ending else state.budget.crossed(now):
            self._tell_of_limit("budget.warning", limit, state, changes)
            changes.budget_warned = state.budget.warned

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

    def _start_task(
        self, key: TaskKey, state: RunState, acting: Acting, changes: Changes
    ) -> Sequence[Call | ToolSending]:
        """A task's first call; or the next ones of its loop, of tools where the last answer has asked for any."""
        task = state.tasks[key]
        if task.tools:
            task.begins(self._shop.clock.now())
        if not task.goes_on:
            self._begin_task(key, state, changes)
        task.goes_on = task.recovered = False
        return acting.open(key, changes) if task.transcript.asked else [self._open_call(key, state, changes)]

    def _begin_task(self, key: TaskKey, state: RunState, changes: Changes) -> None:
        task = state.tasks[key]
        if not task.attempt_open:
            task.attempt += 1
            task.attempt_open = True
            prompt_hash = executor.prompt_hash(with_tools=bool(task.tools))
            changes.attempt_started(key, task.attempt, description=task.description, prompt_hash=prompt_hash)
        changes.task(key, TaskStatus.RUNNING)
        event = "task.recovered" if task.recovered else "task.started"
        changes.event(event, task_key=key, attempt=task.attempt)
        task.recovered = False

    def _open_call(self, purpose: Purpose, state: RunState, changes: Changes) -> Call:
        call = self._admission.take(purpose)
        changes.call_opened(
            call.number,
            seat=call.seat,
            model=call.model,
            try_number=call.try_number,
            task_key=call.task_key,
            attempt=call.attempt,
            generation=state.generation or 0,
            reserved=call.reserved,
            reserved_cost_nano_usd=call.reservation.cost_nano_usd,
        )
        return call

    def _finish(self, end: Finish, state: RunState, acting: Acting, changes: Changes) -> None:
        """Write the run's end, and that of everything it leaves unfinished."""
        for key in [] if end.status is RunStatus.SUCCEEDED else state.walk.end_unfinished():
            changes.task(key, TaskStatus.CANCELLED)
            changes.event("task.cancelled", task_key=key)
            acting.finish(key, changes)
            if state.tasks[key].attempt_open:
                changes.attempt_ended(key, state.tasks[key].attempt, AttemptStatus.CANCELLED)
        for review in state.reviews:
            changes.review_closed(review)
        changes.status = end.status
        changes.over = True
        if end.error is not None:
            changes.error = replace(end.error, message=_sentence(end.error.message) + _account(state)).as_json()
            changes.event("run.failed", error=changes.error)
        else:
            changes.event(f"run.{end.status}")
        if end.status is RunStatus.SUCCEEDED and state.run.mode is Mode.EXECUTE:
            changes.result = _result(state)

    def _send(self, calls: Sequence[Call | ToolSending], state: RunState, group: asyncio.TaskGroup) -> None:
        for call in calls:
            if isinstance(call, Call):
                self._admission.sent()
                sending = group.create_task(self._shop.caller.send(call, state.run.id, self._inbox.put))
            else:
                sending = group.create_task(self._shop.tools.send(call, state.run.id, self._inbox.put, self._hold))
            self._calls.add(sending)
            sending.add_done_callback(partial(self._call_ended, call))

    @patient
    async def _hold(self) -> None:
        """Before a call is sent: is the run still ours, after however long a standstill? Raises `LeaseLost`."""
        now = self._shop.clock.now()
        if now - self._held_at <= self._shop.lease_ms / 2:
            return
        async with self._shop.database.write() as connection:
            kept = await renew(connection, [self.lease], lease_ms=self._shop.lease_ms)
        if self.lease.run_id not in kept:
            raise LeaseLost("The run is driven by another worker.")
        self._held_at = now

    def _call_ended(self, call: Call | ToolSending, ended: asyncio.Task[None]) -> None:
        self._calls.discard(ended)
        if isinstance(call, Call):
            self._shop.places.give_back()
        if ended.cancelled():
            self._inbox.put(Cut(call) if isinstance(call, Call) else ToolCut(call))

    @patient
    @unbroken
    async def _park(self, status: RunStatus, state: RunState) -> bool:
        """Let the run stand still, unless somebody has asked for something else meanwhile."""
        changes = state.changes()
        changes.status, changes.parked = status, True
        changes.event(f"run.{status}")
        expected = StopRequest.PAUSE if status is RunStatus.PAUSED else None
        self.is_leaving = True
        async with self._shop.database.write() as connection:
            flags = await flags_locked(connection, self.lease)
            if flags is None:
                raise LeaseLost("The run is driven by another worker.")
            parked = flags.stop_requested is expected and flags.answers <= state.answers
            if parked:
                await connection.run_sync(write, [changes])
                await self._shop.database.announce(connection, self.lease.run_id, requested=False)
        if not parked:
            self.is_leaving = False
            state.walk.go_on()
            self.heed(flags)
        return parked

    @patient
    @unbroken
    async def _let_go(self, state: RunState) -> bool:
        """Give the run back where this worker has nothing to do for it: drained, or a wait longer than the lease."""
        now = self._shop.clock.now()
        moment = self._next_moment(state)
        wait_ms = 0 if moment is None else moment - now
        has_work = self._stop is not None or self._answers > state.answers or wait_ms <= self._shop.lease_ms
        self.is_leaving = self._draining or not has_work
        if not self.is_leaving:
            return False
        async with self._shop.database.write() as connection:
            ready_in_ms = min(max(0, wait_ms), _LONGEST_WAIT_MS)
            await release(connection, self.lease, ready_in_ms=ready_in_ms, answers=state.answers)
            await self._shop.database.announce(connection, self.lease.run_id)
        return True

    def _sleep_seconds(self, state: RunState) -> float | None:
        if self._admission.waits_for_place or self._draining:
            moment = self._next_limit(state)  # until then time alone starts nothing
        else:
            moment = self._next_moment(state)
        return None if moment is None else (moment - self._shop.clock.now()) / 1000

    def _next_moment(self, state: RunState) -> int | None:
        """When time alone changes something, in ms; None: never."""
        now = self._shop.clock.now()
        starts = self._admission.opens_at
        if not self._admission.is_held_up:
            starts = now if state.walk.wanted(now) else state.walk.wake_at
        return min((at for at in (starts, self._next_limit(state)) if at is not None), default=None)

    def _next_limit(self, state: RunState) -> int | None:
        """When something is to be said or done about the run's time."""
        if state.walk.is_cutting:
            return None
        now = self._shop.clock.now()
        moments = (state.budget.deadline(now), state.budget.warning_at(now))
        return min((moment for moment in moments if moment is not None), default=None)


def _result(state: RunState) -> object:
    """The run's result: the synthesis, a single task's own result, or those of the tasks that nothing depends on."""
    if state.is_synthesized:
        return state.result
    if len(state.live) == 1:
        return state.results[state.live[0]]
    return {key: state.results.get(key) for key in state.walk.last_tasks}


def _account(state: RunState) -> str:
    """What was reached and what was not, for whoever reads why the run ended."""
    if not state.tasks:
        return ""
    wanted = [k for k in state.tasks if k not in state.replaced and state.walk.status(k) is not TaskStatus.SUPERSEDED]
    done = [key for key in wanted if state.walk.status(key) is TaskStatus.SUCCEEDED]
    missing = [key for key in wanted if state.walk.status(key) is not TaskStatus.SUCCEEDED]
    account = f" {len(done)} of {len(done) + len(missing)} tasks succeeded"
    account += f" ({_named(done)})." if done else "."
    return account + (f" Not reached: {_named(missing)}." if missing else "")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _named(keys: Sequence[TaskKey]) -> str:
    named = ", ".join(shortened(key, 40) for key in keys[:_MAX_NAMED])
    return named if len(keys) <= _MAX_NAMED else f"{named} and {len(keys) - _MAX_NAMED} more"
