"""Servers that start late, die and come back; and what becomes of their processes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from structlog.testing import capture_logs

from app.domain.errors import ConfigurationError, ToolFailed, ToolRetry
from app.tools.mcp import McpServer
from app.tools.mcp_settings import McpServerSettings
from tests.polling import until
from tests.service_process import ROOT
from tests.tools.mcp_running import (
    CONTEXT,
    HttpServer,
    alive,
    call,
    in_flight,
    kill,
    over_stdio,
    running,
    server_of,
    starts,
    tool,
)


def test_a_server_is_made_before_anything_runs_as_a_service_does(tmp_path: Path) -> None:
    assert server_of(over_stdio(tmp_path)).tools == []


async def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    async with running(over_stdio(tmp_path)) as server:
        first = int(await call(server, "whoami"))
        kill(first)
        await until(lambda: len(starts(tmp_path)) == 2)
        second = int(await call(server, "whoami"))
    assert [first, second] == starts(tmp_path)


async def test_a_call_in_flight_when_the_process_is_killed_may_have_acted(tmp_path: Path) -> None:
    async with running(over_stdio(tmp_path)) as server:
        cut = await in_flight(server, tmp_path, "never")
        kill(starts(tmp_path)[0])
        with pytest.raises(ToolFailed) as caught:
            await cut
        assert (caught.value.kind, caught.value.may_have_acted) == ("tool_unavailable", True)
        assert await tool_again(server, "add", a=1, b=1) == "2"


async def test_a_killed_http_server_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    with HttpServer(tmp_path) as process:
        async with running(process.settings()) as server:
            cut = await in_flight(server, tmp_path, "never")
            process.kill()
            with pytest.raises(ToolFailed) as caught:
                await cut
            assert (caught.value.kind, caught.value.may_have_acted) == ("tool_unavailable", True)
            process.start()
            assert await tool_again(server, "add", a=1, b=1) == "2"


async def test_a_session_that_a_new_http_server_does_not_know_is_made_anew(tmp_path: Path) -> None:
    with HttpServer(tmp_path) as process:
        async with running(process.settings(handshake="legacy"), list_seconds=0) as server:
            add = tool(server, "add")
            process.kill()
            process.start()
            assert await add.call({"a": 1, "b": 1}, CONTEXT) == "2"


async def test_a_call_while_the_server_is_down_waits_a_little_and_has_not_acted(tmp_path: Path) -> None:
    with HttpServer(tmp_path) as process:
        async with running(process.settings(), list_seconds=0, wait_seconds=0.3) as server:
            mail = tool(server, "send_mail")
            process.kill()
            with pytest.raises(ToolRetry) as caught:
                await mail.call({"to": "someone@example.test"}, CONTEXT)
    assert (caught.value.kind, caught.value.may_have_acted) == ("tool_unavailable", False)
    assert not (tmp_path / "mails").exists()


async def test_a_call_waits_for_a_server_that_is_about_to_be_back(tmp_path: Path) -> None:
    with HttpServer(tmp_path) as process:
        async with running(process.settings(), list_seconds=0) as server:
            add = tool(server, "add")
            process.kill()
            waiting = asyncio.create_task(add.call({"a": 1, "b": 1}, CONTEXT))
            process.start()
            assert await waiting == "2"


async def test_a_slow_server_does_not_hold_up_the_start_and_is_there_later(tmp_path: Path) -> None:
    server = server_of(over_stdio(tmp_path, "--after", "ready"), open_seconds=0.1)
    await server.open()
    try:
        assert list(server.tools) == []
        (tmp_path / "ready").touch()
        await until(lambda: bool(server.tools))
        assert await call(server, "add", a=1, b=1) == "2"
    finally:
        await server.close()


async def test_a_server_that_dies_at_start_is_tried_again_until_it_lives(tmp_path: Path) -> None:
    server = server_of(over_stdio(tmp_path, "--unless", "healthy"))
    with capture_logs() as logged:
        await server.open()
        try:
            await until(lambda: len(starts(tmp_path)) > 1)
            (tmp_path / "healthy").touch()
            await until(lambda: bool(server.tools))
            assert await call(server, "add", a=1, b=1) == "2"
        finally:
            await server.close()
    assert {"event": "MCP server away, connecting again", "server": "t", "log_level": "warning"}.items() <= next(
        each.items() for each in logged if each["log_level"] == "warning"
    )


async def test_a_server_without_a_command_is_logged_with_the_reason(tmp_path: Path) -> None:
    server = server_of(McpServerSettings(command=str(tmp_path / "nowhere")))
    with capture_logs() as logged:
        await server.open()
        await server.close()
    assert "There is no command" in logged[0]["reason"]


async def test_closing_ends_the_process(tmp_path: Path) -> None:
    async with running(over_stdio(tmp_path)) as server:
        cut = await in_flight(server, tmp_path, "never")
    with pytest.raises(ToolFailed, match="went away"):
        await cut
    assert not alive(starts(tmp_path)[0])


async def test_closing_ends_a_process_that_never_came_up(tmp_path: Path) -> None:
    server = server_of(over_stdio(tmp_path, "--after", "never"), open_seconds=0.1)
    await server.open()
    await until(lambda: bool(starts(tmp_path)))
    await server.close()
    assert not alive(starts(tmp_path)[0])


_OPENED = """
import asyncio, sys
from pathlib import Path
from tests.tools.mcp_running import over_stdio, running

async def main():
    async with running(over_stdio(Path(sys.argv[1]))):
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_process_does_not_outlive_a_planwave_that_was_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _OPENED, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        assert b"up\n" in iter(parent.stdout.readline, b"")
        (child,) = starts(tmp_path)
        assert alive(child)
    finally:
        parent.kill()
        parent.communicate()
    asyncio.run(until(lambda: not alive(child)))


@pytest.fixture
def deaf() -> Iterator[None]:
    """The signals blocked that Planwave's own threads have blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_process_hears_the_signals_that_planwave_has_blocked(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def what_is_blocked() -> str:
        async with running(over_stdio(tmp_path)) as server:
            return await call(server, "blocked")

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(what_is_blocked()) == "none"
    assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())


async def test_a_process_sees_of_our_environment_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANWAVE_LLM_API_KEY", "ours")
    async with running(over_stdio(tmp_path, env={"DOCS_KEY": "theirs"})) as server:
        assert await call(server, "environment", name="DOCS_KEY") == "theirs"
        assert await call(server, "environment", name="PLANWAVE_LLM_API_KEY") == "(not set)"


async def test_an_http_server_is_sent_its_headers(tmp_path: Path) -> None:
    with HttpServer(tmp_path) as process:
        async with running(process.settings(headers={"x-docs-key": "theirs"})) as server:
            assert await call(server, "header", name="x-docs-key") == "theirs"


async def test_what_a_process_writes_to_stderr_is_logged_without_secrets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with capture_logs() as logged:
        async with running(over_stdio(tmp_path, env={"DOCS_KEY": "s3cret-key"})) as server:
            await call(server, "complain", text="the key is s3cret-key\x1b[31m")
            await until(lambda: any("the key is" in each.get("line", "") for each in logged))
    (line,) = [each for each in logged if "the key is" in each.get("line", "")]
    assert "the key is [redacted]" in line["line"]
    assert line["log_level"] == "debug"
    assert "the key is" not in capfd.readouterr().err


def test_without_the_sdk_only_a_configured_server_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        each for each in sys.modules if each.startswith("app.tools.mcp_") and each != "app.tools.mcp_settings"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ConfigurationError, match=r"pip install planwave\[mcp\]"):
        McpServer("t", McpServerSettings(command="docs-server"))


def test_the_sdk_is_not_imported_before_a_server_is_configured() -> None:
    imported = "import sys, app.tools.mcp, app.tools.mcp_settings; print('mcp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", imported], cwd=ROOT, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout == "False\n"


async def tool_again(server: McpServer, name: str, **arguments: object) -> str:
    """Call a tool that may not be listed for a moment."""
    await until(lambda: any(each.spec.name == f"t_{name}" for each in server.tools))
    return await call(server, name, **arguments)


async def test_a_secret_in_what_a_tool_says_of_itself_is_not_shown(tmp_path: Path) -> None:
    async with running(over_stdio(tmp_path, env={"DOCS_KEY": "KANARIE-4711"})) as server:
        spec = tool(server, "hello").spec
    assert spec.description == "Say hello; signed in with [redacted]."
    assert spec.input_schema["properties"]["key"]["default"] == "[redacted]"


async def test_a_secret_that_is_a_parameters_name_leaves_its_tool_usable(tmp_path: Path) -> None:
    async with running(over_stdio(tmp_path, env={"DOCS_KEY": "characters"})) as server:
        schema = tool(server, "much").spec.input_schema
    assert schema["required"] == list(schema["properties"]) == ["characters"]
