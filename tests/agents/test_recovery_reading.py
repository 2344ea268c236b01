"""From a model's text to what is done about a failed task: read well, or refused."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.agents import recovery
from app.agents.recovery import Recovery, Replan, Reword, Skip
from app.domain.ids import TaskKey
from app.domain.plan import PlannedTask, PlanProblem
from app.domain.recovery import Asked
from app.domain.replan import Circumstances
from tests.agents.damage import damaged, is_json

STAND = Circumstances(
    max_tasks=3,
    failed={TaskKey("0.b"): ("Do b.", frozenset({"0.a"}))},
    replaced={TaskKey("0.c"): ("Do c.", frozenset({"0.b"}))},
    carried={TaskKey("0.a"): ("Do a.", frozenset()), TaskKey("0.d"): ("Do d.", frozenset({"0.a"}))},
    unstarted=frozenset({TaskKey("0.d")}),
)
TASKS = [
    {"id": "1", "description": "Do b in another way.", "depends_on": ["0.a"]},
    {"id": "2", "description": "Do c.", "depends_on": ["1", "0.a"]},
]
REPLAN = Replan(
    (
        PlannedTask(id="1", description="Do b in another way.", depends_on=("0.a",)),
        PlannedTask(id="2", description="Do c.", depends_on=("1", "0.a")),
    ),
    (),
)
WORDING = "Do b, but gently."


def read(answer: Any, asked: Asked = Asked.AUTO) -> Recovery | list[PlanProblem]:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return recovery.read(text, asked=asked, circumstances=STAND)


def codes(answer: Any, asked: Asked = Asked.AUTO) -> list[str]:
    found = read(answer, asked)
    assert isinstance(found, list)
    return [problem.code for problem in found]


def full(strategy: str, **fields: Any) -> dict[str, Any]:
    return {"strategy": strategy, "description": None, "tasks": None, "drop": None, **fields}


# What is read.


@pytest.mark.parametrize(
    ("answer", "meant"),
    [
        (full("retry", description=WORDING), Reword(WORDING)),
        (full("skip"), Skip()),
        (full("replan", tasks=TASKS, drop=["0.d"]), Replan(REPLAN.tasks, ("0.d",))),
        (full("replan", tasks=TASKS), REPLAN),
        ({"strategy": "retry", "description": WORDING}, Reword(WORDING)),
        ({"strategy": "skip"}, Skip()),
        ({"strategy": "replan", "tasks": TASKS}, REPLAN),
        ({"strategy": " Skip\n"}, Skip()),
        (full("retry", description=WORDING, tasks="nonsense", drop=7), Reword(WORDING)),
        (full("skip", description=3, tasks=[{}], drop="0.d"), Skip()),
        (full("replan", description="", tasks=TASKS, reason="because"), REPLAN),
    ],
)
def test_a_choice_is_read_and_what_its_strategy_does_not_use_is_ignored(answer: Any, meant: Recovery) -> None:
    assert read(answer) == meant


@pytest.mark.parametrize(
    "answer",
    [{"description": WORDING}, full("retry", description=WORDING), {"description": f"  {WORDING}\n", "tasks": []}],
)
def test_a_rewording_may_come_alone_or_in_the_full_form(answer: Any) -> None:
    assert read(answer, Asked.RETRY) == Reword(WORDING)


@pytest.mark.parametrize("answer", [{"tasks": TASKS}, TASKS, full("replan", tasks=TASKS), {"tasks": TASKS, "drop": []}])
def test_a_new_plan_may_come_alone_as_an_array_or_in_the_full_form(answer: Any) -> None:
    assert read(answer, Asked.REPLAN) == REPLAN


@pytest.mark.parametrize("asked", [Asked.AUTO, Asked.REPLAN])
@pytest.mark.parametrize(
    ("drop", "named"), [(["0.d"], ("0.d",)), ("0.d", ("0.d",)), (["0.d", "0.a", "0.d"], ("0.d", "0.a")), ([], ())]
)
def test_tasks_to_drop_are_read(asked: Asked, drop: Any, named: tuple[str, ...]) -> None:
    answer = read(full("replan", tasks=TASKS, drop=drop), asked)
    assert isinstance(answer, Replan)
    assert answer.drop == named


@pytest.mark.parametrize("wrap", ["%s", "```json\n%s\n```", "I would say:\n%s\nGood luck.", "<think>{hm}</think>%s"])
@pytest.mark.parametrize(
    ("answer", "asked", "meant"),
    [
        (full("retry", description=WORDING), Asked.AUTO, Reword(WORDING)),
        (full("skip"), Asked.AUTO, Skip()),
        (full("replan", tasks=TASKS), Asked.AUTO, REPLAN),
        ({"description": WORDING}, Asked.RETRY, Reword(WORDING)),
        ({"tasks": TASKS}, Asked.REPLAN, REPLAN),
        (TASKS, Asked.REPLAN, REPLAN),
    ],
)
def test_an_answer_is_read_in_fences_and_prose_and_with_small_faults(
    wrap: str, answer: Any, asked: Asked, meant: Recovery
) -> None:
    text = json.dumps(answer)
    for guise in (text, json.dumps(answer, indent=1), text[:-1] + "," + text[-1], repr(answer)):
        assert read(wrap % guise, asked) == meant


def read_with_tools(named: Any, tools: Sequence[str], asked: Asked) -> Recovery | list[PlanProblem]:
    text = json.dumps(full("replan", tasks=[TASKS[0] | {"tools": named}]))
    return recovery.read(text, asked=asked, circumstances=STAND, tools=tools)


@pytest.mark.parametrize("asked", [Asked.AUTO, Asked.REPLAN])
def test_new_tasks_may_have_the_tools_of_the_goal_and_no_others(asked: Asked) -> None:
    answer = read_with_tools(["get", "sum", "get"], ["sum", "get"], asked)
    assert isinstance(answer, Replan)
    assert answer.tasks[0].tools == ("get", "sum")
    refused = read_with_tools(["get", "mail"], ["sum", "get"], asked)
    assert isinstance(refused, list)
    assert [(problem.code, problem.pointer) for problem in refused] == [("unknown_tool", "/tasks/0/tools/1")]


@pytest.mark.parametrize("named", [["http_get"], "http_get", {"http_get": 1}])
def test_tools_that_a_new_plan_names_are_ignored_where_the_goal_names_none(named: Any) -> None:
    answer = read_with_tools(named, (), Asked.REPLAN)
    assert isinstance(answer, Replan)
    assert answer.tasks[0].tools == ()


def test_nul_and_lone_surrogates_in_a_wording_are_replaced() -> None:
    assert read('{"description": "a\\u0000b\\ud800"}', Asked.RETRY) == Reword("a�b�")


# What is refused.


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (Asked.AUTO, {"strategy": "fail"}),
        (Asked.AUTO, {"strategy": None, "tasks": TASKS}),
        (Asked.AUTO, {"strategy": ["retry"]}),
        (Asked.AUTO, {"description": WORDING}),
        (Asked.AUTO, {"tasks": TASKS}),
        (Asked.AUTO, TASKS),
        (Asked.RETRY, full("skip")),
        (Asked.RETRY, full("replan", tasks=TASKS, description=WORDING)),
        (Asked.REPLAN, full("skip")),
        (Asked.REPLAN, full("retry", description=WORDING, tasks=TASKS)),
    ],
)
def test_a_strategy_that_was_not_asked_for_is_refused(asked: Asked, answer: Any) -> None:
    assert codes(answer, asked) == ["wrong_strategy"]


@pytest.mark.parametrize("wording", [None, "", " \n", 7, ["x"], {"x": 1}])
@pytest.mark.parametrize("asked", [Asked.AUTO, Asked.RETRY])
def test_a_rewording_without_words_is_refused(asked: Asked, wording: Any) -> None:
    assert codes(full("retry", description=wording), asked) == ["empty_description"]


@pytest.mark.parametrize("wording", ["Do b.", " do\tB.\n"])
@pytest.mark.parametrize("asked", [Asked.AUTO, Asked.RETRY])
def test_a_rewording_in_the_words_that_failed_is_refused(asked: Asked, wording: str) -> None:
    assert codes(full("retry", description=wording), asked) == ["same_as_failed"]


@pytest.mark.parametrize("asked", [Asked.AUTO, Asked.REPLAN])
@pytest.mark.parametrize(
    ("tasks", "found"),
    [
        (None, ["no_tasks"]),
        ("none", ["no_tasks"]),
        ([], ["empty"]),
        ([TASKS[1]], ["unknown_dependency"]),
        ([{"id": "1", "description": "Do b.", "depends_on": ["0.a"]}], ["same_as_failed"]),
        ([{"id": "1", "description": "Do d.", "depends_on": ["0.a"]}], ["repeats_task"]),
        ([{"id": "1", "description": "x", "depends_on": ["0.b"]}], ["unknown_dependency"]),
        ([{"id": "1", "description": "x", "dependencies": ["0.a"]}], ["not_json"]),
        ([{"id": str(n), "description": f"New {n}."} for n in range(4)], ["too_many_tasks"]),
    ],
)
def test_a_new_plan_is_checked(asked: Asked, tasks: Any, found: list[str]) -> None:
    assert codes(full("replan", tasks=tasks), asked) == found


@pytest.mark.parametrize(("drop", "code"), [(["0.z"], "unknown_drop"), ([None], "unknown_drop"), (7, "not_json")])
def test_a_drop_that_names_no_task_is_refused(drop: Any, code: str) -> None:
    assert codes(full("replan", tasks=TASKS, drop=drop)) == [code]


@pytest.mark.parametrize("asked", Asked)
@pytest.mark.parametrize(
    "text", ["", "I give up.", '{"strategy": "skip"', "<think>{}", '{"strategy": "a", "strategy": "b"}']
)
def test_what_is_no_json_is_refused(asked: Asked, text: str) -> None:
    assert codes(text, asked) == ["not_json"]


@pytest.mark.parametrize(
    ("asked", "code"), [(Asked.AUTO, "wrong_strategy"), (Asked.RETRY, "empty_description"), (Asked.REPLAN, "no_tasks")]
)
@pytest.mark.parametrize("text", ["null", "7", '"skip"', "{}", '{"answer": 1}'])
def test_json_of_another_form_is_refused_by_what_is_missing(asked: Asked, code: str, text: str) -> None:
    assert codes(text, asked) == [code]


def test_two_different_answers_are_refused() -> None:
    assert codes(f"{json.dumps(full('skip'))} or {json.dumps(full('retry', description=WORDING))}") == ["not_json"]


@pytest.mark.parametrize("wrap", ["%s", "```json\n%s\n```", "Well: %s"])
@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        (full("replan", tasks=TASKS, drop=["0.d"]), Asked.AUTO),
        ({"drop": ["0.d"], "tasks": TASKS}, Asked.REPLAN),
        ({"notes": [{"description": "not this"}], "description": 'Say "{}" to b.'}, Asked.RETRY),
    ],
)
def test_a_text_that_ends_early_is_the_whole_answer_or_a_problem(answer: Any, asked: Asked, wrap: str) -> None:
    text = wrap % json.dumps(answer)
    whole = read(text, asked)
    assert not isinstance(whole, list)
    for end in range(len(text)):
        found = read(text[:end], asked)
        assert isinstance(found, list) or found == whole, text[:end]


def said(found: Recovery | list[PlanProblem]) -> object:
    """What an answer says, without punctuation; None where it is refused."""
    match found:
        case Reword(description):
            return re.sub(r"\W", "", description)
        case Replan(tasks, drop):
            words = [[task.id, task.description, *task.depends_on] for task in tasks]
            return [[re.sub(r"\W", "", word) for word in line] for line in [*words, drop]]
        case Skip():
            return Skip
        case _:
            return None


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        (full("replan", tasks=TASKS, drop=["0.d"]), Asked.AUTO),
        (full("retry", description='It\'s "x" {a} [b], so: do'), Asked.AUTO),
        (full("skip"), Asked.AUTO),
        ({"description": 'Do {b}, it\'s "fine" [1]'}, Asked.RETRY),
        ({"tasks": TASKS, "drop": ["0.d", "0.a"]}, Asked.REPLAN),
        (TASKS, Asked.REPLAN),
    ],
)
def test_one_wrong_punctuation_character_never_makes_another_answer(answer: Any, asked: Asked) -> None:
    text = json.dumps(answer)
    whole = said(read(text, asked))
    for mutant in damaged(text):
        if not is_json(mutant):
            assert said(read(mutant, asked)) in (None, whole), mutant


@given(st.text(alphabet=st.characters()) | st.text(alphabet='{}[]",: \n1strategykipdon'), st.sampled_from(Asked))
@example('{"strategy": "\ud800"}', Asked.AUTO)
def test_any_text_is_an_answer_or_has_problems(text: str, asked: Asked) -> None:
    assert read(text, asked)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "description"]), inner),
    max_leaves=8,
)


@given(
    st.sampled_from(Asked),
    st.fixed_dictionaries(
        {},
        optional={
            "strategy": st.sampled_from(["retry", "skip", "replan"]) | json_values,
            "description": json_values,
            "tasks": json_values,
            "drop": json_values,
        },
    ),
)
def test_any_json_is_an_answer_or_has_problems_that_can_be_stored(asked: Asked, answer: dict[str, Any]) -> None:
    found = read(answer, asked)
    if isinstance(found, list):
        assert found
        for problem in found:
            json.dumps(problem.as_json(), ensure_ascii=False).encode()


@pytest.mark.parametrize("asked", Asked)
def test_nested_answers_of_any_depth_are_refused(asked: Asked) -> None:
    for depth in (900, 990, 5_000):
        deep = "[" * depth + "]" * depth
        for name in ("strategy", "description", "tasks", "drop"):
            assert isinstance(read(f'{{"{name}": {deep}}}', asked), list)
            assert isinstance(read(f'{{"{name}": {deep}}} {{"{name}": {deep}}}', asked), list)
