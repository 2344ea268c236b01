"""Workers killed at every boundary of a loop: the model is asked one step twice, and nothing is charged twice."""

import asyncio
import json
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from app.agents.briefing import mark
from app.domain.ids import RunId
from app.storage import tables
from app.storage.database import Database
from app.storage.reviews import answer_review, list_reviews
from app.storage.runs import lock_run
from tests.databases import opened
from tests.invariants import check
from tests.points import LOOP_KILLS, STOPPED_BEFORE_TOOLS, was_hit
from tests.polling import until
from tests.prepared_workers import PreparedWorkers
from tests.scripted_model import Plan, ScriptedModel, script, text
from tests.scripted_tools import calls, steps
from tests.served_tools import NAMES, URL
from tests.service_process import against
from tests.sizes import sizes
from tests.stored import T, expire, is_finished, make_run, rows_of, set_run, the_run
from tests.tool_server import Act, ToolServer

NEVER = 2**50
ONE: Plan = {"a": []}
LOOP = steps(
    calls(("look", {"text": "around"}), content="First I look."),
    calls(("put", {"text": "one"})),
    calls(("charge", {"text": "little"})),
    calls(("put", {"text": "two"}), ("charge", {"text": "much"}), ("look", {"text": "up"})),
    calls(("look", {"text": "back"})),
    text("all done"),
)
ACTS = [
    *[("look", "around"), ("put", "one"), ("charge", "little"), ("put", "two"), ("charge", "much"), ("look", "up")],
    ("look", "back"),
]
OFTEN = [
    "in step 2, after its answer has come",
    "in step 2, after a tool has acted",
    "in step 3, while its answer is recorded",
    "in step 3, after a tool has acted",
    "in step 4, before its tools are called",
    "in step 4, after a tool has acted",
    "in step 4, after a tool's result is recorded",
    "in step 6, before its call is recorded",
]
"""For every run of the tests: each kind, and whatever may leave a charge in doubt."""
AT_ONCE = 5


@dataclass(frozen=True)
class Stage:
    """Runs whose workers are killed, what they talk to, and the people whom they ask."""

    database: Database
    model: ScriptedModel
    server: ToolServer
    workers: PreparedWorkers

    async def killed(self, point: str | None) -> RunId:
        """A run whose worker is killed there, or not at all. Nobody takes it over before its time has come."""
        run = await make_run(self.database, plan=ONE, tools=NAMES, announced=False)
        worker = await self.workers.start(point=point)
        if point is None:
            await until(partial(self.stands, run))
            await worker.kill()
        else:
            assert await worker.gone() == -signal.SIGKILL, worker.log
            assert was_hit(worker.log, point), worker.log
            await set_run(self.database, run, ready_at=NEVER)
        return run

    async def stands(self, run: RunId) -> bool:
        """Whether it has come to its end, or to where it needs a person."""
        return (await the_run(self.database, run)).status in ("succeeded", "failed", "awaiting_review")

    async def went_on(self, runs: Sequence[RunId]) -> None:
        """A worker that nothing happens to has taken them as far as it can."""
        for run in runs:
            await expire(self.database, run)
        worker = await self.workers.start()
        for run in runs:
            await until(partial(self.stands, run))
        await worker.kill()
        for run in runs:
            await check(self.database, run)

    async def in_doubt(self, run: RunId) -> list[Act]:
        """The charges whose outcome nobody knows."""
        rows = await rows_of(self.database, tables.tool_calls, run)
        return [
            Act(row["tool"], json.loads(row["arguments"])["text"], str(run), row["idempotency_key"])
            for row in rows
            if row["side_effects"] == "once" and row["status"] in ("open", "awaiting_review")
        ]

    async def answer(self, run: RunId, decision: str, **given: object) -> None:
        """To the one question that is open."""
        async with self.database.write() as connection:
            locked = await lock_run(connection, T, run)
            reviews = await list_reviews(connection, T, run, limit=10)
            assert locked is not None
            (review,) = [review for review in reviews if review.answered_at is None]
            assert (review.kind, decision in review.allowed_answers) == ("tool_call", True)
            await answer_review(connection, locked, review, {"decision": decision, **given})

    def told(self, run: RunId) -> dict[int, list[str]]:
        """What the model was asked at each step, in order, but for what differs from run to run."""
        asked: defaultdict[int, list[str]] = defaultdict(list)
        for call in self.model.of_run(str(run)):
            step = sum(message["role"] == "assistant" for message in call.messages)
            asked[step].append(json.dumps(call.body).replace(mark(str(run)), "MARK"))
        return dict(asked)


@pytest.fixture
async def stage(database_url: str, scripted_model: ScriptedModel, tmp_path: Path) -> AsyncIterator[Stage]:
    scripted_model.begin(script({"executor": LOOP}))
    async with ToolServer() as server, opened(database_url) as database:
        settings = {
            **against(database_url, scripted_model),
            "poll_seconds": 0.2,
            "tool_modules": "tests.served_tools",
            "tool_secrets": json.dumps({URL: server.url}),
        }
        async with PreparedWorkers(tmp_path, settings) as workers:
            yield Stage(database, scripted_model, server, workers)


@pytest.mark.parametrize(
    "points", [pytest.param(OFTEN, id="often"), pytest.param([*LOOP_KILLS], id="all", marks=pytest.mark.soak)]
)
async def test_a_loop_whose_worker_is_killed_ends_as_if_it_had_not_been(points: list[str], stage: Stage) -> None:
    """But where a charge was in flight: then a person is asked, and what they say is what the model reads."""
    runs = {point: await stage.killed(point) for point in points}
    doubts = {point: await stage.in_doubt(run) for point, run in runs.items()}
    assert sum(map(len, doubts.values())) >= 3, doubts
    untouched = await stage.killed(None)
    usual = stage.told(untouched)
    await stage.went_on([*runs.values()])
    for point, run in runs.items():
        try:
            await _asks_about(stage, run, doubts[point])
        except AssertionError as failure:
            failure.add_note(f"killed {point}")
            raise
    await stage.went_on([*runs.values()])
    for point, run in runs.items():
        try:
            await _ends_as_usual(stage, run, usual)
        except AssertionError as failure:
            failure.add_note(f"killed {point}")
            raise


async def _asks_about(stage: Stage, run: RunId, doubts: list[Act]) -> None:
    """A person is asked about what was in doubt, and about nothing else; they say what has happened."""
    assert (await the_run(stage.database, run)).status == ("awaiting_review" if doubts else "succeeded")
    made = stage.server.times(run)
    assert all(count == 1 for act, count in made.items() if act.tool == "charge"), made
    for act in doubts:
        if made[act]:
            await stage.answer(run, "supply", result=f"{act.tool} did {act.text}")
        else:
            await stage.answer(run, "retry")


async def _ends_as_usual(stage: Stage, run: RunId, usual: dict[int, list[str]]) -> None:
    ended, made, told = await the_run(stage.database, run), stage.server.times(run), stage.told(run)
    assert (ended.status, ended.result) == ("succeeded", "all done")
    # A key is the same whenever its call is made again: then it is the same act.
    assert sorted((act.tool, act.text) for act in made) == sorted(ACTS)
    assert len({act.key for act in made}) == len(ACTS)
    assert all(count == 1 if act.tool == "charge" else count <= 2 for act, count in made.items()), made
    assert told.keys() == usual.keys() == set(range(6))
    assert sum(len(asked) - 1 for asked in told.values()) <= 1, "more than the step in flight was asked again"
    assert {step: set(asked) for step, asked in told.items()} == {step: set(asked) for step, asked in usual.items()}


@pytest.mark.parametrize(
    ("decision", "given", "status", "charged"),
    [
        pytest.param("retry", {}, "succeeded", 2, marks=pytest.mark.soak),
        ("supply", {"result": "charge did little"}, "succeeded", 1),
        pytest.param("fail", {}, "failed", 1, marks=pytest.mark.soak),
    ],
)
async def test_a_persons_word_on_a_charge_in_doubt_outlives_workers_that_are_killed_over_it(
    decision: str, given: dict[str, str], status: str, charged: int, stage: Stage
) -> None:
    run = await stage.killed("in step 3, after a tool has acted")
    await stage.went_on([run])
    (act,) = await stage.in_doubt(run)
    await stage.answer(run, decision, **given)
    point = "while a person's answer is carried out"
    worker = await stage.workers.start(point=point)
    assert await worker.gone() == -signal.SIGKILL
    assert was_hit(worker.log, point), worker.log
    await check(stage.database, run)
    assert stage.server.times(run)[act] == 1
    await stage.went_on([run])
    assert ((await the_run(stage.database, run)).status, stage.server.times(run)[act]) == (status, charged)


async def test_a_charge_that_a_stopped_worker_was_about_to_send_is_not_sent_when_it_goes_on(stage: Stage) -> None:
    run = await make_run(stage.database, plan=ONE, tools=NAMES)
    stopped = await stage.workers.start(point=STOPPED_BEFORE_TOOLS, lease_seconds=2)
    await until(lambda: was_hit(stopped.log, STOPPED_BEFORE_TOOLS))
    peer = await stage.workers.start()
    await until(partial(stage.stands, run))
    (act,) = await stage.in_doubt(run)
    await stage.answer(run, "retry")  # by somebody who has seen that nothing was charged
    await until(partial(is_finished, stage.database, run))
    stopped.cont()
    await until(lambda: "lease lost" in stopped.log)
    for worker in (stopped, peer):
        assert await worker.terminate() == 0, worker.log
    assert stage.server.times(run)[act] == 1
    assert (await the_run(stage.database, run)).status == "succeeded"


@pytest.mark.parametrize("crashes", sizes(10, 100))
async def test_what_had_acted_when_its_worker_was_killed_acts_again_only_where_it_may(
    crashes: int, stage: Stage
) -> None:
    """K9: calls that act each time wait for a person; those with a key are sent once more, with the same."""
    both = calls(("charge", {"text": "much"}), ("put", {"text": "one"}))
    stage.model.begin(script({"executor": steps(both, text("all done"))}))
    for _ in range(crashes // AT_ONCE):
        await _kill_some(stage)


async def _kill_some(stage: Stage) -> None:
    before = len(stage.server.acts)
    stage.server.may_answer.clear()
    killed = [await stage.workers.start(worker_max_runs=1) for _ in range(AT_ONCE)]
    runs = [await make_run(stage.database, plan=ONE, tools=NAMES) for _ in range(AT_ONCE)]
    await stage.server.until_called(before + 2 * AT_ONCE)
    await asyncio.gather(*(worker.kill() for worker in killed))
    for run in runs:
        assert Counter(act.tool for act in stage.server.of_run(run)) == {"charge": 1, "put": 1}
        assert [row["status"] for row in await rows_of(stage.database, tables.tool_calls, run)] == ["open", "open"]
    stage.server.may_answer.set()
    await stage.went_on(runs)
    for run in runs:
        parked = await the_run(stage.database, run)
        assert (parked.status, parked.progress["awaiting_review"]) == ("awaiting_review", 1)
        assert Counter(act.tool for act in stage.server.of_run(run)) == {"charge": 1, "put": 2}
        assert len(stage.server.times(run)) == 2, "the key has changed"
        await stage.answer(run, "supply", result="charge did much")
    await stage.went_on(runs)
    for run in runs:
        assert (await the_run(stage.database, run)).status == "succeeded"
        assert Counter(act.tool for act in stage.server.of_run(run)) == {"charge": 1, "put": 2}
