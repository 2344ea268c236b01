"""Migrates a database and stands still at a statement: `python -m tests.storage.migrating URL NUMBER`.

It says "at NUMBER" before the migration's statement of this number, the commit being the last, and waits to be killed.
"""

import sys
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from app.storage import migrate

_CHANGING = ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE")


def upgrade(url: str, at_statement: Callable[[int], object]) -> int:
    """Upgrade it, calling `at_statement` before each; how many there were."""
    seen = 0

    def step(*_: object) -> None:
        nonlocal seen
        seen += 1
        at_statement(seen)

    def before(connection: object, cursor: object, text: str, *_: object) -> None:
        if text.lstrip().split(None, 1)[0].upper() in _CHANGING:
            step()

    listeners: list[tuple[str, Callable[..., Any]]] = [("before_cursor_execute", before), ("commit", step)]
    for name, listener in listeners:
        sa.event.listen(sa.Engine, name, listener)
    try:
        migrate.upgrade(url)
    finally:
        for name, listener in listeners:
            sa.event.remove(sa.Engine, name, listener)
    return seen


def _stand_still(number: int) -> None:
    if number == int(sys.argv[2]):
        print(f"at {number}", flush=True)  # noqa: T201 - whoever started it reads this
        sys.stdin.readline()


if __name__ == "__main__":
    upgrade(sys.argv[1], _stand_still)
