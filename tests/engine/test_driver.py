"""One run driven to its end by a real worker: what is asked in which order, and what becomes of faults."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from app.domain.status import Mode
from app.storage import tables
from app.storage.database import Database
from tests.engine.conftest import Engine, Gates
from tests.scripted_model import (
    DIAMOND,
    Call,
    Plan,
    Reply,
    ScriptedModel,
    error,
    hang,
    plan_reply,
    script,
    tasks_of,
    text,
)
from tests.stored import key, make_run, rows_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEATS = ("planner", "executor", "synthesizer")
PAIR: Plan = {"a": [], "b": []}
NO_PLAN = text("I would rather not say.")
CYCLE = plan_reply({"a": ["b"], "b": ["a"]})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(database_url: str) -> AsyncIterator[Engine]:
    """One worker for all tests of this file: each asks for runs of its own."""
    async with ScriptedModel(script()) as model:
        engine = Engine(Database(database_url), database_url, model)
        engine.worker()
        yield engine
        await engine.end()
        await engine.database.close()


@pytest.fixture
def engine(serving: Engine) -> Iterator[Engine]:
    """At work, and answered well until the test says otherwise."""
    serving.model.begin(script())
    yield serving
    serving.model.check()


@pytest.fixture
def database(serving: Engine) -> Database:
    """The client's."""
    return serving.database


async def event_types(database: Database, run_id: Any) -> list[str]:
    return [event["type"] for event in await rows_of(database, tables.events, run_id)]


# --- the walk


async def test_a_goal_is_planned_walked_and_synthesized(engine: Engine, database: Database) -> None:
    run = await engine.ended(await make_run(database))
    assert (run.status, run.result, run.error) == ("succeeded", "the answer", None)
    order = engine.model.order()
    assert order[:2] == ["planner", "0.a"]
    assert sorted(order[2:4]) == ["0.b", "0.c"]
    assert order[4:] == ["0.d", "synthesizer"]
    assert (run.llm_calls, run.input_tokens, run.output_tokens) == (6, 60, 30)


async def test_a_task_is_shown_the_results_it_depends_on_and_no_others(engine: Engine, database: Database) -> None:
    await engine.ended(await make_run(database, plan=DIAMOND))
    (call,) = engine.model.calls_for("0.d")
    shown = {task_id: f"result of 0.{task_id}" in call.text for task_id in "abcd"}
    assert shown == {"a": False, "b": True, "c": True, "d": False}
    assert call.text.endswith("Do d.")


async def test_a_task_waits_for_its_own_dependencies_only(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    run_id = await make_run(database, plan={"slow": [], "quick": [], "next": ["quick"]})
    gates.open("quick", "next")
    await engine.model.until(lambda: any(call.answered_at for call in engine.model.calls_for("0.next")))
    assert [call.answered_at for call in engine.model.calls_for("0.slow")] == [None]
    gates.open("slow")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_ready_tasks_start_in_plan_order_and_no_more_at_once_than_the_run_allows(
    engine: Engine, database: Database
) -> None:
    tasks = ["z", "y", "x", "w"]
    await engine.ended(await make_run(database, plan={task: [] for task in tasks}, max_parallel=1, synthesize=False))
    assert engine.model.order() == [key(task) for task in tasks]


async def test_a_run_has_no_more_calls_in_flight_than_it_allows(engine: Engine, database: Database) -> None:
    gates = Gates()
    engine.model.begin(script({"executor": gates}))
    run_id = await make_run(database, plan={task: [] for task in "abcde"}, max_parallel=2)
    await engine.model.until(lambda: engine.model.order() == ["0.a", "0.b"])
    gates.open("b")
    await engine.model.until(lambda: engine.model.order() == ["0.a", "0.b", "0.c"])
    gates.open("a", "c", "d", "e")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_without_synthesis_the_result_is_that_of_the_last_tasks(engine: Engine, database: Database) -> None:
    run = await engine.ended(await make_run(database, plan={"a": [], "b": ["a"], "c": ["a"]}, synthesize=False))
    assert run.result == {"0.b": "result of 0.b", "0.c": "result of 0.c"}


async def test_the_result_of_a_single_task_is_the_runs(engine: Engine, database: Database) -> None:
    run = await engine.ended(await make_run(database, plan={"a": []}))
    assert (run.result, engine.model.order()) == ("result of 0.a", ["0.a"])


async def test_a_run_for_a_plan_only_runs_no_task(engine: Engine, database: Database) -> None:
    run = await engine.ended(await make_run(database, mode=Mode.PLAN_ONLY))
    assert (run.status, run.progress["pending"], engine.model.order()) == ("succeeded", 4, ["planner"])


# --- transport faults


async def test_a_transport_fault_is_tried_again_on_the_same_attempt(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): [*[error(503)] * 7, text("at last")]}))
    run_id = await make_run(database, plan={"a": []})
    run = await engine.ended(run_id)
    assert (run.status, run.result, run.llm_calls) == ("succeeded", "at last", 8)
    calls = await rows_of(database, tables.calls, run_id)
    assert [(call["attempt"], call["try_number"]) for call in calls] == [(1, number) for number in range(1, 9)]
    assert len(await rows_of(database, tables.attempts, run_id)) == 1
    assert (await event_types(database, run_id)).count("task.retry_scheduled") == 7


@pytest.mark.parametrize("seat", SEATS)
async def test_an_endpoint_that_stays_away_fails_the_run_after_eight_tries(
    engine: Engine, database: Database, seat: str
) -> None:
    engine.model.begin(script({seat: error(503)}))
    run = await engine.ended(await make_run(database, max_parallel=1))
    assert run.error is not None
    assert (run.status, run.error["code"]) == ("failed", "llm_unavailable")
    assert len(engine.model.by_seat(seat)) == 8


@pytest.mark.parametrize("seat", SEATS)
async def test_faults_at_every_seat_are_got_over(engine: Engine, database: Database, seat: str) -> None:
    good = {"planner": plan_reply(PAIR), "executor": text("done"), "synthesizer": text("the answer")}[seat]
    engine.model.begin(script({seat: [error(500), error(429), good]}))
    assert (await engine.ended(await make_run(database))).status == "succeeded"


async def test_the_time_of_the_next_try_is_stored_while_it_is_awaited(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): error(429, headers={"Retry-After": "30"})}))
    run_id = await make_run(database, plan=PAIR)
    run = await engine.until(lambda run: run.progress["retrying"] == 1 and run.progress["succeeded"] == 1, run_id)
    (task, _), (call, _) = [await rows_of(database, table, run_id) for table in (tables.tasks, tables.calls)]
    assert task["next_attempt_at"] == call["retry_at"]
    assert call["finished_at"] + 30_000 <= task["next_attempt_at"] <= call["finished_at"] + 31_000
    assert run.held


@pytest.mark.parametrize("seat", SEATS)
@pytest.mark.parametrize("status", [401, 403])
async def test_credentials_that_are_refused_fail_the_run_at_once(
    engine: Engine, database: Database, seat: str, status: int
) -> None:
    engine.model.begin(script({seat: error(status)}, plan={"a": [], "b": ["a"]}))
    run = await engine.ended(await make_run(database))
    assert run.error is not None
    assert (run.status, run.error["code"]) == ("failed", "llm_auth_failed")
    assert len(engine.model.by_seat(seat)) == 1


# --- answers that cannot be used


async def test_a_spoiled_answer_uses_an_attempt(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): [text(""), text(""), text("good")]}))
    run_id = await make_run(database, plan={"a": []})
    assert (await engine.ended(run_id)).result == "good"
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [attempt["status"] for attempt in attempts] == ["failed", "failed", "succeeded"]


async def test_an_answer_that_was_cut_off_is_gone_on_with_once(engine: Engine, database: Database) -> None:
    cut = text("the start, ", finish_reason="length")
    engine.model.begin(script({("executor", "a"): [cut, text("the end")]}))
    run_id = await make_run(database, plan={"a": []})
    assert (await engine.ended(run_id)).result == "the start, the end"
    (attempt,) = await rows_of(database, tables.attempts, run_id)
    assert attempt["status"] == "succeeded"
    asked = engine.model.calls_for("0.a")[1].messages
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "user"]
    assert asked[2]["content"] == "the start, "


async def test_an_answer_that_is_cut_off_twice_uses_an_attempt(engine: Engine, database: Database) -> None:
    cut = text("on and on", finish_reason="length")
    engine.model.begin(script({("executor", "a"): [cut, cut, text("short")]}))
    run_id = await make_run(database, plan={"a": []})
    assert (await engine.ended(run_id)).result == "short"
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [attempt["status"] for attempt in attempts] == ["failed", "succeeded"]


async def test_a_task_whose_attempts_are_used_up_fails_the_run(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): text("")}))
    run_id = await make_run(database, plan={"a": [], "b": ["a"]}, max_attempts=2)
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.status, run.error["code"], run.error["task_key"]) == ("failed", "task_failed", "0.a")
    assert engine.model.order() == ["0.a", "0.a"]
    assert (await event_types(database, run_id))[-3:] == ["task.failed", "task.cancelled", "run.failed"]


async def test_transport_faults_and_spoiled_answers_are_counted_apart(engine: Engine, database: Database) -> None:
    answers = [error(503), text(""), *[error(503)] * 7, text("good")]
    engine.model.begin(script({("executor", "a"): answers}))
    run_id = await make_run(database, plan={"a": []}, max_attempts=2)
    assert (await engine.ended(run_id)).result == "good"
    calls = [(call["attempt"], call["try_number"]) for call in await rows_of(database, tables.calls, run_id)]
    assert calls == [(1, 1), (1, 2), *[(2, number) for number in range(1, 9)]]


REFUSED = [text("No.", finish_reason="content_filter"), error(400), error(404)]


@pytest.mark.parametrize("refusal", REFUSED, ids=["content filter", "400", "404"])
async def test_what_is_refused_for_good_is_not_asked_again(engine: Engine, database: Database, refusal: Reply) -> None:
    engine.model.begin(script({("executor", "a"): refusal}))
    run = await engine.ended(await make_run(database, plan={"a": []}))
    assert run.error is not None
    assert (run.error["code"], engine.model.order()) == ("task_failed", ["0.a"])


CODES = [("planner", "plan_refused"), ("executor", "task_failed"), ("synthesizer", "synthesis_failed")]


@pytest.mark.parametrize(("seat", "code"), CODES)
async def test_a_refusal_is_named_by_its_seat(engine: Engine, database: Database, seat: str, code: str) -> None:
    engine.model.begin(script({seat: text("No.", finish_reason="content_filter")}, plan={"a": [], "b": ["a"]}))
    run = await engine.ended(await make_run(database))
    assert run.error is not None
    assert (run.error["code"], len(engine.model.by_seat(seat))) == (code, 1)


async def test_a_task_that_takes_too_long_is_cut_and_uses_an_attempt(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): [hang(), text("in time")]}))
    run_id = await make_run(database, plan={"a": []}, task_timeout_seconds=0.5)
    assert (await engine.ended(run_id)).result == "in time"
    assert [call.disconnected for call in engine.model.calls] == [True, False]
    attempts = await rows_of(database, tables.attempts, run_id)
    assert [attempt["status"] for attempt in attempts] == ["failed", "succeeded"]


# --- planning and synthesis


async def test_a_plan_that_is_none_is_asked_for_again_with_its_problems(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"planner": [NO_PLAN, CYCLE, plan_reply(PAIR)]}))
    run_id = await make_run(database)
    assert (await engine.ended(run_id)).status == "succeeded"
    first, second, third = engine.model.by_seat("planner")
    rejected = [e["data"] for e in await rows_of(database, tables.events, run_id) if e["type"] == "plan.rejected"]
    assert [data["attempt"] for data in rejected] == [1, 2]
    assert [[problem["code"] for problem in data["errors"]] for data in rejected] == [["not_json"], ["cycle"]]
    for call, data in zip((second, third), rejected, strict=True):
        assert all(problem["message"] in call.text for problem in data["errors"])
        assert len(call.messages) > len(first.messages)


async def test_after_two_re_asks_the_plan_is_invalid_and_no_task_runs(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"planner": CYCLE}))
    run = await engine.ended(await make_run(database))
    assert run.error is not None
    assert (run.error["code"], run.generation) == ("plan_invalid", None)
    assert engine.model.order() == ["planner"] * 3


async def test_a_response_format_that_is_refused_gives_way_to_a_simpler_one_and_costs_no_re_ask(
    engine: Engine, database: Database
) -> None:
    def plain_only(call: Call) -> Reply:
        asked = call.response_format
        return plan_reply(PAIR) if asked is None else error(400, message=f"response_format {asked['type']} unknown")

    engine.model.begin(script({"planner": plain_only}))
    first = await make_run(database, planner_model="plain")
    assert (await engine.ended(first)).status == "succeeded"
    assert "plan.rejected" not in await event_types(database, first)
    asked = [call.response_format and call.response_format["type"] for call in engine.model.by_seat("planner")]
    assert asked == ["json_schema", "json_object", None]
    second = await engine.ended(await make_run(database, planner_model="plain"))
    assert (second.status, len(engine.model.by_seat("planner", run_id=str(second.id)))) == ("succeeded", 1)


async def test_a_synthesis_that_cannot_be_used_is_asked_for_twice_more(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"synthesizer": [text(""), text(""), text("the answer")]}))
    assert (await engine.ended(await make_run(database, plan=PAIR))).result == "the answer"
    engine.model.begin(script({"synthesizer": text("")}))
    run = await engine.ended(await make_run(database, plan=PAIR))
    assert run.error is not None
    assert (run.error["code"], run.progress["succeeded"]) == ("synthesis_failed", 2)
    assert len(engine.model.by_seat("synthesizer")) == 3


# --- failing


async def test_when_a_task_fails_what_is_in_flight_is_recorded_and_nothing_else_starts(
    engine: Engine, database: Database
) -> None:
    gates = Gates(lambda call: error(400) if call.task_id == "a" else text("late, and kept"))
    engine.model.begin(script({"executor": gates}))
    run_id = await make_run(database, plan={"a": [], "b": [], "c": ["b"], "d": ["a"]})
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    gates.open("a")
    run = await engine.until(lambda run: run.progress["failed"] == 1, run_id)
    assert run.status == "running"
    gates.open("b")
    run = await engine.ended(run_id)
    tasks = {task["key"]: (task["status"], task["result"]) for task in await rows_of(database, tables.tasks, run_id)}
    assert tasks == {
        "0.a": ("failed", None),
        "0.b": ("succeeded", "late, and kept"),
        "0.c": ("cancelled", None),
        "0.d": ("cancelled", None),
    }
    assert run.error is not None
    assert (run.error["code"], run.error["task_key"], len(engine.model.calls)) == ("task_failed", "0.a", 2)


async def test_of_two_failures_the_first_in_time_is_the_runs(engine: Engine, database: Database) -> None:
    gates = Gates(lambda call: error(400))
    engine.model.begin(script({"executor": gates}))
    run_id = await make_run(database, plan=PAIR)
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    gates.open("b")
    await engine.until(lambda run: run.progress["failed"] == 1, run_id)
    gates.open("a")
    run = await engine.ended(run_id)
    assert run.error is not None
    assert run.error["task_key"] == "0.b"


async def test_a_plan_of_the_planner_has_its_descriptions_asked_verbatim(engine: Engine, database: Database) -> None:
    odd = 'Say {this} and <that>\n\twith "quotes" & 🐍'
    engine.model.begin(script({"planner": plan_reply([{**tasks_of({"ä b": []})[0], "description": odd}])}))
    run = await engine.ended(await make_run(database))
    (call,) = engine.model.by_seat("executor")
    assert (run.status, call.task_key, call.text.endswith(odd)) == ("succeeded", "0.ä b", True)
