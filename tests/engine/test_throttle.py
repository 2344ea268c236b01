"""How long an endpoint is left alone after its 429s, whoever got them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.clock import Clock
from app.engine.throttle import Throttle


class HandClock(Clock):
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def now(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def throttle(clock: HandClock) -> Throttle:
    return Throttle(clock)


def test_a_model_is_open_until_something_is_said(throttle: Throttle) -> None:
    assert throttle.open_at("gpt") is None


def test_a_model_is_held_off_until_its_wait_is_over(throttle: Throttle, clock: HandClock) -> None:
    throttle.hold_off("gpt", 2)
    assert throttle.open_at("gpt") == 1_002_000
    clock.ms = 1_001_999
    assert throttle.open_at("gpt") == 1_002_000
    clock.ms = 1_002_000
    assert throttle.open_at("gpt") is None


def test_other_models_stay_open(throttle: Throttle) -> None:
    throttle.hold_off("gpt", 2)
    assert throttle.open_at("other") is None


def test_a_wait_that_ends_later_wins(throttle: Throttle, clock: HandClock) -> None:
    throttle.hold_off("gpt", 2)
    clock.ms += 1_000
    throttle.hold_off("gpt", 1.5)
    assert throttle.open_at("gpt") == 1_002_500


def test_a_wait_that_ends_sooner_shortens_nothing(throttle: Throttle) -> None:
    throttle.hold_off("gpt", 2)
    throttle.hold_off("gpt", 1)
    assert throttle.open_at("gpt") == 1_002_000


def test_no_wait_is_none(throttle: Throttle) -> None:
    throttle.hold_off("gpt", 0)
    assert throttle.open_at("gpt") is None


def test_a_part_of_a_millisecond_is_waited_whole(throttle: Throttle) -> None:
    throttle.hold_off("gpt", 0.0001)
    assert throttle.open_at("gpt") == 1_000_001


def test_a_wait_of_the_past_does_not_outlive_its_end(throttle: Throttle, clock: HandClock) -> None:
    throttle.hold_off("gpt", 2)
    clock.ms += 5_000
    throttle.hold_off("gpt", 1)
    assert throttle.open_at("gpt") == 1_006_000


def test_models_that_are_open_again_are_forgotten_whether_asked_for_or_not(
    throttle: Throttle, clock: HandClock
) -> None:
    for number in range(100):
        throttle.hold_off(f"model {number}", 1)
        clock.ms += 500
    assert len(throttle._opens_at) == 2
    clock.ms += 5_000
    assert throttle.open_at("model 99") is None
    assert "model 99" not in throttle._opens_at


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 12), st.integers(0, 1_000)), max_size=30))
def test_a_model_opens_when_the_last_of_its_waits_has_ended(waits: list[tuple[str, int, int]]) -> None:
    """Waits are quarters of a second, which a float holds exactly."""
    clock = HandClock()
    throttle = Throttle(clock)
    ends: dict[str, list[int]] = {"a": [], "b": []}
    for model, quarters, passes_ms in waits:
        throttle.hold_off(model, quarters / 4)
        ends[model].append(clock.ms + quarters * 250)
        clock.ms += passes_ms
        for name in "ab":
            latest = max(ends[name], default=0)
            assert throttle.open_at(name) == (latest if latest > clock.ms else None)
