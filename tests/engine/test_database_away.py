"""A worker whose database goes away keeps its runs and what it knows of them, and goes on when it is back."""

import asyncio
import time
from typing import Any

import pytest

from app.domain.errors import StorageUnavailable
from app.engine import driver, worker
from app.storage.database import Database
from tests.engine.conftest import WITHIN_SECONDS, Engine, Gates
from tests.engine.troubled import ONE, PAIR, REFUSED, answer, is_asked
from tests.invariants import check
from tests.scripted_model import error, script
from tests.stored import claim_one, expire, make_run, row_of


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.storage.faults._AWAY_SECONDS", 0.01)


class Away:
    """Stands before a function of storage as the driver, or another module, knows it: it is away so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, times: int = 1, *, module: Any = driver) -> None:
        self.times_left = times
        self._do: Any = getattr(module, name)
        monkeypatch.setattr(module, name, self)

    async def __call__(self, *given: Any, **more: Any) -> Any:
        if self.times_left:
            self.times_left -= 1
            raise StorageUnavailable("away")
        return await self._do(*given, **more)


async def test_a_run_that_cannot_be_loaded_is_loaded_later(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch, "load")
    engine.worker()
    run = await engine.ended(await make_run(database, plan=PAIR))
    assert (run.status, away.times_left) == ("succeeded", 0)


async def test_an_answer_that_cannot_be_read_costs_no_call_in_flight_and_no_outcome(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = Gates()
    engine.model.begin(script({("executor", "a"): REFUSED, ("executor", "b"): gates}))
    away = Away(monkeypatch, "bearing_reviews")
    engine.worker()
    run_id = await make_run(database, plan=PAIR, max_attempts=1, on_failure="review")
    await engine.until(lambda run: run.open_reviews == 1, run_id)
    await answer(database, run_id, "skip")
    await engine.until(lambda run: not away.times_left, run_id)
    gates.open("b")
    await engine.ended(run_id)
    assert len(engine.model.calls_for("0.b")) == 1
    await check(database, run_id)


async def test_a_run_that_cannot_be_parked_is_parked_later(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch, "flags_locked")
    engine.worker()
    run_id = await make_run(database, plan=PAIR, approval="plan")
    await engine.until(is_asked, run_id)
    assert away.times_left == 0


async def test_a_run_that_cannot_be_given_back_is_given_back_later(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch, "release")
    engine.model.begin(script({"executor": error(503, headers={"Retry-After": "3600"})}))
    engine.worker()
    run_id = await make_run(database, plan=ONE)
    async with asyncio.timeout(WITHIN_SECONDS):
        while away.times_left or (await row_of(database, run_id))["lease_token"] is not None:
            await database.ping()


async def test_what_another_worker_drives_is_not_taken_from_it_the_moment_the_database_is_back(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease may have run out meanwhile; it renews it as soon as this one claims."""
    others = await make_run(database, plan=ONE)
    lease = await claim_one(database)
    await expire(database, others)
    away = Away(monkeypatch, "claim", module=worker)
    engine.worker()
    await engine.ended(await make_run(database, plan=ONE))  # nobody else's: it is claimed at once
    assert not away.times_left
    assert (await row_of(database, others))["lease_token"] == lease.token


async def test_what_is_still_not_renewed_some_time_after_the_database_is_back_is_taken_over(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = await make_run(database, plan=ONE)
    await claim_one(database)
    await expire(database, others)
    away = Away(monkeypatch, "claim", module=worker)
    engine.settings["lease_seconds"] = 1
    engine.worker()
    assert (await engine.ended(others)).status == "succeeded"
    assert not away.times_left


class Waits:
    """Stands before the claim: the first is kept waiting by a lock, or a server that stands still, but not refused."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.is_over = False
        self._seconds = seconds
        self._passed = 0.0
        self._do: Any = vars(worker)["claim"]
        monkeypatch.setattr(worker, "claim", self)
        monkeypatch.setattr(worker, "time", self)

    def monotonic(self) -> float:
        return time.monotonic() + self._passed

    async def __call__(self, *given: Any, **more: Any) -> Any:
        if not self.is_over:
            self._passed = self._seconds
            self.is_over = True
        return await self._do(*given, **more)


async def test_what_another_worker_drives_is_not_taken_from_it_by_a_claim_that_had_to_wait_as_its_renewal_had(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = await make_run(database, plan=ONE)
    lease = await claim_one(database)
    await expire(database, others)
    waits = Waits(monkeypatch, engine.settings["lease_seconds"])
    engine.worker()
    await engine.ended(await make_run(database, plan=ONE))  # nobody else's: it is claimed at once
    assert waits.is_over
    assert (await row_of(database, others))["lease_token"] == lease.token


async def test_a_worker_keeps_its_own_calls_when_a_claim_has_waited_until_its_leases_ran_out(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = Gates()
    engine.model.begin(script({("executor", "a"): gates}))
    engine.worker()
    own = await make_run(database, plan=ONE)
    await engine.until_true(lambda: len(engine.model.calls_for("0.a")) == 1)
    waits = Waits(monkeypatch, engine.settings["lease_seconds"])
    await expire(database, own)
    await engine.until_true(lambda: waits.is_over)
    gates.open("a")
    await engine.ended(own)
    assert len(engine.model.calls_for("0.a")) == 1
