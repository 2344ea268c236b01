"""Calls that a task may not make, however often and under whatever name, and calls again and again."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
import structlog

from app.domain.generation import first_plan
from app.domain.ids import RunId
from app.domain.plan import PlannedTask
from app.domain.status import PlanReason
from app.domain.transcript import MAX_CALLS_AT_ONCE, MAX_EQUAL_CALLS
from app.storage import tables
from app.storage.database import Database
from app.tools.tool import ToolSpec
from tests.databases import Databases
from tests.engine.conftest import Engine
from tests.engine.recording_tools import RecordingTool, toolbox
from tests.scripted_model import Call, Reply, ScriptedModel, script, text
from tests.scripted_tools import Wanted, calls, calls_in_words, steps, without_tools
from tests.stored import expire, make_run, rows_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNLISTED = {
    "of the server": "wire_money",
    "of another task": "mail",
    "of nobody": "shell",
    "in capitals": "NOTE",
    "with a capital": "Note",
    "with a namespace": "functions.note",
    "of a server that is not there": "docs_note",
    "with a path": "../note",
    "with another letter": "n\N{CYRILLIC SMALL LETTER O}te",
    "in wide letters": "\uff4e\uff4f\uff54\uff45",
    "with a joiner": "no\u200bte",
    "with a NUL": "note\x00",
    "with a line behind it": "note\nmail",
    "two at once": "note,mail",
    "a pattern": "*",
    "much too long": "note" * 1_000,
}
SMUGGLED: dict[str, Mapping[str, Any] | str] = {
    "one more": {"text": "x", "to": "y"},
    "a right": {"text": "x", "approved": True},
    "the context": {"text": "x", "context": {"secrets": {}}},
    "an idempotency key": {"text": "x", "idempotency_key": "k"},
    "a number": {"text": 1},
    "nothing": {"text": None},
    "a list": {"text": ["x"]},
    "an object": {"text": {"$ref": "x"}},
    "without it": {},
    "an array": '["x"]',
    "text": '"x"',
    "null": "null",
    "half": '{"text": "x"',
    "twice": '{"text": "x", "text": "y"}',
    "two objects": '{"text": "x"}{"text": "y"}',
    "a number too large": '{"text": "x", "n": 1e999}',
    "not a number": '{"text": NaN}',
    "half a surrogate": '{"text": "\\ud800"}',
    "a NUL": '{"text": "\\u0000"}',
    "deep": '{"text": ' + "[" * 5_000 + "]" * 5_000 + "}",
    "deep objects": '{"text": ' + '{"a":' * 5_000 + "1" + "}" * 5_001,
    "huge": {"text": "x" * 300_000},
    "a prototype": {"text": "x", "__proto__": {"a": 1}},
    "python": "{'text': __import__('os').getcwd()}",
}


class Adding:
    """A tool of two arguments, as JSON writes numbers in several ways."""

    def __init__(self) -> None:
        self.made: list[Mapping[str, Any]] = []

    @property
    def spec(self) -> ToolSpec:
        numbers = {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}
        return ToolSpec(name="add", description="Add.", input_schema=numbers)

    async def call(self, arguments: Mapping[str, Any], _: Any) -> str:
        self.made.append(arguments)
        return str(arguments["a"] + arguments["b"])


NOTE, MAIL, WIRE = RecordingTool("note"), RecordingTool("mail"), RecordingTool("wire_money")
TOOLS = [NOTE, MAIL, WIRE]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(databases: Databases) -> AsyncIterator[Engine]:
    with databases.fresh("sqlite") as url:
        async with ScriptedModel(script()) as model:
            engine = Engine(Database(url), url, model)
            yield engine
            await engine.end()
            await engine.database.close()


@pytest_asyncio.fixture(loop_scope="module")
async def engine(serving: Engine) -> AsyncIterator[Engine]:
    """With no worker yet."""
    for tool in TOOLS:
        tool.made.clear()
    yield serving
    await serving.end()
    serving.workers.clear()
    serving.model.check()


def denials(logged: list[structlog.typing.EventDict]) -> Counter[str]:
    found = [entry for entry in logged if entry["event"] == "tool denied"]
    assert all(entry["log_level"] == "warning" and entry["run_id"] and entry["task_key"] for entry in found)
    return Counter(entry["tool"] for entry in found)


GOAL_TOOLS = ["mail", "note"]
PLAN = first_plan(
    [
        PlannedTask(id="a", description="Do a.", depends_on=(), tools=("note",)),
        PlannedTask(id="z", description="Do z.", depends_on=("a",), tools=("mail",)),
    ],
    PlanReason.CLIENT,
)


@pytest.mark.parametrize("name", UNLISTED.values(), ids=UNLISTED.keys())
async def test_a_tool_that_is_not_the_tasks_is_denied_a_hundred_times_of_a_hundred(
    engine: Engine, logged: list[structlog.typing.EventDict], name: str
) -> None:
    def reply(call: Call) -> Reply:
        asked = len(call.tool_results)
        wanted: list[Wanted] = [(name, {"text": f"{n}"}) for n in range(asked, min(100, asked + MAX_CALLS_AT_ONCE))]
        return calls(*wanted) if wanted else text("given up")

    engine.model.begin(script({("executor", "a"): reply}))
    engine.worker(toolbox=toolbox(TOOLS))
    run_id = await make_run(engine.database, plan=PLAN, tools=GOAL_TOOLS, synthesize=False)
    run = await engine.ended(run_id)
    assert run.status == "succeeded"
    rows = await rows_of(engine.database, tables.tool_calls, run_id)
    assert [(row["status"], row["error"]["kind"], row["started_at"]) for row in rows] == [
        ("refused", "unknown_tool", None)
    ] * 100
    assert sum(denials(logged).values()) == 100
    assert not any(tool.made for tool in TOOLS)
    assert run.tool_calls == 0


async def taken_over(engine: Engine, tools: list[str], last: Reply) -> RunId:
    """A run whose task has called `note` once, and goes on where the server allows the calculator alone."""
    gate = asyncio.Event()

    async def reply(call: Call) -> Reply:
        if call.tool_results:
            await gate.wait()
        return calls(("note", {"text": f"{len(call.tool_results)}"})) if len(call.tool_results) < 3 else last

    engine.model.begin(script({"executor": reply}))
    first = engine.worker(toolbox=toolbox(TOOLS))
    run_id = await make_run(engine.database, plan={"a": []}, tools=tools, max_attempts=2)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    await first.die()
    await expire(engine.database, run_id)
    gate.set()
    engine.worker(toolbox=toolbox(TOOLS, allowed=["calculator"]))
    return run_id


async def test_a_tool_that_the_server_allows_no_more_is_denied_to_a_stored_task(
    engine: Engine, logged: list[structlog.typing.EventDict]
) -> None:
    run_id = await taken_over(engine, ["calculator", "note"], text("done without"))
    run = await engine.ended(run_id)
    rows = await rows_of(engine.database, tables.tool_calls, run_id)
    assert [row["status"] for row in rows] == ["returned", "refused", "refused"]
    assert (NOTE.texts, denials(logged)["note"], run.result) == (["0"], 2, "done without")
    assert list(engine.model.calls[-1].tools) == ["calculator"]


async def test_a_stored_task_whose_last_tool_is_gone_calls_nothing_more(engine: Engine) -> None:
    run_id = await taken_over(engine, ["note"], text("never said"))
    run = await engine.ended(run_id)
    rows = await rows_of(engine.database, tables.tool_calls, run_id)
    assert ([row["status"] for row in rows], NOTE.texts, run.status) == (["returned"], ["0"], "failed")
    assert not any(call.tools for call in engine.model.calls[2:])


@pytest.mark.parametrize("arguments", SMUGGLED.values(), ids=SMUGGLED.keys())
async def test_arguments_that_do_not_fit_are_not_sent(engine: Engine, arguments: Mapping[str, Any] | str) -> None:
    engine.model.begin(script({"executor": steps(calls(("note", arguments)), text("never mind"))}))
    engine.worker(toolbox=toolbox(TOOLS))
    run_id = await make_run(engine.database, plan={"a": []}, tools=["note"])
    run = await engine.ended(run_id)
    (row,) = await rows_of(engine.database, tables.tool_calls, run_id)
    assert (row["status"], row["error"]["kind"], NOTE.made) == ("refused", "bad_arguments", [])
    assert len(row["error"]["message"]) < 3_000
    assert run.result == "never mind"


async def test_the_same_arguments_in_another_order_and_way_of_writing_are_the_same_call(engine: Engine) -> None:
    ways = ('{"a": 1, "b": 2}', '{"b":2.0,"a":1}', '{\n "b": 2e0, "a": 1.0}', '{"a": 10e-1, "b": 2}')
    engine.model.begin(script({"executor": steps(*(calls(("add", way)) for way in ways), text("3"))}))
    adding: Any = Adding()
    engine.worker(toolbox=toolbox([adding]))
    run_id = await make_run(engine.database, plan={"a": []}, tools=["add"])
    run = await engine.ended(run_id)
    rows = await rows_of(engine.database, tables.tool_calls, run_id)
    assert len({row["idempotency_key"] for row in rows}) == 1
    assert [row["status"] for row in rows] == ["returned"] * MAX_EQUAL_CALLS + ["refused"]
    assert rows[-1]["error"]["kind"] == "repeated_call"
    assert len(adding.made) == MAX_EQUAL_CALLS
    # Made to answer, and calling once more instead, it has failed.
    assert engine.model.calls[-1].tool_choice == "none"
    assert run.status == "failed"


@pytest.mark.parametrize("texts", [["x", "y"], ["x", "y", "z"]], ids=["ABABAB", "ABCABCABC"])
async def test_calls_in_turn_are_repeated_as_often_as_one_may_be_and_no_more(engine: Engine, texts: list[str]) -> None:
    def reply(call: Call) -> Reply:
        made = len(call.tool_results)
        return text("enough") if call.tool_choice == "none" else calls(("note", {"text": texts[made % len(texts)]}))

    engine.model.begin(script({"executor": reply}))
    engine.worker(toolbox=toolbox(TOOLS))
    run = await engine.ended(await make_run(engine.database, plan={"a": []}, tools=["note"]))
    assert (run.status, run.result) == ("succeeded", "enough")
    assert NOTE.texts == texts * MAX_EQUAL_CALLS


async def test_the_same_call_often_within_one_step_is_made_as_often_as_it_may(engine: Engine) -> None:
    engine.model.begin(script({"executor": steps(calls(*[("note", {"text": "x"})] * 10), text("enough"))}))
    engine.worker(toolbox=toolbox(TOOLS))
    run_id = await make_run(engine.database, plan={"a": []}, tools=["note"])
    run = await engine.ended(run_id)
    assert (run.result, NOTE.texts) == ("enough", ["x"] * MAX_EQUAL_CALLS)
    assert len({*engine.model.calls[-1].tool_results}) == 10


@pytest.mark.parametrize("in_words", [False, True], ids=["calls", "in words"])
async def test_of_a_thousand_calls_of_tools_that_do_not_exist_few_rows_are_left(engine: Engine, in_words: bool) -> None:
    wanted: list[Wanted] = [(f"no_such_tool_{n}", {"text": f"{n}"}) for n in range(1_000)]
    asks = calls_in_words(*wanted) if in_words else calls(*wanted)
    answers = steps(asks, text("never mind"))
    engine.model.begin(script({"executor": without_tools(answers) if in_words else answers}))
    engine.worker(toolbox=toolbox(TOOLS))
    run_id = await make_run(engine.database, plan={"a": []}, tools=["note"], model=f"thousand-{in_words}")
    run = await engine.ended(run_id)
    rows = await rows_of(engine.database, tables.tool_calls, run_id)
    assert [row["error"]["kind"] for row in rows] == ["unknown_tool"] * MAX_CALLS_AT_ONCE + ["too_many_calls"]
    assert run.result == "never mind"
    assert len(json.dumps(engine.model.calls[-1].body)) < 20_000
