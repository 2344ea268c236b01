"""Waiting for what nobody announces, such as a line in another process's log or a row in its database."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

_BETWEEN_LOOKS_SECONDS = 0.03


async def until(holds: Callable[[], bool | Awaitable[bool]], *, within_seconds: float = 60.0) -> None:
    """Look again and again until this holds; TimeoutError when that takes too long."""
    async with asyncio.timeout(within_seconds):
        while True:
            found = holds()
            if await found if inspect.isawaitable(found) else found:
                return
            await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)
