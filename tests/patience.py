"""A generous bound for work that must not freeze the process: it raises out of it instead of hanging the suite."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Frozen(BaseException):
    """The work took far longer than any sound implementation needs; no `except Exception` holds it up."""


@contextmanager
def bounded(*, seconds: float) -> Iterator[None]:
    """Raise `Frozen` in the block after so many seconds; main thread only."""

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise Frozen(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
