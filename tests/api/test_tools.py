"""Tools: listed, and named by goals, plans, fresh runs and retries."""

from typing import Any

import httpx
import pytest

from app.api.routes import create_api
from app.api.services import Services
from app.domain.status import RunStatus
from app.tools.calculator import calculator
from app.tools.toolbox import Toolbox
from tests.api.asking import Json, asking, code_of, commit, end, get, new_run, places_of
from tests.engine.recording_tools import RecordingTool
from tests.service_process import StartProcess


def fewer(services: Services) -> httpx.AsyncClient:
    """A client of a service on the same database whose only tool is the calculator."""
    left = Services(
        database=services.database, settings=services.settings, watch=services.watch, toolbox=Toolbox([calculator])
    )
    return asking(create_api(left))


def with_tools(*named: list[str]) -> Json:
    """A plan of one task for each of these lists of tools."""
    return {"tasks": [{"id": n, "description": f"Do {n}", "tools": tools} for n, tools in enumerate(named)]}


# --- listed


async def test_tools_are_listed_by_name_with_what_they_say_of_themselves(client: httpx.AsyncClient) -> None:
    listed = (await get(client, "/tools"))["data"]

    assert [tool["name"] for tool in listed] == ["calculator", "mail", "read_result"]
    assert listed[1] == {
        "name": "mail",
        "description": "What mail does.",
        "input_schema": dict(RecordingTool("mail").spec.input_schema),
        "side_effects": "once",
    }
    assert listed[0]["input_schema"] == calculator.spec.input_schema


async def test_tools_are_walked_in_pages(client: httpx.AsyncClient) -> None:
    pages = [await get(client, "/tools", limit=1)]
    while pages[-1]["has_more"]:
        pages.append(await get(client, "/tools", limit=1, cursor=pages[-1]["next_cursor"]))

    assert [[tool["name"] for tool in page["data"]] for page in pages] == [["calculator"], ["mail"], ["read_result"]]
    assert pages[-1]["next_cursor"] is None


async def test_a_page_goes_on_behind_a_tool_that_has_gone(client: httpx.AsyncClient, services: Services) -> None:
    cursor = (await get(client, "/tools", limit=2))["next_cursor"]
    later = Toolbox([calculator, RecordingTool("post"), RecordingTool("aaa")])
    others = Services(database=services.database, settings=services.settings, watch=services.watch, toolbox=later)

    async with asking(create_api(others)) as other:
        assert [tool["name"] for tool in (await get(other, "/tools", cursor=cursor))["data"]] == ["post"]


async def test_a_cursor_of_another_list_is_none_of_tools(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await new_run(client)
    of_tools = (await get(client, "/tools", limit=1))["next_cursor"]
    of_runs = (await get(client, "/runs", limit=1))["next_cursor"]

    for path, cursor in (("/tools", of_runs), ("/runs", of_tools), ("/tools", of_tools + "A")):
        assert code_of(await client.get(path, params={"cursor": cursor}), 422) == "invalid_cursor"


async def test_a_service_without_tools_lists_none(lonely: httpx.AsyncClient) -> None:
    assert await get(lonely, "/tools") == {"data": [], "has_more": False, "next_cursor": None}


async def test_a_service_without_a_worker_lists_tools_too(start_process: StartProcess) -> None:
    api = await start_process("serve", "--no-worker", tools="calculator,http_get")
    async with api.client() as client:
        listed = (await get(client, "/tools"))["data"]

    assert [tool["name"] for tool in listed] == ["calculator", "http_get"]


# --- named in options


async def test_a_goal_names_the_tools_it_may_use(client: httpx.AsyncClient) -> None:
    run = await new_run(client, options={"tools": ["read_result", "mail", "read_result"]})

    assert run["options"]["tools"] == ["mail", "read_result"]
    assert (await get(client, run["links"]["self"]))["options"] == run["options"]


async def test_a_goal_gets_no_tools_unless_it_names_them(client: httpx.AsyncClient) -> None:
    assert (await new_run(client))["options"]["tools"] == []


async def test_each_unknown_tool_is_named_once_where_it_stands(client: httpx.AsyncClient) -> None:
    body = {"goal": "x", "options": {"tools": ["rm", "mail", "rm", "Mail", ""]}}

    response = await client.post("/goals", json=body)

    assert code_of(response, 422) == "unknown_tool"
    assert places_of(response) == [
        ("/options/tools/0", "unknown_tool"),
        ("/options/tools/3", "unknown_tool"),
        ("/options/tools/4", "unknown_tool"),
    ]
    message = response.json()["errors"][0]["message"]
    assert "'rm'" in message
    assert "GET /tools" in message
    assert "calculator, mail, read_result" in message
    assert (await get(client, "/goals"))["data"] == []


async def test_an_unknown_tool_is_told_of_beside_what_else_is_wrong(client: httpx.AsyncClient) -> None:
    body = {"goal": "x", "options": {"tools": ["rm"], "min_tasks": 9}}

    response = await client.post("/goals", json=body)

    assert code_of(response, 422) == "invalid_request"
    assert places_of(response) == [("/options/min_tasks", "out_of_range"), ("/options/tools/0", "unknown_tool")]


async def test_a_service_without_tools_knows_none(lonely: httpx.AsyncClient) -> None:
    response = await lonely.post("/goals", json={"goal": "x", "options": {"tools": ["calculator"]}})

    assert code_of(response, 422) == "unknown_tool"
    assert response.json()["detail"].endswith(": none.")


async def test_no_more_names_are_read_than_anybody_needs(lonely: httpx.AsyncClient) -> None:
    response = await lonely.post("/goals", json={"goal": "x", "options": {"tools": ["a"] * 10_001}})

    assert code_of(response, 422) == "invalid_request"
    assert places_of(response) == [("/options/tools", "too_many")]


@pytest.mark.parametrize(
    "options",
    [{"max_steps": 1}, {"max_steps": 100}, {"approval": "tools"}, {"approval": "plan_and_tools"}],
    ids=lambda options: "-".join(map(str, *options.items())),
)
async def test_what_belongs_to_tools_is_taken(client: httpx.AsyncClient, options: dict[str, Any]) -> None:
    run = await new_run(client, options=options)

    assert run["options"] | options == run["options"]


@pytest.mark.parametrize("steps", [0, 101])
async def test_steps_keep_within_their_range(lonely: httpx.AsyncClient, steps: int) -> None:
    response = await lonely.post("/goals", json={"goal": "x", "options": {"max_steps": steps}})

    assert places_of(response) == [("/options/max_steps", "out_of_range")]


# --- named by a client's plan


async def test_tools_of_a_clients_plan_count_as_named_by_the_client(client: httpx.AsyncClient) -> None:
    plan = with_tools(["mail", "mail"], [], ["calculator"])
    run = await new_run(client, plan=plan, options={"tools": ["read_result", "mail"]})

    tasks = (await get(client, run["links"]["tasks"]))["data"]
    assert run["options"]["tools"] == ["calculator", "mail", "read_result"]
    assert [task["tools"] for task in tasks] == [["mail"], [], ["calculator"]]


async def test_a_plan_may_name_only_tools_that_there_are(client: httpx.AsyncClient) -> None:
    response = await client.post("/goals", json={"goal": "x", "plan": with_tools(["mail"], ["calculator", "rm"])})

    assert code_of(response, 422) == "plan_invalid"
    assert places_of(response) == [("/plan/tasks/1/tools/1", "unknown_tool")]


# --- run again


async def test_a_fresh_run_may_use_what_the_newest_could(client: httpx.AsyncClient) -> None:
    run = await new_run(client, options={"tools": ["mail"]})

    again = await client.post(f"/goals/{run['goal_id']}/runs")

    assert again.json()["options"]["tools"] == ["mail"]


async def test_tools_that_are_given_replace_those_of_the_newest_run(client: httpx.AsyncClient) -> None:
    run = await new_run(client, options={"tools": ["mail"]})
    path = f"/goals/{run['goal_id']}/runs"

    assert (await client.post(path, json={"options": {"tools": ["calculator"]}})).json()["options"]["tools"] == [
        "calculator"
    ]
    response = await client.post(path, json={"options": {"tools": ["calculator", "rm"]}})
    assert code_of(response, 422) == "unknown_tool"
    assert places_of(response) == [("/options/tools/1", "unknown_tool")]


async def test_a_plan_that_is_used_again_brings_its_tools(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan=with_tools(["mail"]))
    path = f"/goals/{run['goal_id']}/runs"

    again = (await client.post(path, json={"options": {"tools": ["calculator"]}})).json()
    drawn = (await client.post(path, json={"plan": None, "options": {"tools": []}})).json()

    assert (again["options"]["tools"], drawn["options"]["tools"]) == (["calculator", "mail"], [])


async def test_a_plan_that_is_given_brings_its_tools(client: httpx.AsyncClient) -> None:
    run = await new_run(client, options={"tools": ["read_result"]})
    path = f"/goals/{run['goal_id']}/runs"

    again = (await client.post(path, json={"plan": with_tools(["mail"])})).json()
    refused = await client.post(path, json={"plan": with_tools(["rm"])})

    assert again["options"]["tools"] == ["mail", "read_result"]
    assert code_of(refused, 422) == "plan_invalid"


async def test_tools_that_have_gone_since_are_to_be_given_anew(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client, options={"tools": ["calculator", "mail"]})
    path = f"/goals/{run['goal_id']}/runs"

    async with fewer(services) as later:
        response = await later.post(path)
        taken = await later.post(path, json={"options": {"tools": ["calculator"]}})

    assert code_of(response, 422) == "unknown_tool"
    assert places_of(response) == [("/options/tools/1", "unknown_tool")]
    assert "taken over" in response.json()["detail"]
    assert taken.status_code == 202


async def test_a_plan_whose_tools_have_gone_since_is_not_used_again(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await new_run(client, plan=with_tools(["mail"], ["mail"]))
    path = f"/goals/{run['goal_id']}/runs"

    async with fewer(services) as later:
        response = await later.post(path, json={"options": {"tools": []}})
        taken = await later.post(path, json={"options": {"tools": []}, "plan": with_tools(["calculator"])})

    assert code_of(response, 422) == "unknown_tool"
    assert places_of(response) == [("/plan", "unknown_tool")]
    assert taken.json()["options"]["tools"] == ["calculator"]


@pytest.mark.parametrize(
    "body", [{"options": {"tools": ["mail"]}}, {"plan": with_tools(["mail"])}], ids=["options", "plan"]
)
async def test_a_repeated_request_is_answered_though_its_tools_have_gone_since(
    client: httpx.AsyncClient, services: Services, body: Json
) -> None:
    run = await new_run(client, **body)
    key = {"Idempotency-Key": "k"}
    for path in ("/goals", f"/goals/{run['goal_id']}/runs"):
        sent = {"goal": "x", **body} if path == "/goals" else body
        first = await client.post(path, json=sent, headers=key)

        async with fewer(services) as later:
            again = await later.post(path, json=sent, headers=key)
            other = await later.post(path, json=sent, headers={"Idempotency-Key": "l"})

        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
        assert again.headers["Idempotency-Replayed"] == "true"
        assert other.status_code == 422


# --- retried


async def failed_run(client: httpx.AsyncClient, services: Services, **body: Any) -> Json:
    run = await new_run(client, **body)
    await commit(services.database, run["id"], end(RunStatus.FAILED))
    return run


async def test_a_retry_may_give_other_tools(client: httpx.AsyncClient, services: Services) -> None:
    run = await failed_run(client, services, options={"tools": ["mail"]})

    response = await client.post(
        f"/runs/{run['id']}/retry", json={"options": {"tools": ["mail", "calculator", "mail"]}}
    )

    assert response.status_code == 202, response.text
    assert response.json()["options"]["tools"] == ["calculator", "mail"]


async def test_a_retry_refuses_tools_that_are_not_there(client: httpx.AsyncClient, services: Services) -> None:
    run = await failed_run(client, services, options={"tools": ["calculator", "mail"]})
    path = f"/runs/{run['id']}/retry"

    given = await client.post(path, json={"options": {"tools": ["rm"]}})
    async with fewer(services) as later:
        kept = await later.post(path)
    assert (code_of(given, 422), places_of(given)) == ("unknown_tool", [("/options/tools/0", "unknown_tool")])
    assert (code_of(kept, 422), places_of(kept)) == ("unknown_tool", [("/options/tools/1", "unknown_tool")])
    assert (await get(client, run["links"]["self"]))["status"] == "failed"
