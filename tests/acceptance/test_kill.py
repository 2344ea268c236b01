"""What a crash costs: nothing that had succeeded, and at most the calls that were in flight."""

import random
from collections import Counter
from uuid import UUID

from app.domain.ids import RunId
from tests.databases import opened
from tests.invariants import check
from tests.scripted_model import Call, Plan, Reply, ScriptedModel, script, tasks_of, text
from tests.service_process import FINISHED, ServiceProcess, StartProcess, finished, start_run, tasks_by_key

RUNS = 20
PLAN: Plan = {
    "a": [],
    "b": ["a"],
    "c": ["a"],
    "d": ["b", "c"],
    "e": [],
    "f": ["e", "c"],
    "g": ["d"],
    "h": ["f", "g"],
}


def slow(call: Call) -> Reply:
    """A result after a while that differs from task to task, the same in every test."""
    return text(f"result of {call.task_key}").after(random.Random(str(call.task_key)).uniform(0.1, 0.3))


async def started_runs(service: ServiceProcess) -> list[str]:
    """Runs of the plan, half of them through the planner."""
    async with service.client() as client:
        options = {"max_tasks": len(PLAN)}
        plans = [{"plan": {"tasks": tasks_of(PLAN)}} if number % 2 else {} for number in range(RUNS)]
        return [(await start_run(client, options=options, **plan))["id"] for plan in plans]


async def stored(start_process: StartProcess, runs: list[str]) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """From the database, while no worker runs: each run's status, and the tasks that have succeeded."""
    reader = await start_process("serve", "--no-worker")
    async with reader.client() as client:
        status = {run: (await client.get(f"/runs/{run}")).json()["status"] for run in runs}
        succeeded = {
            (run, key)
            for run in runs
            for key, task in (await tasks_by_key(client, run)).items()
            if task["status"] == "succeeded"
        }
    await reader.terminate()
    return status, succeeded


async def test_after_a_kill_every_run_succeeds_and_nothing_that_had_succeeded_is_called_again(
    database_url: str, start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    scripted_model.begin(script({"executor": slow}, plan=PLAN))
    service = await start_process("serve", lease_seconds=2)
    runs = await started_runs(service)
    # In the middle: a third of all tasks is answered, and others are under way.
    await scripted_model.until(
        lambda: (
            sum(call.answered_at is not None for call in scripted_model.by_seat("executor")) >= RUNS * len(PLAN) // 3
            and len(scripted_model.in_flight) >= 5
        )
    )
    await service.kill()
    await scripted_model.until(lambda: not scripted_model.in_flight)
    called_before = Counter((call.run_id, call.task_key) for call in scripted_model.calls)
    before = len(scripted_model.calls)
    status, succeeded = await stored(start_process, runs)
    assert succeeded, "the kill came too early to show anything"
    assert any(state not in FINISHED for state in status.values()), "the kill came too late to show anything"

    await service.start()
    async with service.client() as client:
        ended = [await finished(client, run) for run in runs]
        results = [{key: task["result"] for key, task in (await tasks_by_key(client, run)).items()} for run in runs]
    called_after = Counter((call.run_id, call.task_key) for call in scripted_model.calls[before:])

    assert [(run["status"], run["result"]) for run in ended] == [("succeeded", "the answer")] * RUNS
    assert results == [{f"0.{i}": f"result of 0.{i}" for i in PLAN}] * RUNS
    tasks = {(run, f"0.{i}") for run in runs for i in PLAN}
    assert {task: called_before[task] for task in succeeded} == dict.fromkeys(succeeded, 1)
    assert {task: called_after[task] for task in succeeded} == dict.fromkeys(succeeded, 0)
    assert {task: called_after[task] for task in tasks - succeeded} == dict.fromkeys(tasks - succeeded, 1)
    assert max(called_before[task] for task in tasks) == 1
    async with opened(database_url) as database:
        for run in runs:
            await check(database, RunId(UUID(run)))


async def test_a_run_killed_while_it_is_planned_is_planned_again(
    start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    scripted_model.begin(script({"planner": Reply(hangs=True)}))
    service = await start_process("serve", lease_seconds=2)
    async with service.client() as client:
        run = await start_run(client)
        await scripted_model.until(lambda: scripted_model.order() == ["planner"])
        await service.kill()
        scripted_model.begin(script())
        await service.start()
        assert (await finished(client, run["id"]))["result"] == "the answer"
    assert scripted_model.order().count("planner") == 1


async def test_a_run_killed_during_its_synthesis_only_synthesizes_again(
    start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    scripted_model.begin(script({"synthesizer": Reply(hangs=True)}))
    service = await start_process("serve", lease_seconds=2)
    async with service.client() as client:
        run = await start_run(client)
        await scripted_model.until(lambda: "synthesizer" in scripted_model.order())
        await service.kill()
        scripted_model.begin(script())
        await service.start()
        assert (await finished(client, run["id"]))["result"] == "the answer"
    assert scripted_model.order() == ["synthesizer"]
