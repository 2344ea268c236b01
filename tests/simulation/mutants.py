"""Mistakes planted in the application, each of which the simulation has to notice."""

from app.domain.board import Board
from app.domain.walk import Walk
from app.engine import loading, recorder
from app.engine.calls import Caller
from app.engine.driver import Driver
from app.engine.outcomes import Outcomes
from app.engine.recorder import Recorder
from app.engine.remedies import Remedies
from app.engine.worker import Worker
from app.storage import dispatch, steering
from app.storage.changes import Changes
from tests.simulation.planting import mutant
from tests.simulation.tool_mutants import TOOL_MUTANTS

MUTANTS = {
    # The lease and the fence.
    "the fence lets every token through": mutant(
        dispatch.fence,
        ("statement = _FENCE_ANY if token is None else _FENCE_HELD", "statement = _FENCE_ANY; bound.pop('b_token', 0)"),
    ),
    "a renewal renews nothing": mutant(
        dispatch.renew,
        ("ready_at=now_ms() + lease_ms", "ready_at=runs.c.ready_at"),
    ),
    "a claim keeps the epoch": mutant(dispatch.claim, ("epoch=runs.c.epoch + 1", "epoch=runs.c.epoch")),
    "a claim takes what is not due": mutant(dispatch.claim, (", runs.c.ready_at <= now_ms()", "")),
    "a claim takes anew what its worker drives": mutant(
        Worker._claim,
        ("- self._renewed_at > self._settings.lease_seconds / 2:", "< 0:"),
    ),
    "a release heeds no token": mutant(
        dispatch.release,
        (", runs.c.lease_token == lease.token", ""),
    ),
    # What a commit holds.
    "a result is written without its event": mutant(
        Outcomes._task_answered,
        ('changes.event("task.succeeded", task_key=key, attempt=attempt)', "pass"),
    ),
    "a result is not written": mutant(
        Outcomes._task_answered,
        ("changes.task(key, TaskStatus.SUCCEEDED, result=result)", "pass"),
    ),
    "tokens are charged twice": mutant(
        Changes.call_ended,
        ("self.input_tokens += usage.input_tokens", "self.input_tokens += 2 * usage.input_tokens"),
    ),
    "a call is sent before it is recorded": mutant(
        Driver._drive,
        ("if begins or calls or", "self._send(calls, state, group)\n        if begins or calls or"),
        ("await self._hold()\n        self._send(calls, state, group)", "await self._hold()"),
    ),
    "an outcome is forgotten when the database is away": mutant(
        Recorder._commit,
        ("may_be_written = True", "return {}"),
    ),
    "an unknown commit is written twice": mutant(
        recorder._write,
        ("if may_be_written and", "if False and"),
    ),
    "an unknown commit is taken for written": mutant(
        recorder._written_before,
        ("if row.batch_id == batch_id", ""),
    ),
    # Taking over.
    "a take-over leaves open calls open": mutant(
        loading._take_up,
        ("if call.status is CallStatus.OPEN:", "if call.status is CallStatus.OPEN:\n        return"),
    ),
    "a take-over charges nothing for lost calls": mutant(
        loading._take_up,
        ("CallStatus.LOST, usage=call.reserved,", "CallStatus.LOST,"),
    ),
    "a take-over repeats what has succeeded": mutant(
        loading._walk_task,
        ("status=task.status", "status=TaskStatus.PENDING if task.status is TaskStatus.SUCCEEDED else task.status"),
    ),
    "a retry repeats what has succeeded": mutant(
        steering.retry_run,
        (
            "again = status == TaskStatus.CANCELLED or",
            "again = status in (TaskStatus.CANCELLED, TaskStatus.SUCCEEDED) or",
        ),
    ),
    # What clients and people want.
    "a cancel is ignored": mutant(
        Driver._tell_of_stops,
        ("if self._stop is StopRequest.CANCEL:", "if False:"),
    ),
    "a pause is ignored": mutant(
        Driver._tell_of_stops,
        ("state.walk.pause(self._stop is StopRequest.PAUSE)", "pass"),
    ),
    "a finished run is resumed": mutant(
        steering.request_resume,
        ("if run.status is not RunStatus.PAUSED and", "if run.status is RunStatus.RUNNING and"),
        ("if run.status is RunStatus.PAUSED:", "if run.status is not RunStatus.RUNNING:"),
    ),
    "an answer to a review is lost": mutant(
        Driver._take_answers,
        ("if known is not None and", "if False and"),
    ),
    "a run stands still although somebody wants it to go on": mutant(
        Driver._park,
        ("parked = flags.stop_requested is expected and flags.answers <= state.answers", "parked = True"),
    ),
    # The walk.
    "a task starts before its dependencies": mutant(
        Board._start_if_ready,
        ("self._waits_for[key] == 0", "self._waits_for[key] <= 1"),
    ),
    "a replan leaves what it replaces to be started": mutant(
        Walk.replanned,
        ("self._tasks.supersede(superseded)", "pass"),
    ),
    "a replan does not say what it replaces": mutant(
        Remedies.store,
        ("for key in plan.superseded:", "for key in ():"),
    ),
    "a place is never given back": mutant(Driver._call_ended, ("self._shop.places.give_back()", "pass")),
    "a fault is not heard of": mutant(Caller.send, ("came_back(Faulted(call, error))", "pass")),
    # Tools.
    **TOOL_MUTANTS,
}
