"""Whatever clients, people, the model and time do to runs, in any order, and whenever workers die: all stays true."""

import asyncio
import os
import random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from app.domain.ids import RunId
from app.domain.status import FINISHED
from app.storage.steering import request_cancel, request_pause, request_resume
from tests.engine.bench import Bench
from tests.engine.machine import Moves, Pending, faults_of, moved_on

MAX_RUNS = 2
MAX_ROUNDS = 200

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

    database_url: ClassVar[str]
    moved: ClassVar[Moves]

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.Runner()
        self.bench = Bench(self.database_url)
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

    async def _go_on(self, dice: random.Random) -> bool:
        went = False
        for run_id in self.bench.runs:
            changed = {"on_failure": dice.choice(("auto", "replan", "review")), "approval": "plan"}
            went |= await self.bench.retry(run_id, **(changed if dice.random() < 0.4 else {}))
            went |= await self.bench.steer(run_id, request_resume)
        return went

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
        if await action is False:
            return  # it did nothing
        await self.bench.settle()
        await self.bench.check()

    async def _fail(self, calls: list[Pending], fault: str) -> bool:
        for call in calls:
            faults_of(call)[fault]()
        return bool(calls)

    async def _answer_review(self, at: int, dice: random.Random) -> bool:
        reviews = await self.bench.open_reviews()
        if reviews:
            review = reviews[at % len(reviews)]
            await self.bench.answer_as_any(review, dice.choice(review["allowed_answers"]), dice)
        return bool(reviews)

    async def _answer_all_well(self, dice: random.Random) -> None:
        for call in list(self.bench.model.pending):
            await self.bench.answer_well(call, dice)

    # The end.

    async def _end_well(self) -> None:
        """With good answers every run ends, or stands until a person helps; with such people it ends too."""
        dice = random.Random(0)
        await self._until_it_stands(dice)
        for run_id, run in (await self.bench.rows()).runs.items():
            assert run["status"] in (*FINISHED, "paused", "awaiting_review"), f"{run_id} is {run['status']}"
        for _ in range(MAX_ROUNDS):
            for run_id in self.bench.runs:
                await self.bench.steer(run_id, request_resume)
            for review in await self.bench.open_reviews():
                await self.bench.answer(review, "approve" if review["kind"] == "plan" else "retry")
            await self._until_it_stands(dice)
            if all(run["status"] in FINISHED for run in (await self.bench.rows()).runs.values()):
                break
        else:
            raise AssertionError("the runs do not come to an end")
        self.moved.update(await self.bench.moves())

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


def try_all(url: str, **wanted: Any) -> None:
    class Here(RunsInTrouble):
        database_url = url
        moved = moved_on(url)

    chosen = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), **wanted)
    run_state_machine_as_test(Here, settings=chosen)


def test_in_any_order_of_events_all_stays_true(database_url: str) -> None:
    examples = 25 if database_url.startswith("sqlite") else 8
    # Not shrunk: what a step does hangs on threads too, and the steps are few.
    try_all(database_url, derandomize=True, max_examples=examples, stateful_step_count=40, phases=[Phase.generate])


@pytest.mark.soak
def test_in_many_more_orders_of_events_all_stays_true(database_url: str, request: pytest.FixtureRequest) -> None:
    if "soak" not in request.config.option.markexpr:
        pytest.skip("for `make soak`")
    examples = int(os.environ.get("PLANWAVE_SOAK_EXAMPLES", "1000"))
    try_all(database_url, max_examples=examples, stateful_step_count=60, phases=[Phase.generate])
