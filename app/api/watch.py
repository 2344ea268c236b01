"""Waiting for a run to change without holding a connection: announced commits wake, a slow re-read misses nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from app.domain.ids import RunId, TenantId
from app.domain.status import RunStatus
from app.storage.database import Database
from app.storage.runs import get_version

REREAD_SECONDS = 0.5
"""On SQLite a worker in another process announces nothing here: what it wrote is seen after this at the latest."""


class RunWatch:
    """Who waits for which run in this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[UUID, dict[asyncio.Event, bool]] = {}
        database.on_announce(self.announced)

    def announced(self, run_id: UUID, may_be_over: bool) -> None:
        """Wake those who wait for this run: for its end, or for any change."""
        for news, for_its_end in self._waiting.get(run_id, {}).items():
            if may_be_over or not for_its_end:
                news.set()

    async def until(
        self,
        met: Callable[[int, RunStatus], bool],
        *,
        tenant_id: TenantId,
        run_id: RunId,
        for_its_end: bool,
        timeout_seconds: float,
        given_up: Callable[[], Awaitable[bool]],
    ) -> tuple[int, RunStatus] | None:
        """The run's version and status once they are `met`, time is up or nobody waits; None when it is gone.

        `for_its_end`: nothing less than the run's end can meet it.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_seconds
        with self._news_of(run_id, for_its_end) as news:
            while True:
                news.clear()  # before the read: what commits during it wakes us again
                async with self._database.read() as connection:
                    found = await get_version(connection, tenant_id, run_id)
                left = end - loop.time()
                if found is None or met(*found) or left <= 0 or await given_up():
                    return found
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, REREAD_SECONDS)):
                        await news.wait()

    @contextmanager
    def _news_of(self, run_id: RunId, for_its_end: bool) -> Iterator[asyncio.Event]:
        news = asyncio.Event()
        self._waiting.setdefault(run_id, {})[news] = for_its_end
        try:
            yield news
        finally:
            del self._waiting[run_id][news]
            if not self._waiting[run_id]:
                del self._waiting[run_id]
