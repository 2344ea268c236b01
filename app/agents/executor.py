"""What is asked of a model for one task, and when its answer is a result."""

from collections.abc import Mapping
from typing import Any

from app.agents.briefing import context_blocks, prompt, result_blocks
from app.llm.chat import Message


def prompt_hash() -> str:
    """Of the instructions in force."""
    return prompt("executor").hash


def messages(
    *, goal: str, context: Any, description: str, results: Mapping[str, str], limit: int, mark: str
) -> list[Message]:
    """The task's request: the goal, the results it depends on by key, and last its own description, verbatim."""
    parts = [
        f"Goal of the plan: {goal}",
        *context_blocks(context, mark=mark),
        *result_blocks(results, limit=limit, mark=mark),
        f"Your task: {description}",
    ]
    return [
        Message(role="system", content=prompt("executor").fill(mark=mark)),
        Message(role="user", content="\n\n".join(parts)),
    ]
