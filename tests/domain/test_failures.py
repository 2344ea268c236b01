"""How failures are stored and how long is waited after them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import AuthFailed, PlanwaveError
from app.domain.failures import Backoff, Failure, RunError

chances = st.floats(0, 1, exclude_max=True)
backoff = Backoff(base_seconds=0.5, cap_seconds=30)


@given(st.text(alphabet=st.characters(), max_size=5000))
def test_a_failure_is_stored_bounded_and_in_storable_text(message: str) -> None:
    stored = Failure(kind="timeout", message=message, retryable=True).as_json()
    assert set(stored) == {"kind", "message", "retryable"}
    assert len(stored["message"]) <= 2_000
    assert "\x00" not in stored["message"]
    stored["message"].encode()


@given(st.text(alphabet=st.characters(), max_size=5000))
def test_a_run_error_is_stored_bounded_and_in_storable_text(message: str) -> None:
    stored = RunError(code="task_failed", message=message, task_key="0.a").as_json()
    assert (stored["code"], stored["task_key"]) == ("task_failed", "0.a")
    assert len(stored["message"]) <= 2_000
    json.dumps(stored, ensure_ascii=False).encode()


@given(tries=st.integers(1, 10_000), chance=chances)
def test_a_wait_lies_between_nothing_and_a_bound_that_doubles_up_to_the_cap(tries: int, chance: float) -> None:
    bound = min(30, 0.5 * 2 ** min(tries - 1, 100))
    assert 0 <= backoff.wait_seconds(tries, chance=chance) <= bound


def test_the_jitter_is_full() -> None:
    assert backoff.wait_seconds(3, chance=0.0) == 0
    assert backoff.wait_seconds(3, chance=0.5) == 1.0
    assert backoff.wait_seconds(100, chance=0.5) == 15


@given(tries=st.integers(1, 20), chance=chances, asked=st.floats(0, 86_400))
def test_what_the_endpoint_asks_for_is_the_least_that_is_waited(tries: int, chance: float, asked: float) -> None:
    waited = backoff.wait_seconds(tries, chance=chance, retry_after_seconds=asked)
    assert asked <= waited <= max(asked + backoff.base_seconds, backoff.cap_seconds)


@pytest.mark.parametrize("asked", [float("nan"), float("inf"), float("-inf"), -1.0])
def test_a_wait_that_cannot_be_meant_is_not_heeded(asked: float) -> None:
    assert backoff.wait_seconds(1, chance=0.5, retry_after_seconds=asked) == 0.25


def test_nobody_is_made_to_wait_longer_than_a_day() -> None:
    assert backoff.wait_seconds(1, chance=0.0, retry_after_seconds=1e12) == 86_400


def test_every_error_has_a_code_of_its_family() -> None:
    def family(error: type[PlanwaveError]) -> list[type[PlanwaveError]]:
        return [error, *(child for sub in error.__subclasses__() for child in family(sub))]

    assert {error.code for error in family(PlanwaveError)} >= {"lease_lost", "configuration", "storage_unavailable"}
    made = AuthFailed("why", kind="llm_auth_failed")
    assert (made.code, made.message, made.kind, str(made)) == ("model_error", "why", "llm_auth_failed", "why")
