"""The openai model over real HTTP: tools offered, and calls of them read back."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import openai
import pytest

from app.domain.errors import SpoiledAnswer
from app.domain.usage import Usage
from app.llm.chat import MAX_ARGUMENTS_CHARACTERS, ChatAnswer, Message, ToolCall
from tests.endpoint import KEY, Endpoint, completion
from tests.llm.asking_with_tools import ASKED_BEFORE, GET, SUM, answered, failed, with_tools
from tests.scripted_model import Reply, error, message_reply, text, verbatim
from tests.scripted_tools import calls

pytestmark = pytest.mark.asyncio(loop_scope="module")


def called(answer: ChatAnswer) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in answer.tool_calls]


def entry(arguments: object = "{}", *, id: object = "c1", name: object = "calculator") -> dict[str, Any]:  # noqa: A002
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def asking_for(*entries: object, finish_reason: str = "tool_calls") -> Reply:
    return message_reply({"content": None, "tool_calls": list(entries)}, finish_reason=finish_reason)


# What is sent.


async def test_a_request_with_tools_is_the_one_that_the_sdk_itself_sends(endpoint: Endpoint) -> None:
    asked = Message(
        role="assistant",
        content="",
        tool_calls=[
            ToolCall(id="a1", name="calculator", arguments='{"expression": "6*7"}'),
            ToolCall(id="a2", name="http_get", arguments="{}"),
        ],
    )
    answers = [
        Message(role="tool", content="42", tool_call_id="a1"),
        Message(role="tool", content="", tool_call_id="a2"),
    ]
    request = with_tools(endpoint, asked, *answers, headers={}, tool_choice="none")
    endpoint.answers(text("x"))
    await endpoint.model.complete(request)
    async with openai.AsyncOpenAI(base_url=endpoint.server.url, api_key=KEY, max_retries=0) as sdk:
        await sdk.chat.completions.create(
            model=request.model,
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "a1",
                            "type": "function",
                            "function": {"name": "calculator", "arguments": '{"expression": "6*7"}'},
                        },
                        {"id": "a2", "type": "function", "function": {"name": "http_get", "arguments": "{}"}},
                    ],
                },
                {"role": "tool", "tool_call_id": "a1", "content": "42"},
                {"role": "tool", "tool_call_id": "a2", "content": ""},
            ],
            tools=[
                {
                    "type": "function",
                    "function": {
                        "name": offer.name,
                        "description": offer.description,
                        "parameters": cast(Any, offer.parameters),
                    },
                }
                for offer in (SUM, GET)
            ],
            tool_choice="none",
        )
    ours, theirs = endpoint.server.calls
    assert ours.body == theirs.body


async def test_that_tools_may_be_called_goes_without_saying(endpoint: Endpoint) -> None:
    await answered(endpoint, text("x"))
    (call,) = endpoint.server.calls
    assert (list(call.tools), "tool_choice" in call.body) == (["calculator", "http_get"], False)


async def test_a_request_without_tools_says_nothing_of_them(endpoint: Endpoint) -> None:
    await answered(endpoint, text("x"), tools=(), tool_choice="none")
    assert set(endpoint.server.calls[0].body) == {"model", "messages"}


async def test_what_was_said_with_a_call_is_sent_back_with_it(endpoint: Endpoint) -> None:
    said, result = ASKED_BEFORE
    await answered(endpoint, text("x"), replace(said, content="Let me see."), result)
    (call,) = endpoint.server.calls
    message = call.messages[2]
    assert message["content"] == "Let me see."
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"unreadable": '{"x": 1'}
    assert call.tool_results == {"a1": "That is no JSON."}


@pytest.mark.parametrize(
    ("made_up", "sent"), [("fetch page…", "fetch_page_"), ("a.b", "a_b"), ("calculator", "calculator"), ("", "_")]
)
async def test_a_name_that_a_model_made_up_is_sent_back_in_characters_that_endpoints_take(
    endpoint: Endpoint, made_up: str, sent: str
) -> None:
    asked = Message(role="assistant", content="", tool_calls=[ToolCall(id="a1", name=made_up, arguments="{}")])
    await answered(endpoint, text("x"), asked, Message(role="tool", content="No such tool.", tool_call_id="a1"))
    assert endpoint.server.calls[0].tool_calls == [(sent, {})]


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ('{"x": 1, "y":  2}', '{"x": 1, "y":  2}'),
        ('{"x": "two\nlines"}', {"x": "two\nlines"}),
        ('{"x": 1', {"unreadable": '{"x": 1'}),
        ("[1]", {"unreadable": "[1]"}),
        ('{"x": NaN}', {"unreadable": '{"x": NaN}'}),
    ],
)
async def test_arguments_are_sent_back_as_an_object_of_json_whatever_the_model_wrote(
    endpoint: Endpoint, written: str, sent: object
) -> None:
    asked = Message(role="assistant", content="", tool_calls=[ToolCall(id="a1", name="calculator", arguments=written)])
    await answered(endpoint, text("ok"), asked, Message(role="tool", content="No.", tool_call_id="a1"))
    arguments = endpoint.server.calls[0].messages[-2]["tool_calls"][0]["function"]["arguments"]
    assert arguments == sent or json.loads(arguments) == sent


async def test_broken_arguments_with_half_of_a_surrogate_pair_can_be_sent_back(endpoint: Endpoint) -> None:
    asked = [ToolCall(id="a1", name="calculator", arguments='{"x": "\\ud800\n"}')]
    messages = (Message(role="assistant", content="", tool_calls=asked), ASKED_BEFORE[1])
    assert (await answered(endpoint, text("well"), *messages)).content == "well"
    (sent,) = [message for message in endpoint.server.calls[-1].messages if message["role"] == "assistant"]
    assert json.loads(sent["tool_calls"][0]["function"]["arguments"]) == {"x": "\N{REPLACEMENT CHARACTER}\n"}


async def test_an_offered_name_is_sent_back_as_it_is(endpoint: Endpoint) -> None:
    odd = replace(GET, name="site.get")
    asked = Message(role="assistant", content="", tool_calls=[ToolCall(id="a1", name="site.get", arguments="{}")])
    result = Message(role="tool", content="x", tool_call_id="a1")
    await answered(endpoint, text("x"), asked, result, tools=[odd])
    assert endpoint.server.calls[0].tool_calls == [("site.get", {})]


# Calls that come back.


async def test_calls_come_back_with_ids_names_and_arguments(endpoint: Endpoint) -> None:
    reply = calls(("calculator", {"expression": "6*7"}), ("http_get", {"url": "x"}), ids=["one", "two"])
    answer = await answered(endpoint, reply)
    assert answer == ChatAnswer(
        content="",
        model="scripted",
        usage=Usage(input_tokens=10, output_tokens=5),
        tool_calls=(
            ToolCall(id="one", name="calculator", arguments='{"expression": "6*7"}'),
            ToolCall(id="two", name="http_get", arguments='{"url": "x"}'),
        ),
    )


async def test_text_and_calls_may_come_together(endpoint: Endpoint) -> None:
    answer = await answered(endpoint, calls(("calculator", {}), content="Let me see."))
    assert (answer.content, called(answer)) == ("Let me see.", [("calculator", "{}")])


async def test_blank_text_beside_calls_is_none(endpoint: Endpoint) -> None:
    assert (await answered(endpoint, calls(("calculator", {}), content=" \n"))).content == ""


async def test_an_answer_without_calls_is_an_answer(endpoint: Endpoint) -> None:
    answer = await answered(endpoint, text("42"))
    assert (answer.content, answer.tool_calls) == ("42", ())


@pytest.mark.parametrize("finish_reason", ["stop", "tool_calls", "function_call", ""])
async def test_calls_are_calls_whatever_the_answer_says_it_ended_for(endpoint: Endpoint, finish_reason: str) -> None:
    answer = await answered(endpoint, asking_for(entry(), finish_reason=finish_reason))
    assert called(answer) == [("calculator", "{}")]


async def test_calls_that_were_not_to_come_now_are_returned_all_the_same(endpoint: Endpoint) -> None:
    answer = await answered(endpoint, calls(("calculator", {})), tool_choice="none")
    assert called(answer) == [("calculator", "{}")]


async def test_a_function_call_of_old_is_a_call(endpoint: Endpoint) -> None:
    message = {"content": None, "function_call": {"name": "calculator", "arguments": '{"x": 1}'}}
    answer = await answered(endpoint, message_reply(message, finish_reason="function_call"))
    assert called(answer) == [("calculator", '{"x": 1}')]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (None, "{}"),
        ("", "{}"),
        (" \n", "{}"),
        ({"x": "ä"}, '{"x": "ä"}'),
        ([1], "[1]"),
        ("{half", "{half"),
        (' {"x": 1}\n', '{"x": 1}'),
        ("a\x00\ud800", "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
        ({"x": "\ud800"}, '{"x": "\N{REPLACEMENT CHARACTER}"}'),
    ],
)
async def test_arguments_are_text_that_can_be_stored(endpoint: Endpoint, arguments: object, read: str) -> None:
    assert called(await answered(endpoint, asking_for(entry(arguments)))) == [("calculator", read)]


async def test_a_call_without_arguments_has_none(endpoint: Endpoint) -> None:
    answer = await answered(endpoint, asking_for({"id": "c1", "function": {"name": "calculator"}}))
    assert called(answer) == [("calculator", "{}")]


async def test_arguments_and_names_beyond_all_bounds_fit_nothing(endpoint: Endpoint) -> None:
    long = json.dumps({"x": "y" * 2 * MAX_ARGUMENTS_CHARACTERS})
    answer = await answered(endpoint, asking_for(entry(long, name="n" * 500)))
    (call,) = answer.tool_calls
    assert (len(call.name), len(call.arguments)) == (64, MAX_ARGUMENTS_CHARACTERS)
    assert call.arguments.endswith("…")


async def test_space_around_a_name_is_no_part_of_it(endpoint: Endpoint) -> None:
    assert called(await answered(endpoint, asking_for(entry(name=" calculator\n")))) == [("calculator", "{}")]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["x", "y"], ["x", "y"]),
        (["", ""], ["call00001", "call00002"]),
        ([None, 7], ["call00001", "call00002"]),
        (["x", "x", "x"], ["x", "call00001", "call00002"]),
        (["call00001", ""], ["call00001", "call00002"]),
        (["a1", "b"], ["call00001", "b"]),
    ],
    ids=str,
)
async def test_ids_differ_from_each_other_and_from_earlier_ones(
    endpoint: Endpoint, given: Sequence[object], read: Sequence[str]
) -> None:
    answer = await answered(endpoint, asking_for(*(entry(id=one) for one in given)), *ASKED_BEFORE)
    assert [call.id for call in answer.tool_calls] == read


async def test_an_id_beyond_all_bounds_is_cut(endpoint: Endpoint) -> None:
    answer = await answered(endpoint, asking_for(entry(id="i" * 1_000), entry(id="i" * 1_001)))
    assert [len(call.id) for call in answer.tool_calls] == [128, 9]


async def test_usage_that_is_not_told_counts_tools_and_calls(endpoint: Endpoint) -> None:
    silent = verbatim(completion(content=None, tool_calls=[entry("x" * 40)]))
    said, _ = ASKED_BEFORE
    plain = await answered(endpoint, text("x", usage={}), tools=())
    with_both = await answered(endpoint, silent, said)
    assert with_both.usage.output_tokens == 13
    assert with_both.usage.input_tokens > plain.usage.input_tokens + 30


@pytest.mark.parametrize("name", ["", " "])
async def test_a_call_without_a_name_leaves_those_beside_it(endpoint: Endpoint, name: str) -> None:
    answer = await answered(endpoint, asking_for(entry(), entry(id="c2", name=name)))
    assert called(answer) == [("calculator", "{}"), ("", "{}")]


# Calls that cannot be used.


@pytest.mark.parametrize(
    "entries",
    [
        [None],
        ["calculator"],
        [{}],
        [{"id": "1"}],
        [{"id": "1", "type": "custom", "custom": {"name": "x", "input": "y"}}],
        [entry(name="")],
        [entry(name=" ")],
        [entry(name=None)],
        [entry(name=["calculator"])],
        [entry(), None],
    ],
    ids=str,
)
async def test_a_call_that_names_no_function_spoils_the_answer(endpoint: Endpoint, entries: list[Any]) -> None:
    fault = await failed(endpoint, asking_for(*entries))
    assert (type(fault), fault.kind) == (SpoiledAnswer, "bad_tool_call")
    assert isinstance(fault, SpoiledAnswer)
    assert fault.usage == Usage(input_tokens=10, output_tokens=5)


@pytest.mark.parametrize("finish_reason", ["tool_calls", "function_call"])
@pytest.mark.parametrize("content", ["Let me see.", None])
async def test_calls_that_were_lost_on_the_way_spoil_the_answer(
    endpoint: Endpoint, content: str | None, finish_reason: str
) -> None:
    fault = await failed(endpoint, text(content, finish_reason=finish_reason))
    assert (type(fault), fault.kind) == (SpoiledAnswer, "bad_tool_call")


async def test_calls_that_were_cut_off_are_no_calls_and_nothing_to_go_on_from(endpoint: Endpoint) -> None:
    message = {"content": "Let me", "tool_calls": [entry('{"expr')]}
    fault = await failed(endpoint, message_reply(message, finish_reason="length"))
    assert isinstance(fault, SpoiledAnswer)
    assert (fault.kind, fault.content) == ("length", "")


async def test_calls_that_nothing_was_offered_for_spoil_the_answer(endpoint: Endpoint) -> None:
    fault = await failed(endpoint, calls(("calculator", {})), tools=())
    assert (type(fault), fault.kind) == (SpoiledAnswer, "unexpected_tool_call")


async def test_nothing_at_all_is_empty_with_tools_too(endpoint: Endpoint) -> None:
    assert (await failed(endpoint, text(""))).kind == "empty"


async def test_an_endpoint_that_could_not_read_the_models_call_gives_a_spoiled_answer(endpoint: Endpoint) -> None:
    reply = error(400, code="tool_use_failed", message="Failed to call a function. Please adjust your prompt.")
    fault = await failed(endpoint, reply)
    assert (type(fault), fault.kind) == (SpoiledAnswer, "bad_tool_call")
