"""Workers killed at random moments: every run still succeeds, and only calls in flight are made again."""

import asyncio
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from app.domain.ids import RunId
from tests.acceptance.evidence import (
    Place,
    by_place,
    every_result_is_there_and_nothing_recorded_was_asked_again,
    place,
)
from tests.databases import opened
from tests.invariants import check
from tests.prepared_workers import PreparedWorker, PreparedWorkers
from tests.scripted_model import Call, Plan, Reply, ScriptedModel, error, plan_reply, tasks_of, text
from tests.service_process import Json, StartProcess, against, finished, start_run
from tests.sizes import sizes

SEED = 4
WORKERS = 3
OPEN_RUNS = 18
LEASE_SECONDS = 2
PLAN: Plan = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": [], "f": ["d", "e"]}
REDRAWN = {"strategy": "replan", "description": None, "tasks": tasks_of({"n": ["0.a"], "m": ["n"]}), "drop": None}


class Endpoint:
    """Answers after a while; every third run meets faults on the way, every fourth has its task `c` drawn anew."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.faults: Counter[Place] = Counter()

    def __call__(self, call: Call) -> Reply:
        number = int(re.findall(r"Goal number (\d+)", call.text)[0])
        chance = random.Random(f"{self._seed} {number} {call.seat} {call.task_key} {call.turn}")
        reply = self._reply(call, number, chance).after(chance.uniform(0.05, 0.4))
        if reply.status != 200:
            self.faults[place(call)] += 1
        return reply

    def _reply(self, call: Call, number: int, chance: random.Random) -> Reply:
        if number % 3 == 0 and chance.random() < 0.2:
            return error(503)
        match call.seat:
            case "planner":
                return plan_reply(PLAN)
            case "recovery":
                return text(json.dumps(REDRAWN))
            case "synthesizer":
                return text("the answer")
            case _ if number % 4 == 0 and call.task_key == "0.c":
                return error(400)
            case _:
                return text(f"result of {call.task_key}")


class Killer:
    """Kills one of the workers after another, each after more progress of a random size, and starts it again."""

    def __init__(self, workers: list[PreparedWorker], model: ScriptedModel, seed: int) -> None:
        self._workers = workers
        self._model = model
        self._chance = random.Random(seed)
        self.killed_at: list[float] = []
        self._broken_before: list[int] = []

    async def kill(self, times: int) -> None:
        while len(self.killed_at) < times:
            progress = self._answered() + self._chance.randint(1, 20)
            await self._model.until(lambda wanted=progress: self._answered() >= wanted)  # type: ignore[misc]
            await asyncio.sleep(self._chance.uniform(0, 0.1))  # anywhere between two answers
            worker = self._chance.choice(self._workers)
            self._broken_before.append(self._broken())
            await worker.kill()
            self.killed_at.append(time.monotonic())
            await worker.start()

    @property
    def hits(self) -> int:
        """How many kills broke off at least one call."""
        return sum(before < after for before, after in pairwise([*self._broken_before, self._broken()]))

    def _answered(self) -> int:
        return sum(call.answered_at is not None for call in self._model.calls)

    def _broken(self) -> int:
        return sum(call.disconnected and call.answered_at is None for call in self._model.calls)


@pytest.fixture
async def prepared(database_url: str, scripted_model: ScriptedModel, tmp_path: Path) -> AsyncIterator[PreparedWorkers]:
    settings = {**against(database_url, scripted_model), "lease_seconds": LEASE_SECONDS, "poll_seconds": 0.2}
    settings |= {"worker_max_runs": OPEN_RUNS // WORKERS}  # each has its share: a kill seldom meets an idle one
    async with PreparedWorkers(tmp_path, settings) as workers:
        yield workers


@pytest.mark.parametrize("kills", sizes(20, 300))
async def test_workers_killed_at_random_lose_no_run_and_repeat_only_calls_in_flight(
    kills: int,
    database_url: str,
    start_process: StartProcess,
    prepared: PreparedWorkers,
    scripted_model: ScriptedModel,
) -> None:
    endpoint = Endpoint(SEED)
    scripted_model.begin(endpoint)
    api = await start_process("serve", "--no-worker")
    workers = [await prepared.start() for _ in range(WORKERS)]
    killer = Killer(workers, scripted_model, SEED)
    killing = asyncio.create_task(killer.kill(kills))
    places = asyncio.Semaphore(OPEN_RUNS)
    given_up: list[str] = []

    async def one(client: httpx.AsyncClient, number: int) -> Json:
        async with places:
            plan = {"plan": {"tasks": tasks_of(PLAN)}} if number % 2 else {}
            options = {"max_tasks": len(PLAN), "on_failure": "auto"}
            run = await start_run(client, goal=f"Goal number {number}", options=options, **plan)
            while True:
                run = await finished(client, run["id"], within_seconds=300)
                if run["status"] == "succeeded" or run["error"]["code"] != "worker_crash_loop":
                    return run
                given_up.append(run["id"])  # by design: it has met five kills in a row without an outcome
                assert (await client.post(f"/runs/{run['id']}/retry")).status_code == 202

    async with api.client() as client:
        runs = await asyncio.gather(*(one(client, number) for number in range(2 * kills)))
        # Runs of no end, for kills that are left: as a rule there are none.
        extra = 2 * kills
        while not killing.done():
            runs += await asyncio.gather(*(one(client, number) for number in range(extra, extra + OPEN_RUNS)))
            extra += OPEN_RUNS
        await killing

    lost = [log_lost(worker) for worker in workers]
    print(  # noqa: T201 - soak shows it
        f"\n{len(killer.killed_at)} kills, {killer.hits} of them with calls in flight, over {len(runs)} runs; "
        f"seed {SEED}; {len(given_up)} given up and retried; leases lost without a kill: {sum(map(len, lost))}; "
        f"{recoveries(scripted_model.calls, killer.killed_at)}"
    )
    assert [(run["status"], run["result"]) for run in runs] == [("succeeded", "the answer")] * len(runs)
    assert killer.hits >= kills / 5
    assert len(given_up) <= max(1, kills / 20)
    async with opened(database_url) as database:
        for run in runs:
            run_id = RunId(UUID(run["id"]))
            await check(database, run_id)
            await every_result_is_there_and_nothing_recorded_was_asked_again(database, run_id, scripted_model)
    repeats_have_reasons(scripted_model.calls, endpoint, killer.killed_at, set().union(*lost))


def log_lost(worker: PreparedWorker) -> set[str]:
    """Runs whose lease it lost while it lived: a machine that is too busy to renew in time."""
    return set(re.findall(r'"run_id": "([0-9a-f-]{36})".*"event": "lease lost"', worker.log))


def repeats_have_reasons(calls: list[Call], endpoint: Endpoint, killed_at: list[float], lost: set[str]) -> None:
    """Each call that is not the first of its place follows a fault, or a kill while the one before was in flight.

    In flight is what a worker has not recorded: also a call that the model has answered already. That it was not
    recorded is shown elsewhere, so that here some kill after the answer will do.
    """
    for where, made in by_place(calls).items():
        repeats = 0
        for before, after in pairwise(made):
            ended = before.answered_at or before.arrived_at
            repeats += any(ended <= killed <= after.arrived_at for killed in killed_at)
        spare = len(made) if where[0] in lost else 0
        assert len(made) <= 1 + endpoint.faults[where] + repeats + spare, (where, made)


def recoveries(calls: list[Call], killed_at: list[float]) -> str:
    """How long after a kill the calls that it broke were made again, or what stood in for them."""
    seconds = []
    for made in by_place(calls).values():
        for before, after in pairwise(made):
            if before.answered_at is None and before.disconnected:
                kill = min((k for k in killed_at if before.arrived_at <= k <= after.arrived_at), default=None)
                seconds += [] if kill is None else [after.arrived_at - kill]
    if len(seconds) < 2:
        return "too few calls broken to tell of recovery"
    p95 = statistics.quantiles(seconds, n=20)[-1]
    return f"{len(seconds)} broken calls made again after {statistics.median(seconds):.2f} s (p95 {p95:.2f} s)"
