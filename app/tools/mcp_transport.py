"""The wires to MCP servers: a child process with clean signals and a log, or HTTP with a bound; and when one ends."""

import asyncio
import codecs
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Self, TextIO

import anyio
import httpx2
import structlog
from mcp.client._transport import ReadStream, WriteStream
from mcp.client.stdio import StdioServerParameters, get_default_environment, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from app.domain.errors import ConfigurationError
from app.domain.text import shortened
from app.tls import trusted
from app.tools.mcp_settings import McpServerSettings
from app.tools.redaction import Redaction

log = structlog.get_logger(__name__)

Message = SessionMessage | Exception
Streams = tuple[ReadStream[Message], WriteStream[SessionMessage]]
Transport = AbstractAsyncContextManager[Streams]

_CONNECT_SECONDS = 10.0
_MAX_LINE_CHARACTERS = 1_000
_MAX_CHUNK_BYTES = 2**16

# A child inherits which signals our threads have blocked (`app.cli.signals`), and would be deaf to SIGTERM. To unblock
# them here while it is spawned would let a signal end us; so the child does it itself, and then becomes the server.
# Python ignores SIGPIPE, which would be inherited too.
_WITH_CLEAN_SIGNALS = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, ())
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class _Heard:
    """A stream of messages that says when it has ended. Foreign code calls the rest of it."""

    def __init__(self, stream: ReadStream[Message], ended: Callable[[], None]) -> None:
        self._stream = stream
        self._ended = ended

    @property
    def last_context(self) -> object:
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Message:
        try:
            return await self._stream.receive()
        except anyio.EndOfStream:
            self._ended()
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


@asynccontextmanager
async def connected(
    server: str, settings: McpServerSettings, *, max_bytes: int, ended: Callable[[], None]
) -> AsyncIterator[Streams]:
    """A wire to the server; `ended` is called when it says no more. A child process ends with it."""
    transport = _over_http(settings, max_bytes) if settings.url is not None else _to_a_child(server, settings)
    async with transport as (incoming, outgoing):
        yield _Heard(incoming, ended), outgoing


@asynccontextmanager
async def _over_http(settings: McpServerSettings, max_bytes: int) -> AsyncIterator[Streams]:
    headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
    # A stream of notices may be silent for long; each call has its own bound.
    timeout = httpx2.Timeout(_CONNECT_SECONDS, read=max(300.0, settings.timeout_seconds * 2))
    async with (
        httpx2.AsyncClient(headers=headers, timeout=timeout, verify=trusted()) as client,
        streamable_http_client(settings.url or "", http_client=client, max_sse_event_size=max_bytes) as streams,
    ):
        yield streams


@asynccontextmanager
async def _to_a_child(server: str, settings: McpServerSettings) -> AsyncIterator[Streams]:
    env = {name: value.get_secret_value() for name, value in settings.env.items()}
    command = [settings.command or "", *settings.args]
    if shutil.which(command[0], path=(get_default_environment() | env).get("PATH")) is None:
        raise ConfigurationError(f"There is no command {command[0]!r}; name one that is on the PATH, or its full path.")
    parameters = StdioServerParameters(
        command=sys.executable, args=["-I", "-S", "-c", _WITH_CLEAN_SIGNALS, *command], env=env, cwd=settings.cwd
    )
    async with _logged(server, settings.secrets) as errors, stdio_client(parameters, errlog=errors) as streams:
        errors.close()  # the child has its own copy, and with that one it ends
        yield streams


@asynccontextmanager
async def _logged(server: str, secrets: Sequence[str]) -> AsyncIterator[TextIO]:
    """A file for a child's stderr whose lines become log records at debug level, without the secrets."""
    reading, writing = os.pipe()
    lines = asyncio.StreamReader()
    with os.fdopen(writing, "w") as errors:
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(reading, "rb")
        )
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_log_lines, server, secrets, lines)
                yield errors
                tasks.cancel_scope.cancel()
        finally:
            pipe.close()


async def _log_lines(server: str, secrets: Sequence[str], lines: asyncio.StreamReader) -> None:
    redacted, decoder = Redaction(secrets), codecs.getincrementaldecoder("utf-8")("replace")
    begun = ""
    while chunk := await lines.read(_MAX_CHUNK_BYTES):
        # A line is looked at whole, for a secret may come in two parts; but nothing says that one ends.
        *whole, begun = (begun + decoder.decode(chunk)).split("\n")
        if len(begun) > _MAX_CHUNK_BYTES:
            whole, begun = [*whole, begun], ""
        _log_each(server, [redacted(line) for line in whole])
    _log_each(server, [redacted(begun)])


def _log_each(server: str, lines: Sequence[str]) -> None:
    for line in filter(None, lines):
        log.debug("MCP server wrote", server=server, line=shortened(line, _MAX_LINE_CHARACTERS))
