"""The OpenAPI document: valid, complete, true to the app; and the page that shows it without the internet."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

import app
from app.api import examples
from app.api.problems import PROBLEMS
from app.api.schemas.event_types import EVENT_TYPES
from app.api.schemas.requests import Options
from tests.api.asking import code_of

OPERATIONS = {
    "createGoal": ("post", "/goals"),
    "listGoals": ("get", "/goals"),
    "getGoal": ("get", "/goals/{goal_id}"),
    "rerunGoal": ("post", "/goals/{goal_id}/runs"),
    "listRuns": ("get", "/runs"),
    "getRun": ("get", "/runs/{run_id}"),
    "deleteRun": ("delete", "/runs/{run_id}"),
    "cancelRun": ("post", "/runs/{run_id}/cancel"),
    "pauseRun": ("post", "/runs/{run_id}/pause"),
    "resumeRun": ("post", "/runs/{run_id}/resume"),
    "retryRun": ("post", "/runs/{run_id}/retry"),
    "getPlan": ("get", "/runs/{run_id}/plan"),
    "listPlans": ("get", "/runs/{run_id}/plans"),
    "listTasks": ("get", "/runs/{run_id}/tasks"),
    "getTask": ("get", "/runs/{run_id}/tasks/{task_key}"),
    "listReviews": ("get", "/runs/{run_id}/reviews"),
    "getReview": ("get", "/runs/{run_id}/reviews/{review_id}"),
    "answerReview": ("post", "/runs/{run_id}/reviews/{review_id}"),
    "listEvents": ("get", "/runs/{run_id}/events"),
    "listTools": ("get", "/tools"),
    "getHealth": ("get", "/healthz"),
    "getReadiness": ("get", "/readyz"),
}


@pytest.fixture
async def document(lonely: httpx.AsyncClient) -> Any:
    return (await lonely.get("/openapi.json")).json()


def _operations(document: Any) -> list[tuple[str, str, Any]]:
    return [(method, path, found) for path, item in document["paths"].items() for method, found in item.items()]


async def test_the_document_is_valid_openapi_3_1(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    validate(document)


async def test_it_holds_exactly_the_built_routes_under_their_names(document: Any) -> None:
    assert {found["operationId"]: (method, path) for method, path, found in _operations(document)} == OPERATIONS


async def test_every_route_is_summarised_described_and_tagged(document: Any) -> None:
    for _, path, found in _operations(document):
        assert found["summary"], path
        assert found["description"], path
        assert len(found["tags"]) == 1, path


async def test_every_success_shows_an_example_that_fits_its_model(document: Any) -> None:
    for _, path, found in _operations(document):
        for status in ("200", "202"):
            for media_type, content in found["responses"].get(status, {}).get("content", {}).items():
                assert content["example"], (path, media_type)
                if media_type == "application/json":
                    assert "$ref" in content["schema"] or "anyOf" in content["schema"], path


@pytest.mark.parametrize(
    ("example", "schema"),
    [
        (examples.GOAL, "Goal"),
        (examples.QUEUED_RUN, "Run"),
        (examples.RUNNING_RUN, "Run"),
        (examples.SUCCEEDED_RUN, "Run"),
        (examples.CANCELLED_RUN, "Run"),
        (examples.PAUSED_RUN, "Run"),
        (examples.RETRIED_RUN, "Run"),
        (examples.REVIEW, "Review"),
        (examples.ANSWERED_REVIEW, "Review"),
        (examples.TOOL_REVIEW, "Review"),
        (examples.TOOL, "Tool"),
        (examples.TOOL_CALL, "ToolCall"),
        (examples.TASK, "Task"),
        (examples.TASK_WITH_ATTEMPTS, "Task"),
        (examples.PLAN, "Plan"),
        (examples.EVENT, "Event"),
        (examples.TOOL_CALLED, "Event"),
        (examples.TOOL_RETURNED, "Event"),
        (examples.page_of(examples.GOAL), "GoalPage"),
        (examples.NEW_GOAL, "NewGoal"),
        (examples.NEW_GOAL_WITH_TOOLS, "NewGoal"),
        (examples.NEW_GOAL_WITH_PLAN, "NewGoal"),
        (examples.NEW_RUN, "NewRun"),
    ],
)
async def test_each_example_fits_its_schema(document: Any, example: Any, schema: str) -> None:
    whole = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
    Draft202012Validator(whole).validate(example)
    assert schema.startswith("New") or example.keys() == set(document["components"]["schemas"][schema]["properties"])


async def test_each_example_of_a_body_fits_it(document: Any) -> None:
    for _, path, found in _operations(document):
        for content in found.get("requestBody", {"content": {}})["content"].values():
            validator = Draft202012Validator({**content["schema"], "components": document["components"]})
            assert content["examples"], path
            for example in content["examples"].values():
                validator.validate(example["value"])


async def test_every_problem_shown_has_the_status_that_the_table_gives_it(document: Any) -> None:
    shown = set()
    for _, path, found in _operations(document):
        for status, response in found["responses"].items():
            problem = response.get("content", {}).get("application/problem+json", {"examples": {}})
            for code, example in problem["examples"].items():
                assert example["value"]["code"] == code
                assert int(status) == example["value"]["status"], path
                assert status in ("406", str(PROBLEMS[code][0])), path
                shown.add(code)
    assert PROBLEMS.keys() - shown == {"bad_request", "not_found", "method_not_allowed"}


async def test_every_route_can_fail_inside_and_without_its_database(document: Any) -> None:
    for _, path, found in _operations(document):
        assert {"500", "503"} <= found["responses"].keys(), path


async def test_bodies_that_are_read_by_hand_are_documented(document: Any) -> None:
    for name in ("createGoal", "rerunGoal", "retryRun", "answerReview"):
        method, path = OPERATIONS[name]
        content = document["paths"][path][method]["requestBody"]["content"]["application/json"]
        assert content["schema"]["$ref"].rpartition("/")[2] in document["components"]["schemas"]
        assert content["examples"]


async def test_it_says_what_the_bodies_refuse_as_not_built_yet(document: Any) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["NewGoal"]["properties"]["webhook_url"]["enum"] == [None]


async def test_it_names_every_type_of_event_that_is_written(document: Any) -> None:
    described = document["components"]["schemas"]["Event"]["properties"]["type"]["description"]
    source = "".join(path.read_text() for path in Path(app.__file__).parent.rglob("*.py"))
    written = set(re.findall(r"""["']((?:run|plan|task|tool|review|budget)\.[a-z_]+)["']""", source))

    assert {"run.queued", "task.started", "tool.called", "tool.returned", "review.opened"} <= written
    assert written <= set(EVENT_TYPES)
    assert all(f"- `{name}`" in described for name in EVENT_TYPES)


async def test_defaults_in_the_document_are_those_of_the_contract(document: Any) -> None:
    properties = document["components"]["schemas"]["Options"]["properties"]
    shown = {name: field["default"] for name, field in properties.items()}
    assert shown == Options().model_dump()


async def test_the_documentation_page_needs_nothing_from_elsewhere(lonely: httpx.AsyncClient) -> None:
    page = (await lonely.get("/docs")).text

    assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.", page)
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page):
        response = await lonely.get(asset)
        assert response.status_code == 200
        assert response.content


async def test_there_is_no_other_documentation_page(lonely: httpx.AsyncClient) -> None:
    assert code_of(await lonely.get("/redoc"), 404) == "not_found"
