"""What is asked of a model to make the run's result from the results of its last tasks."""

from collections.abc import Mapping, Sequence
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

_MAX_NAMED_KEYS = 200


def messages(
    *,
    goal: str,
    context: Any,
    results: Mapping[str, str],
    other_keys: Sequence[str],
    limit: int,
    mark: str,
    missing: Mapping[str, str] | None = None,
    trouble: str | None = None,
    schema: Mapping[str, Any] | None = None,
    partial: str | None = None,
) -> list[Message]:
    """The goal, the results of the tasks that nothing depends on, and the keys of the tasks behind them.

    `missing`, `trouble`, `schema`, `partial` and `limit` are as for a task.
    """
    parts = [f"Goal: {goal}", *context_blocks(context, mark=mark, limit=limit)]
    if other_keys:
        named = ", ".join(other_keys[:_MAX_NAMED_KEYS])
        more = f" and {len(other_keys) - _MAX_NAMED_KEYS} more" if len(other_keys) > _MAX_NAMED_KEYS else ""
        parts.append(f"Earlier tasks whose results went into these: {named}{more}")
    parts += result_blocks(results, limit=limit, mark=mark)
    parts += missing_blocks(missing or {}, limit=limit, mark=mark)
    parts += rejected_block(trouble, mark=mark)
    parts.append("Write the answer to the goal.")
    return [
        Message(role="system", content=prompt("synthesizer").fill(mark=mark) + asked_json(schema)),
        Message(role="user", content="\n\n".join(parts)),
        *going_on(partial, limit=limit),
    ]
