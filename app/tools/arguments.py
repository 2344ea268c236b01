"""The arguments that a model gives a tool: read strictly, held against the tool's schema, and written in one way."""

import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

import jsonschema_rs

from app.domain.errors import ToolFailed, ToolRetry
from app.domain.schema_work import Unusable, Work
from app.domain.text import is_storable, shortened, storable
from app.tools.tool import ToolSpec

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_INTEGER = 2**53
MAX_PROBLEMS = 5
MAX_SCHEMA_BYTES = 64 * 1024

_MAX_INTEGER_DIGITS = len(str(MAX_INTEGER))
_MAX_WORDS = 300
# Characters looked at, see `schema_work`: well within a second even where the schema and the arguments mean harm.
_MAX_WORK = 50_000_000
_MAX_LISTING_WORK = 10_000_000
# Patterns in linear time, of bounded size; nothing is fetched. Formats are for the tool: most are notes, not rules.
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=4 * 2**20)


def read_arguments(spec: ToolSpec, text: str) -> dict[str, Any]:
    """The arguments in a model's text, valid against the tool's schema; an empty text means none.

    Raises `ToolRetry` (`bad_arguments`) with what is wrong in words for the model, and `ToolFailed` (`bad_schema`)
    where nothing can be held against the schema (see `schema_problem`).
    """
    arguments = _decoded(text)
    if not isinstance(arguments, dict):
        raise _bad("The arguments must be one JSON object, such as {} where there are none.")
    if _is_too_deep(arguments):
        raise _bad(_TOO_DEEP)
    problems = list(islice(_unkept(arguments, ""), MAX_PROBLEMS))
    if problems:
        raise _bad("\n".join(["The arguments cannot be used:", *problems]))
    trouble = _misfit(spec, arguments)
    if trouble:
        raise _bad(trouble)
    return arguments


def canonical(arguments: Mapping[str, Any]) -> str:
    """The arguments as JSON that is the same for the same arguments, whatever their order and way of writing (1, 1.0).

    ASCII only.
    """
    return json.dumps(_plain(arguments), sort_keys=True, separators=(",", ":"))


def schema_problem(schema: Mapping[str, Any]) -> str | None:
    """Why no arguments can be held against this schema (JSON Schema, 2020-12 unless it says otherwise), or None."""
    try:
        written = json.dumps(dict(schema), allow_nan=False)
        if len(written) > MAX_SCHEMA_BYTES:
            return f"It is larger than {MAX_SCHEMA_BYTES // 1024} KiB."
        _compiled(written)
    except Unusable as unusable:
        return str(unusable)
    except jsonschema_rs.ValidationError as error:
        return f"At {pointer(*error.instance_path) or 'the top'}: {shortened(storable(error.message), _MAX_WORDS)}"
    except (TypeError, ValueError, RecursionError):
        return "It is no JSON Schema, or nested too deeply."
    return None


def pointer(*path: str | int) -> str:
    """The JSON pointer (RFC 6901) to this place."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


_TOO_DEEP = f"The arguments are nested more than {MAX_DEPTH} levels deep."


def _bad(message: str) -> ToolRetry:
    return ToolRetry(message, kind="bad_arguments", may_have_acted=False)


class _BadNumber(ValueError):
    """No double and no integer that every reader keeps; the message says why."""


_INTEGER_TOO_LARGE = "Integers go from -(2**53) to 2**53; give a larger one as text if that fits."


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_INTEGER_DIGITS or abs(int(text)) > MAX_INTEGER:
        raise _BadNumber(f"The integer {shortened(text, 40)} is too large. {_INTEGER_TOO_LARGE}")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _BadNumber(f"The number {shortened(text, 40)} is too large.")
    return value


def _constant(name: str) -> Any:
    raise _BadNumber(f"{name} is not JSON; numbers are finite.")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _BadNumber("A name stands twice in an object; give each once.")
    return found


# Not `strict`: models write line breaks into strings as they are.
_DECODER = json.JSONDecoder(
    strict=False,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_constant,
    object_pairs_hook=_without_twins,
)


def _decoded(text: str) -> Any:
    if len(text) > MAX_BYTES or len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise _bad(f"The arguments are larger than {MAX_BYTES // 1024} KiB; give less.")
    if not text.strip():
        return {}
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise _bad(f"The arguments are not one JSON object ({where}); give JSON alone.") from None
    except _BadNumber as error:
        raise _bad(storable(str(error))) from None
    except RecursionError:
        raise _bad(_TOO_DEEP) from None


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _unkept(value: Any, at: str) -> Iterator[str]:
    """What no database keeps, wherever it is; the depth has been checked before."""
    match value:
        case dict():
            for name, inner in value.items():
                if not is_storable(name):
                    yield _line(at + pointer(name), "The name holds NUL or half of a surrogate pair; leave that out.")
                yield from _unkept(inner, at + pointer(name))
        case list():
            for index, inner in enumerate(value):
                yield from _unkept(inner, f"{at}/{index}")
        case str() if not is_storable(value):
            yield _line(at, "The text holds NUL or half of a surrogate pair; leave that out.")
        case _:
            pass


def _line(at: str, message: str) -> str:
    return f"- {shortened(storable(at), _MAX_WORDS) or 'the whole'}: {shortened(storable(message), _MAX_WORDS)}"


def _misfit(spec: ToolSpec, arguments: dict[str, Any]) -> str | None:
    """What keeps the arguments from fitting the tool's schema; None when they fit."""
    problem = schema_problem(spec.input_schema)
    if problem is not None:
        raise ToolFailed(f"The schema of {spec.name} cannot be used.", kind="bad_schema", may_have_acted=False)
    validator, work = _compiled(json.dumps(dict(spec.input_schema), allow_nan=False))
    if work.exceeds(_MAX_WORK, arguments, every_branch=False):
        return "The arguments are too large or too deep for this tool; give less."
    if validator.is_valid(arguments):
        return None
    if work.exceeds(_MAX_LISTING_WORK, arguments, every_branch=True):
        return "The arguments do not fit the tool's schema; they are too large to list where."
    errors = validator.evaluate(arguments).errors()
    lines = list(dict.fromkeys(_line(error["instanceLocation"], error["error"]) for error in errors))
    more = [f"- and {len(lines) - MAX_PROBLEMS} more"] if len(lines) > MAX_PROBLEMS else []
    return "\n".join(["The arguments do not fit the tool's schema:", *lines[:MAX_PROBLEMS], *more])


@lru_cache(maxsize=512)
def _compiled(schema: str) -> tuple[jsonschema_rs.Validator, Work]:
    """By the schema's text: a tool that is listed again with another schema gets another validator."""
    read = json.loads(schema)
    work = Work(read)
    return jsonschema_rs.validator_for(read, pattern_options=_PATTERNS, retriever=_fetch_nothing), work


def _fetch_nothing(uri: str) -> Any:
    raise ValueError("nothing is fetched")


def _plain(value: Any) -> Any:
    """Numbers that are equal in one shape."""
    match value:
        case Mapping():
            return {name: _plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case float() if value.is_integer() and abs(value) <= MAX_INTEGER:
            return int(value)
        case _:
            return value
