"""The openai model over real HTTP: endpoints that take no tools, or none beside a format."""

import json

import pytest

from app.agents.planner import PLAN_SCHEMA
from app.domain.errors import CallRefused, FormatRefused, ToolsRefused, TransportFault
from app.llm.chat import FormatLevel
from tests.endpoint import Endpoint
from tests.llm.asking_with_tools import ASKED_BEFORE, answered, failed, with_tools
from tests.scripted_model import Reply, error, raw, text, verbatim
from tests.scripted_tools import calls

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
