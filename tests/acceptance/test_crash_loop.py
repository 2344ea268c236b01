"""A run that kills its worker each time is given up; the runs beside it lose no more than the calls in flight."""

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path
from time import monotonic

import pytest

from app.domain.ids import RunId
from app.storage import tables
from app.storage.database import Database
from tests.databases import opened
from tests.invariants import check
from tests.points import POISON as POISONOUS
from tests.polling import until
from tests.prepared_workers import PreparedWorker, PreparedWorkers
from tests.scripted_model import Call, Plan, Reply, ScriptedModel, hang, script, tasks_of, text
from tests.service_process import StartProcess, against, finished, start_run
from tests.stored import is_finished, make_run, row_of, rows_of

POISON: Plan = {"poison": []}
PLAN: Plan = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
OTHERS = 5
DEATHS = 5


@pytest.mark.usefixtures("runs_hold_together")
async def test_a_run_that_kills_its_worker_five_times_fails_and_the_runs_beside_it_succeed(
    start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    swallowed: asyncio.Queue[Call] = asyncio.Queue()
    others_may_end = asyncio.Event()

    def poison(call: Call) -> Reply:
        swallowed.put_nowait(call)
        return hang()

    async def other(call: Call) -> Reply:
        await others_may_end.wait()
        return text(f"result of {call.task_key}")

    scripted_model.begin(script({("executor", "poison"): poison, "executor": other}))
    api = await start_process("serve", "--no-worker")
    async with api.client() as client:
        killer = (await start_run(client, plan={"tasks": tasks_of(POISON)}))["id"]
        others = [(await start_run(client, plan={"tasks": tasks_of(PLAN)}))["id"] for _ in range(OTHERS)]
        worker = await start_process("worker", lease_seconds=1)
        lost: Counter[tuple[str, str | None]] = Counter()
        beside: list[int] = []
        for death in range(1, DEATHS + 1):
            async with asyncio.timeout(60):
                await swallowed.get()
            if death <= 2:  # nothing is known of any of them: each is a suspect from then on
                await scripted_model.until(lambda: len(scripted_model.in_flight) == 1 + OTHERS)
            in_flight = [call for call in scripted_model.in_flight if call.run_id != killer]
            beside.append(len(in_flight))
            lost.update((call.run_id, call.task_key) for call in in_flight)
            await worker.kill()
            await scripted_model.until(lambda: not scripted_model.in_flight)
            if death == 2:
                others_may_end.set()
            await worker.start()
        ended = await finished(client, killer)
        assert (ended["status"], ended["error"]["code"]) == ("failed", "worker_crash_loop")
        for run in others:
            assert (await finished(client, run))["status"] == "succeeded"
    assert beside == [OTHERS, OTHERS, 0, 0, 0]
    assert len(scripted_model.of_run(killer)) == DEATHS
    made = Counter((call.run_id, call.task_key) for call in scripted_model.by_seat("executor") if call.run_id != killer)
    assert made == {(run, f"0.{i}"): 1 + lost[run, f"0.{i}"] for run in others for i in PLAN}


POISONS = 20
BESIDE = 200
OPEN_RUNS = 20
WORKERS = 3


class Supervisor:
    """Keeps workers up, as an operator's does; `deaths` counts those that it met."""

    def __init__(self, workers: list[PreparedWorker]) -> None:
        self.deaths = 0
        self._watching = [asyncio.create_task(self._keep_up(worker)) for worker in workers]

    async def _keep_up(self, worker: PreparedWorker) -> None:
        while True:
            await worker.gone(within_seconds=3600)
            self.deaths += 1
            await worker.start()

    def leave(self) -> None:
        """Start nothing more."""
        for watching in self._watching:
            watching.cancel()


async def runs_beside(database: Database, poisons: int) -> tuple[list[RunId], list[RunId], float]:
    """Poisonous runs, ordinary ones, and how many of the latter came to their end in a second."""
    places, begun = asyncio.Semaphore(OPEN_RUNS), monotonic()

    async def one() -> RunId:
        async with places:
            run = await make_run(database, plan=PLAN)
            await until(partial(is_finished, database, run), within_seconds=600)
            return run

    killers: list[RunId] = []
    beside: list[asyncio.Task[RunId]] = []
    for number in range(BESIDE):
        beside.append(asyncio.create_task(one()))
        if number < poisons:
            killers.append(await make_run(database, plan=POISON))
    ordinary = list(await asyncio.gather(*beside))
    return killers, ordinary, len(ordinary) / (monotonic() - begun)


@pytest.mark.soak
async def test_twenty_runs_whose_results_kill_their_workers_fail_and_two_hundred_beside_them_succeed(
    database_url: str, scripted_model: ScriptedModel, tmp_path: Path
) -> None:
    def reply(call: Call) -> Reply:
        is_poison = call.task_id == "poison"
        return text(POISONOUS if is_poison else f"result of {call.task_key}").after(0.1)

    scripted_model.begin(script({"executor": reply}))
    settings = {**against(database_url, scripted_model), "lease_seconds": 1, "poll_seconds": 0.2}
    async with opened(database_url) as database, PreparedWorkers(tmp_path, settings) as workers:
        supervisor = Supervisor([await workers.start(point="poison") for _ in range(WORKERS)])
        _, _, usual = await runs_beside(database, 0)
        assert supervisor.deaths == 0
        killers, others, beside = await runs_beside(database, POISONS)
        for run in killers:
            await until(partial(is_finished, database, run), within_seconds=600)
        supervisor.leave()
        print(  # noqa: T201 - soak shows it
            f"\n{POISONS} poisonous runs, {supervisor.deaths} deaths of workers; runs/s of the others: "
            f"{usual:.1f} without, {beside:.1f} beside them ({beside / usual:.0%})"
        )
        for run in killers:
            row = await row_of(database, run)
            assert (row["status"], row["error"]["code"]) == ("failed", "worker_crash_loop")
            # Not each of the deaths that it was charged was its own: it may have waited to be alone with one like it.
            assert 1 <= len(scripted_model.of_run(str(run))) <= DEATHS
            await check(database, run)
        for run in others:
            assert (await row_of(database, run))["status"] == "succeeded"
            tasks = await rows_of(database, tables.tasks, run)
            assert [task["result"] for task in tasks] == [f"result of 0.{i}" for i in PLAN]
            await check(database, run)
        assert supervisor.deaths >= POISONS
