"""What the application takes from the machine, and a simulation gives it instead: time, chance, and ids of both."""

import random
import sys
import time
import uuid
from functools import cache
from typing import Any
from uuid import UUID

from app.storage import database
from tests.simulation.loop import PROCESS, VirtualLoop
from tests.simulation.storage import BASE_MS, STAND_INS, Storage


class Machine:
    """One simulation's."""

    def __init__(self, loop: VirtualLoop, storage: Storage, dice: random.Random) -> None:
        self._loop, self._storage, self._dice = loop, storage, dice
        self._made = 0

    @property
    def stand_ins(self) -> dict[str, Any]:
        """By the names under which the application knows what they stand in for."""

        def uuid4() -> UUID:
            return UUID(int=self._dice.getrandbits(128), version=4)

        def new_id() -> UUID:
            self._made += 1
            return UUID(int=(self._storage.now_ms() << 80) | (7 << 76) | (2 << 62) | self._made)

        by_original: dict[Any, Any] = {
            uuid.uuid4: uuid4,
            database.new_id: new_id,
            random: self._dice,
            time: _Time(self._loop),
        }
        taken = {name: by_original[original] for name, original in _taken_from_the_machine().items()}
        return {**STAND_INS, **taken}


@cache
def _taken_from_the_machine() -> dict[str, Any]:
    """Every name under which the application knows the clock, chance, and ids made of them."""
    originals = (uuid.uuid4, database.new_id, random, time)
    return {
        f"{name}.{known}": value
        for name, module in list(sys.modules.items())
        if name.startswith(("app.engine.", "app.storage."))
        for known, value in vars(module).items()
        if any(value is original for original in originals)
    }


class _Time:
    """For the module `time`: a process may have a wrong idea of the hour, but seconds last as long everywhere."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        process: Any = PROCESS.get()
        skew: float = 0.0 if process is None else process.clock_skew_seconds
        return BASE_MS / 1000 + self._loop.time() + skew
