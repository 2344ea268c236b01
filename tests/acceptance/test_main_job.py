"""The main job over real HTTP: a goal in, a plan drawn, its tasks run in parallel, the answer out."""

import asyncio
import json
from collections import defaultdict
from urllib.parse import quote

import httpx
import pytest

from tests.scripted_model import (
    DIAMOND,
    Call,
    Plan,
    Reply,
    ScriptedModel,
    error,
    hang,
    plan_reply,
    script,
    tasks_of,
    text,
)
from tests.service_process import Json, ended, events, finished, start_run, tasks_by_key

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESULTS_SHOWN = 4_000  # the service of these tests shows so many characters of results in a request


def client_plan(plan: Plan) -> Json:
    return {"tasks": tasks_of(plan)}


class Gates:
    """Answers of the executor seat, each held back until its gate is opened."""

    def __init__(self) -> None:
        self._gates: defaultdict[str | None, asyncio.Event] = defaultdict(asyncio.Event)
        self._waiting = 0
        self.most_waiting = 0

    def open(self, *task_ids: str) -> None:
        for task_id in task_ids:
            self._gates[task_id].set()

    async def __call__(self, call: Call) -> Reply:
        self._waiting += 1
        self.most_waiting = max(self.most_waiting, self._waiting)
        await self._gates[call.task_id].wait()
        self._waiting -= 1
        return text(f"result of {call.task_key}")


# --- from the goal to the answer


async def test_a_goal_is_planned_run_and_synthesized(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    run = await ended(client, goal="Write about tides")
    assert (run["status"], run["result"], run["error"]) == ("succeeded", "the answer", None)
    order = model.order(run_id=run["id"])
    assert order[:2] == ["planner", "0.a"]
    assert set(order[2:4]) == {"0.b", "0.c"}
    assert order[4:] == ["0.d", "synthesizer"]
    assert run["generation"] == 0
    assert (run["progress"]["total"], run["progress"]["succeeded"]) == (4, 4)
    assert {name: run["usage"][name] for name in ("llm_calls", "tool_calls", "input_tokens", "output_tokens")} == {
        "llm_calls": 6,
        "tool_calls": 0,
        "input_tokens": 60,
        "output_tokens": 30,
    }


async def test_a_task_is_called_once_all_its_dependencies_have_answered(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    run = await ended(client)
    calls = {call.task_id: call for call in model.by_seat("executor", run_id=run["id"])}
    for task_id, dependencies in DIAMOND.items():
        for dependency in dependencies:
            answered_at = calls[dependency].answered_at
            assert answered_at is not None
            assert answered_at <= calls[task_id].arrived_at


async def test_a_task_is_shown_the_goal_its_inputs_by_key_and_last_its_own_description(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    await ended(client, goal="Write about tides", context={"audience": "children"})
    (call,) = model.calls_for("0.d")
    for expected in ("Write about tides", "children", "0.b", "result of 0.b", "0.c", "result of 0.c"):
        assert expected in call.text
    assert "result of 0.a" not in call.text
    assert call.messages[-1]["content"].endswith("Do d.")
    assert "Do b." not in call.text


async def test_planner_and_synthesizer_are_shown_the_goal_verbatim(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    goal = 'Say "what?"\n\n  {braces} and\t$signs — verbatim'
    await ended(client, goal=goal)
    assert goal in model.by_seat("planner")[0].text
    synthesis = model.by_seat("synthesizer")[0].text
    assert goal in synthesis
    assert "result of 0.d" in synthesis
    assert "result of 0.b" not in synthesis


async def test_results_longer_than_the_bound_are_shown_head_and_tail_and_stored_whole(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    long = "head of it" + "x" * 2 * RESULTS_SHOWN + "tail of it"
    model.begin(script({("executor", "b"): text(long)}))
    run = await ended(client)
    request = model.calls_for("0.d")[0].text
    assert "head of it" in request
    assert "tail of it" in request
    assert "result of 0.c" in request
    assert len(request) < 2 * RESULTS_SHOWN
    assert (await tasks_by_key(client, run["id"]))["0.b"]["result"] == long


async def test_the_plan_is_stored_with_its_waves(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    run = await ended(client)
    plan = (await client.get(f"/runs/{run['id']}/plan")).json()
    assert (plan["generation"], plan["reason"]) == (0, "initial")
    assert plan["waves"] == [["0.a"], ["0.b", "0.c"], ["0.d"]]
    assert len(plan["critical_path"]) == 3
    tasks = await tasks_by_key(client, run["id"])
    assert {key: (task["wave"], task["depends_on"]) for key, task in tasks.items()} == {
        "0.a": (1, []),
        "0.b": (2, ["0.a"]),
        "0.c": (2, ["0.a"]),
        "0.d": (3, ["0.b", "0.c"]),
    }


# --- when a task starts


async def test_a_task_does_not_wait_for_the_rest_of_the_wave_before_it(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    gates = Gates()
    plan = {"quick": [], "slow": [], "next": ["quick"], "last": ["next"]}
    model.begin(script({"executor": gates}))
    run = await start_run(client, plan=client_plan(plan))
    gates.open("quick", "next", "last")
    await model.until(lambda: bool(model.calls_for("0.last")))
    assert model.calls_for("0.slow")[0].answered_at is None
    gates.open("slow")
    assert (await finished(client, run["id"]))["status"] == "succeeded"


async def test_independent_tasks_run_at_the_same_time(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    gates = Gates()
    plan: Plan = {str(n): [] for n in range(8)}
    model.begin(script({"executor": gates}))
    run = await start_run(client, plan=client_plan(plan))
    await model.until(lambda: len(model.in_flight) == 8)
    gates.open(*plan)
    assert (await finished(client, run["id"]))["status"] == "succeeded"


async def test_no_more_tasks_than_max_parallel_are_under_way(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    gates = Gates()
    plan: Plan = {str(n): [] for n in range(7)}
    model.begin(script({"executor": gates}))
    run = await start_run(client, plan=client_plan(plan), options={"max_parallel": 3})
    for answered in range(7):
        await model.until(lambda n=answered: len(model.calls) >= min(7, 3 + n))  # type: ignore[misc]
        gates.open(model.calls[answered].task_id or "")
    assert (await finished(client, run["id"]))["status"] == "succeeded"
    assert gates.most_waiting == 3


async def test_ready_tasks_start_in_plan_order(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    plan: Plan = {"z": [], "m": ["z"], "a": [], "k": [], "b": ["k"]}
    run = await ended(client, plan=client_plan(plan), options={"max_parallel": 1, "synthesize": False})
    assert model.order(run_id=run["id"]) == ["0.z", "0.m", "0.a", "0.k", "0.b"]


# --- what a client may ask for


async def test_a_clients_plan_is_run_as_it_is_without_a_planning_call(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    tasks = [
        {"id": 2, "description": "Second.", "depends_on": [1, 1]},
        {"id": 1, "description": "First.", "depends_on": []},
    ]
    run = await ended(client, plan={"tasks": tasks})
    assert model.order(run_id=run["id"]) == ["0.1", "0.2", "synthesizer"]
    plan = (await client.get(f"/runs/{run['id']}/plan")).json()
    assert plan["reason"] == "client"
    assert (await tasks_by_key(client, run["id"]))["0.2"]["depends_on"] == ["0.1"]


async def test_ids_of_any_script_name_tasks_everywhere(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    plan: Plan = {"план 1": [], "50%": [], "日本.2": ["план 1", "50%"], 'a "b" <c>?&#': ["日本.2"]}
    run = await ended(client, plan=client_plan(plan), options={"synthesize": False})
    assert run["result"] == {'0.a "b" <c>?&#': 'result of 0.a "b" <c>?&#'}
    assert set(model.order(run_id=run["id"])) == {f"0.{task_id}" for task_id in plan}
    task = await client.get(f"/runs/{run['id']}/tasks/{quote('0.日本.2', safe='')}")
    assert (task.status_code, task.json()["key"]) == (200, "0.日本.2")


@pytest.mark.parametrize(
    ("tasks", "code"),
    [
        ([], "empty"),
        ([("a", "Do.", []), ("a", "Do.", [])], "duplicate_id"),
        ([("a", "Do.", ["b"])], "unknown_dependency"),
        ([("a", "Do.", ["a"])], "self_dependency"),
        ([("a", "Do.", ["c"]), ("b", "Do.", ["a"]), ("c", "Do.", ["b"])], "cycle"),
        ([("a", " ", [])], "empty_description"),
        ([("a/b", "Do.", [])], "invalid_id"),
    ],
)
async def test_a_clients_invalid_plan_is_refused_with_what_is_wrong(
    client: httpx.AsyncClient, model: ScriptedModel, tasks: list[tuple[str, str, list[str]]], code: str
) -> None:
    plan = {"tasks": [{"id": i, "description": d, "depends_on": before} for i, d, before in tasks]}
    response = await client.post("/goals", json={"goal": "Find out", "plan": plan})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "plan_invalid")
    assert {entry["code"] for entry in problem["errors"]} == {code}
    assert not model.calls


async def test_plan_only_ends_with_a_plan_that_a_rerun_can_execute(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    run = await ended(client, mode="plan_only")
    assert (run["status"], model.order(run_id=run["id"])) == ("succeeded", ["planner"])
    plan = (await client.get(f"/runs/{run['id']}/plan")).json()
    tasks = [{**task, "id": task["key"].removeprefix("0.")} for task in plan["tasks"]]
    wanted = [
        {
            "id": task["id"],
            "description": task["description"],
            "depends_on": [key.removeprefix("0.") for key in task["depends_on"]],
        }
        for task in tasks
    ]
    again = await client.post(f"/goals/{run['goal_id']}/runs", json={"plan": {"tasks": wanted}, "mode": "execute"})
    assert again.status_code == 202, again.text
    rerun = await finished(client, again.json()["id"])
    assert (rerun["status"], rerun["result"]) == ("succeeded", "the answer")
    assert "planner" not in model.order(run_id=rerun["id"])


async def test_a_plan_of_one_task_is_not_synthesized(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script(plan={"only": []}))
    run = await ended(client)
    assert model.order(run_id=run["id"]) == ["planner", "0.only"]
    assert run["result"] == "result of 0.only"


async def test_without_synthesis_the_result_is_what_nothing_depends_on_by_key(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    run = await ended(client, plan=client_plan({"a": [], "b": ["a"], "c": ["a"]}), options={"synthesize": False})
    assert run["result"] == {"0.b": "result of 0.b", "0.c": "result of 0.c"}
    assert "synthesizer" not in model.order(run_id=run["id"])


async def test_cancelling_cuts_calls_in_flight(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({("executor", "b"): hang(), ("executor", "c"): hang()}))
    run = await start_run(client)
    await model.until(lambda: {"0.b", "0.c"} <= set(model.order()))
    response = await client.post(f"/runs/{run['id']}/cancel")
    assert response.status_code in (200, 202), response.text
    await model.until(lambda: all(model.calls_for(key)[0].disconnected for key in ("0.b", "0.c")))
    run = await finished(client, run["id"])
    assert run["status"] == "cancelled"
    tasks = await tasks_by_key(client, run["id"])
    assert {key: task["status"] for key, task in tasks.items()} == {
        "0.a": "succeeded",
        "0.b": "cancelled",
        "0.c": "cancelled",
        "0.d": "cancelled",
    }


async def test_cancelling_cuts_the_planning_call(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({"planner": hang()}))
    run = await start_run(client)
    await model.until(lambda: bool(model.calls))
    await client.post(f"/runs/{run['id']}/cancel")
    await model.until(lambda: model.calls[0].disconnected)
    assert (await finished(client, run["id"]))["status"] == "cancelled"


# --- a planner that answers badly

BAD_PLANS = {
    "prose": ("I would rather not say.", {"not_json"}),
    "json without tasks": ('{"steps": []}', {"no_tasks"}),
    "no task": ('{"tasks": []}', {"empty"}),
    "cycle": (plan_reply({"a": ["b"], "b": ["a"]}), {"cycle"}),
    "self dependency": (plan_reply({"a": ["a"]}), {"self_dependency"}),
    "unknown dependency": (plan_reply({"a": ["ghost"]}), {"unknown_dependency"}),
    "repeated id": (plan_reply([*tasks_of({"a": []}), *tasks_of({"a": []})]), {"duplicate_id"}),
    "empty description": (plan_reply([{"id": "a", "description": "", "depends_on": []}]), {"empty_description"}),
    "bad id": (plan_reply({"a/b": []}), {"invalid_id"}),
    "too many": (plan_reply({str(n): [] for n in range(8)}), {"too_many_tasks"}),
}


def planner_answer(answer: str | Reply) -> Reply:
    return text(answer) if isinstance(answer, str) else answer


@pytest.mark.parametrize(("answer", "codes"), BAD_PLANS.values(), ids=BAD_PLANS.keys())
async def test_an_invalid_plan_is_asked_for_again_with_what_is_wrong_and_then_given_up(
    client: httpx.AsyncClient, model: ScriptedModel, answer: str | Reply, codes: set[str]
) -> None:
    model.begin(script({"planner": planner_answer(answer)}))
    run = await ended(client)
    assert (run["status"], run["error"]["code"]) == ("failed", "plan_invalid")
    assert model.order(run_id=run["id"]) == ["planner"] * 3
    rejections = [event["data"] for event in await events(client, run, "plan.rejected")]
    assert [{problem["code"] for problem in rejection["errors"]} for rejection in rejections] == [codes] * 3
    asked_again = model.by_seat("planner", run_id=run["id"])[1].text
    for problem in rejections[0]["errors"]:
        assert problem["message"] in asked_again


async def test_a_plan_mended_at_the_second_try_is_run(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({"planner": [plan_reply({"a": ["a"]}), plan_reply({"a": [], "b": ["a"]})]}))
    run = await ended(client)
    assert run["status"] == "succeeded"
    assert model.order(run_id=run["id"]) == ["planner", "planner", "0.a", "0.b", "synthesizer"]
    assert len(await events(client, run, "plan.rejected")) == 1


GOOD = [{"id": 1, "description": "One.", "depends_on": []}, {"id": 2, "description": "Two.", "depends_on": [1]}]


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(GOOD),
        f"Here is the plan:\n```json\n{json.dumps({'tasks': GOOD}, indent=1)}\n```\nShall I begin?",
        f"Sure! {json.dumps({'tasks': GOOD})} That is all.",
        json.dumps({"tasks": GOOD}).replace("}]}", "},]}"),
    ],
    ids=["bare array", "fence", "prose", "trailing comma"],
)
async def test_a_plan_in_another_dress_is_accepted(
    client: httpx.AsyncClient, model: ScriptedModel, answer: str
) -> None:
    model.begin(script({"planner": text(answer)}))
    run = await ended(client)
    assert (run["status"], model.order(run_id=run["id"])) == ("succeeded", ["planner", "0.1", "0.2", "synthesizer"])


async def test_an_endpoint_that_refuses_a_format_is_asked_more_simply_and_remembered(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    asked: list[str | None] = []

    def picky(call: Call) -> Reply:
        form = call.response_format
        asked.append(None if form is None else form["type"])
        refusal = error(400, message="'response_format' of this type is not supported with this model.")
        return plan_reply(DIAMOND) if form is None else refusal

    model.begin(script({"planner": picky}))
    options = {"planner_model": "picky"}
    assert (await ended(client, options=options))["status"] == "succeeded"
    assert asked == ["json_schema", "json_object", None]
    assert (await ended(client, options=options))["status"] == "succeeded"
    assert asked == ["json_schema", "json_object", None, None]
    assert {call.body["model"] for call in model.by_seat("planner")} == {"picky"}
