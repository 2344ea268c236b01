"""MCP servers as sources of tools: what each tool said of itself first is what it stays, or it is out."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from app.domain.errors import ConfigurationError, ToolFailed, ToolRetry
from app.domain.failures import Backoff
from app.domain.status import SideEffects
from app.domain.text import shortened, storable
from app.tools.mcp_settings import McpServerSettings
from app.tools.redaction import Redaction
from app.tools.tool import Tool, ToolContext, ToolSpec

if TYPE_CHECKING:
    from mcp.types import Tool as ListedTool

log = structlog.get_logger(__name__)

IDEMPOTENCY_META = "planwave/idempotency-key"
"""Where in a request's `_meta` a server finds the call's idempotency key."""

_MAX_NAME_CHARACTERS = 64
_MAX_DESCRIPTION_CHARACTERS = 4_000
_NAMES = ("$anchor", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema", "format", "pattern", "required", "type")
"""Where a schema names what stands elsewhere: with a word left out it would fit nothing, or be none."""
_BACKOFF = Backoff(base_seconds=0.5, cap_seconds=30.0)


class McpServer:
    """One server, from `open` to `close`; it may come up late, and goes down and comes back as it likes.

    The first list of the process is what there is: later tools are not taken, and a tool whose name, description,
    input schema or annotations have changed is refused from then on, whatever it says later (a "rug pull": a server
    that is harmless until it is trusted). Making one raises `ConfigurationError` where the SDK is not installed.

    open_seconds: how long `open` waits for it. start_seconds: bound of a handshake and of a list. wait_seconds: how
    long a call waits for a server that is down. list_seconds: how old a list may be when a tool is called.
    """

    def __init__(
        self,
        name: str,
        settings: McpServerSettings,
        *,
        open_seconds: float = 10.0,
        start_seconds: float = 30.0,
        wait_seconds: float = 10.0,
        list_seconds: float = 5.0,
        backoff: Backoff = _BACKOFF,
        max_characters: int = 200_000,
        max_bytes: int = 8 * 1024 * 1024,
    ) -> None:
        try:
            from app.tools.mcp_answers import as_text  # noqa: PLC0415 - an extra, and slow to import
            from app.tools.mcp_connection import Connection  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ConfigurationError("MCP servers need more of Planwave: pip install planwave[mcp]") from error
        self.name = name
        self._settings = settings
        self._open_seconds = open_seconds
        self._max_characters = max_characters
        self._as_text = as_text
        self._pins: dict[str, str] | None = None
        self._changed: set[str] = set()
        self._unknown: set[str] = set()
        self._listed: set[str] = set()
        self._tools: tuple[McpTool, ...] = ()
        self._connection = Connection(
            name,
            settings,
            self._take,
            start_seconds=start_seconds,
            wait_seconds=wait_seconds,
            list_seconds=list_seconds,
            backoff=backoff,
            max_bytes=max_bytes,
        )

    @property
    def secrets(self) -> Sequence[str]:
        """What must be redacted wherever it comes up."""
        return self._settings.secrets

    @property
    def tools(self) -> Sequence[Tool]:
        """Those that it has now and that are still what they were. Empty until it is up for the first time."""
        return [tool for tool in self._tools if tool.listed_as in self._listed - self._changed]

    async def open(self) -> None:
        """Connect. Returns soon even where the server does not come up; it is tried again meanwhile."""
        await self._connection.open(within_seconds=self._open_seconds)

    async def close(self) -> None:
        """Disconnect, and end the child process if there is one."""
        await self._connection.close()

    async def call(self, tool: str, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Call a tool by the server's name for it, once it is known to be what it was."""
        await self._connection.refresh()
        if tool in self._changed:
            raise ToolFailed(
                "The tool's server has changed what this tool says of itself, so it is not used any more. "
                "The operator can look at the change and restart Planwave.",
                kind="tool_changed",
                may_have_acted=False,
            )
        if tool not in self._listed:
            raise ToolRetry(
                "The tool's server does not offer this tool now. Go on without it.",
                kind="tool_unavailable",
                may_have_acted=False,
            )
        result = await self._connection.call(tool, arguments, {IDEMPOTENCY_META: context.idempotency_key})
        if result.is_error:
            # Whole, for its caller takes secrets out of it, and would miss one that is cut in two.
            raise ToolRetry(self._as_text(result, limit=self._max_characters), kind="tool_error")
        return self._as_text(result, limit=self._max_characters)

    def _take(self, listed: Sequence["ListedTool"]) -> None:
        """A whole list has been read: the first is pinned, every later one compared with it."""
        if self._pins is None:
            self._pins = self._pin(listed)
        self._listed = {tool.name for tool in listed} & self._pins.keys()
        for tool in listed:
            pin = self._pins.get(tool.name)
            if pin is None:
                if tool.name not in self._unknown:
                    self._unknown.add(tool.name)
                    log.warning("MCP tool not taken: it was not there at first", server=self.name, tool=tool.name)
            elif pin != _fingerprint(tool) and tool.name not in self._changed:
                self._changed.add(tool.name)
                log.warning("MCP tool refused: it has changed", server=self.name, tool=tool.name)

    def _pin(self, listed: Sequence["ListedTool"]) -> dict[str, str]:
        pins: dict[str, str] = {}
        tools: dict[str, McpTool] = {}
        for each in listed:
            tool = McpTool(self, each.name, self._spec(each))
            if tool.spec.name in tools:
                self._unknown.add(each.name)
                log.error("MCP tool left out: its name is taken", server=self.name, tool=each.name, name=tool.spec.name)
            else:
                pins[each.name] = _fingerprint(each)
                tools[tool.spec.name] = tool
        if isinstance(self._settings.side_effects, Mapping):
            for missing in sorted(self._settings.side_effects.keys() - pins.keys()):
                log.warning("MCP tool has side effects set, but is not there", server=self.name, tool=missing)
        self._tools = tuple(tools.values())
        return pins

    def _spec(self, tool: "ListedTool") -> ToolSpec:
        shown = Redaction(self._settings.secrets)
        return ToolSpec(
            name=re.sub(r"[^A-Za-z0-9_-]", "_", f"{self.name}_{tool.name}")[:_MAX_NAME_CHARACTERS],
            description=shortened(shown(storable(tool.description or tool.title or "")), _MAX_DESCRIPTION_CHARACTERS),
            input_schema=_shown(tool.input_schema, shown),
            side_effects=self._settings.side_effects_of(tool.name) or _side_effects(tool),
        )


class McpTool:
    """One tool of a server; `listed_as` is the server's own name for it."""

    def __init__(self, server: McpServer, listed_as: str, spec: ToolSpec) -> None:
        self._server = server
        self.listed_as = listed_as
        self.spec = spec

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Do it once. What the server says of errors is shown to the model."""
        return await self._server.call(self.listed_as, arguments, context)


def _shown(part: Any, redacted: Redaction) -> Any:
    """A part of a schema without secrets: a server's defaults may come from its environment."""
    match part:
        case str():
            return redacted(part)
        case dict():
            return {
                name: value if name in _NAMES and not isinstance(value, dict) else _shown(value, redacted)
                for name, value in part.items()
            }
        case list():
            return [_shown(value, redacted) for value in part]
        case _:
            return part


def _side_effects(tool: "ListedTool") -> SideEffects:
    """What a tool says of itself; one that says nothing may do anything, each time."""
    hints = tool.annotations
    if hints is not None and hints.read_only_hint:
        return SideEffects.NONE
    if hints is not None and hints.idempotent_hint:
        return SideEffects.IDEMPOTENT
    return SideEffects.ONCE


def _fingerprint(tool: "ListedTool") -> str:
    hints = tool.annotations.model_dump(mode="json") if tool.annotations is not None else None
    said = [tool.name, tool.description, tool.title, tool.input_schema, hints]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
