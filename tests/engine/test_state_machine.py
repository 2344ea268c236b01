"""Whatever clients, people, the model and time do to runs, in any order, and whenever workers die: all stays true."""

import asyncio
import os
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from app.domain.ids import RunId
from app.domain.status import FINISHED
from app.storage.steering import request_cancel, request_pause, request_resume
from tests.engine.machine import Bench, Moves, Pending, faults_of

MAX_RUNS = 2
MAX_ROUNDS = 200
MOVED: dict[str, Moves] = {}
"""By kind of database, what the machine has been seen to do."""

RUN_MOVES = {
    ("queued", "planning running cancelled paused"),
    ("planning", "running failed cancelled paused"),
    ("running", "planning awaiting_review paused succeeded failed cancelled"),
    ("awaiting_review", "queued paused cancelled"),
    ("paused", "queued cancelled"),
    ("failed", "queued"),
    ("cancelled", "queued"),
}
TASK_MOVES = {
    ("pending", "running cancelled superseded"),
    ("running", "running retrying succeeded failed cancelled"),
    ("retrying", "running cancelled superseded"),
    ("awaiting_review", "running succeeded skipped failed cancelled"),
    ("failed", "retrying skipped awaiting_review pending"),
    ("cancelled", "pending"),
}
EXPECTED = {
    (of, before, after)
    for of, table in (("run", RUN_MOVES), ("task", TASK_MOVES))
    for before, afters in table
    for after in afters.split()
}

seeds = st.integers(0, 2**32 - 1)
places = st.integers(0, 11)
FAULTS = (
    *["refused"] * 6,
    *["spoiled"] * 3,
    *["nonsense"] * 3,
    *["declined", "timeout", "away for long"] * 2,
    *["cut off", "too long", "format", "no key", "busy", "away"],
)


class RunsInTrouble(RuleBasedStateMachine):
    """Rules that do not apply do nothing, so that what is drawn never hangs on what the worker has done."""

    def __init__(self, database_url: str, moved: Moves) -> None:
        super().__init__()
        self._moved = moved
        self._loop = asyncio.Runner()
        self.bench = Bench(database_url)
        self._loop.run(self.bench.open())

    def teardown(self) -> None:
        try:
            self._loop.run(self._end_well())
        finally:
            try:
                self._loop.run(self.bench.close())
            finally:
                self._loop.close()

    # Clients.

    @initialize(seed=seeds)
    def begins(self, seed: int) -> None:
        self._do(self.bench.submit(random.Random(seed)))

    @rule(seed=seeds)
    def submits(self, seed: int) -> None:
        if len(self.bench.runs) < MAX_RUNS:
            self._do(self.bench.submit(random.Random(seed)))

    @rule(at=places, stop=st.sampled_from([request_pause, request_pause, request_cancel]))
    def stops(self, at: int, stop: Any) -> None:
        if at % 2:
            self._do(self.bench.steer(self._run(at // 2), stop))

    @rule(seed=seeds)
    def goes_on(self, seed: int) -> None:
        self._do(self._go_on(random.Random(seed)))

    # People.

    @rule(at=places, seed=seeds)
    def answers_a_review(self, at: int, seed: int) -> None:
        self._do(self._answer_review(at, random.Random(seed)))

    # The model.

    @rule(at=places, seed=seeds)
    def answers_well(self, at: int, seed: int) -> None:
        if call := self._call(at):
            self._do(self.bench.answer_well(call, random.Random(seed)))

    @rule(at=places, fault=st.sampled_from(FAULTS))
    def answers_badly(self, at: int, fault: str) -> None:
        if call := self._call(at):
            self._do(self._fail([call], fault))

    @rule(fault=st.sampled_from(FAULTS))
    def answers_all_badly(self, fault: str) -> None:
        self._do(self._fail(list(self.bench.model.pending), fault))

    # Time and trouble.

    @rule(drain=st.booleans(), expired=st.booleans(), at=places)
    def the_worker_dies(self, drain: bool, expired: bool, at: int) -> None:
        if not self.bench.is_away:
            self._do(self.bench.die(drain=drain))
            if expired:
                self._do(self.bench.expire())
        if at % 4:
            self._do(self.bench.restart())

    @rule(later=st.booleans())
    def another_worker_takes_over(self, later: bool) -> None:
        self._do(self.bench.restart(later=later))

    @rule(write=st.integers(0, 3), before=st.booleans())
    def is_going_to_die(self, write: int, before: bool) -> None:
        self.bench.database.stop_at(write, before=before)

    @rule()
    def waits(self) -> None:
        self._do(self.bench.let_time_pass())

    # Within.

    async def _go_on(self, dice: random.Random) -> None:
        for run_id in self.bench.runs:
            if not await self.bench.retry(run_id, dice):
                await self.bench.steer(run_id, request_resume)

    def _run(self, at: int) -> RunId:
        runs = list(self.bench.runs)
        return runs[at % len(runs)]

    def _call(self, at: int) -> Pending | None:
        order = list(self.bench.runs)
        calls = sorted(
            self.bench.model.pending, key=lambda call: (order.index(call.run_id), call.seat, call.task_key or "")
        )
        return calls[at % len(calls)] if calls else None

    def _do(self, action: Any) -> None:
        self._loop.run(self._done(action))

    async def _done(self, action: Any) -> None:
        await action
        await self.bench.settle()
        await self.bench.check()

    async def _fail(self, calls: list[Pending], fault: str) -> None:
        for call in calls:
            faults_of(call)[fault]()

    async def _answer_review(self, at: int, dice: random.Random) -> None:
        if reviews := await self.bench.open_reviews():
            review = reviews[at % len(reviews)]
            await self.bench.answer(review, dice.choice(review["allowed_answers"]), dice)

    async def _answer_all_well(self, dice: random.Random) -> None:
        for call in list(self.bench.model.pending):
            await self.bench.answer_well(call, dice)

    # The end.

    async def _end_well(self) -> None:
        """With good answers every run comes to its end, or to where a person is needed; with those people, to its end."""
        dice = random.Random(0)
        await self._until_it_stands(dice)
        for run_id, run in (await self.bench.rows()).runs.items():
            assert run["status"] in (*FINISHED, "paused", "awaiting_review"), f"{run_id} is {run['status']}"
        for _ in range(MAX_ROUNDS):
            for run_id in self.bench.runs:
                await self.bench.steer(run_id, request_resume)
            for review in await self.bench.open_reviews():
                await self.bench.answer(review, "approve" if review["kind"] == "plan" else "retry", dice)
            await self._until_it_stands(dice)
            if all(run["status"] in FINISHED for run in (await self.bench.rows()).runs.values()):
                break
        else:
            raise AssertionError("the runs do not come to an end")
        self._moved.update(await self.bench.moves())

    async def _until_it_stands(self, dice: random.Random) -> None:
        if self.bench.is_away:
            await self.bench.restart()
        for _ in range(MAX_ROUNDS):
            await self.bench.settle()
            await self.bench.check()
            if self.bench.model.pending:
                await self._answer_all_well(dice)
            elif any(run["status"] in ("planning", "running") for run in (await self.bench.rows()).runs.values()):
                await self.bench.restart(later=True)
            else:
                return
        raise AssertionError("the model is asked without end")


def walk_through(database_url: str, **wanted: Any) -> None:
    moved = MOVED.setdefault(database_url.partition(":")[0], Counter())
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: RunsInTrouble(database_url, moved),
        settings=settings(
            deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False, **wanted
        ),
    )


def test_in_any_order_of_events_all_stays_true(database_url: str) -> None:
    walk_through(
        database_url, derandomize=True, max_examples=60, stateful_step_count=40, phases=[Phase.generate]
    )


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_every_move_of_the_tables_was_made(kind: str) -> None:
    if kind not in MOVED:
        pytest.skip("nothing has moved")
    missing = sorted(EXPECTED - set(MOVED[kind]))
    assert not missing
    assert not sorted(set(MOVED[kind]) - EXPECTED)
