"""An MCP server behind a gateway that spoils its answers: nobody knows whether the call acted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from app.domain.errors import ToolError
from app.tools.mcp_settings import McpServerSettings
from tests.tools.mcp_running import HttpServer, call, running

SPOILED = {
    "gave up": (504, "text/html", "<html>Gateway Timeout"),
    "is a page": (200, "text/html", "<html>"),
    "is cut": (200, "application/json", "{"),
}
_OF_THE_HOP = ("host", "content-length", "transfer-encoding")


@asynccontextmanager
async def gateway(target: str, status: int, content_type: str, body: str) -> AsyncIterator[str]:
    """Its URL: all goes through to `target`, but what calls answer is this."""

    async def forward(request: web.Request) -> web.Response:
        asked = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OF_THE_HOP}
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, target, headers=headers, data=asked) as answer,
        ):
            given = b"" if request.method == "GET" else await answer.read()
            if b'"tools/call"' in asked:
                return web.Response(status=status, text=body, content_type=content_type)
            kept = {n: v for n, v in answer.headers.items() if n.lower() in ("content-type", "mcp-session-id")}
            return web.Response(status=answer.status, headers=kept, body=given)

    app = web.Application()
    app.router.add_route("*", "/mcp", forward)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("how", SPOILED)
async def test_what_a_gateway_says_is_not_the_tools_word(how: str, tmp_path: Path) -> None:
    with HttpServer(tmp_path) as server:
        async with (
            gateway(server.settings().url or "", *SPOILED[how]) as url,
            running(McpServerSettings(url=url, timeout_seconds=20)) as behind,
        ):
            with pytest.raises(ToolError) as raised:
                await call(behind, "add", a=1, b=2)
    assert (raised.value.may_have_acted, raised.value.answered) == (True, False)
