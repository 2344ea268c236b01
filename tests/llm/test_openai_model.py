"""The openai model over real HTTP: what is sent, and which bodies are answers."""

import asyncio
import gzip
from dataclasses import replace
from typing import Any, cast

import openai
import pytest

from app.agents.planner import PLAN_SCHEMA
from app.domain.errors import (
    ModelDeclined,
    SpoiledAnswer,
    TransportFault,
)
from app.domain.usage import Usage
from app.llm.chat import ChatAnswer, ResponseSchema
from tests.endpoint import JSON_TYPE, KEY, LIMIT, PATIENCE_SECONDS, Endpoint, a_request, completion, model_at
from tests.scripted_model import Reply, raw, text, verbatim, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")


# What is sent, and a sound answer.


async def test_a_sound_answer_comes_back_with_its_model_and_usage(endpoint: Endpoint) -> None:
    answer = await endpoint.ask(text("Hello.", usage={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}))
    assert answer == ChatAnswer(content="Hello.", model="scripted", usage=Usage(input_tokens=7, output_tokens=3))


async def test_the_request_carries_messages_headers_and_key(endpoint: Endpoint) -> None:
    await endpoint.ask(text("x"))
    (call,) = endpoint.server.calls
    assert call.body == {
        "model": endpoint.name,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}],
    }
    expected = {
        "x-planwave-run": "r1",
        "x-planwave-seat": "executor",
        "x-planwave-task": "0.a%20b",
        "authorization": f"Bearer {KEY}",
        "accept-encoding": "identity",
    }
    assert {name: call.headers[name] for name in expected} == expected


async def test_the_request_is_the_one_that_the_sdk_itself_sends(endpoint: Endpoint) -> None:
    request = replace(a_request(model=endpoint.name, structured=True), headers={})
    endpoint.answers(text("{}"))
    await endpoint.model.complete(request)
    response_format = endpoint.server.calls[0].response_format
    assert response_format is not None
    async with openai.AsyncOpenAI(base_url=endpoint.server.url, api_key=KEY, max_retries=0) as sdk:
        await sdk.chat.completions.create(
            model=request.model,
            messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}],
            response_format=cast(Any, response_format),
        )
    ours, theirs = endpoint.server.calls
    of_the_exchange = {"accept-encoding", "connection", "x-stainless-retry-count", "x-stainless-read-timeout"}
    said = [
        {name: value for name, value in call.headers.items() if name not in of_the_exchange} for call in (ours, theirs)
    ]
    assert (ours.body, said[0]) == (theirs.body, said[1])


async def test_a_schema_is_sent_as_a_strict_one(endpoint: Endpoint) -> None:
    await endpoint.ask(text("{}"), structured=True)
    assert endpoint.server.calls[0].response_format == {
        "type": "json_schema",
        "json_schema": {"name": "plan", "schema": PLAN_SCHEMA.schema, "strict": True},
    }


async def test_a_schema_that_is_not_strict_is_sent_as_it_is(endpoint: Endpoint) -> None:
    endpoint.answers(text("{}"))
    schema = {"type": "object", "additionalProperties": True}
    response = ResponseSchema(name="result", schema=schema, strict=False)
    await endpoint.model.complete(replace(a_request(model=endpoint.name), response=response))
    assert endpoint.server.calls[0].response_format == {
        "type": "json_schema",
        "json_schema": {"name": "result", "schema": schema, "strict": False},
    }


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "text/plain",
        "application/problem+json",
        "Application/JSON",
    ],
)
async def test_json_is_taken_under_the_types_that_endpoints_give_it(endpoint: Endpoint, content_type: str) -> None:
    reply = raw(text("x").body, headers={"Content-Type": content_type})
    assert (await endpoint.ask(reply)).content == "x"


async def test_json_is_taken_without_a_content_type(endpoint: Endpoint) -> None:
    assert (await endpoint.ask(raw(text("x").body))).content == "x"


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
async def test_a_body_that_says_it_is_not_encoded_is_taken(endpoint: Endpoint, encoding: str) -> None:
    reply = raw(text("x").body, headers={"Content-Type": "application/json", "Content-Encoding": encoding})
    assert (await endpoint.ask(reply)).content == "x"


async def test_a_body_in_chunks_is_taken(endpoint: Endpoint) -> None:
    body = text("x").body
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[n : n + 50]), body[n : n + 50]) for n in range(0, len(body), 50))
    assert (await endpoint.ask(wire(head + chunks + b"0\r\n\r\n"))).content == "x"


async def test_content_in_parts_is_put_together(endpoint: Endpoint) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "image"}, 3, None, {"text": 4}, {"type": "text", "text": "lo."}]
    assert (await endpoint.ask(verbatim(completion(content=parts)))).content == "Hello."


async def test_nul_and_lone_surrogates_in_an_answer_are_replaced(endpoint: Endpoint) -> None:
    answer = await endpoint.ask(verbatim({**completion(content="a\x00b\ud800"), "model": "m\x00"}))
    assert (answer.content, answer.model) == (
        "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}",
        "m\N{REPLACEMENT CHARACTER}",
    )


async def test_a_model_that_does_not_name_itself_goes_by_the_name_it_was_asked_by(endpoint: Endpoint) -> None:
    body = completion()
    del body["model"]
    assert (await endpoint.ask(verbatim(body), model="asked")).model == "asked"


@pytest.mark.parametrize("silent", [{"tool_calls": []}, {"tool_calls": None}, {"function_call": None}, {"refusal": ""}])
async def test_fields_that_say_nothing_do_not_spoil_an_answer(endpoint: Endpoint, silent: dict[str, Any]) -> None:
    assert (await endpoint.ask(verbatim(completion(**silent)))).content == "Hi."


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "many",
        [],
        {},
        {"prompt_tokens": -1, "completion_tokens": -5},
        {"prompt_tokens": True, "completion_tokens": False},
        {"prompt_tokens": 10**30, "completion_tokens": 2**63},
        {"prompt_tokens": 1.5, "completion_tokens": "3"},
        {"prompt_tokens": None, "completion_tokens": None},
    ],
)
async def test_usage_that_cannot_be_true_is_estimated(endpoint: Endpoint, usage: object) -> None:
    answer = await endpoint.ask(verbatim({**completion(content="x" * 40), "usage": usage}))
    assert answer.usage == Usage(input_tokens=3, output_tokens=10)


# Answers that cannot be used.


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (completion(content=None), "empty"),
        (completion(content=""), "empty"),
        (completion(content=" \n"), "empty"),
        (completion(content=[]), "empty"),
        (completion(content={"text": "x"}), "empty"),
        (completion(content=None, tool_calls=[{"id": "1"}]), "unexpected_tool_call"),
        (completion(tool_calls=[{"id": "1"}]), "unexpected_tool_call"),
        (completion(content=None, function_call={"name": "f", "arguments": "{}"}), "unexpected_tool_call"),
    ],
)
async def test_an_answer_that_cannot_be_used_is_spoiled(endpoint: Endpoint, body: dict[str, Any], kind: str) -> None:
    fault = await endpoint.fault(verbatim({**body, "usage": {"prompt_tokens": 4, "completion_tokens": 2}}))
    assert (type(fault), fault.kind) == (SpoiledAnswer, kind)
    assert isinstance(fault, SpoiledAnswer)
    assert fault.usage == Usage(input_tokens=4, output_tokens=2)


async def test_an_answer_cut_at_the_length_limit_is_spoiled(endpoint: Endpoint) -> None:
    fault = await endpoint.fault(text("half an ans", finish_reason="length"))
    assert (type(fault), fault.kind) == (SpoiledAnswer, "length")


@pytest.mark.parametrize(
    ("content", "kept"), [("half an ans", "half an ans"), ("a\x00b\ud800", "a\ufffdb\ufffd"), (None, "")]
)
async def test_what_came_of_an_answer_that_was_cut_off_is_kept(
    endpoint: Endpoint, content: str | None, kept: str
) -> None:
    fault = await endpoint.fault(text(content, finish_reason="length"))
    assert isinstance(fault, SpoiledAnswer)
    assert fault.content == kept


async def test_of_a_declined_answer_nothing_is_kept(endpoint: Endpoint) -> None:
    fault = await endpoint.fault(text("half an ans", finish_reason="content_filter"))
    assert isinstance(fault, ModelDeclined)
    assert fault.content == ""


async def test_a_refusal_is_declined_in_the_models_words(endpoint: Endpoint) -> None:
    fault = await endpoint.fault(verbatim(completion(content=None, refusal="I will not.")))
    assert (type(fault), fault.kind, fault.message) == (ModelDeclined, "refusal", "The model refused: I will not.")


async def test_a_content_filter_declines(endpoint: Endpoint) -> None:
    fault = await endpoint.fault(text("", finish_reason="content_filter"))
    assert (type(fault), fault.kind) == (ModelDeclined, "content_filter")


# Bodies that are no completion.


@pytest.mark.parametrize(
    "reply",
    [
        raw(b"", headers=JSON_TYPE),
        raw(b"", status=204),
        raw(text("x").body[:-20], headers=JSON_TYPE),
        raw(b"\xff\xfe\x00garbage", headers=JSON_TYPE),
        raw(b"[" * 100_000, headers=JSON_TYPE),
        raw(b"9" * 5_000, headers=JSON_TYPE),
        raw(b'data: {"choices": []}\n\ndata: [DONE]\n\n', headers={"Content-Type": "text/event-stream"}),
        raw(b"<html>Welcome</html>", headers={"Content-Type": "text/html; charset=utf-8"}),
        raw(text("x").body, headers={"Content-Type": "application/octet-stream"}),
        verbatim(None),
        verbatim([]),
        verbatim("Hi."),
        verbatim({}),
        verbatim({"choices": []}),
        verbatim({"choices": None}),
        verbatim({"choices": {"0": 1}}),
        verbatim({"choices": [None]}),
        verbatim({"choices": [{"message": None}]}),
        verbatim({"choices": [{"text": "Hi."}]}),
    ],
)
async def test_a_body_that_is_no_completion_is_a_transport_fault(endpoint: Endpoint, reply: Reply) -> None:
    fault = await endpoint.fault(reply)
    assert (type(fault), fault.kind) == (TransportFault, "bad_body")


async def test_a_compressed_body_that_was_not_asked_for_is_not_taken(endpoint: Endpoint) -> None:
    body = gzip.compress(text("x").body)
    fault = await endpoint.fault(raw(body, headers={**JSON_TYPE, "Content-Encoding": "gzip"}))
    assert isinstance(fault, TransportFault)
    assert "gzip" in fault.message
    assert (await endpoint.ask(text("fine"))).content == "fine"


@pytest.mark.parametrize("length", [None, 50 * 1024 * 1024])
async def test_an_endless_body_is_left_behind_after_the_limit(length: int | None) -> None:
    sent = 0
    gone = asyncio.Event()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + framing + b"\r\n\r\n")
        piece = b" " * 65_536
        try:
            while sent < 50 * 1024 * 1024:
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if length is None else piece)
                sent += len(piece)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            gone.set()
            writer.transport.abort()

    async with await asyncio.start_server(pour, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with model_at(f"http://127.0.0.1:{port}/v1") as model:
            with pytest.raises(TransportFault, match="larger than 1048576 bytes"):
                await model.complete(a_request())
            async with asyncio.timeout(PATIENCE_SECONDS):
                await gone.wait()
    assert sent < 30 * 1024 * 1024, "what was not read stayed in socket buffers"


async def test_a_body_of_just_the_limit_is_taken(endpoint: Endpoint) -> None:
    frame = len(text("").body)
    assert len((await endpoint.ask(text("x" * (LIMIT - frame)))).content) == LIMIT - frame
    assert isinstance(await endpoint.fault(text("x" * (LIMIT - frame + 1))), TransportFault)
