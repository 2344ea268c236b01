"""Plans that give tools to their tasks: those of the goal, and no others."""

import json
from collections.abc import Sequence
from typing import Any

from app.domain.errors import ToolFailed
from app.domain.ids import RunId
from app.domain.status import SideEffects
from app.storage import tables
from app.storage.database import Database
from tests.engine.conftest import Engine
from tests.engine.recording_tools import RecordingTool, toolbox
from tests.engine.troubled import answer, asked, is_asked
from tests.scripted_model import Call, Reply, plan_reply, script, text
from tests.scripted_tools import calls, steps
from tests.stored import make_run, rows_of


def drawn(**tools: Sequence[str]) -> list[dict[str, Any]]:
    """Tasks that do not need each other, by id, with these tools."""
    return [{"id": i, "description": f"Do {i}.", "depends_on": [], "tools": named} for i, named in tools.items()]


def replanned(**tools: Sequence[str]) -> Reply:
    return text(json.dumps({"strategy": "replan", "tasks": drawn(**tools)}))


def offered(call: Call) -> list[str] | None:
    """The names that the schema of an answer lets a task's tools have."""
    assert call.response_format is not None
    fields = call.response_format["json_schema"]["schema"]["properties"]
    tasks = fields["tasks"].get("anyOf", [fields["tasks"]])[0]
    tools = tasks["items"]["properties"].get("tools")
    return None if tools is None else list(tools["items"]["enum"])


async def tools_of(database: Database, run_id: RunId) -> dict[str, list[str]]:
    return {row["key"]: row["tools"] for row in await rows_of(database, tables.tasks, run_id)}


async def rejections(database: Database, run_id: RunId) -> list[list[str]]:
    events = await rows_of(database, tables.events, run_id)
    return [[one["code"] for one in e["data"]["errors"]] for e in events if e["type"] == "plan.rejected"]


async def test_the_planner_chooses_for_each_task_among_the_tools_of_the_goal(
    engine: Engine, database: Database
) -> None:
    plan = plan_reply(drawn(a=["calculator"], b=[]))
    engine.model.begin(script({"planner": plan}))
    engine.worker(toolbox=toolbox([RecordingTool("note")]))
    run_id = await make_run(database, tools=["calculator", "note"])
    assert (await engine.ended(run_id)).status == "succeeded"
    assert await tools_of(database, run_id) == {"0.a": ["calculator"], "0.b": []}
    (planner,) = engine.model.by_seat("planner")
    assert offered(planner) == ["calculator", "note"]
    assert "What note does." in planner.text
    assert "read_result" not in planner.text
    assert {call.task_key: list(call.tools) for call in engine.model.by_seat("executor")} == {
        "0.a": ["calculator"],
        "0.b": [],
    }


async def test_a_plan_with_a_tool_that_the_goal_does_not_name_is_asked_for_again(
    engine: Engine, database: Database
) -> None:
    answers = [plan_reply(drawn(a=["calculator", "note"])), plan_reply(drawn(a=["calculator"]))]
    engine.model.begin(script({"planner": answers}))
    engine.worker(toolbox=toolbox([RecordingTool("note")]))
    run_id = await make_run(database, tools=["calculator"])
    assert (await engine.ended(run_id)).status == "succeeded"
    assert await rejections(database, run_id) == [["unknown_tool"]]
    assert "names the tool 'note', but the tools that may be used are 'calculator'" in asked(engine, "planner")[1].text
    assert await tools_of(database, run_id) == {"0.a": ["calculator"]}


async def test_a_goal_without_tools_gets_none_whatever_its_plan_says(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"planner": plan_reply(drawn(a=["calculator"]))}))
    engine.worker(toolbox=toolbox())
    run_id = await make_run(database)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert await tools_of(database, run_id) == {"0.a": []}
    assert offered(engine.model.by_seat("planner")[0]) is None
    assert not any(call.tools for call in engine.model.calls)


async def test_a_replan_gives_the_goals_tools_and_no_others_and_is_told_what_was_done(
    engine: Engine, database: Database
) -> None:
    def sends(arguments: Any, _: Any) -> str:
        if arguments["text"] == "again":
            raise ToolFailed("The mailbox is full.", kind="full")
        return "sent to </done>"

    mail = RecordingTool("mail", side_effects=SideEffects.ONCE, does=sends)
    two = steps(calls(("mail", {"text": "hello"})), calls(("mail", {"text": "again"})))
    recovery = [replanned(x=["note"]), replanned(x=["calculator"])]
    engine.model.begin(script({"planner": plan_reply(drawn(a=["mail"])), ("executor", "a"): two, "recovery": recovery}))
    engine.worker(toolbox=toolbox([mail, RecordingTool("note")]))
    run_id = await make_run(database, tools=["calculator", "mail"], max_attempts=1, on_failure="auto")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert await tools_of(database, run_id) == {"0.a": ["mail"], "1.x": ["calculator"]}
    assert await rejections(database, run_id) == [["unknown_tool"]]
    first, _ = asked(engine)
    assert offered(first) == ["calculator", "mail"]
    assert 'It may use the tools ["mail"].' in first.text
    assert 'mail({"text": "hello"}) returned sent to </done>' in first.text


async def test_who_is_asked_about_a_plan_sees_its_tools_and_may_draw_one_with_the_goals_tools(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({"planner": plan_reply(drawn(a=["calculator"], b=[]))}))
    engine.worker(toolbox=toolbox())
    run_id = await make_run(database, tools=["calculator"], approval="plan")
    await engine.until(is_asked, run_id)
    (review,) = await rows_of(database, tables.reviews, run_id)
    assert [task.get("tools") for task in review["question"]["plan"]["tasks"]] == [["calculator"], None]
    await answer(database, run_id, "edit", plan={"tasks": drawn(x=["calculator"])})
    assert (await engine.ended(run_id)).status == "succeeded"
    assert (await tools_of(database, run_id))["1.x"] == ["calculator"]
