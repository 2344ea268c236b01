"""One MCP server as it is now: connected by a task of its own, listed again when that is due, called."""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import anyio
import structlog
from mcp import Client, MCPError
from mcp.client import ClientSession
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp.types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PARSE_ERROR,
    CallToolResult,
    Implementation,
    PaginatedRequestParams,
    RequestParamsMeta,
    Tool,
    ToolListChangedNotification,
)

from app import __version__
from app.domain.errors import ConfigurationError, ToolFailed, ToolRetry
from app.domain.failures import Backoff
from app.domain.text import shortened, storable
from app.tools.mcp_settings import McpServerSettings
from app.tools.mcp_transport import connected

log = structlog.get_logger(__name__)

# The SDK logs what it cannot read, with what a server has sent in it; we say ourselves what goes wrong.
logging.getLogger("mcp").setLevel(logging.CRITICAL)

_MAX_PAGES = 100
_MAX_MESSAGE_CHARACTERS = 200_000
"""More than is shown: secrets are taken out first, and one that is cut in two would be missed."""
_LISTEN_AGAIN_SECONDS = 5.0
_END_SECONDS = 10.0
"""For good manners: a server that hangs is not told that we leave."""
_SETTLED_SECONDS = 30.0
"""A connection that lived so long was a good one: the next waits as after a first failure."""


class _Gone(Exception):
    """The connection cannot be used any more; another may come."""


class _Link:
    """One connection, from its handshake to its end."""

    def __init__(self) -> None:
        self.session: ClientSession
        self.gone = asyncio.Event()
        self.listed_at = -math.inf
        self.reading = asyncio.Lock()


class Connection:
    """Keeps a server connected from `open` to `close`; `on_listed` is given its whole list each time it is read.

    The SDK wants a connection closed by the task that has opened it, so one task does both; calls come from any.
    Whatever ends a connection, the next is tried after a growing wait.
    """

    def __init__(
        self,
        server: str,
        settings: McpServerSettings,
        on_listed: Callable[[Sequence[Tool]], None],
        *,
        start_seconds: float,
        wait_seconds: float,
        list_seconds: float,
        backoff: Backoff,
        max_bytes: int,
    ) -> None:
        self._server = server
        self._settings = settings
        self._on_listed = on_listed
        self._start_seconds = start_seconds
        self._wait_seconds = wait_seconds
        self._list_seconds = list_seconds
        self._backoff = backoff
        self._max_bytes = max_bytes
        self._link: _Link | None = None
        self._up = asyncio.Event()
        self._tried = asyncio.Event()
        self._keeper: tuple[anyio.CancelScope, asyncio.Task[None]] | None = None

    async def open(self, *, within_seconds: float) -> None:
        """Begin. Returns once the first try has succeeded or failed, or when the time is over."""
        scope = anyio.CancelScope()  # not before: it wants a running loop
        self._keeper = scope, asyncio.create_task(self._keep(scope), name=f"mcp-{self._server}")
        with anyio.move_on_after(within_seconds):
            await self._tried.wait()

    async def close(self) -> None:
        """End the connection, and the child process if there is one. Calls in flight fail."""
        if self._keeper is not None:
            scope, task = self._keeper
            scope.cancel()  # not the task: its clearing up is shielded from a scope's cancelling, not from a task's
            await asyncio.wait([task])

    async def refresh(self) -> None:
        """Wait for the server, and for a list of its tools that is recent.

        Raises `ToolRetry` where neither comes in time.
        """
        with anyio.move_on_after(self._wait_seconds):
            while True:
                await self._up.wait()
                link = self._link
                try:
                    if link is not None:
                        await self._read_tools(link, not_older_seconds=self._list_seconds)
                        return
                except _Gone:
                    continue
        raise self._away()

    async def call(self, tool: str, arguments: Mapping[str, Any], meta: Mapping[str, Any]) -> CallToolResult:
        """Send one call over the connection that there is. Raises `ToolRetry` and `ToolFailed`."""
        link = self._link
        if link is None:
            raise self._away()
        seconds = self._settings.timeout_seconds
        try:
            with anyio.fail_after(seconds):
                return await link.session.call_tool(tool, dict(arguments), meta=cast(RequestParamsMeta, meta))
        except TimeoutError:
            message = f"The tool gave no answer within {seconds:g} seconds."
            raise ToolFailed(message, kind="timeout", answered=False) from None
        except MCPError as error:
            link.listed_at = -math.inf  # whether it still knows us shows when its list is read
            if error.code == CONNECTION_CLOSED:
                message = "The tool's server went away during the call. It may have acted."
                raise ToolFailed(message, kind="tool_unavailable", answered=False) from None
            message = shortened(storable(error.message), _MAX_MESSAGE_CHARACTERS)
            # The SDK's own words for an answer that was none, of a gateway perhaps, come with these codes too.
            answered = error.code not in (INTERNAL_ERROR, PARSE_ERROR, INVALID_REQUEST)
            raise ToolRetry(f"The call was refused: {message}", kind="tool_error", answered=answered) from None
        except (RuntimeError, ValueError):
            message = "The tool's answer is not of the form that it has announced."
            raise ToolFailed(message, kind="tool_error", answered=False) from None

    def _away(self) -> ToolRetry:
        return ToolRetry(
            "The tool's server cannot be reached now. Go on without this tool, or try again later.",
            kind="tool_unavailable",
            may_have_acted=False,
        )

    async def _keep(self, scope: anyio.CancelScope) -> None:
        """Connect, again and again, until the scope is cancelled."""
        tries = 0
        with scope:
            while True:
                begun = anyio.current_time()
                try:
                    await self._hold()
                    log.warning("MCP server gone, connecting again", server=self._server)
                except Exception as error:  # noqa: BLE001 - whatever it is, a server must not end us
                    log.warning("MCP server away, connecting again", server=self._server, reason=_reason(error))
                self._tried.set()
                tries = 1 if anyio.current_time() - begun > _SETTLED_SECONDS else tries + 1
                chance = random.random()  # noqa: S311 - spreads retries, guards nothing
                await anyio.sleep(self._backoff.wait_seconds(tries, chance=chance))

    async def _hold(self) -> None:
        """One connection: made within a bound, then kept until it is gone."""
        link = _Link()

        async def on_message(message: object) -> None:
            if isinstance(message, ToolListChangedNotification):
                link.listed_at = -math.inf

        with anyio.move_on_after(self._start_seconds) as bound:
            wire = connected(self._server, self._settings, max_bytes=self._max_bytes, ended=lambda: self._lose(link))
            about_us = Implementation(name="planwave", version=__version__)
            async with Client(
                wire, mode=self._settings.handshake, cache=None, message_handler=on_message, client_info=about_us
            ) as client:
                link.session = client.session
                await self._read_tools(link, not_older_seconds=0)
                bound.deadline = math.inf
                await self._use(client, link)
                bound.deadline = anyio.current_time() + _END_SECONDS
        if bound.cancelled_caught:
            raise TimeoutError

    async def _use(self, client: Client, link: _Link) -> None:
        log.info("MCP server connected", server=self._server)
        self._link = link
        self._up.set()
        self._tried.set()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen, client, link)
                await link.gone.wait()
                tasks.cancel_scope.cancel()
        finally:
            self._lose(link)

    async def _listen(self, client: Client, link: _Link) -> None:
        """Keep a stream of notices open, where the server has one: its end tells that a server over HTTP is gone."""
        while True:
            try:
                async with client.listen(tools_list_changed=True) as notices:
                    link.listed_at = -math.inf  # what changed before was told to nobody
                    async for _ in notices:
                        link.listed_at = -math.inf
            except SubscriptionLost:
                pass
            except (ListenNotSupportedError, MCPError):
                return
            try:
                await self._read_tools(link, not_older_seconds=0)
            except _Gone:
                return
            await anyio.sleep(_LISTEN_AGAIN_SECONDS)

    async def _read_tools(self, link: _Link, *, not_older_seconds: float) -> None:
        async with link.reading:
            if link.gone.is_set():
                self._lose(link)  # or who waits for a living one would be given this one again
                raise _Gone
            if anyio.current_time() - link.listed_at < not_older_seconds:
                return
            link.listed_at = anyio.current_time()  # before it is read: a change told of meanwhile makes it old
            try:
                with anyio.fail_after(self._start_seconds):
                    tools = await _all_tools(link.session)
            except (MCPError, TimeoutError, RuntimeError, ValueError) as error:
                self._lose(link)
                raise _Gone from error
            except BaseException:
                link.listed_at = -math.inf
                raise
            self._on_listed(tools)

    def _lose(self, link: _Link) -> None:
        link.gone.set()
        if self._link is link:
            self._link = None
            self._up.clear()


async def _all_tools(session: ClientSession) -> list[Tool]:
    tools: list[Tool] = []
    cursor: str | None = None
    for _ in range(_MAX_PAGES):
        page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor))
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools
    raise ValueError("its list of tools does not end")


def _reason(error: BaseException) -> str:
    """What kind of thing went wrong, in no words of the server's: they may hold anything."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ConfigurationError):
        return str(error)
    cause = f" ({_reason(error.__cause__)})" if error.__cause__ is not None else ""
    return f"{type(error).__name__}{f' {error.code}' if isinstance(error, MCPError) else ''}{cause}"
