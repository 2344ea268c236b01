"""A research goal over real HTTP: tasks fetch pages, compute and combine, and what is stored tells what happened."""

import re
from collections import Counter, defaultdict
from uuid import UUID

import httpx
import pytest

from app.agents.briefing import mark
from app.domain.ids import RunId
from app.storage import tables
from tests.databases import opened
from tests.local_site import LocalSite, answer, local_site
from tests.scripted_model import Call, Reply, ScriptedModel, plan_reply, script, text
from tests.scripted_tools import Wanted, calls
from tests.service_process import Json, StartProcess, ended, events, tasks_by_key
from tests.stored import rows_of

TOOLS = ["calculator", "http_get", "read_result"]
SHOWN = 4_000  # characters of results that a request shows
PAGES = {
    "/harvest": answer("<html><body><h1>Harvest</h1><p>Apples: 1250 t</p></body></html>", kind="text/html"),
    "/price": answer('{"apples": {"eur_per_t": 480}}', kind="application/json"),
    "/people": answer("Inhabitants: 24000"),
}
TASKS = [
    {"id": "market", "description": "Find harvest and price.", "depends_on": [], "tools": ["http_get"]},
    {"id": "people", "description": "Count the people.", "depends_on": [], "tools": ["calculator", "http_get"]},
    {
        "id": "share",
        "description": "What is each one's share?",
        "depends_on": ["market", "people"],
        "tools": ["calculator", "read_result"],
    },
]

pytestmark = pytest.mark.usefixtures("runs_hold_together")


class Researcher:
    """A model that works from what it reads alone, and keeps what it has asked for, by task and step."""

    def __init__(self, site: LocalSite) -> None:
        self._site = site
        self.asked: defaultdict[str, list[list[Wanted]]] = defaultdict(list)
        self.read: dict[str, list[str]] = {}
        """What the tools had given by the time of a task's answer."""

    def __call__(self, call: Call) -> Reply:
        read = [_in_block(given, call) for given in call.tool_results.values()]
        step = sum(message["role"] == "assistant" for message in call.messages)
        found = getattr(self, f"_{call.task_id}")(call, read, step)
        assert call.task_key is not None
        if isinstance(found, str):
            self.read[call.task_key] = read
            return text(found)
        self.asked[call.task_key].append(found)
        return calls(*found, content=f"step {step}")

    def _get(self, path: str) -> Wanted:
        return "http_get", {"url": self._site.url(path)}

    def _market(self, _: Call, read: list[str], step: int) -> list[Wanted] | str:
        if step == 0:
            return [self._get("/harvest"), self._get("/price")]
        tons, price = _number("Apples: ", read[0]), _number('"eur_per_t": ', read[1])
        return f"{'before ' * 2_000}tons={tons} price={price}{' behind' * 2_000}"

    def _people(self, _: Call, read: list[str], step: int) -> list[Wanted] | str:
        match step:
            case 0:
                return [self._get("/inhabitants")]
            case 1:
                assert "404" in read[0]
                return [self._get("/people")]
            case 2:
                return [("calculator", {"expression": f"{_number('Inhabitants: ', read[1])} / 2"})]
            case _:
                return f"households={read[2]}"

    def _share(self, call: Call, read: list[str], step: int) -> list[Wanted] | str:
        match step:
            case 0:
                assert "characters cut here" in call.text
                assert "tons=" not in call.text
                return [("read_result", {"task": "0.market", "offset": 13_000, "length": 2_000})]
            case 1:
                tons, price = _number("tons=", read[0]), _number("price=", read[0])
                households = _number("households=", call.text)
                return [("calculator", {"expression": f"{tons} * {price} / {households}"})]
            case _:
                return f"Each household's share is {read[1]} EUR."


def _number(before: str, words: str) -> str:
    found = re.search(re.escape(before) + r"(\d+)", words)
    assert found is not None, f"no {before!r} in {words!r}"
    return found[1]


def _in_block(content: str, call: Call) -> str:
    name = f"observation-{mark(call.run_id)}"
    assert content.startswith(f"<{name}>\n")
    assert content.endswith(f"\n</{name}>")
    return content[len(name) + 3 : -len(name) - 4]


async def test_what_is_stored_tells_what_tasks_asked_for_and_were_given(
    database_url: str, scripted_model: ScriptedModel, start_process: StartProcess
) -> None:
    async with local_site(dict(PAGES)) as site:
        researcher = Researcher(site)
        scripted_model.begin(
            script(
                {
                    "planner": plan_reply(TASKS),
                    "executor": researcher,
                    "synthesizer": lambda call: text(f"It is {_number('share is ', call.text)} EUR."),
                }
            )
        )
        service = await start_process(http_get_private=site.pair, context_max_characters=SHOWN)
        async with service.client() as client:
            run = await ended(client, goal="What is each household's share?", options={"tools": TOOLS})
            assert (run["status"], run["result"]) == ("succeeded", "It is 50 EUR.")
            shown = {key: await _task(client, run, key) for key in await tasks_by_key(client, run["id"])}
            called = await events(client, run, "tool.called")
            returned = await events(client, run, "tool.returned")

    for key, task in shown.items():
        (attempt,) = task["attempts"]
        steps: defaultdict[int, list[Wanted]] = defaultdict(list)
        for call in attempt["tool_calls"]:
            steps[call["step"]].append((call["tool"], call["arguments"]))
        assert [steps[n + 1] for n in range(len(steps))] == researcher.asked[key]
        given = [_told(call) for call in attempt["tool_calls"]]
        assert given == researcher.read[key]
        assert attempt["usage"]["tool_calls"] == len(given)
        assert attempt["usage"]["llm_calls"] == len(steps) + 1
    every = [call for task in shown.values() for call in task["attempts"][0]["tool_calls"]]
    numbers = sorted(call["number"] for call in every)
    assert numbers == list(range(1, 8))
    assert run["usage"]["tool_calls"] == 7
    assert sorted(event["data"]["tool_call"] for event in called) == numbers
    assert sorted(event["data"]["tool_call"] for event in returned) == numbers
    fetched = Counter(call["arguments"]["url"] for call in every if call["tool"] == "http_get")
    assert Counter(site.url(head.split(" ")[1]) for _, head in site.requests) == fetched

    async with opened(database_url) as database:
        stored = await rows_of(database, tables.calls, RunId(UUID(run["id"])))
    assert [(row["seat"], row["task_key"]) for row in stored] == [(c.seat, c.task_key) for c in scripted_model.calls]
    assert {row["status"] for row in stored} == {"answered"}
    said = {row["number"]: row["answer"] for row in stored if row["seat"] == "executor" and row["answer"]}
    assert sorted(said.values()) == sorted(
        f"step {n}" for asked in researcher.asked.values() for n in range(len(asked))
    )


async def _task(client: httpx.AsyncClient, run: Json, key: str) -> Json:
    response = await client.get(f"/runs/{run['id']}/tasks/{key}")
    assert response.status_code == 200, response.text
    task: Json = response.json()
    return task


def _told(call: Json) -> str:
    """What a call as stored says, as a model is told of it."""
    if call["error"] is None:
        assert call["status"] == "returned"
        return str(call["result"])
    assert (call["status"], call["result"]) == ("failed", None)
    return f"No result: {call['error']['message']}"
