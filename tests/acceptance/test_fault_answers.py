"""Answers that arrive whole and say the wrong thing: plans that are none, work repeated, odd characters, echoes."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import httpx
import pytest
from _pytest.mark import ParameterSet

from tests.acceptance.conftest import Running
from tests.acceptance.looks import is_sound, looked_at
from tests.faults import REWORDED, SEATS, Fault, Script, goal_at, staged, well_after
from tests.scripted_model import Call, Plan, Reply, ScriptedModel, error, script, text
from tests.service_process import Json, ended, events, tasks_by_key

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What planner or recovery says; `codes` are those of its problems."""

    says: str
    codes: Sequence[str]


def tasks(*entries: tuple[object, object, object], **more: object) -> str:
    """An answer with tasks of these ids, descriptions and dependencies."""
    return json.dumps({"tasks": [{"id": i, "description": d, "depends_on": n} for i, d, n in entries], **more})


def wide(count: int) -> str:
    """So many tasks that do not need each other."""
    return tasks(*[(f"{n}", f"Part {n}.", []) for n in range(count)])


def deep(count: int) -> str:
    """So many tasks, each of which needs the one before it."""
    return tasks(*[(f"{n}", f"Step {n}.", [f"{n - 1}"] if n else []) for n in range(count)])


SOUND = tasks(("1", "One.", []), ("2", "Two.", ["1"]))

NO_PLANS: Mapping[str, Answer] = {
    "cycle": Answer(says=tasks(("1", "One.", ["2"]), ("2", "Two.", ["1"])), codes=["cycle"]),
    "needs itself": Answer(says=tasks(("1", "One.", ["1"])), codes=["self_dependency"]),
    "needs a task that is none": Answer(says=tasks(("1", "One.", ["9"])), codes=["unknown_dependency"]),
    "an id twice": Answer(says=tasks(("1", "One.", []), ("1", "Two.", [])), codes=["duplicate_id"]),
    "no tasks": Answer(says=tasks(), codes=["empty"]),
    "no list of tasks": Answer(says='{"steps": []}', codes=["no_tasks"]),
    "no description": Answer(says=tasks(("1", " ", [])), codes=["empty_description"]),
    "8 tasks": Answer(says=wide(8), codes=["too_many_tasks"]),
    "5,000 tasks": Answer(says=wide(5_000), codes=["too_many_tasks"]),
    "60 deep": Answer(says=deep(60), codes=["too_many_tasks"]),
    "10 kB of id": Answer(says=tasks(("i" * 10_000, "One.", [])), codes=["invalid_id"]),
    "an id that no database takes": Answer(
        says=tasks(("a\0", "A.", []), ("\ud800", "B.", [])), codes=["invalid_id"] * 2
    ),
    "two plans": Answer(says=f"{SOUND}\n{wide(2)}", codes=["not_json"]),
    "NaN": Answer(says=SOUND.replace('"1"', "NaN"), codes=["not_json"]),
    "prose": Answer(says="First do one thing, then the other.", codes=["not_json"]),
    "cut": Answer(says=SOUND[:-20], codes=["not_json"]),
    "nested without end": Answer(says='{"tasks": ' * 5_000, codes=["not_json"]),
    "many faults": Answer(
        says=tasks(("1", "", ["9", "1"]), ("1", "One.", [])),
        codes=["empty_description", "unknown_dependency", "self_dependency", "duplicate_id"],
    ),
}

PLANS: Mapping[str, str] = {
    "prose around it": f"Here is the plan:\n{SOUND}\nGood luck!",
    "in a fence": f"```json\n{SOUND}\n```",
    "with a comma too many": SOUND[:-1] + ",}",
    "an array": json.dumps(json.loads(SOUND)["tasks"]),
    "ids in numbers": tasks((1, "One.", []), (2, "Two.", [1])),
    "a dependency as a string": tasks(("1", "One.", []), ("2", "Two.", "1")),
    "said twice": f"{SOUND}\n{SOUND}",
}

AGAIN = ("x", REWORDED, ["0.a"])
NO_REPLANS: Mapping[str, Answer] = {
    "the plan that failed": Answer(
        says=tasks(("b", "Do b.", ["0.a"]), ("c", "Do c.", ["b"])), codes=["same_as_failed"]
    ),
    "what failed under another id": Answer(says=tasks(("new", " do  B. ", ["0.a"])), codes=["same_as_failed"]),
    "finished work again": Answer(says=tasks(("z", "Do a.", []), AGAIN), codes=["repeats_task"]),
    "building on what failed": Answer(says=tasks(AGAIN, ("y", "Go on.", ["0.b"])), codes=["unknown_dependency"]),
    "building on what it replaces": Answer(says=tasks(AGAIN, ("y", "Go on.", ["0.c"])), codes=["unknown_dependency"]),
    "building on work nobody knows": Answer(says=tasks(("x", REWORDED, ["0.zz"])), codes=["unknown_dependency"]),
    "dropping work nobody knows": Answer(says=tasks(AGAIN, drop=["0.zz"]), codes=["unknown_drop"]),
    "dropping a number": Answer(says=tasks(AGAIN, drop=7), codes=["not_json"]),
    "no new plan": Answer(says='{"strategy": "skip"}', codes=["wrong_strategy"]),
}

CHAIN: Plan = {"a": [], "b": ["a"], "c": ["b"]}


Answers = Sequence[Answer]


def by(size: int, answers: Mapping[str, Answer]) -> list[ParameterSet]:
    """The answers in groups, each of which is one run's."""
    named = list(answers.items())
    groups = [named[n : n + size] for n in range(0, len(named), size)]
    return [pytest.param([answer for _, answer in group], id="; ".join(name for name, _ in group)) for group in groups]


def in_turn(answers: Answers) -> list[Reply]:
    """As replies, one after the other."""
    return [text(answer.says) for answer in answers]


def replanning(answers: Sequence[Reply]) -> Callable[[Call], Reply | Awaitable[Reply]]:
    """Has `b` fail for good in its first words, and recovery answer so."""
    return script({("executor", "b"): error(400), "recovery": answers}, plan=CHAIN)


async def told(client: httpx.AsyncClient, run: Json) -> list[list[str]]:
    """The codes of each `plan.rejected`."""
    return [[e["code"] for e in event["data"]["errors"]] for event in await events(client, run, "plan.rejected")]


def asked(model: ScriptedModel) -> list[str | None]:
    """Who was asked, in order: tasks by their keys, the other seats by their names."""
    return [call.task_key if call.seat == "executor" else call.seat for call in model.calls]


# Plans.


@pytest.mark.parametrize("answers", by(2, NO_PLANS))
async def test_after_answers_that_are_no_plan_another_may_do(
    client: httpx.AsyncClient, model: ScriptedModel, answers: Answers
) -> None:
    model.begin(script({"planner": [*in_turn(answers), text(SOUND)]}))
    run = await ended(client)
    assert (run["status"], run["result"]) == ("succeeded", "the answer")
    assert await told(client, run) == [answer.codes for answer in answers]
    assert sorted(await looked_at(client, run)) == ["0.1", "0.2"]


@pytest.mark.parametrize("answers", by(3, NO_PLANS))
async def test_after_three_answers_that_are_no_plan_the_run_fails_without_a_task(
    client: httpx.AsyncClient, model: ScriptedModel, answers: Answers
) -> None:
    model.begin(script({"planner": in_turn(answers)}))
    run = await ended(client)
    assert (run["status"], run["error"]["code"]) == ("failed", "plan_invalid")
    assert await told(client, run) == [answer.codes for answer in answers]
    assert model.order() == ["planner"] * 3
    assert await looked_at(client, run) == {}


@pytest.mark.parametrize("said", PLANS.values(), ids=PLANS.keys())
async def test_a_plan_is_taken_where_reading_it_loses_nothing(
    client: httpx.AsyncClient, model: ScriptedModel, said: str
) -> None:
    model.begin(script({"planner": text(said)}))
    run = await ended(client)
    assert run["status"] == "succeeded"
    of_run = await looked_at(client, run)
    assert {key: task["depends_on"] for key, task in of_run.items()} == {"0.1": [], "0.2": ["0.1"]}
    assert model.order() == ["planner", "0.1", "0.2", "synthesizer"]


async def test_a_plan_of_one_task_is_run_without_a_synthesis(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({"planner": text(tasks(("1", "One.", [])))}))
    run = await ended(client)
    assert (run["status"], run["result"]) == ("succeeded", "result of 0.1")
    assert model.order() == ["planner", "0.1"]


async def test_a_plan_sixty_deep_is_run_where_the_goal_allows_it(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({"planner": text(deep(60))}))
    run = await ended(client, options={"max_tasks": 60})
    assert run["status"] == "succeeded"
    assert model.order() == ["planner", *(f"0.{n}" for n in range(60)), "synthesizer"]


# New plans.


@pytest.mark.parametrize("answers", by(2, {**NO_PLANS, **NO_REPLANS}))
async def test_after_answers_that_are_no_new_plan_another_may_do(
    client: httpx.AsyncClient, model: ScriptedModel, answers: Answers
) -> None:
    model.begin(replanning([*in_turn(answers), text(tasks(AGAIN))]))
    run = await ended(client, options={"on_failure": "replan", "max_replans": 1})
    assert (run["status"], run["result"]) == ("succeeded", "the answer")
    assert await told(client, run) == [answer.codes for answer in answers]
    assert asked(model) == ["planner", "0.a", "0.b", *["recovery"] * (len(answers) + 1), "1.x", "synthesizer"]
    statuses = {key: task["status"] for key, task in (await looked_at(client, run)).items()}
    assert statuses == {"0.a": "succeeded", "0.b": "failed", "0.c": "superseded", "1.x": "succeeded"}


@pytest.mark.parametrize("answers", by(3, {**NO_PLANS, **NO_REPLANS}))
async def test_after_three_answers_that_are_no_new_plan_the_run_fails_and_keeps_its_results(
    client: httpx.AsyncClient, model: ScriptedModel, answers: Answers
) -> None:
    model.begin(replanning(in_turn(answers)))
    run = await ended(client, options={"on_failure": "replan", "max_replans": 1})
    assert (run["status"], run["error"]["code"]) == ("failed", "replans_exhausted")
    assert await told(client, run) == [answer.codes for answer in answers]
    assert asked(model) == ["planner", "0.a", "0.b", *["recovery"] * 3]
    of_run = await looked_at(client, run)
    assert {key: task["status"] for key, task in of_run.items()} == {
        "0.a": "succeeded",
        "0.b": "failed",
        "0.c": "cancelled",
    }
    assert of_run["0.a"]["result"] == "result of 0.a"


async def test_finished_work_that_a_new_plan_drops_is_carried_all_the_same(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(replanning([text(tasks(AGAIN, drop=["0.a"]))]))
    run = await ended(client, options={"on_failure": "replan"})
    assert run["status"] == "succeeded"
    plan = (await client.get(f"/runs/{run['id']}/plan")).json()
    assert (plan["carried"], plan["superseded"]) == (["0.a"], ["0.c"])
    assert (await tasks_by_key(client, run["id"]))["0.a"]["result"] == "result of 0.a"
    assert asked(model) == ["planner", "0.a", "0.b", "recovery", "1.x", "synthesizer"]


# Characters.

ODD: Mapping[str, tuple[str, str]] = {
    "NUL": ("nul \0 here", "nul \ufffd here"),
    "half a pair": ("half \ud800 a pair \udfff", "half \ufffd a pair \ufffd"),
    "turned and tagged": ("\u202e turned \U000e0041\U000e0042 tagged", "\u202e turned \U000e0041\U000e0042 tagged"),
    "for a terminal": ("\x1b[31mred\x1b[0m \x07 \x08", "\x1b[31mred\x1b[0m \x07 \x08"),
    "a megabyte in a line": ("x" * 2**20, "x" * 2**20),
}


def saying(odd: str) -> Script:
    """The odd text where the seat's words go."""

    def reply(call: Call) -> Reply:
        match call.seat:
            case "planner":
                return text(tasks(("a", "Do a.", []), ("b", f"Do b. {odd}", ["a"])))
            case "recovery":
                return text(json.dumps({"strategy": "retry", "description": f"{REWORDED} {odd}"}))
            case _:
                return text(odd)

    return reply


@pytest.mark.parametrize(("odd", "kept"), ODD.values(), ids=ODD.keys())
async def test_odd_characters_are_kept_as_far_as_they_can_be_stored(
    running: Running, model: ScriptedModel, odd: str, kept: str
) -> None:
    client = running.client
    model.begin(staged(Fault(replies=[saying(odd)], always=well_after(0))))

    async def said_at(seat: str) -> tuple[Json, Json, Json]:
        run = await ended(client, goal=goal_at(seat, "always"))
        assert run["status"] == "succeeded", run
        of_run = await looked_at(client, run)
        return run, of_run["0.b"], (await client.get(f"/runs/{run['id']}/tasks/0.b")).json()

    planned, executed, recovered, synthesized = await asyncio.gather(*map(said_at, SEATS))
    assert planned[1]["description"] == f"Do b. {kept}"
    assert executed[1]["result"] == kept
    assert recovered[2]["attempts"][-1]["description"] == f"{REWORDED} {kept}"
    assert synthesized[0]["result"] == kept
    await is_sound(running)


# Answers to other questions.


async def test_an_answer_to_another_task_is_this_ones_result(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({("executor", "b"): text("result of 0.c")}))
    run = await ended(client)
    assert run["status"] == "succeeded"
    assert (await looked_at(client, run))["0.b"]["result"] == "result of 0.c"


def echo(call: Call) -> Reply:
    """The request's own words."""
    return text(call.text)


def echo_of_instructions(call: Call) -> Reply:
    """Their form of an answer is an example, and says nothing."""
    return text(call.messages[0]["content"])


@pytest.mark.parametrize("seat", ["executor", "synthesizer"])
async def test_an_echo_is_a_result(client: httpx.AsyncClient, model: ScriptedModel, seat: str) -> None:
    model.begin(staged(Fault(replies=[echo], always=well_after(0))))
    run = await ended(client, goal=goal_at(seat, "always"))
    assert run["status"] == "succeeded"
    result = run["result"] if seat == "synthesizer" else (await looked_at(client, run))["0.b"]["result"]
    assert goal_at(seat, "always") in result


@pytest.mark.parametrize("echoed", [echo, echo_of_instructions])
async def test_an_echo_is_no_plan(client: httpx.AsyncClient, model: ScriptedModel, echoed: Script) -> None:
    model.begin(script({"planner": echoed}))
    run = await ended(client)
    assert (run["status"], run["error"] and run["error"]["code"]) == ("failed", "plan_invalid")
    assert asked(model) == ["planner"] * 3


@pytest.mark.parametrize("echoed", [echo, echo_of_instructions])
@pytest.mark.parametrize(
    ("on_failure", "code"),
    [("auto", "replans_exhausted"), ("replan", "replans_exhausted"), ("retry", "task_failed")],
)
async def test_an_echo_is_no_recovery(
    client: httpx.AsyncClient, model: ScriptedModel, on_failure: str, code: str, echoed: Script
) -> None:
    plan: Plan = {"1": [], "2": ["1"]}  # ids as the example in the instructions has them
    fails_at_first = [error(400), text("result of what an echo asks for")]
    model.begin(script({("executor", "2"): fails_at_first, "recovery": echoed}, plan=plan))
    run = await ended(client, options={"on_failure": on_failure, "max_replans": 1})
    assert (run["status"], run["error"] and run["error"]["code"]) == ("failed", code)
    assert asked(model) == ["planner", "0.1", "0.2", *["recovery"] * 3]
