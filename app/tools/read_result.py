"""The tool with which a task reads the whole of a result that its instructions show shortened."""

from typing import Annotated

from pydantic import Field

from app.domain.errors import ToolRetry
from app.domain.text import shortened
from app.tools.functions import tool
from app.tools.tool import ToolContext

PAGE_CHARACTERS = 20_000
_MAX_LISTED = 50


@tool
async def read_result(
    context: ToolContext,
    task: Annotated[str, Field(description="The key of a task that this one depends on")],
    offset: Annotated[int, Field(ge=0, description="The first character to read, counted from 0")] = 0,
    length: Annotated[int, Field(ge=1, le=PAGE_CHARACTERS, description="How many characters")] = PAGE_CHARACTERS,
) -> str:
    """Read the whole text of the result of a task that this one depends on, a page at a time.

    The first line says which characters these are, of how many, and at which offset the next page begins.
    """
    whole = context.results.get(task)
    if whole is None:
        raise ToolRetry(_none_there(list(context.results)), kind="unknown_task", may_have_acted=False)
    if not whole:
        return "The result is empty: it has 0 characters."
    if offset >= len(whole):
        raise ToolRetry(
            f"The result has {len(whole)} characters; the offset must be below that.",
            kind="bad_arguments",
            may_have_acted=False,
        )
    end = min(offset + length, len(whole))
    what_next = f"The next offset is {end}." if end < len(whole) else "This is the end."
    return f"Characters {offset} to {end - 1} of {len(whole)}. {what_next}\n{whole[offset:end]}"


def _none_there(keys: list[str]) -> str:
    if not keys:
        return "This task depends on no task with a result; there is none to read."
    listed = ", ".join(shortened(key, 100) for key in keys[:_MAX_LISTED])
    more = f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
    return f"This task depends on no such task. It can read the results of: {listed}{more}."
