"""Limits of rate: a stated wait is kept, by whatever run it concerns, and nobody sits it out."""

import asyncio
import math
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from uuid import UUID

import pytest
import sqlalchemy as sa

from app.storage import tables
from app.storage.database import Database
from tests.acceptance.looks import calls_at, looked_at, run_at
from tests.databases import opened
from tests.faults import SEATS, Fault, staged, well_after
from tests.scripted_model import Call, Reply, ScriptedModel, error, tasks_of, text
from tests.service_process import Json, StartProcess, events, finished, start_run

pytestmark = pytest.mark.usefixtures("runs_hold_together")

CLOCKS_SECONDS = 0.01
"""How much finer than the service's clock, which counts whole milliseconds, the test's own is; doubled and more."""


async def stands(database: Database, run: Json) -> sa.Row[UUID | None, int, int]:
    """Who holds the run, from when on it may be claimed, and how often it was."""
    runs = tables.runs.c
    query = sa.select(runs.lease_token, runs.ready_at, runs.epoch).where(runs.id == UUID(run["id"]))
    async with database.read() as connection:
        return (await connection.execute(query)).one()


# Limits of rate.


def in_a_second(call: Call) -> Reply:
    return error(429, headers={"Retry-After": "1"})


def at_a_date(call: Call) -> Reply:
    """In one to two seconds: dates are whole ones."""
    until = datetime.fromtimestamp(math.ceil(time.time()) + 1, UTC)
    return error(429, headers={"Retry-After": format_datetime(until, usegmt=True)})


def at_a_reset(call: Call) -> Reply:
    return error(429, headers={"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1s"})


LIMITS = {"seconds": in_a_second, "date": at_a_date, "reset": at_a_reset}


async def test_a_stated_wait_is_kept_at_every_seat_by_runs_that_are_given_back_meanwhile(
    start_process: StartProcess, scripted_model: ScriptedModel, database_url: str
) -> None:
    def limited(call: Call) -> Reply:
        return LIMITS[call.body["model"].partition(" ")[0]](call)

    scripted_model.begin(staged(Fault(replies=[limited], once=well_after(1), always={})))
    service = await start_process(lease_seconds=0.5, poll_seconds=0.1)

    async def waits(seat: str, limit: str) -> None:
        run = await run_at(seat, "once", client, model=f"{limit} at the {seat}")
        run = await finished(client, run["id"])
        assert run["status"] == "succeeded", run["error"]
        first, second = calls_at(seat, run, scripted_model)
        assert first.answered_at is not None
        assert second.arrived_at - first.answered_at >= 1 - CLOCKS_SECONDS
        assert (await stands(database, run)).epoch == 2
        await looked_at(client, run)

    async with service.client() as client, opened(database_url) as database, asyncio.TaskGroup() as group:
        for limit in LIMITS:
            for seat in SEATS:
                group.create_task(waits(seat, limit))


async def test_a_run_that_has_hours_to_wait_is_given_back_and_can_be_cancelled(
    start_process: StartProcess, scripted_model: ScriptedModel, database_url: str
) -> None:
    tomorrow = error(429, headers={"Retry-After": "10000"})
    scripted_model.begin(staged(Fault(replies=[tomorrow], always={})))
    service = await start_process()
    async with service.client() as client, opened(database_url) as database:
        for seat in SEATS:
            run = await run_at(seat, "always", client)
            async with asyncio.timeout(60):
                while (row := await stands(database, run)).lease_token is not None or row.epoch == 0:  # noqa: ASYNC110 - a row
                    await asyncio.sleep(0.02)
            assert row.ready_at - time.time() * 1000 > 9_000_000
            tasks = await looked_at(client, run)
            if seat == "executor":
                assert tasks["0.b"]["status"] == "retrying"
                due = datetime.fromisoformat(tasks["0.b"]["next_attempt_at"])
                assert due.timestamp() - time.time() > 9_000
            await client.post(f"/runs/{run['id']}/cancel")
            assert (await finished(client, run["id"]))["status"] == "cancelled"
            assert len(calls_at(seat, run, scripted_model)) == 1


async def test_nobody_calls_an_endpoint_that_has_asked_to_be_left_alone(
    start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    others_may_go_on = asyncio.Event()

    async def limited(call: Call) -> Reply:
        if call is scripted_model.calls[0]:
            return error(429, headers={"Retry-After": "1"})
        await others_may_go_on.wait()
        return text("done")

    async def only_when_all_are_there(call: Call) -> Reply:
        await scripted_model.until(lambda: len(scripted_model.calls) >= 20)
        return await limited(call)

    scripted_model.begin(only_when_all_are_there)
    service = await start_process(llm_max_concurrency=20, llm_backoff_cap_seconds=30)
    plan = {"tasks": tasks_of({str(n): [] for n in range(50)})}
    async with service.client() as client:
        run = await start_run(client, plan=plan, options={"max_parallel": 50, "synthesize": False})
        async with asyncio.timeout(60):
            while not await events(client, run, "task.retry_scheduled"):  # noqa: ASYNC110 - told in a row
                await asyncio.sleep(0.01)
        other = await start_run(client, plan={"tasks": tasks_of({"other": []})})
        others_may_go_on.set()
        assert (await finished(client, run["id"]))["status"] == "succeeded"
        assert (await finished(client, other["id"]))["status"] == "succeeded"
    told, *later = [scripted_model.calls[0], *scripted_model.calls[20:]]
    assert told.answered_at is not None
    assert len(later) == 32
    assert min(call.arrived_at for call in later) - told.answered_at >= 1 - CLOCKS_SECONDS
