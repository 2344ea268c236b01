"""Real workers in the test's own event loop, on each kind of database, before a scripted model."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import structlog

from app.bootstrap import make_database, make_model
from app.domain.ids import RunId
from app.engine.worker import Worker
from app.llm.chat import ChatModel
from app.settings import Settings
from app.storage.database import Database
from app.storage.records import RunRecord
from app.tools.toolbox import Toolbox
from tests.databases import KINDS, Databases
from tests.invariants import check
from tests.scripted_model import Call, Reply, ScriptedModel, text
from tests.stored import forget_everything, the_run

WITHIN_SECONDS = 60


class Gates:
    """Answers of a seat, each held back until its gate is opened; `script({"executor": gates})`."""

    def __init__(self, reply: Callable[[Call], Reply] | None = None) -> None:
        self._gates: defaultdict[str | None, asyncio.Event] = defaultdict(asyncio.Event)
        self._waiting = 0
        self.most = 0
        """How many calls have waited at once."""
        self._reply = reply or (lambda call: text(f"result of {call.task_key}"))

    def open(self, *task_ids: str | None) -> None:
        """Let these answer, now and ever after; None is the gate of a call without a task."""
        for task_id in task_ids:
            self._gates[task_id].set()

    async def __call__(self, call: Call) -> Reply:
        self._waiting += 1
        self.most = max(self.most, self._waiting)
        await self._gates[call.task_id].wait()
        self._waiting -= 1
        return self._reply(call)


class WorkerHere:
    """A worker as a process would have it: with a database, a pool and a model client of its own."""

    def __init__(self, settings: Settings, model: ChatModel | None = None, toolbox: Toolbox | None = None) -> None:
        self.settings = settings
        self.database = make_database(settings)
        self._model = model or make_model(settings)
        self.worker = Worker(self.database, self._model, settings, toolbox)
        self._stop = asyncio.Event()
        self._ended = False
        self.running = asyncio.create_task(self.worker.run(self._stop))

    @property
    def broke(self) -> bool:
        """Whether it came to an end by itself."""
        return self.running.done() and not self._ended

    async def drain(self) -> None:
        """End it as SIGTERM does."""
        self._ended = True
        self._stop.set()
        async with asyncio.timeout(WITHIN_SECONDS):
            await self.running
        await self._closed()

    async def die(self) -> None:
        """End it in the middle of everything: nothing more is recorded of its calls, and it keeps its leases."""
        self._ended = True
        self.running.cancel()
        with suppress(asyncio.CancelledError):
            await self.running
        await self._closed()

    async def end(self) -> None:
        """Put an end to it, if nothing has; raises what broke it."""
        if not self._ended:
            await self.drain()

    async def _closed(self) -> None:
        places = self.worker._shop.places
        assert (places._free, len(places._waiting)) == (self.settings.llm_max_concurrency, 0), "places were leaked"
        await self._model.close()
        await self.database.close()


class Engine:
    """Workers on one database and one model, and what a test asks of them."""

    def __init__(self, database: Database, database_url: str, model: ScriptedModel) -> None:
        self.settings: dict[str, Any] = {
            "database_url": database_url,
            "llm_base_url": model.url,
            "llm_api_key": "none",
            "llm_model": "scripted",
            "llm_backoff_base_seconds": 0.01,
            "llm_backoff_cap_seconds": 0.02,
            "poll_seconds": 0.05,
            "lease_seconds": 60,
            "drain_seconds": 5,
        }
        self.model = model
        self.database = database
        self.workers: list[WorkerHere] = []

    def worker(self, *, model: ChatModel | None = None, toolbox: Toolbox | None = None, **settings: Any) -> WorkerHere:
        """Start one."""
        values = {**self.settings, **settings}
        started = WorkerHere(Settings(_env_file=None, **values), model, toolbox)
        self.workers.append(started)
        return started

    async def end(self) -> None:
        """End whatever still works; raises what broke."""
        for worker in self.workers:
            await worker.end()

    async def until(self, holds: Callable[[RunRecord], bool], run_id: RunId) -> RunRecord:
        """The run once this holds of it; fails with the run as it stands when that takes too long."""
        run = await the_run(self.database, run_id)
        try:
            async with asyncio.timeout(WITHIN_SECONDS):
                while not holds(run):
                    assert not any(worker.broke for worker in self.workers), "a worker broke"
                    await asyncio.sleep(0.01)
                    run = await the_run(self.database, run_id)
        except TimeoutError:
            pytest.fail(f"it did not come to that: {run}")
        return run

    async def until_true(self, holds: Callable[[], bool]) -> None:
        """Return when this holds; for what no event tells of."""
        async with asyncio.timeout(WITHIN_SECONDS):
            while not holds():  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.005)

    async def ended(self, run_id: RunId) -> RunRecord:
        """The run once it is over, with everything about it as it must be."""
        await self.until(lambda run: run.finished_at is not None, run_id)
        await check(self.database, run_id)
        return await the_run(self.database, run_id)


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[structlog.typing.EventDict]]:
    """What was logged, in place of the terminal."""
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture(scope="module", params=KINDS)
def database_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """One of each kind per file; cheaper than a new one for each test."""
    with databases.fresh(request.param) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The client's, without a row: what it announces wakes no worker, as from a process that cannot notify."""
    opened = Database(database_url)
    await forget_everything(opened)
    yield opened
    await opened.close()


@pytest.fixture
async def engine(database: Database, database_url: str, scripted_model: ScriptedModel) -> AsyncIterator[Engine]:
    """No worker yet: `engine.worker()` starts one. What was started ends with the test, with all its places free."""
    made = Engine(database, database_url, scripted_model)
    yield made
    await made.end()
