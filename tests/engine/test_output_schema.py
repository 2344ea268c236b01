"""Results that have to match a JSON Schema: of a task, of the goal, from any endpoint."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from app.bootstrap import make_model
from app.domain.ids import RunId
from app.settings import Settings
from app.storage import tables
from app.storage.database import Database
from tests.engine.conftest import Engine
from tests.engine.test_retry import retried
from tests.scripted_model import Call, Plan, Reply, error, hang, script, text
from tests.stored import expire, make_run, rows_of

CITY: Mapping[str, Any] = {
    "type": "object",
    "required": ["name", "people"],
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
}
GOOD = {"name": "Ulm", "people": 126_000}
FITS = text(json.dumps(GOOD))
MISFIT = text('{"name": "Ulm", "people": "many"}')
PAIR: Plan = {"a": [], "b": []}
CHAIN: Plan = {"a": [], "b": ["a"]}


async def run_with_schema(database: Database, plan: Plan, schema: Mapping[str, Any], **options: Any) -> RunId:
    """A run of the plan whose task `a` has this schema."""
    run_id = await make_run(database, plan=plan, announced=False, **options)
    async with database.write() as connection:
        await connection.execute(
            sa.update(tables.tasks)
            .where(tables.tasks.c.run_id == run_id, tables.tasks.c.key == "0.a")
            .values(output_schema=schema)
        )
    return run_id


async def results(database: Database, run_id: RunId) -> dict[str, Any]:
    return {task["key"]: task["result"] for task in await rows_of(database, tables.tasks, run_id)}


def asked_for(call: Call) -> str:
    """How the answer was asked for."""
    return "text" if call.response_format is None else str(call.response_format["type"])


# --- of a task


async def test_a_tasks_result_is_stored_and_shown_as_the_json_it_is(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): FITS}))
    run_id = await run_with_schema(database, CHAIN, CITY, synthesize=False)
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert await results(database, run_id) == {"0.a": GOOD, "0.b": "result of 0.b"}
    first, second = engine.model.calls
    assert first.response_format is not None
    assert first.response_format["json_schema"]["schema"] == CITY
    assert (asked_for(second), json.dumps(GOOD) in second.text) == ("text", True)


@pytest.mark.parametrize("content", ["```json\n{}\n```", "```\n{}\n```", "\n {} \n"])
async def test_json_in_a_fence_is_taken(engine: Engine, database: Database, content: str) -> None:
    engine.model.begin(script({("executor", "a"): text(content.replace("{}", json.dumps(GOOD)))}))
    run_id = await run_with_schema(database, {"a": []}, CITY)
    engine.worker()
    run = await engine.ended(run_id)
    assert (run.status, run.result, run.llm_calls) == ("succeeded", GOOD, 1)


@pytest.mark.parametrize("answer", [MISFIT, text("Ulm has many people."), text('{"name": "Ulm"'), text("[]")])
async def test_a_mismatch_is_a_spoiled_attempt_and_the_model_is_told(
    engine: Engine, database: Database, answer: Reply
) -> None:
    engine.model.begin(script({("executor", "a"): [answer, FITS]}))
    run_id = await run_with_schema(database, {"a": []}, CITY)
    engine.worker()
    assert (await engine.ended(run_id)).result == GOOD
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [attempt["status"] for attempt in attempts] == ["failed", "succeeded"]
    assert (attempts[0]["error"]["kind"], attempts[0]["error"]["retryable"]) == ("output_mismatch", True)
    told = [attempts[0]["error"]["message"] in call.text for call in engine.model.calls]
    assert told == [False, True]


async def test_the_next_worker_tells_the_model_what_did_not_fit(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): [MISFIT, hang(), FITS]}))
    run_id = await run_with_schema(database, {"a": []}, CITY)
    first = engine.worker()
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    await first.die()
    await expire(database, run_id)
    engine.worker()
    assert (await engine.ended(run_id)).result == GOOD
    _, lost, again = engine.model.calls
    assert lost.messages == again.messages


async def test_what_did_not_fit_is_told_after_a_transport_fault_too(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): [MISFIT, error(503), FITS]}))
    run_id = await run_with_schema(database, {"a": []}, CITY)
    engine.worker()
    assert (await engine.ended(run_id)).result == GOOD
    _, second, third = engine.model.calls
    assert second.messages == third.messages


async def test_past_its_attempts_a_task_that_does_not_fit_fails_like_any_other(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "a"): MISFIT}))
    run_id = await run_with_schema(database, CHAIN, CITY, max_attempts=2)
    engine.worker()
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.status, run.error["code"], run.error["task_key"]) == ("failed", "task_failed", "0.a")
    assert engine.model.order() == ["0.a", "0.a"]


async def test_a_task_that_does_not_fit_is_reworded_and_recovery_is_told_why(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({("executor", "a"): [MISFIT, FITS], "recovery": text('{"description": "Count Ulm."}')}))
    run_id = await run_with_schema(database, {"a": []}, CITY, max_attempts=1, on_failure="retry")
    engine.worker()
    assert (await engine.ended(run_id)).result == GOOD
    attempts = await rows_of(database, tables.attempts, run_id)
    assert attempts[0]["error"]["message"] in engine.model.by_seat("recovery")[0].text
    assert attempts[0]["error"]["message"] not in engine.model.calls[-1].text


async def test_after_a_retry_the_misfits_of_before_are_not_told(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): [MISFIT, FITS]}))
    run_id = await run_with_schema(database, {"a": []}, CITY, max_attempts=1)
    engine.worker()
    assert (await engine.ended(run_id)).status == "failed"
    await retried(database, run_id)
    assert (await engine.ended(run_id)).result == GOOD
    first, second = engine.model.calls
    assert first.messages == second.messages


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
async def test_a_result_may_be_any_json_value(engine: Engine, database: Database, value: object) -> None:
    schema = {"type": ["object", "array", "string", "boolean", "integer", "null"]}
    engine.model.begin(script({("executor", "a"): text(json.dumps(value)), "synthesizer": text(json.dumps(value))}))
    run_id = await run_with_schema(database, PAIR, schema, output_schema=schema)
    engine.worker()
    run = await engine.ended(run_id)
    assert (run.status, run.result, (await results(database, run_id))["0.a"]) == ("succeeded", value, value)


# --- of the goal


async def test_the_runs_result_matches_the_goals_schema(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"synthesizer": FITS}))
    engine.worker()
    run_id = await make_run(database, plan=PAIR, output_schema=CITY)
    assert (await engine.ended(run_id)).result == GOOD
    assert [asked_for(call) for call in engine.model.calls] == ["text", "text", "json_schema"]


async def test_an_answer_that_does_not_fit_is_asked_for_twice_more(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"synthesizer": [MISFIT, text("Ulm."), FITS]}))
    engine.worker()
    run = await engine.ended(await make_run(database, plan=PAIR, output_schema=CITY))
    assert (run.status, run.result) == ("succeeded", GOOD)
    _, second, third = engine.model.by_seat("synthesizer")
    assert "/people" in second.text
    assert ("/people" in third.text, "not one JSON value" in third.text) == (False, True)


async def test_after_three_answers_that_do_not_fit_the_run_fails_and_keeps_its_results(
    engine: Engine, database: Database
) -> None:
    engine.model.begin(script({"synthesizer": MISFIT}))
    engine.worker()
    run_id = await make_run(database, plan=PAIR, output_schema=CITY)
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], len(engine.model.by_seat("synthesizer"))) == ("synthesis_failed", 3)
    assert await results(database, run_id) == {"0.a": "result of 0.a", "0.b": "result of 0.b"}
    engine.model.begin(script({"synthesizer": FITS}))
    await retried(database, run_id)
    assert (await engine.ended(run_id)).result == GOOD
    assert engine.model.order() == ["synthesizer"]
    assert "/people" not in engine.model.calls[0].text


async def test_misfits_of_the_answer_are_counted_across_workers(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"synthesizer": [MISFIT, hang(), MISFIT]}))
    first = engine.worker()
    run_id = await make_run(database, plan=PAIR, output_schema=CITY)
    await engine.model.until(lambda: len(engine.model.by_seat("synthesizer")) == 2)
    await first.die()
    await expire(database, run_id)
    engine.worker()
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], len(engine.model.by_seat("synthesizer"))) == ("synthesis_failed", 4)
    _, lost, again, _ = engine.model.by_seat("synthesizer")
    assert lost.messages == again.messages


async def test_the_only_task_of_a_drawn_plan_has_the_goals_schema(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": [MISFIT, FITS]}, plan={"a": []}))
    engine.worker()
    run = await engine.ended(await make_run(database, output_schema=CITY))
    assert (run.status, run.result, engine.model.order()) == ("succeeded", GOOD, ["planner", "0.a", "0.a"])
    assert [asked_for(call) for call in engine.model.by_seat("executor")] == ["json_schema"] * 2


async def test_the_only_task_that_replaces_the_only_task_has_the_goals_schema(
    engine: Engine, database: Database
) -> None:
    recovery = text('{"strategy": "replan", "tasks": [{"id": "x", "description": "Do x.", "depends_on": []}]}')
    engine.model.begin(script({("executor", "a"): MISFIT, ("executor", "x"): FITS, "recovery": recovery}))
    engine.worker()
    run = await engine.ended(
        await make_run(database, plan={"a": []}, output_schema=CITY, max_attempts=1, on_failure="replan")
    )
    assert (run.status, run.result, engine.model.order()) == ("succeeded", GOOD, ["0.a", "0.a", "1.x"])


async def test_a_result_that_another_replaces_is_not_the_only_one(engine: Engine, database: Database) -> None:
    recovery = text('{"strategy": "replan", "tasks": [{"id": "x", "description": "Do x.", "depends_on": ["0.a"]}]}')
    engine.model.begin(script({("executor", "b"): text(""), "recovery": recovery, "synthesizer": FITS}))
    engine.worker()
    run = await engine.ended(
        await make_run(database, plan=CHAIN, output_schema=CITY, max_attempts=1, on_failure="replan")
    )
    assert (run.status, run.result) == ("succeeded", GOOD)
    assert engine.model.order() == ["0.a", "0.b", "0.b", "1.x", "synthesizer"]


async def test_one_task_left_of_two_is_synthesized_into_the_goals_schema(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): text(""), "synthesizer": FITS}))
    engine.worker()
    run = await engine.ended(await make_run(database, plan=PAIR, output_schema=CITY, max_attempts=1, on_failure="skip"))
    assert (run.status, run.result) == ("succeeded", GOOD)


# --- endpoints that take no schema


def refusing(*formats: str) -> Any:
    """An endpoint that takes none of these formats, and otherwise answers well."""

    def reply(call: Call) -> Reply:
        if asked_for(call) in formats:
            return error(400, message=f"response_format {asked_for(call)} is not supported")
        return FITS

    return reply


@pytest.mark.parametrize("refused", [("json_schema",), ("json_schema", "json_object")])
async def test_an_endpoint_that_refuses_the_format_is_asked_in_a_simpler_one_and_costs_no_attempt(
    engine: Engine, database: Database, refused: tuple[str, ...]
) -> None:
    engine.model.begin(script({("executor", "a"): refusing(*refused), "synthesizer": refusing(*refused)}))
    run_id = await run_with_schema(database, PAIR, CITY, output_schema=CITY, max_attempts=1)
    engine.worker()
    run = await engine.ended(run_id)
    assert (run.status, run.result, (await results(database, run_id))["0.a"]) == ("succeeded", GOOD, GOOD)
    ladder = ["json_schema", "json_object", "text"][: len(refused) + 1]
    assert [asked_for(call) for call in engine.model.calls_for("0.a")] == ladder
    # What the endpoint takes is remembered.
    assert [asked_for(call) for call in engine.model.by_seat("synthesizer")] == ladder[-1:]


@pytest.mark.parametrize("refused", [("json_schema",), ("json_schema", "json_object")])
async def test_an_endpoint_that_refuses_the_synthesizers_format_is_asked_in_a_simpler_one(
    engine: Engine, database: Database, refused: tuple[str, ...]
) -> None:
    engine.model.begin(script({"synthesizer": refusing(*refused)}))
    engine.worker()
    run = await engine.ended(await make_run(database, plan=PAIR, output_schema=CITY))
    assert (run.status, run.result) == ("succeeded", GOOD)
    ladder = ["json_schema", "json_object", "text"][: len(refused) + 1]
    assert [asked_for(call) for call in engine.model.by_seat("synthesizer")] == ladder
    assert all(json.dumps(CITY) in call.text for call in engine.model.by_seat("synthesizer"))


# --- the built-in model


async def test_the_offline_model_answers_in_the_schemas_asked_for(engine: Engine, database: Database) -> None:
    settings = Settings(_env_file=None, database_url=engine.settings["database_url"])
    assert settings.offline
    run_id = await run_with_schema(database, PAIR, CITY, output_schema=CITY)
    engine.settings.update(llm_base_url=None, llm_api_key=None)
    engine.worker(model=make_model(settings))
    run = await engine.ended(run_id)
    assert run.status == "succeeded"
    for value in (run.result, (await results(database, run_id))["0.a"]):
        assert {name: type(part) for name, part in value.items()} == {"name": str, "people": int}
    drawn = await engine.ended(await make_run(database, output_schema=CITY))
    assert (drawn.status, sorted(drawn.result)) == ("succeeded", ["name", "people"])
    assert engine.model.calls == []
