"""SIGTERM and SIGINT in a process that stays: the first has it drain, the second leaves at once."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import structlog

log = structlog.get_logger(__name__)

_ENDING = (signal.SIGTERM, signal.SIGINT)
_OVERDUE_SECONDS = 5.0
_LEFT_SECONDS = 1.0


class Signals:
    """Hears them from when it is made, before any other thread is; until `drain_on_first` one ends the process.

    A thread of its own waits for them: a handler would have to wait itself, for the event loop or for a driver that
    waits for a lock. To leave at any moment is safe, because to be killed is. A child process inherits that they are
    blocked.
    """

    def __init__(self) -> None:
        self._drain: Callable[[], object] | None = None
        self._grace_seconds = 0.0
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # threads made later inherit this
        threading.Thread(target=self._listen, name="planwave-signals", daemon=True).start()

    def drain_on_first(self, drain: Callable[[], object], *, grace_seconds: float) -> None:
        """Have `drain` called, on another thread, by the first signal.

        Whatever still keeps the process some seconds after the grace, such as a database that is away, is left: exit 1.
        """
        self._grace_seconds = grace_seconds
        self._drain = drain

    def drained(self) -> None:
        """All is in order and the process about to end: what keeps it, a tool that goes on perhaps, is left: exit 0."""
        left = threading.Timer(_LEFT_SECONDS, os._exit, args=(0,))
        left.daemon = True
        left.start()

    def _listen(self) -> None:
        number = signal.sigwait(_ENDING)
        if self._drain is not None:
            log.info("draining", signal=signal.Signals(number).name, grace_seconds=self._grace_seconds)
            overdue = threading.Timer(self._grace_seconds + _OVERDUE_SECONDS, _leave_overdue)
            overdue.daemon = True
            overdue.start()
            with suppress(RuntimeError):  # its event loop has ended, and with it what was to be drained
                self._drain()
            number = signal.sigwait(_ENDING)
        os._exit(128 + number)


def _leave_overdue() -> None:
    log.error("not drained in time, leaving")
    os._exit(1)
