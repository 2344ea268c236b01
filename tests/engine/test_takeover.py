"""A worker dies or is left behind, another goes on: nothing that was recorded is lost, and little is asked twice."""

import asyncio
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
import structlog

from app.domain.ids import RunId
from app.storage import tables
from app.storage.changes import Changes
from app.storage.database import Database
from app.storage.dispatch import Fenced
from app.storage.steering import request_cancel
from tests.engine.conftest import Engine, Gates, WorkerHere
from tests.invariants import check
from tests.scripted_model import DIAMOND, Plan, error, hang, plan_reply, script, text
from tests.storage.leases import somebody_waits_for_a_lock
from tests.stored import T, claim_one, expire, make_run, row_of, rows_of, the_run

ONE: Plan = {"a": []}
PAIR: Plan = {"a": [], "b": []}
NO_PLAN = text("I would rather not say.")


def waits(seconds: int) -> Any:
    """An answer that asks to be left alone for so long."""
    return error(503, headers={"Retry-After": str(seconds)})


async def dies(worker: WorkerHere, database: Database, run_id: RunId) -> None:
    """The worker is gone, and its lease on the run has run out."""
    await worker.die()
    assert (await row_of(database, run_id))["lease_token"] is not None
    await expire(database, run_id)
    await check(database, run_id)


async def events_of(database: Database, run_id: RunId, task_key: str | None) -> list[str]:
    return [e["type"] for e in await rows_of(database, tables.events, run_id) if e["task_key"] == task_key]


async def test_what_had_succeeded_is_kept_and_what_was_in_flight_is_asked_once_more(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "b"): [hang(), text("again b")], ("executor", "c"): [hang(), text("c")]}))
    first = engine.worker()
    run_id = await make_run(database, plan=DIAMOND)
    await engine.model.until(lambda: len(engine.model.calls) == 3)
    await dies(first, database, run_id)
    engine.worker()
    run = await engine.ended(run_id)
    assert run.status == "succeeded"
    executed = engine.model.by_seat("executor")
    assert sorted(str(call.task_key) for call in executed) == ["0.a", "0.b", "0.b", "0.c", "0.c", "0.d"]
    assert "again b" in engine.model.calls_for("0.d")[0].text
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [(attempt["number"], attempt["status"]) for attempt in attempts] == [(1, "succeeded")] * 4
    assert await events_of(database, run_id, "0.b") == ["task.started", "task.recovered", "task.succeeded"]
    calls = await rows_of(database, tables.calls, run_id)
    assert [call["status"] for call in calls] == ["answered", "lost", "lost", *["answered"] * 4]
    reserved = sum(call["reserved_input_tokens"] for call in calls if call["status"] == "lost")
    assert (run.llm_calls, run.input_tokens, run.output_tokens) == (7, 50 + reserved, 25 + 2 * 1_000)
    assert (await row_of(database, run_id))["takeovers"] == 0


def has_been_asked(engine: Engine, task_key: str, times: int) -> bool:
    return len(engine.model.calls_for(task_key)) == times


async def test_a_run_that_dies_with_three_workers_still_ends_well(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): [hang(), hang(), hang(), text("done")]}))
    run_id = await make_run(database, plan=DIAMOND)
    for count in range(1, 4):
        worker = engine.worker()
        await engine.model.until(partial(has_been_asked, engine, "0.b", count))
        await engine.until(lambda run: run.progress["succeeded"] == 2, run_id)
        await dies(worker, database, run_id)
        assert (await row_of(database, run_id))["takeovers"] == count - 1
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [(attempt["task_key"], attempt["number"]) for attempt in attempts] == [(f"0.{t}", 1) for t in "abcd"]


async def test_a_worker_that_dies_before_it_began_leaves_nothing(engine: Engine, database: Database) -> None:
    run_id = await make_run(database)
    await claim_one(database)
    await expire(database, run_id)
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert (await events_of(database, run_id, None))[:2] == ["run.queued", "run.planning"]


# --- planning


async def test_rejected_plans_are_counted_across_workers(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"planner": [NO_PLAN, hang(), NO_PLAN]}))
    first = engine.worker()
    run_id = await make_run(database)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    await dies(first, database, run_id)
    engine.worker()
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], len(engine.model.calls)) == ("plan_invalid", 4)
    rejected = [e["data"] for e in await rows_of(database, tables.events, run_id) if e["type"] == "plan.rejected"]
    assert [data["attempt"] for data in rejected] == [1, 2, 3]


async def test_the_next_worker_asks_for_a_plan_as_the_last_one_did(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"planner": [text('{"tasks": ['), hang(), plan_reply(PAIR)]}))
    first = engine.worker()
    run_id = await make_run(database)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    await dies(first, database, run_id)
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    _, lost, again = engine.model.by_seat("planner")
    assert lost.messages == again.messages


async def test_a_plan_that_was_stored_is_not_drawn_again(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": [hang(), text("done")]}, plan=PAIR))
    first = engine.worker()
    run_id = await make_run(database)
    await engine.model.until(lambda: len(engine.model.by_seat("executor")) == 2)
    await dies(first, database, run_id)
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert len(engine.model.by_seat("planner")) == 1


# --- waits


async def test_a_task_keeps_its_place_in_the_queue_of_tries(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): [*[error(503)] * 6, waits(30), error(503)]}))
    first = engine.worker()
    run_id = await make_run(database, plan=ONE)
    await engine.until(lambda run: run.llm_calls == 7 and run.progress["retrying"] == 1, run_id)
    await dies(first, database, run_id)
    async with database.write() as connection:
        of_run = tables.tasks.c.run_id == run_id
        await connection.execute(sa.update(tables.tasks).where(of_run).values(next_attempt_at=0))
    engine.worker()
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], run.llm_calls) == ("llm_unavailable", 8)


@pytest.mark.parametrize("seat", ["planner", "synthesizer"])
async def test_a_question_of_the_whole_run_keeps_its_place_in_the_queue_of_tries(
    engine: Engine, database: Database, seat: str
) -> None:
    engine.model.begin(script({seat: [*[error(503)] * 6, waits(30), error(503)]}))
    first = engine.worker()
    run_id = await make_run(database)
    await engine.model.until(lambda: [call.turn for call in engine.model.by_seat(seat) if call.answered_at][-1:] == [6])
    await all_calls_are_recorded(engine, database, run_id)
    await dies(first, database, run_id)
    async with database.write() as connection:
        of_run = tables.calls.c.run_id == run_id
        await connection.execute(sa.update(tables.calls).where(of_run).values(retry_at=0))
    engine.worker()
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], len(engine.model.by_seat(seat))) == ("llm_unavailable", 8)


async def all_calls_are_recorded(engine: Engine, database: Database, run_id: RunId) -> None:
    while any(call["status"] == "open" for call in await rows_of(database, tables.calls, run_id)):
        await database.ping()


@pytest.mark.parametrize("seat", ["planner", "executor", "synthesizer"])
async def test_a_wait_is_not_cut_short_by_a_takeover(engine: Engine, database: Database, seat: str) -> None:
    engine.model.begin(script({seat: waits(30)}))
    first = engine.worker()
    run_id = await make_run(database, max_parallel=1)
    await engine.model.until(lambda: any(call.answered_at for call in engine.model.by_seat(seat)))
    await all_calls_are_recorded(engine, database, run_id)
    await dies(first, database, run_id)
    before = await the_run(database, run_id)
    due = [task["next_attempt_at"] for task in await rows_of(database, tables.tasks, run_id)]
    engine.worker()
    await engine.until(lambda run: run.version > before.version, run_id)
    assert (await the_run(database, run_id)).llm_calls == before.llm_calls
    assert [task["next_attempt_at"] for task in await rows_of(database, tables.tasks, run_id)] == due


async def test_spoiled_attempts_are_counted_across_workers(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): [text(""), hang(), text("")]}))
    first = engine.worker()
    run_id = await make_run(database, plan=ONE, max_attempts=3)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    await dies(first, database, run_id)
    engine.worker()
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], len(engine.model.calls)) == ("task_failed", 4)
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [(attempt["number"], attempt["status"]) for attempt in attempts] == [(n, "failed") for n in (1, 2, 3)]


# --- the end


async def test_a_synthesis_in_flight_is_asked_once_more(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"synthesizer": [hang(), text("the answer")]}))
    first = engine.worker()
    run_id = await make_run(database, plan=PAIR)
    await engine.model.until(lambda: len(engine.model.by_seat("synthesizer")) == 1)
    await dies(first, database, run_id)
    engine.worker()
    run = await engine.ended(run_id)
    assert (run.result, len(engine.model.by_seat("synthesizer"))) == ("the answer", 2)
    assert len(engine.model.by_seat("executor")) == 2


async def test_spoiled_syntheses_are_counted_across_workers(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"synthesizer": [text(""), text(""), hang(), text("")]}))
    first = engine.worker()
    run_id = await make_run(database, plan=PAIR)
    await engine.model.until(lambda: len(engine.model.by_seat("synthesizer")) == 3)
    await dies(first, database, run_id)
    engine.worker()
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], len(engine.model.by_seat("synthesizer"))) == ("synthesis_failed", 4)


async def test_a_run_that_was_failing_fails_with_the_same_error(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): hang(), ("executor", "b"): error(401)}))
    first = engine.worker()
    run_id = await make_run(database, plan={**PAIR, "c": ["a"]})
    await engine.until(lambda run: run.progress["failed"] == 1, run_id)
    await dies(first, database, run_id)
    engine.worker()
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], run.error["task_key"], len(engine.model.calls)) == ("llm_auth_failed", "0.b", 2)
    statuses = [task["status"] for task in await rows_of(database, tables.tasks, run_id)]
    assert statuses == ["cancelled", "failed", "cancelled"]


async def test_a_cancel_outlives_the_worker_that_was_to_carry_it_out(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": hang()}))
    first = engine.worker()
    run_id = await make_run(database, plan=PAIR)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    await first.die()
    async with database.write() as connection:
        await request_cancel(connection, T, run_id)
    await expire(database, run_id)
    engine.worker()
    assert (await engine.ended(run_id)).status == "cancelled"
    assert len(engine.model.calls) == 2


# --- left behind


async def test_the_late_outcome_of_a_worker_that_was_left_behind_changes_nothing(
    engine: Engine, database: Database
) -> None:
    stale, fresh = Gates(lambda call: text("stale")), Gates(lambda call: text("fresh"))
    engine.model.begin(script({("executor", "a"): lambda call: (stale if call.turn == 0 else fresh)(call)}))
    left_behind = engine.worker(lease_seconds=3_600, worker_max_runs=1)
    run_id = await make_run(database, plan={"a": [], "b": ["a"]})
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    await expire(database, run_id)
    engine.worker(lease_seconds=3_600)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    before = await row_of(database, run_id)
    stale.open("a")
    await engine.until_true(lambda: not left_behind.worker._drivers)
    assert await row_of(database, run_id) == before
    await left_behind.drain()
    fresh.open("a")
    assert (await engine.ended(run_id)).status == "succeeded"
    results = [task["result"] for task in await rows_of(database, tables.tasks, run_id)]
    assert results == ["fresh", "result of 0.b"]
    assert engine.model.order() == ["0.a", "0.a", "0.b", "synthesizer"]


async def test_a_worker_that_renews_too_late_drops_what_another_has_and_cuts_its_calls(
    engine: Engine, database: Database
) -> None:
    gates = Gates()
    engine.model.begin(script({("executor", "a"): lambda call: hang() if call.turn == 0 else gates(call)}))
    left_behind = engine.worker(lease_seconds=3_600, worker_max_runs=1)
    run_id = await make_run(database, plan=ONE)
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    await expire(database, run_id)
    engine.worker(lease_seconds=3_600)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    await left_behind.worker._renew()
    await engine.model.until(lambda: [call.disconnected for call in engine.model.calls] == [True, False])
    await left_behind.drain()
    gates.open("a")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_a_call_is_not_sent_for_a_run_that_was_lost_while_its_worker_stood_still(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine.worker(lease_seconds=3_600, worker_max_runs=1)
    recorder, clock = first.worker._recorder, first.worker._shop.clock
    commit, lost = recorder.commit, []

    async def stands_still_then(changes: Changes) -> Fenced:
        fenced = await commit(changes)
        await expire(database, RunId(changes.run_id))
        await claim_one(database)
        clock._offset_ms += 3_600_000
        lost.append(changes.run_id)
        return fenced

    monkeypatch.setattr(recorder, "commit", stands_still_then)
    run_id = await make_run(database, plan={"a": []})
    await engine.until_true(lambda: lost == [run_id] and run_id not in first.worker._drivers)
    assert not engine.model.calls


async def test_a_run_that_ended_is_not_lost_though_its_worker_has_not_yet_turned_away(
    engine: Engine, database: Database, logged: list[structlog.typing.EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = engine.worker(lease_seconds=3_600)
    commit, renewed = here.worker._recorder.commit, []

    async def renews_after(changes: Changes) -> Fenced:
        fenced = await commit(changes)
        if changes.over:
            await here.worker._renew()
            renewed.append(changes.run_id)
        return fenced

    monkeypatch.setattr(here.worker._recorder, "commit", renews_after)
    run_id = await make_run(database, plan=ONE)
    await engine.ended(run_id)
    await engine.until_true(lambda: renewed == [run_id])
    assert not [entry for entry in logged if entry["event"] == "lease lost"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True, scope="module")
async def test_a_run_that_somebody_has_locked_keeps_no_other_lease_from_being_renewed(
    engine: Engine, database: Database
) -> None:
    """SQLite has one lock for all."""
    gates = Gates()
    engine.model.begin(script({("executor", "a"): gates}))
    here = engine.worker(lease_seconds=3_600, worker_max_runs=2)
    locked, other = [await make_run(database, plan=ONE) for _ in range(2)]
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    await expire(database, other)
    async with database.write() as somebody:
        await somebody.execute(sa.select(tables.runs.c.id).where(tables.runs.c.id == locked).with_for_update())
        renewing = asyncio.create_task(here.worker._renew())
        await somebody_waits_for_a_lock(database)
        assert (await row_of(database, other))["ready_at"] > 0
    await renewing
    gates.open("a")
    for run_id in (locked, other):
        assert (await engine.ended(run_id)).status == "succeeded"
    assert len(engine.model.calls_for("0.a")) == 2
