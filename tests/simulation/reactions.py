"""Clients that react to what they see of a run just as it happens: they answer, or have it go on after all."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from app.domain.errors import StorageUnavailable
from app.domain.ids import RunId
from tests.simulation.clients import Clients
from tests.simulation.process import Process


class Reactions:
    """Some people answer as soon as they are asked, some want a run to go on just as it comes to a stand."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        process: Process,
        clients: Clients,
        dice: random.Random,
        *,
        within_seconds: float,
    ) -> None:
        self._loop, self._process, self._clients, self._dice = loop, process, clients, dice
        self._within_seconds = within_seconds
        self.is_restless = True
        """Whether what was asked for may be taken back."""

    def see(self, run_id: RunId, event: str) -> None:
        """An event is committed, by whichever process: that one may die before the client has reacted."""
        if event == "review.opened" and self._dice.random() < 0.6:
            self._do_soon(self._clients.answer_some, run_id)
        elif self.is_restless and self._clients.wants_pause(run_id) and self._dice.random() < 0.3:
            self._do_soon(self._clients.resume, run_id)

    def change_mind(self, run_id: RunId, *, after_seconds: float) -> None:
        """Somebody cancels the run now, and wants it after all a while later."""
        for seconds, deed in ((0.0, self._clients.cancel), (after_seconds, self._clients.retry)):
            self._do_after(seconds, deed, run_id)

    def _do_soon(self, deed: Callable[[RunId], Coroutine[Any, Any, None]], run_id: RunId) -> None:
        self._do_after(self._dice.random() * self._within_seconds, deed, run_id)

    def _do_after(self, after: float, deed: Callable[[RunId], Coroutine[Any, Any, None]], run_id: RunId) -> None:
        context = self._process.context.copy()
        self._loop.call_later(
            after, lambda: self._loop.create_task(self._try(deed(run_id)), context=context), context=context
        )

    async def _try(self, doing: Coroutine[Any, Any, None]) -> None:
        with suppress(StorageUnavailable):
            await doing
