"""What stands around a worker that is driven step by step: its model, its database, its inboxes, what is answered."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.errors import AuthFailed, CallRefused, FormatRefused, ModelDeclined, SpoiledAnswer, TransportFault
from app.domain.ids import RunId
from app.domain.usage import Usage
from app.engine.inbox import Inbox
from app.llm.chat import ChatAnswer, ChatRequest
from app.storage.database import Database
from tests.invariants import RUN_MOVES, Row, moved_by

T = TypeVar("T")
Moves = Counter[tuple[str, str, str]]
"""How often what ("run" or "task") went from which status to which."""

MOVED: dict[str, Moves] = {}
"""By kind of database, what runs and tasks have been seen to do."""

LONG_SECONDS = 3600.0
USAGE = Usage(input_tokens=10, output_tokens=5)


@dataclass(eq=False)
class Pending:
    """A call that the model has not answered."""

    run_id: RunId
    seat: str
    task_key: str | None
    request: ChatRequest
    answer: "asyncio.Future[ChatAnswer]"

    def say(self, text: str) -> None:
        """Answer it."""
        if not self.answer.done():
            self.answer.set_result(ChatAnswer(content=text, model="scripted", usage=USAGE))

    def fail(self, error: Exception) -> None:
        """Come to nothing."""
        if not self.answer.done():
            self.answer.set_exception(error)

    @property
    def asks_for(self) -> set[str]:
        """The fields of the JSON that is wanted."""
        return set() if self.request.response is None else set(self.request.response.schema["properties"])


class PatientModel:
    """Keeps every call waiting until somebody answers it."""

    def __init__(self) -> None:
        self.pending: list[Pending] = []

    async def complete(self, request: ChatRequest) -> ChatAnswer:
        headers = request.headers
        pending = Pending(
            run_id=RunId(UUID(headers["X-Planwave-Run"])),
            seat=headers["X-Planwave-Seat"],
            task_key=headers.get("X-Planwave-Task"),
            request=request,
            answer=asyncio.get_running_loop().create_future(),
        )
        self.pending.append(pending)
        try:
            return await pending.answer
        finally:
            self.pending.remove(pending)

    async def close(self) -> None:
        pass


class FrailDatabase(Database):
    """Stops for ever at a chosen write, just before it or just after its commit, as does a worker that is killed."""

    def __init__(self, url: str) -> None:
        super().__init__(url, pool_size=2)
        self._left: int | None = None
        self._before = False
        self._died = asyncio.Event()
        self.stopped = False

    def stop_at(self, write: int, *, before: bool) -> None:
        """Stop at the write after so many more."""
        self._left, self._before = write, before

    def die(self) -> None:
        """Have whoever stands at a write end there, as the process of a worker that was killed does."""
        self._died.set()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        stops = self._is_the_one()
        if stops and self._before:
            await self._stop()
        async with super().write() as connection:
            yield connection
        if stops:
            await self._stop()

    async def write_in_thread(self, do: Callable[[sa.Connection], T]) -> T:
        stops = self._is_the_one()
        if stops and self._before:
            await self._stop()
        done = await super().write_in_thread(do)
        if stops:
            await self._stop()
        return done

    def _is_the_one(self) -> bool:
        if self._left is None:
            return False
        self._left -= 1
        return self._left < 0

    async def _stop(self) -> None:
        self.stopped = True
        await self._died.wait()
        raise asyncio.CancelledError


class WatchedInbox(Inbox[T]):
    """Shows whether its driver waits, and for how long."""

    def __init__(self) -> None:
        super().__init__()
        self._wakes_at: float | None = None

    async def take(self, *, within_seconds: float | None) -> list[T]:
        now = asyncio.get_running_loop().time()
        self._wakes_at = inf if within_seconds is None else now + within_seconds
        try:
            return await super().take(within_seconds=within_seconds)
        finally:
            self._wakes_at = None

    @property
    def waits_seconds(self) -> float:
        """How long its driver will wait if nothing comes; 0 when it has something to do."""
        if self._wakes_at is None or self._arrived.is_set():
            return 0.0
        return max(0.0, self._wakes_at - asyncio.get_running_loop().time())


def random_plan(dice: random.Random, *, known: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One to four tasks, some of which need each other or what is known."""
    tasks: list[dict[str, Any]] = []
    for n in range(1, dice.choice((1, 2, 3, 3, 4)) + 1):
        before = [task["id"] for task in tasks if dice.random() < 0.3]
        before += [key for key in known if dice.random() < 0.2]
        tasks.append({"id": str(n), "description": f"Do {n}, {dice.random()}", "depends_on": before})
    return tasks


def faults_of(call: Pending) -> Mapping[str, Callable[[], None]]:
    """What may become of a call other than a good answer, by name."""
    return {
        "nonsense": lambda: call.say("I would rather not say."),
        "spoiled": lambda: call.fail(SpoiledAnswer("empty", kind="empty", usage=USAGE)),
        "cut off": lambda: call.fail(SpoiledAnswer("too long", kind="length", usage=USAGE, content="It ")),
        "declined": lambda: call.fail(ModelDeclined("no", kind="refusal", usage=USAGE)),
        "refused": lambda: call.fail(CallRefused("no", kind="bad_request")),
        "too long": lambda: call.fail(CallRefused("no", kind="context_length_exceeded")),
        "format": lambda: call.fail(FormatRefused("no", kind="format", level=int(call.request.format_at_most))),
        "no key": lambda: call.fail(AuthFailed("no", kind="llm_auth_failed")),
        "busy": lambda: call.fail(TransportFault("429", kind="rate_limited", retry_after_seconds=0.02)),
        "away": lambda: call.fail(TransportFault("503", kind="server_error")),
        "away for long": lambda: call.fail(
            TransportFault("503", kind="server_error", retry_after_seconds=LONG_SECONDS)
        ),
        "timeout": lambda: call.fail(TransportFault("timed out", kind="timeout")),
    }


def moves_of(events: Iterable[Row]) -> Moves:
    """The changes of status of one run and its tasks."""
    moves: Moves = Counter()
    run: str | None = None
    tasks: dict[str, str] = {}
    replaced: set[str] = set()
    for event in events:
        type_, key = event["type"], event["task_key"]
        status = RUN_MOVES.get(type_)
        if status is not None:
            if run is not None:
                moves["run", run, status] += 1
            run = status
        if type_ == "plan.created":
            replaced.update(event["data"].get("failed_task_keys", ()))
        elif type_ == "run.retried":
            for again, was in tasks.items():
                if was == "cancelled" or (was == "failed" and again not in replaced):
                    moves["task", was, "pending"] += 1
                    tasks[again] = "pending"
        elif key is not None:
            was = tasks.get(key, "pending")
            tasks[key] = moved_by(type_, was)
            if tasks[key] != was or type_ == "task.recovered":
                moves["task", was, tasks[key]] += 1
    return moves


def moved_on(database_url: str) -> Moves:
    """What has moved on this kind of database."""
    return MOVED.setdefault(database_url.partition(":")[0], Counter())
