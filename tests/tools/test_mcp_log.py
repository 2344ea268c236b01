"""What a child process writes to stderr, in whatever pieces it comes."""

import asyncio

import pytest
from structlog.testing import capture_logs

from app.tools.mcp_transport import _log_lines

SECRET = "s3cret-of-docs"


async def logged(*pieces: bytes) -> list[str]:
    """The lines that come of these pieces, each read before the next one is there."""
    reader = asyncio.StreamReader()
    with capture_logs() as entries:
        reading = asyncio.create_task(_log_lines("docs", [SECRET], reader))
        for piece in pieces:
            reader.feed_data(piece)
            while reader._buffer:  # type: ignore[attr-defined]  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0)
        reader.feed_eof()
        await reading
    return [entry["line"] for entry in entries]


async def test_a_secret_that_comes_in_two_pieces_is_not_logged() -> None:
    assert await logged(b"key s3cret-", b"of-docs!\nnext\n") == ["key [redacted]!", "next"]


async def test_a_letter_that_comes_in_two_pieces_is_one() -> None:
    assert await logged("Zü".encode()[:2], "ü".encode()[1:] + b"rich\n") == ["Zürich"]


async def test_what_does_not_end_is_logged_at_the_end() -> None:
    assert await logged(b"last words") == ["last words"]


@pytest.mark.parametrize("piece", [b"x" * 2**16, b"x" * 10_000])
async def test_a_line_without_an_end_is_not_kept_for_ever(piece: bytes) -> None:
    lines = await logged(*[piece] * 20)
    assert len(lines) > 1
    assert all(len(line) <= 1_000 for line in lines)
