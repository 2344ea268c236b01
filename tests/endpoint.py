"""A scripted endpoint and the model client pointed at it, for tests that go through one exchange after the other."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.agents.planner import PLAN_SCHEMA
from app.domain.errors import (
    ModelError,
)
from app.llm.chat import ChatAnswer, ChatRequest, FormatLevel, Message
from app.llm.openai_model import OpenAIModel
from tests.scripted_model import Reply, ScriptedModel

KEY = "sk-secret-0123456789"
LIMIT = 1024 * 1024
"""What the model takes for an answer, in bytes."""

JSON_TYPE = {"Content-Type": "application/json"}
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


class Endpoint:
    """A scripted endpoint and a model pointed at it, for one exchange after the other.

    `name` is the model's, and nobody else's: what is remembered of a model is remembered by its name.
    """

    def __init__(self, server: ScriptedModel, model: OpenAIModel, name: str) -> None:
        self.server, self.model, self.name = server, model, name

    def answers(self, *replies: Reply) -> None:
        """These in turn; the last one stays."""
        left = list(replies)
        self.server.begin(lambda _: left.pop(0) if len(left) > 1 else left[0])

    async def ask(self, reply: Reply | None = None, **request: Any) -> ChatAnswer:
        if reply is not None:
            self.answers(reply)
        return await self.model.complete(a_request(**{"model": self.name, **request}))

    async def fault(self, reply: Reply | None = None, **request: Any) -> ModelError:
        """The error that this reply makes."""
        with pytest.raises(ModelError) as raised:
            await self.ask(reply, **request)
        return raised.value

    @property
    def formats(self) -> list[str]:
        """Which response formats were asked for, call by call."""
        return [(call.response_format or {"type": "text"})["type"] for call in self.server.calls]


def completion(**message: Any) -> dict[str, Any]:
    """A completion's body with this message."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi.", **message}}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "scripted", "choices": [choice]}
