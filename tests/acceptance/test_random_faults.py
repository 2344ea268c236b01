"""Three hundred runs against an endpoint of which three calls in ten go wrong on the way."""

import asyncio
import random
import re
from collections import Counter

import pytest

from tests.acceptance.looks import looked_at
from tests.faults import well_said
from tests.scripted_model import Call, Reply, ScriptedModel, error, raw, reset, text, verbatim
from tests.service_process import Json, StartProcess, finished, start_run

RUNS = {"sqlite": 300, "postgresql": 100}
AT_ONCE = 60
SHARE = 0.3
SEED = 3
JSON_TYPE = {"Content-Type": "application/json"}

FAULTS = [
    error(429),
    error(429, headers={"Retry-After": "0"}),
    error(500),
    raw(b"<html>Bad gateway</html>", status=502, headers={"Content-Type": "text/html"}),
    error(503),
    error(529),
    error(408),
    error(409),
    reset(),
    text("cut off").cut(body_bytes=30),
    raw(b'{"id": "chatcmpl-1", "choices": [{"ind', headers=JSON_TYPE),
    raw(b"", headers=JSON_TYPE),
    verbatim({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []}),
]


def unreliable(call: Call) -> Reply:
    """By chance a fault, else a good answer; every third run has a task to reword.

    The chance hangs on the call alone, whatever the order in which calls arrive: each time the same.
    """
    number = re.findall(r"Goal number (\d+)", call.text)[0]
    chance = random.Random(f"{SEED} {number} {call.seat} {call.task_key} {call.turn}")
    if chance.random() < SHARE:
        return chance.choice(FAULTS)
    if int(number) % 3 == 0 and call.messages[-1]["content"].endswith("Do b."):
        return error(400)
    return text(well_said(call))


@pytest.mark.usefixtures("runs_hold_together")
async def test_with_30_percent_faults_on_the_way_99_percent_of_runs_succeed(
    database_url: str, start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    count = RUNS[database_url.partition(":")[0]]
    scripted_model.begin(unreliable)
    service = await start_process(
        llm_backoff_base_seconds=0.002, llm_backoff_cap_seconds=0.02, llm_max_concurrency=AT_ONCE
    )
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Json:
        async with places:
            run = await start_run(client, goal=f"Goal number {number}")
            return await finished(client, run["id"], within_seconds=120)

    async with service.client() as client:
        runs = await asyncio.gather(*map(one, range(count)))
        for number, run in enumerate(runs):
            assert run["status"] == "succeeded" or run["error"]["code"] == "llm_unavailable", run
            if run["status"] == "succeeded":
                assert run["result"] == "the answer"
                assert run["progress"]["succeeded"] == 2
            if number % 30 == 0:
                tasks = await looked_at(client, run)
                assert {key: task["result"] for key, task in tasks.items()} == {
                    "0.a": "result of 0.a",
                    "0.b": "result of 0.b",
                }
        assert (await client.get("/readyz")).status_code == 200
    assert sum(run["status"] == "succeeded" for run in runs) >= 0.99 * count
    assert "Traceback" not in service.log
    calls = Counter(call.seat for call in scripted_model.calls)
    assert min(calls.values()) > count / 3, calls
