"""Failed and cancelled runs go on: what is kept, what may be changed, what is refused."""

import asyncio
from typing import Any

import httpx
import pytest

from app.api.services import Services
from app.domain.ids import TaskKey
from app.domain.status import AttemptStatus, CallStatus, RunStatus, Seat, TaskStatus
from app.domain.usage import Usage
from app.storage.changes import Changes
from app.storage.writing import count_by_status
from tests.api.asking import (
    NOWHERE,
    Json,
    bend,
    chain,
    code_of,
    commit,
    end,
    get,
    new_run,
    places_of,
    steer,
    types_of_events,
)
from tests.stored import claim_one


async def failed_run(client: httpx.AsyncClient, services: Services, **body: Any) -> Json:
    """The first task has succeeded, the second has failed; 100 tokens and 0.25 USD went into 2 calls."""
    run = await new_run(client, plan=chain("a", "b", "c"), **body)
    await commit(services.database, run["id"], _walk_to_failure)
    await bend(services.database, run, active_ms=1_500)
    return run


def _walk_to_failure(changes: Changes) -> None:
    ends = {"0.a": (TaskStatus.SUCCEEDED, AttemptStatus.SUCCEEDED), "0.b": (TaskStatus.FAILED, AttemptStatus.FAILED)}
    for number, (key, (task, attempt)) in enumerate(ends.items(), start=1):
        changes.attempt_started(TaskKey(key), 1, description="Do it", prompt_hash="hash")
        changes.call_opened(
            number, seat=Seat.EXECUTOR, model="scripted", try_number=1, task_key=TaskKey(key), attempt=1
        )
        usage = Usage(input_tokens=40, output_tokens=10)
        changes.call_ended(number, CallStatus.ANSWERED, usage=usage, cost_nano_usd=125_000_000)
        changes.attempt_ended(TaskKey(key), 1, attempt)
        changes.task(TaskKey(key), task, result="found" if task is TaskStatus.SUCCEEDED else None)
        changes.event(f"task.{task}", task_key=TaskKey(key))
    changes.task(TaskKey("0.c"), TaskStatus.CANCELLED)
    changes.event("task.cancelled", task_key=TaskKey("0.c"))
    changes.progress = count_by_status(["succeeded", "failed", "cancelled"])
    end(RunStatus.FAILED, error={"code": "task_failed", "message": "Task 0.b failed.", "task_key": "0.b"})(changes)


@pytest.mark.parametrize("body", [None, {}], ids=["no body", "an empty one"])
async def test_a_failed_run_goes_on_and_keeps_what_succeeded(
    client: httpx.AsyncClient, services: Services, body: Any
) -> None:
    run = await failed_run(client, services)

    response = await client.post(f"/runs/{run['id']}/retry", json=body)

    retried = response.json()
    assert response.status_code == 202, response.text
    assert (retried["status"], retried["error"], retried["finished_at"]) == ("queued", None, None)
    assert (retried["progress"]["succeeded"], retried["progress"]["pending"]) == (1, 2)
    assert retried["allowed_actions"] == ["cancel", "pause"]
    assert (retried["options"], retried["budget"]) == (run["options"], run["budget"])
    assert retried["usage"]["llm_calls"] == 2
    tasks = (await get(client, run["links"]["tasks"]))["data"]
    assert [(task["status"], task["result"]) for task in tasks] == [
        ("succeeded", "found"),
        ("pending", None),
        ("pending", None),
    ]
    assert (await types_of_events(client, run))[-1] == "run.retried"
    assert str((await claim_one(services.database)).run_id) == run["id"]


async def test_a_cancelled_run_without_a_plan_is_planned_after_all(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await new_run(client, mode="plan_only")
    await steer(client, run, "cancel")

    response = await steer(client, run, "retry")

    assert (response.status_code, response.json()["status"], response.json()["mode"]) == (202, "queued", "plan_only")
    assert str((await claim_one(services.database)).run_id) == run["id"]


async def test_options_and_budget_of_a_retry_replace_the_runs_one_by_one(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await failed_run(
        client, services, options={"max_attempts": 2}, budget={"max_llm_calls": 5, "max_tokens": 500}
    )

    body = {"options": {"model": "another", "on_failure": "skip"}, "budget": {"max_llm_calls": None, "max_seconds": 60}}
    retried = (await client.post(f"/runs/{run['id']}/retry", json=body)).json()

    assert retried["options"] == {**run["options"], "model": "another", "on_failure": "skip"}
    assert retried["budget"] == {**run["budget"], "max_llm_calls": None, "max_seconds": 60}
    assert retried["model"] == "another"


@pytest.mark.parametrize("status", [status for status in RunStatus if status not in ("failed", "cancelled")])
async def test_only_a_failed_or_cancelled_run_is_retried(
    client: httpx.AsyncClient, services: Services, status: RunStatus
) -> None:
    run = await new_run(client)
    await bend(services.database, run, status=status)

    response = await steer(client, run, "retry")

    assert code_of(response, 409) == "invalid_transition"
    assert "retry" not in response.json()["allowed_actions"]


async def test_of_many_retries_at_once_one_is_taken(client: httpx.AsyncClient, services: Services) -> None:
    run = await failed_run(client, services)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(steer(client, run, "retry")) for _ in range(6)]

    assert sorted(task.result().status_code for task in asked) == [202] + [409] * 5
    assert (await types_of_events(client, run)).count("run.retried") == 1


USED_UP = {"max_llm_calls": (2, 3), "max_tokens": (100, 101), "max_cost_usd": (0.25, 0.26), "max_seconds": (1.5, 1.6)}


@pytest.mark.parametrize("name", USED_UP)
async def test_a_budget_that_is_used_up_already_is_refused(
    client: httpx.AsyncClient, services: Services, name: str, priced: None
) -> None:
    run = await failed_run(client, services)
    used, enough = USED_UP[name]

    refused = await client.post(f"/runs/{run['id']}/retry", json={"budget": {name: used}})
    taken = await client.post(f"/runs/{run['id']}/retry", json={"budget": {name: enough}})

    assert code_of(refused, 422) == "budget_too_small"
    assert places_of(refused) == [(f"/budget/{name}", "budget_too_small")]
    assert taken.status_code == 202


async def test_the_runs_own_budget_must_be_large_enough_too(client: httpx.AsyncClient, services: Services) -> None:
    run = await failed_run(client, services, budget={"max_llm_calls": 2, "max_tokens": 70, "max_tool_calls": 0})

    refused = await steer(client, run, "retry")
    half = await client.post(f"/runs/{run['id']}/retry", json={"budget": {"max_tokens": 200}})

    assert code_of(refused, 422) == "budget_too_small"
    assert set(places_of(refused)) == {
        ("/budget/max_tokens", "budget_too_small"),
        ("/budget/max_llm_calls", "budget_too_small"),
    }
    assert "give a larger budget" in half.json()["detail"]
    assert (await get(client, run["links"]["self"]))["status"] == "failed"


async def test_a_retry_whose_options_contradict_the_runs_is_refused(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await failed_run(client, services, options={"min_tasks": 4})

    response = await client.post(f"/runs/{run['id']}/retry", json={"options": {"max_tasks": 3}})

    assert code_of(response, 422) == "invalid_request"
    assert places_of(response) == [("/options/min_tasks", "out_of_range")]


@pytest.mark.parametrize(
    ("body", "place", "code"),
    [
        ({"plan": None}, "/plan", "unknown_field"),
        ({"mode": "execute"}, "/mode", "unknown_field"),
        ({"options": {"max_attempts": 0}}, "/options/max_attempts", "out_of_range"),
        ({"budget": {"max_tokens": 0}}, "/budget/max_tokens", "out_of_range"),
    ],
)
async def test_a_retry_that_breaks_a_bound_is_refused_where_it_does(
    lonely: httpx.AsyncClient, body: Json, place: str, code: str
) -> None:
    response = await lonely.post(f"/runs/{NOWHERE}/retry", json=body)

    assert response.status_code == 422
    assert places_of(response) == [(place, code)]
