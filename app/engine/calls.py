"""Calls to the model: what each seat is asked, and the sending."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import structlog

from app.agents import executor, output, planner, recovery, synthesizer
from app.agents.briefing import mark
from app.agents.tool_words import in_words
from app.domain.budget import Reservation
from app.domain.errors import ModelError, TransportFault
from app.domain.ids import RunId, TaskKey
from app.domain.recovery import AskRecovery
from app.domain.status import Seat, Strategy, TaskStatus
from app.domain.steps import Call as Purpose
from app.domain.steps import DrawPlan, Synthesize
from app.domain.text import shortened
from app.domain.transcript import AskedCall
from app.domain.usage import Price, Usage
from app.engine.places import Places
from app.engine.state import Ask, RunState
from app.engine.throttle import Throttle
from app.engine.tooling import ToolCaller
from app.llm.chat import ChatAnswer, ChatModel, ChatRequest, Message, ToolOffer
from app.settings import Settings

log = structlog.get_logger(__name__)

_CHARACTERS_PER_TOKEN = 4
_MAX_DEED_CHARACTERS = 600
_SHRINK = 4
"""By how much less a request holds after the model's context was too short for it."""
_SHARED_SECONDS = 10.0
"""For how long at most a 429 holds off other runs too: one that was told "tomorrow" must not stop a whole process."""
_VISIBLE = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) != "%")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A request that is about to be recorded as sent. `task_key` is None where it is about the run as a whole.

    `purpose` is what the walk wants it for; `reserved` what it is expected to use.
    """

    number: int
    seat: Seat
    purpose: Purpose
    model: str
    try_number: int
    request: ChatRequest
    reserved: Usage
    price: Price | None
    schema: Mapping[str, Any] | None = None
    """What a task's or the run's result has to match."""
    offers: Sequence[ToolOffer] = ()
    """The tools that a task's model is told of: in the request, or `in_words`; one that `must_answer` may call none."""
    in_words: bool = False
    must_answer: bool = False
    task_key: TaskKey | None = None
    attempt: int | None = None

    @property
    def of_task(self) -> tuple[TaskKey, int]:
        """Task and attempt; only for a task's own call."""
        if self.task_key is None or self.attempt is None:
            raise ValueError("not a task's call")
        return self.task_key, self.attempt

    @property
    def about(self) -> AskRecovery:
        """The question to the recovery seat; only for its calls."""
        if not isinstance(self.purpose, AskRecovery):
            raise TypeError("not a call of the recovery seat")
        return self.purpose

    @property
    def asks_for_json(self) -> bool:
        """Whether the answer has to be JSON."""
        return self.request.response is not None

    @property
    def reservation(self) -> Reservation:
        """What the budget holds for it until it has ended."""
        cost = None if self.price is None else self.price.cost_nano_usd(self.reserved)
        return Reservation(tokens=self.reserved.input_tokens + self.reserved.output_tokens, cost_nano_usd=cost)


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
    """Makes and sends the calls of one process. What an endpoint says of its limits holds for all of them."""

    def __init__(
        self, model: ChatModel, tools: ToolCaller, settings: Settings, places: Places, throttle: Throttle
    ) -> None:
        self._model = model
        self._tools = tools
        self._settings = settings
        self._places = places
        self._throttle = throttle
        self._shared_seconds = min(_SHARED_SECONDS, settings.llm_backoff_cap_seconds)

    def opens_at(self, model: str) -> int | None:
        """When this model may be called, in ms; None: now."""
        return self._throttle.open_at(model)

    def make(self, purpose: Purpose, state: RunState, *, number: int) -> Call:
        """The call for what the walk wants, with its whole request."""
        seat, key = seat_of(purpose)
        model = self._settings.model_for(seat, state.run.options)
        schema = _schema(purpose, state)
        attempt = None
        offers: Sequence[ToolOffer] = ()
        in_loop = must_answer = False
        if seat is Seat.EXECUTOR and key is not None:
            task = state.tasks[key]
            attempt = task.attempt if task.attempt_open else task.attempt + 1
            offers = self._offers([name for name in task.tools if name in state.option("tools")])
            in_loop = bool(offers or task.transcript.steps)  # its messages speak of tools, also where none is left
            must_answer = in_loop and (not offers or task.transcript.must_answer(attempt, state.option("max_steps")))
        request = self._request(purpose, model, schema, state, offers, in_loop=in_loop, must_answer=must_answer)
        characters = sum(map(_said, request.messages)) + sum(map(_characters, request.tools))
        return Call(
            number=number,
            seat=seat,
            purpose=purpose,
            model=model,
            try_number=state.ask(seat, key).tries + 1,
            request=request,
            reserved=Usage(
                input_tokens=-(-characters // _CHARACTERS_PER_TOKEN),
                output_tokens=self._settings.llm_reserved_output_tokens,
            ),
            price=self._settings.price_of(model),
            schema=schema,
            offers=offers,
            in_words=in_loop and state.ask(seat, key).in_words,
            must_answer=must_answer,
            task_key=key,
            attempt=attempt,
        )

    def _offers(self, names: Iterable[str]) -> list[ToolOffer]:
        return self._tools.offers(names)

    def _away(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self._tools.spec(name) is None]

    async def send(self, call: Call, run_id: RunId, came_back: Callable[[Outcome], None]) -> None:
        """Ask once and report the outcome; nothing is reported when cancelled, which may come before the first step."""
        try:
            answer = await self._model.complete(call.request)
        except ModelError as error:
            self._heed(call, error)
            came_back(Faulted(call, error))
        except Exception as error:
            log.exception("call broke", run_id=str(run_id), task_key=call.task_key)
            came_back(Broke(call, error))
        else:
            self._places.speed_up()
            came_back(Answered(call, answer))

    def _heed(self, call: Call, error: ModelError) -> None:
        """An endpoint with too much to do is left alone by every run, not only by the one that was told."""
        if not isinstance(error, TransportFault) or error.kind != "rate_limited":
            return
        self._places.slow_down()
        if error.retry_after_seconds is not None:
            self._throttle.hold_off(call.model, min(error.retry_after_seconds, self._shared_seconds))

    def _request(
        self,
        purpose: Purpose,
        model: str,
        schema: Mapping[str, Any] | None,
        state: RunState,
        offers: Sequence[ToolOffer],
        *,
        in_loop: bool,
        must_answer: bool,
    ) -> ChatRequest:
        seat, key = seat_of(purpose)
        ask = state.ask(seat, key)
        limit = self._settings.context_max_characters // (_SHRINK if ask.shrunk else 1)
        headers = {"X-Planwave-Run": str(state.run.id), "X-Planwave-Seat": seat.value}
        timeout = self._settings.llm_timeout_seconds
        response = None if schema is None else output.response_schema(schema)
        match purpose:
            case DrawPlan():
                messages = self._planning(state, ask, limit)
                response = planner.plan_schema(self._offers(state.option("tools")))
            case Synthesize():
                messages = self._synthesis(state, ask, limit)
            case AskRecovery():
                messages = self._recovery(purpose, state, ask, limit)
                response = recovery.response_schema(purpose.asked, self._offers(state.option("tools")))
                if len(purpose.keys) == 1:
                    headers["X-Planwave-Task"] = header_text(purpose.key)
            case _:
                messages = self._task(purpose, state, ask, limit, with_tools=in_loop, must_answer=must_answer)
                headers["X-Planwave-Task"] = header_text(purpose)
                timeout = max(1.0, state.option("task_timeout_seconds") - state.tasks[purpose].spent_ms / 1000)
        choice: Literal["auto", "none"] = "none" if must_answer else "auto"
        if in_loop and ask.in_words:
            messages, offers = in_words(messages, offers, choice=choice), ()
        return ChatRequest(
            model=model,
            messages=messages,
            response=response,
            format_at_most=ask.format_at_most,
            tools=offers,
            tool_choice=choice,
            headers=headers,
            timeout_seconds=timeout,
        )

    def _planning(self, state: RunState, ask: Ask, limit: int) -> list[Message]:
        return planner.messages(
            goal=state.run.goal,
            context=state.run.context,
            min_tasks=state.option("min_tasks"),
            max_tasks=state.option("max_tasks"),
            rejections=ask.rejections,
            turned_down=state.turned_down,
            tools=self._offers(state.option("tools")),
            away=self._away(state.option("tools")),
            limit=limit,
            mark=mark(str(state.run.id)),
        )

    def _task(
        self, key: TaskKey, state: RunState, ask: Ask, limit: int, *, with_tools: bool, must_answer: bool
    ) -> list[Message]:
        task = state.tasks[key]
        mismatch = task.counted > 0 and task.last_error.get("kind") == "output_mismatch"
        return executor.messages(
            goal=state.run.goal,
            context=state.run.context,
            description=task.description,
            results={d: result_text(state.results[d]) for d in task.depends_on if d in state.results},
            missing=_missing(task.depends_on, state),
            trouble=str(task.last_error["message"]) if mismatch else None,
            schema=_schema(key, state),
            partial=ask.partial,
            done=[_deed(call) for call in task.transcript.earlier_acts],
            with_tools=with_tools,
            away=self._away([name for name in task.tools if name in state.option("tools")]),
            steps=task.transcript.steps,
            must_answer=must_answer,
            limit=limit,
            mark=mark(str(state.run.id)),
        )

    def _recovery(self, step: AskRecovery, state: RunState, ask: Ask, limit: int) -> list[Message]:
        used_up = []
        if state.walk.was_reworded(step.key):
            used_up.append(Strategy.RETRY)
        if not state.walk.replans_left:
            used_up.append(Strategy.REPLAN)
        gone = set(step.keys)
        circumstances = state.circumstances(step)
        others = [
            recovery.OtherTask(
                key=key,
                description=state.tasks[key].description,
                status=state.walk.status(key),
                result=result_text(state.results[key]) if key in state.results else None,
                depends_on=state.tasks[key].depends_on,
                tools=state.tasks[key].tools,
                skip_reason=state.tasks[key].skip_reason,
            )
            for key in state.live
            if key not in gone
        ]
        first, *also = (_failed(key, state) for key in step.keys)
        return recovery.messages(
            goal=state.run.goal,
            context=state.run.context,
            asked=step.asked,
            task=first,
            also_failed=also,
            others=others,
            used_up=used_up,
            instructions=step.instructions,
            rejections=ask.rejections,
            replaced=list(circumstances.replaced),
            max_tasks=circumstances.max_tasks,
            tools=self._offers(state.option("tools")),
            away=self._away(state.option("tools")),
            limit=limit,
            mark=mark(str(state.run.id)),
        )

    def _synthesis(self, state: RunState, ask: Ask, limit: int) -> list[Message]:
        last = dict.fromkeys(state.walk.last_tasks)
        return synthesizer.messages(
            goal=state.run.goal,
            context=state.run.context,
            results={key: result_text(state.results[key]) for key in last if key in state.results},
            other_keys=[key for key in state.results if key not in last],
            missing=_missing([key for key in state.live if key in last], state),
            trouble=ask.rejections[-1].problems[0].message if ask.rejections else None,
            schema=state.option("output_schema"),
            partial=ask.partial,
            limit=limit,
            mark=mark(str(state.run.id)),
        )


def _said(message: Message) -> int:
    return len(message.content) + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)


def _characters(offer: ToolOffer) -> int:
    return len(offer.name) + len(offer.description) + len(json.dumps(offer.parameters))


def seat_of(purpose: Purpose) -> tuple[Seat, TaskKey | None]:
    """Who asks, and about which task."""
    match purpose:
        case DrawPlan():
            return Seat.PLANNER, None
        case Synthesize():
            return Seat.SYNTHESIZER, None
        case AskRecovery():
            return Seat.RECOVERY, purpose.key
        case _:
            return Seat.EXECUTOR, purpose


def _missing(keys: Sequence[TaskKey], state: RunState) -> dict[str, str]:
    """Of these, the ones that were skipped, and why."""
    skipped = [key for key in keys if state.walk.status(key) is TaskStatus.SKIPPED]
    return {key: state.tasks[key].skip_reason or "" for key in skipped}


def _failed(key: TaskKey, state: RunState) -> recovery.FailedTask:
    task = state.tasks[key]
    return recovery.FailedTask(
        key=key,
        description=task.description,
        errors=[str(error.get("message", "")) for error in task.errors],
        depends_on=task.depends_on,
        tools=task.tools,
        done=[_deed(call) for call in task.transcript.acts],
    )


def _deed(call: AskedCall) -> str:
    """What a call has done outside, in a line."""
    became = "nobody knows what it did" if call.may_have_acted else f"returned {call.result}"
    return shortened(
        f"{call.tool}({shortened(call.arguments, _MAX_DEED_CHARACTERS // 2)}) {became}", _MAX_DEED_CHARACTERS
    )


def _schema(purpose: Purpose, state: RunState) -> Mapping[str, Any] | None:
    """The schema that a task's, or the run's, result has to match."""
    match purpose:
        case DrawPlan() | AskRecovery():
            return None
        case Synthesize():
            of_goal: Mapping[str, Any] | None = state.option("output_schema")
            return of_goal
        case _:
            return state.schema_of(purpose)


def result_text(result: Any) -> str:
    """A result as a model reads it: text as it is, anything else as JSON."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)


def header_text(key: TaskKey) -> str:
    """The key as a header may carry it: what is not visible ASCII, and `%`, percent-encoded; outer spaces too."""
    safe = quote(key, safe=_VISIBLE)
    inner = safe.strip(" ")
    lead = len(safe) - len(safe.lstrip(" "))
    return "%20" * lead + inner + "%20" * (len(safe) - lead - len(inner))
