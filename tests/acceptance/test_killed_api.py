"""An API that dies after it has taken a goal and before it says so: who asks again has one run, not two."""

import asyncio
import sys
from uuid import UUID

import httpx
import pytest

from app.domain.ids import RunId
from tests.databases import opened
from tests.invariants import check
from tests.scripted_model import Plan, ScriptedModel, script, tasks_of
from tests.service_process import ServiceProcess, StartProcess, every, finished

KEYS = 200
AT_ONCE = 4
PLAN: Plan = {"a": []}


@pytest.mark.soak
async def test_a_goal_whose_api_dies_before_it_answers_has_one_run_for_its_key(
    database_url: str,
    start_process: StartProcess,
    scripted_model: ScriptedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted_model.begin(script())
    with monkeypatch.context() as patched:
        patched.setattr("tests.service_process._COMMAND", (sys.executable, "-m", "tests.killed_api"))
        api = await start_process("serve", "--no-worker")
        kills = 0
        runs: dict[str, str] = {}
        async with api.client() as client:
            for first in range(0, KEYS, AT_ONCE):
                keys = [f"key {number}" for number in range(first, first + AT_ONCE)]
                while left := [key for key in keys if key not in runs]:
                    answers = await asyncio.gather(*(post(client, key) for key in left))
                    runs |= {key: run for key, run in zip(left, answers, strict=True) if run is not None}
                    if None in answers:
                        await died(api)
                        kills += 1
                        await api.start()
        await api.terminate()

    service = await start_process("serve")
    async with service.client() as client:
        ended = [await finished(client, run) for run in runs.values()]
        listed = [run["id"] async for run in every(client, "/runs")]
        goals = [goal["id"] async for goal in every(client, "/goals")]
    print(f"\n{kills} kills over {len(runs)} keys")  # noqa: T201 - soak shows it
    assert kills >= KEYS / AT_ONCE
    assert {run["status"] for run in ended} == {"succeeded"}
    assert sorted(listed) == sorted(runs.values())
    assert (len(set(listed)), len(goals)) == (KEYS, KEYS)
    async with opened(database_url) as database:
        for run in listed:
            await check(database, RunId(UUID(run)))


async def post(client: httpx.AsyncClient, key: str) -> str | None:
    """The run of the goal with this key; None where the API died first."""
    body = {"goal": "Find out", "plan": {"tasks": tasks_of(PLAN)}, "options": {"synthesize": False}}
    try:
        response = await client.post("/goals", json=body, headers={"Idempotency-Key": key})
    except httpx.TransportError:
        return None
    assert response.status_code == 202, response.text
    assert response.headers["Idempotency-Replayed"] == "true"  # a new run's answer never leaves
    return str(response.json()["id"])


async def died(api: ServiceProcess) -> None:
    """Wait for the end of a process that ends by itself."""
    assert api._process is not None
    async with asyncio.timeout(60):
        await api._process.wait()
