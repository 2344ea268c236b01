"""What has happened to a run since its driver last looked."""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """A queue that is emptied at once, with a time to look again though nothing came."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._arrived = asyncio.Event()

    def put(self, item: T) -> None:
        """Leave something for the driver."""
        self._items.append(item)
        self._arrived.set()

    def nudge(self) -> None:
        """Have the driver look again though there is nothing to read."""
        self._arrived.set()

    async def take(self, *, within_seconds: float | None) -> list[T]:
        """All that has come, as soon as anything has; nothing when only the time has passed."""
        alarm = None
        if within_seconds is not None:
            alarm = asyncio.get_running_loop().call_later(max(0.0, within_seconds), self._arrived.set)
        try:
            await self._arrived.wait()
        finally:
            if alarm is not None:
                alarm.cancel()
        self._arrived.clear()
        taken, self._items = self._items, []
        return taken
