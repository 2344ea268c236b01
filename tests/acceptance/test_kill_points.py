"""Workers killed at named points of their work: whoever comes next finishes it, and repeats only what was in flight."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.domain.ids import RunId
from app.storage.database import Database
from app.storage.reviews import answer_review, list_reviews
from app.storage.runs import lock_run
from app.storage.steering import request_cancel
from tests.acceptance.evidence import by_place, every_result_is_there_and_nothing_recorded_was_asked_again
from tests.databases import opened
from tests.invariants import check
from tests.points import KILLS, was_hit
from tests.polling import until
from tests.prepared_workers import PreparedWorker, PreparedWorkers
from tests.scripted_model import DIAMOND, Call, Reply, ScriptedModel, error, plan_reply, tasks_of, text
from tests.service_process import against
from tests.stored import T, expire, is_finished, make_run, set_run, the_run

NEVER = 2**50
REDRAWN = {"strategy": "replan", "description": None, "tasks": tasks_of({"n": ["0.a"], "m": ["n"]}), "drop": None}


@dataclass
class Scene:
    """A run, and what becomes of it."""

    model: ScriptedModel
    database: Database
    run: RunId
    worker: PreparedWorker
    story: "Story"

    def calls(self) -> list[Call]:
        return self.model.of_run(str(self.run))

    async def until_called(self, seat: str = "executor") -> None:
        await until(lambda: any(call.seat == seat and call.answered_at is None for call in self.calls()))


@dataclass(frozen=True, kw_only=True)
class Story:
    """How a run comes to a point, and on from there."""

    options: Mapping[str, Any] = field(default_factory=dict)
    held: bool = False
    """Tasks are answered only after the kill."""
    spoils: Reply | None = None
    """What the first call for task `b` meets."""
    happens: Callable[[Scene], Awaitable[None]] | None = None
    """What comes from outside before the kill."""
    then: Callable[[Scene], Awaitable[None]] | None = None
    """And after it."""
    ends: str = "succeeded"
    kills: int = 1
    lease_seconds: float = 60.0


async def _drain(scene: Scene) -> None:
    await scene.until_called()
    scene.worker.ask_to_end()


async def _cancel(scene: Scene) -> None:
    await scene.until_called()
    async with scene.database.write() as connection:
        await request_cancel(connection, T, scene.run)
        await scene.database.announce(connection, scene.run)


async def _answer(scene: Scene) -> None:
    async def is_parked() -> bool:
        return (await the_run(scene.database, scene.run)).status == "awaiting_review"

    await until(is_parked)
    async with scene.database.write() as connection:
        run = await lock_run(connection, T, scene.run)
        (review,) = await list_reviews(connection, T, scene.run, limit=10)
        assert run is not None
        await answer_review(connection, run, review, {"decision": "retry"})
        await scene.database.announce(connection, scene.run)


USUAL = Story()
MENDED = Story(options={"on_failure": "auto"}, spoils=error(400))
REVIEWED = Story(options={"on_failure": "review"}, spoils=error(400), happens=_answer)
CANCELLED = Story(held=True, happens=_cancel, ends="cancelled")
STORIES: Mapping[str, Story] = {
    "within a renewal": Story(held=True, lease_seconds=1.0),
    "within a release": Story(held=True, happens=_drain),
    "while a retry is scheduled": Story(spoils=error(503)),
    "after a new plan has come": MENDED,
    "within a new plan's rows": MENDED,
    "while a new plan is stored": MENDED,
    "after a new plan is stored": MENDED,
    "while the run is parked": Story(options={"on_failure": "review"}, spoils=error(400), then=_answer),
    "while a person's answer is carried out": REVIEWED,
    "while a cancel cuts calls": CANCELLED,
    "while a cancel is recorded": CANCELLED,
    "within the first commit of a take-over": Story(held=True, kills=2),
}
OFTEN = [
    "after the claim",
    "within a renewal",
    "within a release",
    "before a call is recorded",
    "before a recorded call is sent",
    "within a plan's rows",
    "after a result has come",
    "while a result is recorded",
    "after a result is recorded",
    "within a new plan's rows",
    "while a person's answer is carried out",
    "while a cancel cuts calls",
    "within the first commit of a take-over",
]
"""For every run of the tests: each of another kind."""


class Stage:
    """Plays points one after the other, each with a run and a worker of its own, all on one database."""

    def __init__(self, database: Database, model: ScriptedModel, workers: PreparedWorkers) -> None:
        self._database = database
        self._model = model
        self._workers = workers
        self._told: dict[str, tuple[Story, asyncio.Event]] = {}

    async def reply(self, call: Call) -> Reply:
        """What the run's story has the model say."""
        story, is_open = self._told[call.run_id]
        match call.seat:
            case "planner":
                return plan_reply(DIAMOND)
            case "recovery":
                return text(json.dumps(REDRAWN))
            case "synthesizer":
                return text("the answer")
            case _ if call.task_id == "b" and call.turn == 0 and story.spoils is not None:
                return story.spoils
        if story.held:
            await is_open.wait()
        return text(f"result of {call.task_key}")

    async def play(self, point: str) -> Scene:
        """A run whose worker is killed there. Nobody takes it over before its time is said to have come."""
        story = STORIES.get(point, USUAL)
        run = await make_run(self._database, announced=False, **story.options)
        self._told[str(run)] = story, asyncio.Event()
        if story.kills == 2:
            first = await self._workers.start()
            await self._model.until(lambda: bool(self._model.by_seat("executor", run_id=str(run))))
            await first.kill()
            await expire(self._database, run)
        worker = await self._workers.start(point=point, lease_seconds=story.lease_seconds)
        scene = Scene(self._model, self._database, run, worker, story)
        if story.happens is not None:
            await story.happens(scene)
        assert await worker.gone() == -signal.SIGKILL, worker.log
        assert was_hit(worker.log, point), worker.log
        await set_run(self._database, run, ready_at=NEVER)
        return scene

    async def end(self, scenes: Sequence[Scene]) -> None:
        """A worker that nothing happens to finishes them all."""
        for scene in scenes:
            self._told[str(scene.run)][1].set()
            await expire(self._database, scene.run)
        worker = await self._workers.start()
        for scene in scenes:
            if scene.story.then is not None:
                await scene.story.then(scene)
            await until(partial(is_finished, self._database, scene.run))
        await worker.kill()


async def comes_to_its_end(scene: Scene) -> None:
    """With every result, none of them asked for again, and no more calls than the kills account for."""
    story, ended = scene.story, await the_run(scene.database, scene.run)
    assert (ended.status, ended.result) == (story.ends, "the answer" if story.ends == "succeeded" else None)
    await check(scene.database, scene.run)
    await every_result_is_there_and_nothing_recorded_was_asked_again(scene.database, scene.run, scene.model)
    for (_, what), made in by_place(scene.calls()).items():
        spoilt = story.spoils is not None and what == "executor 0.b"
        assert len(made) <= 1 + story.kills + spoilt, (what, made)


@pytest.fixture
async def stage(database_url: str, scripted_model: ScriptedModel, tmp_path: Path) -> AsyncIterator[Stage]:
    settings = {**against(database_url, scripted_model), "poll_seconds": 0.2, "drain_seconds": 0.1}
    async with opened(database_url) as database, PreparedWorkers(tmp_path, settings) as workers:
        stage = Stage(database, scripted_model, workers)
        scripted_model.begin(stage.reply)
        yield stage


@pytest.mark.parametrize(
    "points", [pytest.param(OFTEN, id="often"), pytest.param([*KILLS], id="all", marks=pytest.mark.soak)]
)
async def test_a_run_whose_worker_is_killed_at_a_named_point_comes_to_its_end(points: list[str], stage: Stage) -> None:
    scenes = {point: await stage.play(point) for point in points}
    await stage.end(list(scenes.values()))
    for point, scene in scenes.items():
        try:
            await comes_to_its_end(scene)
        except AssertionError as failure:
            failure.add_note(f"killed {point}")
            raise
