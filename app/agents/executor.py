"""What is asked of a model for one task."""

from collections.abc import Mapping
from typing import Any

from app.agents.briefing import (
    asked_json,
    context_blocks,
    going_on,
    missing_blocks,
    prompt,
    rejected_block,
    result_blocks,
)
from app.llm.chat import Message


def prompt_hash() -> str:
    """Of the instructions in force."""
    return prompt("executor").hash


def messages(
    *,
    goal: str,
    context: Any,
    description: str,
    results: Mapping[str, str],
    limit: int,
    mark: str,
    missing: Mapping[str, str] | None = None,
    trouble: str | None = None,
    schema: Mapping[str, Any] | None = None,
    partial: str | None = None,
) -> list[Message]:
    """The task's request: the goal, the results it depends on by key, and last its own description, verbatim.

    `missing` says by key why a dependency has no result, `trouble` why the last answer could not be used; the answer
    is to fit `schema`. After a `partial` answer, cut off at a length limit, the rest of it is asked for. Results,
    reasons and context have `limit` characters each.
    """
    parts = [
        f"Goal of the plan: {goal}",
        *context_blocks(context, mark=mark, limit=limit),
        *result_blocks(results, limit=limit, mark=mark),
        *missing_blocks(missing or {}, limit=limit, mark=mark),
        *rejected_block(trouble, mark=mark),
        f"Your task: {description}",
    ]
    return [
        Message(role="system", content=prompt("executor").fill(mark=mark) + asked_json(schema)),
        Message(role="user", content="\n\n".join(parts)),
        *going_on(partial, limit=limit),
    ]
