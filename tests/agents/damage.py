"""Texts with one wrong punctuation character, which must not be read as if they said something else."""

import json


def damaged(text: str) -> list[str]:
    """The text with each of its punctuation characters left out, and with others put in everywhere."""
    out = [text[:n] + text[n + 1 :] for n, c in enumerate(text) if not (c.isalnum() or c.isspace() or c == "_")]
    # Behind a backslash, another character would be an escape of its own: another text, not a damaged one.
    places = [n for n in range(len(text) + 1) if text[:n][-1:] != "\\"]
    return out + [text[:n] + c + text[n:] for n in places for c in "{}[]\",:'\\."]


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
