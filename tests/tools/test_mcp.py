"""One server over each transport, used by every test in turn."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from app.domain.errors import ToolFailed, ToolRetry
from app.domain.status import SideEffects
from app.tools.mcp import McpServer
from tests.tools.mcp_running import CONTEXT, HttpServer, call, in_flight, over_stdio, running, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")

_LIMIT = 10_000


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        "stdio",
        "http",
        *(
            pytest.param(older, marks=pytest.mark.soak)
            for older in ("stdio, before 2026", "http with JSON, before 2026")
        ),
    ],
)
async def server(request: pytest.FixtureRequest, notes: Path) -> AsyncIterator[McpServer]:
    more = {
        "timeout_seconds": 60,
        "handshake": "legacy" if "before" in request.param else "auto",
        "side_effects": {"whoami": "idempotent", "wait": "none"},
    }
    if request.param.startswith("stdio"):
        async with running(over_stdio(notes, **more), max_characters=_LIMIT) as server:
            yield server
    else:
        with HttpServer(notes, *(["--json"] if "JSON" in request.param else [])) as process:
            async with running(process.settings(**more), max_characters=_LIMIT) as server:
                yield server


async def test_tools_are_listed_with_what_they_say_of_themselves(server: McpServer) -> None:
    spec = tool(server, "add").spec
    assert spec.description == "Add two numbers."
    assert spec.input_schema["required"] == ["a", "b"]
    assert spec.input_schema["properties"]["a"]["type"] == "integer"


async def test_a_name_is_cleaned_and_one_that_is_taken_then_is_left_out(server: McpServer) -> None:
    assert await call(server, "dotted_name") == "dotted"


@pytest.mark.parametrize(
    ("name", "side_effects"),
    [
        ("add", SideEffects.NONE),
        ("echo", SideEffects.IDEMPOTENT),
        ("send_mail", SideEffects.ONCE),
        ("whoami", SideEffects.IDEMPOTENT),
        ("wait", SideEffects.NONE),
    ],
)
async def test_the_operator_knows_side_effects_best_then_the_tool(
    server: McpServer, name: str, side_effects: SideEffects
) -> None:
    assert tool(server, name).spec.side_effects is side_effects


async def test_a_tool_is_called(server: McpServer) -> None:
    assert await call(server, "add", a=2, b=40) == "42"


async def test_text_of_all_scripts_goes_there_and_back(server: McpServer) -> None:
    text = "Zürich 東京 \N{PILE OF POO} a\u2028b\nc\td"
    assert await call(server, "echo", text=text) == text


async def test_the_idempotency_key_goes_with_the_call(server: McpServer) -> None:
    assert await call(server, "key") == CONTEXT.idempotency_key


async def test_a_tool_that_raises_tells_the_model_nothing_of_its_insides(server: McpServer) -> None:
    with pytest.raises(ToolRetry) as caught:
        await call(server, "boom")
    assert caught.value.kind == "tool_error"
    assert "boom" in caught.value.message
    assert "the reason why" not in caught.value.message


async def test_arguments_that_the_server_refuses_can_be_mended(server: McpServer) -> None:
    with pytest.raises(ToolRetry) as caught:
        await call(server, "add", a="not a number", b=1)
    assert caught.value.kind == "tool_error"
    assert await call(server, "add", a=1, b=1) == "2"


async def test_a_huge_answer_is_bounded(server: McpServer) -> None:
    answer = await call(server, "much", characters=3_000_000)
    assert len(answer) == _LIMIT
    assert answer == "x" * (_LIMIT - 1) + "…"


async def test_a_structured_answer_is_json(server: McpServer) -> None:
    assert '"place"' in await call(server, "measured")


async def test_what_is_no_text_is_named(server: McpServer) -> None:
    assert await call(server, "picture") == "a picture:\n[image left out]"


async def test_many_calls_at_once_each_get_their_own_answer(server: McpServer) -> None:
    answers = await asyncio.gather(*(call(server, "add", a=number, b=1) for number in range(100)))
    assert answers == [str(number + 1) for number in range(100)]


async def test_calls_do_not_wait_for_each_other(server: McpServer, notes: Path, request: pytest.FixtureRequest) -> None:
    name = f"slow-{request.node.callspec.id}".replace(" ", "-")
    slow = await in_flight(server, notes, name)
    assert await call(server, "add", a=1, b=1) == "2"
    assert not slow.done()
    (notes / name).touch()
    assert await slow == f"{name} has come"


async def test_a_cancelled_call_leaves_the_rest_usable(
    server: McpServer, notes: Path, request: pytest.FixtureRequest
) -> None:
    name = f"cut-{request.node.callspec.id}".replace(" ", "-")
    cut = await in_flight(server, notes, name)
    before = await call(server, "whoami")
    cut.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cut
    assert await call(server, "whoami") == before


async def test_a_call_that_takes_too_long_may_have_acted(tmp_path: Path) -> None:
    with capture_logs():
        async with running(over_stdio(tmp_path, timeout_seconds=0.2)) as server:
            with pytest.raises(ToolFailed) as caught:
                await call(server, "wait", name="never")
            assert (caught.value.kind, caught.value.may_have_acted) == ("timeout", True)
            assert tool(server, "add")
