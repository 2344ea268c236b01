"""Results that must fit a client's schema: which schemas can be used, and which answers fit."""

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.agents.output import read_output, response_schema, schema_problem
from tests.patience import bounded

ROUTE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2},
        "days": {"type": "integer", "minimum": 1},
        "stops": {"type": "array", "items": {"$ref": "#/$defs/stop"}},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"stop": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
}
TREE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name"],
    "additionalProperties": False,
}
ANY_JSON = {
    "$ref": "#/$defs/json",
    "$defs": {
        "json": {
            "type": ["null", "boolean", "number", "string", "array", "object"],
            "items": {"$ref": "#/$defs/json"},
            "additionalProperties": {"$ref": "#/$defs/json"},
        }
    },
}


def expression(operators: int) -> dict[str, Any]:
    """Numbers, and operations on expressions: each operator is a branch of its own that holds the same again."""
    again = {"$ref": "#/$defs/expression"}
    operations = [
        {
            "type": "object",
            "properties": {"operator": {"const": f"o{n}"}, "left": again, "right": again},
            "required": ["operator", "left", "right"],
            "additionalProperties": False,
        }
        for n in range(operators)
    ]
    return {"$ref": "#/$defs/expression", "$defs": {"expression": {"anyOf": [{"type": "number"}, *operations]}}}


def nested(depth: int, *, operators: int, last: Any = 1) -> Any:
    value = last
    for _ in range(depth):
        value = {"operator": f"o{operators - 1}", "left": value, "right": 1}
    return value


def chain(count: int, applies: Any) -> dict[str, Any]:
    """`d0` applies `d1`, which applies `d2`, and so on; the last is a string."""
    links = {f"d{n}": applies({"$ref": f"#/$defs/d{n + 1}"}) for n in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{count}": {"type": "string"}}}


def trouble(answer: Any, schema: dict[str, Any]) -> str:
    value, wrong = read_output(answer if isinstance(answer, str) else json.dumps(answer), schema)
    assert value is None
    assert wrong is not None
    return wrong


# Schemas.


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string"},
        {"type": ["string", "null"], "format": "date"},
        {"format": "a-format-that-nobody-knows", "x-note": "mine"},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.com/route", **ROUTE},
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {}}, "$ref": "#/definitions/a"},
        {
            "$defs": {"a/b c%": {"$anchor": "here"}},
            "items": {"$ref": "#/$defs/a~1b%20c%25"},
            "contains": {"$ref": "#here"},
        },
        {"properties": {"$id": {"type": "string"}, "$ref": {"type": "string"}, "$schema": {"type": "string"}}},
        {"pattern": r"^[\w.+-]{1,64}@(?:[a-z0-9-]+\.)+\pL{2,}$"},
        {"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": False, "not": {"required": ["c"]}},
        {"dependentSchemas": {"a": {"required": ["b"]}}, "propertyNames": {"maxLength": 3}},
        ROUTE,
        TREE,
        ANY_JSON,
        expression(12),
        chain(200, lambda inner: inner),
    ],
)
def test_an_ordinary_schema_can_be_used(schema: dict[str, Any]) -> None:
    assert schema_problem(schema) is None


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, 'At /type: "strin" is not valid'),
        ({"properties": {"a": {"minLength": -1}}}, "At /properties/a/minLength: -1 is less"),
        ({"properties": ["a"]}, 'At /properties: ["a"] is not of type "object"'),
        ({"items": [{}]}, "At /items: "),
        ({"pattern": "("}, 'At /pattern: "(" is not a "regex"'),
        ({"pattern": "(?=a)"}, "without look-around"),
        ({"pattern": "(a)\\1"}, "without look-around, references back"),
        ({"pattern": "a{1000}{1000}"}, "large repetitions"),
        ({"$ref": "#/$defs/nowhere"}, "Pointer '/$defs/nowhere' does not exist"),
        ({"$ref": "https://example.com/other.json"}, "'https://example.com/other.json'; only references within"),
        ({"items": {"$ref": "file:///etc/passwd"}}, "only references within the schema"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "only references within the schema"),
        ({"$schema": "https://example.com/mine"}, "Unknown meta-schema"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "draft 4 is not supported"),
        ({"properties": {"a": {"$id": "https://example.com/a"}}}, "`$id`"),
        ({"$defs": {"a": {"$schema": "http://json-schema.org/draft-04/schema#", "id": "x"}}}, "`$schema`"),
        ({"description": "x" * 33_000}, "larger than 32 KiB"),
    ],
)
def test_a_schema_that_cannot_be_used_is_told_why(schema: dict[str, Any], words: str) -> None:
    problem = schema_problem(schema)
    assert problem is not None
    assert words in problem
    assert len(problem) < 500
    assert "\n" not in problem


def test_a_schema_that_is_no_json_or_endlessly_nested_is_told_so() -> None:
    deep: dict[str, Any] = {}
    for _ in range(3_000):
        deep = {"not": deep}
    for schema in (deep, {"title": "\ud800"}, {"minimum": float("nan")}):
        assert schema_problem(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"anyOf": [{"type": "string"}, {"not": {"$ref": "#"}}]},
        {
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"oneOf": [{"$ref": "#/$defs/a"}]}},
            "items": {"$ref": "#/$defs/a"},
        },
        {"$dynamicAnchor": "top", "if": {"$dynamicRef": "#top"}},
    ],
)
def test_a_schema_that_refers_to_itself_for_the_same_value_is_refused(schema: dict[str, Any]) -> None:
    assert "refers to itself for the same value" in (schema_problem(schema) or "")


@pytest.mark.parametrize("branch", ["allOf", "anyOf", "oneOf"])
def test_references_that_double_and_double_are_refused(branch: str) -> None:
    assert schema_problem(chain(7, lambda inner: {branch: [inner, inner]})) is None
    for count in (8, 25, 300):
        with bounded(seconds=8):
            assert "in more than 1,000 ways" in (
                schema_problem(chain(count, lambda inner: {branch: [inner, inner]})) or ""
            )


def test_a_schema_may_hold_sixty_four_patterns() -> None:
    assert schema_problem({"patternProperties": {f"^a{n}": {"pattern": "x"} for n in range(32)}}) is None
    for schema in (
        {"patternProperties": {f"^a{n}": True for n in range(65)}},
        {"allOf": [{"pattern": "x"} for _ in range(65)]},
    ):
        assert "more than 64 patterns" in (schema_problem(schema) or "")


def test_the_largest_of_patterns_and_references_do_not_freeze_the_process() -> None:
    with bounded(seconds=20):
        schema_problem({"allOf": [{"pattern": rf"\pL{{1,{40 + n}}}"} for n in range(64)]})
        schema_problem(chain(690, lambda inner: {"items": inner, "contains": {}}) | {"items": {"$ref": "#"}})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["$ref", "$id", "$defs", "type", "items", "properties", "anyOf", "not", "pattern", "required", "#"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=10,
    )
)
def test_anything_in_place_of_a_schema_is_usable_or_told_why(found: Any) -> None:
    schema = found if isinstance(found, dict) else {"$ref": "#/$defs/a", "$defs": {"a": found}}
    problem = schema_problem(schema)
    if problem is None:
        read_output('{"a": [1, "x", null]}', schema)
    else:
        problem.encode()


def test_a_model_is_asked_for_a_clients_schema_as_it_is() -> None:
    asked = response_schema(ROUTE)
    assert (asked.name, asked.schema, asked.strict) == ("result", ROUTE, False)


# Answers.


@pytest.mark.parametrize(
    "text",
    [
        '{"city": "Rome", "days": 3}',
        '\ufeff \n{"days": 3, "city": "Rome"}\n',
        '```json\n{"city": "Rome", "days": 3}\n```',
        '```\n{\n"city": "Rome", "days": 3}\n```\n',
        '<think>Perhaps {"city": 1}?</think>{"city": "Rome", "days": 3}',
    ],
)
def test_json_is_read_alone_or_in_one_fence(text: str) -> None:
    assert read_output(text, ROUTE) == ({"city": "Rome", "days": 3}, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Rome, three days",
        'Here you are: {"city": "Rome", "days": 3}',
        '```json\n{"city": "Rome", "days": 3}\n```\nEnjoy!',
        '```json\n{"city": "Rome", "days": 3}\n```\n```json\n{"city": "Rome", "days": 3}\n```',
        '{"city": "Rome", "days": 3} {"city": "Rome", "days": 3}',
        '{"city": "Rome", "days": 3',
        '{"city": "Rome", "days": 3,}',
        "{'city': 'Rome', 'days': 3}",
        '{"city": "Rome", "city": "Oslo", "days": 3}',
        '{"city": "Rome", "days": NaN}',
        '{"city": "Rome", "days": Infinity}',
        '{"city": "Rome", "days": ' + "9" * 5_000 + "}",
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
    ],
)
def test_what_is_not_one_json_value_is_told_so(text: str) -> None:
    wrong = trouble(text, ROUTE)
    assert "is not one JSON value" in wrong
    assert len(wrong) < 300


@pytest.mark.parametrize("text", ["9007199254740993", "-9007199254740993", '{"a": [1e1, 100000000000000000000]}'])
def test_integers_that_readers_would_change_are_refused(text: str) -> None:
    assert "beyond 2**53" in trouble(text, {})


def test_the_largest_exact_integers_are_kept() -> None:
    assert read_output("[9007199254740992, -9007199254740992]", {}) == ([2**53, -(2**53)], None)


def test_a_number_without_bound_is_refused() -> None:
    assert "too large" in trouble("[1e999]", {})


def test_depth_is_bounded() -> None:
    assert read_output("[" * 33 + "]" * 33, {})[1] is None
    for depth in (34, 900):
        assert "more than 32 levels" in trouble("[" * depth + "]" * depth, {})


def test_nul_and_lone_surrogates_are_replaced_in_names_and_texts() -> None:
    value, wrong = read_output('{"a\\u0000": ["\\ud800"], "b": "\\n"}', {})
    assert (value, wrong) == ({"a�": ["�"], "b": "\n"}, None)


def test_names_that_become_one_when_stored_are_refused() -> None:
    assert "A name stands twice" in trouble('{"a\\u0000": 1, "a\\ud800": 2}', {})


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        ({"days": 3}, ['- the whole: "city" is a required property']),
        (
            {"city": "R", "days": 0, "stops": [{"name": "a"}, {"name": 7}, {}], "mood": "calm"},
            [
                "- the whole: Additional properties are not allowed ('mood' was unexpected)",
                '- /city: "R" is shorter than 2 characters',
                "- /days: 0 is less than the minimum of 1",
                '- /stops/1/name: 7 is not of type "string"',
                '- /stops/2: "name" is a required property',
            ],
        ),
        ([], ['- the whole: [] is not of type "object"']),
    ],
)
def test_what_does_not_fit_is_listed_with_its_place(answer: Any, lines: list[str]) -> None:
    heading, *listed = trouble(answer, ROUTE).split("\n")
    assert heading == "The JSON does not fit the schema:"
    assert sorted(listed) == sorted(lines)


def test_every_branch_of_a_choice_says_what_it_misses() -> None:
    schema = {"anyOf": [{"type": "integer"}, {"type": "object", "required": ["a"]}]}
    assert trouble({}, schema).split("\n")[1:] == [
        '- the whole: {} is not of type "integer"',
        '- the whole: "a" is a required property',
    ]


def test_formats_are_checked() -> None:
    assert 'is not a "date"' in trouble('"tomorrow"', {"type": "string", "format": "date"})
    assert read_output('"2026-11-22"', {"type": "string", "format": "date"}) == ("2026-11-22", None)


def test_at_most_twenty_faults_are_listed() -> None:
    listed = trouble([[n] for n in range(50)], {"items": {"type": "string"}}).split("\n")[1:]
    assert len(listed) == 21
    assert listed[-1] == "- and 30 more like these"


def test_a_fault_in_an_endless_text_is_told_in_part() -> None:
    assert len(trouble(["x" * 500_000], {"items": {"type": "integer"}})) < 1_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Rome was not built in a day.", "Rome was not built in a day."),
        ('"Rome"', "Rome"),
        ('```json\n"Rome"\n```', "Rome"),
        ("  Rome\n", "Rome"),
        ("[Chorus] la la", "[Chorus] la la"),
        ("```python\nprint(1)\n```", "```python\nprint(1)\n```"),
        ('"Rome", she said.', '"Rome", she said.'),
    ],
)
def test_where_a_text_is_asked_for_one_that_is_no_json_is_taken_as_it_is(text: str, said: str) -> None:
    assert read_output(text, {"type": "string"}) == (said, None)


@pytest.mark.parametrize("text", ["42", "{}", '{"a": "b",}', '["a", b]', '"a "b" c"', ""])
def test_where_a_text_is_asked_for_other_or_broken_json_is_refused(text: str) -> None:
    trouble(text, {"type": "string"})


def test_a_plain_text_has_to_fit_its_schema_too() -> None:
    assert "longer than 3" in trouble("Rome", {"type": "string", "maxLength": 3})


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            TREE,
            {"name": "a", "children": [{"name": "b", "children": [{"name": "c"}]}]},
            {"name": "a", "children": [{}]},
        ),
        (ANY_JSON, {"a": [None, {"b": [True, 1.5, "x"]}]}, None),
        (expression(3), nested(9, operators=3), nested(3, operators=3, last="x")),
    ],
)
def test_recursive_schemas_are_followed(schema: dict[str, Any], good: Any, bad: Any) -> None:
    assert read_output(json.dumps(good), schema) == (good, None)
    if bad is not None:
        assert "does not fit the schema:\n- " in trouble(bad, schema)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "bb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)
schemas = st.recursive(
    st.sampled_from([{"type": "integer"}, {"type": "string"}, {"minLength": 2}, {"const": 1}, {"required": ["a"]}, {}]),
    lambda inner: (
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner)
        | st.builds(lambda a, b: {"oneOf": [a, b]}, inner, inner)
        | st.builds(lambda a: {"not": a}, inner)
        | st.builds(lambda a: {"items": a}, inner)
        | st.builds(lambda a, b: {"properties": {"a": a}, "additionalProperties": b}, inner, inner)
        | st.builds(lambda a: {"properties": {"a": a, "b": {"$ref": "#"}}}, inner)
    ),
    max_leaves=6,
)


@given(schemas, json_values)
def test_what_fits_is_what_another_library_says_fits(schema: dict[str, Any], value: Any) -> None:
    if schema_problem(schema) is not None:
        return
    kept, wrong = read_output(json.dumps(value), schema)
    assert (wrong is None) == jsonschema.Draft202012Validator(schema).is_valid(value)
    assert kept == (value if wrong is None else None)


# Work.


def test_branches_that_hold_the_same_again_do_not_freeze_the_process() -> None:
    schema = expression(10)
    assert schema_problem(schema) is None
    with bounded(seconds=20):
        assert read_output(json.dumps(nested(15, operators=10)), schema)[1] is None
        assert "does not fit" in trouble(nested(15, operators=10, last="x"), schema)


@pytest.mark.parametrize(
    "applies",
    [
        lambda inner: {"properties": {"a": inner}, "patternProperties": {"a": inner}},
        lambda inner: {"patternProperties": {"a": inner, "^": inner}},
        lambda inner: {"dependentSchemas": {"a": {"properties": {"a": inner}}}, "additionalProperties": inner},
        lambda inner: {"if": {"additionalProperties": inner}, "then": {"unevaluatedProperties": inner}},
        lambda inner: {"not": {"properties": {"a": inner}}, "properties": {"a": inner}},
    ],
)
def test_all_that_looks_into_an_object_counts(applies: Any) -> None:
    schema = chain(28, applies)
    assert schema_problem(schema) is None
    with bounded(seconds=20):
        assert "too large or too deep" in trouble('{"a":' * 28 + '"x"' + "}" * 28, schema)


@pytest.mark.parametrize(
    "applies",
    [
        lambda inner: {"prefixItems": [True, inner], "contains": inner},
        lambda inner: {"items": inner, "contains": inner},
        lambda inner: {"items": inner, "allOf": [{"unevaluatedItems": inner}]},
    ],
)
def test_all_that_looks_into_a_list_counts(applies: Any) -> None:
    schema = chain(28, applies)
    assert schema_problem(schema) is None
    with bounded(seconds=20):
        assert "too large or too deep" in trouble("[1," * 28 + '"x"' + "]" * 28, schema)


def test_patterns_for_names_count_as_others_do() -> None:
    schema = {"propertyNames": {"allOf": [{"pattern": f"^(?:[01]*1[01]{{300}}{n})$"} for n in range(60)]}}
    with bounded(seconds=20):
        assert "too large or too deep" in trouble({f"{random.Random(7).getrandbits(100_000):b}": 1}, schema)


@pytest.mark.parametrize("branch", ["allOf", "anyOf", "oneOf"])
def test_a_chain_that_doubles_with_each_level_of_the_value_does_not_freeze_the_process(branch: str) -> None:
    schema = chain(30, lambda inner: {"items": {branch: [inner, inner]}})
    assert schema_problem(schema) is None
    with bounded(seconds=20):
        assert "too large or too deep" in trouble("[" * 30 + '"x"' + "]" * 30, schema)


def test_large_answers_with_faults_everywhere_do_not_freeze_the_process() -> None:
    row = {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"a": {"type": "integer"}}}]}
    for schema in (
        {"items": row},
        {"items": {"enum": [[f"v{n}"] for n in range(2_500)]}},
        {"items": {"allOf": [{"type": "string"} for _ in range(900)]}},
        {"allOf": [{"type": "string"} for _ in range(900)]},
    ):
        assert schema_problem(schema) is None
        with bounded(seconds=20):
            trouble([{"a": "x" * 100}] * 20_000, schema)


@pytest.mark.parametrize("count", [1, 40])
def test_patterns_that_are_hard_to_match_do_not_freeze_the_process(count: int) -> None:
    bits = f"{random.Random(7).getrandbits(1_000_000):b}"
    schema = {"allOf": [{"pattern": rf"^(?:[01]*1[01]{{300}}{n + 2})$"} for n in range(count)]}
    assert schema_problem(schema) is None
    with bounded(seconds=20):
        trouble(f'"{bits}"', schema)
