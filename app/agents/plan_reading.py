"""From a model's text to proposed tasks: strictly first, a library's repair after that, a clear problem otherwise."""

import json
import re
from collections.abc import Iterator
from typing import Any

from json_repair import repair_json

from app.domain.plan import PlannedTask, PlanProblem
from app.domain.text import storable

_FENCE = re.compile(r"```[a-zA-Z0-9_-]*[ \t]*\n(.*?)```", re.DOTALL)
_BRACKET = re.compile(r"[{}\[\]]")
_OPENING = re.compile(r"[{\[]")
_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_WORD_CHARACTERS = re.compile(r"\w+")
# Bounds of the work that a hostile text can cause: the repair takes quadratic time on some, and the event loop waits.
_MAX_REPAIR_CHARACTERS = 40_000
_MAX_REPAIR_DEPTH = 16
_MAX_OPENINGS = 100


def _refuse(why: str) -> Any:
    raise ValueError(why)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that says something twice: which of the two is meant cannot be known."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


_STRICT = json.JSONDecoder(parse_constant=lambda name: _refuse(f"{name} is not JSON"), object_pairs_hook=_without_twins)


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
    try:
        return [_strict(whole)]
    except (ValueError, RecursionError):
        pass
    candidates = [*_FENCE.findall(whole), whole]
    for candidate in candidates:
        if found := list(_embedded(candidate)):
            return found
    for candidate in candidates:
        if (repaired := _repaired(candidate)) is not None:
            return [repaired]
    raise Unreadable("not_json", "The answer is not JSON, or ends before its JSON does; answer with JSON only.")


def _strict(text: str) -> Any:
    return _STRICT.decode(text.strip())


def _embedded(text: str) -> Iterator[Any]:
    """Every JSON value that stands whole in the text and holds tasks."""
    at, damaged = 0, False
    for _ in range(_MAX_OPENINGS):
        if (match := _OPENING.search(text, at)) is None:
            return
        try:
            value, at = _STRICT.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            at, damaged = match.end(), True
            continue
        # Behind something damaged, a bare array may be a piece of it and must not pass for the whole.
        if _tasks_in(value) and (isinstance(value, dict) or not damaged):
            yield value


def _repaired(text: str) -> Any | None:
    """The text's JSON with its punctuation mended, or None where mending would add, drop or change a word.

    json-repair always returns something; this keeps it to repairs that lose nothing, and off texts that end early.
    """
    start = min((n for n in (text.find("{"), text.find("[")) if n >= 0), default=-1)
    end = max(text.rfind("}"), text.rfind("]")) + 1
    if start < 0 or end <= start or end - start > _MAX_REPAIR_CHARACTERS:
        return None
    piece = text[start:end]
    if _WORD_CHARACTERS.search(text[end:]) and text.rstrip().endswith((",", ":", '"')):
        return None
    if _balance(piece) != 0 or _depth(piece) > _MAX_REPAIR_DEPTH:
        return None
    try:
        repaired = repair_json(piece, return_objects=True)
        written = json.dumps(repaired, ensure_ascii=False)
        _strict(written)
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        return None
    return repaired if _words(written) == _words(piece) else None


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


def _words(text: str) -> list[str]:
    return _WORD_CHARACTERS.findall(text.replace("\\n", " ").replace("\\t", " ").replace("\\", "").casefold())


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
