"""What a run can keep to: usable schemas, options that go together, limits on costs that can be told."""

from decimal import Decimal

import httpx
import pytest

from app.settings import ModelPrice, Settings
from tests.api.asking import NOWHERE, Json, code_of, new_run, places_of

NO_SCHEMA = {"type": "objekt"}
A_SCHEMA = {"type": "object", "required": ["n"]}
DEARLY = {"budget": {"max_cost_usd": 1.5}}


@pytest.mark.parametrize("path", ["/goals", f"/goals/{NOWHERE}/runs", f"/runs/{NOWHERE}/retry"])
async def test_a_goals_output_schema_must_be_one(lonely: httpx.AsyncClient, path: str) -> None:
    goal = {"goal": "x"} if path == "/goals" else {}
    response = await lonely.post(path, json={**goal, "options": {"output_schema": NO_SCHEMA}})

    assert code_of(response, 422) == "invalid_schema"
    assert places_of(response) == [("/options/output_schema", "invalid_schema")]


async def test_a_tasks_output_schema_must_be_one(lonely: httpx.AsyncClient) -> None:
    tasks = [
        {"id": 1, "description": "a", "output_schema": A_SCHEMA},
        {"id": 2, "description": "b", "output_schema": NO_SCHEMA},
        {"id": 3, "description": "c", "output_schema": None},
    ]
    response = await lonely.post("/goals", json={"goal": "x", "plan": {"tasks": tasks}})

    assert code_of(response, 422) == "invalid_schema"
    assert places_of(response) == [("/plan/tasks/1/output_schema", "invalid_schema")]


@pytest.mark.parametrize("schema", [[], "object", True, 1])
async def test_an_output_schema_is_an_object(lonely: httpx.AsyncClient, schema: object) -> None:
    response = await lonely.post("/goals", json={"goal": "x", "options": {"output_schema": schema}})

    assert code_of(response, 422) == "invalid_request"
    assert places_of(response) == [("/options/output_schema", "wrong_type")]


async def test_an_output_schema_needs_the_synthesis_that_it_is_for(client: httpx.AsyncClient) -> None:
    run = await new_run(client, options={"output_schema": A_SCHEMA})

    at_once = await client.post(
        "/goals", json={"goal": "x", "options": {"output_schema": A_SCHEMA, "synthesize": False}}
    )
    later = await client.post(f"/goals/{run['goal_id']}/runs", json={"options": {"synthesize": False}})
    without = await client.post(
        f"/goals/{run['goal_id']}/runs", json={"options": {"synthesize": False, "output_schema": None}}
    )

    for response in (at_once, later):
        assert code_of(response, 422) == "invalid_request"
        assert places_of(response) == [("/options/output_schema", "not_allowed")]
        assert "synthesis" in response.json()["detail"]
    assert without.status_code == 202


async def test_a_limit_on_costs_needs_a_price_for_the_model(client: httpx.AsyncClient) -> None:
    response = await client.post("/goals", json={"goal": "x", **DEARLY})

    assert code_of(response, 422) == "no_price"
    assert places_of(response) == [("/budget/max_cost_usd", "no_price")]
    assert "`scripted`" in response.json()["detail"]
    assert "PLANWAVE_LLM_PRICES" in response.json()["detail"]


@pytest.mark.parametrize("seat", ["model", "planner_model", "synthesizer_model"])
async def test_a_limit_on_costs_needs_a_price_for_every_model_of_the_run(
    client: httpx.AsyncClient, priced: None, seat: str
) -> None:
    taken = await client.post("/goals", json={"goal": "x", **DEARLY})
    refused = await client.post("/goals", json={"goal": "x", "options": {seat: "dear"}, **DEARLY})

    assert taken.status_code == 202
    assert code_of(refused, 422) == "no_price"
    assert "`dear`" in refused.json()["detail"]


async def test_the_services_own_planner_needs_a_price_too(
    client: httpx.AsyncClient, settings: Settings, priced: None
) -> None:
    settings.llm_planner_model = "dear"

    refused = await client.post("/goals", json={"goal": "x", **DEARLY})
    settings.llm_prices["dear"] = ModelPrice(input=Decimal(1), output=Decimal(2))
    taken = await client.post("/goals", json={"goal": "x", **DEARLY})

    assert code_of(refused, 422) == "no_price"
    assert taken.status_code == 202


async def test_a_synthesizer_that_is_not_asked_needs_no_price(client: httpx.AsyncClient, priced: None) -> None:
    options = {"synthesizer_model": "dear", "synthesize": False}

    assert (await client.post("/goals", json={"goal": "x", "options": options, **DEARLY})).status_code == 202


async def test_a_rerun_needs_prices_for_the_limit_it_takes_over(client: httpx.AsyncClient, priced: None) -> None:
    run = await new_run(client, **DEARLY)

    response = await client.post(f"/goals/{run['goal_id']}/runs", json={"options": {"model": "dear"}})

    assert code_of(response, 422) == "no_price"


async def test_a_retry_needs_prices_for_its_limit(client: httpx.AsyncClient) -> None:
    run = await new_run(client)
    await client.post(f"/runs/{run['id']}/cancel")

    response = await client.post(f"/runs/{run['id']}/retry", json=DEARLY)

    assert code_of(response, 422) == "no_price"


async def test_the_offline_model_costs_nothing(client: httpx.AsyncClient, settings: Settings) -> None:
    settings.llm_base_url = settings.llm_api_key = None

    run = await new_run(client, options={"model": "dear"}, **DEARLY)

    assert (run["model"], run["budget"]["max_cost_usd"]) == ("offline", 1.5)


BEYOND: list[tuple[Json, str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 1e300}, "max_tokens"),
    ({"max_llm_calls": 0}, "max_llm_calls"),
    ({"max_tool_calls": -1}, "max_tool_calls"),
    ({"max_seconds": 0}, "max_seconds"),
    ({"max_seconds": True}, "max_seconds"),
    ({"max_seconds": 1e308}, "max_seconds"),
    ({"max_cost_usd": -0.1}, "max_cost_usd"),
]


@pytest.mark.parametrize(("budget", "field"), BEYOND)
async def test_a_limit_that_makes_no_sense_is_refused(lonely: httpx.AsyncClient, budget: Json, field: str) -> None:
    response = await lonely.post("/goals", json={"goal": "x", "budget": budget})

    assert code_of(response, 422) == "invalid_request"
    assert [error["pointer"] for error in response.json()["errors"]] == [f"/budget/{field}"]
