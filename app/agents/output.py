"""Results that must fit a client's JSON Schema: whether the schema can be used, and whether an answer fits it."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import jsonschema_rs

from app.agents.json_reading import fenced, strictly, without_thoughts
from app.domain.schema_work import MAX_PATTERNS, Unusable, Work
from app.domain.text import shortened, storable
from app.llm.chat import ResponseSchema

_MAX_SCHEMA_BYTES = 32 * 1024
_MAX_DEPTH = 32
_MAX_INTEGER = 2**53
_MAX_LISTED = 20
_MAX_WORDS = 300
_BRACKETS = (("{", "}"), ("[", "]"), ('"', '"'), ("", ""))  # what is between them was meant to be JSON
# Characters looked at, see `schema_work`: within a second or two even where the schema and the answer mean harm.
_MAX_WORK = 200_000_000
_MAX_LISTING_WORK = 20_000_000
# To compile one takes up to 30 ms, during which nothing else in the process goes on.
_MAX_PATTERNS_TOGETHER = 2 * MAX_PATTERNS
# Patterns in linear time, of bounded size; nothing is fetched; formats are checked.
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=4 * 2**20)


class _Unfit(Exception):
    """The value cannot be kept; the message says why."""


def response_schema(schema: Mapping[str, Any]) -> ResponseSchema:
    """How a model is asked for such an answer; clients' schemas need not be what strict mode takes."""
    return ResponseSchema(name="result", schema=schema, strict=False)


def schema_problem(schema: Mapping[str, Any]) -> str | None:
    """Why this cannot be used as a JSON Schema (2020-12 unless `$schema` says otherwise); None when it can."""
    try:
        if len(json.dumps(schema, ensure_ascii=False).encode()) > _MAX_SCHEMA_BYTES:
            return f"It is larger than {_MAX_SCHEMA_BYTES // 1024} KiB."
        if "draft-04" in str(schema.get("$schema")):
            return "JSON Schema draft 4 is not supported; use 2020-12, 2019-09, draft-07 or draft-06."
        Work(schema)
        _validator(schema)
    except Unusable as unusable:
        return str(unusable)
    except jsonschema_rs.ValidationError as error:
        at = "".join(f"/{step}" for step in error.instance_path)
        words = shortened(storable(error.message), _MAX_WORDS)
        if words.endswith('is not a "regex"'):
            words += " that is matched in linear time: without look-around, references back and large repetitions"
        return f"At {at}: {words}" if at else words
    except (ValueError, RecursionError):
        return "It is no JSON, or nested too deeply."
    return None


class SchemasTogether:
    """The schemas of one request: equal ones are looked at once, and the patterns of the others count together."""

    def __init__(self) -> None:
        self._problems: dict[str, str | None] = {}
        self._patterns = 0

    def problem(self, schema: Mapping[str, Any]) -> str | None:
        """As `schema_problem`; of patterns past the bound none is compiled."""
        text = json.dumps(schema, sort_keys=True)
        if text not in self._problems:
            self._problems[text] = self._new_problem(schema)
        return self._problems[text]

    def _new_problem(self, schema: Mapping[str, Any]) -> str | None:
        with suppress(Unusable):
            self._patterns += Work(schema).patterns
        if self._patterns > _MAX_PATTERNS_TOGETHER:
            return f"The output schemas of the request have more than {_MAX_PATTERNS_TOGETHER} patterns together."
        return schema_problem(schema)


def read_output(text: str, schema: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The JSON value that the answer is, and None; or None, and what is wrong with it in words for the model.

    Takes JSON alone or in a single fence. Where the schema asks for a string, a text that is no JSON is that string.
    The schema is one that `schema_problem` has let pass.
    """
    try:
        value = _kept(_decoded(text, plain=schema.get("type") == "string"), depth=0)
        trouble = _misfit(value, schema)
    except (_Unfit, Unusable) as unfit:
        return None, str(unfit)
    return (None, trouble) if trouble else (value, None)


def _validator(schema: Mapping[str, Any]) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(
        dict(schema), validate_formats=True, pattern_options=_PATTERNS, retriever=_fetch_nothing
    )


def _fetch_nothing(uri: str) -> Any:
    raise ValueError("nothing is fetched")


def _decoded(text: str, *, plain: bool) -> Any:
    whole = without_thoughts(text)
    parts = fenced(whole)
    alone = parts[0] if len(parts) == 1 and whole.startswith("```") and whole.endswith("```") else whole
    try:
        return strictly(alone.strip())
    except ValueError as error:
        if plain and (alone.strip()[:1], alone.strip()[-1:]) not in _BRACKETS:
            return whole
        raise _Unfit(
            f"The answer is not one JSON value ({shortened(str(error), 100)}); answer with JSON alone."
        ) from None


def _kept(value: Any, *, depth: int) -> Any:
    """The value in text that every database takes; refuses what no JSON reader can be relied on to read back."""
    if depth > _MAX_DEPTH:
        raise _Unfit(f"The JSON is nested more than {_MAX_DEPTH} levels deep.")
    match value:
        case str():
            return storable(value)
        case dict():
            kept = {storable(name): _kept(inner, depth=depth + 1) for name, inner in value.items()}
            if len(kept) != len(value):
                raise _Unfit("A name stands twice in an object.")
            return kept
        case list():
            return [_kept(inner, depth=depth + 1) for inner in value]
        case bool() | None:
            return value
        case int() if abs(value) > _MAX_INTEGER:
            raise _Unfit("An integer is beyond 2**53 and could not be kept exactly; give it as a string if that fits.")
        case float() if not math.isfinite(value):
            raise _Unfit("A number is too large for JSON readers.")
        case _:
            return value


def _misfit(value: Any, schema: Mapping[str, Any]) -> str | None:
    """What keeps the value from fitting the schema, part by part; None when it fits."""
    work = Work(schema)
    if work.exceeds(_MAX_WORK, value, every_branch=False):
        return "The JSON is too large or too deep to be held against its schema; make it smaller."
    validator = _validator(schema)
    if validator.is_valid(value):
        return None
    if work.exceeds(_MAX_LISTING_WORK, value, every_branch=True):
        return "The JSON does not fit the schema. It is too large to list where."
    errors = validator.evaluate(value).errors()
    lines = [f"- {e['instanceLocation'] or 'the whole'}: {shortened(e['error'], _MAX_WORDS)}" for e in errors]
    lines = list(dict.fromkeys(lines))
    if len(lines) > _MAX_LISTED:
        lines[_MAX_LISTED:] = [f"- and {len(lines) - _MAX_LISTED} more like these"]
    return "\n".join(["The JSON does not fit the schema:", *lines])
