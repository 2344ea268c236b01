"""Goals: asked with every option of the contract, read back, listed, run again."""

from typing import Any

import httpx
import pytest

from app.api.routes import create_api
from app.api.services import Services
from app.api.watch import RunWatch
from app.settings import Settings
from app.storage.database import Database
from tests.api.asking import NOWHERE, Json, asking, chain, code_of, get, new_run, places_of

DEFAULT_OPTIONS: Json = {
    "model": None,
    "planner_model": None,
    "synthesizer_model": None,
    "min_tasks": 1,
    "max_tasks": 7,
    "max_parallel": 8,
    "max_attempts": 3,
    "max_steps": 20,
    "task_timeout_seconds": 300,
    "on_failure": "auto",
    "max_replans": 2,
    "on_exhausted": "fail",
    "tools": [],
    "approval": "none",
    "synthesize": True,
    "output_schema": None,
}
EMPTY_BUDGET = dict.fromkeys(("max_tokens", "max_llm_calls", "max_tool_calls", "max_seconds", "max_cost_usd"))


async def test_a_goal_is_answered_with_its_queued_run(client: httpx.AsyncClient) -> None:
    response = await client.post("/goals", json={"goal": "Find out", "metadata": {"ticket": "42"}})

    run = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/runs/{run['id']}" == run["links"]["self"]
    assert response.headers["retry-after"] == "1"
    assert run == {
        "id": run["id"],
        "goal_id": run["goal_id"],
        "goal": "Find out",
        "mode": "execute",
        "status": "queued",
        "stop_requested": None,
        "generation": None,
        "result": None,
        "error": None,
        "progress": dict.fromkeys(
            (
                "total",
                "pending",
                "running",
                "retrying",
                "awaiting_review",
                "succeeded",
                "failed",
                "skipped",
                "cancelled",
                "superseded",
            ),
            0,
        ),
        "usage": {"llm_calls": 0, "tool_calls": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": None},
        "budget": EMPTY_BUDGET,
        "options": DEFAULT_OPTIONS,
        "metadata": {"ticket": "42"},
        "model": "scripted",
        "open_reviews": 0,
        "allowed_actions": ["cancel", "pause"],
        "links": {
            "self": f"/runs/{run['id']}",
            "goal": f"/goals/{run['goal_id']}",
            "plan": f"/runs/{run['id']}/plan",
            "tasks": f"/runs/{run['id']}/tasks",
            "reviews": f"/runs/{run['id']}/reviews",
            "events": f"/runs/{run['id']}/events",
        },
        "version": 1,
        "created_at": run["created_at"],
        "started_at": None,
        "finished_at": None,
    }


async def test_times_are_iso_8601_in_utc_with_milliseconds(client: httpx.AsyncClient) -> None:
    run = await new_run(client)

    date, _, time = run["created_at"].partition("T")
    assert len(date) == 10
    assert len(time) == len("00:00:00.000Z")
    assert time.endswith("Z")


async def test_every_built_option_is_kept(client: httpx.AsyncClient) -> None:
    options = {
        "model": "m",
        "planner_model": "p",
        "synthesizer_model": "s",
        "min_tasks": 3,
        "max_tasks": 10_000,
        "max_parallel": 1_000,
        "max_attempts": 10,
        "task_timeout_seconds": 86_400,
        "on_failure": "replan",
        "max_replans": 0,
        "on_exhausted": "review",
        "approval": "plan",
        "output_schema": {"type": "object"},
    }
    run = await new_run(client, options=options, mode="plan_only")

    assert run["options"] == {**DEFAULT_OPTIONS, **options}
    assert run["mode"] == "plan_only"
    assert run["model"] == "m"


async def test_a_budget_is_kept(client: httpx.AsyncClient) -> None:
    budget = {"max_tokens": 2**53, "max_llm_calls": 1, "max_tool_calls": 0, "max_seconds": 0.5, "max_cost_usd": None}
    run = await new_run(client, budget=budget)

    assert run["budget"] == budget


async def test_an_integer_may_be_written_with_a_point(client: httpx.AsyncClient) -> None:
    assert (await new_run(client, options={"max_tasks": 9.0}))["options"]["max_tasks"] == 9


async def test_without_an_endpoint_the_offline_model_answers_whatever_model_is_named(databases: Any) -> None:
    settings = Settings.model_construct(llm_base_url=None, llm_api_key=None)
    with databases.fresh("sqlite") as url:
        database = Database(url)
        services = Services(database=database, settings=settings, watch=RunWatch(database))
        async with asking(create_api(services)) as client:
            run = await new_run(client, options={"model": "m"})
        await database.close()

    assert run["model"] == "offline"


WRONG = {
    "no goal": ({}, "/goal", "missing"),
    "an empty goal": ({"goal": ""}, "/goal", "too_short"),
    "a blank goal": ({"goal": " \n\t"}, "/goal", "blank"),
    "a goal that is no text": ({"goal": 1}, "/goal", "wrong_type"),
    "a goal of 20,001 characters": ({"goal": "x" * 20_001}, "/goal", "too_long"),
    "an unknown mode": ({"mode": "dream"}, "/mode", "not_allowed"),
    "a number as text": ({"options": {"max_tasks": "5"}}, "/options/max_tasks", "wrong_type"),
    "true for a number": ({"options": {"max_tasks": True}}, "/options/max_tasks", "wrong_type"),
    "1 for true": ({"options": {"synthesize": 1}}, "/options/synthesize", "wrong_type"),
    "half a task": ({"options": {"max_parallel": 1.5}}, "/options/max_parallel", "wrong_type"),
    "no tasks": ({"options": {"max_tasks": 0}}, "/options/max_tasks", "out_of_range"),
    "too many tasks": ({"options": {"max_tasks": 10_001}}, "/options/max_tasks", "out_of_range"),
    "no minimum": ({"options": {"min_tasks": 0}}, "/options/min_tasks", "out_of_range"),
    "more than the most": ({"options": {"min_tasks": 8}}, "/options/min_tasks", "out_of_range"),
    "too parallel": ({"options": {"max_parallel": 1_001}}, "/options/max_parallel", "out_of_range"),
    "too many attempts": ({"options": {"max_attempts": 11}}, "/options/max_attempts", "out_of_range"),
    "too many replans": ({"options": {"max_replans": 11}}, "/options/max_replans", "out_of_range"),
    "too many steps": ({"options": {"max_steps": 101}}, "/options/max_steps", "out_of_range"),
    "no time": ({"options": {"task_timeout_seconds": 0}}, "/options/task_timeout_seconds", "out_of_range"),
    "more than a day": ({"options": {"task_timeout_seconds": 86_401}}, "/options/task_timeout_seconds", "out_of_range"),
    "an unknown strategy": ({"options": {"on_failure": "pray"}}, "/options/on_failure", "not_allowed"),
    "a nameless model": ({"options": {"model": ""}}, "/options/model", "too_short"),
    "null options": ({"options": None}, "/options", "wrong_type"),
    "a list as metadata": ({"metadata": ["a"]}, "/metadata", "wrong_type"),
    "metadata that is no text": ({"metadata": {"a": 1}}, "/metadata/a", "wrong_type"),
    "a long metadata key": ({"metadata": {"k" * 65: "v"}}, "/metadata/" + "k" * 65, "too_long"),
    "a long metadata value": ({"metadata": {"k": "v" * 513}}, "/metadata/k", "too_long"),
    "17 metadata entries": ({"metadata": {str(n): "" for n in range(17)}}, "/metadata", "too_many"),
}


@pytest.mark.parametrize(("body", "place", "code"), WRONG.values(), ids=WRONG)
async def test_a_goal_that_breaks_a_bound_is_refused_where_it_does(
    lonely: httpx.AsyncClient, body: dict[str, Any], place: str, code: str
) -> None:
    sent = body if "goal" in body or not body else {"goal": "x", **body}
    response = await lonely.post("/goals", json=sent)

    assert code_of(response, 422) == "invalid_request"
    assert places_of(response) == [(place, code)]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"gaol": "x"}, "/gaol"),
        ({"options": {"max_task": 1}}, "/options/max_task"),
        ({"budget": {"max_money": None}}, "/budget/max_money"),
        ({"plan": {"tasks": [{"id": 1, "description": "d", "needs": []}]}}, "/plan/tasks/0/needs"),
        ({"plan": {"tasks": [{"id": 1, "description": "d"}], "name": "n"}}, "/plan/name"),
    ],
)
async def test_an_unknown_field_is_refused(lonely: httpx.AsyncClient, body: dict[str, Any], place: str) -> None:
    response = await lonely.post("/goals", json={"goal": "x", **body})

    assert code_of(response, 422) == "unknown_field"
    assert places_of(response) == [(place, "unknown_field")]


async def test_everything_that_is_wrong_is_listed_at_once(lonely: httpx.AsyncClient) -> None:
    response = await lonely.post("/goals", json={"options": {"max_tasks": 0}, "x": 1})

    assert code_of(response, 422) == "invalid_request"
    assert set(places_of(response)) == {
        ("/goal", "missing"),
        ("/options/max_tasks", "out_of_range"),
        ("/x", "unknown_field"),
    }


async def test_a_context_of_64_kib_is_taken(client: httpx.AsyncClient) -> None:
    await new_run(client, context="x" * (64 * 1024 - 2))


async def test_a_larger_context_is_refused(lonely: httpx.AsyncClient) -> None:
    response = await lonely.post("/goals", json={"goal": "x", "context": "x" * (64 * 1024 - 1)})

    assert code_of(response, 422) == "context_too_large"
    assert places_of(response) == [("/context", "context_too_large")]


async def test_a_goal_is_read_with_its_runs_oldest_first(client: httpx.AsyncClient) -> None:
    first = await new_run(client, context=[1], metadata={"a": "b"})
    second = (await client.post(f"/goals/{first['goal_id']}/runs")).json()

    goal = await get(client, f"/goals/{first['goal_id']}")
    assert goal == {
        "id": first["goal_id"],
        "goal": "Find out",
        "context": [1],
        "metadata": {"a": "b"},
        "run_ids": [first["id"], second["id"]],
        "created_at": goal["created_at"],
    }


async def test_a_goal_that_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    assert code_of(await client.get(f"/goals/{NOWHERE}"), 404) == "goal_not_found"


@pytest.mark.parametrize("goal_id", ["x", "%00", "%ff", "1" * 5_000, "01980000000070008000000000000001"])
async def test_a_malformed_goal_id_is_not_found_without_sql(lonely: httpx.AsyncClient, goal_id: str) -> None:
    assert code_of(await lonely.get(f"/goals/{goal_id}"), 404) == "goal_not_found"
    assert code_of(await lonely.post(f"/goals/{goal_id}/runs"), 404) == "goal_not_found"


async def test_goals_are_listed_newest_first(client: httpx.AsyncClient) -> None:
    made = [(await new_run(client, goal=f"goal {n}"))["goal_id"] for n in range(3)]

    page = await get(client, "/goals")
    assert [goal["id"] for goal in page["data"]] == made[::-1]
    assert (page["has_more"], page["next_cursor"]) == (False, None)


async def test_running_a_goal_again_takes_after_its_newest_run(client: httpx.AsyncClient) -> None:
    first = await new_run(client, options={"max_parallel": 2, "max_tasks": 4}, metadata={"a": "1"}, mode="plan_only")

    response = await client.post(f"/goals/{first['goal_id']}/runs", json={"options": {"max_parallel": 3}})

    run = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/runs/{run['id']}"
    assert run["options"] == {**DEFAULT_OPTIONS, "max_parallel": 3, "max_tasks": 4}
    assert run["metadata"] == {"a": "1"}
    assert run["mode"] == "execute"
    assert run["goal_id"] == first["goal_id"]


async def test_metadata_of_a_rerun_replaces_all_of_the_newest_runs(client: httpx.AsyncClient) -> None:
    first = await new_run(client, metadata={"a": "1"})

    run = (await client.post(f"/goals/{first['goal_id']}/runs", json={"metadata": {"b": "2"}})).json()

    assert run["metadata"] == {"b": "2"}


async def test_a_rerun_walks_the_clients_plan_again(client: httpx.AsyncClient) -> None:
    first = await new_run(client, plan=chain("a", "b"))

    run = (await client.post(f"/goals/{first['goal_id']}/runs")).json()

    again, before = [await get(client, f"{one['links']['plan']}") for one in (run, first)]
    assert again["reason"] == "client"
    assert [{**task, "status": "pending"} for task in again["tasks"]] == before["tasks"]
    assert (again["waves"], again["critical_path"]) == ([["0.a"], ["0.b"]], ["0.a", "0.b"])


async def test_a_rerun_with_a_null_plan_has_one_drawn(client: httpx.AsyncClient) -> None:
    first = await new_run(client, plan=chain("a"))

    run = (await client.post(f"/goals/{first['goal_id']}/runs", json={"plan": None})).json()

    assert run["generation"] is None
    assert code_of(await client.get(run["links"]["plan"]), 404) == "plan_not_ready"


async def test_a_rerun_with_another_plan_walks_that(client: httpx.AsyncClient) -> None:
    first = await new_run(client, plan=chain("a"))

    run = (await client.post(f"/goals/{first['goal_id']}/runs", json={"plan": chain("b")})).json()

    assert (await get(client, run["links"]["plan"]))["added"] == ["0.b"]


async def test_a_goal_whose_runs_are_deleted_is_run_again_with_the_defaults(client: httpx.AsyncClient) -> None:
    first = await new_run(client, options={"max_parallel": 2}, metadata={"a": "1"})
    await client.post(f"/runs/{first['id']}/cancel")
    await client.delete(f"/runs/{first['id']}")

    run = (await client.post(f"/goals/{first['goal_id']}/runs")).json()

    assert run["options"] == DEFAULT_OPTIONS
    assert run["metadata"] == {"a": "1"}


async def test_a_rerun_whose_bounds_cross_the_newest_runs_is_refused(client: httpx.AsyncClient) -> None:
    first = await new_run(client, options={"min_tasks": 4})

    response = await client.post(f"/goals/{first['goal_id']}/runs", json={"options": {"max_tasks": 3}})

    assert code_of(response, 422) == "invalid_request"
    assert (await get(client, f"/goals/{first['goal_id']}"))["run_ids"] == [first["id"]]


async def test_running_a_goal_that_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    assert code_of(await client.post(f"/goals/{NOWHERE}/runs", json={}), 404) == "goal_not_found"


async def test_a_rerun_refuses_what_a_goal_alone_may_hold(lonely: httpx.AsyncClient) -> None:
    response = await lonely.post(f"/goals/{NOWHERE}/runs", json={"goal": "another"})

    assert code_of(response, 422) == "unknown_field"
