"""The walk in particular: what starts when, what is asked, and how a run ends."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

import app.domain
from app.domain.failures import RunError
from app.domain.ids import TaskKey
from app.domain.status import Mode, RunStatus, TaskStatus
from app.domain.steps import CutCalls, DrawPlan, Finish, StartTasks, Step, Synthesize, WalkTask
from app.domain.walk import Walk

PLENTY = 1_000
BROKEN = RunError(code="task_failed", message="it broke")


def tasks_of(needs: Mapping[str, Sequence[str]], **status: TaskStatus) -> list[WalkTask]:
    return [
        WalkTask(
            key=TaskKey(key),
            position=position,
            depends_on=tuple(TaskKey(d) for d in before),
            status=status.get(key, TaskStatus.PENDING),
        )
        for position, (key, before) in enumerate(needs.items())
    ]


def make_walk(needs: Mapping[str, Sequence[str]] | None = None, **given: Any) -> Walk:
    options: dict[str, Any] = {"max_parallel": 8, "tasks": None if needs is None else tasks_of(needs), **given}
    return Walk(**options)


def starts(steps: Sequence[Step]) -> list[str]:
    """The keys of the only step, which starts tasks; nothing where there is no step."""
    if not steps:
        return []
    (step,) = steps
    assert isinstance(step, StartTasks)
    return list(step.keys)


def finish_of(walk: Walk, *keys: str) -> list[Step]:
    for key in keys:
        walk.succeeded(TaskKey(key))
    return walk.next(0, PLENTY)


# Starting.


def test_a_task_starts_the_moment_its_own_dependencies_are_done() -> None:
    walk = make_walk({"a": [], "slow": [], "b": ["a"], "c": ["b", "slow"]})
    assert starts(walk.next(0, PLENTY)) == ["a", "slow"]
    assert starts(finish_of(walk, "a")) == ["b"]
    assert starts(finish_of(walk, "b")) == []
    assert starts(finish_of(walk, "slow")) == ["c"]


def test_what_is_released_out_of_order_starts_in_plan_order() -> None:
    walk = make_walk({"x": ["b"], "y": ["a"], "a": [], "b": []}, max_parallel=2)
    assert starts(walk.next(0, PLENTY)) == ["a", "b"]
    walk.succeeded(TaskKey("a"))
    assert starts(finish_of(walk, "b")) == ["x", "y"]


def test_no_more_start_than_there_are_places() -> None:
    walk = make_walk({"a": [], "b": [], "c": []})
    assert walk.wanted(0) == 3
    assert walk.next(0, 0) == []
    assert starts(walk.next(0, 2)) == ["a", "b"]
    assert walk.wanted(0) == 1


def test_no_more_are_in_flight_than_the_run_allows() -> None:
    walk = make_walk({"a": [], "b": [], "c": []}, max_parallel=2)
    assert walk.wanted(0) == 2
    assert starts(walk.next(0, PLENTY)) == ["a", "b"]
    assert walk.wanted(0) == 0
    assert starts(finish_of(walk, "b")) == ["c"]


def test_a_dependency_named_twice_is_waited_for_once() -> None:
    walk = make_walk({"a": [], "b": ["a", "a"]})
    walk.next(0, PLENTY)
    assert starts(finish_of(walk, "a")) == ["b"]


def test_a_loaded_run_goes_on_where_its_rows_stand() -> None:
    needs = {"a": [], "b": ["a"], "skipped": ["a"], "c": ["b"], "d": ["skipped"], "later": ["a"]}
    rows = tasks_of(
        needs,
        a=TaskStatus.SUCCEEDED,
        b=TaskStatus.RUNNING,
        skipped=TaskStatus.SKIPPED,
        later=TaskStatus.RETRYING,
    )
    rows[-1] = replace(rows[-1], due_at=70)
    walk = make_walk(tasks=rows)
    assert starts(walk.next(0, PLENTY)) == ["b", "d"]
    assert walk.wake_at == 70
    assert starts(walk.next(70, PLENTY)) == ["later"]


def test_a_run_whose_tasks_are_all_done_is_synthesized_after_a_restart() -> None:
    walk = make_walk(tasks=tasks_of({"a": [], "b": []}, a=TaskStatus.SUCCEEDED, b=TaskStatus.SUCCEEDED))
    assert walk.next(0, PLENTY) == [Synthesize()]


# Retries.


def test_a_task_that_waits_for_a_retry_gives_its_place_away_and_comes_back_when_due() -> None:
    walk = make_walk({"a": [], "b": []}, max_parallel=1)
    assert starts(walk.next(0, 1)) == ["a"]
    walk.retry_at(TaskKey("a"), 500)
    assert walk.wake_at == 500
    assert starts(walk.next(1, 1)) == ["b"]
    assert starts(finish_of(walk, "b")) == []
    assert starts(walk.next(499, 1)) == []
    assert starts(walk.next(500, 1)) == ["a"]
    assert walk.wake_at is None


def test_the_earliest_retry_is_the_time_to_wake() -> None:
    walk = make_walk({"a": [], "b": [], "c": []})
    walk.next(0, PLENTY)
    for key, due_at in (("a", 300), ("b", 100), ("c", 200)):
        walk.retry_at(TaskKey(key), due_at)
    assert walk.wake_at == 100
    assert starts(walk.next(250, PLENTY)) == ["b", "c"]
    assert walk.wake_at == 300


def test_a_due_retry_that_finds_no_place_does_not_ask_to_be_woken() -> None:
    walk = make_walk({"a": []})
    walk.next(0, PLENTY)
    walk.retry_at(TaskKey("a"), 100)
    assert walk.next(100, 0) == []
    assert walk.wake_at is None


# Failure.


def failing_walk() -> Walk:
    """Two in flight, one of them failed; two more are not started."""
    walk = make_walk({"a": [], "b": [], "c": [], "d": ["b"]}, max_parallel=2)
    assert starts(walk.next(0, PLENTY)) == ["a", "b"]
    walk.failed_for_good(TaskKey("a"), BROKEN)
    return walk


def test_after_a_failure_nothing_starts_and_what_is_in_flight_is_waited_for() -> None:
    walk = failing_walk()
    assert (walk.wanted(0), walk.next(0, PLENTY), walk.wake_at) == (0, [], None)
    assert finish_of(walk, "b") == [Finish(RunStatus.FAILED, BROKEN)]


def test_a_run_fails_once_and_with_its_first_error() -> None:
    walk = failing_walk()
    walk.failed_for_good(TaskKey("b"), RunError(code="llm_unavailable", message="the second"))
    assert walk.next(0, PLENTY) == [Finish(RunStatus.FAILED, BROKEN)]
    assert walk.next(0, PLENTY) == []


def test_a_retry_that_comes_up_after_a_failure_is_not_started() -> None:
    walk = failing_walk()
    walk.retry_at(TaskKey("b"), 10)
    assert walk.next(20, PLENTY) == [Finish(RunStatus.FAILED, BROKEN)]


def test_what_is_unfinished_at_the_end_is_cancelled_in_plan_order() -> None:
    walk = failing_walk()
    finish_of(walk, "b")
    assert walk.end_unfinished() == ["c", "d"]
    assert walk.end_unfinished() == []
    counts = {status: count for status, count in walk.progress().items() if count}
    assert counts == {"total": 4, "failed": 1, "succeeded": 1, "cancelled": 2}


def test_a_failed_run_that_is_loaded_again_only_finishes() -> None:
    walk = make_walk(tasks=tasks_of({"a": [], "b": []}, a=TaskStatus.FAILED))
    walk.give_up(BROKEN)
    assert walk.wanted(0) == 0
    assert walk.next(0, PLENTY) == [Finish(RunStatus.FAILED, BROKEN)]


def test_a_failure_of_the_last_task_is_not_followed_by_a_synthesis() -> None:
    walk = make_walk({"a": [], "b": []})
    walk.next(0, PLENTY)
    walk.failed_for_good(TaskKey("a"), BROKEN)
    assert finish_of(walk, "b") == [Finish(RunStatus.FAILED, BROKEN)]


# Cancelling.


def test_cancelling_cuts_what_is_in_flight_and_then_finishes() -> None:
    walk = make_walk({"a": [], "b": [], "c": []}, max_parallel=2)
    walk.next(0, PLENTY)
    walk.cancel()
    assert walk.wanted(0) == 0
    assert walk.next(0, PLENTY) == [CutCalls()]
    walk.call_cut(TaskKey("a"))
    walk.succeeded(TaskKey("b"))  # it was faster than the cut
    assert walk.next(0, PLENTY) == [Finish(RunStatus.CANCELLED)]
    assert walk.end_unfinished() == ["a", "c"]


def test_cancelling_a_run_with_nothing_in_flight_finishes_at_once() -> None:
    walk = make_walk({"a": []})
    walk.cancel()
    assert walk.next(0, 0) == [Finish(RunStatus.CANCELLED)]


@pytest.mark.parametrize("needs", [None, {"a": [], "b": []}])
def test_cancelling_cuts_a_call_of_the_run_as_a_whole(needs: dict[str, list[str]] | None) -> None:
    walk = make_walk(needs)
    if needs is not None:
        walk.next(0, PLENTY)
        finish_of(walk, "a", "b")
    else:
        walk.next(0, PLENTY)
    assert walk.in_flight == 1
    walk.cancel()
    assert walk.next(0, PLENTY) == [CutCalls()]
    walk.call_cut(DrawPlan() if needs is None else Synthesize())
    assert walk.next(0, PLENTY) == [Finish(RunStatus.CANCELLED)]


def test_a_client_that_cancels_a_failing_run_gets_it_cancelled() -> None:
    walk = failing_walk()
    walk.cancel()
    assert walk.next(0, PLENTY) == [CutCalls()]


# Planning.


def test_a_run_without_a_plan_asks_for_one_once() -> None:
    walk = make_walk()
    assert not walk.has_plan
    assert walk.wanted(0) == 1
    assert walk.next(0, 0) == []
    assert walk.next(0, 1) == [DrawPlan()]
    assert (walk.wanted(0), walk.next(0, PLENTY), walk.in_flight, walk.wake_at) == (0, [], 1, None)


def test_an_accepted_plan_starts_at_once() -> None:
    walk = make_walk()
    walk.next(0, 1)
    walk.plan_accepted(tasks_of({"a": [], "b": ["a"]}))
    assert walk.has_plan
    assert walk.in_flight == 0
    assert starts(walk.next(0, PLENTY)) == ["a"]


def test_a_plan_is_asked_for_again_when_it_is_due() -> None:
    walk = make_walk()
    walk.next(0, 1)
    walk.plan_asked_again(due_at=40)
    assert (walk.in_flight, walk.wanted(39), walk.next(39, 1), walk.wake_at) == (0, 0, [], 40)
    assert walk.wanted(40) == 1
    assert walk.next(40, 1) == [DrawPlan()]


def test_a_rejected_plan_is_asked_for_again_at_once() -> None:
    walk = make_walk()
    walk.next(0, 1)
    walk.plan_asked_again()
    assert walk.next(0, 1) == [DrawPlan()]


def test_giving_up_on_the_plan_fails_the_run() -> None:
    walk = make_walk()
    walk.next(0, 1)
    walk.call_cut(DrawPlan())
    walk.give_up(BROKEN)
    assert walk.next(0, 1) == [Finish(RunStatus.FAILED, BROKEN)]


@pytest.mark.parametrize("synthesize", [True, False])
def test_plan_only_ends_with_the_plan(synthesize: bool) -> None:
    walk = make_walk(mode=Mode.PLAN_ONLY, synthesize=synthesize)
    walk.next(0, 1)
    walk.plan_accepted(tasks_of({"a": [], "b": []}))
    assert walk.wanted(0) == 0
    assert walk.next(0, PLENTY) == [Finish(RunStatus.SUCCEEDED)]


def wait_for_plan(walk: Walk) -> None:
    walk.next(0, 1)
    walk.plan_asked_again(due_at=100)


def wait_for_synthesis(walk: Walk) -> None:
    walk.next(0, 1)
    walk.plan_accepted(tasks_of({"a": [], "b": []}, a=TaskStatus.SUCCEEDED, b=TaskStatus.SUCCEEDED))
    walk.next(0, 1)
    walk.synthesis_asked_again(due_at=100)


@pytest.mark.parametrize("wait", [wait_for_plan, wait_for_synthesis])
def test_a_due_question_waits_for_a_place(wait: Callable[[Walk], None]) -> None:
    walk = make_walk()
    wait(walk)
    assert walk.wake_at == 100
    assert walk.wanted(100) == 1
    assert walk.next(100, 0) == []
    assert len(walk.next(101, 1)) == 1


# Synthesis.


@pytest.mark.parametrize(
    ("needs", "wanted", "asked"),
    [
        ({"a": []}, True, False),
        ({"a": []}, False, False),
        ({"a": [], "b": []}, False, False),
        ({"a": [], "b": []}, True, True),
    ],
)
def test_synthesis_is_asked_for_when_wanted_and_there_is_more_than_one_task(
    needs: dict[str, list[str]], wanted: bool, asked: bool
) -> None:
    walk = make_walk(needs, synthesize=wanted)
    walk.next(0, PLENTY)
    steps = finish_of(walk, *needs)
    assert steps == ([Synthesize()] if asked else [Finish(RunStatus.SUCCEEDED)])


def test_a_synthesis_ends_the_run() -> None:
    walk = make_walk({"a": [], "b": []})
    walk.next(0, PLENTY)
    assert finish_of(walk, "a", "b") == [Synthesize()]
    assert (walk.in_flight, walk.wanted(0), walk.next(0, PLENTY)) == (1, 0, [])
    walk.synthesized()
    assert walk.next(0, PLENTY) == [Finish(RunStatus.SUCCEEDED)]
    assert walk.next(0, PLENTY) == []


def test_a_synthesis_is_asked_for_again_when_it_is_due() -> None:
    walk = make_walk({"a": [], "b": []})
    walk.next(0, PLENTY)
    finish_of(walk, "a", "b")
    walk.synthesis_asked_again(due_at=40)
    assert (walk.wanted(39), walk.next(39, 1), walk.wake_at) == (0, [], 40)
    assert walk.next(40, 1) == [Synthesize()]


def test_the_last_tasks_are_those_that_nothing_depends_on() -> None:
    walk = make_walk({"z": ["a"], "a": [], "b": [], "m": ["b"]})
    assert walk.last_tasks == ["z", "m"]
    assert walk.tasks == ["z", "a", "b", "m"]


# Cost.


def steps_taken(size: int, *, at_most: int) -> int:
    """Lines that the walk executes for a layered graph of so many tasks, each turn of a loop over anything included."""
    width = 10
    needs = {
        str(n): [str(d) for d in range(n - n % width - width, n - n % width) if d >= 0 and (d + n) % 3 == 0]
        for n in range(size)
    }
    rows = tasks_of(needs)
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(app.domain.__path__[0]):
            return None
        count += event == "line"
        assert count <= at_most
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        walk = Walk(max_parallel=8, tasks=rows, synthesize=False)
        running: list[TaskKey] = []
        while True:
            walk.wanted(0)
            for step in walk.next(0, PLENTY):
                if isinstance(step, Finish):
                    return count
                assert isinstance(step, StartTasks)
                running += step.keys
            _ = (walk.wake_at, walk.in_flight, walk.progress())
            walk.succeeded(running.pop(0))
    finally:
        sys.settrace(before)


def test_the_work_per_task_does_not_grow_with_the_plan() -> None:
    of_few = steps_taken(500, at_most=10_000_000)
    assert steps_taken(5_000, at_most=11 * of_few) > 9 * of_few
