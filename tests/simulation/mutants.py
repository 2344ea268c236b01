"""Mistakes planted in the application, each of which the simulation has to notice.

A mutant is an edit of one function's source. The function's code is exchanged, so that everybody who knows the function
has the mistake; an edit that no longer fits the source fails.
"""

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from app.domain.board import Board
from app.domain.walk import Walk
from app.engine import recorder, state
from app.engine.calls import Caller
from app.engine.driver import Driver
from app.engine.outcomes import Outcomes
from app.engine.recorder import Recorder
from app.engine.remedies import Remedies
from app.engine.worker import Worker
from app.storage import dispatch, steering
from app.storage.changes import Changes


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """`function` with each first text of `edits` replaced by its second."""

    function: Callable[..., Any]
    edits: Sequence[tuple[str, str]]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """With the mistake in place."""
        function, right = self._innermost, self.code
        function.__code__ = self._wrong(function)
        try:
            yield
        finally:
            function.__code__ = right

    @property
    def code(self) -> CodeType:
        """Of the function, as it is now."""
        code: CodeType = self._innermost.__code__
        return code

    @property
    def _innermost(self) -> Any:
        return inspect.unwrap(self.function)

    def _wrong(self, function: FunctionType) -> CodeType:
        source = textwrap.dedent(inspect.getsource(function))
        lines = source.splitlines()
        begin = next(n for n, line in enumerate(lines) if line.startswith(("def ", "async def ")))
        source = "from __future__ import annotations\n" + "\n".join(lines[begin:])
        for right, wrong in self.edits:
            assert source.count(right) == 1, f"{function.__qualname__} has {source.count(right)} times: {right}"
            source = source.replace(right, wrong)
        made: dict[str, Any] = {}
        exec(source, function.__globals__, made)
        code: CodeType = made[function.__name__].__code__
        assert code.co_freevars == function.__code__.co_freevars
        return code


def _mutant(function: Any, *edits: tuple[str, str]) -> Mutant:
    return Mutant(function=function, edits=edits)


MUTANTS = {
    # The lease and the fence.
    "the fence lets every token through": _mutant(
        dispatch.fence,
        ("statement = _FENCE_ANY if token is None else _FENCE_HELD", "statement = _FENCE_ANY; bound.pop('b_token', 0)"),
    ),
    "a renewal renews nothing": _mutant(
        dispatch.renew,
        ("ready_at=now_ms() + lease_ms", "ready_at=runs.c.ready_at"),
    ),
    "a claim keeps the epoch": _mutant(dispatch.claim, ("epoch=runs.c.epoch + 1", "epoch=runs.c.epoch")),
    "a claim takes what is not due": _mutant(dispatch.claim, (", runs.c.ready_at <= now_ms()", "")),
    "a claim takes anew what its worker drives": _mutant(
        Worker._claim,
        ("- self._renewed_at > self._settings.lease_seconds / 2:", "< 0:"),
    ),
    "a release heeds no token": _mutant(
        dispatch.release,
        (", runs.c.lease_token == lease.token", ""),
    ),
    # What a commit holds.
    "a result is written without its event": _mutant(
        Outcomes._task_answered,
        ('changes.event("task.succeeded", task_key=key, attempt=attempt)', "pass"),
    ),
    "a result is not written": _mutant(
        Outcomes._task_answered,
        ("changes.task(key, TaskStatus.SUCCEEDED, result=result)", "pass"),
    ),
    "tokens are charged twice": _mutant(
        Changes.call_ended,
        ("self.input_tokens += usage.input_tokens", "self.input_tokens += 2 * usage.input_tokens"),
    ),
    "a call is sent before it is recorded": _mutant(
        Driver._drive,
        ("if begins or calls or", "self._send(calls, state, group)\n        if begins or calls or"),
        ("begins = False\n        self._send(calls, state, group)", "begins = False"),
    ),
    "an outcome is forgotten when the database is away": _mutant(
        Recorder._commit,
        ("may_be_written = True", "return {}"),
    ),
    "an unknown commit is written twice": _mutant(
        recorder._write,
        ("if may_be_written and", "if False and"),
    ),
    "an unknown commit is taken for written": _mutant(
        recorder._written_before,
        ("if row.batch_id == batch_id", ""),
    ),
    # Taking over.
    "a take-over leaves open calls open": _mutant(
        state._take_up,
        ("if call.status is CallStatus.OPEN:", "if call.status is CallStatus.OPEN:\n        return"),
    ),
    "a take-over charges nothing for lost calls": _mutant(
        state._take_up,
        ("CallStatus.LOST, usage=call.reserved,", "CallStatus.LOST,"),
    ),
    "a take-over repeats what has succeeded": _mutant(
        state._walk_task,
        ("status=task.status", "status=TaskStatus.PENDING if task.status is TaskStatus.SUCCEEDED else task.status"),
    ),
    "a retry repeats what has succeeded": _mutant(
        steering.retry_run,
        (
            "again = status == TaskStatus.CANCELLED or",
            "again = status in (TaskStatus.CANCELLED, TaskStatus.SUCCEEDED) or",
        ),
    ),
    # What clients and people want.
    "a cancel is ignored": _mutant(
        Driver._tell_of_stops,
        ("if self._stop is StopRequest.CANCEL:", "if False:"),
    ),
    "a pause is ignored": _mutant(
        Driver._tell_of_stops,
        ("state.walk.pause(self._stop is StopRequest.PAUSE)", "pass"),
    ),
    "a finished run is resumed": _mutant(
        steering.request_resume,
        ("if run.status is not RunStatus.PAUSED and", "if run.status is RunStatus.RUNNING and"),
        ("if run.status is RunStatus.PAUSED:", "if run.status is not RunStatus.RUNNING:"),
    ),
    "an answer to a review is lost": _mutant(
        Driver._take_answers,
        ("if known is not None and", "if False and"),
    ),
    "a run stands still although somebody wants it to go on": _mutant(
        Driver._park,
        ("parked = flags.stop_requested is expected and flags.answers <= state.answers", "parked = True"),
    ),
    # The walk.
    "a task starts before its dependencies": _mutant(
        Board._start_if_ready,
        ("self._waits_for[key] == 0", "self._waits_for[key] <= 1"),
    ),
    "a replan leaves what it replaces to be started": _mutant(
        Walk.replanned,
        ("self._tasks.supersede(superseded)", "pass"),
    ),
    "a replan does not say what it replaces": _mutant(
        Remedies.store,
        ("for key in plan.superseded:", "for key in ():"),
    ),
    "a place is never given back": _mutant(Driver._call_ended, ("self._shop.places.give_back()", "pass")),
    "a fault is not heard of": _mutant(Caller.send, ("came_back(Faulted(call, error))", "pass")),
}
