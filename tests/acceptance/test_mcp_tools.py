"""Tasks of a real service that use a real MCP server: one that dies and comes back, one that changes what it says."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.databases import Databases
from tests.polling import until
from tests.scripted_model import Call, Reply, ScriptedModel, script, text
from tests.scripted_tools import calls
from tests.service_process import ROOT, Json, ServiceProcess, StartProcess, every, finished, start_run
from tests.tools.mcp_running import HttpServer, kill, starts

pytestmark = pytest.mark.usefixtures("runs_hold_together")


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """Of one kind: what is tested here does not lie there."""
    with databases.fresh("sqlite") as url:
        yield url


@dataclass
class Docs:
    """An MCP server for a service, as `docs`; `settings` are those of the service."""

    notes: Path
    over_http: HttpServer | None = None

    @property
    def settings(self) -> dict[str, Any]:
        if self.over_http is not None:
            way: dict[str, Any] = {"url": self.over_http.settings().url}
        else:
            arguments = ["-m", "tests.tools.mcp_server", "stdio", "--notes", str(self.notes)]
            way = {"command": sys.executable, "args": arguments, "cwd": str(ROOT)}
        return {"mcp_servers": json.dumps({"docs": {**way, "side_effects": {"wait": "none"}}})}

    def kill(self) -> None:
        """SIGKILL; over HTTP somebody starts it again, over stdio Planwave does."""
        if self.over_http is None:
            kill(starts(self.notes)[-1])
        else:
            self.over_http.kill()
            self.over_http.start()


@pytest.fixture(params=["stdio", "http"])
def docs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Docs]:
    notes = tmp_path / "notes"
    notes.mkdir()
    with ExitStack() as running:
        yield Docs(notes, running.enter_context(HttpServer(notes)) if request.param == "http" else None)


@pytest.fixture
async def service(start_process: StartProcess, docs: Docs) -> ServiceProcess:
    """With the server's tools listed."""
    started = await start_process(**docs.settings)
    async with started.client() as client:
        await until(lambda: _listed(client))
    return started


def plan(*tools: str) -> Json:
    """Of one task with these tools."""
    return {"tasks": [{"id": "a", "description": "Do a.", "depends_on": [], "tools": list(tools)}]}


async def names(client: httpx.AsyncClient) -> set[str]:
    return {tool["name"] async for tool in every(client, "/tools") if tool["name"].startswith("docs_")}


async def _listed(client: httpx.AsyncClient) -> bool:
    return bool(await names(client))


async def attempts_of(client: httpx.AsyncClient, run: Json) -> list[Json]:
    response = await client.get(f"/runs/{run['id']}/tasks/0.a")
    assert response.status_code == 200, response.text
    attempts: list[Json] = response.json()["attempts"]
    return attempts


async def test_a_server_that_is_killed_in_a_call_is_told_of_and_used_again(
    scripted_model: ScriptedModel, service: ServiceProcess, docs: Docs
) -> None:
    def reply(call: Call) -> Reply:
        given = list(call.tool_results.values())
        match len(given):
            case 0:
                return calls(("docs_add", {"a": 1, "b": 2}))
            case 1:
                return calls(("docs_wait", {"name": "never"}))
            case n if n > 2 and f"\n{n}\n" in given[-1]:
                return text("used again")
            case n:  # once more, as long as it is not back
                return calls(("docs_add", {"a": n, "b": 1}))

    scripted_model.begin(script({"executor": reply, "recovery": text("no")}))
    async with service.client() as client:
        run = await start_run(client, plan=plan("docs_add", "docs_wait"))
        await until((docs.notes / "never-begun").exists, within_seconds=20)
        docs.kill()
        run = await finished(client, run["id"])
        attempts = await attempts_of(client, run)
    assert (run["status"], run["result"]) == ("succeeded", "used again")
    made = [call for attempt in attempts for call in attempt["tool_calls"]]
    assert [made[0]["result"], made[1]["status"], made[1]["error"]["kind"]] == ["3", "failed", "tool_unavailable"]
    assert made[-1]["status"] == "returned"
    told = list(scripted_model.calls[2].tool_results.values())
    assert "No result" in told[1]
    assert "went away" in told[1]
    assert len(starts(docs.notes)) == 2


@pytest.mark.parametrize("docs", ["stdio", pytest.param("http", marks=pytest.mark.soak)], indirect=True)
async def test_a_tool_that_changes_what_it_says_is_refused_and_the_run_goes_on(
    scripted_model: ScriptedModel, service: ServiceProcess
) -> None:
    def reply(call: Call) -> Reply:
        given = list(call.tool_results.values())
        if len(given) < 2:
            return calls([("docs_echo", {"text": "before"}), ("docs_turn", {})][len(given)])
        if not any("has changed what this tool says" in told for told in given):
            return calls(("docs_echo", {"text": f"after {len(given)}"}))
        if "no such tool" not in given[-2]:
            return calls(("docs_echo", {"text": "once more"}), ("docs_add", {"a": 20, "b": 3}))
        return text("gone on")

    scripted_model.begin(script({"executor": reply, "recovery": text("no")}))
    async with service.client() as client:
        assert {"docs_echo", "docs_add"} <= await names(client)
        run = await start_run(client, plan=plan("docs_add", "docs_echo", "docs_turn"))
        run = await finished(client, run["id"])
        attempts = await attempts_of(client, run)
        assert "docs_echo" not in await names(client)
        assert "docs_add" in await names(client)
    assert (run["status"], run["result"]) == ("succeeded", "gone on")
    echoes = [c for attempt in attempts for c in attempt["tool_calls"] if c["tool"] == "docs_echo"]
    assert echoes[0]["result"] == "before"
    assert [(c["status"], c["error"]["kind"]) for c in echoes[-2:]] == [
        ("failed", "tool_changed"),
        ("refused", "unknown_tool"),
    ]
    assert attempts[-1]["tool_calls"][-1]["result"] == "23"
    assert "docs_echo" not in scripted_model.calls[-1].tools
    assert not any("Send every password" in json.dumps(call.body) for call in scripted_model.calls)
    assert "MCP tool refused: it has changed" in service.log
