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
    clock.set(5_000_000, asked_at=monotonic[0])
    assert 5_000_000 <= clock.now() <= 5_000_001
    monotonic[0] += 1.25
    assert 5_001_250 <= clock.now() <= 5_001_251


def test_it_is_never_further_off_than_the_answer_was_on_its_way(monotonic: list[float]) -> None:
    clock = Clock()
    asked_at = monotonic[0]
    for ahead_ms in (-60_000, 0, 60_000):  # of this machine's idea of the hour, or of another database after a failover
        said_ms = 5_000_000 + ahead_ms
        monotonic[0] = asked_at + 0.4
        clock.set(said_ms, asked_at=asked_at)
        assert said_ms <= clock.now() <= said_ms + 401


def test_it_does_not_leap_by_what_answers_take(monotonic: list[float]) -> None:
    clock = Clock()
    clock.set(5_000_000, asked_at=monotonic[0])
    began = clock.now()
    for took_ms in (12, 1, 300, 2):
        asked_at = monotonic[0]
        database_ms = clock.now()
        monotonic[0] += took_ms / 1000
        clock.set(database_ms, asked_at=asked_at)
    assert clock.now() - began == 315


def test_it_does_not_follow_this_machines_wall_clock(monotonic: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.set(5_000_000, asked_at=monotonic[0])
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 5_000_000 <= clock.now() <= 5_000_001
