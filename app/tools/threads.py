"""Threads for calls that would block the event loop: bounded in number, and never waited for at the program's end."""

import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class Threads:
    """At most `bound` threads, started as they are needed; what finds none free waits for one, first come first served.

    A call cannot be stopped from outside: one that blocks keeps its thread. They are daemons, other than those of
    `ThreadPoolExecutor`, so that such a call does not keep the program from ending.
    """

    def __init__(self, *, name: str, bound: int) -> None:
        self._name = name
        self._bound = bound
        self._lock = threading.Lock()
        self._started = 0
        self._free = 0  # threads without a call; below zero, so many calls wait for one
        self._queued: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()

    def submit(self, do: Callable[[], Answer]) -> Future[Answer]:
        """Call it in a thread, in the caller's context; while it waits for one the future can be cancelled."""
        future: Future[Answer] = Future()
        context = contextvars.copy_context()
        with self._lock:
            if self._free <= 0 and self._started < self._bound:
                self._start()
                self._started += 1
                self._free += 1
            self._free -= 1
            self._queued.put((future, lambda: context.run(do)))
        return future

    def _start(self) -> None:
        threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()

    def _serve(self) -> None:
        while True:
            future, do = self._queued.get()
            if future.set_running_or_notify_cancel():
                try:
                    answer = do()
                except BaseException as error:  # noqa: BLE001 - the caller gets it, whatever it is
                    future.set_exception(error)
                else:
                    future.set_result(answer)
            del future, do  # what it gave is not kept while the thread waits
            with self._lock:
                self._free += 1
