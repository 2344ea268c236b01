"""The openai model over real HTTP: every way in which an endpoint answers, errs, stalls or breaks off."""

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.agents.planner import PLAN_SCHEMA
from app.domain.errors import (
    AuthFailed,
    CallRefused,
    FormatRefused,
    ModelDeclined,
    ModelError,
    SpoiledAnswer,
    TransportFault,
)
from app.domain.usage import Usage
from app.llm.chat import ChatAnswer, ChatRequest, FormatLevel, Message
from app.llm.openai_model import OpenAIModel, read_completion
from tests.patience import bounded
from tests.scripted_model import Call, Reply, ScriptedModel, error, hang, raw, reset, text, verbatim, wire

KEY = "sk-secret-0123456789"
LIMIT = 1024 * 1024
PATIENCE_SECONDS = 30.0


def a_request(
    *,
    model: str = "m",
    structured: bool = False,
    format_at_most: FormatLevel = FormatLevel.JSON_SCHEMA,
    timeout_seconds: float = PATIENCE_SECONDS,
) -> ChatRequest:
    return ChatRequest(
        model=model,
        messages=[Message(role="system", content="Be brief."), Message(role="user", content="Hi?")],
        response=PLAN_SCHEMA if structured else None,
        format_at_most=format_at_most,
        headers={"X-Planwave-Run": "r1", "X-Planwave-Seat": "executor", "X-Planwave-Task": "0.a%20b"},
        timeout_seconds=timeout_seconds,
    )


@asynccontextmanager
async def model_at(url: str, *, key: str = KEY, max_concurrency: int = 4) -> AsyncIterator[OpenAIModel]:
    model = OpenAIModel(base_url=url, api_key=key, max_concurrency=max_concurrency, max_answer_bytes=LIMIT)
    try:
        yield model
    finally:
        await model.close()


@pytest.fixture
async def model(scripted_model: ScriptedModel) -> AsyncIterator[OpenAIModel]:
    async with model_at(scripted_model.url) as made:
        yield made


class Endpoint:
    """A scripted endpoint and a model pointed at it, for one exchange after the other."""

    def __init__(self, server: ScriptedModel, model: OpenAIModel) -> None:
        self.server, self.model = server, model

    def answers(self, *replies: Reply) -> None:
        """These in turn; the last one stays."""
        left = list(replies)
        self.server.begin(lambda _: left.pop(0) if len(left) > 1 else left[0])

    async def ask(self, reply: Reply | None = None, **request: Any) -> ChatAnswer:
        if reply is not None:
            self.answers(reply)
        return await self.model.complete(a_request(**request))

    async def fault(self, reply: Reply | None = None, **request: Any) -> ModelError:
        """The error that this reply makes."""
        with pytest.raises(ModelError) as raised:
            await self.ask(reply, **request)
        return raised.value

    @property
    def formats(self) -> list[str]:
        """Which response formats were asked for, call by call."""
        return [(call.response_format or {"type": "text"})["type"] for call in self.server.calls]


@pytest.fixture
def endpoint(scripted_model: ScriptedModel, model: OpenAIModel) -> Endpoint:
    return Endpoint(scripted_model, model)


def completion(**message: Any) -> dict[str, Any]:
    """A completion's body with this message."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi.", **message}}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "scripted", "choices": [choice]}


# What is sent, and a sound answer.


async def test_a_sound_answer_comes_back_with_its_model_and_usage(endpoint: Endpoint) -> None:
    answer = await endpoint.ask(text("Hello.", usage={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}))
    assert answer == ChatAnswer(content="Hello.", model="scripted", usage=Usage(input_tokens=7, output_tokens=3))


async def test_the_request_carries_messages_headers_and_key(endpoint: Endpoint) -> None:
    await endpoint.ask(text("x"))
    (call,) = endpoint.server.calls
    assert call.body == {
        "model": "m",
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


async def test_a_schema_is_sent_as_a_strict_one(endpoint: Endpoint) -> None:
    await endpoint.ask(text("{}"), structured=True)
    assert endpoint.server.calls[0].response_format == {
        "type": "json_schema",
        "json_schema": {"name": "plan", "schema": PLAN_SCHEMA.schema, "strict": True},
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
    assert (await endpoint.ask(verbatim(body))).model == "m"


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


async def test_a_refusal_is_declined_in_the_models_words(endpoint: Endpoint) -> None:
    fault = await endpoint.fault(verbatim(completion(content=None, refusal="I will not.")))
    assert (type(fault), fault.kind, fault.message) == (ModelDeclined, "refusal", "The model refused: I will not.")


async def test_a_content_filter_declines(endpoint: Endpoint) -> None:
    fault = await endpoint.fault(text("", finish_reason="content_filter"))
    assert (type(fault), fault.kind) == (ModelDeclined, "content_filter")


# Bodies that are no completion.

JSON_TYPE = {"Content-Type": "application/json"}


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


# Errors.


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (error(408), "http_408"),
        (error(409), "http_409"),
        (error(425), "http_425"),
        (error(429, code="rate_limit_exceeded"), "rate_limited"),
        (error(500), "http_500"),
        (raw(b"<html><h1>Bad Gateway</h1>\n</html>", status=502, headers={"Content-Type": "text/html"}), "http_502"),
        (raw(b"", status=503), "http_503"),
        (error(529), "http_529"),
        (verbatim({"error": {"message": "overloaded", "code": 503}}), "http_503"),
        (verbatim({"error": {"message": "slow down", "code": 429}}), "rate_limited"),
        (verbatim({"error": "it broke", "choices": []}), "http_500"),
        (verbatim({"error": {"code": "server_error"}}), "http_500"),
    ],
)
async def test_a_passing_trouble_is_a_transport_fault(endpoint: Endpoint, reply: Reply, kind: str) -> None:
    fault = await endpoint.fault(reply)
    assert (type(fault), fault.kind) == (TransportFault, kind)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (error(400), "bad_request"),
        (error(400, code="context_length_exceeded"), "context_length_exceeded"),
        (error(404), "not_found"),
        (error(413), "bad_request"),
        (error(422), "bad_request"),
        (raw(b"", status=302, headers={"Location": "/elsewhere"}), "bad_request"),
        (verbatim({"error": {"message": "no such model", "code": 404}}), "not_found"),
    ],
)
async def test_a_request_that_will_never_do_is_refused(endpoint: Endpoint, reply: Reply, kind: str) -> None:
    fault = await endpoint.fault(reply)
    assert (type(fault), fault.kind) == (CallRefused, kind)


@pytest.mark.parametrize("status", [401, 403])
async def test_credentials_that_are_not_accepted_are_told_apart(endpoint: Endpoint, status: int) -> None:
    fault = await endpoint.fault(error(status))
    assert (type(fault), fault.kind) == (AuthFailed, "llm_auth_failed")


async def test_an_error_is_told_in_the_endpoints_own_words(endpoint: Endpoint) -> None:
    assert (await endpoint.fault(error(400, message="max_tokens is too large"))).message == (
        "HTTP 400: max_tokens is too large"
    )


async def test_an_error_page_is_told_in_its_words_without_markup(endpoint: Endpoint) -> None:
    page = b"<html><head><title>502</title></head>\n<body><h1>Bad   Gateway</h1></body></html>"
    fault = await endpoint.fault(raw(page, status=502, headers={"Content-Type": "text/html"}))
    assert fault.message == "HTTP 502: 502 Bad Gateway"


@pytest.mark.parametrize("body", [b"x" * 500_000, json.dumps({"error": {"message": "y" * 500_000}}).encode()])
async def test_an_endless_error_is_told_in_part(endpoint: Endpoint, body: bytes) -> None:
    assert len((await endpoint.fault(raw(body, status=500))).message) < 1_000


@pytest.mark.parametrize("message", [None, 7, ["x"], {"x": "y"}])
async def test_an_error_whose_message_is_no_text_is_an_error_all_the_same(endpoint: Endpoint, message: object) -> None:
    body = json.dumps({"error": {"message": message, "code": message}}).encode()
    assert (await endpoint.fault(raw(body, status=400))).kind == "bad_request"


@pytest.mark.parametrize("charset", ["utf-8", "latin-1", "utf-16", "hex", "rot13", "zlib", "base64", "idna", "no-such"])
async def test_an_error_in_any_charset_is_known_by_its_status(endpoint: Endpoint, charset: str) -> None:
    headers = {"Content-Type": f"application/json; charset={charset}"}
    fault = await endpoint.fault(raw(error(503).body, status=503, headers=headers))
    assert fault.kind == "http_503"


async def test_an_error_page_of_opening_brackets_does_not_freeze_the_process(endpoint: Endpoint) -> None:
    page = raw(b"<" * (LIMIT - 1), status=502, headers={"Content-Type": "text/html"})
    with bounded(seconds=10):
        assert (await endpoint.fault(page)).kind == "http_502"


# How long to wait.


async def retry_after(endpoint: Endpoint, status: int, headers: dict[str, str]) -> float | None:
    fault = await endpoint.fault(error(status, headers=headers))
    assert isinstance(fault, TransportFault)
    return fault.retry_after_seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After-Ms": "250"}, 0.25),
        ({"Retry-After-Ms": "250", "Retry-After": "9"}, 0.25),
        ({"Retry-After-Ms": "soon", "Retry-After": "9"}, 9),
        ({"X-RateLimit-Reset-Requests": "6m0s"}, 360),
        ({"X-RateLimit-Reset-Requests": "1s", "X-RateLimit-Reset-Tokens": "1h2m3.5s"}, 3723.5),
        ({"X-RateLimit-Reset-Tokens": "120ms"}, 0.12),
        (
            {"X-RateLimit-Reset-Requests": "1s", "X-RateLimit-Reset-Tokens": "9s", "X-RateLimit-Remaining-Tokens": "5"},
            1,
        ),
        ({"Retry-After": "2", "X-RateLimit-Reset-Tokens": "9s"}, 2),
        ({}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"X-RateLimit-Reset-Tokens": "later"}, None),
    ],
)
async def test_an_endpoint_may_say_how_long_to_wait(
    endpoint: Endpoint, headers: dict[str, str], seconds: float | None
) -> None:
    assert await retry_after(endpoint, 429, headers) == seconds


async def test_a_date_to_wait_for_is_counted_from_now(endpoint: Endpoint) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    waited = await retry_after(endpoint, 503, {"Retry-After": format_datetime(at, usegmt=True)})
    assert waited is not None
    assert 3_000 < waited <= 3_600


async def test_a_date_in_the_past_is_no_wait(endpoint: Endpoint) -> None:
    assert await retry_after(endpoint, 503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0


async def test_the_state_of_a_rate_limit_matters_only_where_the_limit_is_hit(endpoint: Endpoint) -> None:
    assert await retry_after(endpoint, 503, {"X-RateLimit-Reset-Requests": "6m0s"}) is None


@pytest.mark.parametrize(
    "date",
    [
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2026 00:00:00 +99999999999999999999",
        "Mon, 99 Jan 2026 00:00:00 GMT",
        "tomorrow",
    ],
)
async def test_a_date_that_cannot_be_is_no_date(endpoint: Endpoint, date: str) -> None:
    assert await retry_after(endpoint, 503, {"Retry-After": date}) is None


async def test_a_reset_of_endless_digits_does_not_freeze_the_process(endpoint: Endpoint) -> None:
    with bounded(seconds=10):
        await retry_after(endpoint, 429, {"X-RateLimit-Reset-Tokens": "9" * 30_000})


# Connections.


async def test_a_refused_connection_is_a_transport_fault() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        async with model_at(f"http://127.0.0.1:{taken.getsockname()[1]}/v1") as model:
            with pytest.raises(TransportFault) as raised:
                await model.complete(a_request())
    assert raised.value.kind == "connection"


@pytest.mark.parametrize("url", ["http://planwave.invalid/v1", "no-scheme/v1", "ftp://127.0.0.1/v1"])
async def test_an_address_that_leads_nowhere_is_a_transport_fault(url: str) -> None:
    async with model_at(url) as model:
        with pytest.raises(TransportFault) as raised:
            await model.complete(a_request())
    assert raised.value.kind == "connection"


@pytest.mark.parametrize(
    "reply",
    [
        reset(),
        text("x").cut(body_bytes=0),
        text("x").cut(body_bytes=30),
        wire(b""),
        wire(b"HTTP/1.1 200"),
        wire(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"),
        wire(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        wire(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}"),
        wire(b"HTTP/9.9 777 What\r\n\r\n"),
        wire(b"SSH-2.0-OpenSSH_9.6\r\n"),
        wire(b"\x00\x01\x02\x03" * 100),
        wire(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 500_000 + b"\r\n\r\n"),
        wire(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
    ],
)
async def test_an_exchange_that_breaks_off_is_a_transport_fault(endpoint: Endpoint, reply: Reply) -> None:
    fault = await endpoint.fault(reply)
    assert isinstance(fault, TransportFault)
    assert (await endpoint.ask(text("fine"))).content == "fine"


@pytest.mark.parametrize(
    "reply",
    [
        hang(),
        text("x").dripping(1.0),
        Reply(stream=b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{").after(0.0),
        Reply(stream=b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
async def test_the_time_bounds_the_whole_call_however_it_stalls(endpoint: Endpoint, reply: Reply) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        fault = await endpoint.fault(reply, timeout_seconds=0.2)
    assert (type(fault), fault.kind, fault.message) == (TransportFault, "timeout", "No complete answer within 0.2 s.")
    await endpoint.server.until(lambda: endpoint.server.calls[0].disconnected or reply.stream is not None)


async def test_cancelling_the_caller_closes_the_connection(endpoint: Endpoint) -> None:
    endpoint.answers(hang())
    asking = asyncio.create_task(endpoint.ask())
    await endpoint.server.until(lambda: len(endpoint.server.calls) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await endpoint.server.until(lambda: endpoint.server.calls[0].disconnected)


class CountingModel(ScriptedModel):
    """Knows how many connections were opened."""

    opened_count = 0

    def opened(self, connection: Any) -> None:
        self.opened_count += 1
        super().opened(connection)


async def test_a_connection_is_used_again_and_again() -> None:
    async with CountingModel(lambda _: text("x")) as server, model_at(server.url) as model:
        for _ in range(5):
            await model.complete(a_request())
        assert (len(server.calls), server.opened_count) == (5, 1)


async def test_a_connection_outlives_an_error() -> None:
    async with CountingModel(lambda _: error(503)) as server, model_at(server.url) as model:
        for _ in range(3):
            with pytest.raises(TransportFault):
                await model.complete(a_request())
        assert (len(server.calls), server.opened_count) == (3, 1)


async def test_no_more_connections_are_open_than_allowed() -> None:
    full, in_flight, most = asyncio.Event(), 0, 0

    async def answer(_: Call) -> Reply:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        if in_flight == 3:
            full.set()
        await full.wait()
        in_flight -= 1
        return text("x")

    async with CountingModel(answer) as server, model_at(server.url, max_concurrency=3) as model:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*(model.complete(a_request()) for _ in range(12)))
        assert (most, server.opened_count) == (3, 3)


@pytest.mark.parametrize("cancels", [1, 2, 5])
async def test_cancelled_calls_leave_their_connections_to_others(cancels: int) -> None:
    async with ScriptedModel(lambda _: hang()) as server, model_at(server.url, max_concurrency=2) as model:
        for _ in range(3):
            server.begin(lambda _: hang())
            asking = [asyncio.create_task(model.complete(a_request())) for _ in range(4)]
            await server.until(lambda: len(server.calls) == 2)
            for _ in range(cancels):
                for task in asking:
                    task.cancel()
                await asyncio.sleep(0)
            await asyncio.gather(*asking, return_exceptions=True)
        server.begin(lambda _: text("fine"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            answers = await asyncio.gather(*(model.complete(a_request()) for _ in range(4)))
        assert [answer.content for answer in answers] == ["fine"] * 4


# The format ladder.


async def test_a_refused_format_is_named_so_that_the_caller_can_ask_below_it(endpoint: Endpoint) -> None:
    endpoint.answers(error(400, message="what is a json_schema?"), error(422), text("{}"))
    refused = await endpoint.fault(structured=True)
    assert isinstance(refused, FormatRefused)
    assert (refused.kind, refused.level, refused.message) == (
        "format_refused",
        FormatLevel.JSON_SCHEMA,
        "HTTP 400: what is a json_schema?",
    )
    refused = await endpoint.fault(structured=True, format_at_most=FormatLevel.JSON_OBJECT)
    assert isinstance(refused, FormatRefused)
    assert refused.level == FormatLevel.JSON_OBJECT
    await endpoint.ask(structured=True, format_at_most=FormatLevel.TEXT)
    assert endpoint.formats == ["json_schema", "json_object", "text"]


@pytest.mark.parametrize("level", FormatLevel)
async def test_the_format_that_was_taken_is_remembered(endpoint: Endpoint, level: FormatLevel) -> None:
    endpoint.answers(text("{}"))
    await endpoint.ask(structured=True, format_at_most=level)
    await endpoint.ask(structured=True)
    names = {FormatLevel.TEXT: "text", FormatLevel.JSON_OBJECT: "json_object", FormatLevel.JSON_SCHEMA: "json_schema"}
    assert endpoint.formats == [names[level]] * 2


async def test_a_format_is_remembered_though_the_answer_is_spoiled(endpoint: Endpoint) -> None:
    endpoint.answers(text("", finish_reason="length"), text("{}"))
    await endpoint.fault(structured=True, format_at_most=FormatLevel.JSON_OBJECT)
    await endpoint.ask(structured=True)
    assert endpoint.formats == ["json_object", "json_object"]


async def test_what_is_remembered_is_remembered_for_that_model_alone(endpoint: Endpoint) -> None:
    endpoint.answers(text("{}"))
    await endpoint.ask(structured=True, format_at_most=FormatLevel.TEXT)
    await endpoint.ask(structured=True, model="other")
    assert endpoint.formats == ["text", "json_schema"]


async def test_a_request_refused_in_every_format_was_not_refused_for_its_format(endpoint: Endpoint) -> None:
    endpoint.answers(error(400))
    faults = [await endpoint.fault(structured=True, format_at_most=level) for level in reversed(FormatLevel)]
    assert [type(fault) for fault in faults] == [FormatRefused, FormatRefused, CallRefused]
    await endpoint.fault(structured=True)
    assert endpoint.formats == ["json_schema", "json_object", "text", "json_schema"]


@pytest.mark.parametrize(
    "reply",
    [
        error(400),
        error(401),
        error(403),
        error(404),
        error(400, code="context_length_exceeded"),
        error(429),
        error(500),
        error(503),
        reset(),
        raw(b"no completion"),
        verbatim({"error": {"message": "json_schema worker is overloaded", "code": 429}}),
    ],
)
async def test_what_gave_no_answer_changes_nothing_that_is_remembered(endpoint: Endpoint, reply: Reply) -> None:
    endpoint.answers(reply, text("{}"))
    await endpoint.fault(structured=True, format_at_most=FormatLevel.JSON_OBJECT)
    await endpoint.ask(structured=True)
    assert endpoint.formats == ["json_object", "json_schema"]


@pytest.mark.parametrize("reply", [error(401), error(403), error(404), error(400, code="context_length_exceeded")])
async def test_what_has_nothing_to_do_with_the_format_is_not_laid_at_its_door(endpoint: Endpoint, reply: Reply) -> None:
    fault = await endpoint.fault(reply, structured=True)
    assert not isinstance(fault, FormatRefused)


async def test_a_format_refused_within_a_200_is_refused_all_the_same(endpoint: Endpoint) -> None:
    reply = verbatim({"error": {"message": "response_format is not supported", "code": 400}})
    endpoint.answers(reply, text("{}"))
    assert isinstance(await endpoint.fault(structured=True), FormatRefused)


async def test_a_server_that_breaks_on_a_format_refuses_it(endpoint: Endpoint) -> None:
    broken = error(500, message="response_format.type: Input should be 'text' or 'json_object'")
    assert isinstance(await endpoint.fault(broken, structured=True), FormatRefused)


async def test_a_broken_server_that_speaks_of_formats_unasked_is_a_transport_fault(endpoint: Endpoint) -> None:
    fault = await endpoint.fault(error(500, message="worker for json_schema requests crashed"))
    assert (type(fault), fault.kind) == (TransportFault, "http_500")


async def test_a_request_without_a_schema_is_never_laddered(endpoint: Endpoint) -> None:
    endpoint.answers(error(400), text("x"), text("{}"))
    assert type(await endpoint.fault()) is CallRefused
    await endpoint.ask()
    await endpoint.ask(structured=True)
    assert endpoint.formats == ["text", "text", "json_schema"]


# The key.


@pytest.mark.parametrize(
    "reply",
    [
        error(400, message=f"bad request with Authorization: Bearer {KEY}"),
        error(401, message=f"Incorrect API key provided: {KEY}."),
        error(500, message=f"cannot log in with {KEY}"),
        raw(f"<p>{KEY}</p>".encode(), status=502, headers={"Content-Type": "text/html"}),
        verbatim({"error": {"message": f"key {KEY} is out of quota", "code": 429}}),
        raw(b"x", headers={"Content-Type": f"text/{KEY}"}),
        raw(b"x", headers={**JSON_TYPE, "Content-Encoding": KEY}),
        verbatim(completion(content=None, refusal=f"I do not like {KEY}")),
    ],
)
async def test_an_endpoint_that_echoes_the_key_does_not_get_it_into_an_error(endpoint: Endpoint, reply: Reply) -> None:
    fault = await endpoint.fault(reply)
    assert KEY not in f"{fault.message} {fault} {fault!r}"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\x00", "\x7f", "\N{RIGHT SINGLE QUOTATION MARK}"])
async def test_a_key_that_no_header_can_carry_is_not_told(scripted_model: ScriptedModel, ending: str) -> None:
    async with model_at(scripted_model.url, key=KEY + ending) as model:
        with pytest.raises(ModelError) as raised:
            await model.complete(a_request())
    assert KEY not in f"{raised.value.message} {raised.value!r}"


# Anything at all.

Exchange = Callable[[Reply], ChatAnswer | ModelError]


@pytest.fixture(scope="module")
def exchange() -> Iterator[Exchange]:
    """One reply, one outcome, over connections of its own; anything but a `ModelError` comes through."""
    with asyncio.Runner() as runner:
        server = ScriptedModel(lambda _: text("x"))
        runner.run(server.__aenter__())
        model = OpenAIModel(base_url=server.url, api_key=KEY, max_concurrency=2, max_answer_bytes=LIMIT)

        def once(reply: Reply) -> ChatAnswer | ModelError:
            server.begin(lambda _: reply)
            try:
                return runner.run(model.complete(a_request(structured=True, timeout_seconds=0.3)))
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


@given(
    content=anything,
    refusal=anything,
    finish_reason=anything | st.sampled_from(["stop", "length"]),
    usage=anything | st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens"]), anything),
    model=anything,
    fault=st.none() | anything,
    called=anything,
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
) -> None:
    message = {"content": content, "refusal": refusal, "tool_calls": called, "function_call": called}
    choice = {"message": message, "finish_reason": finish_reason}
    body = json.dumps({"choices": [choice], "usage": usage, "model": model, "error": fault}).encode()
    try:
        answer = read_completion(body, a_request())
    except ModelError:
        return
    for said in (answer.content, answer.model):
        assert "\x00" not in said
        said.encode()
    assert answer.content.strip()
    assert answer.usage.input_tokens >= 0
    assert answer.usage.output_tokens >= 0


@pytest.mark.parametrize("depth", [100, 900, 950, 970, 980, 985, 990, 995, 1_000, 5_000, 200_000])
@pytest.mark.parametrize("shape", [b'{"error": %s}', b'{"error": {"message": %s}}', b'{"choices": [{"message": %s}]}'])
def test_a_nest_of_any_depth_is_a_model_error(shape: bytes, depth: int) -> None:
    with pytest.raises(ModelError):
        read_completion(shape % (b"[" * depth + b"1" + b"]" * depth), a_request())
