"""What is done about failures, decided without a model: which means are left, what is asked, and when."""

from typing import Any

import pytest

from app.domain.ids import TaskKey
from app.domain.recovery import GATHER_MS, Asked, AskRecovery, Means, Policy, Recovery, Remedy
from app.domain.status import OnExhausted, OnFailure

A, B, C = map(TaskKey, "abc")
PLENTY = 100
LATER = 10 * GATHER_MS
GIVEN_UP = Remedy(means=Means.GIVE_UP, code="task_failed")
NO_REPLANS = Remedy(means=Means.GIVE_UP, code="replans_exhausted")


def recovery_of(on_failure: OnFailure, *, replans: int = 0, **policy: Any) -> Recovery:
    return Recovery(Policy(on_failure=on_failure, **policy), replans=replans)


def fail(recovery: Recovery, *keys: TaskKey, now: int = 0, critical: bool = True, reworded: bool = False) -> Remedy:
    (*_, last) = [recovery.failed(key, critical=critical, reworded=reworded, now=now) for key in keys]
    return last


def the_question(recovery: Recovery, now: int = LATER) -> AskRecovery:
    (step,) = recovery.take(now, PLENTY)
    return step


@pytest.mark.parametrize(
    ("on_failure", "means"),
    [
        (OnFailure.AUTO, Means.ASK),
        (OnFailure.RETRY, Means.ASK),
        (OnFailure.REPLAN, Means.ASK),
        (OnFailure.SKIP, Means.SKIP),
        (OnFailure.REVIEW, Means.REVIEW),
        (OnFailure.FAIL, Means.GIVE_UP),
    ],
)
def test_a_failure_meets_what_the_goal_says(on_failure: OnFailure, means: Means) -> None:
    recovery = recovery_of(on_failure)
    assert fail(recovery, A).means is means
    assert recovery.is_idle == (means is not Means.ASK)


@pytest.mark.parametrize("on_failure", list(OnFailure))
def test_a_task_that_is_not_critical_is_skipped_whatever_the_goal_says(on_failure: OnFailure) -> None:
    recovery = recovery_of(on_failure)
    assert fail(recovery, A, critical=False).means is Means.SKIP
    assert recovery.is_idle


@pytest.mark.parametrize(
    ("on_failure", "reworded", "code"),
    [(OnFailure.RETRY, True, "task_failed"), (OnFailure.REPLAN, False, "replans_exhausted")],
)
@pytest.mark.parametrize(("on_exhausted", "means"), [("fail", Means.GIVE_UP), ("review", Means.REVIEW)])
def test_a_means_that_is_used_up_asks_nothing(
    on_failure: OnFailure, reworded: bool, code: str, on_exhausted: str, means: Means
) -> None:
    recovery = recovery_of(on_failure, replans=2, on_exhausted=OnExhausted(on_exhausted))
    assert fail(recovery, A, reworded=reworded) == Remedy(means=means, code=code)
    assert (recovery.is_idle, recovery.wanted(LATER)) == (True, 0)


def test_rewordings_are_asked_for_at_once_and_side_by_side() -> None:
    recovery = recovery_of(OnFailure.RETRY)
    fail(recovery, A, B)
    assert [(step.asked, step.keys) for step in recovery.take(0, PLENTY)] == [
        (Asked.RETRY, (A,)),
        (Asked.RETRY, (B,)),
    ]
    assert (recovery.in_flight, recovery.wanted(0)) == (2, 0)


def test_no_more_is_asked_than_there_are_places() -> None:
    recovery = recovery_of(OnFailure.RETRY)
    fail(recovery, A, B)
    assert [step.key for step in recovery.take(0, 1)] == [A]
    assert recovery.wanted(0) == 1
    assert recovery.take(0, 0) == []


@pytest.mark.parametrize(("on_failure", "asked"), [(OnFailure.AUTO, Asked.AUTO), (OnFailure.REPLAN, Asked.REPLAN)])
def test_a_replan_waits_for_company_and_no_longer(on_failure: OnFailure, asked: Asked) -> None:
    recovery = recovery_of(on_failure)
    fail(recovery, B, now=0)
    fail(recovery, A, now=GATHER_MS - 1)
    assert (recovery.wake_at, recovery.wanted(GATHER_MS - 1)) == (GATHER_MS, 0)
    assert recovery.take(GATHER_MS - 1, PLENTY) == []
    assert recovery.wanted(GATHER_MS) == 1
    step = the_question(recovery, GATHER_MS)
    assert (step.asked, step.keys) == (asked, (B, A))
    assert (recovery.wake_at, recovery.wanted(LATER)) == (None, 0)


def test_a_failure_after_the_request_waits_for_the_next() -> None:
    recovery = recovery_of(OnFailure.REPLAN)
    fail(recovery, A)
    step = the_question(recovery)
    fail(recovery, B, now=LATER)
    assert recovery.take(2 * LATER, PLENTY) == []
    recovery.replanned(step)
    assert (recovery.is_idle, recovery.replans) == (False, 1)
    assert the_question(recovery, 2 * LATER).keys == (B,)


def test_a_question_that_was_never_sent_takes_in_what_fails_meanwhile() -> None:
    recovery = recovery_of(OnFailure.REPLAN)
    fail(recovery, A)
    recovery.put_back(the_question(recovery))
    fail(recovery, B, now=LATER)
    assert the_question(recovery).keys == (A, B)


def test_a_question_that_was_sent_is_put_back_as_it_was() -> None:
    recovery = recovery_of(OnFailure.REPLAN)
    fail(recovery, A)
    step = the_question(recovery)
    recovery.asked_again(step, None)
    recovery.put_back(the_question(recovery))
    fail(recovery, B, now=LATER)
    assert the_question(recovery, 2 * LATER) == step


def test_a_choice_settles_one_task_and_the_next_is_asked_about_at_once() -> None:
    recovery = recovery_of(OnFailure.AUTO)
    fail(recovery, A, B, C)
    recovery.skip_chosen(the_question(recovery))
    step = the_question(recovery)
    assert step.keys == (B, C)
    assert recovery.retry_chosen(step, reworded=False).means is Means.ASK
    step = the_question(recovery)
    assert (step.keys, recovery.may_replan(step)) == ((C,), True)
    recovery.replanned(step)
    assert (recovery.is_idle, recovery.replans) == (True, 1)


def test_choosing_what_is_used_up_gives_the_task_up() -> None:
    recovery = recovery_of(OnFailure.AUTO, max_replans=0)
    fail(recovery, A, B)
    assert recovery.retry_chosen(the_question(recovery), reworded=True) == GIVEN_UP
    step = the_question(recovery)
    assert not recovery.may_replan(step)
    assert recovery.replan_refused(step) == NO_REPLANS
    assert recovery.is_idle


def test_a_question_without_an_answer_uses_replans_up_one_by_one() -> None:
    recovery = recovery_of(OnFailure.REPLAN, max_replans=2)
    fail(recovery, A, B)
    assert recovery.spoiled(the_question(recovery), again=True) == {}
    assert recovery.spoiled(the_question(recovery), again=True) == {A: NO_REPLANS, B: NO_REPLANS}
    assert (recovery.replans, recovery.replans_left, recovery.is_idle) == (2, 0, True)


def test_a_question_that_is_refused_for_good_is_not_asked_again_though_replans_are_left() -> None:
    recovery = recovery_of(OnFailure.REPLAN, max_replans=2)
    fail(recovery, A)
    assert recovery.spoiled(the_question(recovery), again=False) == {A: GIVEN_UP}
    assert recovery.is_idle


def test_with_the_last_replan_gone_what_still_waits_for_one_is_given_up() -> None:
    recovery = recovery_of(OnFailure.REPLAN, max_replans=1)
    fail(recovery, A)
    step = the_question(recovery)
    fail(recovery, B, now=LATER)
    assert recovery.spoiled(step, again=True) == {A: NO_REPLANS, B: NO_REPLANS}
    assert recovery.is_idle


def test_a_choice_without_an_answer_gives_up_the_task_it_was_about_and_no_other() -> None:
    recovery = recovery_of(OnFailure.AUTO, max_replans=1)
    fail(recovery, A, B)
    assert recovery.spoiled(the_question(recovery), again=True) == {A: NO_REPLANS}
    assert the_question(recovery).keys == (B,)


def test_a_rewording_that_never_comes_gives_up_its_task_and_uses_no_replan() -> None:
    recovery = recovery_of(OnFailure.RETRY)
    fail(recovery, A)
    assert recovery.spoiled(the_question(recovery, 0), again=True) == {A: GIVEN_UP}
    assert (recovery.replans, recovery.is_idle) == (0, True)


def test_what_a_person_wants_comes_first_at_once_and_for_nothing() -> None:
    recovery = recovery_of(OnFailure.REPLAN, max_replans=1)
    fail(recovery, A)
    recovery.requested([B], "So.", [C])
    step = the_question(recovery, 0)
    assert (step.keys, step.replaces, step.instructions, step.requested) == ((B,), (C,), "So.", True)
    assert recovery.may_replan(step)
    recovery.replanned(step)
    assert recovery.replans == 0
    assert the_question(recovery).keys == (A,)


def test_what_a_person_wanted_in_vain_goes_back_to_them() -> None:
    recovery = recovery_of(OnFailure.FAIL)
    recovery.requested([A], None, [])
    assert recovery.spoiled(the_question(recovery), again=True) == {A: Remedy(means=Means.REVIEW)}
    assert (recovery.replans, recovery.is_idle) == (0, True)


@pytest.mark.parametrize("on_failure", [OnFailure.RETRY, OnFailure.AUTO, OnFailure.REPLAN])
def test_a_question_waits_until_it_is_due(on_failure: OnFailure) -> None:
    recovery = recovery_of(on_failure)
    fail(recovery, A)
    step = the_question(recovery)
    recovery.asked_again(step, 3 * LATER)
    assert (recovery.wake_at, recovery.wanted(2 * LATER), recovery.take(2 * LATER, PLENTY)) == (3 * LATER, 0, [])
    assert the_question(recovery, 3 * LATER) == step


@pytest.mark.parametrize("on_failure", [OnFailure.RETRY, OnFailure.AUTO, OnFailure.REPLAN])
def test_a_question_of_an_earlier_worker_keeps_its_time(on_failure: OnFailure) -> None:
    recovery = recovery_of(on_failure)
    fail(recovery, A)
    recovery.resumed(A, 3 * LATER)
    assert recovery.take(2 * LATER, PLENTY) == []
    assert recovery.wake_at == 3 * LATER
    assert the_question(recovery, 3 * LATER).key == A


def test_a_persons_question_of_an_earlier_worker_keeps_its_time() -> None:
    recovery = recovery_of(OnFailure.REVIEW)
    recovery.requested([A], None, [])
    recovery.resumed(A, LATER)
    assert recovery.take(LATER - 1, PLENTY) == []
    assert recovery.wake_at == LATER
    assert the_question(recovery, LATER).key == A
