"""What is asked of a model for one task."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.agents.briefing import (
    asked_json,
    away_words,
    block,
    context_blocks,
    going_on,
    missing_blocks,
    prompt,
    rejected_block,
    result_blocks,
    share,
)
from app.domain.status import SideEffects
from app.domain.transcript import AskedCall, LoopStep
from app.llm.chat import Message, ToolCall

_AWAY = "Do not make up what they would have given: say what is missing for want of them."


def prompt_hash(*, with_tools: bool = False) -> str:
    """Of the instructions in force."""
    return prompt("executor_tools" if with_tools else "executor").hash


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
    done: Sequence[str] = (),
    with_tools: bool = False,
    away: Sequence[str] = (),
    steps: Sequence[LoopStep] = (),
    must_answer: bool = False,
) -> list[Message]:
    """The task's request: the goal, the results it depends on by key, its own description verbatim, its loop so far.

    `missing` says by key why a dependency has no result, `trouble` why the last answer could not be used; the answer
    is to fit `schema`. After a `partial` answer, cut off at a length limit, the rest of it is asked for. Results,
    reasons, context and what tools gave have `limit` characters each. A loop that `must_answer` is told so. `done` says
    what the task's tools have done outside before it began anew, a line for each call.
    """
    instructions = prompt("executor").fill(mark=mark)
    if with_tools:
        instructions += "\n\n" + prompt("executor_tools").fill(mark=mark)
    if must_answer:
        instructions += "\n\n" + prompt("executor_last").text
    parts = [
        f"Goal of the plan: {goal}",
        *context_blocks(context, mark=mark, limit=limit),
        *result_blocks(results, limit=limit, mark=mark),
        *missing_blocks(missing or {}, limit=limit, mark=mark),
        *rejected_block(trouble, mark=mark),
        *_done_block(done, limit=limit, mark=mark),
        *away_words(away, _AWAY),
        f"Your task: {description}",
    ]
    return [
        Message(role="system", content=instructions + asked_json(schema)),
        Message(role="user", content="\n\n".join(parts)),
        *_loop(steps, limit=limit, mark=mark),
        *going_on(partial, limit=limit),
    ]


def _loop(steps: Sequence[LoopStep], *, limit: int, mark: str) -> Iterator[Message]:
    """What the model has asked for, and what came of it."""
    texts = iter(share([_observation(call) for step in steps for call in step.calls], limit))
    for step in steps:
        asked = [ToolCall(id=call.call_id, name=call.tool, arguments=call.arguments) for call in step.calls]
        yield Message(role="assistant", content=step.content, tool_calls=asked)
        for call in step.calls:
            yield Message(role="tool", content=block("observation", next(texts), mark=mark), tool_call_id=call.call_id)


def _observation(call: AskedCall) -> str:
    if call.error is None:
        return call.result or "(nothing)"
    said = f"No result: {call.error.get('message', 'the call failed')}"
    acted = call.may_have_acted and call.side_effects is not SideEffects.NONE
    return f"{said}\nIt may have acted all the same: do not do it again in other words." if acted else said


def _done_block(done: Sequence[str], *, limit: int, mark: str) -> list[str]:
    if not done:
        return []
    (text,) = share(["\n".join(" ".join(line.split()) for line in done)], limit)
    heading = (
        "What your tools have done outside already, one call to a line; it is not undone, and not to be done again:"
    )
    return [heading, block("done", text, mark=mark)]
