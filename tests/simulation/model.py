"""A model with moods: answers well or badly, soon or late, and keeps a record of its own of what it was asked."""

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.domain.errors import ToolsRefused, TransportFault
from app.domain.ids import RunId
from app.llm.chat import ChatAnswer, ChatRequest
from tests.engine.machine import USAGE, Pending, faults_of, random_plan
from tests.simulation import asking
from tests.simulation.loop import PROCESS
from tests.simulation.trace import Trace

LONG_SECONDS = 20.0
"""How long an endpoint may want to be left alone: several leases."""
_FAULTS = (
    *["refused"] * 4,
    *["spoiled", "nonsense"] * 3,
    *["declined", "timeout", "away for long"] * 2,
    *["cut off", "too long", "format", "no key", "busy", "away", "away"],
)
Question = tuple[RunId, str, str | None]
"""Run, seat and task."""


@dataclass(eq=False)
class Asked(Pending):
    """A call as the model saw it. `went_well`: None while it has not answered."""

    process: Any = None
    number: int = 0
    """The call's, where it is known."""
    went_well: bool | None = None

    @property
    def question(self) -> Question:
        """What it is about."""
        return self.run_id, self.seat, self.task_key

    def say_this(self, said: asking.Said) -> None:
        """Answer it, or ask for tools."""
        self.answer.set_result(
            ChatAnswer(content=said.text, model="scripted", usage=USAGE, tool_calls=list(said.calls))
        )


class SimulatedModel:
    """One endpoint for all processes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, dice: random.Random, trace: Trace) -> None:
        self._loop, self._dice, self._trace = loop, dice, trace
        self.fault_rate = 0.0
        self.slow_rate = 0.0
        self.usual_seconds = 0.5
        self.slow_seconds = 10.0
        self.asked: list[Asked] = []
        self.heard: Callable[[Asked], None] = lambda asked: None
        self.known_keys: Callable[[RunId], list[str]] = lambda run_id: []
        self.tools_of: Callable[[RunId], list[str]] = lambda run_id: []
        """The tools that a plan of this run may name."""
        self.is_docile = False
        """Whether it answers where it is to call no more tools."""

    async def complete(self, request: ChatRequest) -> ChatAnswer:
        headers = request.headers
        asked = Asked(
            run_id=RunId(UUID(headers["X-Planwave-Run"])),
            seat=headers["X-Planwave-Seat"],
            task_key=headers.get("X-Planwave-Task"),
            request=request,
            answer=self._loop.create_future(),
            process=PROCESS.get(),
        )
        self.asked.append(asked)
        self._note("asked", asked)
        self.heard(asked)
        usual = self._dice.expovariate(1 / self.usual_seconds)
        seconds = self.slow_seconds * (0.5 + self._dice.random()) if self._dice.random() < self.slow_rate else usual
        self._loop.call_later(seconds, self._reply, asked, context=Context())  # its world goes on when ours stands
        return await asked.answer

    async def close(self) -> None:
        pass

    def _reply(self, asked: Asked) -> None:
        if asked.answer.done():
            return
        asked.went_well = self._dice.random() >= self.fault_rate
        takes_tools = asked.seat == "executor" and asking.has_tools(asked.request)
        if asked.went_well and takes_tools:
            said = asking.say(asked.request, is_docile=self.is_docile)
            self._note(f"answers ({[f'{call.name}({call.arguments})' for call in said.calls] or said.text})", asked)
            asked.say_this(said)
            return
        if asked.went_well:
            self._note("answers", asked)
            asked.say(self._answer(asked))
            return
        fault = self._dice.choice(_FAULTS)
        if asked.request.tools and self._dice.random() < 0.1:
            self._note("fails (no tools)", asked)
            asked.fail(ToolsRefused("no", kind="tools_refused"))
            return
        asked.went_well = fault == "nonsense" and asked.seat in ("executor", "synthesizer")  # any text will do there
        self._note(f"fails ({fault})", asked)
        if fault == "away for long":
            asked.fail(TransportFault("503", kind="server_error", retry_after_seconds=LONG_SECONDS))
        else:
            faults_of(asked)[fault]()

    def _answer(self, asked: Asked) -> str:
        match asked.seat:
            case "planner":
                return json.dumps({"tasks": self._plan(asked)})
            case "recovery":
                return json.dumps(self._recovery(asked))
            case _:
                return f"result {self._dice.random()}"

    def _recovery(self, asked: Asked) -> dict[str, Any]:
        strategy = self._dice.choice(("retry", "skip", "replan"))
        if "strategy" not in asked.asks_for:
            strategy = "replan" if "tasks" in asked.asks_for else "retry"
        if strategy != "replan":
            return {"strategy": strategy, "description": f"Reworded {self._dice.random()}"}
        tasks = self._plan(asked, known=self.known_keys(asked.run_id))
        return {"strategy": strategy, "tasks": tasks, "drop": []}

    def _plan(self, asked: Asked, known: Sequence[str] = ()) -> list[dict[str, Any]]:
        return with_tools(self._dice, random_plan(self._dice, known=known), self.tools_of(asked.run_id))

    def _note(self, what: str, asked: Asked) -> None:
        about = f"{asked.seat} {asked.task_key or ''} of {self._trace.short(asked.run_id)}"
        self._trace.note(f"model {what}: {about} for {asked.process}")


def with_tools(dice: random.Random, tasks: list[dict[str, Any]], tools: Sequence[str]) -> list[dict[str, Any]]:
    """The tasks, most of which may use some of these tools; as they are where there are none."""
    if tools:
        for task in tasks:
            task["tools"] = [name for name in tools if dice.random() < 0.7] if dice.random() < 0.8 else []
    return tasks
