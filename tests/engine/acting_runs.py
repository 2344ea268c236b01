"""Runs whose tasks act, and people who answer for their tool calls: what the tests of side effects share."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from app.domain.ids import RunId
from app.domain.status import SideEffects
from app.storage import tables
from app.storage.database import Database
from app.storage.records import ReviewRecord
from app.storage.reviews import answer_review, list_reviews
from app.storage.runs import lock_run
from tests.engine.conftest import Engine, WorkerHere
from tests.engine.recording_tools import RecordingTool, toolbox
from tests.scripted_model import Plan, ScriptedModel, script
from tests.scripted_tools import Wanted
from tests.stored import T, make_run, rows_of

ONE: Plan = {"a": []}
NAMES = ["look", "put", "charge"]


def look(text: str) -> Wanted:
    """A call that changes nothing."""
    return "look", {"text": text}


def put(text: str) -> Wanted:
    """A call that may be repeated."""
    return "put", {"text": text}


def charge(text: str) -> Wanted:
    """A call that may not."""
    return "charge", {"text": text}


class Shop:
    """A tool of each kind, and workers that have them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.look = RecordingTool("look")
        self.put = RecordingTool("put", SideEffects.IDEMPOTENT)
        self.charge = RecordingTool("charge", SideEffects.ONCE)

    @property
    def tools(self) -> list[RecordingTool]:
        """All of them."""
        return [self.look, self.put, self.charge]

    def begin(self) -> None:
        """Forget what came before."""
        for tool in self.tools:
            tool.made.clear()
        self.does_as_told()

    def does_as_told(self) -> None:
        """From now on, at once."""
        for tool in self.tools:
            tool.does = lambda arguments, _: f"done: {arguments['text']}"

    def worker(self, **settings: Any) -> WorkerHere:
        """Start one."""
        return self.engine.worker(toolbox=toolbox(self.tools), **settings)

    async def run(self, plan: Plan = ONE, **options: Any) -> RunId:
        """A run whose tasks may use them all."""
        return await make_run(self.engine.database, plan=plan, **{"tools": NAMES, **options})


@asynccontextmanager
async def a_shop(database_url: str, **settings: Any) -> AsyncIterator[Shop]:
    """A shop with one worker of these settings, for all tests of a file."""
    async with ScriptedModel(script()) as model:
        engine = Engine(Database(database_url), database_url, model)
        shop = Shop(engine)
        shop.worker(**settings)
        yield shop
        await engine.end()
        await engine.database.close()


async def tool_rows(database: Database, run_id: RunId) -> Sequence[Mapping[str, Any]]:
    return await rows_of(database, tables.tool_calls, run_id)


async def became(database: Database, run_id: RunId) -> list[tuple[str, str]]:
    """What became of each call, first to last: the tool, and the call's status."""
    return [(row["tool"], row["status"]) for row in await tool_rows(database, run_id)]


async def open_reviews(database: Database, run_id: RunId) -> list[ReviewRecord]:
    async with database.read() as connection:
        reviews = await list_reviews(connection, T, run_id, limit=100)
    return [review for review in reviews if review.answered_at is None and review.closed_at is None]


async def decide(
    database: Database, run_id: RunId, decision: str, *, tool: str | None = None, announced: bool = True, **given: Any
) -> None:
    """A person's answer to the only review that is open, or to that about a call of this tool."""
    asked = await open_reviews(database, run_id)
    (review,) = [r for r in asked if tool is None or r.question["tool_call"]["tool"] == tool]
    assert decision in review.allowed_answers
    async with database.write() as connection:
        run = await lock_run(connection, T, run_id)
        assert run is not None
        await answer_review(connection, run, review, {"decision": decision, **given})
        if announced:
            await database.announce(connection, run_id)
