"""Tools for endpoints that take none: offers, calls and results put in words, and calls read out of an answer."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

from app.agents.briefing import prompt
from app.agents.json_reading import Unreadable, fenced, read_answer, strictly, without_thoughts
from app.llm.chat import Message, ToolCall, ToolOffer, tool_call

_BEGUN = re.compile(r"(?:```[a-zA-Z]*\s*)?\{\s*[\"']tool_calls[\"']\s*:")
# What may stand beside calls; anything else there makes the object a result that happens to speak of tool calls.
_ASIDES = frozenset({"thought", "thoughts", "reasoning", "comment", "role"})
_LABELS = frozenset({"id", "type"})


def in_words(
    messages: Sequence[Message], offers: Sequence[ToolOffer], *, choice: Literal["auto", "none"] = "auto"
) -> list[Message]:
    """The same conversation without tools: they are described at the end of the instructions, calls are JSON.

    What tools gave is said by the user, in one message for all the calls of an answer and what follows them: many
    models take no two messages of one role in a row.
    """
    described = _described(offers, choice)
    said: list[Message] = []
    asked: dict[str, str] = {}
    for message in messages:
        if message.role == "system" and described:
            said.append(Message(role="system", content=f"{message.content}\n\n{described}"))
            described = ""
        elif message.role == "tool":
            _add(said, f"{asked.get(message.tool_call_id or '', 'What a tool gave:')}\n{message.content}")
        elif message.tool_calls:
            said.append(Message(role="assistant", content=_written(message.tool_calls)))
            asked = _headings(message.tool_calls, offers)
        elif message.role == "user" and asked:
            _add(said, message.content)
        else:
            said.append(message)
    return [Message(role="system", content=described), *said] if described else said


def read_calls(text: str, offers: Sequence[ToolOffer]) -> list[ToolCall]:
    """The calls that an answer asks for; none where it is a result.

    A call is `{"tool_calls": [...]}` and nothing else, or `{"name": ..., "arguments": {...}}` of a tool that is offered
    (`tool` for `name` is taken too), alone, in a fence or within prose. The ids are `call_1` and so on in every answer.
    Raises `Unreadable` where an answer begins as calls do and cannot be read.
    """
    names = {offer.name for offer in offers}
    whole = without_thoughts(text)
    entries = _entries_in(whole, names) if "{" in whole else []
    if not entries and _BEGUN.match(whole) and not _is_json(whole):
        form = '{"tool_calls": [{"name": "...", "arguments": {}}]}'
        raise Unreadable("not_json", f"The tool calls cannot be read; answer with {form} and nothing else.")
    return [tool_call(id=f"call_{n}", name=name, arguments=arguments) for n, (name, arguments) in enumerate(entries, 1)]


def _described(offers: Sequence[ToolOffer], choice: Literal["auto", "none"]) -> str:
    """The tools, and how they are called; nothing where there are none."""
    if not offers:
        return ""
    lines = [
        _json({"name": offer.name, "description": offer.description, "arguments": offer.parameters}) for offer in offers
    ]
    return prompt("tools" if choice == "auto" else "tools_none").fill(tools="\n".join(lines))


def _written(calls: Sequence[ToolCall]) -> str:
    """The calls as the instructions ask for them."""
    return _json({"tool_calls": [{"name": call.name, "arguments": _value(call.arguments)} for call in calls]})


def _value(arguments: str) -> Any:
    """The arguments as a JSON object; as they were written where they are none."""
    with suppress(ValueError, RecursionError):
        value = strictly(arguments)
        _json([[[[value]]]])  # not too deep to be written within a call
        return value
    return arguments


def _headings(calls: Sequence[ToolCall], offers: Sequence[ToolOffer]) -> dict[str, str]:
    """What is said before each call's result, by its id; names that a model made up are not repeated."""
    names = {offer.name for offer in offers}
    several = len(calls) > 1
    return {
        call.id: f"What {call.name if call.name in names else 'the tool'} gave{f' for call {n}' if several else ''}:"
        for n, call in enumerate(calls, 1)
    }


def _add(said: list[Message], text: str) -> None:
    """Let the user say this, in what they are saying already where they are."""
    before = f"{said.pop().content}\n\n" if said and said[-1].role == "user" else ""
    said.append(Message(role="user", content=f"{before}{text}"))


def _entries(value: Any, names: set[str]) -> list[tuple[str, str]] | None:
    """The names and arguments of the calls that a JSON value is; None where it is something else."""
    if not isinstance(value, dict):
        return None
    if "tool_calls" not in value:
        plain = isinstance(value.get("arguments"), dict) and value.keys() - _LABELS <= {"name", "tool", "arguments"}
        one = _entry(value) if plain else None
        return [one] if one and one[0] in names else None
    listed = value["tool_calls"]
    beside = {name for name in value.keys() - _ASIDES if value[name] not in (None, "")}
    if beside != {"tool_calls"} or not isinstance(listed, list) or not listed:
        return None
    entries = [_entry(entry) for entry in listed]
    return [entry for entry in entries if entry] if all(entries) else None


def _entry(value: Any) -> tuple[str, str] | None:
    """Name and arguments of one call, also where it is written as an endpoint writes it."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name", value.get("tool")), value.get("arguments", {})
    if not isinstance(name, str) or not name.strip() or ("name" in value and "tool" in value):
        return None
    if isinstance(arguments, str):
        return name, arguments
    with suppress(RecursionError):  # nested too deeply to be written
        return (name, _json(arguments)) if isinstance(arguments, dict) else None
    return None


def _entries_in(whole: str, names: set[str]) -> list[tuple[str, str]]:
    """Names and arguments of the calls in a text: of one object within it, or of all the objects that it is."""
    parts = fenced(whole)
    if len(parts) <= 1:
        with suppress(Unreadable):
            return _entries(read_answer(whole, lambda value: _entries(value, names), word="call"), names) or []
    # One object after the other, each in a fence or on a line; where one of them is no call, none is.
    found: list[tuple[str, str]] = []
    for part in parts or [line for line in whole.splitlines() if line.strip()]:
        entries = None
        with suppress(ValueError):
            entries = _entries(strictly(part), names)
        if entries is None:
            return []
        found += entries
    return found


def _is_json(text: str) -> bool:
    with suppress(ValueError):
        strictly(text)
        return True
    return False


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
