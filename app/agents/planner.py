"""What is asked of a model to draw a plan, and whether its answer is one."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from app.agents.briefing import USUAL_LIMIT, away_words, block, context_blocks, prompt, share
from app.agents.json_reading import Unreadable
from app.agents.plan_reading import read_plan
from app.domain.graph import validate
from app.domain.plan import PlannedTask, PlanProblem
from app.domain.text import shortened
from app.llm.chat import Message, ResponseSchema, ToolOffer

USUAL_TASKS = (1, 7)
"""The bounds of a goal that sets none; the prompt then asks for 3 to 7 tasks, or one where one call is enough."""

_MAX_QUOTED_CHARACTERS = 20_000
_MAX_LISTED_PROBLEMS = 30
_MAX_TOOLS_CHARACTERS = 20_000

AWAY = "No task can use them: where one would need them, have it say what is missing instead of making it up."


def closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with just these properties, all of them required, as strict mode asks."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": dict(properties),
    }


def tasks_schema(tools: Sequence[ToolOffer]) -> dict[str, Any]:
    """The schema of a list of tasks; where there are tools, each task names those that it needs."""
    fields: dict[str, Any] = {
        "id": {"type": "string"},
        "description": {"type": "string"},
        "depends_on": {"type": "array", "items": {"type": "string"}},
    }
    if tools:
        names = list(dict.fromkeys(tool.name for tool in tools))
        fields["tools"] = {"type": "array", "items": {"type": "string", "enum": names}}
    return {"type": "array", "items": closed(fields)}


def plan_schema(tools: Sequence[ToolOffer] = ()) -> ResponseSchema:
    """The JSON that the answer should be."""
    return ResponseSchema(name="plan", schema=closed({"tasks": tasks_schema(tools)}))


PLAN_SCHEMA = plan_schema()
"""Where there are no tools."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """An answer that was no plan, and why."""

    answer: str
    problems: Sequence[PlanProblem]


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnedDown:
    """A plan, as JSON, that a person turned down, and what they say should be different."""

    plan: str
    words: str


def prompt_hash(*, with_tools: bool = False) -> str:
    """Of the instructions in force."""
    if not with_tools:
        return prompt("planner").hash
    return sha256(f"{prompt('planner').text}{tool_rules(mark='')}".encode()).hexdigest()[:12]


def messages(
    *,
    goal: str,
    context: Any,
    min_tasks: int,
    max_tasks: int,
    rejections: Sequence[Rejection],
    mark: str,
    turned_down: Sequence[TurnedDown] = (),
    tools: Sequence[ToolOffer] = (),
    away: Sequence[str] = (),
    limit: int = USUAL_LIMIT,
) -> list[Message]:
    """The request for a plan; what people and then Planwave had against earlier answers follows the goal.

    The context has `limit` characters. A task may be given `tools`; those that are `away` have no description now.
    """
    instructions = prompt("planner").fill(count_rule=_count_rule(min_tasks, max_tasks), mark=mark)
    parts = [
        f"Goal: {goal}",
        *context_blocks(context, mark=mark, limit=limit),
        *tools_block(tools, mark=mark),
        *away_words(away, AWAY),
    ]
    return [
        Message(role="system", content=instructions + (tool_rules(mark=mark) if tools else "")),
        Message(role="user", content="\n\n".join(parts)),
        *_objections(turned_down),
        *asked_again(rejections, word="plan"),
    ]


def tool_rules(*, mark: str) -> str:
    """The end of the instructions where tasks may be given tools."""
    return "\n\n" + prompt("planner_tools").fill(mark=mark)


def tools_block(tools: Sequence[ToolOffer], *, mark: str) -> list[str]:
    """The tools that tasks may be given, in a block because whoever made them describes them; nothing without any."""
    if not tools:
        return []
    descriptions = share([tool.description for tool in tools], _MAX_TOOLS_CHARACTERS)
    lines = [
        json.dumps({"name": tool.name, "description": description}, ensure_ascii=False)
        for tool, description in zip(tools, descriptions, strict=True)
    ]
    return [block("tools", "\n".join(lines), mark=mark)]


def _objections(turned_down: Sequence[TurnedDown]) -> list[Message]:
    """Every plan that a person turned down, the plans sharing their bound, and the person's words in full."""
    asked = []
    plans = share([entry.plan for entry in turned_down], _MAX_QUOTED_CHARACTERS)
    for plan, entry in zip(plans, turned_down, strict=True):
        asked.append(Message(role="assistant", content=plan))
        wish = f"That plan was turned down, with these words: {entry.words}"
        asked.append(Message(role="user", content=f"{wish}\n\nAnswer with a whole new plan as JSON only."))
    return asked


def asked_again(rejections: Sequence[Rejection], *, word: str) -> list[Message]:
    """The latest rejected answer and exactly what was wrong with it; nothing where none was rejected."""
    if not rejections:
        return []
    last = rejections[-1]
    answer = shortened(last.answer, _MAX_QUOTED_CHARACTERS) or "(nothing)"
    lines = [f"- {problem.message}" for problem in last.problems[:_MAX_LISTED_PROBLEMS]]
    if len(last.problems) > _MAX_LISTED_PROBLEMS:
        lines.append(f"- and {len(last.problems) - _MAX_LISTED_PROBLEMS} more problems like these")
    wrong = "\n".join([f"That is not a valid {word}:", *lines])
    wish = f"Answer again with the whole corrected {word} as JSON only."
    return [Message(role="assistant", content=answer), Message(role="user", content=f"{wrong}\n\n{wish}")]


def read(
    text: str, *, min_tasks: int, max_tasks: int, tools: Collection[str] = ()
) -> tuple[list[PlannedTask], list[PlanProblem]]:
    """The tasks of the answer, and what keeps them from being a plan; one of the two is empty.

    `tools` are those that the goal names; where it names none, what the answer says of tools is ignored.
    """
    try:
        tasks = read_plan(text, with_tools=bool(tools))
    except Unreadable as unreadable:
        return [], [unreadable.problem]
    problems = validate(tasks, min_tasks=min_tasks, max_tasks=max_tasks, tools=tools)
    return ([], problems) if problems else (tasks, [])


def _count_rule(min_tasks: int, max_tasks: int) -> str:
    if (min_tasks, max_tasks) == USUAL_TASKS:
        return "Use 3 to 7 tasks where the goal is more than a single answer."
    if min_tasks == max_tasks:
        return f"Use exactly {max_tasks} task{'s' if max_tasks > 1 else ''}."
    return f"Use between {min_tasks} and {max_tasks} tasks, and no more than the goal needs."
