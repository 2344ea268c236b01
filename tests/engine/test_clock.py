"""The engine's clock."""

import time

import pytest

from app.engine.clock import Clock


@pytest.fixture
def monotonic(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The machine's monotonic seconds, to be moved by the test."""
    seconds = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    return seconds


def test_it_begins_with_this_machines_time() -> None:
    before = int(time.time() * 1000)
    assert before - 60_000 <= Clock().now() <= before + 60_000


def test_it_takes_over_what_the_database_says_and_carries_it_forward(monotonic: list[float]) -> None:
    clock = Clock()
    clock.set(5_000_000)
    assert clock.now() == 5_000_000
    monotonic[0] += 1.25
    assert clock.now() == 5_001_250


def test_it_does_not_follow_this_machines_wall_clock(monotonic: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.set(5_000_000)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert clock.now() == 5_000_000
