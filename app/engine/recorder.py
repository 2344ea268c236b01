"""The engine's only writer. Outcomes that arrive together, of one run or of many, share one transaction."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID, uuid4

import sqlalchemy as sa
import structlog

from app.domain.errors import LeaseLost, StorageUnavailable
from app.domain.ids import RunId
from app.domain.status import StopRequest
from app.engine.clock import Clock
from app.storage.changes import Changes
from app.storage.database import Database, notify, now_ms
from app.storage.dispatch import Fenced
from app.storage.tables import runs
from app.storage.writing import write

log = structlog.get_logger(__name__)

_MAX_BATCH = 500
_AWAY_SECONDS = 1.0
_FIRST_AWAY_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class _Waiting:
    changes: Changes
    written: asyncio.Future[Fenced] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Recorder:
    """Takes changes, writes them through the fence, and answers once they are committed.

    One batch is under way at a time; what arrives meanwhile makes the next one, so that under load a commit is shared
    by many. A run has one commit under way at most. While the database is away, nothing is forgotten: it tries again.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._queue: list[_Waiting] = []
        self._something_to_do = asyncio.Event()
        self._closing = False

    async def commit(self, changes: Changes) -> Fenced:
        """Return when the changes are durable. Raises `LeaseLost` when the run is another's: nothing was written."""
        waiting = _Waiting(changes)
        self._queue.append(waiting)
        self._something_to_do.set()
        return await waiting.written

    async def run(self) -> None:
        """Write until `close`, and what is queued by then."""
        while self._queue or not self._closing:
            await self._something_to_do.wait()
            self._something_to_do.clear()
            while self._queue:
                batch, self._queue = self._queue[:_MAX_BATCH], self._queue[_MAX_BATCH:]
                await self._write(batch)

    def close(self) -> None:
        """Let `run` return when the queue is empty."""
        self._closing = True
        self._something_to_do.set()

    async def _write(self, batch: Sequence[_Waiting]) -> None:
        try:
            passed = await self._commit(batch)
        except Exception as error:
            if len(batch) > 1:
                # One run's rows spoil the batch: each for itself, so that only that one pays.
                for waiting in batch:
                    await self._write([waiting])
                return
            log.exception("commit failed", run_id=str(batch[0].changes.run_id))
            if not batch[0].written.done():
                batch[0].written.set_exception(error)
            return
        for waiting in batch:
            self._answer(waiting, passed.get(waiting.changes.run_id))

    def _answer(self, waiting: _Waiting, fenced: Fenced | None) -> None:
        if fenced is not None:
            self._database.tell(waiting.changes.run_id, may_be_over=waiting.changes.over)
        if waiting.written.done():
            return  # its driver was cancelled meanwhile
        if fenced is None:
            waiting.written.set_exception(LeaseLost("The run is driven by another worker."))
        else:
            waiting.written.set_result(fenced)

    async def _commit(self, batch: Sequence[_Waiting]) -> Mapping[RunId, Fenced]:
        batch_id = uuid4()
        may_be_written = False
        wait = _FIRST_AWAY_SECONDS
        while True:
            try:
                asked_at = time.monotonic()
                do = partial(_write, batch, batch_id, may_be_written=may_be_written)
                passed = await self._database.write_in_thread(do)
            except StorageUnavailable as error:
                log.warning("database away, outcomes wait", outcomes=len(batch), reason=str(error.__cause__))
                may_be_written = True
                # A connection that was cut, or a deadlock, is over at once; a database that is down is not.
                wait = min(_AWAY_SECONDS, wait * 2)
                await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - no secret
            else:
                for fenced in passed.values():
                    self._clock.set(fenced.now, asked_at=asked_at)
                return passed


def _write(
    batch: Sequence[_Waiting], batch_id: UUID, connection: sa.Connection, *, may_be_written: bool
) -> Mapping[RunId, Fenced]:
    # After a connection lost in COMMIT nobody knows what became of it: look before writing twice.
    if may_be_written and (before := _written_before(connection, batch, batch_id)):
        return before
    passed = write(connection, [waiting.changes for waiting in batch], batch_id=batch_id)
    if over := [w.changes.run_id for w in batch if w.changes.over and w.changes.run_id in passed]:
        notify(connection, *over, requested=False)
    return passed


def _written_before(connection: sa.Connection, batch: Sequence[_Waiting], batch_id: UUID) -> Mapping[RunId, Fenced]:
    """What an earlier try of this batch has written, if its COMMIT went through.

    The rows are locked first: that COMMIT may still be under way on a connection which only we have given up.
    """
    query = (
        sa.select(
            now_ms().label("now"),
            runs.c.id,
            runs.c.event_seq,
            runs.c.batch_id,
            runs.c.stop_requested,
            runs.c.answers,
        )
        .where(runs.c.id.in_([waiting.changes.run_id for waiting in batch]))
        .order_by(runs.c.id)
        .with_for_update()
    )
    return {
        row.id: Fenced(
            now=row.now,
            event_seq=row.event_seq,
            stop_requested=None if row.stop_requested is None else StopRequest(row.stop_requested),
            answers=row.answers,
        )
        for row in connection.execute(query)
        if row.batch_id == batch_id
    }
