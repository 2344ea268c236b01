"""What happened in a simulation, line by line: the same lines for the same seed, for reading and for comparing."""

import asyncio
from hashlib import sha256
from uuid import UUID

from tests.simulation.loop import PROCESS


class Trace:
    """Lines with their time and the process in which things happened."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._short: dict[UUID, str] = {}
        self.lines: list[str] = []

    def note(self, what: str) -> None:
        """One more line."""
        self.lines.append(f"{self._loop.time():10.4f} {PROCESS.get() or '-'!s:<10} {what}")

    def short(self, run_id: UUID) -> str:
        """A run's name for people: r1, r2 ..."""
        return self._short.setdefault(run_id, f"r{len(self._short) + 1}")

    @property
    def hash(self) -> str:
        """Of all lines."""
        return sha256("\n".join(self.lines).encode()).hexdigest()
