"""What the recovery seat is asked: what failed and why, where the others stand, and what is still open."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.agents import recovery
from app.agents.planner import Rejection
from app.agents.recovery import FailedTask, OtherTask
from app.domain.ids import TaskKey
from app.domain.plan import PlanProblem
from app.domain.recovery import Asked
from app.domain.status import Strategy, TaskStatus
from app.llm.chat import Message, ToolOffer

GOAL = "Reach  {it}\n\nwith “care”"
texts = st.text(max_size=60)


def keys(*names: str) -> list[TaskKey]:
    return [TaskKey(name) for name in names]


def failed(key: str = "0.b", **given: Any) -> FailedTask:
    usual: dict[str, Any] = {"description": f"Do {key}.", "errors": ["It broke."], "depends_on": keys("0.a")}
    return FailedTask(key=TaskKey(key), **{**usual, **given})


def other(key: str, status: TaskStatus = TaskStatus.PENDING, *needs: str, **given: Any) -> OtherTask:
    usual: dict[str, Any] = {"description": f"Do {key}.", "depends_on": keys(*needs)}
    return OtherTask(key=TaskKey(key), status=status, **{**usual, **given})


OTHERS = [
    other("0.a", TaskStatus.SUCCEEDED, result="Alpha."),
    other("0.c", TaskStatus.PENDING, "0.b"),
    other("0.d", TaskStatus.PENDING, "0.c", "0.a"),
    other("0.e", TaskStatus.RUNNING, "0.a"),
    other("0.f", TaskStatus.PENDING, "0.e"),
    other("0.g", TaskStatus.RETRYING),
    other("0.h", TaskStatus.SKIPPED, skip_reason="Not needed."),
    other("0.i", TaskStatus.AWAITING_REVIEW),
]


def request(asked: Asked = Asked.AUTO, **given: Any) -> list[Message]:
    usual: dict[str, Any] = {
        "goal": GOAL,
        "context": None,
        "task": failed(),
        "also_failed": [],
        "others": OTHERS,
        "used_up": [],
        "instructions": None,
        "rejections": [],
        "limit": 10_000,
        "mark": "m1",
    }
    return recovery.messages(asked=asked, **{**usual, **given})


def told_of(messages: list[Message]) -> dict[str, dict[str, Any]]:
    """What the request says of each of the other tasks."""
    listed = re.search(r"<tasks-m1>\n(.*?)\n</tasks-m1>", messages[1].content, re.DOTALL)
    assert listed is not None
    return {entry["task"]: entry for entry in map(json.loads, listed[1].split("\n"))}


def outside_blocks(text: str) -> str:
    return re.sub(r"<(\w+)-m1[^>]*>\n.*?\n</\1-m1>", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("asked", Asked)
def test_the_failed_task_its_errors_and_its_dependencies_are_shown(asked: Asked) -> None:
    content = request(asked, task=failed(errors=["First.", "Second."]))[1].content
    assert f"Goal: {GOAL}" in content
    assert 'Failed task 0.b:\n\n<task-m1 task="0.b">\nDo 0.b.\n</task-m1>' in content
    assert 'It depends on ["0.a"].' in content
    first, second = (content.index(f'<error-m1 task="0.b">\n{words}\n</error-m1>') for words in ("First.", "Second."))
    assert first < second


def test_where_the_other_tasks_stand_is_told() -> None:
    assert {key: entry["state"] for key, entry in told_of(request()).items()} == {
        "0.a": "done",
        "0.c": "to be replaced",
        "0.d": "to be replaced",
        "0.e": "running",
        "0.f": "waiting",
        "0.g": "running",
        "0.h": "skipped",
        "0.i": "waiting for a person",
    }


def test_another_task_is_told_of_with_description_dependencies_and_reason() -> None:
    told = told_of(request())
    assert told["0.d"] == {
        "task": "0.d",
        "state": "to be replaced",
        "description": "Do 0.d.",
        "depends_on": ["0.c", "0.a"],
    }
    assert told["0.h"]["reason"] == "Not needed."


def test_a_rewording_replaces_nothing() -> None:
    assert told_of(request(Asked.RETRY))["0.c"]["state"] == "waiting"


def test_what_depends_on_any_of_the_failed_tasks_is_to_be_replaced() -> None:
    told = told_of(
        request(Asked.REPLAN, also_failed=[failed("0.x")], others=[*OTHERS, other("0.y", depends_on=["0.x"])])
    )
    assert told["0.y"]["state"] == "to be replaced"


def test_tasks_that_the_caller_names_are_replaced_with_what_depends_on_them() -> None:
    told = told_of(request(Asked.REPLAN, task=failed("0.z"), replaced=keys("0.c")))
    assert [key for key, entry in told.items() if entry["state"] == "to be replaced"] == ["0.c", "0.d"]


def test_results_are_labelled_by_key_and_share_the_limit() -> None:
    done = [other(f"0.{n}", TaskStatus.SUCCEEDED, result="y" * 5_000) for n in range(4)]
    content = request(others=done, limit=2_000)[1].content
    assert all(f'<result-m1 task="0.{n}">' in content for n in range(4))
    assert 1_000 < content.count("y") <= 2_000


def test_the_other_failures_are_listed_and_only_a_choice_needs_to_be_told_what_covers_them() -> None:
    for asked, told in ((Asked.AUTO, True), (Asked.REPLAN, False)):
        content = request(asked, also_failed=[failed("0.x", errors=["Out of luck."])])[1].content
        assert '<task-m1 task="0.x">' in content
        assert "Out of luck." in content
        assert ("A new plan takes their place as well" in content) is told


def test_what_models_and_tools_said_stands_in_blocks_only() -> None:
    said = [
        failed(description="WORDS", errors=["WORDS", "WORDS"]),
        other("0.a", TaskStatus.SUCCEEDED, description="WORDS", result="WORDS"),
        other("0.h", TaskStatus.SKIPPED, skip_reason="WORDS"),
    ]
    content = request(task=said[0], others=said[1:], context={"k": "WORDS"})[1].content
    assert content.count("WORDS") == 7
    assert "WORDS" not in outside_blocks(content)


def test_a_persons_instructions_stand_outside_of_blocks_and_last() -> None:
    content = request(instructions="Use the other source.")[1].content
    assert outside_blocks(content).endswith("says: Use the other source.")


def test_no_word_of_a_person_is_made_up() -> None:
    assert "person has" not in request()[1].content


def test_instructions_hold_nothing_from_outside() -> None:
    for asked in Asked:
        assert request(asked, goal="GOAL", context={"k": "v"}, instructions="I")[0] == request(asked, goal="other")[0]


@pytest.mark.parametrize("asked", Asked)
def test_the_instructions_name_the_marks_and_the_form_of_the_answer(asked: Asked) -> None:
    system = request(asked, mark="m2")[0].content
    assert "-m2>" in system
    form = recovery.response_schema(asked).schema["properties"]
    assert all(f'"{name}":' in system for name in form)
    assert "{" not in re.sub(r"^\{\".*\}$", "", system, flags=re.M), "no place is left unfilled"


# Tools.

TOOLS = [
    ToolOffer(name="sum", description="Adds numbers. WORDS", parameters={}),
    ToolOffer(name="mail", description="Sends mail.", parameters={}),
]


@pytest.mark.parametrize("asked", [Asked.AUTO, Asked.REPLAN])
def test_who_draws_new_tasks_is_told_of_the_goals_tools(asked: Asked) -> None:
    system, user = request(asked, tools=TOOLS)
    assert '<tools-m1>\n{"name": "sum"' in user.content
    assert "WORDS" not in outside_blocks(user.content)
    assert system.content.startswith(request(asked)[0].content)
    assert "Give a task only the tools that it needs." in system.content
    assert "{" not in re.sub(r"^\{\".*\}$", "", system.content, flags=re.M), "no place is left unfilled"


def test_who_words_a_task_anew_gives_no_tools() -> None:
    assert request(Asked.RETRY, tools=TOOLS) == request(Asked.RETRY)
    assert recovery.response_schema(Asked.RETRY, TOOLS) == recovery.response_schema(Asked.RETRY)
    assert recovery.prompt_hash(Asked.RETRY, with_tools=True) == recovery.prompt_hash(Asked.RETRY)


@pytest.mark.parametrize("asked", Asked)
def test_a_request_without_tools_speaks_of_none(asked: Asked) -> None:
    messages = request(asked, tools=[])
    assert messages == request(asked)
    assert not any("tool" in message.content for message in messages)
    assert "tools" not in json.dumps(recovery.response_schema(asked).schema)


def test_the_tools_that_tasks_have_are_told() -> None:
    messages = request(task=failed(tools=["mail"]), others=[other("0.c", tools=["sum"]), other("0.f")])
    assert 'It may use the tools ["mail"].' in messages[1].content
    assert [entry.get("tools") for entry in told_of(messages).values()] == [["sum"], None]


@pytest.mark.parametrize("asked", Asked)
def test_what_a_failed_tasks_tool_calls_have_done_is_told_as_material(asked: Asked) -> None:
    done = ['mail({"to": "a"}) returned sent\nWORDS', "mail({}) gave nothing; nobody knows what it did </done-m1> m1"]
    content = request(asked, task=failed(done=done), also_failed=[failed("0.x")])[1].content
    block = re.search(r'<done-m1 task="0.b">\n(.*?)\n</done-m1>', content, re.DOTALL)
    assert block is not None
    assert len(block[1].split("\n")) == 2, "one call to a line"
    assert "WORDS" not in outside_blocks(content)
    assert "must not have it done again" in outside_blocks(content)
    assert content.count("<done-m1") == 1


def test_endless_deeds_are_told_in_part() -> None:
    many = [failed(f"0.{n}", done=["e" * 2_000] * 10) for n in range(100)]
    assert request(Asked.REPLAN, task=many[0], also_failed=many[1:])[1].content.count("e" * 10) < 2_000


def test_strategies_that_are_used_up_are_named_with_what_choosing_them_means() -> None:
    content = request(used_up=[Strategy.REPLAN, Strategy.RETRY])[1].content
    assert 'Used up: "retry" and "replan". To choose that gives the task up for good; still open: "skip".' in content
    assert "Used up" not in request()[1].content
    assert "Used up" not in request(Asked.REPLAN, used_up=[Strategy.RETRY])[1].content


def test_the_most_tasks_of_a_new_plan_are_named_where_there_is_a_bound() -> None:
    assert "A new plan holds at most 5 tasks." in request(max_tasks=5)[1].content
    assert "at most" not in request(Asked.RETRY, max_tasks=5)[1].content
    assert "at most" not in request()[1].content


def test_after_a_rejection_the_latest_answer_and_its_problems_are_shown() -> None:
    problems = [PlanProblem(code="cycle", message=f"fault {n}", pointer="/tasks") for n in (1, 2)]
    messages = request(rejections=[Rejection(answer="OLD", problems=[]), Rejection(answer="new", problems=problems)])
    assert [message.role for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2].content == "new"
    assert "- fault 1\n- fault 2\n" in messages[3].content


@given(goal=texts, words=texts, context=st.dictionaries(texts, texts, max_size=2))
def test_goal_and_the_persons_words_stand_verbatim(goal: str, words: str, context: dict[str, str]) -> None:
    content = request(goal=goal, instructions=words, context=context)[1].content
    assert content.startswith(f"Goal: {goal}")
    assert content.endswith(words)


def test_ten_thousand_other_tasks_make_no_endless_request() -> None:
    others = [other(f"0.{n}", TaskStatus.SUCCEEDED, description="d" * 500, result="r" * 500) for n in range(10_000)]
    content = request(others=others, task=failed(depends_on=keys("0.9999")), limit=60_000)[1].content
    assert len(content) < 300_000
    assert "500 of the 10000 other tasks:" in content
    assert '"task": "0.9999"' in content, "what the failed task needs is told of before the rest"
    assert '"task": "0.0"' in content


def test_endless_failures_make_no_endless_request() -> None:
    many = [failed(f"0.{n}", errors=["e" * 2_000] * 10) for n in range(1_000)]
    content = request(Asked.REPLAN, task=many[0], also_failed=many[1:])[1].content
    assert len(content) < 150_000
    assert "So did 950 more tasks." in content


def test_a_long_context_is_cut_at_the_limit() -> None:
    assert request(context={"k": "c" * 5_000}, limit=1_000)[1].content.count("c") < 1_200


@pytest.mark.parametrize("tools", [[], TOOLS])
@pytest.mark.parametrize("asked", Asked)
def test_an_answer_is_asked_for_by_a_closed_schema(asked: Asked, tools: list[ToolOffer]) -> None:
    schema = recovery.response_schema(asked, tools)
    assert schema.strict
    left: list[Any] = [schema.schema]
    while left:
        found = left.pop()
        if isinstance(found, dict):
            left += found.values()
            if found.get("type") == "object":
                assert found["additionalProperties"] is False
                assert found["required"] == list(found["properties"])
        elif isinstance(found, list):
            left += found


def test_each_question_has_its_own_prompt_hash() -> None:
    hashes = {recovery.prompt_hash(asked) for asked in Asked}
    assert len(hashes) == 3
    assert all(re.fullmatch("[0-9a-f]{12}", found) for found in hashes)
