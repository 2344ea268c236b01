"""The openai model over real HTTP: tools offered, calls of them read back, and endpoints that take none."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import openai
import pytest

from app.agents.planner import PLAN_SCHEMA
from app.domain.errors import CallRefused, FormatRefused, ModelError, SpoiledAnswer, ToolsRefused, TransportFault
from app.domain.usage import Usage
from app.llm.chat import MAX_ARGUMENTS_CHARACTERS, ChatAnswer, ChatRequest, FormatLevel, Message, ToolCall, ToolOffer
from tests.endpoint import KEY, Endpoint, a_request, completion
from tests.scripted_model import Reply, error, message_reply, raw, text, verbatim
from tests.scripted_tools import calls

pytestmark = pytest.mark.asyncio(loop_scope="module")

SUM = ToolOffer(
    name="calculator",
    description="Works out a sum.",
    parameters={"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
)
GET = ToolOffer(name="http_get", description="Fetches a page.", parameters={"type": "object", "properties": {}})

ASKED_BEFORE = (
    Message(role="assistant", content="", tool_calls=[ToolCall(id="a1", name="calculator", arguments='{"x": 1')]),
    Message(role="tool", content="That is no JSON.", tool_call_id="a1"),
)


def with_tools(endpoint: Endpoint, *later: Message, **changes: Any) -> ChatRequest:
    request = a_request(model=endpoint.name)
    return replace(request, messages=[*request.messages, *later], **{"tools": [SUM, GET], **changes})


async def answered(endpoint: Endpoint, reply: Reply, *later: Message, **changes: Any) -> ChatAnswer:
    endpoint.answers(reply)
    return await endpoint.model.complete(with_tools(endpoint, *later, **changes))


async def failed(endpoint: Endpoint, reply: Reply, *later: Message, **changes: Any) -> ModelError:
    with pytest.raises(ModelError) as raised:
        await answered(endpoint, reply, *later, **changes)
    return raised.value


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


# Endpoints that take no tools.

REFUSALS = [
    error(400, message="registry.ollama.ai/library/gemma3:4b does not support tools"),
    raw(b'{"error":"registry.ollama.ai/library/Qwen3.5:0.8b does not support tools"}', status=400),
    raw(
        json.dumps(
            {
                "object": "error",
                "message": '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
                "type": "BadRequestError",
                "code": 400,
            }
        ).encode(),
        status=400,
    ),
    error(500, message="tools param requires --jinja flag"),
    error(500, message="tool_choice param requires --jinja flag"),
    error(500, message="Unsupported param: tools"),
    error(404, message="No endpoints found that support tool use. To learn more about provider routing, visit: ..."),
    error(404, message="No endpoints found that support the provided 'tool_choice' value."),
    error(400, message="tools is not supported in this model. For a list of supported models, refer to ..."),
    error(400, message="Unsupported parameter: 'tools' is not supported with this model."),
    error(400, message="Unknown parameter: 'tools'."),
    error(400, message="Unrecognized request argument supplied: tools"),
    error(400, message="`tool calling` is not supported with this model"),
    error(400, message="deepseek-reasoner does not support Function Calling"),
    error(400, message="This model doesn't support tool use."),
    error(400, message="This endpoint does not support the 'tools' parameter"),
    error(400, message="Function calling is not enabled for models/gemma-3-27b-it"),
    error(400, message='json: unknown field "tools"'),
    error(400, message="Additional properties are not allowed ('tools' was unexpected)"),
    error(500, message="create() got an unexpected keyword argument 'tools'"),
    error(501, message="Tool calls are not yet implemented"),
    error(
        400,
        message="litellm.UnsupportedParamsError: together_ai does not support parameters: {'tools': [{'type': 'func...",
    ),
    error(
        400,
        message="[{'type': 'extra_forbidden', 'loc': ('body', 'tools'), 'msg': 'Extra inputs are not permitted', ...",
    ),
    raw(
        b'{"detail":[{"type":"extra_forbidden","loc":["body","tools"],"msg":"Extra inputs are not permitted"}]}',
        status=422,
    ),
    raw(b'{"detail":"Tools are not supported."}', status=422),
    error(
        500,
        message="\n------------\nWhile executing CallExpression at line 19, column 27 in source:\n...\n"
        "Error: Jinja Exception: Only user and assistant roles are supported!",
    ),
    error(500, message="Value is not callable: null at row 62, column 114:\n..."),
    error(400, message="This model only supports single tool-calls at once!"),
    verbatim({"error": {"message": "this model does not support tools", "code": 400}}),
]


@pytest.mark.parametrize("reply", REFUSALS, ids=lambda reply: reply.body.decode()[:100])
async def test_an_endpoint_that_takes_no_tools_is_known_by_its_words(endpoint: Endpoint, reply: Reply) -> None:
    fault = await failed(endpoint, reply)
    assert (type(fault), fault.kind) == (ToolsRefused, "tools_refused")


@pytest.mark.parametrize("reply", REFUSALS, ids=lambda reply: reply.body.decode()[:100])
async def test_words_about_tools_mean_nothing_where_there_were_none(endpoint: Endpoint, reply: Reply) -> None:
    assert not isinstance(await failed(endpoint, reply, tools=()), ToolsRefused)


@pytest.mark.parametrize(
    "message",
    [
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "Only user, assistant and system roles are supported!",
        "Unknown message role: 'tool'",
    ],
)
async def test_an_endpoint_that_takes_no_tool_messages_takes_no_tools(endpoint: Endpoint, message: str) -> None:
    reply = error(400, message=message)
    assert type(await failed(endpoint, reply)) is CallRefused
    assert isinstance(await failed(endpoint, reply, *ASKED_BEFORE), ToolsRefused)


@pytest.mark.parametrize(
    "reply",
    [
        error(400),
        error(404),
        error(422),
        error(404, message="The model `m` does not exist or you do not have access to it."),
        error(400, message="Invalid schema for function 'calculator': schema must be of type 'object'"),
        error(400, message="Invalid 'tools[0].function.name': string does not match pattern."),
        error(400, message="Unknown parameter: 'tools[0].function.strict'."),
        error(400, message="Unsupported parameter: tools.0.strict"),
        error(
            400, message="[{'type': 'extra_forbidden', 'loc': ('body', 'tools', 0, 'x'), 'msg': 'Extra inputs are ..."
        ),
        raw(
            b'{"detail":[{"loc":["body","tools",0,"strict"],"msg":"Extra inputs are not permitted"}]}',
            status=422,
        ),
        error(400, message="An assistant message with 'tool_calls' must be followed by tool messages"),
        error(400, message="Invalid parameter: messages with role 'tool' must be a response to 'tool_calls'."),
        error(400, message="'tool_choice' is only allowed when 'tools' are specified."),
        error(400, message="This model does not support tools with names longer than 64 characters."),
        error(400, message="Tool call id was x but must be a-z, A-Z, 0-9, with a length of 9."),
        error(400, message="Please reduce the length of the messages or functions.", code="context_length_exceeded"),
        error(
            400,
            message="This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 "
            "tokens (8900 in the messages, 100 in the functions).",
        ),
        error(401, message="This key does not support tools"),
        raw(
            b'{"detail":[{"loc":["body","seed"],"msg":"Extra inputs are not permitted",'
            b'"input":"the model does not support tools"}]}',
            status=422,
        ),
    ],
    ids=lambda reply: reply.body.decode()[:100],
)
async def test_what_is_not_about_tools_is_not_laid_at_their_door(endpoint: Endpoint, reply: Reply) -> None:
    fault = await failed(endpoint, reply, *ASKED_BEFORE)
    assert isinstance(fault, CallRefused)
    assert not isinstance(fault, ToolsRefused)
    endpoint.answers(calls(("calculator", {})))
    assert (await endpoint.model.complete(with_tools(endpoint))).tool_calls


@pytest.mark.parametrize(
    "reply",
    [error(429, message="tool calling is not available right now"), error(503, message="does not support tools")],
)
async def test_a_passing_trouble_is_one_whatever_it_says_of_tools(endpoint: Endpoint, reply: Reply) -> None:
    assert type(await failed(endpoint, reply)) is TransportFault


async def test_a_model_without_tools_is_not_asked_with_tools_again(endpoint: Endpoint) -> None:
    first = await failed(endpoint, error(400, message="m does not support tools"))
    second = await failed(endpoint, calls(("calculator", {})))
    assert isinstance(second, ToolsRefused)
    assert (second.message, second.kind) == (first.message, first.kind)
    assert endpoint.server.calls == []


async def test_a_model_without_tools_is_asked_without_them(endpoint: Endpoint) -> None:
    await failed(endpoint, error(400, message="m does not support tools"))
    assert (await answered(endpoint, text("42"), tools=())).content == "42"


async def test_that_one_model_takes_no_tools_says_nothing_of_others(endpoint: Endpoint) -> None:
    await failed(endpoint, error(400, message="m does not support tools"))
    assert (await answered(endpoint, calls(("calculator", {})), model="another")).tool_calls


# Tools and formats.


@pytest.mark.parametrize(
    "reply",
    [
        error(400, message="json mode cannot be combined with tool/function calling"),
        error(400, message="Function calling with a response mime type: 'application/json' is unsupported"),
        error(500, message="Cannot use custom grammar constraints with tools."),
    ],
)
async def test_a_refused_format_beside_tools_is_the_format(endpoint: Endpoint, reply: Reply) -> None:
    fault = await failed(endpoint, reply, response=PLAN_SCHEMA)
    assert isinstance(fault, FormatRefused)


async def test_refused_tools_beside_a_format_are_the_tools(endpoint: Endpoint) -> None:
    fault = await failed(endpoint, error(400, message="m does not support tools"), response=PLAN_SCHEMA)
    assert isinstance(fault, ToolsRefused)


async def test_where_the_words_name_both_the_format_is_tried_first(endpoint: Endpoint) -> None:
    reply = error(400, message="Tool calling is not supported together with response_format")
    fault = await failed(endpoint, reply, response=PLAN_SCHEMA)
    assert isinstance(fault, FormatRefused)
    fault = await failed(endpoint, reply, response=PLAN_SCHEMA, format_at_most=FormatLevel.TEXT)
    assert isinstance(fault, ToolsRefused)


async def test_the_format_that_is_taken_beside_tools_is_remembered_apart(endpoint: Endpoint) -> None:
    await answered(endpoint, text("{}"), response=PLAN_SCHEMA, format_at_most=FormatLevel.TEXT)
    endpoint.answers(text("{}"))
    await endpoint.model.complete(with_tools(endpoint, response=PLAN_SCHEMA))
    await endpoint.model.complete(with_tools(endpoint, response=PLAN_SCHEMA, tools=()))
    assert endpoint.formats == ["text", "json_schema"]


async def test_broken_arguments_with_half_of_a_surrogate_pair_can_be_sent_back(endpoint: Endpoint) -> None:
    asked = [ToolCall(id="a1", name="calculator", arguments='{"x": "\\ud800\n"}')]
    messages = (Message(role="assistant", content="", tool_calls=asked), ASKED_BEFORE[1])
    assert (await answered(endpoint, text("well"), *messages)).content == "well"
    (sent,) = [message for message in endpoint.server.calls[-1].messages if message["role"] == "assistant"]
    assert json.loads(sent["tool_calls"][0]["function"]["arguments"]) == {"x": "\N{REPLACEMENT CHARACTER}\n"}


@pytest.mark.parametrize("name", ["", " "])
async def test_a_call_without_a_name_leaves_those_beside_it(endpoint: Endpoint, name: str) -> None:
    answer = await answered(endpoint, asking_for(entry(), entry(id="c2", name=name)))
    assert called(answer) == [("calculator", "{}"), ("", "{}")]
