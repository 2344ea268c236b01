"""Calls that take ten times the lease: their worker lives, so nobody makes them again."""

from collections import Counter
from pathlib import Path

import pytest

from tests.databases import opened
from tests.invariants import check
from tests.polling import until
from tests.prepared_workers import PreparedWorkers
from tests.scripted_model import Plan, ScriptedModel, script, text
from tests.service_process import against
from tests.stored import is_finished, make_run, row_of

LEASE_SECONDS = 3
RUNS = 10
PLAN: Plan = {id_: [] for id_ in "abcde"}


@pytest.mark.soak
async def test_a_call_of_ten_leases_is_made_once(
    database_url: str, scripted_model: ScriptedModel, tmp_path: Path
) -> None:
    scripted_model.begin(script({"executor": lambda call: text(f"{call.task_key}").after(10 * LEASE_SECONDS)}))
    settings = {**against(database_url, scripted_model), "lease_seconds": LEASE_SECONDS, "poll_seconds": 0.1}
    async with opened(database_url) as database, PreparedWorkers(tmp_path, settings) as workers:
        runs = [await make_run(database, plan=PLAN, synthesize=False) for _ in range(RUNS)]
        alive = [await workers.start(llm_max_concurrency=64, worker_max_runs=5) for _ in range(3)]
        for run in runs:
            await until(lambda run=run: is_finished(database, run), within_seconds=120)  # type: ignore[misc]
            row = await row_of(database, run)
            assert (row["status"], row["epoch"], row["takeovers"]) == ("succeeded", 1, 0)
            await check(database, run)
        assert not any("lease lost" in worker.log for worker in alive)
        assert [await worker.terminate() for worker in alive] == [0, 0, 0]
    made = Counter((call.run_id, call.task_key) for call in scripted_model.calls)
    assert made == {(str(run), f"0.{id_}"): 1 for run in runs for id_ in PLAN}
