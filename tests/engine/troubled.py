"""Runs in trouble, and people who answer for them: what the tests of recovery, replans and approvals share."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from app.domain.ids import RunId
from app.domain.status import RunStatus
from app.storage import tables
from app.storage.database import Database
from app.storage.records import RunRecord
from app.storage.reviews import answer_review, list_reviews
from app.storage.runs import lock_run
from app.storage.steering import retry_run
from tests.engine.conftest import Engine, WorkerHere
from tests.invariants import check
from tests.scripted_model import Answer, Call, Plan, Reply, text
from tests.stored import T, expire, make_run, rows_of

ONE: Plan = {"a": []}
PAIR: Plan = {"a": [], "b": []}
CHAIN: Plan = {"a": [], "b": ["a"], "c": ["b"]}
SPOILED = text("")
Answers = dict[str | tuple[str, str], Answer]
NO_ANSWER = text("I would rather not say.")
REFUSED = text("No.", finish_reason="content_filter")


def anew(plan: Plan, *, drop: Sequence[str] = (), words: str = "Redo") -> Reply:
    """A replan with tasks that say `Redo ID.`."""
    tasks = [{"id": i, "description": f"{words} {i}.", "depends_on": list(before)} for i, before in plan.items()]
    return text(json.dumps({"strategy": "replan", "tasks": tasks, "drop": list(drop)}))


async def fragile(database: Database, plan: Plan | None = CHAIN, **options: Any) -> RunId:
    """A run whose tasks have one attempt each, and whose failures are replanned."""
    return await make_run(database, plan=plan, **{"max_attempts": 1, "on_failure": "replan", **options})


async def statuses(database: Database, run_id: RunId) -> dict[str, str]:
    tasks = await rows_of(database, tables.tasks, run_id)
    return {task["key"]: task["status"] for task in sorted(tasks, key=lambda task: task["position"])}


async def the_plan(database: Database, run_id: RunId, generation: int) -> Mapping[str, Any]:
    return (await rows_of(database, tables.plans, run_id))[generation]


async def events_of(database: Database, run_id: RunId, type_: str) -> list[Mapping[str, Any]]:
    return [event for event in await rows_of(database, tables.events, run_id) if event["type"] == type_]


def seats(engine: Engine) -> list[str]:
    return [call.seat for call in engine.model.calls]


def asked(engine: Engine, seat: str = "recovery") -> list[Call]:
    return engine.model.by_seat(seat)


def executed(engine: Engine) -> list[str | None]:
    return [call.task_key for call in engine.model.by_seat("executor")]


def code_of(run: RunRecord) -> str | None:
    return None if run.error is None else run.error["code"]


def is_asked(run: RunRecord) -> bool:
    return run.status is RunStatus.AWAITING_REVIEW


async def answer(
    database: Database, run_id: RunId, decision: str, *, announced: bool = True, about: int | None = None, **given: Any
) -> None:
    """A person's answer to the only review that is open, or to that about a generation."""
    async with database.write() as connection:
        run = await lock_run(connection, T, run_id)
        assert run is not None
        reviews = await list_reviews(connection, T, run_id, limit=100)
        open_ = [r for r in reviews if r.answered_at is None and r.closed_at is None]
        (review,) = [r for r in open_ if about is None or r.generation == about]
        assert decision in review.allowed_answers
        await answer_review(connection, run, review, {"decision": decision, **given})
        if announced:
            await database.announce(connection, run_id)


async def dies(worker: WorkerHere, database: Database, run_id: RunId) -> None:
    """The worker is gone, and its lease on the run has run out."""
    await worker.die()
    await expire(database, run_id)
    await check(database, run_id)


async def calls_of(database: Database, run_id: RunId) -> Sequence[Mapping[str, Any]]:
    return await rows_of(database, tables.calls, run_id)


def say(strategy: str, **fields: Any) -> Reply:
    return text(json.dumps({"strategy": strategy, **fields}))


REWORDED = say("retry", description="Do it in another way.")
SKIPPED = say("skip")
REPLANNED = say("replan", tasks=[{"id": "m", "description": "Do m.", "depends_on": []}])


async def wordings(database: Database, run_id: RunId) -> list[tuple[int, str]]:
    return [(row["number"], row["description"]) for row in await rows_of(database, tables.attempts, run_id)]


async def retried(database: Database, run_id: RunId) -> None:
    async with database.write() as connection:
        run = await lock_run(connection, T, run_id)
        assert run is not None
        await retry_run(connection, run, options=run.options, budget=run.budget)
        await database.announce(connection, run_id)


async def choosing(database: Database, plan: Plan = ONE, **options: Any) -> RunId:
    """A run whose tasks have one attempt each, and about whose failures the recovery seat chooses."""
    return await fragile(database, plan, **{"on_failure": "auto", **options})
