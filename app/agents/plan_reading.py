"""From a model's text to proposed tasks: strictly first, a library's repair after that, a clear problem otherwise."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from json_repair import repair_json

from app.domain.plan import PlannedTask, PlanProblem
from app.domain.text import storable

_BRACKET = re.compile(r"[{}\[\]]")
_FENCE = re.compile(r"```[a-zA-Z0-9_-]*[ \t]*\n(.*?)```", re.DOTALL)
_OPENING = re.compile(r"[{\[]")
_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_MENDABLE = re.compile(r"""\\(?=["'])|[\s,"']+""")
_QUOTE = re.compile(r"""(?<!\\)(?:\\\\)*\"""")
_OTHER_NAMES = frozenset({"dependencies", "dependsOn", "depends", "dependency", "deps", "requires", "after"})
_PYTHON_WORDS = {"None": "null", "True": "true", "False": "false"}
_PYTHON_WORD = re.compile(r"\b(?:None|True|False)\b")
# Bounds of the work that a hostile text can cause: the repair takes quadratic time on some, and the event loop waits.
_MAX_REPAIR_CHARACTERS = 10_000
_MAX_REPAIR_DEPTH = 16
_MAX_SCANNED_CHARACTERS = 5_000_000


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


class Unreadable(Exception):
    """The text is no plan; `problem` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.problem = PlanProblem(code=code, message=message, pointer="")


def read_plan(text: str) -> list[PlannedTask]:
    """The tasks that the text proposes, not yet validated as a graph.

    Takes `{"tasks": [...]}` or a bare array, alone, in a fence or within prose; ids may be integers, a single
    dependency a bare string, a task without dependencies may leave them out. Raises `Unreadable` (`not_json`,
    `no_tasks`).
    """
    plans = [value for value in _values(text) if _tasks_in(value) is not None]
    if not plans:
        raise Unreadable("no_tasks", 'The JSON holds no list of tasks; answer {"tasks": [...]}.')
    if any(other != plans[0] for other in plans[1:]):
        raise Unreadable("not_json", "The answer holds more than one plan; give a single JSON object.")
    return [_task(entry, n) for n, entry in enumerate(_tasks_in(plans[0]) or [])]


def _values(text: str) -> list[Any]:
    """The JSON values of the text, from the strictest reading that finds any."""
    whole = _THOUGHTS.sub("", text.removeprefix("\ufeff")).strip()
    with suppress(ValueError, RecursionError):
        return [_STRICT.decode(whole)]
    found: list[Any] = []
    if not whole.startswith("<think>"):  # thoughts that never end are no answer
        for part in _FENCE.findall(whole) or [whole]:
            values = _embedded(part) or _repaired(part)
            if not values:
                break
            found += values
        else:
            return found
    raise Unreadable("not_json", "The answer is not JSON, or ends before its JSON does; answer with JSON only.")


def _embedded(text: str) -> list[Any]:
    """The plans that stand whole in the text; none where anything else in it could be a part of one.

    What is left of the text must close its own brackets, and may hold no other objects: those would be pieces of a plan
    that is damaged, or that was closed too early.
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
                if not _tasks_in(value) or left_open != 0:
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


def _tasks_in(value: Any) -> list[Any] | None:
    if isinstance(value, dict) and isinstance(value.get("tasks"), list):
        return list(value["tasks"])
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return value
    return None


def _task(entry: Any, index: int) -> PlannedTask:
    """The entry as a task; where a field has the wrong type, validation will name it as empty or invalid."""
    fields = entry if isinstance(entry, dict) else {}
    description = fields.get("description")
    if "depends_on" not in fields and (other := _OTHER_NAMES.intersection(fields)):
        # Read as a task without dependencies, it would start before what it needs.
        raise Unreadable("not_json", f"Task {index + 1}: say `depends_on`, not `{min(other)}`.")
    needs = fields.get("depends_on")
    listed = [needs] if isinstance(needs, str | int) and not isinstance(needs, bool) else needs
    if listed is not None and not isinstance(listed, list):
        raise Unreadable("not_json", f"Task {index + 1}: depends_on is not a list of ids.")
    return PlannedTask(
        id=_id(fields.get("id")),
        description=storable(description) if isinstance(description, str) else "",
        depends_on=tuple(dict.fromkeys(_id(dependency) for dependency in listed or ())),
    )


def _id(value: Any) -> str:
    """Strings as they are, integers in digits; anything else is no id, which validation reports."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**100:
        return str(value)
    return ""
