"""Arguments of tools: what is let in from a model's text, what the model is told, and one way to write them."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import ToolFailed, ToolRetry
from app.tools.arguments import MAX_BYTES, MAX_DEPTH, MAX_INTEGER, canonical, read_arguments, schema_problem
from app.tools.tool import ToolSpec
from tests.patience import bounded

ANYTHING: dict[str, Any] = {"type": "object"}
TRIP = {
    "type": "object",
    "properties": {"city": {"type": "string", "minLength": 2}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}


def spec(schema: dict[str, Any]) -> ToolSpec:
    return ToolSpec(name="t", description="d", input_schema=schema)


def read(text: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return read_arguments(spec(ANYTHING if schema is None else schema), text)


def refusal(text: str, schema: dict[str, Any] | None = None) -> str:
    with pytest.raises(ToolRetry) as caught:
        read(text, schema)
    assert caught.value.kind == "bad_arguments"
    assert not caught.value.may_have_acted
    assert len(caught.value.message) < 5_000
    caught.value.message.encode()
    return caught.value.message


# Reading.


@pytest.mark.parametrize("text", ["", " \n", "{}", " {} "])
def test_no_text_means_no_arguments(text: str) -> None:
    assert read(text) == {}


@pytest.mark.parametrize("text", ["[]", "1", '"a"', "null", "true"])
def test_what_is_no_object_is_refused(text: str) -> None:
    assert "one JSON object" in refusal(text)


@pytest.mark.parametrize(
    "text", ["{", "{} {}", '{"a": 1,}', "{'a': 1}", "a=1", "```json\n{}\n```", "\ufeff{}", "{\x00}"]
)
def test_what_is_not_json_is_refused_with_the_place(text: str) -> None:
    assert "line " in refusal(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_are_finite(number: str) -> None:
    assert number in refusal(f'{{"a": [{number}]}}')


@pytest.mark.parametrize("number", [MAX_INTEGER + 1, -MAX_INTEGER - 1, 10**300, int("9" * 4000)])
def test_integers_beyond_2_to_53_are_refused(number: int) -> None:
    assert "2**53" in refusal(f'{{"a": {number}}}')


def test_an_integer_of_very_many_digits_is_refused_at_once() -> None:
    with bounded(seconds=20):
        assert "2**53" in refusal('{"a": %s}' % ("9" * 200_000))


@pytest.mark.parametrize("number", [MAX_INTEGER, -MAX_INTEGER, 0])
def test_integers_up_to_2_to_53_are_kept(number: int) -> None:
    assert read(f'{{"a": {number}}}') == {"a": number}


@pytest.mark.parametrize("text", [r'{"a": "\u0000"}', r'{"a": ["\ud800"]}', r'{"b": {"\udfff": 1}}', '{"a": "\ud800"}'])
def test_text_that_cannot_be_kept_is_refused(text: str) -> None:
    assert "surrogate" in refusal(text)


def test_a_surrogate_pair_is_a_character() -> None:
    assert read(r'{"a": "\ud83d\ude00"}') == {"a": "\U0001f600"}


def test_the_place_of_what_cannot_be_kept_is_told() -> None:
    assert "- /a~1b/1: The text" in refusal(r'{"a/b": ["", "\u0000"]}')


def test_a_name_may_not_stand_twice() -> None:
    assert "twice" in refusal('{"a": 1, "a": 2}')
    assert "twice" in refusal('{"b": {"a": 1, "a": 1}}')


def nested(levels: int) -> str:
    return '{"a":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


def test_the_depth_is_bounded() -> None:
    assert read(nested(MAX_DEPTH))
    assert "32 levels" in refusal(nested(MAX_DEPTH + 1))
    assert "32 levels" in refusal(nested(100_000))


def test_the_size_is_bounded_in_bytes() -> None:
    room = MAX_BYTES - len('{"a":""}')
    assert read('{"a":"%s"}' % ("x" * room))
    assert "256 KiB" in refusal('{"a":"%s"}' % ("x" * (room + 1)))
    assert "256 KiB" in refusal('{"a":"%s"}' % ("\u00e9" * (room // 2 + 1)))


def test_line_breaks_in_strings_are_taken_as_models_write_them() -> None:
    assert read('{"a": "b\nc"}') == {"a": "b\nc"}


# The schema.


def test_arguments_that_fit_are_given() -> None:
    assert read('{"city": "Rome", "days": 3}', TRIP) == {"city": "Rome", "days": 3}


def test_every_fault_is_named_with_its_place() -> None:
    message = refusal('{"city": "R", "days": "3", "more": 1}', TRIP)
    assert "- /city: " in message
    assert "- /days: " in message
    assert "'more'" in message


def test_a_missing_argument_is_named() -> None:
    assert '"city" is a required property' in refusal("{}", TRIP)


def test_at_most_five_faults_are_listed() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    message = refusal(json.dumps({f"n{n}": "x" for n in range(9)}), schema)
    assert message.count("\n- /n") == 5
    assert message.endswith("- and 4 more")


def test_long_values_are_not_repeated_at_length() -> None:
    assert len(refusal('{"days": "%s", "city": "ok"}' % ("x" * 100_000), TRIP)) < 1_000


def test_a_changed_schema_is_another_schema() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert read('{"a": 1}', schema)
    schema["properties"]["a"] = {"type": "string"}
    assert "- /a: " in refusal('{"a": 1}', schema)


def branching(depth: int) -> dict[str, Any]:
    again = {"$ref": "#/$defs/e"}
    branches = [
        {"type": "object", "properties": {"o": {"const": n}, "l": again, "r": again}, "required": ["o", "l", "r"]}
        for n in range(4)
    ]
    assert depth
    return {"type": "object", "properties": {"e": again}, "$defs": {"e": {"anyOf": [{"type": "number"}, *branches]}}}


def test_a_schema_that_branches_without_end_does_not_freeze_the_process() -> None:
    value: Any = "wrong"
    for _ in range(MAX_DEPTH - 3):
        value = {"o": 3, "l": value, "r": 1}
    with bounded(seconds=60):
        assert "do not fit" in refusal(json.dumps({"e": value}), branching(4))


def test_a_hostile_pattern_takes_linear_time() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    with bounded(seconds=60):
        refusal('{"a": "%s!"}' % ("a" * 100_000), schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"type": "object", "properties": {"a": {"pattern": "(?=a)b"}}},
        {"type": "object", "properties": {"a": {"pattern": "("}}},
        {"$ref": "https://example.org/schema.json"},
        {"$ref": "#"},
        {"type": "object", "description": "x" * 70_000},
        {"type": "object", "default": math.nan},
        {"type": "object", "default": object()},
    ],
    ids=range(8),
)
def test_a_schema_that_cannot_be_used_is_no_fault_of_the_model(schema: dict[str, Any]) -> None:
    assert schema_problem(schema)
    with pytest.raises(ToolFailed) as caught:
        read("{}", schema)
    assert caught.value.kind == "bad_schema"
    assert not caught.value.may_have_acted


def test_a_usable_schema_has_no_problem() -> None:
    assert schema_problem(TRIP) is None
    assert schema_problem({}) is None


# Properties.

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | texts
    | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
objects = st.dictionaries(texts, values, max_size=5)


@given(objects, st.booleans())
def test_any_object_that_json_can_hold_is_read_as_it_is(arguments: dict[str, Any], escaped: bool) -> None:
    assert read(json.dumps(arguments, ensure_ascii=escaped)) == arguments


@given(st.text(max_size=60) | st.text(alphabet='{}[]",:0123456789.eE-+truefalsn\\u ', max_size=60))
def test_any_text_is_an_object_or_a_refusal(text: str) -> None:
    try:
        found = read(text)
    except ToolRetry as refused:
        refused.message.encode()
    else:
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


def shuffled(value: Any) -> Any:
    """The same with its members the other way round, and numbers written the other way."""
    match value:
        case dict():
            return {name: shuffled(inner) for name, inner in reversed(value.items())}
        case list():
            return [shuffled(inner) for inner in value]
        case int() if not isinstance(value, bool) and abs(value) < MAX_INTEGER:
            return float(value)
        case float() if value.is_integer() and abs(value) < MAX_INTEGER:
            return int(value)
        case _:
            return value


def typed(value: Any) -> Any:
    """Comparable as JSON: true is not 1, but 1.0 is."""
    match value:
        case bool():
            return ("bool", value)
        case dict():
            return {name: typed(inner) for name, inner in value.items()}
        case list():
            return [typed(inner) for inner in value]
        case _:
            return value


@given(objects)
def test_the_canonical_form_heeds_neither_order_nor_notation(arguments: dict[str, Any]) -> None:
    assert canonical(shuffled(arguments)) == canonical(arguments)


@given(objects)
def test_the_canonical_form_says_the_same_and_is_its_own(arguments: dict[str, Any]) -> None:
    written = canonical(arguments)
    assert written.isascii()
    assert typed(json.loads(written)) == typed(arguments)
    assert canonical(json.loads(written)) == written


@given(objects, objects)
def test_different_arguments_have_different_canonical_forms(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (canonical(one) == canonical(other)) == (typed(one) == typed(other))


@pytest.mark.parametrize(("one", "other"), [(1, True), (0, False), ("1", 1), (None, "null"), ([], {}), (0.1, 0.2)])
def test_what_only_looks_alike_is_told_apart(one: Any, other: Any) -> None:
    assert canonical({"a": one}) != canonical({"a": other})
    assert canonical({"a": 0.0}) == canonical({"a": -0.0}) == canonical({"a": 0})
