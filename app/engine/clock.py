"""The database's clock, carried forward by this machine's monotonic one: leases and retries know a single time."""

import time


class Clock:
    """Milliseconds since 1970 by the database, as near as the last answer of the database allows."""

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000

    def now(self) -> int:
        """The time now, in ms."""
        return int(time.monotonic() * 1000 + self._offset_ms)

    def set(self, database_ms: int) -> None:
        """Take over what the database has just said."""
        self._offset_ms = database_ms - time.monotonic() * 1000
