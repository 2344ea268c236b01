"""Scripts for models that call tools, and for endpoints that take none.

A task of two steps: `steps(calls(("http_get", {"url": page}), ("calculator", {"expression": "6 * 7"})), text("42."))`.
"""

import json
from collections.abc import Awaitable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from tests.scripted_model import Call, Reply, Script, error, message_reply, text

Wanted = tuple[str, Mapping[str, Any] | str]
"""A tool call: the tool's name and the arguments, or whatever text stands in their place."""


def calls(
    *wanted: Wanted,
    content: str | None = None,
    ids: Sequence[str] | None = None,
    usage: Mapping[str, int] | None = None,
) -> Reply:
    """A completion that calls these tools, at once. Without `ids` the same calls have the same ids each time."""
    named = ids or [f"call_{sha256(f'{n} {one}'.encode()).hexdigest()[:24]}" for n, one in enumerate(wanted)]
    entries = [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments_text(arguments)}}
        for id_, (name, arguments) in zip(named, wanted, strict=True)
    ]
    return message_reply({"content": content, "tool_calls": entries}, finish_reason="tool_calls", usage=usage)


def calls_in_words(*wanted: Wanted) -> Reply:
    """The same from a model whose endpoint takes no tools: JSON in the text."""
    return text(json.dumps({"tool_calls": [{"name": name, "arguments": arguments} for name, arguments in wanted]}))


def arguments_text(arguments: Mapping[str, Any] | str) -> str:
    """The arguments as a model writes them."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def steps(*replies: Reply) -> Script:
    """These for the steps of one task, the last one for all that follow.

    Which step it is follows from the answers that the request itself holds: a step that is asked for again gets the
    same reply, and so does the next attempt's first.
    """

    def reply(call: Call) -> Reply:
        answered = [message for message in call.messages if message["role"] == "assistant"]
        return replies[min(len(answered), len(replies) - 1)]

    return reply


def without_tools(script: Script, refusal: Reply | None = None) -> Script:
    """The same behind an endpoint that refuses every request with tools, with tool calls or with their results."""
    refused = refusal or error(400, message="registry.ollama.ai/library/scripted:1b does not support tools")

    def reply(call: Call) -> Reply | Awaitable[Reply]:
        speaks_of_tools = any(m["role"] == "tool" or m.get("tool_calls") for m in call.messages)
        return refused if "tools" in call.body or speaks_of_tools else script(call)

    return reply
