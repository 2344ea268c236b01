"""Tools that are not what they were at first: refused (SEC13, rug pulls)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.domain.errors import ToolFailed, ToolRetry
from app.tools.mcp import McpServer
from app.tools.tool import Tool
from tests.polling import until
from tests.tools.mcp_running import CONTEXT, HttpServer, call, kill, over_stdio, running, starts, tool

_NEVER = 3_600.0
"""Age alone makes no list old: it is read again after a notice, or over a new connection."""


@pytest.fixture(params=["stdio", "http", pytest.param("stdio, before 2026", marks=pytest.mark.soak)])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[McpServer]:
    """A server whose list counts as recent until it says that it has changed."""
    if request.param == "http":
        with HttpServer(tmp_path) as process:
            async with running(process.settings(), list_seconds=_NEVER) as server:
                yield server
    else:
        handshake = "legacy" if "before" in request.param else "auto"
        async with running(over_stdio(tmp_path, handshake=handshake), list_seconds=_NEVER) as server:
            yield server


async def refusal(of: Tool) -> ToolFailed | ToolRetry:
    """Call a tool until we refuse that: a notice may come after the answer to the call that caused it."""
    async with asyncio.timeout(60):
        while True:
            try:
                await of.call({"text": "secret", "a": 1, "b": 1}, CONTEXT)
            except (ToolFailed, ToolRetry) as error:
                if error.kind != "tool_error":  # that is the server's own refusal
                    return error


async def test_a_tool_that_says_it_has_changed_is_refused_for_good_and_the_rest_works(server: McpServer) -> None:
    echo = tool(server, "echo")
    assert await echo.call({"text": "before"}, CONTEXT) == "before"
    with capture_logs() as logged:
        await call(server, "turn")
        error = await refusal(echo)
        await call(server, "turn", back=True)
        again = await refusal(echo)
    assert isinstance(error, ToolFailed)
    assert (error.kind, error.may_have_acted) == ("tool_changed", False)
    assert again.kind == "tool_changed"
    assert echo not in server.tools
    (warning,) = [each for each in logged if each["event"] == "MCP tool refused: it has changed"]
    assert (warning["log_level"], warning["server"], warning["tool"]) == ("warning", "t", "echo")
    assert await call(server, "add", a=1, b=1) == "2"


async def test_a_tool_that_appears_later_is_not_taken(server: McpServer) -> None:
    before, add = list(server.tools), tool(server, "add")
    with capture_logs() as logged:
        await call(server, "grow")
        await call(server, "shrink")
        await refusal(add)  # from now on the list with both changes is known
    assert [each["tool"] for each in logged if each["event"].startswith("MCP tool not taken")] == ["latecomer"]
    assert [each.spec.name for each in server.tools] == [each.spec.name for each in before if each.spec.name != "t_add"]


async def test_a_tool_that_is_withdrawn_is_not_called(server: McpServer) -> None:
    add = tool(server, "add")
    await call(server, "shrink")
    error = await refusal(add)
    assert isinstance(error, ToolRetry)
    assert (error.kind, error.may_have_acted) == ("tool_unavailable", False)
    assert add not in server.tools


async def test_a_change_without_a_notice_is_found_once_the_list_is_old(tmp_path: Path) -> None:
    async with running(over_stdio(tmp_path), list_seconds=0) as server:
        echo = tool(server, "echo")
        await call(server, "turn", quietly=True)
        with pytest.raises(ToolFailed) as caught:
            await echo.call({"text": "secret"}, CONTEXT)
    assert caught.value.kind == "tool_changed"


async def test_a_server_that_comes_back_changed_has_that_tool_refused(tmp_path: Path) -> None:
    async with running(over_stdio(tmp_path, "--turned-if", "turn"), list_seconds=_NEVER) as server:
        echo = tool(server, "echo")
        (tmp_path / "turn").touch()
        kill(starts(tmp_path)[0])
        await until(lambda: len(starts(tmp_path)) == 2)
        error = await refusal(echo)
    assert error.kind == "tool_changed"


async def test_a_tool_that_has_changed_while_no_list_was_read_is_not_sent_the_arguments(tmp_path: Path) -> None:
    async with running(over_stdio(tmp_path, "--turned-if", "turn"), list_seconds=_NEVER) as server:
        mail = tool(server, "send_mail")
        (tmp_path / "turn").touch()
        kill(starts(tmp_path)[0])
        await until(lambda: len(starts(tmp_path)) == 2)
        with pytest.raises(ToolFailed) as caught:
            await mail.call({"to": "someone@example.test"}, CONTEXT)
    assert caught.value.kind == "tool_changed"
    assert not (tmp_path / "mails").exists()
