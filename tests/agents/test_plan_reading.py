"""From a model's text to a plan: read well, or refused; never read as some other plan."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.agents import planner
from app.agents.json_reading import Unreadable
from app.agents.plan_reading import read_plan
from app.domain.plan import PlannedTask, PlanProblem
from tests.agents.damage import damaged, is_json
from tests.patience import bounded

A: dict[str, Any] = {"id": "1", "description": "Collect the sources.", "depends_on": []}
B: dict[str, Any] = {"id": "2", "description": "Compare them.", "depends_on": ["1"]}
TASKS = [
    PlannedTask(id="1", description="Collect the sources."),
    PlannedTask(id="2", description="Compare them.", depends_on=("1",)),
]
PLAN = {"tasks": [A, B]}
TEXT = json.dumps(PLAN)

SOUND: list[Any] = [
    {"tasks": [*PLAN["tasks"], {"id": "3", "description": "Write it up", "depends_on": ["1", "2"]}]},
    [
        {"id": 1, "description": "It's a \"quoted\" thing, isn't it: yes [1] {x}", "depends_on": []},
        {"id": 2, "description": "Don't stop; use a, b and c.\nThen d: e", "depends_on": [1]},
    ],
    {
        "tasks": [
            {"id": "a", "description": 'Save as {"a": [1, 2]} in a file', "depends_on": []},
            {"id": "b", "description": "Ends with }]} and more", "depends_on": ["a"]},
            {"id": "c", "description": "Has }] in it, and ]}", "depends_on": ["a", "b"]},
            {"id": "d", "description": "x", "depends_on": ["b"]},
        ]
    },
    {
        "tasks": [
            {"id": "a", "description": "One", "tasks": [{"id": "a1", "description": "Part of one"}], "depends_on": []},
            {"id": "b", "description": "Two", "depends_on": ["a"]},
        ]
    },
    {"tasks": [{"description": "Last", "depends_on": ["a"], "id": "b"}, {"id": "a", "description": "First, get x"}]},
]
"""Sound plans with what may be mistaken for their own punctuation."""

WRAPPED = ["%s", "```json\n%s\n```", "Here is the plan:\n%s\nI hope that it helps."]


def read(text: str) -> tuple[list[PlannedTask], list[PlanProblem]]:
    return planner.read(text, min_tasks=1, max_tasks=100)


def code_of(text: str) -> str:
    with pytest.raises(Unreadable) as refused:
        read_plan(text)
    return refused.value.problem.code


def words(tasks: Sequence[PlannedTask]) -> list[tuple[str, ...]]:
    """What the tasks say, without punctuation."""
    return [
        tuple("".join(re.findall(r"\w", t)) for t in (task.id, task.description, *task.depends_on)) for task in tasks
    ]


# What is read.


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        json.dumps(PLAN, indent=2),
        f"\ufeff {TEXT}\n",
        json.dumps([A, B]),
        f"```json\n{TEXT}\n```",
        f"```\n{TEXT}\n```",
        f"Sure! Here it is:\n\n```JSON\n{TEXT}\n```\nTell me if {{you}} want [more].",
        f"The plan is {TEXT} as you asked.",
        f"As in [1] and (so on): {json.dumps([A, B])}",
        f"{TEXT}\n{TEXT}",
        f"<think>Maybe {json.dumps({'tasks': [B]})}?\nNo.</think>\n{TEXT}",
        f" \n<think></think>{TEXT}",
        TEXT.replace("}]}", "},]}"),
        TEXT.replace('"]', '",]'),
        repr(PLAN),
        TEXT.replace('"', "'"),
        repr({"tasks": [{**A, "critical": True}, B]}),
        TEXT.replace('"id"', "id").replace('"description"', "description").replace('"depends_on"', "depends_on"),
        json.dumps({"tasks": [{**A, "id": 1}, {**B, "id": 2, "depends_on": [1]}]}),
        json.dumps({"tasks": [{**A, "id": 1}, {**B, "depends_on": 1}]}),
        json.dumps({"tasks": [A, {**B, "depends_on": "1"}]}),
        json.dumps({"tasks": [A, {**B, "depends_on": ["1", 1, "1"]}]}),
        json.dumps({"tasks": [{"id": "1", "description": A["description"]}, B]}),
        json.dumps({"tasks": [{**A, "depends_on": None}, B]}),
        json.dumps({"thoughts": "First this, then that.", "tasks": [{**A, "effort": "low"}, B]}),
    ],
)
def test_a_plan_is_read_in_many_guises(text: str) -> None:
    assert read(text) == (TASKS, [])


def test_an_order_of_names_does_not_matter() -> None:
    assert words(read_plan(json.dumps(SOUND[4]))) == [("b", "Last", "a"), ("a", "Firstgetx")]


def test_a_description_may_hold_line_breaks_that_were_not_escaped() -> None:
    tasks, problems = read('{"tasks": [{"id": "1", "description": "Collect:\n- books\n\t- papers", "depends_on": []}]}')
    assert problems == []
    assert words(tasks) == [("1", "Collectbookspapers")]


def test_prose_with_many_brackets_does_not_hide_a_plan() -> None:
    assert read("As said in [1]: " * 150 + TEXT) == (TASKS, [])


def test_nul_and_lone_surrogates_in_a_description_are_replaced() -> None:
    (task,) = read_plan('{"tasks": [{"id": "1", "description": "a\\u0000b\\ud800"}]}')
    assert task.description == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"


# What is refused.


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "not_json"),
        ("I cannot help with that.", "not_json"),
        ("{", "not_json"),
        ("null", "no_tasks"),
        ('"a plan"', "no_tasks"),
        ("42", "no_tasks"),
        ("{}", "no_tasks"),
        ('{"tasks": "none"}', "no_tasks"),
        ('{"tasks": {"1": "x"}}', "no_tasks"),
        ('["Collect", "Compare"]', "no_tasks"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_reason(text: str, code: str) -> None:
    assert code_of(text) == code


@pytest.mark.parametrize("text", ["[]", '{"tasks": []}'])
def test_a_plan_without_tasks_is_an_empty_plan(text: str) -> None:
    tasks, problems = read(text)
    assert tasks == []
    assert [problem.code for problem in problems] == ["empty"]


@pytest.mark.parametrize(
    "twice",
    [
        '{"tasks": [{"id": "1", "id": "2", "description": "x"}]}',
        '{"tasks": [{"id": "1", "description": "x", "description": "X"}]}',
        '{"tasks": [{"id": "1", "description": "x", "depends_on": [], "depends_on": []}]}',
        f'{{"tasks": {json.dumps([A])}, "tasks": {json.dumps([A, B])}}}',
    ],
)
def test_a_name_that_stands_twice_in_an_object_is_refused(twice: str) -> None:
    assert code_of(twice) == "not_json"


@pytest.mark.parametrize("between", ["\n", "\nor rather\n", "```\nBetter:\n```json\n", "</think>"])
def test_two_different_plans_are_refused(between: str) -> None:
    first, second = json.dumps({"tasks": [A]}), TEXT
    text = f"{first}{between}{second}"
    assert code_of(f"```json\n{text}\n```" if "```" in between else text) == "not_json"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("name", ["id", "description", "depends_on", "effort"])
def test_numbers_that_are_not_json_are_refused(number: str, name: str) -> None:
    text = json.dumps({"tasks": [{**A, name: "?"}]}).replace('"?"', number)
    assert code_of(text) == "not_json"


@pytest.mark.parametrize("needs", [True, {"1": True}, 1.5])
def test_dependencies_that_are_no_list_are_refused(needs: object) -> None:
    assert code_of(json.dumps({"tasks": [A, {**B, "depends_on": needs}]})) == "not_json"


@pytest.mark.parametrize("wrong", [None, True, 1.0, [], {}, 10**101])
def test_an_id_that_is_none_is_reported_as_invalid(wrong: object) -> None:
    _, problems = read(json.dumps({"tasks": [{**A, "id": wrong}]}))
    assert [(problem.code, problem.pointer) for problem in problems] == [("invalid_id", "/tasks/0/id")]


@pytest.mark.parametrize("entry", ["Collect the sources", 7, None, ["1", "Collect"]])
def test_a_task_that_is_no_object_is_reported(entry: object) -> None:
    _, problems = read(json.dumps({"tasks": [A, entry]}))
    assert [(problem.code, problem.pointer) for problem in problems] == [
        ("invalid_id", "/tasks/1/id"),
        ("empty_description", "/tasks/1/description"),
    ]


def test_an_integer_id_and_the_same_digits_are_one_id() -> None:
    _, problems = read(json.dumps({"tasks": [{**A, "id": 1}, {**B, "id": "1", "depends_on": []}]}))
    assert [problem.code for problem in problems] == ["duplicate_id"]


def test_a_plan_within_bounds_has_no_problems_and_one_outside_has_no_tasks() -> None:
    assert planner.read(TEXT, min_tasks=2, max_tasks=2) == (TASKS, [])
    tasks, problems = planner.read(TEXT, min_tasks=1, max_tasks=1)
    assert (tasks, [problem.code for problem in problems]) == ([], ["too_many_tasks"])


def test_thinking_that_never_ends_holds_no_plan() -> None:
    assert code_of(f"<think>One idea would be {TEXT} but then") == "not_json"


# Tools.

TOOLS = ["sum", "get"]


def read_with_tools(*given: Any, tools: Sequence[str] = TOOLS) -> tuple[list[tuple[str, ...]], list[PlanProblem]]:
    """The tools of each task, of an answer whose tasks say this of theirs."""
    entries = [{"id": str(n), "description": "Do.", "depends_on": [], "tools": one} for n, one in enumerate(given)]
    tasks, problems = planner.read(json.dumps({"tasks": entries}), min_tasks=1, max_tasks=9, tools=tools)
    return [task.tools for task in tasks], problems


def test_the_tools_of_each_task_are_read_and_each_counts_once() -> None:
    given: tuple[Any, ...] = (["get", "sum"], ["sum", "get", "sum"], "sum", [], None)
    assert read_with_tools(*given) == ([("get", "sum"), ("sum", "get"), ("sum",), (), ()], [])


def test_an_answer_may_leave_tools_out() -> None:
    assert planner.read(TEXT, min_tasks=1, max_tasks=9, tools=TOOLS) == (TASKS, [])


@pytest.mark.parametrize(("named", "place"), [("mail", 0), (["sum", "mail"], 1), (["get", None], 1), ([{"a": 1}], 0)])
def test_a_tool_that_the_goal_does_not_name_is_refused(named: Any, place: int) -> None:
    tools, problems = read_with_tools(["sum"], named)
    assert tools == []
    assert [(problem.code, problem.pointer) for problem in problems] == [("unknown_tool", f"/tasks/1/tools/{place}")]
    assert "'get', 'sum'" in problems[0].message


@pytest.mark.parametrize("named", [{"sum": True}, True, 1.5])
def test_tools_that_are_no_list_are_refused(named: Any) -> None:
    _, problems = read_with_tools(["sum"], named)
    assert [(problem.code, problem.message) for problem in problems] == [
        ("not_json", "Task 2: tools is not a list of names.")
    ]


def test_one_wrong_punctuation_character_never_makes_other_tools() -> None:
    text = json.dumps({"tasks": [{**A, "tools": ["sum", "get"]}, {**B, "tools": []}]})
    for mutant in damaged(text):
        if not is_json(mutant):
            tasks, problems = planner.read(mutant, min_tasks=1, max_tasks=9, tools=TOOLS)
            assert problems or [task.tools for task in tasks] == [("sum", "get"), ()], mutant


@pytest.mark.parametrize("named", ["mail", ["mail", "sum"], {"sum": True}])
def test_what_an_answer_says_of_tools_gives_none_to_a_goal_without_them(named: Any) -> None:
    assert read_with_tools(named, tools=()) == ([()], [])


# Damage.


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("plan", SOUND)
def test_a_text_that_ends_early_is_the_whole_plan_or_a_problem(plan: Any, wrap: str) -> None:
    for layout in (None, 1):
        text = wrap % json.dumps(plan, indent=layout)
        whole = words(read_plan(text))
        for end in range(len(text)):
            tasks, problems = read(text[:end])
            assert problems or words(tasks) == whole, text[:end]


@pytest.mark.parametrize(
    "cut",
    [
        '{"tasks": [{"id": "1", "description": "Write code ending in }]} and then',
        '{"tasks": [{"id": "1", "description": "Has }] in it", "depends_on": []}',
        '[{"id": "1", "description": "Smile :} :] and th',
        '{"tasks": [{"id": "1", "description": "x", "tasks": [{"id": "1.1", "description": "y"}]}, {"id',
    ],
)
def test_brackets_and_plans_within_a_task_do_not_make_a_cut_text_whole(cut: str) -> None:
    assert code_of(cut) == "not_json"


@pytest.mark.parametrize("plan", SOUND)
def test_one_wrong_punctuation_character_never_makes_another_plan(plan: Any) -> None:
    text = json.dumps(plan)
    whole = words(read_plan(text))
    for mutant in damaged(text):
        if not is_json(mutant):  # what is sound JSON says what it says
            tasks, problems = read(mutant)
            assert problems or words(tasks) == whole, mutant


@pytest.mark.parametrize(
    "broken",
    [
        TEXT.replace('"depends_on": ["1"', '"depends_on: ["1"'),
        TEXT.replace('"depends_on": ["1"', '"depe"nds_on": ["1"'),
        TEXT.replace('"depends_on": ["1"', '"depends_on\\": ["1"'),
        TEXT.replace('"depends_on": ["1"', '"depends\\_on": ["1"'),
    ],
)
def test_a_dependency_with_a_broken_name_is_not_lost(broken: str) -> None:
    tasks, problems = read(broken)
    assert problems or tasks == TASKS


@pytest.mark.parametrize("name", ["dependencies", "dependsOn", "deps", "requires"])
def test_dependencies_under_another_name_are_asked_for_again_and_not_lost(name: str) -> None:
    with pytest.raises(Unreadable, match=f"say `depends_on`, not `{name}`"):
        read_plan(TEXT.replace("depends_on", name))


def test_an_array_closed_too_early_is_not_a_shorter_plan() -> None:
    assert code_of(f"[{json.dumps(A)}], {json.dumps(B)}]") == "not_json"


# Anything at all.


@given(st.text(alphabet=st.characters()) | st.text(alphabet="{}[]\",:'\\` \n1atskdepnio_<>/"))
@example("\ud800{")
@example('{"tasks": [{"id": "\\ud800"}]}')
def test_any_text_is_a_plan_or_unreadable(text: str) -> None:
    with suppress(Unreadable):
        read_plan(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["tasks", "id", "description", "depends_on"]) | st.text(max_size=2), inner)
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_a_plan_or_has_problems(value: Any) -> None:
    tasks, problems = read(json.dumps({"tasks": value}))
    assert bool(tasks) != bool(problems)


@pytest.mark.parametrize("opening", ["[", '{"tasks":', '{"tasks":[', '[{"a":'])
@pytest.mark.parametrize("closing", ["", "]", "}"])
def test_five_thousand_levels_are_refused(opening: str, closing: str) -> None:
    # CPython 3.12 and later read so deep where the brackets match, and find nothing in it.
    assert code_of(opening * 5_000 + closing * 5_000) in ("not_json", "no_tasks")


@pytest.mark.parametrize(
    "unit",
    [
        *("[", "{", "]", '"', "'", "\\", ",", ":", "[1,", '{"a":', '{"a', '[{"', "{}", "[[],", "//", "\x00", "\ud800"),
        *(
            "[{}]",
            '{"tasks":[{}]}',
            '{"tasks":[{"id":"1"}]} x',
            "```a\n",
            "<think>",
            "lorem ipsum ",
            '{"tasks":[{"id":"1",',
            "[" + "1," * 500,
            '{"a":"' + "b" * 500 + '",',
        ),
    ],
)
def test_a_megabyte_of_garbage_does_not_freeze_the_process(unit: str) -> None:
    with bounded(seconds=8), suppress(Unreadable):
        read_plan(unit * (1_000_000 // len(unit)))


@pytest.mark.parametrize("size", [9_000, 39_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ("{a:", "}"), ('["', '"]'), ("('", "')")])
def test_balanced_garbage_does_not_freeze_the_process(opening: str, closing: str, size: int) -> None:
    count = size // len(opening + closing)
    for text in (opening * count + closing * count, (opening + closing) * count):
        with bounded(seconds=8), pytest.raises(Unreadable):
            read_plan(f"[x {text} ]")


def test_a_plan_of_ten_thousand_tasks_is_read() -> None:
    tasks = [{"id": n, "description": f"Do {n}.", "depends_on": [n - 1] if n else []} for n in range(10_000)]
    read_tasks, problems = planner.read(json.dumps({"tasks": tasks}), min_tasks=1, max_tasks=10_000)
    assert problems == []
    assert len(read_tasks) == 10_000


@pytest.mark.parametrize("text", ['{"tasks": [{"id": "\\u0000", "description": "x", "depends_on": ["\\ud800"]}]}'])
def test_the_problems_of_any_answer_can_be_stored(text: str) -> None:
    _, problems = read(text)
    for problem in problems:
        written = json.dumps(problem.as_json(), ensure_ascii=False)
        assert "\\u0000" not in written
        written.encode()
