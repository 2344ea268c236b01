"""What of a request stands outside the blocks that a run's mark sets apart."""

import re
from collections.abc import Iterator
from typing import Any

from app.agents.briefing import mark, visible
from tests.scripted_model import Call


def outside(content: str, run_mark: str) -> list[str]:
    """The lines outside all blocks; fails where a block holds the mark, is not closed, or is not opened."""
    lines: list[str] = []
    inside: str | None = None
    for line in content.split("\n"):
        opens = re.fullmatch(rf'<([a-z]+)-{run_mark}(?: task=".*")?>', line)
        if inside is None and opens is not None:
            inside = opens[1]
        elif inside is not None and line == f"</{inside}-{run_mark}>":
            inside = None
        else:
            assert run_mark not in line.lower(), f"a mark out of place: {line!r}"
            if inside is None and line:
                lines.append(line)
    assert inside is None, f"a block of {inside} is not closed"
    return lines


def said_outside(call: Call) -> list[str]:
    """Of a request, what users and tools say outside of blocks; fails where anything invisible is said at all."""
    found: list[str] = []
    for message in _from_outside(call):
        assert visible(message["content"]) == message["content"], "what nobody sees is in a request"
        found += outside(message["content"], mark(call.run_id))
    for tool in call.tools.values():
        assert visible(tool["description"]) == tool["description"]
    return found


def _from_outside(call: Call) -> Iterator[dict[str, Any]]:
    yield from (message for message in call.messages if message["role"] in ("user", "tool"))
