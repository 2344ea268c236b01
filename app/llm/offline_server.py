"""The offline model as an OpenAI-compatible HTTP server: `planwave model`."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from app.domain.errors import CallRefused
from app.domain.text import storable
from app.llm.chat import ChatAnswer, ChatRequest, Message, ResponseSchema, ToolCall, ToolOffer, tool_call
from app.llm.offline.brief import read
from app.llm.offline.model import NAME, OfflineModel, calling
from app.llm.offline.toolcalls import call_of, chosen

_PIECE = re.compile(r".{1,24}(?=\s)|.{1,24}", re.S)

_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(BaseModel):
    """A part of a message; parts that are no text are passed over."""

    type: str
    text: str = ""


class CalledFunction(BaseModel):
    """The function that an earlier answer called."""

    name: str
    arguments: str = ""


class EarlierCall(BaseModel):
    """A tool call of an earlier answer."""

    id: str
    function: CalledFunction | None = None


class ChatMessage(BaseModel):
    """One message of the chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[EarlierCall] | None = None
    tool_call_id: str | None = None

    def text(self) -> str:
        """The message's text."""
        parts = [self.content or ""] if not isinstance(self.content, list) else [part.text for part in self.content]
        return storable("\n".join(parts))


class FunctionOffer(BaseModel):
    """A function that may be called."""

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class OfferedTool(BaseModel):
    """A tool that may be called."""

    type: Literal["function"]
    function: FunctionOffer


class NamedFunction(BaseModel):
    """The name of the function to call."""

    name: str


class NamedTool(BaseModel):
    """A tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(BaseModel):
    """The schema that an answer must follow."""

    model_config = ConfigDict(populate_by_name=True)
    name: _Name
    body: dict[str, Any] = Field(default_factory=dict, alias="schema")


class FreeFormat(BaseModel):
    """Text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(BaseModel):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StreamOptions(BaseModel):
    """What a stream holds besides the answer."""

    include_usage: bool = False


class ChatBody(BaseModel):
    """The body of a chat completion request; fields that do not bear on these answers are passed over."""

    model: str = Field(min_length=1)
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Annotated[FreeFormat | SchemaFormat, Field(discriminator="type")] | None = None
    tools: list[OfferedTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1, le=1)


def create_model_app(model: OfflineModel) -> FastAPI:
    """The server's application; it keeps nothing between requests."""
    app = FastAPI(title="Planwave offline model", docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/v1/chat/completions", response_model=None)
    @app.post("/chat/completions", response_model=None)
    async def complete(body: ChatBody, request: Request) -> Response:
        asked = _asked(body, request)
        wait_seconds = model.wait_seconds(asked)
        completion = _completion(model, body, asked)
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            lines = _stream(completion, include_usage=include_usage, wait_seconds=wait_seconds)
            return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        await asyncio.sleep(wait_seconds)
        return JSONResponse(completion)

    @app.get("/v1/models", response_model=None)
    @app.get("/models", response_model=None)
    async def models() -> Response:
        entry = {"id": NAME, "object": "model", "created": 0, "owned_by": "planwave"}
        return JSONResponse({"object": "list", "data": [entry]})

    @app.exception_handler(RequestValidationError)
    async def bad_body(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"] if step != "body") or None
        return _refusal(400, f"{place or 'body'}: {first['msg']}", param=place, code="invalid_value")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        code = {404: "unknown_url", 405: "method_not_supported"}.get(error.status_code)
        message = f"{error.detail} ({request.method} {request.url.path})"
        return _refusal(error.status_code, message, param=None, code=code)

    @app.exception_handler(CallRefused)
    async def unanswerable(_request: Request, error: CallRefused) -> Response:
        return _refusal(400, error.message, param=None, code="invalid_value")

    return app


def _refusal(status: int, message: str, *, param: str | None, code: str | None) -> Response:
    body = {
        "message": storable(message),
        "type": "invalid_request_error",
        "param": param and storable(param),
        "code": code,
    }
    return JSONResponse({"error": body}, status_code=status)


def _asked(body: ChatBody, request: Request) -> ChatRequest:
    """The request as the seam puts it."""
    response = None
    match body.response_format:
        case SchemaFormat(json_schema=named):
            response = ResponseSchema(name=named.name, schema=named.body)
        case FreeFormat(type="json_object"):
            response = ResponseSchema(name="object", schema={"type": "object"})
    return ChatRequest(
        model=body.model,
        messages=[_message(message) for message in body.messages],
        response=response,
        tools=[
            ToolOffer(
                name=tool.function.name,
                description=tool.function.description or "",
                parameters=tool.function.parameters or {"type": "object", "properties": {}},
            )
            for tool in body.tools or ()
        ],
        tool_choice="none" if body.tool_choice == "none" else "auto",
        headers={name: value for name, value in request.headers.items() if name.startswith("x-planwave-")},
    )


def _message(message: ChatMessage) -> Message:
    match message.role:
        case "system" | "developer":
            return Message(role="system", content=message.text())
        case "tool" | "function":
            return Message(role="tool", content=message.text(), tool_call_id=message.tool_call_id or message.name)
        case "user" | "assistant" as role:
            calls = [
                tool_call(id=call.id, name=call.function.name, arguments=call.function.arguments)
                for call in message.tool_calls or ()
                if call.function
            ]
            return Message(role=role, content=message.text(), tool_calls=calls)


def _answer(model: OfflineModel, body: ChatBody, asked: ChatRequest) -> ChatAnswer:
    """The model's answer, with tool calls where the client insists on them, and no more at once than it takes."""
    answer = model.answer(asked)
    named = isinstance(body.tool_choice, NamedTool)
    calls = _insisted(body, asked) if named else answer.tool_calls or _insisted(body, asked)
    if body.parallel_tool_calls is False:
        calls = calls[:1]
    return calling(calls, asked) if calls else answer


def _insisted(body: ChatBody, asked: ChatRequest) -> Sequence[ToolCall]:
    """The calls that must be made, whatever the model would do."""
    question = read(asked).asked
    match body.tool_choice:
        case NamedTool(function=named):
            for offer in asked.tools:
                if offer.name == named.name:
                    return [call_of(offer, question, asked)]
            raise HTTPException(400, "tool_choice names a tool that is not among the tools")
        case "required":
            if not asked.tools:
                raise HTTPException(400, "tool_choice asks for a tool, and there are no tools")
            return chosen(question, asked) or [call_of(asked.tools[0], question, asked)]
    return []


def _completion(model: OfflineModel, body: ChatBody, asked: ChatRequest) -> dict[str, Any]:
    """A `chat.completion` object."""
    answer = _answer(model, body, asked)
    said = "\n".join(m.text() for m in body.messages)
    identity = sha256(f"{storable(body.model)}\n{said}".encode()).hexdigest()[:24]
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None, "annotations": []}
    finish = "stop"
    input_tokens, output_tokens = answer.usage.input_tokens, answer.usage.output_tokens
    limit = body.max_completion_tokens or body.max_tokens
    if answer.tool_calls:
        message["content"], finish = None, "tool_calls"
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.tool_calls
        ]
    elif limit is not None and output_tokens > limit:
        message["content"], finish, output_tokens = answer.content[: 4 * limit], "length", limit
    return {
        "id": f"chatcmpl-{identity}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": answer.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
        },
    }


async def _stream(completion: dict[str, Any], *, include_usage: bool, wait_seconds: float) -> AsyncIterator[str]:
    """The completion as server-sent chunks spread over the wait, ended by `[DONE]`."""
    chunk = {name: completion[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    choice = completion["choices"][0]
    deltas = _deltas(choice["message"])
    usage = {"usage": None} if include_usage else {}
    for delta in deltas:
        await asyncio.sleep(wait_seconds / len(deltas))
        yield _event(chunk | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} | usage)
    yield _event(chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]} | usage)
    if include_usage:
        yield _event(chunk | {"choices": [], "usage": completion["usage"]})
    yield "data: [DONE]\n\n"


def _deltas(message: dict[str, Any]) -> list[dict[str, Any]]:
    calls = message.get("tool_calls", ())
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None if calls else "", "refusal": None}]
    for n, call in enumerate(calls):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        opening = {"id": call["id"], "type": "function", "function": {"name": name, "arguments": ""}}
        deltas.append({"tool_calls": [{"index": n, **opening}]})
        deltas += [
            {"tool_calls": [{"index": n, "function": {"arguments": piece}}]} for piece in _PIECE.findall(arguments)
        ]
    return deltas + [{"content": piece} for piece in _PIECE.findall(message["content"] or "")]


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
