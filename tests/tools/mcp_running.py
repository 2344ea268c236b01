"""MCP servers of `tests.tools.mcp_server` as processes, and Planwave's end of them with bounds for slow machines."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

from app.domain.failures import Backoff
from app.tools.mcp import McpServer
from app.tools.mcp_settings import McpServerSettings
from app.tools.tool import Tool, ToolContext
from tests.polling import until
from tests.service_process import ROOT, free_port

CONTEXT = ToolContext(run_id="run_1", task_key="look", idempotency_key="key-1")
_COMMAND = ("-m", "tests.tools.mcp_server")


def over_stdio(notes: Path, *arguments: str, **settings: Any) -> McpServerSettings:
    """A server that Planwave starts."""
    given = (*_COMMAND, "stdio", "--notes", str(notes), *arguments)
    return McpServerSettings(command=sys.executable, args=given, cwd=str(ROOT), **settings)


class HttpServer:
    """A server on a port of its own, which it keeps when it is started again."""

    def __init__(self, notes: Path, *arguments: str) -> None:
        self._port = free_port()
        self._command = [sys.executable, *_COMMAND, "http", "--notes", str(notes), "--port", str(self._port)]
        self._command += arguments
        self._process: subprocess.Popen[bytes] | None = None

    def settings(self, **settings: Any) -> McpServerSettings:
        return McpServerSettings(url=f"http://127.0.0.1:{self._port}/mcp", **settings)

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def server_of(settings: McpServerSettings, **bounds: Any) -> McpServer:
    """Planwave's end: patient, and quick to try again."""
    patient = {"open_seconds": 60.0, "start_seconds": 60.0, "wait_seconds": 60.0}
    quick = {"backoff": Backoff(base_seconds=0.05, cap_seconds=0.5)}
    return McpServer("t", settings, **{**patient, **quick, **bounds})


@asynccontextmanager
async def running(settings: McpServerSettings, **bounds: Any) -> AsyncIterator[McpServer]:
    """Opened and up, and closed at the end."""
    server = server_of(settings, **bounds)
    await server.open()
    try:
        await until(lambda: bool(server.tools))
        yield server
    finally:
        await server.close()


def tool(server: McpServer, name: str) -> Tool:
    """By the server's name for it."""
    (found,) = [each for each in server.tools if each.spec.name == f"t_{name}"]
    return found


async def call(server: McpServer, name: str, /, **arguments: Any) -> str:
    """Call a tool that is listed now."""
    return await tool(server, name).call(arguments, CONTEXT)


async def in_flight(server: McpServer, notes: Path, name: str) -> asyncio.Task[str]:
    """A call of the tool `wait` that the server has begun; it ends when there is a note of this name."""
    begun = asyncio.create_task(call(server, "wait", name=name))
    await until(lambda: begun.done() or (notes / f"{name}-begun").exists())
    return begun


def starts(notes: Path) -> list[int]:
    """The process ids of the servers started so far."""
    with suppress(FileNotFoundError):
        return [int(line) for line in (notes / "starts").read_text().split()]
    return []


def alive(pid: int) -> bool:
    """Whether the process still does anything; one that is only waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
