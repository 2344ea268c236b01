"""What is asked of a model to draw a plan, and whether its answer is one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.agents.briefing import context_blocks, prompt
from app.agents.plan_reading import Unreadable, read_plan
from app.domain.graph import validate
from app.domain.plan import PlannedTask, PlanProblem
from app.domain.text import shortened
from app.llm.chat import Message, ResponseSchema

USUAL_TASKS = (1, 7)
"""The bounds of a goal that sets none; the prompt then asks for 3 to 7 tasks, or one where one call is enough."""

_MAX_QUOTED_CHARACTERS = 20_000
_MAX_LISTED_PROBLEMS = 30

PLAN_SCHEMA = ResponseSchema(
    name="plan",
    schema={
        "type": "object",
        "additionalProperties": False,
        "required": ["tasks"],
        "properties": {
            "tasks": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["id", "description", "depends_on"],
                    "properties": {
                        "id": {"type": "string"},
                        "description": {"type": "string"},
                        "depends_on": {"type": "array", "items": {"type": "string"}},
                    },
                },
            }
        },
    },
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """An answer that was no plan, and why."""

    answer: str
    problems: Sequence[PlanProblem]


def prompt_hash() -> str:
    """Of the instructions in force."""
    return prompt("planner").hash


def messages(
    *, goal: str, context: Any, min_tasks: int, max_tasks: int, rejections: Sequence[Rejection], mark: str
) -> list[Message]:
    """The request for a plan; the latest rejected answer and exactly what was wrong with it follow the goal."""
    instructions = prompt("planner").fill(count_rule=_count_rule(min_tasks, max_tasks), mark=mark)
    asked = [
        Message(role="system", content=instructions),
        Message(role="user", content="\n\n".join([f"Goal: {goal}", *context_blocks(context, mark=mark)])),
    ]
    if rejections:
        last = rejections[-1]
        asked.append(Message(role="assistant", content=shortened(last.answer, _MAX_QUOTED_CHARACTERS) or "(nothing)"))
        asked.append(Message(role="user", content=_complaint(last.problems)))
    return asked


def read(text: str, *, min_tasks: int, max_tasks: int) -> tuple[list[PlannedTask], list[PlanProblem]]:
    """The tasks of the answer, and what keeps them from being a plan; one of the two is empty."""
    try:
        tasks = read_plan(text)
    except Unreadable as unreadable:
        return [], [unreadable.problem]
    problems = validate(tasks, min_tasks=min_tasks, max_tasks=max_tasks)
    return ([], problems) if problems else (tasks, [])


def _count_rule(min_tasks: int, max_tasks: int) -> str:
    if (min_tasks, max_tasks) == USUAL_TASKS:
        return "Use 3 to 7 tasks where the goal is more than a single answer."
    if min_tasks == max_tasks:
        return f"Use exactly {max_tasks} task{'s' if max_tasks > 1 else ''}."
    return f"Use between {min_tasks} and {max_tasks} tasks, and no more than the goal needs."


def _complaint(problems: Sequence[PlanProblem]) -> str:
    lines = [f"- {problem.message}" for problem in problems[:_MAX_LISTED_PROBLEMS]]
    if len(problems) > _MAX_LISTED_PROBLEMS:
        lines.append(f"- and {len(problems) - _MAX_LISTED_PROBLEMS} more problems like these")
    return (
        "That is not a valid plan:\n"
        + "\n".join(lines)
        + "\n\nAnswer again with the whole corrected plan as JSON only."
    )
