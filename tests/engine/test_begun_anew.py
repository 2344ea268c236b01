"""What a task has done outside is known to whatever goes on with its work: other words, another attempt or task."""

import asyncio
import json
from typing import Any

from app.domain.errors import ToolFailed, ToolRetry
from app.domain.status import SideEffects
from app.storage import tables
from app.storage.database import Database
from tests.engine.conftest import Engine
from tests.engine.recording_tools import RecordingTool, toolbox
from tests.scripted_model import Plan, Reply, script, text
from tests.scripted_tools import calls, steps
from tests.stored import make_run, rows_of

ONE: Plan = {"a": []}


def a_letter(does: Any = None) -> RecordingTool:
    tool = RecordingTool("letter", side_effects=SideEffects.ONCE)
    if does is not None:
        tool.does = does
    return tool


def replan(*tasks: dict[str, Any]) -> Reply:
    return text(json.dumps({"strategy": "replan", "tasks": list(tasks), "drop": [], "description": ""}))


async def test_a_task_in_other_words_is_told_what_it_has_done(engine: Engine, database: Database) -> None:
    letter = a_letter()
    engine.worker(toolbox=toolbox([letter]))
    engine.model.begin(
        script(
            {
                ("executor", "a"): steps(calls(("letter", {"text": "Dear Bob"})), text("no JSON")),
                "recovery": text(json.dumps({"description": "Please do a."})),
            }
        )
    )
    run_id = await make_run(
        database,
        plan=ONE,
        tools=["letter"],
        max_attempts=1,
        on_failure="retry",
        output_schema={"type": "object"},
    )
    await engine.ended(run_id)
    (anew,) = [call for call in engine.model.calls_for("0.a") if "Please do a." in call.text and not call.tool_results]
    assert "not to be done again" in anew.text
    assert "Dear Bob" in anew.text
    assert letter.texts == ["Dear Bob"]


async def test_a_call_in_doubt_is_asked_about_though_another_task_of_a_replan_wants_it(
    engine: Engine, database: Database
) -> None:
    def in_doubt(arguments: Any, _: Any) -> str:
        raise ToolRetry("Nothing came back.", kind="timeout")

    letter = a_letter(in_doubt)
    engine.worker(toolbox=toolbox([letter]))
    same = calls(("letter", {"text": "Dear Bob"}))
    engine.model.begin(
        script(
            {
                ("executor", "a"): steps(same, text("no JSON")),
                ("executor", "1"): steps(same, text("{}")),
                "recovery": replan(
                    {"id": "1", "description": "Do a otherwise.", "depends_on": [], "tools": ["letter"]}
                ),
            }
        )
    )
    run_id = await make_run(
        database,
        plan=ONE,
        tools=["letter"],
        max_attempts=1,
        on_failure="replan",
        output_schema={"type": "object"},
    )
    async with asyncio.timeout(30):
        while not (reviews := await rows_of(database, tables.reviews, run_id)):
            await database.ping()
    assert reviews[0]["kind"] == "tool_call"
    assert reviews[0]["question"]["tool_call"]["outcome_unknown"] is True
    assert letter.texts == ["Dear Bob"]


async def test_a_tool_that_fails_is_tried_in_every_attempt(engine: Engine, database: Database) -> None:
    def broken(*_: Any) -> str:
        raise ToolFailed("Out of order.", kind="tool_failed")

    note = RecordingTool("note", does=broken)
    engine.worker(toolbox=toolbox([note]))
    engine.model.begin(script({("executor", "a"): calls(("note", {"text": "x"}))}))
    run = await engine.ended(await make_run(database, plan=ONE, tools=["note"], max_attempts=4))
    assert (run.status, len(note.made)) == ("failed", 4)


async def test_a_loop_ends_when_the_time_of_its_task_is_used_up(engine: Engine, database: Database) -> None:
    async def slow(*_: Any) -> str:
        await asyncio.sleep(0.4)
        return "more"

    note = RecordingTool("note", does=slow)
    engine.worker(toolbox=toolbox([note]))
    engine.model.begin(
        script({("executor", "a"): lambda call: calls(("note", {"text": f"n{len(call.tool_results)}"}))})
    )
    run = await engine.ended(
        await make_run(database, plan=ONE, tools=["note"], max_attempts=1, task_timeout_seconds=1, max_steps=50)
    )
    (attempt,) = await rows_of(database, tables.attempts, run.id)
    assert (run.status, attempt["error"]["kind"]) == ("failed", "timeout")
    assert len(note.made) < 10
