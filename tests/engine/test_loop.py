"""A task with tools: its loop, what its model is told, and what becomes of calls that go wrong."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from app.domain.errors import ToolFailed, ToolRetry
from app.storage import tables
from app.storage.database import Database
from tests.engine.conftest import Engine
from tests.engine.recording_tools import RecordingTool, toolbox
from tests.engine.test_retry import retried
from tests.scripted_model import Plan, ScriptedModel, script, text
from tests.scripted_tools import calls, calls_in_words, steps, without_tools
from tests.stored import make_run, rows_of, the_run

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE: Plan = {"a": []}
NOTE = ["note"]


@pytest.fixture(scope="module")
def note() -> RecordingTool:
    return RecordingTool("note")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(database_url: str, note: RecordingTool) -> AsyncIterator[Engine]:
    async with ScriptedModel(script()) as model:
        engine = Engine(Database(database_url), database_url, model)
        engine.worker(toolbox=toolbox([note]))
        yield engine
        await engine.end()
        await engine.database.close()


@pytest.fixture
def engine(serving: Engine, note: RecordingTool) -> Iterator[Engine]:
    note.made.clear()
    note.does = lambda arguments, _: f"done: {arguments['text']}"
    yield serving
    serving.model.check()


@pytest.fixture
def database(serving: Engine) -> Database:
    return serving.database


async def tool_rows(database: Database, run_id: Any) -> list[Any]:
    return list(await rows_of(database, tables.tool_calls, run_id))


async def test_a_task_calls_its_tools_and_answers_with_what_they_gave(engine: Engine, database: Database) -> None:
    engine.model.begin(
        script({("executor", "a"): steps(calls(("calculator", {"expression": "6*7"})), text("It is 42."))})
    )
    run = await engine.ended(await make_run(database, plan=ONE, tools=["calculator"]))
    assert (run.status, run.result, run.llm_calls) == ("succeeded", "It is 42.", 2)
    (row,) = await tool_rows(database, run.id)
    assert (row["tool"], row["status"], row["result"], row["side_effects"]) == ("calculator", "returned", "42", "none")
    first, second = engine.model.calls
    assert list(first.tools) == ["calculator"]
    (given,) = second.tool_results.values()
    assert "42" in given
    assert (await the_run(database, run.id)).tool_calls == 1


async def test_calls_of_one_step_run_side_by_side_and_all_their_results_come_back(
    engine: Engine, database: Database, note: RecordingTool
) -> None:
    engine.model.begin(
        script({("executor", "a"): steps(calls(("note", {"text": "x"}), ("note", {"text": "y"})), text("both"))})
    )
    run = await engine.ended(await make_run(database, plan=ONE, tools=NOTE))
    assert sorted(note.texts) == ["x", "y"]
    assert ["done: x" in one for one in engine.model.calls[-1].tool_results.values()] == [True, False]
    assert run.result == "both"


async def test_an_unknown_tool_and_bad_arguments_are_told_to_the_model_and_not_sent(
    engine: Engine, database: Database, note: RecordingTool
) -> None:
    wrong = calls(("calculator", {"expression": "1"}), ("note", {"word": "x"}), ("note", "{not json"))
    engine.model.begin(script({("executor", "a"): steps(wrong, text("never mind"))}))
    run = await engine.ended(await make_run(database, plan=ONE, tools=NOTE))
    assert (run.result, note.texts) == ("never mind", [])
    rows = await tool_rows(database, run.id)
    assert [(row["status"], row["error"]["kind"]) for row in rows] == [
        ("refused", "unknown_tool"),
        ("refused", "bad_arguments"),
        ("refused", "bad_arguments"),
    ]
    assert all("No result" in given for given in engine.model.calls[-1].tool_results.values())
    assert (await the_run(database, run.id)).tool_calls == 0


async def test_what_the_model_can_mend_uses_no_attempt(engine: Engine, database: Database, note: RecordingTool) -> None:
    def picky(arguments: Any, _: Any) -> str:
        if arguments["text"] == "x":
            raise ToolRetry("Say y.", kind="picky", may_have_acted=False)
        return "good"

    note.does = picky
    engine.model.begin(
        script(
            {("executor", "a"): steps(calls(("note", {"text": "x"})), calls(("note", {"text": "y"})), text("mended"))}
        )
    )
    run = await engine.ended(await make_run(database, plan=ONE, tools=NOTE, max_attempts=1))
    assert (run.result, note.texts) == ("mended", ["x", "y"])
    assert len(await rows_of(database, tables.attempts, run.id)) == 1


async def test_a_final_error_spoils_the_attempt_and_the_next_one_goes_on_from_there(
    engine: Engine, database: Database, note: RecordingTool
) -> None:
    def broken_once(arguments: Any, _: Any) -> str:
        if len(note.made) == 1:
            raise ToolFailed("Out of order.", kind="tool_failed")
        return "good"

    note.does = broken_once
    engine.model.begin(
        script(
            {("executor", "a"): steps(calls(("note", {"text": "x"})), calls(("note", {"text": "x"})), text("at last"))}
        )
    )
    run = await engine.ended(await make_run(database, plan=ONE, tools=NOTE, max_attempts=2))
    assert (run.status, run.result) == ("succeeded", "at last")
    attempts = await rows_of(database, tables.attempts, run.id)
    assert [row["status"] for row in attempts] == ["failed", "succeeded"]
    assert attempts[0]["error"]["kind"] == "tool_failed"
    assert "Out of order." in next(iter(engine.model.calls[1].tool_results.values()))


async def test_a_tool_that_always_fails_fails_its_task(engine: Engine, database: Database, note: RecordingTool) -> None:
    def broken(*_: Any) -> str:
        raise ToolFailed("Out of order.", kind="tool_failed")

    note.does = broken
    engine.model.begin(script({("executor", "a"): calls(("note", {"text": "x"}))}))
    run = await engine.ended(await make_run(database, plan=ONE, tools=NOTE, max_attempts=2))
    assert run.status == "failed"
    assert run.error is not None
    assert run.error["code"] == "task_failed"


async def test_the_same_call_a_third_time_is_not_made_and_the_model_is_made_to_answer(
    engine: Engine, database: Database, note: RecordingTool
) -> None:
    same = calls(("note", {"text": "x"}))
    engine.model.begin(script({("executor", "a"): steps(same, same, same, text("enough"))}))
    run = await engine.ended(await make_run(database, plan=ONE, tools=NOTE))
    assert (run.result, note.texts) == ("enough", ["x", "x"])
    assert [call.tool_choice for call in engine.model.calls] == ["auto", "auto", "auto", "none"]


async def test_a_loop_that_will_not_end_is_ended_at_its_last_step(
    engine: Engine, database: Database, note: RecordingTool
) -> None:
    engine.model.begin(
        script({("executor", "a"): lambda call: calls(("note", {"text": f"n{len(call.tool_results)}"}))})
    )
    run = await engine.ended(await make_run(database, plan=ONE, tools=NOTE, max_steps=4))
    assert run.status == "failed"
    assert run.llm_calls == 4
    assert note.texts == ["n0", "n1", "n2"]
    (attempt,) = await rows_of(database, tables.attempts, run.id)
    assert attempt["error"]["kind"] == "max_steps"


async def test_of_a_thousand_calls_at_once_sixteen_are_made(
    engine: Engine, database: Database, note: RecordingTool
) -> None:
    many = calls(*(("note", {"text": f"{n}"}) for n in range(1_000)))
    engine.model.begin(script({("executor", "a"): steps(many, text("some"))}))
    run = await engine.ended(await make_run(database, plan=ONE, tools=NOTE))
    assert (run.result, len(note.made)) == ("some", 16)
    rows = await tool_rows(database, run.id)
    assert len(rows) == 17
    assert "983 more were not made" in rows[-1]["error"]["message"]


async def test_an_endpoint_without_tools_is_told_of_them_in_words(
    engine: Engine, database: Database, note: RecordingTool
) -> None:
    engine.model.begin(
        script({("executor", "a"): without_tools(steps(calls_in_words(("note", {"text": "x"})), text("in words")))})
    )
    run = await engine.ended(await make_run(database, plan=ONE, tools=NOTE, model="wordy"))
    assert (run.status, run.result, note.texts) == ("succeeded", "in words", ["x"])


async def test_a_budget_of_tool_calls_holds(engine: Engine, database: Database, note: RecordingTool) -> None:
    engine.model.begin(
        script({("executor", "a"): lambda call: calls(("note", {"text": f"n{len(call.tool_results)}"}))})
    )
    run = await engine.ended(await make_run(database, plan=ONE, tools=NOTE, budget={"max_tool_calls": 2}))
    assert run.error is not None
    assert (run.status, run.error["code"], note.texts) == ("failed", "budget_exceeded", ["n0", "n1"])
    assert (await the_run(database, run.id)).tool_calls == 2


async def test_a_run_whose_tools_are_taken_away_by_a_retry_goes_on_without_them(
    engine: Engine, database: Database, note: RecordingTool
) -> None:
    def broken(*_: Any) -> str:
        raise ToolFailed("Out of order.", kind="tool_failed")

    note.does = broken
    engine.model.begin(script({("executor", "a"): calls(("note", {"text": "x"}))}))
    run = await engine.ended(await make_run(database, plan=ONE, tools=NOTE, max_attempts=1))
    assert run.status == "failed"
    engine.model.begin(script({("executor", "a"): text("without")}))
    await retried(database, run.id, tools=[])
    run = await engine.ended(run.id)
    assert (run.status, run.result, len(note.made)) == ("succeeded", "without", 1)
    assert engine.model.calls[0].tools == {}


async def test_a_tool_that_cancels_itself_has_failed_and_holds_nothing_up(
    engine: Engine, database: Database, note: RecordingTool
) -> None:
    def cancelled(*_: Any) -> str:
        raise asyncio.CancelledError

    note.does = cancelled
    engine.model.begin(script({("executor", "a"): calls(("note", {"text": "x"}))}))
    run = await engine.ended(await make_run(database, plan=ONE, tools=NOTE, max_attempts=1))
    (row,) = await tool_rows(database, run.id)
    assert (run.status, row["status"], row["error"]["kind"]) == ("failed", "failed", "tool_failed")
