"""The seam to a model: one request, one answer, nothing of any vendor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, Protocol

from app.domain.text import shortened, storable
from app.domain.usage import Usage

MAX_TOOL_NAME_CHARACTERS = 64
"""Of a tool's name, as the Chat Completions API bounds it."""

MAX_ARGUMENTS_CHARACTERS = 200_000
"""Of a tool call's arguments."""

_MAX_ID_CHARACTERS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolOffer:
    """A tool that the model may call; `parameters` is the JSON Schema of its arguments, an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A call that the model asks for. `arguments` is the JSON text as the model wrote it: it may be anything."""

    id: str
    name: str
    arguments: str


def tool_call(*, id: str, name: str, arguments: str) -> ToolCall:  # noqa: A002 - the call's own word
    """The call in characters that can be stored and within bounds; what is too long ends in `…`, which fits nothing."""
    return ToolCall(
        id=shortened(storable(id), _MAX_ID_CHARACTERS),
        name=shortened(storable(name.strip()), MAX_TOOL_NAME_CHARACTERS),
        arguments=shortened(storable(arguments.strip()), MAX_ARGUMENTS_CHARACTERS) or "{}",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message of a chat.

    An assistant's message may hold the tool calls that it asked for, and then no text; each is answered by a `tool`
    message with its id, before anything else is said.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseSchema:
    """The JSON that an answer should be.

    Where it is `strict`, `schema` is closed (`additionalProperties: false`) with every property required, as endpoints
    ask of a schema that they hold the model to; otherwise it is any schema.
    """

    name: str
    schema: Mapping[str, Any]
    strict: bool = True


class FormatLevel(IntEnum):
    """How an endpoint is asked for JSON, from the simplest to the strictest."""

    TEXT = 0
    JSON_OBJECT = 1
    JSON_SCHEMA = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """What is asked of a model.

    Where `response` is given, `format_at_most` is the strictest way of asking for it: a refusal of the format says
    which level was refused, and the caller asks again below it. The model may call any number of the `tools` at once;
    with the choice `none` they are named because the messages speak of them, and it is to answer now. `headers` name
    the run, the seat and the task to gateways and test models; `timeout_seconds` bounds the whole call, from the first
    byte sent to the last received.
    """

    model: str
    messages: Sequence[Message]
    response: ResponseSchema | None = None
    format_at_most: FormatLevel = FormatLevel.JSON_SCHEMA
    tools: Sequence[ToolOffer] = ()
    tool_choice: Literal["auto", "none"] = "auto"
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatAnswer:
    """What came back, in characters that can be stored: text, tool calls, or both.

    The text is empty only where there are tool calls. There are none where no tools were offered; where the choice was
    `none` a model may call all the same. Their ids differ from each other and from those in the request.
    """

    content: str
    model: str
    usage: Usage = Usage()
    tool_calls: Sequence[ToolCall] = ()


class ChatModel(Protocol):
    """Anything that answers a chat.

    Raises `TransportFault`, `CallRefused` (also `FormatRefused`, `ToolsRefused`, `AuthFailed`) or `SpoiledAnswer` (also
    `ModelDeclined`), and nothing else; never retries by itself.
    """

    async def complete(self, request: ChatRequest) -> ChatAnswer:
        """Ask once. Cancelling the caller closes the connection."""
        ...

    async def close(self) -> None:
        """Close what is open."""
        ...
