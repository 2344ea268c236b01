"""Tools that note what they were asked, and do what a test says."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.domain.status import SideEffects
from app.tools.calculator import calculator
from app.tools.read_result import read_result
from app.tools.tool import ToolContext, ToolSpec
from app.tools.toolbox import Toolbox

Does = Callable[[Mapping[str, Any], ToolContext], Awaitable[str] | str]


@dataclass
class RecordingTool:
    """Takes a `text`, and gives what `does` gives."""

    name: str
    side_effects: SideEffects = SideEffects.NONE
    does: Does = lambda arguments, _: f"done: {arguments['text']}"
    made: list[tuple[str, str]] = field(default_factory=list)
    """The text and the idempotency key of every call that came in, first to last."""

    @property
    def spec(self) -> ToolSpec:
        schema = {
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
            "additionalProperties": False,
        }
        return ToolSpec(
            name=self.name,
            description=f"What {self.name} does.",
            input_schema=schema,
            side_effects=self.side_effects,
        )

    @property
    def texts(self) -> list[str]:
        """What it was asked, first to last."""
        return [text for text, _ in self.made]

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        self.made.append((arguments["text"], context.idempotency_key))
        given = self.does(arguments, context)
        return given if isinstance(given, str) else await given


class Held:
    """A tool's doing that takes until the test lets it go on."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def __call__(self, arguments: Mapping[str, Any], _: ToolContext) -> str:
        await self.gate.wait()
        return f"done: {arguments['text']}"


def toolbox(tools: Sequence[RecordingTool] = (), **more: Any) -> Toolbox:
    """These beside the calculator and `read_result`."""
    return Toolbox([*tools, calculator, read_result], **more)
