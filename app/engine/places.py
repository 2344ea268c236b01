"""Places for model calls in flight: one pool per process, handed on in the order in which runs asked."""

from collections import deque
from collections.abc import Callable


class Places:
    """`limit` places. Whoever finds too few leaves a word and is given the next one that comes free."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, wanted: int) -> int:
        """Take up to `wanted` places now; none while others wait, who asked before."""
        taken = 0 if self._waiting else min(wanted, self._free)
        self._free -= taken
        return taken

    def wait(self, granted: Callable[[], None]) -> None:
        """Have `granted()` called once, with one place taken for the caller, when its turn comes."""
        self._waiting.append(granted)
        self._hand_on()

    def give_back(self, count: int = 1) -> None:
        """Free places."""
        self._free += count
        self._hand_on()

    def leave(self, granted: Callable[[], None]) -> None:
        """Take back a `wait` that has not been granted."""
        if granted in self._waiting:
            self._waiting.remove(granted)

    def _hand_on(self) -> None:
        while self._free > 0 and self._waiting:
            self._free -= 1
            self._waiting.popleft()()
