"""A model behind an OpenAI-compatible endpoint, through the openai SDK."""

import asyncio
import json
import math
import re
from collections.abc import Mapping, Set
from dataclasses import replace
from itertools import count
from typing import Any

import httpx2
import openai
import yarl

from app.domain.errors import (
    AuthFailed,
    CallRefused,
    ConfigurationError,
    FormatRefused,
    ModelDeclined,
    SpoiledAnswer,
    ToolsRefused,
    TransportFault,
)
from app.domain.text import shortened, storable
from app.domain.usage import Usage
from app.llm.chat import ChatAnswer, ChatRequest, FormatLevel, Message, ToolCall, tool_call
from app.llm.refusals import named
from app.llm.transport import Transport, TransportError, proxy_for
from app.tls import trusted

_SHORTEST_SECRET = 8  # shorter ones are placeholders for servers that ask for no key
_MAX_TOKENS = 10**7  # more than any model reads or writes in a call: beyond it the count is not true
_NO_NAME_CHARACTERS = re.compile(r"[^a-zA-Z0-9_-]")
_SECRET = re.compile(r"\b(?:sk|pk|rk|key)-[A-Za-z0-9_-]{12,}|(?<=Bearer )\S{12,}")
_NO_ADDRESS = "PLANWAVE_LLM_BASE_URL must be a plain address, such as https://api.openai.com/v1."


class OpenAIModel:
    """The `ChatModel` of an endpoint. One client and connection pool per process; no retries of its own.

    It remembers which response format the endpoint takes, per model and for strict schemas and others apart:
    `json_schema`, else `json_object`, else text; requests with tools are apart as well, for some endpoints take a
    format or tools, not both. It also remembers which models take no tools.
    """

    def __init__(self, *, base_url: str | None, api_key: str, max_concurrency: int, max_answer_bytes: int) -> None:
        # The SDK says where the endpoint is and how one speaks to it. Its client is not used for the exchange: most of
        # a call's cost was in its layers (ADR 6).
        unused = openai.DefaultAsyncHttpxClient(verify=trusted(), trust_env=False)
        try:
            sdk = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, http_client=unused)
            url = yarl.URL(f"{sdk.base_url}chat/completions", encoded=True)
            is_address = url.scheme in ("http", "https") and _is_plain(url)
        except (httpx2.InvalidURL, ValueError):
            is_address = False
        if not is_address:
            raise ConfigurationError(_NO_ADDRESS)
        said = {**sdk.default_headers, **sdk.auth_headers, "Accept-Encoding": "identity"}
        self._headers = {name: value for name, value in said.items() if isinstance(value, str)}
        self._url = url
        self._transport = Transport(max_connections=max_concurrency, max_bytes=max_answer_bytes, proxy=proxy_for(url))
        visible = "".join(character for character in api_key if " " < character <= "~")
        self._key = visible if len(visible) >= _SHORTEST_SECRET else ""
        self._levels: dict[tuple[str, bool, bool], FormatLevel] = {}
        self._without_tools: dict[str, str] = {}

    async def complete(self, request: ChatRequest) -> ChatAnswer:
        """Ask once; see `ChatModel` for what it raises."""
        if request.tools and (refusal := self._without_tools.get(request.model)) is not None:
            raise ToolsRefused(refusal, kind="tools_refused")
        level = self._level(request)
        try:
            async with asyncio.timeout(request.timeout_seconds):
                body = await self._send(request, level)
            answer = read_completion(body, request)
        except TimeoutError:
            seconds = f"{request.timeout_seconds:g}"
            raise TransportFault(f"No complete answer within {seconds} s.", kind="timeout") from None
        except ToolsRefused as refusal:
            self._without_tools[request.model] = refusal.message
            raise
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

    def _level(self, request: ChatRequest) -> FormatLevel:
        """How strictly JSON is asked for."""
        if request.response is None:
            return FormatLevel.TEXT
        known = self._levels.get((request.model, request.response.strict, bool(request.tools)), FormatLevel.JSON_SCHEMA)
        return min(known, request.format_at_most)

    def _remember(self, request: ChatRequest, level: FormatLevel) -> None:
        """The endpoint takes this format from this model, whatever became of the answer."""
        if request.response is not None:
            self._levels[request.model, request.response.strict, bool(request.tools)] = level

    async def _send(self, request: ChatRequest, level: FormatLevel) -> bytes:
        try:
            sent = json.dumps(_body(request, level), ensure_ascii=False, separators=(",", ":")).encode()
            response = await self._transport.post(self._url, headers={**self._headers, **request.headers}, body=sent)
        except (TransportError, UnicodeError) as error:
            words = self._without_key(shortened(str(error), 300))
            raise TransportFault(f"Connection failed: {words}", kind="connection") from None
        if response.status >= 300:
            text = self._without_key(response.body.decode(errors="replace"))
            asked_for_json = level is not FormatLevel.TEXT
            raise named(response.status, response.headers, text, request, asked_for_json=asked_for_json)
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


def _body(request: ChatRequest, level: FormatLevel) -> dict[str, Any]:
    """The request in the API's words."""
    offered = {tool.name for tool in request.tools}
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [_message(message, offered) for message in request.messages],
    }
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters),
                },
            }
            for tool in request.tools
        ]
    if request.tools and request.tool_choice != "auto":  # `auto` goes without saying, and not everywhere with it
        body["tool_choice"] = request.tool_choice
    if request.response is not None and level is FormatLevel.JSON_SCHEMA:
        asked = request.response
        schema = {"name": asked.name, "schema": dict(asked.schema), "strict": asked.strict}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif request.response is not None and level is FormatLevel.JSON_OBJECT:
        body["response_format"] = {"type": "json_object"}
    return body


def _message(message: Message, offered: Set[str]) -> dict[str, Any]:
    """The message as it is sent. A name that the model made up is put so that endpoints take it back."""
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id or "", "content": message.content}
    if not message.tool_calls:
        return {"role": message.role, "content": message.content}
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {
                "name": call.name if call.name in offered else _NO_NAME_CHARACTERS.sub("_", call.name) or "_",
                "arguments": _sendable(call.arguments),
            },
        }
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content or None, "tool_calls": calls}


def _sendable(arguments: str) -> str:
    """Arguments as they may be sent back: endpoints read them, and many refuse the whole request for a broken one."""
    try:
        strict = isinstance(json.loads(arguments, parse_constant=_no_number), dict)
    except (ValueError, RecursionError):
        strict = False
    if strict:
        return arguments
    try:
        lenient = json.loads(arguments, strict=False, parse_constant=_no_number)  # as `read_arguments` takes them
    except (ValueError, RecursionError):
        lenient = None
    kept = lenient if isinstance(lenient, dict) else {"unreadable": arguments}
    return storable(json.dumps(kept, ensure_ascii=False))  # half of a surrogate pair, read from its escape, is no UTF-8


def _no_number(name: str) -> Any:
    raise ValueError(name)


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
        raise named(status, {}, json.dumps(error), request, asked_for_json=request.response is not None)
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise TransportFault("The body holds no choice with a message.", kind="bad_body")
    content = _text(message.get("content"))
    called = _called(message)
    calls = _calls(called, request)
    written = len(content) + sum(len(call.name) + len(call.arguments) for call in calls or ())
    usage = _usage(completion.get("usage"), request, written)
    if spoiled := _spoiled(choice, message, content, called, request):
        kind, words = spoiled
        error_type = ModelDeclined if kind in ("refusal", "content_filter") else SpoiledAnswer
        partial = storable(content) if kind == "length" and not called else ""
        raise error_type(words, kind=kind, usage=usage, content=partial)
    if calls is None:
        raise SpoiledAnswer("A tool call in the answer cannot be read.", kind="bad_tool_call", usage=usage)
    model = completion.get("model")
    return ChatAnswer(
        content=storable(content) if content.strip() else "",
        model=storable(model) if isinstance(model, str) else request.model,
        usage=usage,
        tool_calls=calls,
    )


def _spoiled(
    choice: Mapping[str, Any], message: Mapping[str, Any], content: str, called: list[Any], request: ChatRequest
) -> tuple[str, str] | None:
    """Why this answer cannot be used, as kind and words; None when it can."""
    if isinstance(refusal := message.get("refusal"), str) and refusal.strip():
        return "refusal", f"The model refused: {shortened(refusal, 500)}"
    finish = choice.get("finish_reason")
    match finish:
        case "content_filter":
            return "content_filter", "The endpoint's content filter stopped the answer."
        case "length":
            return "length", "The answer was cut off at the endpoint's length limit."
    if called and not request.tools:
        return "unexpected_tool_call", "The model called a tool that it was not given."
    if request.tools and not called and finish in ("tool_calls", "function_call"):
        return "bad_tool_call", "The answer is to call tools, and holds no call."
    if not called and not content.strip():
        return "empty", "The answer is empty."
    return None


def _called(message: Mapping[str, Any]) -> list[Any]:
    """The tool calls of a message as they came; `function_call` is what the API had before them."""
    if calls := message.get("tool_calls"):
        return calls if isinstance(calls, list) else [calls]
    called = message.get("function_call")
    return [{"function": called}] if isinstance(called, dict) and called.get("name") else []


def _calls(called: list[Any], request: ChatRequest) -> tuple[ToolCall, ...] | None:
    """The calls with ids that differ from each other and from those in the request; None where one is no call."""
    taken = {call.id for message in request.messages for call in message.tool_calls}
    calls: list[ToolCall] = []
    for entry in called:
        function = entry.get("function") if isinstance(entry, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str):
            return None
        try:
            arguments = _arguments(function.get("arguments"))
        except (ValueError, RecursionError):
            return None
        given = entry.get("id")
        call = tool_call(id=given.strip() if isinstance(given, str) else "", name=name, arguments=arguments)
        if not call.id or call.id in taken:
            # Nine letters and digits: Mistral's servers take no other ids.
            call = replace(call, id=next(free for n in count(1) if (free := f"call{n:05}") not in taken))
        taken.add(call.id)
        calls.append(call)
    # One without a name among others is refused like any unknown tool: the model is told, and the others are made.
    return tuple(calls) if not calls or any(call.name for call in calls) else None


def _arguments(given: object) -> str:
    """Arguments as text; some servers send the object itself, or nothing where there are none."""
    if isinstance(given, str):
        return given
    return "{}" if given is None else json.dumps(given, ensure_ascii=False)


def _text(content: object) -> str:
    """A message's content as text; some endpoints send a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return ""


def _usage(reported: object, request: ChatRequest, written: int) -> Usage:
    """What the endpoint counted; where it says nothing that can be true, four characters a token."""
    counts = reported if isinstance(reported, dict) else {}

    def tokens(name: str, characters: int) -> int:
        count = counts.get(name)
        sound = isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= _MAX_TOKENS
        return count if sound else math.ceil(characters / 4)  # type: ignore[return-value]

    asked = sum(len(message.content) for message in request.messages)
    asked += sum(len(call.name) + len(call.arguments) for message in request.messages for call in message.tool_calls)
    asked += sum(len(f"{tool.name}{tool.description}{tool.parameters}") for tool in request.tools)
    return Usage(input_tokens=tokens("prompt_tokens", asked), output_tokens=tokens("completion_tokens", written))


def _is_plain(url: yarl.URL) -> bool:
    """Whether it has a host that can be one, and neither credentials, which the key would contradict, nor a query."""
    return bool(url.host) and "%" not in (url.host or "") and url.user is None and not url.query_string
