"""The openai model over real HTTP: what an endpoint's errors mean, and how long to wait after them."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from app.domain.errors import (
    AuthFailed,
    CallRefused,
    FormatRefused,
    ModelError,
    TransportFault,
)
from app.llm.chat import FormatLevel, ResponseSchema
from tests.endpoint import JSON_TYPE, KEY, LIMIT, Endpoint, a_request, completion, model_at
from tests.patience import bounded
from tests.scripted_model import Reply, error, raw, reset, text, verbatim

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
        (raw(b"", status=302, headers={"Location": "/elsewhere"}), "redirected"),
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


async def test_what_is_remembered_of_strict_schemas_says_nothing_of_others(endpoint: Endpoint) -> None:
    endpoint.answers(text("{}"))
    lax = ResponseSchema(name="result", schema={"type": "object"}, strict=False)
    await endpoint.ask(structured=True, format_at_most=FormatLevel.TEXT)
    for level in (FormatLevel.JSON_OBJECT, FormatLevel.JSON_SCHEMA):
        await endpoint.model.complete(replace(a_request(model=endpoint.name), response=lax, format_at_most=level))
    await endpoint.ask(structured=True)
    assert endpoint.formats == ["text", "json_object", "json_object", "text"]


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


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\x00", "\x7f"])
async def test_a_key_that_no_header_can_carry_is_not_told(endpoint: Endpoint, ending: str) -> None:
    async with model_at(endpoint.server.url, key=KEY + ending) as model:
        with pytest.raises(ModelError) as raised:
            await model.complete(a_request())
    assert KEY not in f"{raised.value.message} {raised.value!r}"
