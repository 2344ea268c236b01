"""An event loop whose time is virtual and whose order is a seed's: it never waits, and runs tasks as they might be run.

Everything of one simulated process runs in that process's context, so that it can be held back, or dropped, as a whole.
"""

import asyncio
import heapq
import itertools
import random
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Protocol

_MAX_STEPS_AT_ONCE = 20_000


class Runs(Protocol):
    """A simulated process, as far as the loop is concerned."""

    def may_run(self, handle: asyncio.Handle) -> bool:
        """Whether this callback runs now; if not it is the process's to keep or to forget."""
        ...


PROCESS: ContextVar[Runs | None] = ContextVar("process", default=None)


class Stuck(AssertionError):
    """Nothing is left that could happen, or the same moment goes on for ever."""


class _Task(asyncio.Task[Any]):
    """A task with its number: an order that is the same in every run of a seed."""

    number = 0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Seconds from 0. Timers fire in their order; tasks that are ready at once in any, and callbacks in theirs."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self._dice = dice
        self._now = 0.0
        self._steps_at_once = 0
        self._numbers = itertools.count(1)
        self.tasks: dict[int, _Task] = {}
        factory: Any = self._make_task
        self.set_task_factory(factory)

    def time(self) -> float:
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """What another thread would do is done here, by the stand-in for its executor; a cancel does not stop it."""
        return asyncio.shield(self.create_task(executor.run(func, *args)))

    def abandon(self) -> None:
        """End all tasks that have not ended, without a trace."""
        self._ready.clear()
        for task in list(self.tasks.values()):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            # Its clearing up may raise, and may begin what nobody is left to await.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                with suppress(Exception, BaseExceptionGroup, GeneratorExit):
                    if (coroutine := task.get_coro()) is not None:
                        coroutine.close()
        self._ready.clear()
        self._scheduled.clear()

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **more: Any) -> _Task:
        task = _Task(coro, loop=loop, **more)
        task.number = next(self._numbers)
        self.tasks[task.number] = task
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: Any) -> None:
        self.tasks.pop(task.number, None)

    def _run_once(self) -> None:
        """One round, in place of the loop's own: without a selector, and without waiting."""
        timers = self._scheduled
        while timers and timers[0].cancelled():
            heapq.heappop(timers)._scheduled = False  # type: ignore[attr-defined]
        if not self._ready:
            if not timers:
                raise Stuck("nothing is left that could happen")
            self._now = max(self._now, timers[0].when())
            self._steps_at_once = 0
        while timers and timers[0].when() <= self._now:
            timer = heapq.heappop(timers)
            timer._scheduled = False  # type: ignore[attr-defined]
            self._ready.append(timer)
        self._steps_at_once += 1
        if self._steps_at_once > _MAX_STEPS_AT_ONCE:
            raise Stuck(f"the moment {self._now} does not pass")
        round_ = self._in_some_order()
        self._ready.clear()
        for handle in round_:
            if handle.cancelled():
                continue
            process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
            if process is None or process.may_run(handle):
                handle._run()

    def _in_some_order(self) -> list[asyncio.Handle]:
        """The tasks' steps change places with each other; sorted first, for some come out of sets."""
        ready = list(self._ready)
        if len(ready) == 1:
            return ready
        places, steps = [], []
        for place, handle in enumerate(ready):
            task = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
            if isinstance(task, _Task):
                places.append(place)
                steps.append((task.number, place, handle))
        steps.sort(key=lambda step: step[:2])
        self._dice.shuffle(steps)
        for place, (_, _, handle) in zip(places, steps, strict=True):
            ready[place] = handle
        return ready
