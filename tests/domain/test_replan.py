"""What a new generation may hold and drop, against networkx, and what is said of those that may not be."""

from collections.abc import Mapping, Sequence

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.ids import TaskKey
from app.domain.plan import PlannedTask, PlanProblem
from app.domain.replan import Circumstances, dropped, problems_of

Needs = Mapping[str, Sequence[str]]


def known(needs: Needs) -> dict[TaskKey, tuple[str, frozenset[str]]]:
    return {TaskKey(key): (f"Do {key}.", frozenset(before)) for key, before in needs.items()}


def circumstances(
    *,
    failed: Needs | None = None,
    replaced: Needs | None = None,
    carried: Needs | None = None,
    unstarted: Sequence[str] = (),
    max_tasks: int = 7,
) -> Circumstances:
    """A chain 0.a -> 0.b -> 0.c whose middle failed, and beside it 0.d, which waits for 0.a, and 0.e, which for 0.d."""
    return Circumstances(
        max_tasks=max_tasks,
        failed=known(failed if failed is not None else {"0.b": ["0.a"]}),
        replaced=known(replaced if replaced is not None else {"0.c": ["0.b"]}),
        carried=known(carried if carried is not None else {"0.a": [], "0.d": ["0.a"], "0.e": ["0.d"]}),
        unstarted=frozenset(map(TaskKey, unstarted or (["0.d", "0.e"] if carried is None else []))),
    )


def task(task_id: str = "1", description: str = "Do something new.", needs: Sequence[str] = ()) -> PlannedTask:
    return PlannedTask(id=task_id, description=description, depends_on=tuple(needs))


def problems(tasks: Sequence[PlannedTask], *, drop: Sequence[str] = (), **given: object) -> list[PlanProblem]:
    return problems_of(tasks, drop, circumstances(**given))  # type: ignore[arg-type]


def test_new_tasks_may_depend_on_each_other_and_on_tasks_that_are_carried() -> None:
    assert problems([task("1", needs=["0.a", "0.d"]), task("2", needs=["1", "0.e"])]) == []


def test_a_new_plan_is_checked_as_hard_as_a_first_one() -> None:
    tasks = [task("1", needs=["2"]), task("2", needs=["1"]), task("2", " "), task("a/b", needs=["a/b"])]
    assert [problem.code for problem in problems(tasks, max_tasks=3)] == [
        "too_many_tasks",
        "duplicate_id",
        "empty_description",
        "invalid_id",
        "self_dependency",
        "cycle",
    ]


def test_a_new_plan_without_tasks_is_empty() -> None:
    assert [problem.code for problem in problems([])] == ["empty"]


@pytest.mark.parametrize(
    ("needed", "why"),
    [
        ("0.b", "which failed and is replaced"),
        ("0.c", "which is replaced with the failed task that it needs"),
        ("0.d", "which this answer drops"),
        ("0.e", "which this answer drops"),
        ("9.z", "which is neither a new task nor one of the run that goes on"),
    ],
)
def test_a_dependency_that_will_not_be_there_is_refused_with_the_reason(needed: str, why: str) -> None:
    (problem,) = problems([task("1"), task("2", needs=["1", needed])], drop=["0.d"])
    assert (problem.code, problem.pointer, problem.task_id) == ("unknown_dependency", "/tasks/1/depends_on/1", "2")
    assert problem.message == f"Task '2' depends on '{needed}', {why}."


def test_a_new_id_that_is_spelled_like_a_key_wins_over_the_task_of_that_key() -> None:
    assert problems([task("0.b"), task("2", needs=["0.b"])]) == []
    (problem,) = problems([task("0.a", needs=["2"]), task("2", needs=["0.a"])])
    assert problem.code == "cycle"


def test_a_new_plan_may_name_the_tools_of_the_goal_and_no_others() -> None:
    tasks = [PlannedTask(id="1", description="Do something new.", tools=("sum", "mail"))]
    (problem,) = problems_of(tasks, [], circumstances(), tools=["sum", "get"])
    assert (problem.code, problem.pointer, problem.task_id) == ("unknown_tool", "/tasks/0/tools/1", "1")
    assert [problem.code for problem in problems_of(tasks, [], circumstances())] == ["unknown_tool"] * 2


# Dropping.


def test_a_drop_of_a_task_that_the_run_does_not_know_is_refused() -> None:
    (problem,) = problems([task()], drop=["0.d", "7.x"])
    assert (problem.code, problem.pointer, problem.task_id) == ("unknown_drop", "/drop/1", "7.x")
    assert "'7.x' cannot be dropped" in problem.message


@pytest.mark.parametrize("key", ["0.a", "0.b", "0.c", "0.d"])
def test_a_drop_of_any_task_that_the_run_knows_is_no_problem(key: str) -> None:
    assert problems([task()], drop=[key]) == []


def test_a_drop_takes_the_unstarted_dependents_along() -> None:
    assert dropped(["0.d"], circumstances()) == ["0.d", "0.e"]


@pytest.mark.parametrize("key", ["0.a", "0.b", "0.c", "7.x"])
def test_what_has_begun_or_is_no_carried_task_is_not_dropped(key: str) -> None:
    assert dropped([key], circumstances()) == []


@st.composite
def runs(draw: st.DrawFn) -> tuple[Circumstances, list[str]]:
    """Any graph of carried tasks, the started ones closed under what they depend on, and keys to drop."""
    count = draw(st.integers(1, 10))
    keys = [f"0.{n}" for n in range(count)]
    needs = {
        key: draw(st.lists(st.sampled_from(keys[:n]), unique=True, max_size=3)) if n else []
        for n, key in enumerate(keys)
    }
    started: set[str] = set()
    for key in keys:
        if set(needs[key]) <= started and draw(st.booleans()):
            started.add(key)
    carried = {key: needs[key] for key in draw(st.permutations(keys))}
    drop = draw(st.lists(st.sampled_from([*keys, "9.x"]), max_size=3))
    return circumstances(carried=carried, unstarted=[key for key in keys if key not in started]), drop


@given(runs())
def test_what_is_dropped_is_what_is_named_and_all_that_could_not_run_without_it(
    run: tuple[Circumstances, list[str]],
) -> None:
    stand, drop = run
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(stand.carried)
    graph.add_edges_from((needed, key) for key, (_, needs) in stand.carried.items() for needed in needs)
    roots = set(drop) & stand.unstarted
    expected = roots.union(*(nx.descendants(graph, root) for root in roots))
    gone = dropped(drop, stand)
    assert gone == [key for key in stand.carried if key in expected]


@given(runs())
def test_nothing_that_goes_on_depends_on_what_is_dropped(run: tuple[Circumstances, list[str]]) -> None:
    stand, drop = run
    gone = set(dropped(drop, stand))
    assert gone <= stand.unstarted
    assert all(gone.isdisjoint(needs) for key, (_, needs) in stand.carried.items() if key not in gone)


@given(runs(), st.data())
def test_a_new_task_may_depend_on_exactly_what_is_carried_and_not_dropped(
    run: tuple[Circumstances, list[str]], data: st.DataObject
) -> None:
    stand, drop = run
    needed = data.draw(st.sampled_from([*stand.carried, *stand.failed, *stand.replaced, "8.y"]))
    codes = {problem.code for problem in problems_of([task(needs=[needed])], drop, stand)}
    kept = needed in stand.carried and needed not in dropped(drop, stand)
    assert ("unknown_dependency" in codes) == (not kept)
    assert ("unknown_drop" in codes) == ("9.x" in drop)


# Saying the same again.


@pytest.mark.parametrize("words", ["Do 0.b.", "  do\n0.B. "])
def test_what_failed_is_not_tried_again_in_the_same_words(words: str) -> None:
    (problem,) = problems([task("0"), task("1", words, ["0.a"])])
    assert (problem.code, problem.pointer, problem.task_id) == ("same_as_failed", "/tasks/1/description", "1")
    assert "'0.b', which failed" in problem.message


@pytest.mark.parametrize("words", ["Do 0.d.", "DO  0.d.\t"])
def test_what_is_carried_is_not_done_twice(words: str) -> None:
    (problem,) = problems([task("1", words, ["0.a"])])
    assert (problem.code, problem.pointer, problem.task_id) == ("repeats_task", "/tasks/0/description", "1")
    assert "depend on '0.d' instead" in problem.message


@pytest.mark.parametrize("words", ["Do 0.b.", "Do 0.d."])
@pytest.mark.parametrize("needs", [[], ["0.d"], ["0.a", "0.d"]])
def test_the_same_words_with_other_dependencies_are_another_task(words: str, needs: list[str]) -> None:
    assert problems([task("1", words, needs)]) == []


@pytest.mark.parametrize("words", ["Do 0.b.", "Do 0.d."])
def test_the_same_words_after_a_new_task_are_another_task(words: str) -> None:
    assert problems([task("0.a"), task("2", words, ["0.a"])]) == []


def test_what_was_to_come_after_the_failure_may_be_said_again() -> None:
    assert problems([task("1"), task("2", "Do 0.c.", ["1"])]) == []


def test_what_is_dropped_may_be_said_again() -> None:
    assert problems([task("1", "Do 0.d.", ["0.a"])], drop=["0.d"]) == []


@given(
    st.lists(
        st.builds(
            task,
            st.sampled_from(["1", "2", "0.a", ""]),
            st.sampled_from(["Do 0.a.", "Do 0.b.", "x", ""]),
            st.lists(st.sampled_from(["1", "2", "0.a", "0.b", "0.c", "0.d", "\x00", "y" * 300]), max_size=3),
        ),
        max_size=4,
    ),
    st.lists(st.sampled_from(["0.a", "0.d", "0.e", "\ud800", "z" * 300]), max_size=3),
)
def test_every_problem_points_at_what_it_is_about_in_text_that_can_be_stored(
    tasks: list[PlannedTask], drop: list[str]
) -> None:
    plan: dict[str, object] = {
        "tasks": [{"id": t.id, "description": t.description, "depends_on": list(t.depends_on)} for t in tasks],
        "drop": drop,
    }
    for problem in problems(tasks, drop=drop, max_tasks=3):
        found: object = plan
        for step in problem.pointer.split("/")[1:]:
            found = found[int(step)] if isinstance(found, list) else found[step]  # type: ignore[index]
        entry = problem.as_json()
        assert len(entry["message"]) < 600
        for text in (entry["message"], entry.get("task_id", "")):
            assert "\x00" not in text
            text.encode()


def test_ten_thousand_carried_and_ten_thousand_new_tasks_are_read() -> None:
    carried: dict[str, list[str]] = {f"0.{n}": [f"0.{n - 1}"] if n else [] for n in range(10_000)}
    stand = circumstances(carried=carried, unstarted=list(carried), max_tasks=10_000)
    tasks = [task(str(n), f"New {n}", ["0.0"]) for n in range(10_000)]
    assert problems_of(tasks, [], stand) == []
    assert len(dropped(["0.1"], stand)) == 9_999
