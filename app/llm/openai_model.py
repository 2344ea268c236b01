"""A model behind an OpenAI-compatible endpoint, through the openai SDK."""

import asyncio
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from app.domain.errors import (
    AuthFailed,
    CallRefused,
    FormatRefused,
    ModelDeclined,
    ModelError,
    SpoiledAnswer,
    TransportFault,
)
from app.domain.text import shortened, storable
from app.domain.usage import Usage
from app.llm.chat import ChatAnswer, ChatRequest, FormatLevel
from app.llm.transport import Transport, TransportError

_SHORTEST_SECRET = 8  # shorter ones are placeholders for servers that ask for no key
_MAX_HEADER_CHARACTERS = 64
_MAX_ERROR_CHARACTERS = 4_000
_TRANSIENT_STATUSES = {408, 409, 425, 429}
_MAX_TOKENS = 10**7  # more than any model reads or writes in a call: beyond it the count is not true
_FORMAT_WORDS = re.compile(r"response_format|json_schema|json_object|structured[ _]output", re.IGNORECASE)
_SECRET = re.compile(r"\b(?:sk|pk|rk|key)-[A-Za-z0-9_-]{12,}|(?<=Bearer )\S{12,}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class OpenAIModel:
    """The `ChatModel` of an endpoint. One client and connection pool per process; no retries of its own.

    It remembers which response format the endpoint takes, per model and for strict schemas and others apart:
    `json_schema`, else `json_object`, else text.
    """

    def __init__(self, *, base_url: str | None, api_key: str, max_concurrency: int, max_answer_bytes: int) -> None:
        # The SDK says where the endpoint is and how one speaks to it. Its client is not used for the exchange: most of
        # a call's cost was in its layers (ADR 6).
        sdk = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0)
        said = {**sdk.default_headers, **sdk.auth_headers, "Accept-Encoding": "identity"}
        self._headers = {name: value for name, value in said.items() if isinstance(value, str)}
        self._url = f"{sdk.base_url}chat/completions"
        self._transport = Transport(max_connections=max_concurrency, max_bytes=max_answer_bytes)
        visible = "".join(character for character in api_key if " " < character <= "~")
        self._key = visible if len(visible) >= _SHORTEST_SECRET else ""
        self._levels: dict[tuple[str, bool], FormatLevel] = {}

    async def complete(self, request: ChatRequest) -> ChatAnswer:
        """Ask once; see `ChatModel` for what it raises."""
        level = FormatLevel.TEXT
        if request.response is not None:
            known = self._levels.get((request.model, request.response.strict), FormatLevel.JSON_SCHEMA)
            level = min(known, request.format_at_most)
        try:
            async with asyncio.timeout(request.timeout_seconds):
                body = await self._send(request, level)
            answer = read_completion(body, request)
        except TimeoutError:
            seconds = f"{request.timeout_seconds:g}"
            raise TransportFault(f"No complete answer within {seconds} s.", kind="timeout") from None
        except CallRefused as refusal:
            if level is FormatLevel.TEXT or isinstance(refusal, AuthFailed) or refusal.kind in _NEVER_THE_FORMAT:
                raise
            # It may be the format that the endpoint does not take: a simpler one is next.
            raise FormatRefused(refusal.message, kind="format_refused", level=level) from None
        except SpoiledAnswer:
            self._remember(request, level)
            raise
        self._remember(request, level)
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    def _remember(self, request: ChatRequest, level: FormatLevel) -> None:
        """The endpoint takes this format from this model, whatever became of the answer."""
        if request.response is not None:
            self._levels[request.model, request.response.strict] = level

    async def _send(self, request: ChatRequest, level: FormatLevel) -> bytes:
        body: dict[str, Any] = {
            "model": request.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        }
        if request.response is not None and level is FormatLevel.JSON_SCHEMA:
            asked = request.response
            schema = {"name": asked.name, "schema": dict(asked.schema), "strict": asked.strict}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.response is not None and level is FormatLevel.JSON_OBJECT:
            body["response_format"] = {"type": "json_object"}
        try:
            sent = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
            response = await self._transport.post(self._url, headers={**self._headers, **request.headers}, body=sent)
        except (TransportError, UnicodeError) as error:
            words = self._without_key(shortened(str(error), 300))
            raise TransportFault(f"Connection failed: {words}", kind="connection") from None
        if response.status >= 300:
            text = self._without_key(response.body.decode(errors="replace"))
            raise _named(response.status, response.headers, text, asked_for_json=level is not FormatLevel.TEXT)
        content_type = response.headers.get("content-type", "application/json").lower()
        if "json" not in content_type and "text/plain" not in content_type:
            got = self._without_key(shortened(content_type, 80))
            raise TransportFault(f"Expected JSON, got {got}.", kind="bad_body")
        return response.body.replace(self._key.encode(), b"[key]") if self._key else response.body

    def _without_key(self, text: str) -> str:
        """The text without our key, or what looks like another: an endpoint may echo them, and errors are shown."""
        known = text.replace(self._key, "[key]") if self._key else text
        return _SECRET.sub("[key]", known)


_NEVER_THE_FORMAT = {"not_found", "redirected", "context_length_exceeded"}


def read_completion(body: bytes, request: ChatRequest) -> ChatAnswer:
    """The answer in a chat completion's body, whoever made it: many endpoints break the letter of the schema.

    Raises `TransportFault` where the body is no completion, `SpoiledAnswer` where its answer cannot be used.
    """
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError):
        raise TransportFault("The body is not JSON.", kind="bad_body") from None
    if not isinstance(completion, dict):
        raise TransportFault("The body is not a completion.", kind="bad_body")
    if error := completion.get("error"):
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        raise _named(status, {}, json.dumps(error), asked_for_json=request.response is not None)
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise TransportFault("The body holds no choice with a message.", kind="bad_body")
    content = _text(message.get("content"))
    usage = _usage(completion.get("usage"), request, content)
    if spoiled := _spoiled(choice, message, content):
        kind, words = spoiled
        error_type = ModelDeclined if kind in ("refusal", "content_filter") else SpoiledAnswer
        raise error_type(words, kind=kind, usage=usage, content=storable(content) if kind == "length" else "")
    model = completion.get("model")
    return ChatAnswer(
        content=storable(content), model=storable(model) if isinstance(model, str) else request.model, usage=usage
    )


def _spoiled(choice: Mapping[str, Any], message: Mapping[str, Any], content: str) -> tuple[str, str] | None:
    """Why this answer cannot be used, as kind and words; None when it can."""
    if isinstance(refusal := message.get("refusal"), str) and refusal.strip():
        return "refusal", f"The model refused: {shortened(refusal, 500)}"
    match choice.get("finish_reason"):
        case "content_filter":
            return "content_filter", "The endpoint's content filter stopped the answer."
        case "length":
            return "length", "The answer was cut off at the endpoint's length limit."
    called = message.get("function_call")
    if message.get("tool_calls") or (isinstance(called, dict) and called.get("name")):
        return "unexpected_tool_call", "The model called a tool that it was not given."
    if not content.strip():
        return "empty", "The answer is empty."
    return None


def _text(content: object) -> str:
    """A message's content as text; some endpoints send a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return ""


def _usage(reported: object, request: ChatRequest, content: str) -> Usage:
    """What the endpoint counted; where it says nothing that can be true, four characters a token."""
    counts = reported if isinstance(reported, dict) else {}

    def tokens(name: str, characters: int) -> int:
        count = counts.get(name)
        sound = isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= _MAX_TOKENS
        return count if sound else math.ceil(characters / 4)  # type: ignore[return-value]

    asked = sum(len(message.content) for message in request.messages)
    return Usage(input_tokens=tokens("prompt_tokens", asked), output_tokens=tokens("completion_tokens", len(content)))


def _named(status: int, headers: Mapping[str, str], text: str, *, asked_for_json: bool) -> ModelError:
    """The error for an HTTP status, in the endpoint's own words where it has any."""
    code, words = _error_words(text)
    message = f"HTTP {status}: {words}" if words else f"HTTP {status}"
    if status >= 500 and asked_for_json and _FORMAT_WORDS.search(text):
        return CallRefused(message, kind="bad_request")  # some servers fail on a format instead of refusing it
    if status in _TRANSIENT_STATUSES or status >= 500:
        kind = "rate_limited" if status == 429 else f"http_{status}"
        return TransportFault(message, kind=kind, retry_after_seconds=_retry_after(status, headers))
    if status in (401, 403):
        return AuthFailed(message, kind="llm_auth_failed")
    if status == 404 or status < 400:
        return CallRefused(message, kind="not_found" if status == 404 else "redirected")
    if code == "context_length_exceeded":
        return CallRefused(message, kind=code)
    return CallRefused(message, kind="bad_request")


def _error_words(text: str) -> tuple[str | None, str]:
    """Code and message of an OpenAI-style error body, or the start of whatever came instead."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        start = re.sub(r"<[^<>]*>", " ", text[:_MAX_ERROR_CHARACTERS])
        return None, shortened(" ".join(start.split()), 300)
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return None, shortened(str(error), 300)
    code, message = error.get("code"), error.get("message")
    return code if isinstance(code, str) else None, shortened(str(message or ""), 500)


def _retry_after(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks us to wait (RFC 9110 section 10.2.3, and what OpenAI adds to it)."""
    if (ms := _number(_header(headers, "retry-after-ms"))) is not None:
        return ms / 1000
    if value := _header(headers, "retry-after"):
        if (seconds := _number(value)) is not None:
            return seconds
        try:
            until = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    if status != 429:
        return None
    waits = [
        sum(float(n) * _UNITS[unit] for n, unit in _DURATION.findall(_header(headers, f"x-ratelimit-reset-{what}")))
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}", "0") == "0"
    ]
    return max(waits, default=0.0) or None


def _header(headers: Mapping[str, str], name: str) -> str:
    return headers.get(name, "")[:_MAX_HEADER_CHARACTERS]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
