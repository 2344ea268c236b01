"""Who watches the tools of a simulation: what they were asked and did, and what the model is shown of it."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from uuid import UUID

from app.domain.ids import RunId
from app.domain.status import Approval, Decision, SideEffects
from app.engine.calls import Call, Caller
from app.tools.arguments import canonical
from tests.simulation.asking import steps_of
from tests.simulation.storage import Storage
from tests.simulation.tools import KINDS, SimulatedTools, Use, What
from tests.simulation.trace import Trace

_ASKS = (Approval.TOOLS, Approval.PLAN_AND_TOOLS)
_SENDS = (Decision.APPROVE, Decision.RETRY)


class ToolWitness:
    """Tells of what must not be, and counts what happened."""

    def __init__(
        self,
        storage: Storage,
        tools: SimulatedTools,
        trace: Trace,
        *,
        problem: Callable[[str], None],
        seen: Counter[str],
    ) -> None:
        self._storage, self._tools, self._trace = storage, tools, trace
        self._problem, self._seen = problem, seen
        self._keys: dict[What, str] = {}
        self._whats: dict[str, What] = {}
        self._acts: Counter[What] = Counter()
        self._shown: dict[tuple[RunId, str, int, bool], list[str]] = defaultdict(list)
        tools.acted = self._acted

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every request to the model that holds a loop."""
        send = Caller.send
        witness = self

        async def watched(self: Caller, call: Call, run_id: RunId, came_back: Any) -> None:
            if call.offers:
                witness._asked(call, run_id)
            await send(self, call, run_id, came_back)

        with patch.object(Caller, "send", watched):
            yield

    # While it runs. What somebody is about to write may be undone: then nothing is said.

    def called(self, use: Use) -> None:
        """A call has come in."""
        self._seen[f"called {KINDS[use.tool]}"] += 1
        if self._keys.setdefault(use.what, use.key) != use.key:
            self._tell(use, "came with another key than before")
        if self._whats.setdefault(use.key, use.what) != use.what:
            self._tell(use, "came with the key of another call")
        if self._storage.driver.in_transaction:
            return
        (task_tools,) = self._one("SELECT tools FROM tasks WHERE run_id = ? AND key = ?", use.run_id.hex, use.task_key)
        (options,) = self._one("SELECT options FROM runs WHERE id = ?", use.run_id.hex)
        if use.tool not in json.loads(task_tools) or use.tool not in json.loads(options)["tools"]:
            self._tell(use, "is called, and is not the task's")
        (recorded,) = self._one(
            "SELECT count(*) FROM tool_calls WHERE run_id = ? AND idempotency_key = ? AND started_at IS NOT NULL",
            use.run_id.hex,
            use.key,
        )
        if recorded < sum(other.what == use.what for other in self._tools.uses):
            self._tell(use, "was sent unrecorded")
        if self._is_asked_about(use) and not self._leave_given(use):
            self._tell(use, "was sent unapproved")

    def _acted(self, use: Use) -> None:
        self._acts[use.what] += 1
        self._seen[f"acted {KINDS[use.tool]}"] += 1
        if KINDS[use.tool] is not SideEffects.ONCE:
            return
        allowed = self._leave_given(use) + (0 if self._is_asked_about(use) else 1)
        if self._acts[use.what] > 1:
            self._seen["acted once more, as somebody wanted"] += 1
        if self._acts[use.what] > allowed:
            self._tell(use, f"acted {self._acts[use.what]} times, and {allowed} were wanted")

    def _is_asked_about(self, use: Use) -> bool:
        """Whether a person is to approve of it first."""
        (options,) = self._one("SELECT options FROM runs WHERE id = ?", use.run_id.hex)
        return KINDS[use.tool] is not SideEffects.NONE and json.loads(options)["approval"] in _ASKS

    def _leave_given(self, use: Use) -> int:
        """How often a person has said that it is to be sent."""
        query = (
            "SELECT question, answer FROM reviews WHERE run_id = ? AND task_key = ? AND kind = 'tool_call'"
            " AND answered_at IS NOT NULL"
        )
        rows = self._storage.driver.execute(query, (use.run_id.hex, use.task_key)).fetchall()
        given = 0
        for question, answer in rows:
            shown = json.loads(question)["tool_call"]
            what = use.run_id, use.task_key, shown["tool"], canonical(shown["arguments"])
            given += what == use.what and json.loads(answer)["decision"] in _SENDS
        return given

    def _asked(self, call: Call, run_id: RunId) -> None:
        """A request to the model holds all steps that are recorded, each as it was before."""
        key, attempt = call.of_task
        who = f"call {call.number} of {self._trace.short(run_id)} {key}"
        steps = [
            repr([(m.content, [(c.name, c.arguments) for c in m.tool_calls]) for m in step])
            for step in steps_of(call.request)
        ]
        self._seen["steps asked for" if steps else "loops begun"] += 1
        shown = self._shown[run_id, str(key), attempt, call.in_words]
        for n, (now, before) in enumerate(zip(steps, shown, strict=False)):
            if now != before:
                self._problem(f"{who} shows step {n} in another way:\n    {before}\n    {now}")
        shown += steps[len(shown) :]
        if self._storage.driver.in_transaction:
            return
        of_task = (run_id.hex, str(key))
        (status,) = self._one("SELECT status FROM calls WHERE run_id = ? AND number = ?", run_id.hex, call.number)
        if status != "open":
            return  # another worker has taken the run over, before this one could send it
        (recorded,) = self._one(
            "SELECT count(*) FROM calls JOIN tasks ON tasks.run_id = calls.run_id AND tasks.key = calls.task_key"
            " WHERE calls.run_id = ? AND task_key = ? AND seat = 'executor' AND number < ?"
            " AND calls.status = 'answered' AND calls.error IS NULL AND answer IS NOT NULL"
            " AND attempt > attempts_before",
            *of_task,
            call.number,
        )
        if len(steps) != recorded:
            self._problem(f"{who} holds {len(steps)} steps, and {recorded} are recorded")

    # At the end, and in between.

    def look(self) -> None:
        """All that is true at every moment."""
        query = "SELECT id, tool_calls, budget FROM runs ORDER BY id"
        for run_id, count, budget in self._storage.driver.execute(query).fetchall():
            limit = json.loads(budget).get("max_tool_calls")
            if limit is not None and count > limit:
                self._problem(f"{self._short(run_id)} has made {count} tool calls, and {limit} are allowed")

    def calls_add_up(self) -> None:
        """What is stored of the calls against what tools were asked, and gave."""
        gave = self._tools.gave()
        sent = Counter(use.what for use in self._tools.uses)
        recorded: Counter[What] = Counter()
        for row in self._rows():
            what = self._what(row)
            if row["started_at"] is None or what is None:
                continue
            recorded[what] += 1
            if row["status"] == "returned" and row["result"] not in gave.get(what, ()):
                self._problem(f"{self._named(row)} has returned {row['result']}, which the tool did not give")
            if row["status"] == "failed" and row["side_effects"] == "once" and self._is_silence(row["error"]):
                self._problem(f"{self._named(row)} is said to have failed, and the tool has said nothing")
        for what, times in sent.items():
            if times > recorded[what]:
                self._problem(f"{what[1:]} of {self._short(what[0].hex)}: {times} sent, {recorded[what]} recorded")
        self._every_sending_was_approved()

    def nothing_was_lost(self, *, but_of: set[RunId]) -> None:
        """For a simulation in which every worker kept its runs; a tool that says nothing is known by its error."""
        for row in self._rows():
            unheard = row["side_effects"] == "once" and row["error"] is not None
            if row["status"] == "lost" and not unheard and RunId(UUID(row["run_id"])) not in but_of:
                self._problem(f"{self._named(row)} was lost, and its worker was not")

    def _every_sending_was_approved(self) -> None:
        """Each by itself, where a person is asked; but for those that take the place of one that was lost."""
        wanted = {
            (run_id, number)
            for run_id, number, answer in self._storage.driver.execute(
                "SELECT run_id, tool_call, answer FROM reviews WHERE kind = 'tool_call' AND answered_at IS NOT NULL"
            ).fetchall()
            if json.loads(answer)["decision"] in _SENDS
        }
        asked = {
            run_id
            for run_id, options in self._storage.driver.execute("SELECT id, options FROM runs").fetchall()
            if json.loads(options)["approval"] in _ASKS
        }
        lost: set[tuple[str, int, int]] = set()
        for row in self._rows():
            place = row["run_id"], row["step"], row["position"]
            is_once = row["side_effects"] == SideEffects.ONCE
            if place in lost and is_once and row["started_at"] is not None:
                needs = True
            else:
                needs = row["run_id"] in asked and row["side_effects"] != SideEffects.NONE and place not in lost
            if needs and row["started_at"] is not None and (row["run_id"], row["number"]) not in wanted:
                self._problem(f"{self._named(row)} was sent, and nobody had said so")
            if row["status"] == "lost":
                lost.add(place)

    # Within.

    def _is_silence(self, error: str) -> bool:
        """Whether it tells of a tool that hung or burst; a person's word that a call has failed closes it."""
        told = json.loads(error)
        return told["kind"] in ("timeout", "tool_failed") and not told.get("closed")

    def _rows(self) -> list[Mapping[str, Any]]:
        cursor = self._storage.driver.execute("SELECT * FROM tool_calls ORDER BY run_id, number")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]

    def _what(self, row: Mapping[str, Any]) -> What | None:
        if row["idempotency_key"] is None:
            return None
        arguments = canonical(json.loads(row["arguments"]))
        return RunId(UUID(row["run_id"])), row["task_key"], row["tool"], arguments

    def _one(self, query: str, *values: Any) -> Any:
        return self._storage.driver.execute(query, values).fetchone()

    def _tell(self, use: Use, what: str) -> None:
        self._problem(f"{use} of {self._trace.short(use.run_id)} {what}")

    def _named(self, row: Mapping[str, Any]) -> str:
        return f"tool call {row['number']} of {self._short(row['run_id'])}"

    def _short(self, run_id: str) -> str:
        return self._trace.short(RunId(UUID(run_id)))
