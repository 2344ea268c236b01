"""What one commit writes for one run, and the writing of it: outcomes, starts, calls and their events together."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from app.domain.generation import NewPlan
from app.domain.ids import RunId, TaskKey, TenantId
from app.domain.status import ACTIVE, AttemptStatus, CallStatus, ReviewKind, RunStatus, Seat, TaskStatus
from app.domain.usage import Usage
from app.storage.dispatch import Fenced, fence
from app.storage.statements import Statement, in_one_go
from app.storage.tables import attempts, calls, dependencies, events, plans, reviews, runs, tasks

_NOTHING = Usage()
NewEvent = tuple[str, TaskKey | None, Mapping[str, Any]]
"""Type, task and data of an event that has no number yet."""


@dataclass(kw_only=True, slots=True)
class Changes:
    """Everything that one commit writes for one run, in the words of what happened. Empty, it writes only a version."""

    tenant_id: TenantId
    run_id: RunId
    token: UUID | None
    status: RunStatus | None = None
    progress: Mapping[str, int] | None = None
    result: Any = None
    error: Mapping[str, Any] | None = None
    stop_requested: str | None = None
    budget_warned: Sequence[str] | None = None
    begun: bool = False
    over: bool = False
    parked: bool = False
    """The run stands still from here on, and nobody holds it."""
    plans: list[NewPlan] = field(default_factory=list)
    replans: int = 0
    """How many more of the run's replans are used up."""
    answers: int = 0
    llm_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano_usd: int | None = None
    _tasks: list[dict[str, Any]] = field(default_factory=list)
    _new_attempts: list[dict[str, Any]] = field(default_factory=list)
    _ended_attempts: list[dict[str, Any]] = field(default_factory=list)
    _new_calls: list[dict[str, Any]] = field(default_factory=list)
    _ended_calls: list[dict[str, Any]] = field(default_factory=list)
    _skip_reasons: list[dict[str, Any]] = field(default_factory=list)
    _wordings: list[dict[str, Any]] = field(default_factory=list)
    _new_reviews: list[dict[str, Any]] = field(default_factory=list)
    _answered_reviews: list[dict[str, Any]] = field(default_factory=list)
    _closed_reviews: list[dict[str, Any]] = field(default_factory=list)
    _events: list[NewEvent] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        written = (self._events, self._tasks, self._new_calls, self._ended_calls, self._closed_reviews)
        return not (any(written) or self.over or self.replans or self.error)

    @property
    def has_outcome(self) -> bool:
        """Whether the run has come further: some call has an end that its own worker saw."""
        return any(call["status"] != CallStatus.LOST for call in self._ended_calls)

    @property
    def touches_tasks(self) -> bool:
        """Whether the counts of tasks by status may differ afterwards."""
        return bool(self._tasks or self.plans)

    def event(self, type_: str, *, task_key: TaskKey | None = None, **data: Any) -> None:
        """Something that clients may read of, in the order of these calls."""
        self._events.append((type_, task_key, data))

    def task(self, key: TaskKey, status: TaskStatus, *, result: Any = None, retry_in_ms: int | None = None) -> None:
        """A task changes its status."""
        self._tasks.append({"b_key": key, "status": status, "result": result, "retry_in_ms": retry_in_ms})

    def task_skipped(self, key: TaskKey, reason: str) -> None:
        """A task is given up on purpose; its dependents are told why."""
        self.task(key, TaskStatus.SKIPPED)
        self._skip_reasons.append({"b_key": key, "skip_reason": reason})

    def task_begins_anew(
        self, key: TaskKey, *, wording: str | None = None, reworded: bool = False, attempts_before: int
    ) -> None:
        """A task's attempts so far no longer count; without a `wording` the task keeps the one it has."""
        self._wordings.append(
            {"b_key": key, "wording": wording, "reworded": reworded, "attempts_before": attempts_before}
        )

    def review_opened(
        self,
        review_id: UUID,
        kind: ReviewKind,
        *,
        question: Mapping[str, Any],
        allowed_answers: Sequence[str],
        task_key: TaskKey | None = None,
        generation: int | None = None,
    ) -> None:
        """The run asks something of a person."""
        self._new_reviews.append(
            {
                "id": review_id,
                "kind": kind,
                "task_key": task_key,
                "generation": generation,
                "question": dict(question),
                "allowed_answers": list(allowed_answers),
            }
        )
        self.event("review.opened", task_key=task_key, review_id=str(review_id), kind=kind)

    def review_answered(self, review_id: UUID, answer: Mapping[str, Any], *, task_key: TaskKey | None = None) -> None:
        """A person has answered; the answer waits for the worker that applies it."""
        self.answers += 1
        self._answered_reviews.append({"b_id": review_id, "answer": dict(answer)})
        self.event("review.answered", task_key=task_key, review_id=str(review_id), decision=answer["decision"])

    def review_closed(self, review_id: UUID) -> None:
        """What a review's answer asked for is done, or the run is over and nobody needs one any more."""
        self._closed_reviews.append({"b_id": review_id})

    @property
    def touches_reviews(self) -> bool:
        """Whether the number of open reviews may differ afterwards."""
        return bool(self._new_reviews or self._answered_reviews or self._closed_reviews)

    def attempt_started(self, key: TaskKey, number: int, *, description: str, prompt_hash: str) -> None:
        """A new try at a task."""
        row = {"task_key": key, "number": number, "description": description, "prompt_hash": prompt_hash}
        self._new_attempts.append(row | {"status": AttemptStatus.RUNNING})

    def attempt_ended(
        self, key: TaskKey, number: int, status: AttemptStatus, *, error: Mapping[str, Any] | None = None
    ) -> None:
        """A try at a task came to its end."""
        self._ended_attempts.append({"b_key": key, "b_number": number, "status": status, "error": error})

    def call_opened(
        self,
        number: int,
        *,
        seat: Seat,
        model: str,
        try_number: int,
        task_key: TaskKey | None = None,
        attempt: int | None = None,
        generation: int = 0,
        reserved: Usage = _NOTHING,
        reserved_cost_nano_usd: int | None = None,
    ) -> None:
        """A request is about to be sent to a model. Counted from here, whatever becomes of it."""
        self.llm_calls += 1
        self._new_calls.append(
            {
                "number": number,
                "seat": seat,
                "task_key": task_key,
                "attempt": attempt,
                "try_number": try_number,
                "status": CallStatus.OPEN,
                "model": model,
                "generation": generation,
                "reserved_input_tokens": reserved.input_tokens,
                "reserved_output_tokens": reserved.output_tokens,
                "reserved_cost_nano_usd": reserved_cost_nano_usd,
            }
        )

    def call_ended(
        self,
        number: int,
        status: CallStatus,
        *,
        usage: Usage | None = None,
        cost_nano_usd: int | None = None,
        answer: str | None = None,
        error: Mapping[str, Any] | None = None,
        retry_in_ms: int | None = None,
    ) -> None:
        """What became of a request."""
        if usage is not None:
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens
        if cost_nano_usd is not None:
            self.cost_nano_usd = (self.cost_nano_usd or 0) + cost_nano_usd
        self._ended_calls.append(
            {
                "b_number": number,
                "status": status,
                "input_tokens": None if usage is None else usage.input_tokens,
                "output_tokens": None if usage is None else usage.output_tokens,
                "cost_nano_usd": cost_nano_usd,
                "answer": answer,
                "error": error,
                "retry_in_ms": retry_in_ms,
            }
        )


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
