"""Answers to reviews: their shape, plans drawn by a person, results given by hand."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from app.api.services import Services
from app.domain.generation import Carried, next_plan
from app.domain.ids import RunId, TaskKey
from app.domain.plan import PlannedTask
from app.domain.status import PlanReason, TaskStatus
from app.storage import tables
from app.storage.changes import Changes
from app.storage.database import new_id
from tests.api.asking import NOWHERE, Json, chain, code_of, commit, get, new_run, places_of
from tests.api.reviewing import asked_of_plan, waiting_run
from tests.stored import rows_of

EDITED = {"decision": "edit", "plan": chain("x")}
WRONG: dict[str, tuple[Any, str, str, str]] = {
    "no decision": ({}, "invalid_request", "/decision", "missing"),
    "an unknown decision": ({"decision": "ignore"}, "invalid_request", "/decision", "not_allowed"),
    "a decision that is no text": ({"decision": ["skip"]}, "invalid_request", "/decision", "not_allowed"),
    "no object": ([], "invalid_request", "", "wrong_type"),
    "an unknown field": ({"decision": "approve", "why": ""}, "unknown_field", "/why", "unknown_field"),
    "a plan to approve": ({**EDITED, "decision": "approve"}, "unknown_field", "/plan", "unknown_field"),
    "a result to skip": ({"decision": "skip", "result": None}, "unknown_field", "/result", "unknown_field"),
    "words to retry by": (
        {"decision": "retry", "instructions": "x"},
        "unknown_field",
        "/instructions",
        "unknown_field",
    ),
    "a wording to replan": (
        {"decision": "replan", "description": "x"},
        "unknown_field",
        "/description",
        "unknown_field",
    ),
    "nothing to edit": ({"decision": "edit"}, "invalid_request", "/plan", "missing"),
    "null to edit": ({"decision": "edit", "plan": None}, "invalid_request", "/plan", "wrong_type"),
    "nothing to supply": ({"decision": "supply"}, "invalid_request", "/result", "missing"),
    "null to supply": ({"decision": "supply", "result": None}, "invalid_request", "/result", "wrong_type"),
    "empty instructions": ({"decision": "reject", "instructions": ""}, "invalid_request", "/instructions", "too_short"),
    "long instructions": (
        {"decision": "reject", "instructions": "x" * 20_001},
        "invalid_request",
        "/instructions",
        "too_long",
    ),
    "a blank wording": ({"decision": "retry", "description": " "}, "invalid_request", "/description", "blank"),
    "a long wording": (
        {"decision": "retry", "description": "x" * 20_001},
        "invalid_request",
        "/description",
        "too_long",
    ),
    "a task without a description": (
        {"decision": "edit", "plan": {"tasks": [{"id": 1}]}},
        "invalid_request",
        "/plan/tasks/0/description",
        "missing",
    ),
    "a schema that is none": (
        {"decision": "edit", "plan": {"tasks": [{"id": 1, "description": "x", "output_schema": {"type": 1}}]}},
        "invalid_schema",
        "/plan/tasks/0/output_schema",
        "invalid_schema",
    ),
}


@pytest.mark.parametrize(("body", "code", "place", "fault"), WRONG.values(), ids=WRONG)
async def test_an_answer_of_the_wrong_shape_is_refused_where_it_is_wrong(
    lonely: httpx.AsyncClient, body: Any, code: str, place: str, fault: str
) -> None:
    response = await lonely.post(f"/runs/{NOWHERE}/reviews/{NOWHERE}", json=body)

    assert code_of(response, 422) == code
    assert places_of(response) == [(place, fault)]


async def test_an_answer_needs_a_body(lonely: httpx.AsyncClient) -> None:
    response = await lonely.post(f"/runs/{NOWHERE}/reviews/{NOWHERE}")

    assert code_of(response, 415) == "unsupported_media_type"


# --- edit


async def test_a_persons_plan_is_kept_as_a_worker_reads_it(client: httpx.AsyncClient, services: Services) -> None:
    _, path = await waiting_run(client, services.database, options={"tools": ["mail", "calculator"]})
    schema = {"type": "object"}
    tasks = [
        {"id": 1, "description": "Begin", "critical": False},
        {"id": "2", "description": "End", "depends_on": [1, "1"], "tools": ["mail", "mail"], "output_schema": schema},
    ]

    response = await client.post(path, json={"decision": "edit", "plan": {"tasks": tasks}})

    assert response.status_code == 200, response.text
    assert response.json()["answer"] == {
        "decision": "edit",
        "plan": {
            "tasks": [
                {
                    "id": "1",
                    "description": "Begin",
                    "depends_on": [],
                    "critical": False,
                    "tools": [],
                    "output_schema": None,
                },
                {
                    "id": "2",
                    "description": "End",
                    "depends_on": ["1"],
                    "critical": True,
                    "tools": ["mail"],
                    "output_schema": schema,
                },
            ]
        },
    }


@pytest.mark.parametrize(
    ("tasks", "place", "code"),
    [
        ([], "/plan/tasks", "empty"),
        ([{"id": "x", "description": "Do", "depends_on": ["y"]}], "/plan/tasks/0/depends_on/0", "unknown_dependency"),
        ([{"id": "x", "description": "Do", "depends_on": ["0.a"]}], "/plan/tasks/0/depends_on/0", "unknown_dependency"),
        ([{"id": "x", "description": " "}], "/plan/tasks/0/description", "empty_description"),
        ([{"id": "x", "description": "Do", "tools": ["calculator", "mail"]}], "/plan/tasks/0/tools/1", "unknown_tool"),
    ],
)
async def test_a_persons_plan_is_checked_as_hard_as_any(
    client: httpx.AsyncClient, services: Services, tasks: Any, place: str, code: str
) -> None:
    _, path = await waiting_run(client, services.database, options={"tools": ["calculator"]})

    response = await client.post(path, json={"decision": "edit", "plan": {"tasks": tasks}})

    assert code_of(response, 422) == "plan_invalid"
    assert places_of(response) == [(place, code)]
    assert (await get(client, path))["answer"] is None


async def test_a_persons_plan_in_place_of_a_replan_may_build_on_what_goes_on(
    client: httpx.AsyncClient, services: Services
) -> None:
    """0.done to 0.waits go on, whatever their status; 1.new is in question, and 2.late waits for it."""
    stands = {
        "done": TaskStatus.SUCCEEDED,
        "out": TaskStatus.SKIPPED,
        "busy": TaskStatus.RUNNING,
        "waits": TaskStatus.PENDING,
        "failed": TaskStatus.FAILED,
        "gone": TaskStatus.SUPERSEDED,
    }
    tasks = [{"id": one, "description": f"Do {one}"} for one in stands]
    run, review_id = await new_run(client, plan={"tasks": tasks}), new_id()
    carried = {TaskKey(f"0.{one}"): Carried(wave=1, depends_on=()) for one in list(stands)[:4]}

    def say(changes: Changes) -> None:
        for one, status in stands.items():
            changes.task(TaskKey(f"0.{one}"), status)
        new = [PlannedTask(id="new", description="Do it anew")]
        first = next_plan(new, PlanReason.TASK_FAILED, generation=1, position=6, carried=carried)
        late = [PlannedTask(id="late", description="Do it later", depends_on=("1.new",))]
        known = {**carried, TaskKey("1.new"): Carried(wave=1, depends_on=())}
        changes.plans += [first, next_plan(late, PlanReason.TASK_FAILED, generation=2, position=7, carried=known)]

    await commit(services.database, run["id"], say)
    await commit(services.database, run["id"], asked_of_plan(review_id, generation=1))
    path = f"{run['links']['reviews']}/{review_id}"

    async def edit(*depends_on: str) -> httpx.Response:
        task = {"id": "mine", "description": "Do it so", "depends_on": list(depends_on)}
        return await client.post(path, json={"decision": "edit", "plan": {"tasks": [task]}})

    for key in ("0.failed", "0.gone", "1.new", "2.late", "0.nothing"):
        response = await edit("0.done", key)
        assert code_of(response, 422) == "plan_invalid"
        assert places_of(response) == [("/plan/tasks/0/depends_on/1", "unknown_dependency")], key
    assert (await edit(*carried)).status_code == 200


async def test_a_plan_of_megabytes_is_taken_and_another_answer_of_that_size_is_not(
    client: httpx.AsyncClient, services: Services
) -> None:
    _, path = await waiting_run(client, services.database)
    tasks = [{"id": n, "description": "x" * 1_000} for n in range(1_000)]
    _, other = await waiting_run(client, services.database, about="0.a")

    taken = await client.post(path, json={"decision": "edit", "plan": {"tasks": tasks}})
    refused = await client.post(other, json={"decision": "supply", "result": "x" * 300_000})

    assert taken.status_code == 200
    assert code_of(refused, 413) == "body_too_large"


# --- supply


A_SCHEMA = {"type": "object", "required": ["n"]}


def _with_schema(task_id: str) -> Json:
    return {"id": task_id, "description": "Do it", "output_schema": A_SCHEMA}


async def _supply(client: httpx.AsyncClient, path: str, result: Any) -> httpx.Response:
    return await client.post(path, json={"decision": "supply", "result": result})


@pytest.mark.parametrize(
    "body",
    [
        {"plan": {"tasks": [_with_schema("a"), {"id": "b", "description": "Do it"}]}},
        {"plan": chain("a"), "options": {"output_schema": A_SCHEMA}},
        {"plan": {"tasks": [{**_with_schema("a"), "output_schema": {}}]}, "options": {"output_schema": A_SCHEMA}},
    ],
    ids=["the task's schema", "the goal's, whose only task it is", "the goal's before the task's"],
)
async def test_a_result_by_hand_must_match_its_schema(
    client: httpx.AsyncClient, services: Services, body: Json
) -> None:
    _, path = await waiting_run(client, services.database, about="0.a", **body)

    refused = await _supply(client, path, {"m": 1})
    taken = await _supply(client, path, {"n": 1})

    assert code_of(refused, 422) == "output_schema_mismatch"
    assert places_of(refused) == [("/result", "output_schema_mismatch")]
    assert '"n"' in refused.json()["detail"]
    assert taken.status_code == 200, taken.text


async def test_a_result_of_one_task_among_several_need_not_match_the_goals_schema(
    client: httpx.AsyncClient, services: Services
) -> None:
    _, path = await waiting_run(client, services.database, about="0.a", options={"output_schema": A_SCHEMA})

    assert (await _supply(client, path, "text")).status_code == 200


async def test_a_text_by_hand_is_a_text_even_if_it_looks_like_json(
    client: httpx.AsyncClient, services: Services
) -> None:
    run, path = await waiting_run(client, services.database, about="0.a", plan={"tasks": [_with_schema("a")]})

    assert code_of(await _supply(client, path, '{"n": 1}'), 422) == "output_schema_mismatch"
    (row,) = await rows_of(services.database, tables.reviews, RunId(UUID(run["id"])))
    assert row["answer"] is None
