"""The offline model behind the `ChatModel` seam."""

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from app.domain.status import Seat
from app.domain.text import storable
from app.domain.usage import Usage
from app.llm.chat import ChatAnswer, ChatRequest, ToolCall
from app.llm.offline.brief import Brief, read
from app.llm.offline.instances import empty, instance, resolved
from app.llm.offline.plans import bounds, plan, replan, with_tools
from app.llm.offline.toolcalls import wanted
from app.llm.offline.writing import final_answer, reply, reworded, task_result

NAME = "offline"
"""What the model calls itself in answers and in `Run.model`."""

_CHARACTERS_PER_TOKEN = 4


class OfflineModel:
    """Answers by rules from the words of the request alone: the same request and seed give the same answer.

    Each call takes between the two `delay_seconds`, drawn from the seed and the request.
    """

    def __init__(self, seed: int = 0, delay_seconds: tuple[float, float] = (0.0, 0.0)) -> None:
        self._seed = seed
        self._delay_seconds = delay_seconds

    async def complete(self, request: ChatRequest) -> ChatAnswer:
        """Answer after the delay. Refuses only a response schema that is none."""
        await asyncio.sleep(self.wait_seconds(request))
        return self.answer(request)

    async def close(self) -> None:
        """Nothing is open."""

    def wait_seconds(self, request: ChatRequest) -> float:
        """How long the answer to this request takes."""
        said = json.dumps([self._seed, *([m.role, m.content] for m in request.messages)])
        return random.Random(sha256(said.encode()).digest()).uniform(*self._delay_seconds)  # noqa: S311 - a delay, no secret

    def answer(self, request: ChatRequest) -> ChatAnswer:
        """The answer at once: tools are called where the question plainly wants them, until they have answered."""
        brief = read(request)
        if calls := wanted(brief, request):
            return calling(calls, request)
        content = storable(_content(request, brief))
        return ChatAnswer(content=content, model=NAME, usage=_usage(request, content))


def calling(calls: Sequence[ToolCall], request: ChatRequest) -> ChatAnswer:
    """The answer that calls these tools."""
    written = "".join(f"{call.name}{call.arguments}" for call in calls)
    return ChatAnswer(content="", model=NAME, usage=_usage(request, written), tool_calls=tuple(calls))


def _usage(request: ChatRequest, written: str) -> Usage:
    asked = sum(tokens(message.content) for message in request.messages)
    return Usage(input_tokens=asked, output_tokens=tokens(written))


def tokens(text: str) -> int:
    """About as many tokens as a model would count."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def _content(request: ChatRequest, brief: Brief) -> str:
    schema = request.response.schema if request.response else None
    match brief.seat:
        case Seat.PLANNER:
            rule = bounds(brief.instructions, brief.question if brief.asked_again else "")
            return _json(_with_fields({"tasks": with_tools(plan(brief.goal, rule), brief.tools)}, schema))
        case Seat.RECOVERY:
            return _json(_with_fields(_remedy(brief, schema), schema))
        case Seat.EXECUTOR:
            text = task_result(brief)
        case Seat.SYNTHESIZER:
            text = final_answer(brief)
        case None:
            text = reply(brief)
    return text if schema is None else _json(instance(schema, asked=f"{brief.asked}\n{brief.question}", text=text))


def _remedy(brief: Brief, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is done about failed tasks: they are put differently, then planned anew, then left out."""
    form = _json(list(_fields(schema))) if schema else brief.instructions
    new_plan_asked = '"tasks"' in form and '"strategy"' not in form
    if new_plan_asked or ("retry" in brief.used_up and "replan" not in brief.used_up):
        return {"strategy": "replan", "tasks": with_tools(replan(brief), brief.tools)}
    if "retry" in brief.used_up:
        return {"strategy": "skip"}
    return {"strategy": "retry", "description": reworded(brief)}


def _fields(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = resolved(schema, schema).get("properties", {})
    return fields


def _with_fields(answer: dict[str, Any], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The answer with just the fields that the schema names, those it lacks as empty as allowed, down to each task."""
    fields = _fields(schema) if schema else {}
    if schema is None or not fields:
        return answer
    if "tasks" in fields and "tasks" in answer:
        items = resolved(resolved(fields["tasks"], schema).get("items", {}), schema)
        if entry := items.get("properties"):
            answer = answer | {"tasks": [_completed(task, entry, schema) for task in answer["tasks"]]}
    return _completed(answer, fields, schema)


def _completed(answer: Mapping[str, Any], fields: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: answer[name] if name in answer else empty(field, schema) for name, field in fields.items()}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
