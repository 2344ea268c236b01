"""Calls to the model: what each seat is asked, and the sending."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import structlog

from app.agents import executor, planner, synthesizer
from app.agents.briefing import mark
from app.domain.errors import ModelError
from app.domain.ids import TaskKey
from app.domain.status import Seat
from app.engine.state import RunState
from app.llm.chat import ChatAnswer, ChatModel, ChatRequest, Message, ResponseSchema
from app.settings import OFFLINE_MODEL, Settings

log = structlog.get_logger(__name__)

_VISIBLE = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) != "%")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A request that has been recorded as sent. `task_key` and `attempt` are None where the run as a whole asks."""

    number: int
    seat: Seat
    model: str
    try_number: int
    task_key: TaskKey | None = None
    attempt: int | None = None

    @property
    def of_task(self) -> tuple[TaskKey, int]:
        """Task and attempt; only for a call that has them."""
        if self.task_key is None or self.attempt is None:
            raise ValueError("not a task's call")
        return self.task_key, self.attempt


@dataclass(frozen=True, slots=True)
class Answered:
    """The model answered, usably as far as the transport can tell."""

    call: Call
    answer: ChatAnswer


@dataclass(frozen=True, slots=True)
class Faulted:
    """The call gave nothing usable."""

    call: Call
    error: ModelError


@dataclass(frozen=True, slots=True)
class Cut:
    """We closed the call ourselves."""

    call: Call


@dataclass(frozen=True, slots=True)
class Broke:
    """Something that should not happen happened; it is our fault, not the model's."""

    call: Call
    error: Exception


Outcome = Answered | Faulted | Cut | Broke


class Caller:
    """Sends the calls of one process."""

    def __init__(self, model: ChatModel, settings: Settings) -> None:
        self._model = model
        self._settings = settings

    def model_for(self, seat: Seat, options: Mapping[str, Any]) -> str:
        """The name of the model that answers a seat of a run with these options."""
        settings = self._settings
        usual = options["model"] or settings.llm_model
        match seat:
            case _ if settings.offline:
                return OFFLINE_MODEL
            case Seat.PLANNER | Seat.RECOVERY:
                return str(options["planner_model"] or settings.llm_planner_model or usual)
            case Seat.SYNTHESIZER:
                return str(options["synthesizer_model"] or settings.llm_synthesizer_model or usual)
            case _:
                return str(usual)

    async def send(self, call: Call, state: RunState, came_back: Callable[[Outcome], None]) -> None:
        """Ask once and report the outcome; nothing is reported when cancelled, which may come before the first step."""
        try:
            answer = await self._model.complete(self._request(call, state))
        except ModelError as error:
            came_back(Faulted(call, error))
        except Exception as error:
            log.exception("call broke", run_id=str(state.run.id), task_key=call.task_key)
            came_back(Broke(call, error))
        else:
            came_back(Answered(call, answer))

    def _request(self, call: Call, state: RunState) -> ChatRequest:
        headers = {"X-Planwave-Run": str(state.run.id), "X-Planwave-Seat": call.seat.value}
        if call.task_key is not None:
            headers["X-Planwave-Task"] = header_text(call.task_key)
        timeout = self._settings.llm_timeout_seconds
        schema: ResponseSchema | None = None
        match call.seat:
            case Seat.PLANNER:
                messages, schema = self._planning(state), planner.PLAN_SCHEMA
            case Seat.SYNTHESIZER:
                messages = self._synthesis(state)
            case _:
                messages = self._task(call, state)
                timeout = state.option("task_timeout_seconds")
        return ChatRequest(
            model=call.model,
            messages=messages,
            response=schema,
            format_at_most=state.format_at_most,
            headers=headers,
            timeout_seconds=timeout,
        )

    def _planning(self, state: RunState) -> list[Message]:
        return planner.messages(
            goal=state.run.goal,
            context=state.run.context,
            min_tasks=state.option("min_tasks"),
            max_tasks=state.option("max_tasks"),
            rejections=state.rejections,
            mark=mark(str(state.run.id)),
        )

    def _task(self, call: Call, state: RunState) -> list[Message]:
        task = state.tasks[call.of_task[0]]
        return executor.messages(
            goal=state.run.goal,
            context=state.run.context,
            description=task.description,
            results={d: result_text(state.results[d]) for d in task.depends_on},
            limit=self._settings.context_max_characters,
            mark=mark(str(state.run.id)),
        )

    def _synthesis(self, state: RunState) -> list[Message]:
        last = dict.fromkeys(state.walk.last_tasks)
        return synthesizer.messages(
            goal=state.run.goal,
            context=state.run.context,
            results={key: result_text(state.results[key]) for key in last},
            other_keys=[key for key in state.walk.tasks if key not in last],
            limit=self._settings.context_max_characters,
            mark=mark(str(state.run.id)),
        )


def result_text(result: Any) -> str:
    """A result as a model reads it: text as it is, anything else as JSON."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)


def header_text(key: TaskKey) -> str:
    """The key as a header may carry it: what is not visible ASCII, and `%`, percent-encoded; outer spaces too."""
    safe = quote(key, safe=_VISIBLE)
    inner = safe.strip(" ")
    lead = len(safe) - len(safe.lstrip(" "))
    return "%20" * lead + inner + "%20" * (len(safe) - lead - len(inner))
