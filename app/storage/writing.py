"""The writing of changes: outcomes, starts, calls and their events, of one run or of many, in one transaction."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from app.domain.generation import NewPlan
from app.domain.ids import RunId, TenantId
from app.domain.status import ACTIVE, TaskStatus, ToolCallStatus
from app.storage.changes import Changes, NewEvent
from app.storage.dispatch import Fenced, fence
from app.storage.statements import Statement, in_one_go
from app.storage.tables import attempts, calls, dependencies, events, plans, reviews, runs, tasks, tool_calls


def write(connection: sa.Connection, batch: Iterable[Changes], *, batch_id: UUID | None = None) -> dict[RunId, Fenced]:
    """Write the changes of several runs in this transaction; a run that is missing from the answer was not ours.

    Runs are touched in the order of their ids, so that two writers of the same runs cannot wait for each other.
    """
    passed: dict[RunId, Fenced] = {}
    rows = Rows()
    batch = sorted(batch, key=lambda changes: changes.run_id)
    with in_one_go(connection):
        asked = [(changes, _ask_fence(connection, changes, batch_id)) for changes in batch]
        for changes, answer in asked:
            through = answer()
            if through is not None:
                passed[changes.run_id] = through
                rows.add(changes, through)
        rows.write(connection)
    for changes in batch:
        if changes.touches_reviews and changes.run_id in passed:
            connection.execute(_COUNT_REVIEWS, {"b_tenant_id": changes.tenant_id, "b_run_id": changes.run_id})
    return passed


def _ask_fence(connection: sa.Connection, changes: Changes, batch_id: UUID | None) -> Callable[[], Fenced | None]:
    return fence(
        connection,
        tenant_id=changes.tenant_id,
        run_id=changes.run_id,
        token=changes.token,
        values={
            "events": len(changes._events),
            "status": changes.status,
            "generation": changes.plans[-1].generation if changes.plans else None,
            "progress": changes.progress,
            "result": changes.result,
            "error": changes.error,
            "stop_requested": changes.stop_requested,
            "llm_calls": changes.llm_calls,
            "tool_calls": changes.tool_calls,
            "input_tokens": changes.input_tokens,
            "output_tokens": changes.output_tokens,
            "cost_nano_usd": changes.cost_nano_usd,
            "budget_warned": None if changes.budget_warned is None else list(changes.budget_warned),
            "answers": changes.answers,
            "replans": changes.replans,
            "begun": changes.begun,
            "active": None if changes.status is None else changes.status in ACTIVE,
            "over": changes.over,
            "release": changes.over or changes.parked,
            "outcome": changes.has_outcome or changes.over,
            "batch_id": batch_id,
        },
    )


class Rows:
    """Rows to write in one transaction, gathered by statement."""

    def __init__(self) -> None:
        self._batches: dict[str, list[dict[str, Any]]] = {name: [] for name in _STATEMENTS}

    def write(self, connection: sa.Connection) -> None:
        """Write them all; parents before children."""
        for name, statement in _STATEMENTS.items():
            if rows := self._batches[name]:
                statement.write(connection, rows)

    def add(self, changes: Changes, fenced: Fenced) -> None:
        """All that the changes say, at the time and with the event numbers that the fence gave."""
        now = fenced.now
        run = {"tenant_id": changes.tenant_id, "run_id": changes.run_id}
        of_run = {"b_tenant_id": changes.tenant_id, "b_run_id": changes.run_id}
        to = self._batches
        for plan in changes.plans:
            self.add_plan(changes.tenant_id, changes.run_id, plan, now)
        to["tasks"] += [of_run | _task_row(task, now) for task in changes._tasks]
        to["new_attempts"] += [run | row | {"started_at": now} for row in changes._new_attempts]
        to["ended_attempts"] += [of_run | row | {"finished_at": now} for row in changes._ended_attempts]
        to["new_calls"] += [run | row | {"started_at": now} for row in changes._new_calls]
        to["ended_calls"] += [of_run | _timed(row, now) | {"finished_at": now} for row in changes._ended_calls]
        to["new_tool_calls"] += [run | _tool_row(row, now) for row in changes._new_tool_calls.values()]
        to["approved_tool_calls"] += [of_run | {"b_number": number} for number in changes._approved_tool_calls]
        to["opened_tool_calls"] += [
            of_run | {"b_number": number, "started_at": now} for number in changes._opened_tool_calls
        ]
        to["ended_tool_calls"] += [of_run | row | {"finished_at": now} for row in changes._ended_tool_calls]
        to["skip_reasons"] += [of_run | row for row in changes._skip_reasons]
        to["wordings"] += [of_run | row for row in changes._wordings]
        to["new_reviews"] += [run | row | {"opened_at": now} for row in changes._new_reviews]
        to["answered_reviews"] += [of_run | row | {"answered_at": now} for row in changes._answered_reviews]
        to["closed_reviews"] += [of_run | row | {"closed_at": now} for row in changes._closed_reviews]
        self.add_events(changes.tenant_id, changes.run_id, changes._events, last=fenced.event_seq, now=now)

    def add_events(self, tenant_id: TenantId, run_id: RunId, new: Sequence[NewEvent], *, last: int, now: int) -> None:
        """The events, numbered so that the last of them is `last`."""
        for seq, (type_, key, data) in enumerate(new, start=last - len(new) + 1):
            self._batches["events"].append(
                {
                    "tenant_id": tenant_id,
                    "run_id": run_id,
                    "seq": seq,
                    "type": type_,
                    "at": now,
                    "task_key": key,
                    "data": data,
                }
            )

    def add_plan(self, tenant_id: TenantId, run_id: RunId, plan: NewPlan, now: int) -> None:
        """A new generation with its tasks and their dependencies."""
        run = {"tenant_id": tenant_id, "run_id": run_id}
        self._batches["plans"].append(
            {
                **run,
                "generation": plan.generation,
                "reason": plan.reason,
                "parent_generation": plan.parent_generation,
                "failed_task_keys": list(plan.failed_task_keys),
                "added": [task.key for task in plan.tasks],
                "carried": list(plan.carried),
                "superseded": list(plan.superseded),
                "critical_path": list(plan.critical_path),
                "prompt_hash": plan.prompt_hash,
                "created_at": now,
            }
        )
        for task in plan.tasks:
            self._batches["new_tasks"].append(
                {
                    **run,
                    "key": task.key,
                    "position": task.position,
                    "generation": plan.generation,
                    "description": task.description,
                    "wave": task.wave,
                    "critical": task.critical,
                    "tools": list(task.tools),
                    "output_schema": task.output_schema,
                    "status": TaskStatus.PENDING,
                }
            )
            for position, dependency in enumerate(task.depends_on):
                self._batches["dependencies"].append(
                    {**run, "task_key": task.key, "depends_on": dependency, "position": position}
                )


def count_by_status(statuses: Iterable[str]) -> dict[str, int]:
    """A run's `progress`: how many tasks there are in each status, and in all that are not superseded."""
    counted = Counter(statuses)
    counts = {status.value: counted[status] for status in TaskStatus}
    return {"total": counted.total() - counts["superseded"], **counts}


_OVER = {TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.SKIPPED, TaskStatus.CANCELLED, TaskStatus.SUPERSEDED}


def _timed(row: Mapping[str, Any], now: int) -> dict[str, Any]:
    wait = row["retry_in_ms"]
    timed = {name: value for name, value in row.items() if name != "retry_in_ms"}
    return timed | {"retry_at": None if wait is None else now + wait}


def _task_row(task: Mapping[str, Any], now: int) -> dict[str, Any]:
    return _timed(task, now) | {
        "started_at": now if task["status"] == TaskStatus.RUNNING else None,
        "finished_at": now if task["status"] in _OVER else None,
    }


_SENT_OR_NOT_YET = {ToolCallStatus.ASKED, ToolCallStatus.AWAITING_REVIEW, ToolCallStatus.OPEN}


def _tool_row(row: Mapping[str, Any], now: int) -> dict[str, Any]:
    return {
        **row,
        "asked_at": now,
        "started_at": now if row["status"] is ToolCallStatus.OPEN else None,
        "finished_at": None if row["status"] in _SENT_OR_NOT_YET else now,
    }


def _of(table: sa.Table, *columns: str) -> sa.ColumnElement[bool]:
    named = {"key": "b_key", "task_key": "b_key", "number": "b_number", "id": "b_id"}
    clauses = [table.c.tenant_id == sa.bindparam("b_tenant_id"), table.c.run_id == sa.bindparam("b_run_id")]
    return sa.and_(*clauses, *(table.c[name] == sa.bindparam(named[name]) for name in columns))


_IS_OPEN = reviews.c.answered_at.is_(None) & reviews.c.closed_at.is_(None)
_COUNT_REVIEWS = (
    sa.update(runs)
    .where(runs.c.tenant_id == sa.bindparam("b_tenant_id"), runs.c.id == sa.bindparam("b_run_id"))
    .values(
        open_reviews=sa.select(sa.func.count()).select_from(reviews).where(_of(reviews), _IS_OPEN).scalar_subquery()
    )
)

_WRITTEN: dict[str, sa.sql.dml.UpdateBase] = {
    "plans": sa.insert(plans),
    "new_tasks": sa.insert(tasks),
    "dependencies": sa.insert(dependencies),
    "tasks": sa.update(tasks)
    .where(_of(tasks, "key"))
    .values(
        status=sa.bindparam("status"),
        result=sa.func.coalesce(sa.bindparam("result", type_=tasks.c.result.type), tasks.c.result),
        next_attempt_at=sa.bindparam("retry_at"),
        started_at=sa.func.coalesce(tasks.c.started_at, sa.bindparam("started_at", type_=sa.BigInteger)),
        finished_at=sa.bindparam("finished_at"),
    ),
    "new_attempts": sa.insert(attempts),
    "ended_attempts": sa.update(attempts)
    .where(_of(attempts, "task_key", "number"))
    .values(status=sa.bindparam("status"), error=sa.bindparam("error"), finished_at=sa.bindparam("finished_at")),
    "new_calls": sa.insert(calls),
    "ended_calls": sa.update(calls)
    .where(_of(calls, "number"))
    .values(
        {
            name: sa.bindparam(name)
            for name in (
                "status",
                "input_tokens",
                "output_tokens",
                "cost_nano_usd",
                "answer",
                "error",
                "retry_at",
                "finished_at",
            )
        }
    ),
    "new_tool_calls": sa.insert(tool_calls),
    "approved_tool_calls": sa.update(tool_calls)
    .where(_of(tool_calls, "number"))
    .values(status=ToolCallStatus.ASKED.value),
    "opened_tool_calls": sa.update(tool_calls)
    .where(_of(tool_calls, "number"))
    .values(status=ToolCallStatus.OPEN.value, started_at=sa.bindparam("started_at")),
    "ended_tool_calls": sa.update(tool_calls)
    .where(_of(tool_calls, "number"))
    .values({name: sa.bindparam(name) for name in ("status", "result", "error", "finished_at")}),
    "skip_reasons": sa.update(tasks).where(_of(tasks, "key")).values(skip_reason=sa.bindparam("skip_reason")),
    "wordings": sa.update(tasks)
    .where(_of(tasks, "key"))
    .values(
        wording=sa.func.coalesce(sa.bindparam("wording", type_=sa.Text), tasks.c.wording),
        reworded=sa.bindparam("reworded"),
        attempts_before=sa.bindparam("attempts_before"),
    ),
    "new_reviews": sa.insert(reviews),
    "answered_reviews": sa.update(reviews)
    .where(_of(reviews, "id"))
    .values(answer=sa.bindparam("answer"), answered_at=sa.bindparam("answered_at")),
    "closed_reviews": sa.update(reviews).where(_of(reviews, "id")).values(closed_at=sa.bindparam("closed_at")),
    "events": sa.insert(events),
}
_STATEMENTS = {name: Statement(statement) for name, statement in _WRITTEN.items()}
