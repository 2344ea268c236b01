"""A client's own plan: stored as drawn, or refused with everything that is wrong with it."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from app.api.client_plan import new_plan, planned_tasks
from app.api.problems import Refused
from app.api.schemas.requests import ClientPlan
from app.api.services import Services
from app.domain.ids import RunId
from app.storage import tables
from tests.api.asking import Json, chain, code_of, get, new_run
from tests.stored import rows_of


def _task(task_id: Any, *depends_on: Any, description: str = "Do it") -> Json:
    return {"id": task_id, "description": description, "depends_on": list(depends_on)}


async def test_a_plan_is_stored_as_generation_0(client: httpx.AsyncClient) -> None:
    plan = {"tasks": [_task("c", "a", "b"), _task("a"), _task("b", "a"), {"id": "d", "description": "Do it"}]}

    run = await new_run(client, plan=plan)

    assert run["status"] == "queued"
    assert run["generation"] == 0
    assert run["progress"]["total"] == run["progress"]["pending"] == 4
    stored = await get(client, run["links"]["plan"])
    assert {name: stored[name] for name in stored if name not in ("tasks", "created_at")} == {
        "generation": 0,
        "reason": "client",
        "failed_task_keys": [],
        "parent_generation": None,
        "added": ["0.c", "0.a", "0.b", "0.d"],
        "carried": [],
        "superseded": [],
        "waves": [["0.a", "0.d"], ["0.b"], ["0.c"]],
        "critical_path": ["0.a", "0.b", "0.c"],
        "usage": {"llm_calls": 0, "tool_calls": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": None},
    }
    assert stored["tasks"][0] == {
        "key": "0.c",
        "generation": 0,
        "description": "Do it",
        "depends_on": ["0.a", "0.b"],
        "wave": 3,
        "critical": True,
        "tools": [],
        "status": "pending",
        "result": None,
        "skip_reason": None,
        "attempts": None,
        "next_attempt_at": None,
        "started_at": None,
        "finished_at": None,
    }


async def test_a_task_keeps_whether_it_is_critical_and_what_its_result_must_match(
    client: httpx.AsyncClient, services: Services
) -> None:
    schema = {"type": "object", "required": ["n"]}
    run = await new_run(client, plan={"tasks": [{**_task("a"), "critical": False, "output_schema": schema}]})
    again = (await client.post(f"/goals/{run['goal_id']}/runs")).json()

    for one in (run, again):
        (task,) = await rows_of(services.database, tables.tasks, RunId(UUID(one["id"])))
        assert (bool(task["critical"]), task["output_schema"]) == (False, schema)
        assert (await get(client, f"{one['links']['tasks']}/0.a"))["critical"] is False


async def test_integer_ids_are_kept_as_their_digits(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan={"tasks": [_task(1), _task("2", 1), _task(3, "2", 1)]})

    tasks = (await get(client, run["links"]["tasks"]))["data"]
    assert [(task["key"], task["depends_on"]) for task in tasks] == [
        ("0.1", []),
        ("0.2", ["0.1"]),
        ("0.3", ["0.2", "0.1"]),
    ]


async def test_repeated_dependencies_collapse_in_their_order(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan={"tasks": [_task("a"), _task("b"), _task("c", "b", "a", "b", "a")]})

    task = await get(client, f"{run['links']['tasks']}/0.c")
    assert task["depends_on"] == ["0.b", "0.a"]


@pytest.mark.parametrize("task_id", ["ü ß", "a.b", "%41", "?x=1#y", "..", "a b", '"<>&', "\U0001f600", "x" * 200])
async def test_a_task_is_found_by_whatever_key_its_id_makes(client: httpx.AsyncClient, task_id: str) -> None:
    run = await new_run(client, plan={"tasks": [_task(task_id)]})

    url = httpx.URL("http://planwave.test").copy_with(raw_path=f"{run['links']['tasks']}/".encode() + _encoded(task_id))
    response = await client.get(url)

    assert response.status_code == 200, response.text
    assert response.json()["key"] == f"0.{task_id}"


def _encoded(task_id: str) -> bytes:
    return b"0." + b"".join(b"%%%02X" % byte for byte in task_id.encode())


FAULTY: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "empty": ([], [{"code": "empty", "pointer": "/plan/tasks"}]),
    "a duplicate id": (
        [_task("a"), _task("a")],
        [{"code": "duplicate_id", "pointer": "/plan/tasks/1/id", "task_id": "a"}],
    ),
    "the same id as text and number": (
        [_task("1"), _task(1)],
        [{"code": "duplicate_id", "pointer": "/plan/tasks/1/id", "task_id": "1"}],
    ),
    "an unknown dependency": (
        [_task("a"), _task("b", "a", "z")],
        [{"code": "unknown_dependency", "pointer": "/plan/tasks/1/depends_on/1", "task_id": "b"}],
    ),
    "an unknown dependency after repeated ones": (
        [_task("a"), _task("b", "a", "a", "z")],
        [{"code": "unknown_dependency", "pointer": "/plan/tasks/1/depends_on/2", "task_id": "b"}],
    ),
    "a dependency on itself": (
        [_task("a", "a")],
        [{"code": "self_dependency", "pointer": "/plan/tasks/0/depends_on/0", "task_id": "a"}],
    ),
    "a cycle": (
        [_task("a", "c"), _task("b", "a"), _task("c", "b")],
        [{"code": "cycle", "pointer": "/plan/tasks/0/depends_on", "task_id": "a", "path": ["a", "c", "b", "a"]}],
    ),
    "a blank description": (
        [_task("a", description=" ")],
        [{"code": "empty_description", "pointer": "/plan/tasks/0/description", "task_id": "a"}],
    ),
    "an id with a slash": (
        [_task("a/b")],
        [{"code": "invalid_id", "pointer": "/plan/tasks/0/id", "task_id": "a/b"}],
    ),
    "an empty id": ([_task("")], [{"code": "invalid_id", "pointer": "/plan/tasks/0/id", "task_id": ""}]),
    "a long id": ([_task("x" * 201)], [{"code": "invalid_id", "pointer": "/plan/tasks/0/id", "task_id": "x" * 80}]),
    "several things": (
        [_task("a", "z"), _task("a", description="")],
        [
            {"code": "unknown_dependency", "pointer": "/plan/tasks/0/depends_on/0", "task_id": "a"},
            {"code": "duplicate_id", "pointer": "/plan/tasks/1/id", "task_id": "a"},
            {"code": "empty_description", "pointer": "/plan/tasks/1/description", "task_id": "a"},
        ],
    ),
}


@pytest.mark.parametrize(("tasks", "expected"), FAULTY.values(), ids=FAULTY)
async def test_a_faulty_plan_is_refused_with_each_problem_named(
    lonely: httpx.AsyncClient, tasks: Any, expected: list[dict[str, Any]]
) -> None:
    response = await lonely.post("/goals", json={"goal": "x", "plan": {"tasks": tasks}})

    assert code_of(response, 422) == "plan_invalid"
    errors = response.json()["errors"]
    assert all(error.pop("message") for error in errors)
    assert errors == expected


def _plan_with_tools(*named: list[str]) -> ClientPlan:
    return ClientPlan.model_validate({"tasks": [{**_task(str(n)), "tools": one} for n, one in enumerate(named)]})


def test_tasks_may_name_the_tools_that_are_allowed_and_each_counts_once() -> None:
    plan = _plan_with_tools(["sum", "get", "sum"], [], ["get"])
    allowed = {"sum", "get", "mail"}
    assert [task.tools for task in planned_tasks(plan, tools=allowed)] == [("sum", "get"), (), ("get",)]
    assert [task.tools for task in new_plan(plan, tools=allowed).tasks] == [("sum", "get"), (), ("get",)]


def test_a_tool_that_is_not_allowed_is_named_where_the_client_wrote_it() -> None:
    with pytest.raises(Refused) as refused:
        planned_tasks(_plan_with_tools(["sum"], ["sum", "sum", "mail", "mail", "rm"]), tools=["sum"])
    assert refused.value.code == "plan_invalid"
    assert [(fault.code, fault.pointer, fault.more) for fault in refused.value.errors] == [
        ("unknown_tool", "/plan/tasks/1/tools/2", {"task_id": "1"}),
        ("unknown_tool", "/plan/tasks/1/tools/4", {"task_id": "1"}),
    ]


async def test_a_tool_that_the_server_does_not_have_is_refused(lonely: httpx.AsyncClient) -> None:
    plan = {"tasks": [_task("a"), {**_task("b"), "tools": ["no_such_tool"]}]}
    response = await lonely.post("/goals", json={"goal": "x", "plan": plan})

    assert code_of(response, 422) == "plan_invalid"
    (error,) = response.json()["errors"]
    assert (error["code"], error["pointer"], error["task_id"]) == ("unknown_tool", "/plan/tasks/1/tools/0", "b")
    assert "'no_such_tool'" in error["message"]


@pytest.mark.parametrize(
    ("task", "place"),
    [
        ({"id": True, "description": "d"}, "/plan/tasks/0/id"),
        ({"id": 1.5, "description": "d"}, "/plan/tasks/0/id"),
        ({"id": None, "description": "d"}, "/plan/tasks/0/id"),
        ({"id": 1, "description": ["d"]}, "/plan/tasks/0/description"),
        ({"id": 1, "description": "d", "depends_on": "a"}, "/plan/tasks/0/depends_on"),
        ({"id": 1, "description": "d", "depends_on": [None]}, "/plan/tasks/0/depends_on/0"),
        ({"id": 1, "description": "d", "tools": "get"}, "/plan/tasks/0/tools"),
        ({"id": 1, "description": "d", "tools": [1]}, "/plan/tasks/0/tools/0"),
        ("d", "/plan/tasks/0"),
    ],
)
async def test_a_task_of_the_wrong_shape_is_refused(lonely: httpx.AsyncClient, task: Any, place: str) -> None:
    response = await lonely.post("/goals", json={"goal": "x", "plan": {"tasks": [task]}})

    assert code_of(response, 422) == "invalid_request"
    assert [error["pointer"] for error in response.json()["errors"]] == [place]


async def test_a_plan_of_10_000_tasks_is_taken(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan=chain(*range(10_000)))

    assert run["progress"]["pending"] == 10_000
    assert (await get(client, f"{run['links']['tasks']}/0.9999"))["wave"] == 10_000


async def test_a_plan_of_10_001_tasks_is_refused(lonely: httpx.AsyncClient) -> None:
    response = await lonely.post("/goals", json={"goal": "x", "plan": chain(*range(10_001))})

    assert code_of(response, 422) == "plan_invalid"
    assert [error["code"] for error in response.json()["errors"]] == ["too_many_tasks"]


async def test_a_plan_with_more_problems_than_anybody_reads_lists_the_first_thousand(
    lonely: httpx.AsyncClient,
) -> None:
    tasks = [_task("a", *(f"z{n}" for n in range(20_000)))]
    response = await lonely.post("/goals", json={"goal": "x", "plan": {"tasks": tasks}})

    assert code_of(response, 422) == "plan_invalid"
    assert len(response.json()["errors"]) == 1_000
    assert "20000" in response.json()["detail"]


async def test_a_plan_with_more_dependencies_than_can_be_stored_at_once_is_refused(lonely: httpx.AsyncClient) -> None:
    first = range(201)
    tasks = [*(_task(n) for n in first), *(_task(f"z{n}", *first) for n in range(1_000))]
    response = await lonely.post("/goals", json={"goal": "x", "plan": {"tasks": tasks}})

    assert code_of(response, 422) == "plan_invalid"
    assert [error["code"] for error in response.json()["errors"]] == ["too_many_dependencies"]


async def test_the_patterns_of_all_schemas_of_a_plan_count_together(lonely: httpx.AsyncClient) -> None:
    tasks = [{**_task(n), "output_schema": {"type": "string", "pattern": f"^{n}$"}} for n in range(129)]
    response = await lonely.post("/goals", json={"goal": "x", "plan": {"tasks": tasks}})

    assert code_of(response, 422) == "invalid_schema"
    assert [error["pointer"] for error in response.json()["errors"]] == ["/plan/tasks/128/output_schema"]


async def test_the_same_schema_of_many_tasks_is_looked_at_once(client: httpx.AsyncClient) -> None:
    schema = {"type": "string", "pattern": "^[a-z]$"}
    await new_run(client, plan={"tasks": [{**_task(n), "output_schema": schema} for n in range(200)]})
