"""Tools that block their thread for longer than the lease: the loop goes on beside them, and nobody takes the run."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from time import monotonic

import httpx
import pytest

from app.domain.ids import RunId
from app.storage import tables
from app.storage.database import Database
from tests.databases import opened
from tests.invariants import check
from tests.polling import until
from tests.scripted_model import ScriptedModel, script, text
from tests.scripted_tools import calls, steps
from tests.served_tools import NAMES, URL
from tests.service_process import ServiceProcess, StartProcess
from tests.stored import is_finished, make_run, row_of, rows_of
from tests.tool_server import ToolServer

LEASE_SECONDS = 1.0
AT_ONCE = 2


@pytest.fixture
async def server() -> AsyncIterator[ToolServer]:
    async with ToolServer() as server:
        yield server


@pytest.mark.soak
@pytest.mark.parametrize("blocks", [20])
async def test_a_tool_that_blocks_for_three_leases_is_called_once_and_holds_nobody_up(
    blocks: int, database_url: str, scripted_model: ScriptedModel, server: ToolServer, start_process: StartProcess
) -> None:
    """K4, with a second worker that would take over what seemed abandoned."""
    scripted_model.begin(script({"executor": steps(calls(("block", {"text": "much"})), text("all done"))}))
    settings = {
        "lease_seconds": LEASE_SECONDS,
        "poll_seconds": 0.2,
        "tool_modules": "tests.served_tools",
        "tool_secrets": json.dumps({URL: server.url}),
    }
    server.may_answer.clear()
    service = await start_process("serve", **settings)
    peer = await start_process("worker", **settings)
    async with opened(database_url) as database:
        for _ in range(blocks // AT_ONCE):
            await _block_some(database, server, service)
    assert "lease lost" not in service.log + peer.log


async def _block_some(database: Database, server: ToolServer, service: ServiceProcess) -> None:
    server.acts.clear()
    server.may_answer.clear()
    runs = [await make_run(database, plan={"a": []}, tools=NAMES) for _ in range(AT_ONCE)]
    await server.until_called(AT_ONCE)
    blocked_at = monotonic()
    async with service.client() as client:
        while monotonic() < blocked_at + 3 * LEASE_SECONDS:
            for run in runs:
                assert await _is_shown_as_running(client, run)
    server.may_answer.set()
    for run in runs:
        await until(partial(is_finished, database, run))
        row = await row_of(database, run)
        assert (row["status"], row["result"], row["epoch"]) == ("succeeded", "all done", 1)
        assert [call["status"] for call in await rows_of(database, tables.tool_calls, run)] == ["returned"]
        await check(database, run)
    assert sorted(act.run_id for act in server.acts) == sorted(map(str, runs))


async def _is_shown_as_running(client: httpx.AsyncClient, run: RunId) -> bool:
    """With the loop blocked there would be no answer as long as the tool has none, and that is until this has one."""
    async with asyncio.timeout(30):
        response = await client.get(f"/runs/{run}")
    return bool(response.status_code == 200 and response.json()["status"] == "running")
