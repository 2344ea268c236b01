"""Tools as the world outside has them: they act sooner or later or never, answer or not, and keep a record of both."""

import asyncio
import random
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from app.domain.errors import ToolFailed, ToolRetry
from app.domain.ids import RunId
from app.domain.status import SideEffects
from app.tools.arguments import canonical
from app.tools.tool import ToolContext, ToolSpec
from app.tools.toolbox import Toolbox
from tests.simulation.loop import PROCESS
from tests.simulation.trace import Trace

KINDS: Mapping[str, SideEffects] = {
    "look": SideEffects.NONE,
    "read": SideEffects.NONE,
    "put": SideEffects.IDEMPOTENT,
    "charge": SideEffects.ONCE,
    "send": SideEffects.ONCE,
}
_FAULTS = (
    *["busy", "hangs"] * 3,
    *["busy, perhaps", "broken", "broken, perhaps"] * 2,
    "bursts",
)
_ACTS_PERHAPS = ("hangs", "busy, perhaps", "broken, perhaps", "bursts")
_SCHEMA = {
    "type": "object",
    "properties": {"what": {"type": "integer", "minimum": 1}},
    "required": ["what"],
    "additionalProperties": False,
}

What = tuple[RunId, str, str, str]
"""Run, task, tool and arguments: what makes two calls the same."""


@dataclass(eq=False, kw_only=True, slots=True)
class Use:
    """A call as a tool saw it. `gave` is its answer; it has `acted` once something has changed outside."""

    what: What
    key: str
    process: Any
    acted: bool = False
    gave: str | None = None

    @property
    def run_id(self) -> RunId:
        return self.what[0]

    @property
    def task_key(self) -> str:
        return self.what[1]

    @property
    def tool(self) -> str:
        return self.what[2]

    def __str__(self) -> str:
        return f"{self.tool}({self.what[3]}) of {self.task_key}"


@dataclass(frozen=True, slots=True)
class SimulatedTool:
    """One of them, as a worker's toolbox has it."""

    spec: ToolSpec
    world: "SimulatedTools"

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        return await self.world.use(self.spec.name, arguments, context)


@dataclass
class SimulatedTools:
    """All of them, for all processes."""

    loop: asyncio.AbstractEventLoop
    dice: random.Random
    trace: Trace
    fault_rate: float = 0.0
    usual_seconds: float = 0.5
    uses: list[Use] = field(default_factory=list)
    called: Callable[[Use, float], None] = lambda use, seconds: None
    """Hears of every call as it comes in, and of when it will have been answered."""
    acted: Callable[[Use], None] = lambda use: None
    """Hears of everything that is done, as it is done."""

    def toolbox(self) -> Toolbox:
        """As a worker has it."""
        return Toolbox(
            SimulatedTool(
                ToolSpec(name=name, description=f"Does {name}.", input_schema=_SCHEMA, side_effects=side_effects), self
            )
            for name, side_effects in KINDS.items()
        )

    async def use(self, tool: str, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Act, perhaps, and answer, perhaps: whoever called may be gone by then."""
        run_id = RunId(UUID(context.run_id))
        use = Use(
            what=(run_id, context.task_key, tool, canonical(arguments)),
            key=context.idempotency_key,
            process=PROCESS.get(),
        )
        self.uses.append(use)
        dice = self.dice
        fault = dice.choice(_FAULTS) if dice.random() < self.fault_rate else None
        seconds = dice.expovariate(1 / self.usual_seconds)
        acts_after = dice.random() * seconds
        self._note("is called", use)
        self.called(use, seconds)
        answer: asyncio.Future[str] = self.loop.create_future()
        if fault is None or (fault in _ACTS_PERHAPS and dice.random() < 0.5):
            self.loop.call_later(acts_after, self._act, use, context=Context())
        if fault != "hangs":
            self.loop.call_later(seconds, self._reply, use, fault, answer, context=Context())
        return await answer

    def gave(self) -> dict[What, set[str]]:
        """All that was answered, by what was asked."""
        found: dict[What, set[str]] = {}
        for use in self.uses:
            if use.gave is not None:
                found.setdefault(use.what, set()).add(use.gave)
        return found

    def _act(self, use: Use) -> None:
        use.acted = True
        self._note("acts", use)
        self.acted(use)

    def _reply(self, use: Use, fault: str | None, answer: "asyncio.Future[str]") -> None:
        self._note(f"answers ({fault or 'well'})", use)
        if fault is None:
            use.gave = f"{use.tool} gave {len(self.uses)}.{self.dice.randrange(1000)}"  # another text every time
        if answer.done():
            return
        perhaps = KINDS[use.tool] is not SideEffects.NONE and fault in _ACTS_PERHAPS
        match fault:
            case None:
                answer.set_result(str(use.gave))
            case "busy" | "busy, perhaps":
                answer.set_exception(ToolRetry("Not now.", kind="busy", may_have_acted=perhaps))
            case "broken" | "broken, perhaps":
                answer.set_exception(ToolFailed("It will not work.", kind="broken", may_have_acted=perhaps))
            case _:
                answer.set_exception(RuntimeError("It burst."))

    def _note(self, what: str, use: Use) -> None:
        self.trace.note(f"tool {what}: {use} of {self.trace.short(use.run_id)} for {use.process}")
