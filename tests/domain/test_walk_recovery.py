"""What the walk does about failures, and with people's answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from app.domain.failures import RunError
from app.domain.ids import TaskKey
from app.domain.recovery import GATHER_MS, AskRecovery, Means, Policy, Remedy
from app.domain.status import OnFailure, RunStatus, TaskStatus
from app.domain.steps import CutCalls, Finish, Park, StartTasks, Step, Synthesize, WalkTask
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


LATER = 10 * GATHER_MS


def make_mending_walk(needs: Mapping[str, Sequence[str]], on_failure: str, **given: Any) -> Walk:
    return make_walk(needs, policy=Policy(on_failure=OnFailure(on_failure)), **given)


def keys(*names: str) -> list[TaskKey]:
    return [TaskKey(name) for name in names]


def fail(walk: Walk, key: str, now: int = 0) -> Means:
    return walk.failed(TaskKey(key), now).means


def the_question(walk: Walk, now: int = LATER) -> AskRecovery:
    (step,) = walk.next(now, PLENTY)
    assert isinstance(step, AskRecovery)
    return step


def status_of(walk: Walk) -> dict[str, str]:
    return {key: walk.status(key).value for key in walk.tasks}


def test_a_reworded_task_starts_again_and_is_not_reworded_twice() -> None:
    walk = make_mending_walk({"a": [], "b": ["a"]}, "retry")
    walk.next(0, PLENTY)
    assert fail(walk, "a") is Means.ASK
    assert walk.retry_chosen(the_question(walk), LATER).means is Means.ASK
    assert walk.was_reworded(TaskKey("a"))
    assert starts(walk.next(LATER, PLENTY)) == ["a"]
    assert walk.failed(TaskKey("a"), LATER) == Remedy(means=Means.GIVE_UP, code="task_failed")


def test_what_waits_for_a_skipped_task_starts() -> None:
    walk = make_mending_walk({"a": [], "b": ["a"]}, "skip")
    walk.next(0, PLENTY)
    assert fail(walk, "a") is Means.SKIP
    walk.skipped(TaskKey("a"))
    assert starts(walk.next(0, PLENTY)) == ["b"]
    assert finish_of(walk, "b") == [Synthesize()]


def test_a_run_whose_tasks_are_all_skipped_has_reached_nothing() -> None:
    walk = make_mending_walk({"a": []}, "skip")
    walk.next(0, PLENTY)
    fail(walk, "a")
    walk.skipped(TaskKey("a"))
    (end,) = walk.next(0, PLENTY)
    assert isinstance(end, Finish)
    assert (end.status, end.error and end.error.code) == (RunStatus.FAILED, "task_failed")


def test_everything_else_goes_on_while_recovery_is_asked() -> None:
    walk = make_mending_walk({"a": [], "b": [], "c": ["b"]}, "replan")
    walk.next(0, PLENTY)
    fail(walk, "a")
    assert walk.next(0, PLENTY) == []
    assert (walk.wake_at, walk.in_flight) == (GATHER_MS, 1)
    the_question(walk)
    assert starts(finish_of(walk, "b")) == ["c"]
    assert finish_of(walk, "c") == []
    assert walk.in_flight == 1


def test_a_new_generation_takes_the_place_of_what_failed_and_all_behind_it() -> None:
    walk = make_mending_walk({"a": [], "b": ["a"], "c": ["b"], "slow": []}, "replan")
    walk.next(0, PLENTY)
    fail(walk, "a")
    step = the_question(walk)
    assert walk.replan_chosen(step) is None
    assert walk.dependents(step.keys) == ["b", "c"]
    new = [
        WalkTask(key=TaskKey("x"), position=4),
        WalkTask(key=TaskKey("y"), position=5, depends_on=(TaskKey("slow"),)),
    ]
    walk.replanned(step, new, superseded=keys("b", "c"))
    assert starts(walk.next(LATER, PLENTY)) == ["x"]
    assert starts(finish_of(walk, "slow")) == ["y"]
    assert finish_of(walk, "x", "y") == [Synthesize()]
    assert walk.progress()["total"] == 4
    assert status_of(walk) == {
        "a": "failed",
        "b": "superseded",
        "c": "superseded",
        "slow": "succeeded",
        "x": "succeeded",
        "y": "succeeded",
    }


def test_a_run_stands_still_when_only_a_person_can_help_and_not_before() -> None:
    walk = make_mending_walk({"a": [], "b": ["a"], "c": []}, "review")
    walk.next(0, PLENTY)
    assert fail(walk, "a") is Means.REVIEW
    walk.review_opened("review", TaskKey("a"))
    assert walk.next(0, PLENTY) == []
    assert finish_of(walk, "c") == [Park(RunStatus.AWAITING_REVIEW)]
    assert walk.next(0, PLENTY) == []


def test_a_task_that_a_person_wants_retried_starts_again() -> None:
    walk = make_mending_walk({"a": []}, "review")
    walk.next(0, PLENTY)
    fail(walk, "a")
    walk.review_opened("review", TaskKey("a"))
    assert walk.next(0, PLENTY) == [Park(RunStatus.AWAITING_REVIEW)]
    walk.go_on()
    walk.review_answered("review")
    walk.answered_retry(TaskKey("a"))
    assert starts(walk.next(0, PLENTY)) == ["a"]


def test_a_replan_that_a_person_wants_is_asked_for_at_once() -> None:
    walk = make_mending_walk({"a": [], "b": ["a"]}, "review")
    walk.next(0, PLENTY)
    fail(walk, "a")
    walk.review_opened("review", TaskKey("a"))
    walk.review_answered("review")
    walk.answered_replan(keys("a"), "So.")
    step = the_question(walk, 0)
    assert (step.keys, step.instructions, walk.status(TaskKey("a"))) == (("a",), "So.", TaskStatus.FAILED)


def test_held_tasks_start_when_they_are_approved() -> None:
    rows = [replace(task, held=True) for task in tasks_of({"a": [], "b": ["a"]})]
    walk = make_walk(tasks=rows)
    walk.review_opened("plan")
    assert walk.next(0, PLENTY) == [Park(RunStatus.AWAITING_REVIEW)]
    walk.go_on()
    walk.review_answered("plan")
    walk.approved(keys("a", "b"))
    assert starts(walk.next(0, PLENTY)) == ["a"]
    assert starts(finish_of(walk, "a")) == ["b"]


def test_recovery_is_asked_before_tasks_are_started() -> None:
    walk = make_mending_walk({"a": [], "b": ["c"], "c": []}, "retry")
    walk.next(0, PLENTY)
    fail(walk, "a")
    walk.succeeded(TaskKey("c"))
    assert walk.wanted(0) == 2
    (step,) = walk.next(0, 1)
    assert isinstance(step, AskRecovery)


def test_cancelling_cuts_a_question_to_recovery() -> None:
    walk = make_mending_walk({"a": []}, "retry")
    walk.next(0, PLENTY)
    fail(walk, "a")
    step = the_question(walk)
    walk.cancel()
    assert walk.next(0, PLENTY) == [CutCalls()]
    walk.call_cut(step)
    assert walk.next(0, PLENTY) == [Finish(RunStatus.CANCELLED)]
