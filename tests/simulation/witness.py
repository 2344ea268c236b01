"""Who watches a simulation: what workers log and claim, what the model was asked, and what is stored at the end."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch
from uuid import UUID

import structlog

from app.domain.ids import RunId
from app.engine import driver, worker
from app.storage import dispatch
from app.storage.dispatch import Lease
from app.storage.doctor import examine
from tests.simulation.loop import PROCESS, VirtualLoop
from tests.simulation.model import Asked, SimulatedModel
from tests.simulation.process import WorkerProcess
from tests.simulation.storage import Storage
from tests.simulation.trace import Trace
from tests.stored import T

Row = Mapping[str, Any]
_EXPECTED_ERRORS = ("run given up", "tool broke")


class Witness:
    """Collects `problems`, and counts what happened."""

    def __init__(
        self, loop: VirtualLoop, storage: Storage, model: SimulatedModel, trace: Trace, *, lease_seconds: float
    ) -> None:
        self._loop, self._storage, self._model, self._trace = loop, storage, model, trace
        self._lease_seconds = lease_seconds
        self._holders: dict[tuple[RunId, str], WorkerProcess] = {}
        self._epochs: set[tuple[RunId, int]] = set()
        self._is_over = False
        self.problems: list[str] = []
        self.seen: Counter[str] = Counter()
        model.heard = self._call_is_recorded
        loop.set_exception_handler(self._unhandled)

    def look_away(self) -> None:
        """It is over: what comes of clearing up is nobody's business."""
        self._is_over = True

    def problem(self, what: str) -> None:
        """Something that must not be."""
        if self._is_over:
            return
        self._trace.note(f"PROBLEM {what}")
        self.problems.append(what)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every claim and release, and at the log."""
        processors = structlog.get_config()["processors"]
        before = list(processors)
        processors[:] = [self._logged]
        with ExitStack() as stack:
            stack.callback(processors.__setitem__, slice(None), before)
            stack.enter_context(patch.object(worker, "claim", self._watched_claim(dispatch.claim)))
            stack.enter_context(patch.object(worker, "Driver", self._watched_driver(driver.Driver)))
            for module in (worker, driver):
                stack.enter_context(patch.object(module, "release", self._watched_release(dispatch.release)))
            yield

    # While it runs.

    def _logged(self, logger: Any, method: str, entry: Any) -> Any:
        if self._is_over:
            raise structlog.DropEvent
        event = entry["event"]
        told = {name: str(entry[name]).splitlines()[0] for name in ("reason", "takeovers") if name in entry}
        said = " ".join(f"{name}={value}" for name, value in told.items())
        self._trace.note(f"{method}: {event} {said}".rstrip())
        self.seen[event] += 1
        if method in ("error", "critical", "exception") and event not in _EXPECTED_ERRORS:
            text = structlog.processors.format_exc_info(logger, method, entry).get("exception", "")
            self.problem(f"{PROCESS.get()} logged: {event} {text}")
        raise structlog.DropEvent

    def _unhandled(self, loop: Any, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        process: Any = getattr(context.get("task") or context.get("future"), "get_loop", None) and PROCESS.get()
        if process is None or process.is_up:
            self.problem(f"unhandled: {context.get('message')}: {error!r}")

    def _watched_claim(self, claim: Any) -> Any:
        async def watched(connection: Any, **more: Any) -> list[Lease]:
            query = "SELECT id, lease_token FROM runs WHERE lease_token IS NOT NULL"
            held = dict(self._storage.driver.execute(query).fetchall())
            leases: list[Lease] = await claim(connection, **more)
            for lease in leases:
                process: Any = PROCESS.get()
                token = held.get(lease.run_id.hex)
                self._trace.note(f"claims {self._trace.short(lease.run_id)} epoch {lease.epoch}")
                if token is not None:
                    self.seen["take-over"] += 1
                    self._was_lost(lease.run_id, token, to=process)
                self._holders[lease.run_id, lease.token.hex] = process
            return leases

        return watched

    def _was_lost(self, run_id: RunId, token: str, *, to: WorkerProcess) -> None:
        """A run may only be taken from a worker that died, or had some trouble; nobody takes it from themselves."""
        holder = self._holders.get((run_id, token))
        if holder is None or not holder.drives(run_id, UUID(token)):
            return
        if holder is to and not self.seen["stall"]:  # who stands still holds up everybody
            self.problem(f"{self._trace.short(run_id)} is taken anew by {holder}, which drives it")
        if holder.was_well(2 * self._lease_seconds):
            self.problem(f"{self._trace.short(run_id)} was taken from {holder}, which was well")

    def _watched_driver(self, make: Any) -> Any:
        def watched(lease: Lease, *more: Any) -> Any:
            if (lease.run_id, lease.epoch) in self._epochs:
                self.problem(f"{self._trace.short(lease.run_id)} is driven again in epoch {lease.epoch}")
            self._epochs.add((lease.run_id, lease.epoch))
            return make(lease, *more)

        return watched

    def _watched_release(self, release: Any) -> Any:
        async def watched(connection: Any, lease: Lease, **more: Any) -> bool:
            query = "SELECT lease_token FROM runs WHERE id = ?"
            (token,) = self._storage.driver.execute(query, (lease.run_id.hex,)).fetchone()
            released: bool = await release(connection, lease, **more)
            if released and token != lease.token.hex:
                self.problem(f"{PROCESS.get()} released {self._trace.short(lease.run_id)}, which another one held")
            return released

        return watched

    def _call_is_recorded(self, asked: Asked) -> None:
        """A call is recorded before it is sent."""
        if self._storage.driver.in_transaction:
            return  # somebody is writing: not all that can be seen is there to stay
        sent = sum(other.question == asked.question for other in self._model.asked)
        if sent > len(self._rows_of(asked)):
            self.problem(f"{asked.seat} {asked.task_key} of {self._trace.short(asked.run_id)} was sent unrecorded")

    def _rows_of(self, asked: Asked) -> list[Any]:
        query = "SELECT 1 FROM calls WHERE tenant_id = ? AND run_id = ? AND seat = ?"
        values = [T, asked.run_id.hex, asked.seat]
        if asked.seat == "executor":
            query, values = query + " AND task_key = ?", [*values, str(asked.task_key)]
        elif asked.seat == "recovery":  # a replan for several tasks names none of them to the model
            return [1] * 10_000
        return self._storage.driver.execute(query, values).fetchall()

    # At the end, and in between.

    async def look(self, connection: Any) -> None:
        """All that is true of every run at every moment."""
        for (run_id,) in self._storage.driver.execute("SELECT id FROM runs ORDER BY id").fetchall():
            for finding in await examine(connection, T, RunId(UUID(run_id))):
                self.problem(f"{self._trace.short(finding.run_id)} {finding.check}: {finding.message}")

    def calls_add_up(self) -> None:
        """What the model was asked against what is stored of it."""
        asked: dict[tuple[str, str], list[Asked]] = {}
        for call in self._model.asked:
            if call.seat == "executor":
                asked.setdefault((call.run_id.hex, str(call.task_key)), []).append(call)
        query = (
            "SELECT c.run_id, c.task_key, c.number, c.status, c.error IS NOT NULL AS spoiled,"
            " c.answer IS NULL AND a.status = 'succeeded' AS is_result, c.input_tokens, c.reserved_input_tokens"
            " FROM calls c JOIN attempts a"
            " ON a.run_id = c.run_id AND a.task_key = c.task_key AND a.number = c.attempt"
            " WHERE seat = 'executor' ORDER BY c.run_id, c.number"
        )
        cursor = self._storage.driver.execute(query)
        names = [column[0] for column in cursor.description]
        rows: dict[tuple[str, str], list[Row]] = {}
        for values in cursor.fetchall():
            row = dict(zip(names, values, strict=True))
            rows.setdefault((row["run_id"], row["task_key"]), []).append(row)
        epochs = dict(self._storage.driver.execute("SELECT id, epoch FROM runs").fetchall())
        for question in asked.keys() | rows.keys():
            for wrong in _differences(asked.get(question, []), rows.get(question, []), epochs[question[0]]):
                self.problem(f"{self._trace.short(RunId(UUID(question[0])))} {question[1]}: {wrong}")

    def nothing_was_lost(self, *, but_of: set[RunId]) -> None:
        """For a simulation in which every worker kept its runs: what the model has answered is recorded."""
        for run_id, number in self._storage.driver.execute("SELECT run_id, number FROM calls WHERE status = 'lost'"):
            run = RunId(UUID(run_id))
            if run not in but_of:
                self.problem(f"{self._trace.short(run)}: the outcome of call {number} was lost, and its worker was not")


def _differences(asked: list[Asked], rows: list[Row], epoch: int) -> Iterator[str]:
    """What is wrong with the calls of one task."""
    well = [row for row in rows if row["status"] == "answered" and not row["spoiled"]]
    bad = [row for row in rows if row["spoiled"]]
    lost = [row for row in rows if row["status"] == "lost"]
    if len(asked) > len(rows):
        yield f"{len(asked)} calls were sent, {len(rows)} are recorded"
    if len(well) > sum(call.went_well is True for call in asked):
        yield f"{len(well)} answers are recorded, which the model did not give"
    if len(bad) > sum(call.went_well is False for call in asked):
        yield f"{len(bad)} faults are recorded, which the model did not make"
    results = [row for row in well if row["is_result"]]
    if results and rows[-1]["number"] > results[0]["number"]:
        yield f"call {rows[-1]['number']} was made after it had succeeded with call {results[0]['number']}"
    if len(lost) > epoch:  # the last of them may have been closed by a client
        yield f"{len(lost)} calls were lost under {epoch} leases"
    for row in lost:
        if row["input_tokens"] != row["reserved_input_tokens"]:
            yield f"lost call {row['number']} is not charged as reserved"
