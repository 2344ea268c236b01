"""The seam to a tool: what it says of itself, what it is given, what it gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.domain.status import SideEffects


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolSpec:
    """What clients and models read of a tool. `name` is 1..64 of `A-Z a-z 0-9 _ -`; `input_schema` a JSON Schema."""

    name: str
    description: str
    input_schema: Mapping[str, Any]
    side_effects: SideEffects = SideEffects.NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolContext:
    """What surrounds one call.

    `idempotency_key` is the same for every repetition of this call: the same task, tool and arguments. `results` are
    the whole results of the tasks that the calling task depends on, by key. `secrets` are those that the operator has
    set for the tool, by name: the model never sees them.
    """

    run_id: str
    task_key: str
    idempotency_key: str
    results: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)


class Tool(Protocol):
    """Anything that a task can call.

    `call` gives text for the model. It raises `ToolRetry` where the model can do better with other arguments or later,
    and `ToolFailed` where nothing that the model says will help; anything else it raises counts as `ToolFailed`.
    """

    @property
    def spec(self) -> ToolSpec:
        """What it says of itself; it stays the same."""
        ...

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Do it once. `arguments` fit the input schema. Cancelling the caller ends it where that can be done."""
        ...
