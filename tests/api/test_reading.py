"""Bodies that no service should choke on: each is refused with its reason, before any SQL."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.api.asking import NOWHERE, code_of, places_of

ROUTES = ("/goals", f"/goals/{NOWHERE}/runs")
JSON = {"Content-Type": "application/json"}

NOT_JSON = {
    "nothing but space": b"  ",
    "cut off": b'{"goal": "x"',
    "text after it": b'{"goal": "x"} {}',
    "a trailing comma": b'{"goal": "x",}',
    "single quotes": b"{'goal': 'x'}",
    "a comment": b'{"goal": "x" /* no */}',
    "a bare word": b"goal",
    "invalid UTF-8": b'{"goal": "\xff"}',
    "a byte order mark": b'\xef\xbb\xbf{"goal": "x"}',
    "UTF-16": '{"goal": "x"}'.encode("utf-16"),
    "a raw NUL": b'{"goal": "\x00"}',
    "a raw line break in a string": b'{"goal": "\n"}',
    "a bad escape": rb'{"goal": "\x41"}',
    "NaN": b'{"goal": "x", "context": NaN}',
    "Infinity": b'{"goal": "x", "context": [Infinity]}',
    "-Infinity": b'{"goal": "x", "context": {"a": -Infinity}}',
    "a float that overflows": b'{"goal": "x", "context": 1e999}',
    "a member twice": b'{"goal": "x", "goal": "y"}',
    "a member twice deep inside": b'{"goal": "x", "context": [{"a": 1, "a": 1}]}',
    "33 levels": b'{"goal": "x", "context": ' + b"[" * 32 + b"]" * 32 + b"}",
    "500 levels": b'{"goal": "x", "context": ' + b'{"a":' * 500 + b"1" + b"}" * 501,
    "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
    "100,000 levels, left open": b"[" * 100_000,
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
async def test_what_is_no_json_is_refused(lonely: httpx.AsyncClient, route: str, body: bytes) -> None:
    response = await lonely.post(route, content=body, headers=JSON)

    assert code_of(response, 400) == "invalid_json"


UNSTORABLE = {
    "NUL in the goal": (rb'{"goal": "a\u0000b"}', "/goal", "invalid_text"),
    "a lone high surrogate": (rb'{"goal": "\ud800"}', "/goal", "invalid_text"),
    "a lone low surrogate": (rb'{"goal": "\uDFFF"}', "/goal", "invalid_text"),
    "surrogates in the wrong order": (rb'{"goal": "\udc00\ud800"}', "/goal", "invalid_text"),
    "a surrogate in metadata": (rb'{"goal": "x", "metadata": {"a": "\ud83d"}}', "/metadata/a", "invalid_text"),
    "NUL deep in the context": (
        rb'{"goal": "x", "context": {"a/b": [1, "\u0000"]}}',
        "/context/a~1b/1",
        "invalid_text",
    ),
    "an integer beyond 2^53": (b'{"goal": "x", "context": [9007199254740993]}', "/context/0", "out_of_range"),
    "an integer below -2^53": (b'{"goal": "x", "context": -9007199254740993}', "/context", "out_of_range"),
    "an integer of 10,000 digits": (b'{"goal": "x", "context": ' + b"9" * 10_000 + b"}", "/context", "out_of_range"),
    "a large option": (
        b'{"goal": "x", "options": {"max_tasks": 9223372036854775808}}',
        "/options/max_tasks",
        "out_of_range",
    ),
}


@pytest.mark.parametrize(("body", "place", "code"), UNSTORABLE.values(), ids=UNSTORABLE)
async def test_values_that_cannot_be_kept_are_refused_where_they_stand(
    lonely: httpx.AsyncClient, body: bytes, place: str, code: str
) -> None:
    response = await lonely.post("/goals", content=body, headers=JSON)

    assert code_of(response, 422) == "invalid_request"
    assert places_of(response) == [(place, code)]


async def test_an_unknown_field_whose_name_is_half_a_character_is_refused_in_valid_utf8(
    lonely: httpx.AsyncClient,
) -> None:
    response = await lonely.post("/goals", content=rb'{"goal": "x", "\ud800": 1}', headers=JSON)

    assert code_of(response, 422) == "invalid_request"
    assert places_of(response) == [("/\N{REPLACEMENT CHARACTER}", "invalid_text")]


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"1", b"null", b"true"])
async def test_a_body_that_is_no_object_is_refused(lonely: httpx.AsyncClient, body: bytes) -> None:
    response = await lonely.post("/goals", content=body, headers=JSON)

    assert code_of(response, 422) == "invalid_request"
    assert places_of(response) == [("", "wrong_type")]


ODD_BUT_SOUND = {
    "32 levels": b'{"goal": "x", "context": ' + b"[" * 31 + b"]" * 31 + b"}",
    "whole surrogate pairs": rb'{"goal": "\ud83d\ude00"}',
    "an escaped backslash before u0000": rb'{"goal": "\\u0000"}',
    "the largest integer": b'{"goal": "x", "context": [9007199254740992, -9007199254740992]}',
    "floats": b'{"goal": "x", "context": [1e308, 1e-400, -0.0, 12345678901234567890.5]}',
    "brackets in a string": b'{"goal": "' + b"[" * 1_000 + b'"}',
    "other writing": '{"goal": "Ζ\u202e\U000e0041 \u2028"}'.encode(),
}


@pytest.mark.parametrize("body", ODD_BUT_SOUND.values(), ids=ODD_BUT_SOUND)
async def test_odd_but_sound_json_is_taken(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/goals", content=body, headers={"Content-Type": "application/json; charset=utf-8"})

    assert response.status_code == 202, response.text


async def test_a_context_comes_back_as_it_was_sent(client: httpx.AsyncClient) -> None:
    context = {"a": [1, 2.5, None, True, {"б": "\u2028"}], "": {}}
    run = (await client.post("/goals", json={"goal": "x", "context": context})).json()

    assert (await client.get(run["links"]["goal"])).json()["context"] == context


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/jsonlines"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
@pytest.mark.parametrize("route", ROUTES)
async def test_a_body_of_another_type_is_refused(
    lonely: httpx.AsyncClient, route: str, headers: dict[str, str]
) -> None:
    response = await lonely.post(route, content=b'{"goal": "x"}', headers=headers)

    assert code_of(response, 415) == "unsupported_media_type"


async def test_a_body_of_more_than_256_kib_without_a_plan_is_refused(lonely: httpx.AsyncClient) -> None:
    response = await lonely.post("/goals", content=b'{"goal": "x"' + b" " * 256 * 1024 + b"}", headers=JSON)

    assert code_of(response, 413) == "body_too_large"


async def test_a_body_of_more_than_256_kib_with_a_plan_is_taken(client: httpx.AsyncClient) -> None:
    plan = {"tasks": [{"id": 1, "description": "y" * 300_000}]}

    response = await client.post("/goals", json={"goal": "x", "plan": plan})

    assert response.status_code == 202, response.text


async def test_a_body_announced_as_too_large_is_refused_unread(lonely: httpx.AsyncClient) -> None:
    response = await lonely.post("/goals", content=b"", headers={**JSON, "Content-Length": str(2**40)})

    assert code_of(response, 413) == "body_too_large"


async def test_a_body_that_turns_out_too_large_is_read_no_further(lonely: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1_000:
            sent += 1
            yield b" " * 64 * 1024

    response = await lonely.post("/goals", content=endless(), headers=JSON)

    assert code_of(response, 413) == "body_too_large"
    assert sent * 64 * 1024 <= 4 * 1024 * 1024 + 64 * 1024
