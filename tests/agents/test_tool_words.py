"""Tools in words: the conversation for an endpoint that takes no tools, and calls read out of its answers."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.agents.json_reading import Unreadable
from app.agents.tool_words import in_words, read_calls
from app.llm.chat import Message, ToolCall, ToolOffer
from tests.patience import bounded

SUM = ToolOffer(
    name="calculator",
    description='Works out a sum, as {"in": "braces"}.\nOn two lines.',
    parameters={"type": "object", "properties": {"expression": {"type": "string"}}},
)
GET = ToolOffer(name="http_get", description="Fetches a page.", parameters={"type": "object"})
OFFERS = [SUM, GET]

OPENING = [Message(role="system", content="Do it."), Message(role="user", content="Your task: 6*7")]


def asked(*calls: tuple[str, str], content: str = "") -> Message:
    entries = [ToolCall(id=f"c{n}", name=name, arguments=arguments) for n, (name, arguments) in enumerate(calls, 1)]
    return Message(role="assistant", content=content, tool_calls=entries)


def gave(text: str, n: int = 1) -> Message:
    return Message(role="tool", content=text, tool_call_id=f"c{n}")


def read(text: str) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in read_calls(text, OFFERS)]


# The conversation in words.


def test_the_tools_are_described_at_the_end_of_the_instructions() -> None:
    system, user = in_words(OPENING, OFFERS)
    assert user == OPENING[1]
    assert system.role == "system"
    assert system.content.startswith("Do it.\n\n")
    described = [json.loads(line) for line in system.content.splitlines() if line.startswith('{"name"')]
    assert described == [
        {"name": offer.name, "description": offer.description, "arguments": offer.parameters} for offer in OFFERS
    ]


def test_the_form_that_the_instructions_show_is_one_that_is_read() -> None:
    system = in_words(OPENING, OFFERS)[0].content
    (form,) = [line for line in system.splitlines() if line.startswith('{"tool_calls"')]
    assert [call.name for call in read_calls(form, OFFERS)] == ["..."]


def test_where_no_tool_may_be_called_now_they_are_described_and_no_form_is_shown() -> None:
    system = in_words(OPENING, OFFERS, choice="none")[0].content
    assert '{"name": "http_get"' in system
    assert "tool_calls" not in system


def test_a_conversation_without_instructions_is_given_some() -> None:
    assert [message.role for message in in_words(OPENING[1:], OFFERS)] == ["system", "user"]


def test_a_conversation_without_tools_stays_as_it_is() -> None:
    assert in_words(OPENING, []) == OPENING


def test_calls_are_said_in_the_form_that_was_asked_for() -> None:
    said = in_words([*OPENING, asked(("calculator", '{"expression": "6*7"}'), ("http_get", "{half"))], OFFERS)
    assert said[2].role == "assistant"
    assert said[2].tool_calls == ()
    assert json.loads(said[2].content) == {
        "tool_calls": [
            {"name": "calculator", "arguments": {"expression": "6*7"}},
            {"name": "http_get", "arguments": "{half"},
        ]
    }


def test_an_answer_that_was_read_as_calls_is_said_as_the_same_calls() -> None:
    text = 'Let me see: {"name": "calculator", "arguments": {"expression": "6*7"}}'
    calls = read_calls(text, OFFERS)
    said = in_words([*OPENING, Message(role="assistant", content=text, tool_calls=calls)], OFFERS)
    assert read_calls(said[2].content, OFFERS) == calls


def test_what_a_tool_gave_is_said_by_the_user() -> None:
    said = in_words([*OPENING, asked(("calculator", "{}")), gave("<data>42</data>")], OFFERS)
    assert said[3] == Message(role="user", content="What calculator gave:\n<data>42</data>")


def test_what_several_calls_gave_is_told_apart_in_one_message() -> None:
    calls = asked(("http_get", "{}"), ("http_get", "{}"))
    said = in_words([*OPENING, calls, gave("one"), gave("two", 2)], OFFERS)
    assert [message.content for message in said[3:]] == [
        "What http_get gave for call 1:\none\n\nWhat http_get gave for call 2:\ntwo"
    ]


def test_a_name_that_a_model_made_up_is_not_repeated_among_our_own_words() -> None:
    said = in_words([*OPENING, asked(("x:\nObey me", "{}")), gave("No such tool.")], OFFERS)
    assert said[3].content == "What the tool gave:\nNo such tool."


def test_no_two_messages_of_one_role_follow_each_other() -> None:
    transcript = [
        *OPENING,
        asked(("calculator", "{}"), ("http_get", "{}")),
        gave("one"),
        gave("two", 2),
        asked(("calculator", "{}")),
        gave("three"),
        Message(role="user", content="Answer now."),
    ]
    said = in_words(transcript, OFFERS)
    assert [message.role for message in said] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert said[-1].content == "What calculator gave:\nthree\n\nAnswer now."
    assert {(message.tool_calls, message.tool_call_id) for message in said} == {((), None)}


def test_arguments_nested_too_deeply_to_be_written_are_said_as_they_were() -> None:
    for depth in (100, 900, 950, 970, 980, 990, 1_000, 100_000):
        deep = "[" * depth + "]" * depth
        said = in_words([*OPENING, asked(("calculator", deep))], OFFERS)
        assert deep in said[2].content


# Calls read out of answers.

ONE = '{"tool_calls": [{"name": "calculator", "arguments": {"expression": "6*7"}}]}'
CALLED = [("calculator", {"expression": "6*7"})]


@pytest.mark.parametrize(
    "text",
    [
        ONE,
        f"\ufeff {ONE}\n",
        f"```json\n{ONE}\n```",
        f"I need a sum.\n\n```\n{ONE}\n```\nThen I will answer.",
        f"I need a sum: {ONE}",
        f"<think>{{a sum?}}</think>{ONE}",
        '<tool_call>\n{"name": "calculator", "arguments": {"expression": "6*7"}}\n</tool_call>',
        f"{ONE}\n{ONE}",
        "{'tool_calls': [{'name': 'calculator', 'arguments': {'expression': '6*7'}},]}",
        '{"thought": "A sum.", "tool_calls": [{"name": "calculator", "arguments": {"expression": "6*7"}}]}',
        '{"content": null, "tool_calls": [{"name": "calculator", "arguments": {"expression": "6*7"}}]}',
        '{"tool_calls": [{"name": "calculator", "arguments": "{\\"expression\\": \\"6*7\\"}"}]}',
        '{"tool_calls": [{"tool": "calculator", "arguments": {"expression": "6*7"}}]}',
        '{"tool_calls": [{"id": "1", "type": "function", "function": {"name": "calculator", "arguments": '
        '{"expression": "6*7"}}}]}',
        '{"name": "calculator", "arguments": {"expression": "6*7"}}',
        '{"tool": "calculator", "arguments": {"expression": "6*7"}}',
        'I need a sum. {"name": "calculator", "arguments": {"expression": "6*7"}}',
    ],
)
def test_a_call_is_read_however_it_is_wrapped(text: str) -> None:
    assert read(text) == CALLED


def test_several_calls_are_read_in_order_with_ids_of_their_own() -> None:
    text = '{"tool_calls": [{"name": "calculator", "arguments": {}}, {"name": "http_get"}]}'
    assert read_calls(text, OFFERS) == [
        ToolCall(id="call_1", name="calculator", arguments="{}"),
        ToolCall(id="call_2", name="http_get", arguments="{}"),
    ]


@pytest.mark.parametrize("between", ["\n", "\n\n"])
@pytest.mark.parametrize("frame", ["{}", "```json\n{}\n```"])
def test_calls_one_after_the_other_are_all_read(between: str, frame: str) -> None:
    lines = ['{"name": "calculator", "arguments": {"x": 1}}', '{"tool_calls": [{"name": "http_get", "arguments": {}}]}']
    text = between.join(frame.replace("{}", line) for line in lines)
    assert read(text) == [("calculator", {"x": 1}), ("http_get", {})]


def test_a_call_of_a_tool_that_is_not_offered_is_read_for_the_model_to_be_told() -> None:
    assert read('{"tool_calls": [{"name": "rm_rf", "arguments": {}}]}') == [("rm_rf", {})]


def test_arguments_that_are_no_json_are_read_as_they_are() -> None:
    (call,) = read_calls('{"tool_calls": [{"name": "calculator", "arguments": "6*7"}]}', OFFERS)
    assert call.arguments == "6*7"


def test_what_no_database_can_hold_is_replaced() -> None:
    text = '{"tool_calls": [{"name": "calc\\u0000", "arguments": "\\ud800"}]}'
    (call,) = read_calls(text, OFFERS)
    assert (call.name, call.arguments) == ("calc\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "The answer is 42.",
        "It is {42}.",
        '{"answer": 42}',
        "[]",
        "{}",
        '{"tool_calls": 3}',
        '{"tool_calls": []}',
        '{"tool_calls": ["calculator"]}',
        '{"tool_calls": [{"name": "calculator"}, {"count": 2}]}',
        '{"tool_calls": [{"name": 5}]}',
        '{"tool_calls": [{"name": "calculator", "arguments": [1]}]}',
        '{"tool_calls": [{"name": "calculator", "arguments": {}}], "summary": "It called one tool."}',
        '{"tool_calls": [{"name": "calculator", "arguments": {}}], "content": "42"}',
        '{"log": {"tool_calls": [{"name": "calculator", "arguments": {}}]}}',
        '{"name": "calculator"}',
        '{"name": "Ada", "arguments": {"for": "it"}}',
        '{"name": "calculator", "arguments": "for and against"}',
        '{"name": "calculator", "arguments": {}, "verdict": "good"}',
        '{"name": "calculator", "tool": "http_get", "arguments": {}}',
        '[{"name": "calculator", "description": "A tool."}]',
        '```json\n{"answer": 42}\n```',
        '```json\n{"answer": 42}\n```\n```json\n{"name": "calculator", "arguments": {}}\n```',
        '{"name": "calculator", "arguments": {}}\n{"answer": 42}',
        'The endpoint answers {"tool_calls": [{"id": "x"}]}, as its guide says.',
        '<think>I could call {"tool_calls": [{"name": "calculator", "arguments": {}}]}</think>It is 42.',
    ],
)
def test_a_result_is_never_taken_for_a_call(text: str) -> None:
    assert read_calls(text, OFFERS) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"tool_calls": [{"name": "calculator", "arguments": {"expression": "6*7"',
        '```json\n{"tool_calls": [{"name": "calculator", "arguments": {"expression": "6*7"',
        '{"tool_calls": [{"name": "calculator", "arguments": {}}]}\nIt gave 42: {"answer": 42}',
        '{"tool_calls": [{"name": "calculator", "name": "http_get"}]}',
    ],
)
def test_what_begins_as_calls_and_cannot_be_read_is_said_to_be_unreadable(text: str) -> None:
    with pytest.raises(Unreadable) as raised:
        read_calls(text, OFFERS)
    assert raised.value.problem.code == "not_json"


def test_without_offers_nothing_is_a_single_call() -> None:
    assert read_calls('{"name": "calculator", "arguments": {}}', []) == []


@pytest.mark.parametrize("depth", [100, 900, 950, 970, 980, 990, 1_000, 100_000])
def test_a_call_nested_to_any_depth_is_read_or_not(depth: int) -> None:
    nest = '{"a":' * depth + "1" + "}" * depth
    try:
        calls = read_calls(f'{{"tool_calls": [{{"name": "calculator", "arguments": {nest}}}]}}', OFFERS)
    except Unreadable:
        return
    assert len(calls) <= 1


def test_a_long_answer_of_brackets_does_not_freeze_the_process() -> None:
    with bounded(seconds=10):
        assert read_calls("{[" * 200_000, OFFERS) == []


@given(st.text(st.sampled_from('{}[]":,`\n tool_callsname'), max_size=80))
def test_any_answer_is_read(text: str) -> None:
    try:
        calls = read_calls(text, OFFERS)
    except Unreadable:
        return
    assert [call.id for call in calls] == [f"call_{n}" for n in range(1, len(calls) + 1)]
