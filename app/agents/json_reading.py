"""From a model's text to the JSON in it: strictly first, a library's repair after that, a clear problem otherwise."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from json_repair import repair_json

from app.domain.plan import PlanProblem

_BRACKET = re.compile(r"[{}\[\]]")
_FENCE = re.compile(r"```[a-zA-Z0-9_-]*[ \t]*\n(.*?)```", re.DOTALL)
_OPENING = re.compile(r"[{\[]")
_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_MENDABLE = re.compile(r"""\\(?=["'])|[\s,"']+""")
_QUOTE = re.compile(r"""(?<!\\)(?:\\\\)*\"""")
_PYTHON_WORDS = {"None": "null", "True": "true", "False": "false"}
_PYTHON_WORD = re.compile(r"\b(?:None|True|False)\b")
# Bounds of the work that a hostile text can cause: the repair takes quadratic time on some, and the event loop waits.
_MAX_REPAIR_CHARACTERS = 10_000
_MAX_REPAIR_DEPTH = 16
_MAX_SCANNED_CHARACTERS = 5_000_000

AnswerIn = Callable[[Any], Any]
"""What a JSON value holds of the answer that is looked for: None where it is none, something empty where it says so
little that it is taken only when nothing stands around it."""


class Unreadable(Exception):
    """The text is no answer; `problem` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.problem = PlanProblem(code=code, message=message, pointer="")


def _refuse(why: str) -> Any:
    raise ValueError(why)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that says something twice: which of the two is meant cannot be known."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _with_plain_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a repaired object with a name that is no word: a stray quote has become a part of it."""
    if not all(name.isidentifier() for name, _ in pairs):
        raise ValueError("a name holds punctuation")
    return _without_twins(pairs)


def _decoder(of_object: Callable[[list[tuple[str, Any]]], dict[str, Any]]) -> json.JSONDecoder:
    # Not `strict`: models write line breaks into strings as they are.
    return json.JSONDecoder(
        strict=False, parse_constant=lambda name: _refuse(f"{name} is not JSON"), object_pairs_hook=of_object
    )


_STRICT = _decoder(_without_twins)
_STRICT_WITH_PLAIN_NAMES = _decoder(_with_plain_names)


def without_thoughts(text: str) -> str:
    """The text without a byte order mark, outer space, and thoughts that stand before the answer."""
    return _THOUGHTS.sub("", text.removeprefix("\ufeff")).strip()


def fenced(text: str) -> list[str]:
    """What stands in the fences of the text."""
    return _FENCE.findall(text)


def strictly(text: str) -> Any:
    """The one JSON value that the text is. Raises `ValueError`, also for names that stand twice in an object."""
    try:
        return _STRICT.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_answer(text: str, answer_in: AnswerIn, *, word: str) -> Any:
    """The JSON value of the text that is an answer; None where its JSON is something else.

    Taken alone, in a fence or within prose, mended where that loses nothing. Raises `Unreadable` (`not_json`), also
    where the text holds several different ones; `word` says what it is that there may be one of.
    """
    answers = [value for value in _values(text, answer_in) if answer_in(value) is not None]
    with suppress(RecursionError):  # too deep to be compared
        if all(other == answers[0] for other in answers[1:]):
            return answers[0] if answers else None
    raise Unreadable("not_json", f"The answer holds more than one {word}; give a single JSON object.")


def _values(text: str, answer_in: AnswerIn) -> list[Any]:
    """The JSON values of the text, from the strictest reading that finds any."""
    whole = without_thoughts(text)
    with suppress(ValueError):
        return [strictly(whole)]
    found: list[Any] = []
    if not whole.startswith("<think>"):  # thoughts that never end are no answer
        for part in fenced(whole) or [whole]:
            parts = _embedded(part, answer_in) or _repaired(part)
            if not parts:
                break
            found += parts
        else:
            return found
    raise Unreadable("not_json", "The answer is not JSON, or ends before its JSON does; answer with JSON only.")


def _embedded(text: str, answer_in: AnswerIn) -> list[Any]:
    """The answers that stand whole in the text; none where anything else in it could be a part of one.

    What is left of the text must close its own brackets, and may hold no other objects: those would be pieces of an
    answer that is damaged, or that was closed too early.
    """
    found: list[Any] = []
    at = damages = left_open = 0
    while damages * len(text) < _MAX_SCANNED_CHARACTERS:
        match = _OPENING.search(text, at)
        if match is None:
            break
        left_open += _balance(text[at : match.start()])
        try:
            value, at = _STRICT.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            at = match.end()
            left_open, damages = left_open + 1, damages + 1
        else:
            if _holds_objects(value):
                if not answer_in(value) or left_open != 0:
                    return []
                found.append(value)
    return found if left_open + _balance(text[at:]) == 0 else []


def _repaired(text: str) -> list[Any]:
    """The text's JSON with its commas and quotes mended; nothing where a repair would take or make anything else.

    json-repair always returns something. Its work is taken only if all that is no comma, quote or space is as it was:
    so no word is lost, and no bracket that a text which ended early left open is closed.
    """
    start = min((n for n in (text.find("{"), text.find("[")) if n >= 0), default=-1)
    piece = text[start : max(text.rfind("}"), text.rfind("]")) + 1] if start >= 0 else ""
    if not 0 < len(piece) <= _MAX_REPAIR_CHARACTERS or _balance(piece) != 0 or _depth(piece) > _MAX_REPAIR_DEPTH:
        return []
    if len(_QUOTE.findall(piece)) % 2:  # a text is open at its end, or begins where nobody can tell
        return []
    try:
        written = json.dumps(repair_json(piece, return_objects=True), ensure_ascii=False)
        repaired = _STRICT_WITH_PLAIN_NAMES.decode(written)
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        return []
    return [repaired] if _kept(written) == _kept(piece) else []


def _kept(text: str) -> str:
    """What a repair must leave alone."""
    return _MENDABLE.sub("", _PYTHON_WORD.sub(lambda word: _PYTHON_WORDS[word[0]], text))


def _balance(text: str) -> int:
    """How many brackets are left open; quotes are too broken to heed."""
    return sum(text.count(c) for c in "{[") - sum(text.count(c) for c in "}]")


def _depth(text: str) -> int:
    """How deep the brackets nest at the deepest; quotes are too broken to heed."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        depth += 1 if bracket in "{[" else -1
        deepest = max(deepest, depth)
    return deepest


def _holds_objects(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(entry, dict) for entry in value))
