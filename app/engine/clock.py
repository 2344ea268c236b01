"""The database's clock, carried forward by this machine's monotonic one: leases and retries know a single time."""

import time


class Clock:
    """Milliseconds since 1970 by the database, as near as the answers of the database allow."""

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000

    def now(self) -> int:
        """The time now, in ms."""
        return int(time.monotonic() * 1000 + self._offset_ms)

    def set(self, database_ms: int, *, asked_at: float) -> None:
        """Heed what the database has said between `asked_at`, by `time.monotonic()`, and now.

        When in between it has said so, nobody knows. So this clock moves only as far as that answer proves it wrong:
        would it follow each of them, it would leap by the time that they take, and waits would end early.
        """
        least = database_ms - time.monotonic() * 1000
        most = database_ms + 1 - asked_at * 1000  # the database has cut off part of a millisecond
        self._offset_ms = min(max(self._offset_ms, least), most)
