"""Named points in a worker at which its process kills or stops itself: functions of the app, wrapped from here.

By hand, in the environment of a worker: `python -m tests.points POINT` runs `planwave worker` until it gets there.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.status import CallStatus, RunStatus, Seat, ToolCallStatus
from app.domain.steps import CutCalls
from app.engine import driver, recorder, worker
from app.engine.calls import Answered, Call, Outcome
from app.engine.outcomes import Outcomes
from app.engine.tooling import ToolOutcome, ToolReturned, ToolSending
from app.storage import database
from app.storage import writing as stored
from app.storage.changes import Changes

# Whose functions are replaced.
_changes: Any = stored
_database: Any = database
_driver: Any = driver
_recorder: Any = recorder
_worker: Any = worker

Wanted = Callable[[Changes], bool]
"""Whether a commit is the one to be hit."""

POISON = "This answer is poison."
HIT = "reached the point: "


def hit(point: str, number: signal.Signals = signal.SIGKILL) -> None:
    """End, or stop, this process here, and say so in its log first."""
    os.write(2, f"{HIT}{point}\n".encode())
    # To this very thread: with the signal at the whole process, it could go on until another thread has seen to it.
    signal.pthread_kill(threading.get_ident(), number)


def was_hit(log: str, point: str) -> bool:
    """Whether a process with this log got there."""
    return f"{HIT}{point}\n" in log


# Which commit.


def _opens_a_task(changes: Changes) -> bool:
    return any(call["seat"] is Seat.EXECUTOR for call in changes._new_calls)


def _ends_a_task(changes: Changes) -> bool:
    return any(type_ == "task.succeeded" for type_, *_ in changes._events)


def _plans(generation: int) -> Wanted:
    return lambda changes: any(plan.generation == generation for plan in changes.plans)


def _takes_over(changes: Changes) -> bool:
    return any(call["status"] is CallStatus.LOST for call in changes._ended_calls)


def _schedules_a_retry(changes: Changes) -> bool:
    return any(type_ == "task.retry_scheduled" for type_, *_ in changes._events)


def _closes_a_review(changes: Changes) -> bool:
    return bool(changes._closed_reviews)


def _asks_for(step: int) -> Wanted:
    """Of a run with one task, whose steps are the run's calls."""
    return lambda changes: any(call["number"] == step for call in changes._new_calls)


def _opens_tools_of(step: int) -> Wanted:
    def wanted(changes: Changes) -> bool:
        new = changes._new_tool_calls.values()
        return any(call["step"] == step and call["status"] is ToolCallStatus.OPEN for call in new)

    return wanted


def _ends_a_tool_of(step: int) -> Wanted:
    numbers: set[int] = set()

    def wanted(changes: Changes) -> bool:
        numbers.update(number for number, call in changes._new_tool_calls.items() if call["step"] == step)
        return any(call["b_number"] in numbers for call in changes._ended_tool_calls)

    return wanted


def _ends_as(status: RunStatus) -> Wanted:
    return lambda changes: changes.over and changes.status is status


# Where in it.


def _before_commit_is_asked(wanted: Wanted, point: str) -> None:
    """The changes are known to this process alone."""
    commit = recorder.Recorder.commit

    @wraps(commit)
    async def hit_first(self: recorder.Recorder, changes: Changes) -> Any:
        if wanted(changes):
            hit(point)
        return await commit(self, changes)

    _recorder.Recorder.commit = hit_first


def _within_transaction(wanted: Wanted, point: str) -> None:
    """Everything is written, and nothing committed."""
    for module in (recorder, driver):
        _wrap_write(module, wanted, point)


def _wrap_write(module: Any, wanted: Wanted, point: str) -> None:
    write = module.write

    def hit_after(connection: sa.Connection, batch: Iterable[Changes], **more: Any) -> Any:
        batch = list(batch)
        passed = write(connection, batch, **more)
        if any(wanted(changes) for changes in batch):
            hit(point)
        return passed

    module.write = hit_after


def _within_the_plans_rows(wanted: Wanted, point: str) -> None:
    """The plan and its tasks are written, what depends on what is not."""
    add_plan, write = stored.Rows.add_plan, stored.Rows.write
    marked: list[stored.Rows] = []

    def noted(self: stored.Rows, tenant_id: Any, run_id: Any, plan: Any, now: int) -> None:
        changes = Changes(tenant_id=tenant_id, run_id=run_id, token=None, plans=[plan])
        if wanted(changes):
            marked.append(self)
        add_plan(self, tenant_id, run_id, plan, now)

    def hit_halfway(self: stored.Rows, connection: sa.Connection) -> None:
        if self in marked:
            _changes._STATEMENTS["dependencies"].write = lambda *_: hit(point)
        write(self, connection)

    _changes.Rows.add_plan = noted
    _changes.Rows.write = hit_halfway


def _after_commit(wanted: Wanted, point: str, *, number: signal.Signals = signal.SIGKILL) -> None:
    """It is durable, and neither the driver nor any client has been told."""
    answer = recorder.Recorder._answer

    def hit_first(self: recorder.Recorder, waiting: Any, fenced: Any) -> None:
        if wanted(waiting.changes):
            hit(point, number)
        answer(self, waiting, fenced)

    _recorder.Recorder._answer = hit_first


def _before_sending(wanted: Callable[[Call | ToolSending], bool], point: str) -> None:
    """A call is recorded, and not sent."""
    send = driver.Driver._send

    def hit_first(self: driver.Driver, calls: Sequence[Call | ToolSending], *more: Any) -> None:
        if any(wanted(call) for call in calls):
            hit(point)
        send(self, calls, *more)

    _driver.Driver._send = hit_first


def _of_a_task(call: Call | ToolSending) -> bool:
    return isinstance(call, Call) and call.seat is Seat.EXECUTOR


def _of_model(step: int) -> Callable[[Call | ToolSending], bool]:
    return lambda call: isinstance(call, Call) and call.number == step


def _of_tool(step: int) -> Callable[[Call | ToolSending], bool]:
    return lambda call: isinstance(call, ToolSending) and call.call.step == step


def _on_outcome(wanted: Callable[[Outcome | ToolOutcome], bool], point: str) -> None:
    """It is here, and nothing has been made of it."""
    take_in = Outcomes.take_in

    def hit_first(self: Outcomes, outcome: Outcome | ToolOutcome, changes: Changes) -> None:
        if wanted(outcome):
            hit(point)
        take_in(self, outcome, changes)

    Outcomes.take_in = hit_first  # type: ignore[method-assign]


def _on_answer(seat: Seat, point: str, *, holds: str = "") -> None:
    def wanted(outcome: Outcome | ToolOutcome) -> bool:
        return isinstance(outcome, Answered) and outcome.call.seat is seat and holds in outcome.answer.content

    _on_outcome(wanted, point)


def _answers(step: int) -> Callable[[Outcome | ToolOutcome], bool]:
    return lambda outcome: isinstance(outcome, Answered) and outcome.call.number == step


def _returns(step: int) -> Callable[[Outcome | ToolOutcome], bool]:
    return lambda outcome: isinstance(outcome, ToolReturned) and outcome.sending.call.step == step


def _on_cutting(point: str) -> None:
    """A cancel has been heard, and the calls in flight are about to be cut."""
    steps = driver.Driver._steps

    def hit_after(self: driver.Driver, *given: Any) -> Any:
        found = steps(self, *given)
        if any(isinstance(step, CutCalls) for step in found):
            hit(point)
        return found

    _driver.Driver._steps = hit_after


def _after_claim(point: str) -> None:
    """A run is leased, and nothing of it is loaded."""
    _worker.Worker._start = lambda *_: hit(point)


def _within(modules: Sequence[Any], function: str, point: str) -> None:
    """A statement of dispatch is executed, and not committed."""
    for module in modules:
        _wrap_statement(module, function, point)


def _wrap_statement(module: Any, function: str, point: str) -> None:
    execute = getattr(module, function)

    async def hit_after(connection: AsyncConnection, *given: Any, **more: Any) -> Any:
        done = await execute(connection, *given, **more)
        if done:
            hit(point)
        return done

    setattr(module, function, hit_after)


def _stop_before_writing(point: str) -> None:
    """Stand still just before the transaction of a task's outcome, once; say of what the fence then refuses.

    On SQLite no other transaction of this process can be under way there: one that is would keep everybody waiting.
    """
    write_now = _database.Database._write_now
    stopped: list[str] = []

    def write_late(self: database.Database, do: Any) -> Any:
        if not stopped and any(_ends_a_task(waiting.changes) for waiting in do.args[0]):
            stopped.append(point)
            hit(point, signal.SIGSTOP)
        return write_now(self, do)

    _database.Database._write_now = write_late
    _tell_of_fenced(point)


def _tell_of_fenced(_point: str) -> None:
    """End nothing: say of each run that the fence refused a write of."""
    write = _recorder.write

    def telling(connection: sa.Connection, batch: Iterable[Changes], **more: Any) -> Any:
        batch = list(batch)
        passed = write(connection, batch, **more)
        for changes in batch:
            if changes.run_id not in passed:
                os.write(2, f"{HIT}{FENCED}{changes.run_id}\n".encode())
        return passed

    _recorder.write = telling


FENCED = "fenced "
STOPPED_BEFORE_TOOLS = "stops when the tools of step 3 are recorded and not called"

KILLS: Mapping[str, Callable[[str], None]] = {
    "after the claim": _after_claim,
    "within the claim": partial(_within, [worker], "claim"),
    "within a renewal": partial(_within, [worker], "renew"),
    "within a release": partial(_within, [worker, driver], "release"),
    "before a call is recorded": partial(_before_commit_is_asked, _opens_a_task),
    "while a call is recorded": partial(_within_transaction, _opens_a_task),
    "before a recorded call is sent": partial(_before_sending, _of_a_task),
    "after a plan has come": partial(_on_answer, Seat.PLANNER),
    "within a plan's rows": partial(_within_the_plans_rows, _plans(0)),
    "after a plan is stored": partial(_after_commit, _plans(0)),
    "after a result has come": partial(_on_answer, Seat.EXECUTOR),
    "while a result is recorded": partial(_within_transaction, _ends_a_task),
    "after a result is recorded": partial(_after_commit, _ends_a_task),
    "while a retry is scheduled": partial(_within_transaction, _schedules_a_retry),
    "after a new plan has come": partial(_on_answer, Seat.RECOVERY),
    "within a new plan's rows": partial(_within_the_plans_rows, _plans(1)),
    "while a new plan is stored": partial(_within_transaction, _plans(1)),
    "after a new plan is stored": partial(_after_commit, _plans(1)),
    "while the run is parked": partial(_within_transaction, lambda changes: changes.parked),
    "while a person's answer is carried out": partial(_within_transaction, _closes_a_review),
    "while a cancel cuts calls": _on_cutting,
    "while a cancel is recorded": partial(_within_transaction, _ends_as(RunStatus.CANCELLED)),
    "after the synthesis has come": partial(_on_answer, Seat.SYNTHESIZER),
    "while the end is recorded": partial(_within_transaction, _ends_as(RunStatus.SUCCEEDED)),
    "after the end is recorded": partial(_after_commit, _ends_as(RunStatus.SUCCEEDED)),
    "within the first commit of a take-over": partial(_within_transaction, _takes_over),
}
"""Where a process kills itself."""

STEPS = 6
"""Of the loop of a run with a single task: all but the last ask for tools."""


def _within_step(step: int) -> dict[str, Callable[[str], None]]:
    asking: dict[str, Callable[[str], None]] = {
        "before its call is recorded": partial(_before_commit_is_asked, _asks_for(step)),
        "before its call is sent": partial(_before_sending, _of_model(step)),
        "after its answer has come": partial(_on_outcome, _answers(step)),
    }
    acting: dict[str, Callable[[str], None]] = {
        "while its answer is recorded": partial(_within_transaction, _opens_tools_of(step)),
        "before its tools are called": partial(_before_sending, _of_tool(step)),
        "after a tool has acted": partial(_on_outcome, _returns(step)),
        "while a tool's result is recorded": partial(_within_transaction, _ends_a_tool_of(step)),
        "after a tool's result is recorded": partial(_after_commit, _ends_a_tool_of(step)),
    }
    return asking if step == STEPS else asking | acting


LOOP_KILLS: Mapping[str, Callable[[str], None]] = {
    f"in step {step}, {where}": arms for step in range(1, STEPS + 1) for where, arms in _within_step(step).items()
}
"""Where a process kills itself in such a loop."""

OTHERS: Mapping[str, Callable[[str], None]] = {
    "poison": partial(_on_answer, Seat.EXECUTOR, holds=POISON),
    "stops before a result is recorded": _stop_before_writing,
    STOPPED_BEFORE_TOOLS: partial(_after_commit, _opens_tools_of(3), number=signal.SIGSTOP),
    "tells of fenced writes": _tell_of_fenced,
}


def arm(point: str) -> None:
    """From now on this process does there as the point says."""
    {**KILLS, **LOOP_KILLS, **OTHERS}[point](point)


if __name__ == "__main__":
    from app.cli import main

    arm(sys.argv[1])
    sys.argv = ["planwave", "worker"]
    main()
