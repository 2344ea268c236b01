"""A process that is told to stop while a tool will not end: its runs are handed back, and it ends well."""

import json

import pytest

from tests.databases import opened
from tests.invariants import check
from tests.scripted_model import ScriptedModel, script, text
from tests.scripted_tools import calls, steps
from tests.served_tools import URL
from tests.service_process import StartProcess
from tests.stored import make_run, row_of
from tests.tool_server import ToolServer


@pytest.mark.parametrize(
    ("command", "database_url"), [("worker", "postgresql"), ("serve", "sqlite")], indirect=["database_url"]
)
async def test_a_tool_that_goes_on_keeps_no_run_and_no_process(
    command: str, database_url: str, scripted_model: ScriptedModel, start_process: StartProcess
) -> None:
    scripted_model.begin(script({"executor": steps(calls(("linger", {"text": "x"})), text("never"))}))
    async with ToolServer() as server, opened(database_url) as database:
        settings = {"tool_modules": "tests.served_tools", "tool_secrets": json.dumps({URL: server.url})}
        process = await start_process(command, **settings, poll_seconds=0.2, drain_seconds=1, lease_seconds=120)
        run = await make_run(database, plan={"a": []}, tools=["linger"])
        await server.until_called(1)
        assert await process.terminate() == 0, process.log
        row = await row_of(database, run)
        assert (row["status"], row["lease_owner"], row["takeovers"]) == ("running", None, 0)
        await check(database, run)
