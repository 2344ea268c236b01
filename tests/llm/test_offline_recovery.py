"""The offline model at the recovery seat, and where a client's schema has to be met."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.agents import executor, output, recovery, synthesizer
from app.agents.planner import Rejection
from app.agents.recovery import FailedTask, OtherTask, Recovery, Replan, Reword, Skip
from app.domain.ids import TaskKey
from app.domain.plan import PlanProblem
from app.domain.recovery import Asked
from app.domain.replan import Circumstances
from app.domain.status import Strategy, TaskStatus
from app.llm.chat import ChatRequest, Message, ResponseSchema
from app.llm.offline import NAME, OfflineModel

MARK = "0a1b2c3d"
words = st.text(min_size=1).filter(str.strip)
A, B, C, D = (TaskKey(key) for key in ("0.a", "0.b", "0.c", "0.d"))


def answer(messages: Sequence[Message], *, seat: str, response: ResponseSchema | None) -> str:
    request = ChatRequest(model=NAME, messages=messages, response=response, headers={"X-Planwave-Seat": seat})
    return OfflineModel().answer(request).content


def recovered(
    asked: Asked,
    *,
    description: str = "Boil the water",
    with_schema: bool = True,
    max_tasks: int = 7,
    **given: Any,
) -> Recovery | list[PlanProblem]:
    """What comes of a chain 0.a -> 0.b -> 0.c whose middle failed, with 0.d waiting beside it."""
    usual: dict[str, Any] = {"also_failed": [], "used_up": [], "rejections": [], "goal": "Make tea"}
    messages = recovery.messages(
        **{**usual, **given},
        context={"cups": 2},
        asked=asked,
        task=FailedTask(key=B, description=description, errors=["Failed task 0.z: no.", "Time-out"], depends_on=[A]),
        others=[
            OtherTask(key=A, description="Fill the kettle", status=TaskStatus.SUCCEEDED, result="It is full."),
            OtherTask(key=C, description="Pour it", status=TaskStatus.PENDING, depends_on=[B, A]),
            OtherTask(key=D, description="Find cups", status=TaskStatus.PENDING),
        ],
        instructions=None,
        limit=60_000,
        mark=MARK,
    )
    text = answer(messages, seat="recovery", response=recovery.response_schema(asked) if with_schema else None)
    failed = {B: (description, frozenset({A})), **{t.key: (t.description, frozenset()) for t in usual["also_failed"]}}
    stand = Circumstances(
        max_tasks=max_tasks,
        failed=failed,
        replaced={C: ("Pour it", frozenset({B, A}))},
        carried={A: ("Fill the kettle", frozenset()), D: ("Find cups", frozenset())},
        unstarted=frozenset({D}),
    )
    return recovery.read(text, asked=asked, circumstances=stand)


@pytest.mark.parametrize("with_schema", [True, False])
@pytest.mark.parametrize("asked", [Asked.AUTO, Asked.RETRY])
def test_a_failed_task_is_reworded(asked: Asked, with_schema: bool) -> None:
    found = recovered(asked, with_schema=with_schema)
    assert isinstance(found, Reword)
    assert found.description.startswith("Boil the water ")


@pytest.mark.parametrize("with_schema", [True, False])
def test_a_new_plan_puts_what_failed_differently_and_keeps_what_comes_after_it(with_schema: bool) -> None:
    found = recovered(Asked.REPLAN, with_schema=with_schema)
    assert isinstance(found, Replan)
    first, second = found.tasks
    assert "Boil the water" in first.description
    assert (first.depends_on, second.description, second.depends_on) == (("0.a",), "Pour it", ("1", "0.a"))
    assert found.drop == ()


def test_a_new_plan_covers_every_failed_task() -> None:
    also = FailedTask(key=TaskKey("0.e"), description="Warm the pot", errors=["No."])
    found = recovered(Asked.REPLAN, also_failed=[also])
    assert isinstance(found, Replan)
    assert ["Boil the water" in found.tasks[0].description, "Warm the pot" in found.tasks[1].description] == [
        True,
        True,
    ]
    assert found.tasks[2].depends_on == ("1", "0.a")


def test_a_new_plan_that_was_refused_becomes_a_single_task() -> None:
    problem = PlanProblem(code="too_many_tasks", message="The plan has 2 tasks, more than the 1 allowed.", pointer="")
    found = recovered(Asked.REPLAN, rejections=[Rejection(answer="{}", problems=[problem])], max_tasks=1)
    assert isinstance(found, Replan)
    assert len(found.tasks) == 1


def test_a_choice_keeps_to_the_strategies_that_are_open() -> None:
    assert isinstance(recovered(Asked.AUTO, used_up=[Strategy.RETRY]), Replan)
    assert recovered(Asked.AUTO, used_up=[Strategy.RETRY, Strategy.REPLAN]) == Skip()
    assert isinstance(recovered(Asked.AUTO, used_up=[Strategy.REPLAN]), Reword)


@given(asked=st.sampled_from(Asked), description=words, goal=words)
def test_recovery_of_any_task_gives_an_answer_that_can_be_used(asked: Asked, description: str, goal: str) -> None:
    assert not isinstance(recovered(asked, description=description, goal=goal), list)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "string", "maxLength": 20},
        {"type": "array", "items": {"type": "string"}, "minItems": 3, "uniqueItems": True},
        {"type": "object", "properties": {"day": {"type": "string", "format": "date"}}, "required": ["day"]},
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 2},
                "days": {"type": "integer", "minimum": 1},
                "stops": {"type": "array", "items": {"$ref": "#/$defs/stop"}, "minItems": 1},
                "mood": {"anyOf": [{"enum": ["calm", "busy"]}, {"type": "null"}]},
            },
            "required": ["city", "days", "stops", "mood"],
            "additionalProperties": False,
            "$defs": {"stop": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
        },
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
            "required": ["name", "children"],
            "additionalProperties": False,
        },
    ],
)
@pytest.mark.parametrize("trouble", [None, "The JSON does not fit the schema."])
def test_results_and_final_answers_fit_a_clients_schema(schema: dict[str, Any], trouble: str | None) -> None:
    assert output.schema_problem(schema) is None
    common: dict[str, Any] = {"goal": "Go", "context": None, "limit": 900, "mark": MARK, "schema": schema}
    results = {"0.1": "Rome is old."}
    for seat, messages in (
        ("executor", executor.messages(description="Describe Rome", results=results, trouble=trouble, **common)),
        ("synthesizer", synthesizer.messages(results=results, other_keys=[], trouble=trouble, **common)),
    ):
        text = answer(messages, seat=seat, response=output.response_schema(schema))
        value, wrong = output.read_output(text, schema)
        assert wrong is None
        assert value == json.loads(text)


def test_what_a_skipped_task_leaves_undone_is_told_in_the_result_and_in_the_answer() -> None:
    common: dict[str, Any] = {"context": None, "limit": 900, "mark": MARK, "missing": {"0.x": "It was skipped."}}
    result = answer(
        executor.messages(goal="Settle it", description="Describe tea", results={"0.1": "Tea is warm."}, **common),
        seat="executor",
        response=None,
    )
    assert "Still to be settled: what 0.x would have given." in result
    for results in ({"0.1": "Tea is warm."}, {"0.1": result, "0.2": "Tea is old."}, {}):
        final = answer(
            synthesizer.messages(goal="Settle it", results=results, other_keys=[], **common),
            seat="synthesizer",
            response=None,
        )
        assert final.count("Still to be settled: what 0.x would have given.") == 1
