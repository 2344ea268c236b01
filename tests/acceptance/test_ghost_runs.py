"""A service that comes up to a hundred runs of a worker that is dead."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.databases import opened
from tests.invariants import check
from tests.polling import until
from tests.prepared_workers import PreparedWorkers
from tests.scripted_model import Call, Plan, Reply, ScriptedModel, script, text
from tests.service_process import against
from tests.stored import is_finished, make_run, the_run

GHOSTS = 100
OTHERS = 5
PLAN: Plan = {"a": [], "b": ["a"]}


@pytest.mark.soak
async def test_a_hundred_runs_of_a_killed_worker_are_finished_and_others_do_not_wait_for_them(
    database_url: str, scripted_model: ScriptedModel, tmp_path: Path
) -> None:
    ghosts_may_end = asyncio.Event()
    ghosts: set[str] = set()

    async def reply(call: Call) -> Reply:
        if call.run_id in ghosts:
            await ghosts_may_end.wait()
        return text(f"result of {call.task_key}")

    scripted_model.begin(script({"executor": reply}))
    settings = {**against(database_url, scripted_model), "lease_seconds": 2, "llm_max_concurrency": 2 * GHOSTS}
    settings |= {"worker_max_runs": 2 * GHOSTS}
    async with opened(database_url) as database, PreparedWorkers(tmp_path, settings) as workers:
        left = [await make_run(database, plan=PLAN, announced=False) for _ in range(GHOSTS)]
        ghosts.update(map(str, left))
        dead = await workers.start()
        await scripted_model.until(lambda: len(scripted_model.in_flight) == GHOSTS)
        await dead.kill()
        assert {(await the_run(database, run)).status for run in left} == {"running"}

        await workers.start()
        # Before, while and after the ghosts are taken over: there is always a way through.
        for number in range(OTHERS):
            run = await make_run(database, plan=PLAN)
            await until(lambda run=run: is_finished(database, run))  # type: ignore[misc]
            assert (await the_run(database, run)).status == "succeeded"
            if number == OTHERS // 2:
                await scripted_model.until(lambda: len(scripted_model.in_flight) == GHOSTS)
        ghosts_may_end.set()
        for run in left:
            await until(lambda run=run: is_finished(database, run))  # type: ignore[misc]
            assert (await the_run(database, run)).status == "succeeded"
            await check(database, run)
    made = Counter((call.run_id, call.task_key) for call in scripted_model.calls if call.run_id in ghosts)
    assert made == {(str(run), f"0.{i}"): 2 if i == "a" else 1 for run in left for i in (*PLAN, "") if i} | {
        (str(run), None): 1 for run in left
    }
