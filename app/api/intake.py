"""Goals that arrive together share one transaction, so that under load a commit is shared by many."""

import asyncio
from dataclasses import dataclass, field

from app.domain.errors import StorageConflict, StorageFull, StorageUnavailable
from app.storage.database import Database
from app.storage.faults import tried_again
from app.storage.records import RunRecord
from app.storage.runs import FirstRun, create_first_runs

_MAX_BATCH = 100


@dataclass(frozen=True, slots=True)
class _Waiting:
    first: FirstRun
    made: asyncio.Future[RunRecord] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Intake:
    """Stores goals with their first runs. One batch is under way at a time; what arrives meanwhile makes the next."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: list[_Waiting] = []
        self._writing: asyncio.Task[None] | None = None

    @tried_again
    async def take(self, first: FirstRun) -> RunRecord:
        """The run, once it is durable and announced. Raises `StorageUnavailable`, and what is wrong with this goal."""
        waiting = _Waiting(first)
        self._queue.append(waiting)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_queue())
        return await waiting.made

    async def _write_queue(self) -> None:
        try:
            while self._queue:
                batch, self._queue = self._queue[:_MAX_BATCH], self._queue[_MAX_BATCH:]
                await self._write(batch)
        finally:
            self._writing = None

    async def _write(self, batch: list[_Waiting]) -> None:
        try:
            async with self._database.write() as connection:
                made = await connection.run_sync(create_first_runs, [waiting.first for waiting in batch])
                await self._database.announce(connection, *(run.id for run in made))
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            if _is_of_the_database(error):
                # Those who came meanwhile have waited for it as well, and would wait as long again.
                batch, self._queue = batch + self._queue, []
            elif len(batch) > 1:
                # One goal spoils the batch: each for itself, so that only that one pays. Nothing is written yet.
                for waiting in batch:
                    await self._write([waiting])
                return
            for waiting in batch:
                if not waiting.made.done():
                    waiting.made.set_exception(error)
            return
        for waiting, run in zip(batch, made, strict=True):
            if not waiting.made.done():  # its request was cancelled meanwhile
                waiting.made.set_result(run)


def _is_of_the_database(error: Exception) -> bool:
    """Whether it would meet every goal alike. Of what is not, the transaction is known to be undone."""
    return isinstance(error, StorageUnavailable) and not isinstance(error, StorageFull | StorageConflict)
