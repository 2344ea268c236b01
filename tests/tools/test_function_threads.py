"""Where functions run: off the event loop, in threads of which each tool has its own, and what cancelling them does."""

import asyncio
import functools
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from app.tools.functions import tool
from app.tools.tool import Tool, ToolContext

CONTEXT = ToolContext(run_id="run-1", task_key="2", idempotency_key="k")


async def called(a_tool: Tool, **arguments: Any) -> str:
    return await a_tool.call(arguments, CONTEXT)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds threads until the test is over."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_sync_function_runs_off_the_loop_in_the_callers_context() -> None:
    @tool
    def where() -> str:
        """Say where."""
        return f"{threading.current_thread() is threading.main_thread()} {structlog.contextvars.get_contextvars()}"

    with structlog.contextvars.bound_contextvars(run="r"):
        assert await called(where) == "False {'run': 'r'}"


async def test_a_tool_that_blocks_stops_no_other(gate: threading.Event) -> None:
    began = threading.Semaphore(0)

    @tool
    def block() -> str:
        """Block."""
        began.release()
        gate.wait()
        return "done"

    @tool
    def go_on(number: int) -> int:
        """Go on."""
        return number

    blocked = [asyncio.create_task(called(block)) for _ in range(20)]
    async with asyncio.timeout(60):
        for _ in range(8):  # as many as the tool has threads
            await asyncio.to_thread(began.acquire)
        assert await asyncio.gather(*(called(go_on, number=n) for n in range(50))) == [str(n) for n in range(50)]
        assert not began.acquire(blocking=False)
        gate.set()
        assert await asyncio.gather(*blocked) == ["done"] * 20


async def test_a_cancelled_sync_function_goes_on_and_that_is_logged(gate: threading.Event) -> None:
    began, ended = threading.Event(), threading.Event()

    @tool
    def block() -> None:
        """Block."""
        began.set()
        gate.wait()
        ended.set()

    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(called(block))
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [(log["event"], log["tool"]) for log in logs] == [("tool goes on in its thread", "block")]
    assert not ended.is_set()
    gate.set()
    assert await asyncio.to_thread(ended.wait, 60)


async def test_a_call_that_is_cancelled_while_it_waits_for_a_thread_is_never_made(gate: threading.Event) -> None:
    made: list[int] = []
    began = threading.Semaphore(0)

    @tool
    def block(number: int) -> None:
        """Block."""
        made.append(number)
        began.release()
        gate.wait()

    first = [asyncio.create_task(called(block, number=n)) for n in range(8)]
    for _ in first:
        await asyncio.to_thread(began.acquire)
    waiting = asyncio.create_task(called(block, number=99))
    last = asyncio.create_task(called(block, number=100))
    await asyncio.sleep(0)  # both are queued
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    async with asyncio.timeout(60):
        await asyncio.gather(*first, last)
    assert sorted(made) == [*range(8), 100]


BLOCKED = """
import asyncio, threading
from app.tools.functions import tool
from app.tools.tool import ToolContext

@tool
def block() -> None:
    "Block."
    threading.Event().wait()

async def main():
    context = ToolContext(run_id="r", task_key="1", idempotency_key="k")
    try:
        async with asyncio.timeout(0.1):
            await block.call({}, context)
    except TimeoutError:
        print("out of time")

asyncio.run(main())
"""


def test_a_function_that_blocks_does_not_keep_the_program_from_ending() -> None:
    ended = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.splitlines()[-1] == "out of time"


async def test_an_async_function_behind_a_plain_decorator_runs_on_the_loop() -> None:
    async def plain(text: str) -> str:
        """Say the same."""
        asyncio.get_running_loop()
        return text

    @tool
    @functools.wraps(plain)
    def decorated(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    assert await decorated.call({"text": "hello"}, CONTEXT) == "hello"
