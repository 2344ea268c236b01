"""The secrets of tools, which let them out wherever they can: they are in no request, row, event, answer or log."""

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.leaking_tools import SECRET, WAYS
from tests.databases import Databases
from tests.polling import until
from tests.scripted_model import Call, Reply, ScriptedModel, script, text
from tests.scripted_tools import calls
from tests.service_process import ROOT, StartProcess, ended, every, tasks_by_key

VALUE = "KANARIE-4711\"\\ü/+&=%41 <'>-ZUGVOGEL-0815"
OF_MCP = "MCPVOGEL-2357/+=-ZEISIG"
PIECES = ("KANARIE", "ZUGVOGEL", "MCPVOGEL", "ZEISIG")
LEAKING = ["leak", "leak_broken", "leak_broken_async", "leak_finally", "leak_mended"]
OF_DOCS = ["docs_complain", "docs_environment"]


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A file that can be searched."""
    with databases.fresh("sqlite") as url:
        yield url


def leaks(where: str) -> list[str]:
    """Where pieces of secrets are in a text, as they are or in base64, however they lie between other octets."""
    wholes = [b"x" * before + secret.encode() for secret in (VALUE, OF_MCP) for before in range(3)]
    forms = [*PIECES, *(base64.b64encode(whole).decode()[4:16] for whole in wholes)]
    found = [where.find(form) for form in forms]
    return [where[max(0, at - 60) : at + 40] for at in found if at >= 0]


def reply(call: Call) -> Reply:
    """Calls its tool in every way at once; then it repeats all that it has read."""
    (tool,) = [name for name in (*LEAKING, *OF_DOCS) if name == call.task_id]
    if call.tool_results:
        return text(call.text)
    if tool == "docs_environment":
        return calls((tool, {"name": "DOCS_KEY"}))
    if tool == "docs_complain":
        return calls((tool, {"text": "on stderr"}))
    return calls(*((tool, {"way": way}) for way in WAYS))


async def everything_told(client: httpx.AsyncClient, run_id: str) -> str:
    """All that the API says of a run and of tools."""
    paths = [f"/runs/{run_id}", f"/runs/{run_id}/plan", f"/runs/{run_id}/mermaid"]
    paths += [f"/runs/{run_id}/tasks/{key}" for key in await tasks_by_key(client, run_id)]
    told = [(await client.get(path)).text for path in paths]
    for listed in (f"/runs/{run_id}/events", f"/runs/{run_id}/tasks", "/tools"):
        told += [json.dumps(entry, ensure_ascii=False) async for entry in every(client, listed)]
    return "\n".join(told)


async def test_a_secret_of_a_tool_is_nowhere_though_the_tool_tells_it_in_every_way(
    database_url: str, scripted_model: ScriptedModel, start_process: StartProcess, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    docs = {
        "command": sys.executable,
        "args": ["-m", "tests.tools.mcp_server", "stdio", "--notes", str(notes)],
        "cwd": str(ROOT),
        "env": {"DOCS_KEY": OF_MCP},
    }
    skip = {"strategy": "skip", "description": None, "tasks": None, "drop": None}
    scripted_model.begin(script({"executor": reply, "recovery": text(json.dumps(skip))}))
    service = await start_process(
        tool_modules="tests.acceptance.leaking_tools",
        tool_secrets=json.dumps({SECRET: VALUE}),
        mcp_servers=json.dumps({"docs": docs}),
        log_level="DEBUG",
    )
    tasks = [{"id": name, "description": "Do.", "depends_on": [], "tools": [name]} for name in (*LEAKING, *OF_DOCS)]

    async with service.client() as client:

        async def listed() -> bool:
            return set(OF_DOCS) <= {tool["name"] async for tool in every(client, "/tools")}

        await until(listed)
        run = await ended(client, plan={"tasks": tasks}, options={"on_failure": "auto", "max_attempts": 1})
        assert run["status"] == "succeeded", run
        told = await everything_told(client, run["id"])
    await service.terminate()
    file = Path(database_url.removeprefix("sqlite:///"))
    stored = "\n".join(part.read_bytes().decode(errors="replace") for part in file.parent.glob(f"{file.name}*"))
    asked = "\n".join(json.dumps([dict(call.headers), call.body], ensure_ascii=False) for call in scripted_model.calls)
    for name, where in {"requests": asked, "rows": stored, "answers": told, "log": service.log}.items():
        assert not leaks(where), f"in the {name}: {leaks(where)}"
        assert "[redacted]" in where, f"nothing was taken out of the {name}"
    # Everything was told, and what stands in the place of each.
    assert told.count('"status":"failed"') >= len(WAYS) * 4
    for task_id in ("leak", "leak_mended"):
        (given,) = [call.tool_results for call in scripted_model.calls if call.task_id == task_id and call.tool_results]
        assert len(given) == len(WAYS)
        assert not [one[:200] for one in given.values() if "[redacted]" not in one and "x" * 1_000 not in one]
    (environment,) = [c for c in scripted_model.calls if c.task_id == "docs_environment" and c.tool_results]
    assert "[redacted]" in next(iter(environment.tool_results.values()))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_the_search_finds_each_way(way: object) -> None:
    assert callable(way)
    assert leaks(json.dumps(way(VALUE), ensure_ascii=False))
