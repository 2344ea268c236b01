"""Calls of tools: which are offered, and the sending, within bounds, with secrets kept out of what returns."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from app.agents.briefing import visible
from app.domain.errors import LeaseLost, ToolError, ToolFailed, ToolRetry
from app.domain.ids import RunId, TaskKey
from app.domain.status import SideEffects
from app.domain.text import shortened, storable
from app.domain.transcript import AskedCall
from app.llm.chat import ToolOffer
from app.settings import Settings
from app.tools.arguments import read_arguments
from app.tools.tool import ToolContext, ToolSpec
from app.tools.toolbox import Toolbox

log = structlog.get_logger(__name__)

_MAX_ERROR_CHARACTERS = 4_000
_MAX_KIND_CHARACTERS = 64
_END_SECONDS = 2.0
"""What a tool gets to put things in order once its time is up, or its task is cancelled.

Less than a process has after its grace (see `Signals`): runs are handed back when the tools have had it.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolSending:
    """A tool call that is about to be recorded as sent. `results` are those that its task builds on, by key."""

    task_key: TaskKey
    call: AskedCall
    results: Mapping[TaskKey, str]
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class ToolReturned:
    """The tool gave this."""

    sending: ToolSending
    text: str


@dataclass(frozen=True, slots=True)
class ToolFaulted:
    """The tool gave nothing."""

    sending: ToolSending
    error: ToolError


@dataclass(frozen=True, slots=True)
class ToolCut:
    """We ended the call ourselves; nobody knows what it did."""

    sending: ToolSending


ToolOutcome = ToolReturned | ToolFaulted | ToolCut


class ToolCaller:
    """Makes the tool calls of one process."""

    def __init__(self, toolbox: Toolbox, settings: Settings) -> None:
        self._toolbox = toolbox
        self._settings = settings
        self._places = asyncio.Semaphore(settings.tool_max_concurrency)

    def spec(self, name: str) -> ToolSpec | None:
        """What a tool says of itself; None where there is none of this name now."""
        tool = self._toolbox.get(name)
        return None if tool is None else tool.spec

    def offers(self, names: Iterable[str]) -> list[ToolOffer]:
        """Those of these tools that there are now, as a model is told of them: in words that people see too."""
        specs = [spec for spec in map(self.spec, names) if spec is not None]
        return [
            ToolOffer(
                name=spec.name,
                description=visible(spec.description),
                parameters={name: _with_visible_words(name, part) for name, part in spec.input_schema.items()},
            )
            for spec in specs
        ]

    async def send(
        self,
        sending: ToolSending,
        run_id: RunId,
        came_back: Callable[[ToolOutcome], None],
        hold: Callable[[], Awaitable[None]],
    ) -> None:
        """Call once and report the outcome; nothing is reported when cancelled.

        `hold` is asked when its turn has come, however long that took, and raises `LeaseLost`.
        """
        call = sending.call
        try:
            async with self._places:
                await hold()
                text = await self._call(sending, run_id)
        except LeaseLost:
            raise
        except ToolError as error:
            told = self._told(error)
            log.info("tool gave nothing", run_id=str(run_id), task_key=sending.task_key, tool=call.tool, kind=told.kind)
            came_back(ToolFaulted(sending, told))
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            # Whatever a tool raises, a cancel of its own included: else the task would wait for it for ever.
            self._log_breaking(error, sending, run_id)
            message = f"The tool broke ({type(error).__name__})."
            came_back(ToolFaulted(sending, ToolFailed(message, kind="tool_failed", answered=False)))
        else:
            came_back(ToolReturned(sending, self._shown(text)))

    async def _call(self, sending: ToolSending, run_id: RunId) -> str:
        call = sending.call
        tool = self._toolbox.get(call.tool)
        if tool is None:
            raise ToolRetry("There is no such tool any more.", kind="unknown_tool", may_have_acted=False)
        context = ToolContext(
            run_id=str(run_id),
            task_key=sending.task_key,
            idempotency_key=call.key or "",
            results={str(key): text for key, text in sending.results.items()},
            secrets=self._toolbox.secrets_for(call.tool),
        )
        arguments = read_arguments(tool.spec, call.arguments)
        seconds = min(sending.timeout_seconds, self._settings.tool_timeout_seconds)
        # In a task of its own: what it does to its task, or does not do when it is cancelled, is not done to us.
        made = asyncio.create_task(tool.call(arguments, context), name=f"tool-{call.tool}")
        made.add_done_callback(_heard)
        expired = False
        try:
            await asyncio.wait([made], timeout=seconds)
            expired = not made.done()
        finally:
            if not made.done():
                await self._end(made, sending, run_id)
        if expired and (not made.done() or made.cancelled()):
            raise ToolRetry(
                f"The tool gave nothing within {seconds:g} seconds.",
                kind="timeout",
                may_have_acted=call.side_effects is not SideEffects.NONE,
                answered=False,
            )
        return made.result()

    async def _end(self, made: asyncio.Task[str], sending: ToolSending, run_id: RunId) -> None:
        """Cancel the tool, and wait a little for what it has to put in order; it may go on, but holds nobody up."""
        made.cancel()
        await asyncio.wait([made], timeout=_END_SECONDS)
        if not made.done():
            tool = sending.call.tool
            log.warning("tool goes on though cancelled", run_id=str(run_id), task_key=sending.task_key, tool=tool)

    def _shown(self, text: str) -> str:
        """The text without secrets, in characters that can be stored, and as much of it as is kept."""
        limit = self._settings.tool_result_max_characters
        text = storable(self._toolbox.redacted(text))
        if len(text) <= limit:
            return text
        return f"{text[:limit]}\n[... {len(text) - limit:,} of {len(text):,} characters cut here ...]"

    def _log_breaking(self, error: BaseException, sending: ToolSending, run_id: RunId) -> None:
        stack = self._toolbox.redacted("".join(traceback.format_exception(error)))
        log.error("tool broke", run_id=str(run_id), task_key=sending.task_key, tool=sending.call.tool, exception=stack)

    def _told(self, error: ToolError) -> ToolError:
        message = shortened(storable(self._toolbox.redacted(error.message)), _MAX_ERROR_CHARACTERS)
        kind = shortened(storable(self._toolbox.redacted(error.kind)), _MAX_KIND_CHARACTERS)
        told = ToolFailed if isinstance(error, ToolFailed) else ToolRetry
        return told(message, kind=kind, may_have_acted=error.may_have_acted, answered=error.answered)


def _heard(ended: asyncio.Task[str]) -> None:
    """Whoever was to take what a tool raised may be cancelled: the loop would log it then, secrets and all."""
    if not ended.cancelled():
        ended.exception()


def _is_cancelled() -> bool:
    """Whether somebody has cancelled us, and not only what we await."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _with_visible_words(name: str, part: Any) -> Any:
    """A part of a JSON Schema whose titles and descriptions show all that they say."""
    match part:
        case str() if name in ("title", "description", "$comment"):
            return visible(part)
        case dict():
            return {inner: _with_visible_words(inner, value) for inner, value in part.items()}
        case list():
            return [_with_visible_words("", value) for value in part]
        case _:
            return part
