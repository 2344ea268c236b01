"""A generous bound for work that must not freeze the process: it raises out of it instead of hanging the suite."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Frozen(BaseException):
    """The work took far longer than any sound implementation needs; no `except Exception` holds it up."""


@contextmanager
def bounded(*, seconds: float) -> Iterator[None]:
    """Raise `Frozen` in the block after so many seconds of the process's CPU time; main thread only."""

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise Frozen(f"not done within {seconds:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
