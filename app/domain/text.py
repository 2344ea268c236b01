"""Text from outside made storable: every database and every JSON reader must accept what we keep."""

import re

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """The text with NUL and lone surrogates, which PostgreSQL and UTF-8 refuse, replaced by U+FFFD."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def is_storable(text: str) -> bool:
    """Whether a client's text can be kept as it is."""
    return _UNSTORABLE.search(text) is None


def says_nothing(text: str) -> bool:
    """Whether there is nothing but space and dots: `...` is how examples leave room for words, and echoes repeat it."""
    return all(character.isspace() or character in ".…" for character in text)


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters: whole, or the head followed by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
