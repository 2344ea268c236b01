"""PostgreSQL crashes again and again: clients are asked to come back, and nothing is lost or done twice."""

import asyncio
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

import pytest

from app.domain.ids import RunId
from tests.acceptance.traffic import Traffic
from tests.databases import opened
from tests.invariants import check
from tests.restarted_postgres import RestartedPostgres, restarted_postgres
from tests.scripted_model import Call, Plan, Reply, ScriptedModel, script, tasks_of, text
from tests.service_process import ServiceProcess, against, every, upgrade
from tests.sizes import sizes

SEED = 5
RUNS_PER_RESTART = 10
PLAN: Plan = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
NOWHERE = "01980000-0000-7000-8000-000000000002"
BROKEN = ("driver broke", "worker broke", "request_failed", "commit failed")


def slow(call: Call) -> Reply:
    """A result after a while that differs from task to task."""
    seconds = random.Random(f"{SEED} {call.run_id} {call.task_key}").uniform(0.05, 0.6)
    return text(f"result of {call.task_key}").after(seconds)


class Outages:
    """Crashes of the server while calls are in flight, each for up to so many seconds."""

    def __init__(self, server: RestartedPostgres, traffic: Traffic, longest_seconds: float) -> None:
        self._server = server
        self._traffic = traffic
        self._longest_seconds = longest_seconds
        self._chance = random.Random(SEED)
        self.back_after: list[float] = []
        """Seconds from when the server takes connections to the first readiness."""

    async def one(self, model: ScriptedModel) -> None:
        await model.until(lambda: len(model.in_flight) >= 2)
        await asyncio.sleep(self._chance.uniform(0, 0.5))  # anywhere between two answers
        await asyncio.to_thread(self._server.crash)
        down = time.monotonic()
        for method, path in (("GET", "/readyz"), ("GET", "/runs"), ("POST", f"/runs/{NOWHERE}/cancel")):
            assert (await self._traffic.ask_once(method, path)).status_code == 503
        await asyncio.sleep(self._chance.uniform(0, self._longest_seconds))
        up = time.monotonic()
        await asyncio.to_thread(self._server.start)
        taking = time.monotonic()
        await self._traffic.ask("GET", "/readyz")
        self.back_after.append(time.monotonic() - taking)
        assert self._traffic.of_span(down, up).keys() == {503}


@pytest.mark.parametrize("restarts", sizes(2, 30))
async def test_a_database_that_crashes_costs_clients_some_patience_and_nothing_else(
    restarts: int, scripted_model: ScriptedModel, tmp_path: Path
) -> None:
    scripted_model.begin(script({"executor": slow}))
    longest_seconds = 1 if restarts < 10 else 10
    chance = random.Random(SEED)
    async with AsyncExitStack() as stack:
        server = stack.enter_context(restarted_postgres())
        url = stack.enter_context(server.fresh_database())
        upgrade(url, tmp_path)
        # Leases outlast an outage: whoever drove a run goes on with it, and no call is made again.
        settings = {**against(url, scripted_model), "lease_seconds": 8 + 4 * longest_seconds}
        service = await stack.enter_async_context(ServiceProcess("serve", directory=tmp_path, settings=settings))
        client = await stack.enter_async_context(service.client())
        traffic = Traffic(client)
        outages = Outages(server, traffic, longest_seconds)

        async def one(number: int, after_seconds: float) -> str:
            await asyncio.sleep(after_seconds)
            run = await traffic.run_to_its_end(f"goal {number}", goal="Find out", plan={"tasks": tasks_of(PLAN)})
            assert (run["status"], run["result"]) == ("succeeded", "the answer"), run
            return str(run["id"])

        runs: list[str] = []
        for restart in range(restarts):
            batch = range(restart * RUNS_PER_RESTART, (restart + 1) * RUNS_PER_RESTART)
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(one(number, chance.uniform(0, 1))) for number in batch]
                group.create_task(outages.one(scripted_model))
            runs += [task.result() for task in running]

        listed = [run["id"] async for run in every(client, "/runs")]
        print(  # noqa: T201 - soak shows it
            f"\n{restarts} restarts over {len(runs)} runs, seed {SEED}: {len(traffic.answers)} answers, "
            f"{traffic.refused} of them 503; {traffic.replayed} goals taken without an answer; "
            f"ready again after {max(outages.back_after):.2f} s at most; "
            f"{service.log.count('outcomes wait')} times outcomes waited"
        )
        assert len(set(runs)) == len(runs)
        assert sorted(listed) == sorted(runs)
        assert not [word for word in BROKEN if word in service.log]
        assert "outcomes wait" in service.log, "no crash met an outcome"
        made = Counter((call.run_id, call.task_key or call.seat) for call in scripted_model.calls)
        assert made == {(run, what): 1 for run in runs for what in (*(f"0.{i}" for i in PLAN), "synthesizer")}
        async with opened(url) as database:
            for run_id in runs:
                await check(database, RunId(UUID(run_id)))
