"""The openai model against anything at all: whatever comes back is an answer or a `ModelError`."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.agents.planner import PLAN_SCHEMA
from app.domain.errors import ModelError
from app.llm.chat import ChatAnswer, ChatRequest, Message, ToolOffer
from app.llm.openai_model import OpenAIModel, read_completion
from tests.scripted_model import Reply, ScriptedModel, error, raw, text, wire

REQUEST = ChatRequest(
    model="m", messages=[Message(role="user", content="Hi?")], response=PLAN_SCHEMA, timeout_seconds=0.3
)

TOOLS = [ToolOffer(name="f", description="Does it.", parameters={"type": "object"})]

Exchange = Callable[[Reply], ChatAnswer | ModelError]


@pytest.fixture(scope="module")
def exchange() -> Iterator[Exchange]:
    """One reply, one outcome, over connections of its own; anything but a `ModelError` comes through."""
    with asyncio.Runner() as runner:
        server = ScriptedModel(lambda _: text("x"))
        runner.run(server.__aenter__())
        model = OpenAIModel(base_url=server.url, api_key="sk-none", max_concurrency=2, max_answer_bytes=1_000_000)

        def once(reply: Reply) -> ChatAnswer | ModelError:
            server.begin(lambda _: reply)
            try:
                return runner.run(model.complete(REQUEST))
            except ModelError as fault:
                return fault

        yield once
        runner.run(model.close())
        runner.run(server.__aexit__(None, None, None))


header_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    status=st.integers(100, 599),
    body=st.binary(max_size=200) | st.sampled_from([text("x").body, error(400).body, b"", b"null", b"{}"]),
    content_type=st.none() | st.sampled_from(["application/json", "text/html"]) | header_text,
    retry=st.none() | header_text,
)
@example(status=503, body=b"{}", content_type="application/json; charset=hex", retry=None)
def test_any_answer_is_an_answer_or_a_model_error(
    exchange: Exchange, status: int, body: bytes, content_type: str | None, retry: str | None
) -> None:
    headers = {"Content-Type": content_type, "Retry-After": retry, "Connection": "close"}
    given_headers = {name: value for name, value in headers.items() if value is not None}
    outcome = exchange(raw(body, status=status, headers=given_headers))
    assert isinstance(outcome, ModelError) or 200 <= status < 300


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=100) | st.binary(max_size=60).map(b"HTTP/1.1 200 OK\r\n".__add__))
def test_any_bytes_in_place_of_http_are_an_answer_or_a_model_error(exchange: Exchange, stream: bytes) -> None:
    exchange(wire(stream))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


entries = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": anything, "arguments": anything}) | anything}, optional={"id": anything}
)


@given(
    content=anything,
    refusal=anything,
    finish_reason=anything | st.sampled_from(["stop", "length"]),
    usage=anything | st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens"]), anything),
    model=anything,
    fault=st.none() | anything,
    called=anything | st.lists(entries, max_size=3),
    offered=st.booleans(),
)
def test_any_completion_is_a_storable_answer_or_a_model_error(
    *,
    content: object,
    refusal: object,
    finish_reason: object,
    usage: object,
    model: object,
    fault: object,
    called: object,
    offered: bool,
) -> None:
    message = {"content": content, "refusal": refusal, "tool_calls": called, "function_call": called}
    choice = {"message": message, "finish_reason": finish_reason}
    body = json.dumps({"choices": [choice], "usage": usage, "model": model, "error": fault}).encode()
    try:
        answer = read_completion(body, replace(REQUEST, tools=TOOLS if offered else ()))
    except ModelError:
        return
    calls = [text for call in answer.tool_calls for text in (call.id, call.name, call.arguments)]
    for said in (answer.content, answer.model, *calls):
        assert "\x00" not in said
        said.encode()
    assert answer.content.strip() or calls
    assert all(calls)
    assert offered or not calls
    assert len({call.id for call in answer.tool_calls}) == len(answer.tool_calls)
    assert answer.usage.input_tokens >= 0
    assert answer.usage.output_tokens >= 0


@pytest.mark.parametrize("depth", [100, 900, 950, 970, 980, 985, 990, 995, 1_000, 5_000, 200_000])
@pytest.mark.parametrize(
    "shape",
    [
        b'{"error": %s}',
        b'{"error": {"message": %s}}',
        b'{"error": {"detail": %s}}',
        b'{"choices": [{"message": %s}]}',
        b'{"choices": [{"message": {"tool_calls": %s}}]}',
        b'{"choices": [{"message": {"tool_calls": [{"function": {"name": %s}}]}}]}',
    ],
)
def test_a_nest_of_any_depth_is_a_model_error(shape: bytes, depth: int) -> None:
    with pytest.raises(ModelError):
        read_completion(shape % (b"[" * depth + b"1" + b"]" * depth), replace(REQUEST, tools=TOOLS))


@pytest.mark.parametrize("depth", [100, 900, 950, 970, 980, 985, 990, 995, 1_000, 5_000, 200_000])
def test_arguments_nested_to_any_depth_are_read_or_spoiled(depth: int) -> None:
    nest = b"[" * depth + b"1" + b"]" * depth
    body = b'{"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": %s}}]}}]}' % nest
    try:
        (call,) = read_completion(body, replace(REQUEST, tools=TOOLS)).tool_calls
    except ModelError:
        return
    assert call.arguments == nest.decode()
