"""How the simulated model goes about a task that has tools: which it asks for, and when it answers.

All of it follows from what the request holds, so that a step that is asked again after a crash is answered the same.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.domain.transcript import MAX_CALLS_AT_ONCE
from app.llm.chat import ChatRequest, Message, ToolCall
from tests.simulation.tools import KINDS

_DESCRIBED = "The lines describe tools"
_BEGUN = '{"tool_calls"'


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What the model says: a result, or tool calls (which it may have to write as text)."""

    text: str = ""
    calls: Sequence[ToolCall] = ()


def steps_of(request: ChatRequest) -> list[list[Message]]:
    """The steps of the loop that a request shows: each what was asked for, and what came of it."""
    steps: list[list[Message]] = []
    in_step = False
    for message in request.messages:
        if message.role == "assistant":
            in_step = bool(message.tool_calls) or message.content.startswith(_BEGUN)
            steps += [[message]] if in_step else []
        elif in_step:
            steps[-1].append(message)
    return steps


def has_tools(request: ChatRequest) -> bool:
    """Whether it tells of tools, in words or otherwise."""
    return bool(request.tools) or in_words(request)


def in_words(request: ChatRequest) -> bool:
    """Whether calls are to be written as text."""
    return not request.tools and _DESCRIBED in request.messages[0].content


def say(request: ChatRequest, *, is_docile: bool) -> Said:
    """The next step. One that `is_docile` calls no tools where it is to answer."""
    steps = steps_of(request)
    loop = [(m.role, m.content, [(c.name, c.arguments) for c in m.tool_calls]) for m in request.messages[1:]]
    dice = random.Random(f"{loop} {request.tool_choice} {is_docile}")
    must_answer = request.tool_choice == "none"
    patience = 0.1 if must_answer else (0.95, 0.6, 0.4, 0.3, 0.2)[min(len(steps), 4)]
    if dice.random() >= patience or (must_answer and is_docile):
        return Said(text=f"result {dice.random()}")
    many = MAX_CALLS_AT_ONCE + 2 if dice.random() < 0.01 else dice.choice((1, 1, 1, 2, 2, 3))
    before = _asked_before(steps)
    calls = []
    for n in range(many):
        name, arguments = _one(dice, [tool.name for tool in request.tools] or list(KINDS), before)
        before.append((name, arguments))
        calls.append(ToolCall(id=f"call{len(steps)}.{n}", name=name, arguments=arguments))
    if not in_words(request):
        return Said(text=dice.choice(("", "Let me see.")), calls=calls)
    written = [{"name": call.name, "arguments": _value(call.arguments)} for call in calls]
    return Said(text=json.dumps({"tool_calls": written}))


def _one(dice: random.Random, offered: Sequence[str], before: Sequence[tuple[str, str]]) -> tuple[str, str]:
    arguments = json.dumps({"what": dice.randint(1, 3)})
    chance = dice.random()
    if chance < 0.25 and before:
        return dice.choice(before)
    if chance < 0.30:
        return dice.choice(("shout", *KINDS)), arguments  # which may be none of this task's
    if chance < 0.35:
        return dice.choice(offered), dice.choice(('{"what": "much"}', "{}", '{"what": '))
    return dice.choice(offered), arguments


def _asked_before(steps: Sequence[Sequence[Message]]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for asked, *_ in steps:
        if asked.tool_calls:
            found += [(call.name, call.arguments) for call in asked.tool_calls]
        else:
            entries = json.loads(asked.content)["tool_calls"]
            found += [(entry["name"], json.dumps(entry["arguments"])) for entry in entries]
    return found


def _value(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
