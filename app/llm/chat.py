"""The seam to a model: one request, one answer, nothing of any vendor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, Protocol

from app.domain.usage import Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


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
    which level was refused, and the caller asks again below it. `headers` name the run, the seat and the task to
    gateways and test models; `timeout_seconds` bounds the whole call, from the first byte sent to the last received.
    """

    model: str
    messages: Sequence[Message]
    response: ResponseSchema | None = None
    format_at_most: FormatLevel = FormatLevel.JSON_SCHEMA
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatAnswer:
    """What came back: text that is not empty, in characters that can be stored."""

    content: str
    model: str
    usage: Usage = Usage()


class ChatModel(Protocol):
    """Anything that answers a chat.

    Raises `TransportFault`, `CallRefused` (also `FormatRefused`, `AuthFailed`) or `SpoiledAnswer` (also
    `ModelDeclined`), and nothing else; never retries by itself.
    """

    async def complete(self, request: ChatRequest) -> ChatAnswer:
        """Ask once. Cancelling the caller closes the connection."""
        ...

    async def close(self) -> None:
        """Close what is open."""
        ...
