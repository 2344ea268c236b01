"""Places for model calls in flight: one pool per process, handed on in the order in which runs asked."""

from collections import deque
from collections.abc import Callable


class Places:
    """`limit` places. Whoever finds too few leaves a word and is given the next one that comes free.

    An endpoint that answers 429 is sent fewer calls at once: `slow_down` halves how many places may be held, and
    `speed_up` allows one more, up to `limit` again. What was in flight at a slow-down was sent at the old pace and says
    nothing of the new one: until as many places as were held then have been given back, further 429s do not slow down
    again (or one burst of them would leave a single place) and answers do not speed up (or the rest of that burst
    would undo it). So does TCP, which reduces once per window of data (RFC 5681, RFC 6582).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._allowed = limit  # how many may be held at once; more are while a slow-down waits for calls to end
        self._free = limit  # places of the full limit that nobody holds
        self._outdated = 0  # places to be given back before the pace may change again
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, wanted: int) -> int:
        """Take up to `wanted` places now; none while others wait, who asked before."""
        taken = 0 if self._waiting else min(wanted, self._open())
        self._free -= taken
        return taken

    def wait(self, granted: Callable[[], None]) -> None:
        """Have `granted()` called once, with one place taken for the caller, when its turn comes."""
        self._waiting.append(granted)
        self._hand_on()

    def give_back(self, count: int = 1) -> None:
        """Free places."""
        self._free += count
        self._outdated = max(0, self._outdated - count)
        self._hand_on()

    def leave(self, granted: Callable[[], None]) -> None:
        """Take back a `wait` that has not been granted."""
        if granted in self._waiting:
            self._waiting.remove(granted)

    def slow_down(self) -> None:
        """A call got a 429. To be called while that call still holds its place: it is one of those in flight."""
        if self._outdated:
            return
        self._outdated = self._limit - self._free
        self._allowed = max(1, self._allowed // 2)

    def speed_up(self) -> None:
        """A call was answered. As for `slow_down`, before its place is given back."""
        if self._outdated:
            return
        self._allowed = min(self._limit, self._allowed + 1)
        self._hand_on()

    def _open(self) -> int:
        """How many places may be taken now."""
        return max(0, self._allowed - (self._limit - self._free))

    def _hand_on(self) -> None:
        while self._open() > 0 and self._waiting:
            self._free -= 1
            self._waiting.popleft()()
