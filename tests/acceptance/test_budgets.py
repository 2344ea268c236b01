"""A budget holds under load, through a SIGKILL, and adds up in every view that clients have of it."""

import asyncio
import json
from collections.abc import Mapping
from uuid import UUID

import httpx
import pytest

from app.domain.ids import RunId
from app.storage import tables
from tests.databases import opened
from tests.invariants import check
from tests.scripted_model import Call, Plan, Reply, ScriptedModel, error, script, tasks_of, text
from tests.service_process import Json, StartProcess, every, finished, start_run, tasks_by_key
from tests.stored import rows_of

TASKS: Plan = {f"{number:03}": [] for number in range(100)}
PRICES = json.dumps({"scripted": {"input": 3, "output": 15}})
INPUT, OUTPUT = 700, 1_300  # more than a call reserves: so much was not expected
SPENT = {"prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
LIMITS: Mapping[str, float] = {"max_llm_calls": 70, "max_tokens": 120_000, "max_cost_usd": 1.2}


@pytest.mark.parametrize("limit", LIMITS)
async def test_a_budget_holds_with_a_hundred_tasks_in_flight_and_a_kill(
    database_url: str, start_process: StartProcess, scripted_model: ScriptedModel, limit: str
) -> None:
    answers = 0
    everything = asyncio.Event()

    async def a_third_at_first(call: Call) -> Reply:
        nonlocal answers
        answers += 1
        if answers > 30:
            await everything.wait()
        return text(f"result of {call.task_key}", usage=SPENT)

    scripted_model.begin(script({"executor": a_third_at_first}))
    service = await start_process("serve", lease_seconds=2, llm_max_concurrency=100, llm_prices=PRICES)
    async with service.client() as client:
        run = await start_run(
            client, plan={"tasks": tasks_of(TASKS)}, options={"max_parallel": 100}, budget={limit: LIMITS[limit]}
        )
        async with asyncio.timeout(60):
            while (await client.get(f"/runs/{run['id']}")).json()["progress"]["succeeded"] < 30:
                pass
        await scripted_model.until(lambda: len(scripted_model.in_flight) >= 10)
        await service.kill()
        await scripted_model.until(lambda: not scripted_model.in_flight)
        in_flight = sum(call.disconnected for call in scripted_model.calls)
        everything.set()
        await service.start()
        ended = await finished(client, run["id"])
        tasks = await tasks_by_key(client, run["id"])

    async with opened(database_url) as database:
        await check(database, RunId(UUID(run["id"])))
        calls = await rows_of(database, tables.calls, RunId(UUID(run["id"])))
    assert (ended["status"], ended["error"]["code"]) == ("failed", "budget_exceeded")
    assert limit in ended["error"]["message"]
    assert in_flight >= 10
    assert sum(call["status"] == "lost" for call in calls) >= in_flight

    def used(call: Json) -> float:
        tokens = (call["input_tokens"] or 0) + (call["output_tokens"] or 0)
        cost = (call["cost_nano_usd"] or 0) / 1e9
        return float({"max_llm_calls": 1, "max_tokens": tokens, "max_cost_usd": cost}[limit])

    def reserved(call: Json) -> float:
        tokens = call["reserved_input_tokens"] + call["reserved_output_tokens"]
        cost = call["reserved_cost_nano_usd"] / 1e9
        return float({"max_llm_calls": 1, "max_tokens": tokens, "max_cost_usd": cost}[limit])

    assert len(scripted_model.calls) <= len(calls) == ended["usage"]["llm_calls"]
    assert sum(map(used, calls)) <= LIMITS[limit] + sum(max(0, used(c) - reserved(c)) for c in calls) + 1e-9
    # What is left would not have been enough for one call more.
    assert sum(map(used, calls)) + max(map(reserved, calls)) > LIMITS[limit]
    if limit == "max_llm_calls":
        assert len(calls) == LIMITS[limit]
    succeeded = {key: task["result"] for key, task in tasks.items() if task["status"] == "succeeded"}
    assert succeeded == {key: f"result of {key}" for key in succeeded}
    assert len(succeeded) == sum(call["status"] == "answered" for call in calls) >= 30
    assert {task["status"] for task in tasks.values()} == {"succeeded", "cancelled"}


async def test_a_larger_budget_goes_on_over_http(start_process: StartProcess, scripted_model: ScriptedModel) -> None:
    service = await start_process()
    async with service.client() as client:
        run = await start_run(client, budget={"max_llm_calls": 3})
        before = await finished(client, run["id"])
        assert (before["status"], before["error"]["code"]) == ("failed", "budget_exceeded")
        done = [key for key, task in (await tasks_by_key(client, run["id"])).items() if task["status"] == "succeeded"]
        refused = await client.post(f"/runs/{run['id']}/retry", json={})
        assert (refused.status_code, refused.json()["code"]) == (422, "budget_too_small")
        again = await client.post(f"/runs/{run['id']}/retry", json={"budget": {"max_llm_calls": 10}})
        assert again.status_code == 202, again.text
        ended = await finished(client, run["id"])
    assert (ended["status"], ended["result"], ended["budget"]["max_llm_calls"]) == ("succeeded", "the answer", 10)
    assert ended["usage"]["llm_calls"] == 6
    assert all(len(scripted_model.calls_for(key)) == 1 for key in done)
    assert scripted_model.order().count("planner") == 1


async def test_a_deadline_cuts_what_is_in_flight_over_http(
    start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    scripted_model.begin(script({("executor", "b"): Reply(hangs=True)}))
    service = await start_process()
    async with service.client() as client:
        run = await start_run(client, budget={"max_seconds": 1})
        ended = await finished(client, run["id"])
        kinds = [event["type"] async for event in every(client, f"/runs/{run['id']}/events")]
    assert (ended["status"], ended["error"]["code"]) == ("failed", "deadline_exceeded")
    assert scripted_model.calls_for("0.b")[0].disconnected
    assert [kind for kind in kinds if kind.startswith("budget.")] == ["budget.warning", "budget.exceeded"]


async def test_usage_adds_up_in_every_view(start_process: StartProcess, scripted_model: ScriptedModel) -> None:
    spent = iter(range(1, 1_000))

    def odd(call: Call) -> Reply:
        tokens = next(spent)
        content = "" if call.task_key == "0.b" else f"result of {call.task_key}"
        return text(content, usage={"prompt_tokens": tokens, "completion_tokens": 7, "total_tokens": tokens + 7})

    replan = {"strategy": "replan", "tasks": tasks_of({"x": ["0.a"], "y": ["x"]})}
    scripted_model.begin(
        script({"executor": odd, ("executor", "y"): [error(503), text("y")], "recovery": text(json.dumps(replan))})
    )
    service = await start_process(llm_prices=PRICES)
    async with service.client() as client:
        run = await start_run(client, options={"max_attempts": 2, "on_failure": "replan"})
        ended = await finished(client, run["id"])
        assert (ended["status"], ended["generation"]) == ("succeeded", 1)
        plans = [plan async for plan in every(client, f"/runs/{run['id']}/plans")]
        attempts = [
            attempt
            for key in await tasks_by_key(client, run["id"])
            for attempt in (await task(client, run["id"], key))["attempts"]
        ]
    for name in ("llm_calls", "tool_calls", "input_tokens", "output_tokens"):
        assert sum(plan["usage"][name] for plan in plans) == ended["usage"][name], name
    assert round(sum(plan["usage"]["cost_usd"] for plan in plans), 9) == ended["usage"]["cost_usd"]
    executed = scripted_model.by_seat("executor")
    assert sum(attempt["usage"]["llm_calls"] for attempt in attempts) == len(executed)
    others = len(scripted_model.calls) - len(executed)
    assert ended["usage"]["llm_calls"] == len(executed) + others == len(scripted_model.calls)
    fifteen = others + 1  # planner, recovery and synthesizer, and y, whose first call met a fault
    assert ended["usage"]["input_tokens"] == sum(attempt["usage"]["input_tokens"] for attempt in attempts) + 10 * others
    assert ended["usage"]["output_tokens"] == 7 * (len(executed) - 2) + 5 * fifteen


async def task(client: httpx.AsyncClient, run_id: str, key: str) -> Json:
    """One task, with its attempts."""
    found: Json = (await client.get(f"/runs/{run_id}/tasks/{key}")).json()
    return found
