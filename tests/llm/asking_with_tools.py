"""Asks the openai model with tools."""

from dataclasses import replace
from typing import Any

import pytest

from app.domain.errors import ModelError
from app.llm.chat import ChatAnswer, ChatRequest, Message, ToolCall, ToolOffer
from tests.endpoint import Endpoint, a_request
from tests.scripted_model import Reply

SUM = ToolOffer(
    name="calculator",
    description="Works out a sum.",
    parameters={"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
)
GET = ToolOffer(name="http_get", description="Fetches a page.", parameters={"type": "object", "properties": {}})

ASKED_BEFORE = (
    Message(role="assistant", content="", tool_calls=[ToolCall(id="a1", name="calculator", arguments='{"x": 1')]),
    Message(role="tool", content="That is no JSON.", tool_call_id="a1"),
)


def with_tools(endpoint: Endpoint, *later: Message, **changes: Any) -> ChatRequest:
    """A request that offers two, and `later` messages."""
    request = a_request(model=endpoint.name)
    return replace(request, messages=[*request.messages, *later], **{"tools": [SUM, GET], **changes})


async def answered(endpoint: Endpoint, reply: Reply, *later: Message, **changes: Any) -> ChatAnswer:
    """What the model makes of this reply."""
    endpoint.answers(reply)
    return await endpoint.model.complete(with_tools(endpoint, *later, **changes))


async def failed(endpoint: Endpoint, reply: Reply, *later: Message, **changes: Any) -> ModelError:
    """What it raises at this reply."""
    with pytest.raises(ModelError) as raised:
        await answered(endpoint, reply, *later, **changes)
    return raised.value
