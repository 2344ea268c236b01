"""What makes tasks a plan, against networkx, and what is said of those that are none."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.domain.graph import critical_path, depths, is_valid_id, validate
from app.domain.plan import PlannedTask, PlanProblem

Needs = dict[str, list[str]]


def planned(needs: Mapping[str, Sequence[str]]) -> list[PlannedTask]:
    return [PlannedTask(id=i, description=f"Do {i}.", depends_on=tuple(before)) for i, before in needs.items()]


def problems_of(tasks: Sequence[PlannedTask], *, min_tasks: int = 1, max_tasks: int = 10_000) -> list[PlanProblem]:
    return validate(tasks, min_tasks=min_tasks, max_tasks=max_tasks)


def cycles_of(needs: Mapping[str, Sequence[str]]) -> list[PlanProblem]:
    return [problem for problem in problems_of(planned(needs)) if problem.code == "cycle"]


def drawn(needs: Mapping[str, Sequence[str]]) -> "nx.DiGraph[str]":
    """The graph with an edge from each dependency to its dependent, and none from a task to itself."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(needs)
    graph.add_edges_from((before, i) for i, listed in needs.items() for before in listed if before != i)
    return graph


def pairs(count: int) -> Needs:
    """So many cycles of two tasks each."""
    return {f"{one}{n}": [f"{other}{n}"] for n in range(count) for one, other in ("ab", "ba")}


@st.composite
def graphs(draw: st.DrawFn, *, acyclic: bool = False) -> Needs:
    ids = [f"t{n}" for n in draw(st.permutations(range(draw(st.integers(1, 12)))))]
    before = {i: ids[:n] if acyclic else ids for n, i in enumerate(ids)}
    needs = {i: draw(st.lists(st.sampled_from(b), unique=True, max_size=3)) if b else [] for i, b in before.items()}
    return {i: needs[i] for i in draw(st.permutations(ids))}


@given(graphs())
def test_a_graph_is_a_plan_exactly_when_networkx_calls_it_acyclic(needs: Needs) -> None:
    codes = {problem.code for problem in problems_of(planned(needs))}
    assert ("cycle" in codes) == (not nx.is_directed_acyclic_graph(drawn(needs)))
    assert ("self_dependency" in codes) == any(i in before for i, before in needs.items())
    assert codes <= {"cycle", "self_dependency"}


@given(graphs(acyclic=True))
def test_waves_are_the_longest_paths(needs: Needs) -> None:
    assert problems_of(planned(needs)) == []
    generations = nx.topological_generations(drawn(needs))
    assert depths(needs) == {i: wave for wave, ids in enumerate(generations, start=1) for i in ids}


@given(graphs(acyclic=True))
def test_waves_come_in_the_plans_own_order(needs: Needs) -> None:
    assert list(depths(needs)) == list(needs)


@given(graphs(acyclic=True))
def test_the_critical_path_is_a_chain_as_long_as_the_longest(needs: Needs) -> None:
    path = critical_path(needs)
    assert len(path) == nx.dag_longest_path_length(drawn(needs)) + 1
    assert all(before in needs[after] for before, after in pairwise(path))


def test_among_equal_chains_the_critical_path_is_the_first_of_the_plan() -> None:
    assert critical_path({"a": [], "b": [], "c": ["a"], "d": ["b"]}) == ("a", "c")


def test_the_critical_path_of_nothing_is_empty() -> None:
    assert critical_path({}) == ()


def test_the_critical_path_stays_within_the_tasks_it_is_given() -> None:
    assert critical_path({"1.b": ["0.a"], "1.c": ["1.b"]}) == ("1.b", "1.c")


def test_waves_go_on_from_those_of_earlier_tasks() -> None:
    assert depths({"1.a": ["0.x"], "1.b": ["1.a", "0.y"]}, {"0.x": 3, "0.y": 7}) == {"1.a": 4, "1.b": 8}


@given(graphs())
def test_a_reported_cycle_is_one_of_the_plan_read_as_needs(needs: Needs) -> None:
    for problem in cycles_of(needs):
        *tasks, last = problem.path
        assert last == tasks[0]
        assert len(tasks) == len(set(tasks)) >= 2
        assert all(needed in needs[task] for task, needed in pairwise(problem.path))
        words = " -> ".join(f"'{task}'" for task in problem.path)
        assert problem.message == f"These tasks wait for each other: {words}."


@given(graphs())
def test_a_reported_cycle_begins_with_its_first_task_of_the_plan(needs: Needs) -> None:
    order = list(needs)
    for problem in cycles_of(needs):
        first = min(problem.path, key=order.index)
        assert (problem.path[0], problem.task_id) == (first, first)
        assert problem.pointer == f"/tasks/{order.index(first)}/depends_on"


@given(graphs())
def test_what_is_left_without_the_reported_cycles_is_acyclic_and_none_share_a_task(needs: Needs) -> None:
    paths = [problem.path[:-1] for problem in cycles_of(needs)]
    tasks = [task for path in paths for task in path]
    assert len(tasks) == len(set(tasks))
    graph = drawn(needs)
    graph.remove_nodes_from(tasks)
    assert nx.is_directed_acyclic_graph(graph)


@pytest.mark.parametrize(("made", "reported"), [(1, 1), (3, 3), (20, 20), (25, 20)])
def test_disjoint_cycles_are_each_reported_up_to_twenty(made: int, reported: int) -> None:
    found = {problem.path for problem in cycles_of(pairs(made))}
    assert len(found) == reported
    assert found <= {(f"a{n}", f"b{n}", f"a{n}") for n in range(made)}


def test_cycles_are_told_in_the_plans_order() -> None:
    assert [problem.task_id for problem in cycles_of(pairs(3))] == ["a0", "a1", "a2"]


def test_a_cycle_is_told_with_its_path_in_words() -> None:
    (problem,) = problems_of(planned({"a": ["c"], "b": ["a"], "c": ["b"]}))
    assert problem.as_json() == {
        "code": "cycle",
        "message": "These tasks wait for each other: 'a' -> 'c' -> 'b' -> 'a'.",
        "pointer": "/tasks/0/depends_on",
        "task_id": "a",
        "path": ["a", "c", "b", "a"],
    }


def test_a_cycle_among_tasks_with_repeated_ids_is_reported_beside_them() -> None:
    tasks = [*planned({"a": ["b"], "b": []}), *planned({"b": ["a"], "c": []})]
    found = problems_of(tasks)
    assert [(problem.code, problem.pointer) for problem in found] == [
        ("duplicate_id", "/tasks/2/id"),
        ("cycle", "/tasks/0/depends_on"),
    ]
    assert found[1].path == ("a", "b", "a")


def test_a_task_that_depends_on_itself_is_not_told_of_as_a_cycle_too() -> None:
    assert [problem.code for problem in problems_of(planned({"a": ["a"], "b": ["a"]}))] == ["self_dependency"]


def test_a_dependency_that_is_no_task_hides_no_cycle() -> None:
    found = problems_of(planned({"a": ["b", "zz"], "b": ["a"]}))
    assert [problem.code for problem in found] == ["unknown_dependency", "cycle"]


def one(**fields: object) -> PlannedTask:
    return PlannedTask(**{"id": "a", "description": "Do it.", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tasks", "code", "pointer", "task_id", "words"),
    [
        ([], "empty", "/tasks", None, "The plan has no tasks"),
        ([one(), one(id="b"), one()], "duplicate_id", "/tasks/2/id", "a", "More than one task has the id 'a'"),
        ([one(), one(id="x/y")], "invalid_id", "/tasks/1/id", "x/y", "Task 2 has an invalid id"),
        ([one(id="")], "invalid_id", "/tasks/0/id", "", "Task 1 has an invalid id"),
        ([one(description=" \n\t")], "empty_description", "/tasks/0/description", "a", "Task 'a' has no description"),
        (
            [one(), one(id="b", depends_on=("a", "zz"))],
            "unknown_dependency",
            "/tasks/1/depends_on/1",
            "b",
            "Task 'b' depends on 'zz', which is not a task of the plan.",
        ),
        ([one(depends_on=("a",))], "self_dependency", "/tasks/0/depends_on/0", "a", "Task 'a' depends on itself."),
    ],
)
def test_each_fault_is_named_where_it_stands(
    tasks: list[PlannedTask], code: str, pointer: str, task_id: str | None, words: str
) -> None:
    (problem,) = problems_of(tasks)
    assert (problem.code, problem.pointer, problem.task_id) == (code, pointer, task_id)
    assert words in problem.message


def test_too_many_tasks_are_counted() -> None:
    (problem,) = problems_of(planned({"a": [], "b": [], "c": []}), max_tasks=2)
    assert (problem.code, problem.pointer) == ("too_many_tasks", "/tasks")
    assert problem.message == "The plan has 3 tasks, more than the 2 allowed; merge tasks."


def test_too_few_tasks_are_counted() -> None:
    (problem,) = problems_of(planned({"a": []}), min_tasks=2)
    assert (problem.code, problem.pointer) == ("too_few_tasks", "/tasks")
    assert problem.message == "The plan has 1 task(s), fewer than the 2 asked for; split tasks."


def test_every_fault_of_a_plan_is_told_at_once_in_reading_order() -> None:
    tasks = [
        one(depends_on=("a", "zz"), tools=("t",)),
        one(description=""),
        one(id="\x00"),
        *planned({"x": ["y"], "y": ["x"]}),
    ]
    assert [problem.code for problem in problems_of(tasks, max_tasks=3)] == [
        "too_many_tasks",
        "self_dependency",
        "unknown_dependency",
        "unknown_tool",
        "duplicate_id",
        "empty_description",
        "invalid_id",
        "cycle",
    ]


def test_a_dependency_may_name_a_task_of_an_earlier_generation() -> None:
    tasks = planned({"1": ["0.9"]})
    assert validate(tasks, min_tasks=1, max_tasks=7, known_keys={"0.9"}) == []


def test_an_id_of_the_plan_wins_over_an_earlier_key() -> None:
    tasks = planned({"0.1": ["x"], "x": ["0.1"]})
    assert [p.code for p in validate(tasks, min_tasks=1, max_tasks=7, known_keys={"0.1"})] == ["cycle"]


def with_tools(*named: str) -> list[PlannedTask]:
    return [one(), one(id="b", tools=named)]


def test_a_task_may_name_the_tools_that_are_allowed() -> None:
    assert validate(with_tools("get", "sum"), min_tasks=1, max_tasks=7, tools=["sum", "get", "mail"]) == []


def test_a_tool_that_is_not_allowed_is_told_with_its_task_and_those_that_are() -> None:
    found = validate(with_tools("sum", "mail", "Sum"), min_tasks=1, max_tasks=7, tools=["sum", "get"])
    assert [(problem.code, problem.pointer, problem.task_id) for problem in found] == [
        ("unknown_tool", "/tasks/1/tools/1", "b"),
        ("unknown_tool", "/tasks/1/tools/2", "b"),
    ]
    assert found[0].message == "Task 'b' names the tool 'mail', but the tools that may be used are 'get', 'sum'."


def test_no_tool_is_allowed_where_none_is_named() -> None:
    (problem,) = problems_of(with_tools("sum"))
    assert problem.message == "Task 'b' names the tool 'sum', but no tools may be used."


def test_a_hundred_allowed_tools_and_an_endless_name_make_no_endless_message() -> None:
    allowed = [f"{n:064}" for n in range(100)]
    (problem,) = validate(with_tools("x" * 5000), min_tasks=1, max_tasks=7, tools=allowed)
    assert problem.message.endswith(" and 70 more.")
    assert len(problem.message) < 2_500


@pytest.mark.parametrize("task_id", ["1", " ", ".", "..", "ä b?#%", "任务", "\N{GRINNING FACE}", "x" * 200, "a.b-c_d"])
def test_almost_any_text_is_an_id(task_id: str) -> None:
    assert is_valid_id(task_id)


@pytest.mark.parametrize(
    "task_id", ["", "a/b", "/", "x" * 201, "a\x00", "a\nb", "\x1f", "\x7f", "\x80", "\x9f", "\ud800", "a\udfff"]
)
def test_slashes_controls_surrogates_and_lengths_beyond_200_are_no_ids(task_id: str) -> None:
    assert not is_valid_id(task_id)


def test_an_overlong_id_is_quoted_in_part_only() -> None:
    for problem in problems_of([one(id="x" * 5000, description="", depends_on=("y" * 5000, "x" * 5000))]):
        assert len(problem.message) < 400
        assert len(problem.task_id or "") <= 80


@given(st.lists(st.text(alphabet=st.characters(), max_size=4), min_size=1, max_size=4))
@example(["\x00", "\ud800"])
def test_problems_can_be_stored_whatever_the_ids_hold(ids: list[str]) -> None:
    """NUL and lone surrogates come out of a model's JSON escapes, and PostgreSQL and UTF-8 refuse them."""
    tasks = [one(id=i, description="", depends_on=(*ids, i + "\x00"), tools=ids) for i in ids]
    for problem in problems_of(tasks):
        entry = problem.as_json()
        for text in (entry["message"], entry.get("task_id", ""), *entry.get("path", ())):
            assert "\x00" not in text
            text.encode()


def test_a_chain_of_ten_thousand_tasks_is_read_without_recursion() -> None:
    chain = {str(n): [str(n - 1)] if n else [] for n in range(10_000)}
    assert problems_of(planned(chain)) == []
    assert depths(chain)["9999"] == 10_000
    assert critical_path(chain) == tuple(chain)


def test_a_cycle_of_ten_thousand_tasks_is_told_without_recursion() -> None:
    ring = {str(n): [str((n - 1) % 10_000)] for n in range(10_000)}
    (problem,) = problems_of(planned(ring))
    assert (problem.code, len(problem.path)) == ("cycle", 10_001)
