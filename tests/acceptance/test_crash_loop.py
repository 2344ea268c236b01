"""A run that kills its worker each time is given up; the runs beside it lose no more than the calls in flight."""

import asyncio
from collections import Counter

import pytest

from tests.scripted_model import Call, Plan, Reply, ScriptedModel, hang, script, tasks_of, text
from tests.service_process import StartProcess, finished, start_run

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
