"""What a run may use, at every seat, over the deaths of workers and over retries; and what the account says."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from app.domain.ids import RunId
from app.domain.status import CallStatus, RunStatus, TaskStatus
from app.storage import tables
from app.storage.database import Database
from app.storage.plans import list_plans, usage_by_generation
from app.storage.runs import lock_run
from app.storage.steering import request_cancel, request_pause, request_resume, retry_run
from app.storage.tasks import list_attempts
from tests.engine.conftest import Engine, Gates
from tests.scripted_model import DIAMOND, Answer, Plan, Reply, error, hang, script, tasks_of, text
from tests.stored import T, expire, key, make_run, row_of, rows_of, set_run, the_run

SEATS = ("planner", "executor", "recovery", "synthesizer")
CHAIN: Plan = {"a": [], "b": ["a"]}
PAIR: Plan = {"a": [], "b": []}
PRICES = {"scripted": {"input": "3", "output": "15"}}
MUCH = {"prompt_tokens": 1_000, "completion_tokens": 1_000, "total_tokens": 2_000}  # more than any call reserves
REWORDED = text('{"description": "Do b otherwise."}', usage=MUCH)
REPLANNED = text(json.dumps({"strategy": "replan", "tasks": tasks_of({"x": ["0.a"]})}))
UNITS = {"max_llm_calls": 1, "max_tokens": 1, "max_cost_usd": 1e-9}
EVERY_SEAT: Mapping[str | tuple[str, str], Answer] = {
    "planner": text(json.dumps({"tasks": tasks_of(CHAIN)}), usage=MUCH),
    ("executor", "a"): text("result of a", usage=MUCH),
    ("executor", "b"): [text("", usage=MUCH), text("result of b", usage=MUCH)],
    "recovery": REWORDED,
}


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """No worker yet; the model has a price."""
    engine.settings["llm_prices"] = PRICES
    return engine


@pytest.fixture
async def serving(engine: Engine) -> Engine:
    """A worker is at work."""
    engine.worker()
    return engine


async def told(database: Database, run_id: RunId, *kinds: str) -> list[Any]:
    """Limits that the run's budget events tell of, in order."""
    events = await rows_of(database, tables.events, run_id)
    return [(event["type"], event["data"]["limit"]) for event in events if event["type"] in kinds]


async def retried(database: Database, run_id: RunId, **budget: Any) -> None:
    async with database.write() as connection:
        run = await lock_run(connection, T, run_id)
        assert run is not None
        await retry_run(connection, run, options=run.options, budget=budget)


def need(limit: str, calls: Sequence[Mapping[str, Any]], seat: str) -> int:
    """What has to be left, in parts of the limit's unit, for the first call of a seat to be made."""
    number = next(call["number"] for call in calls if call["seat"] == seat)
    before, its = calls[: number - 1], calls[number - 1]
    match limit:
        case "max_llm_calls":
            return int(number)
        case "max_tokens":
            used = sum((call["input_tokens"] or 0) + (call["output_tokens"] or 0) for call in before)
            return used + int(its["reserved_input_tokens"]) + int(its["reserved_output_tokens"])
        case _:
            return sum(call["cost_nano_usd"] or 0 for call in before) + int(its["reserved_cost_nano_usd"])


def in_unit(limit: str, parts: int) -> float:
    return parts if limit != "max_cost_usd" else round(parts * UNITS[limit], 9)


# --- each limit at every seat


@pytest.mark.parametrize("seat", SEATS)
@pytest.mark.parametrize("limit", UNITS)
async def test_a_call_may_reach_a_limit_exactly_and_is_not_sent_where_it_could_pass_it(
    serving: Engine, database: Database, limit: str, seat: str
) -> None:
    well = script(EVERY_SEAT)
    start = partial(make_run, database, max_attempts=1, on_failure="retry")
    serving.model.begin(well)
    unlimited = await start()
    assert (await serving.ended(unlimited)).status == "succeeded"
    assert [c.seat for c in serving.model.calls] == [
        "planner",
        *["executor"] * 2,
        "recovery",
        "executor",
        "synthesizer",
    ]
    calls = await rows_of(database, tables.calls, unlimited)
    exact = need(limit, calls, seat)

    serving.model.begin(well)
    await serving.ended(await start(budget={limit: in_unit(limit, exact)}))
    assert seat in [call.seat for call in serving.model.calls]

    serving.model.begin(well)
    run_id = await start(budget={limit: in_unit(limit, exact - 1)})
    run = await serving.ended(run_id)
    assert run.error is not None
    assert (run.status, run.error["code"]) == ("failed", "budget_exceeded")
    earlier = [call["seat"] for call in calls[: [call["seat"] for call in calls].index(seat)]]
    assert [call.seat for call in serving.model.calls] == earlier
    assert await told(database, run_id, "budget.exceeded") == [("budget.exceeded", limit)]
    kept = {task["key"]: task["result"] for task in await rows_of(database, tables.tasks, run_id) if task["result"]}
    assert kept == dict(
        [("0.a", "result of a"), ("0.b", "result of b")][: {"recovery": 1, "synthesizer": 2}.get(seat, 0)]
    )


@pytest.mark.parametrize("seat", SEATS)
async def test_what_is_in_flight_when_the_seconds_are_used_up_is_cut(
    serving: Engine, database: Database, seat: str
) -> None:
    place = ("executor", "b") if seat == "executor" else seat
    serving.model.begin(script({**EVERY_SEAT, place: hang()}))
    run_id = await make_run(database, max_attempts=1, on_failure="retry", budget={"max_seconds": 0.5})
    run = await serving.ended(run_id)
    assert run.error is not None
    assert (run.status, run.error["code"]) == ("failed", "deadline_exceeded")
    cut = serving.model.calls[-1]
    await serving.model.until(lambda: cut.disconnected)
    assert cut.seat == seat
    last = (await rows_of(database, tables.calls, run_id))[-1]
    assert (last["status"], last["output_tokens"]) == (CallStatus.CANCELLED, last["reserved_output_tokens"])
    assert (await told(database, run_id, "budget.warning", "budget.exceeded"))[-1] == ("budget.exceeded", "max_seconds")


async def test_a_run_may_have_no_tool_calls_left(serving: Engine, database: Database) -> None:
    run = await serving.ended(await make_run(database, plan=PAIR, budget={"max_tool_calls": 0}))
    assert run.status == "succeeded"


# --- what is told


async def test_the_account_names_what_was_reached_and_what_was_not(serving: Engine, database: Database) -> None:
    run = await serving.ended(await make_run(database, plan=DIAMOND, max_parallel=1, budget={"max_llm_calls": 2}))
    assert run.error is not None
    message = run.error["message"]
    assert "max_llm_calls of 2" in message
    assert "2 of 4 tasks succeeded (0.a, 0.b)" in message
    assert "Not reached: 0.c, 0.d" in message


async def test_the_account_after_the_seconds_are_used_up_names_what_was_not_reached(
    serving: Engine, database: Database
) -> None:
    serving.model.begin(script({("executor", "b"): hang()}))
    run = await serving.ended(await make_run(database, plan=CHAIN, budget={"max_seconds": 0.5}))
    assert run.error is not None
    assert "1 of 2 tasks succeeded (0.a). Not reached: 0.b" in run.error["message"]


async def test_a_warning_is_given_once_for_each_limit_at_four_fifths_of_it(serving: Engine, database: Database) -> None:
    plan: Plan = {"a": [], "b": ["a"], "c": ["b"], "d": ["c"], "e": ["d"]}
    serving.model.begin(script({"executor": text("long", usage=MUCH)}))
    run_id = await make_run(database, plan=plan, budget={"max_llm_calls": 6, "max_tokens": 11_500})
    assert (await serving.ended(run_id)).status == "succeeded"
    events = await rows_of(database, tables.events, run_id)
    warnings = [event["data"] for event in events if event["type"] == "budget.warning"]
    assert warnings == [
        {"limit": "max_llm_calls", "used": 5, "of": 6},
        {"limit": "max_tokens", "used": 10_000, "of": 11_500},
    ]


async def test_a_warning_is_given_when_four_fifths_of_the_seconds_are_used(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": hang()}))
    run_id = await make_run(database, plan=CHAIN, budget={"max_seconds": 1_000}, announced=False)
    await set_run(database, run_id, active_ms=799_500)
    engine.worker()
    await engine.until(lambda run: run.budget_warned == ["max_seconds"], run_id)
    assert await told(database, run_id, "budget.warning") == [("budget.warning", "max_seconds")]
    async with database.write() as connection:
        await request_cancel(connection, T, run_id)
    assert (await engine.ended(run_id)).status == "cancelled"


async def test_a_warning_is_not_given_again_by_the_next_worker(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): [hang(), text("b")]}))
    first = engine.worker()
    run_id = await make_run(database, plan=CHAIN, synthesize=False, budget={"max_llm_calls": 3})
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    await engine.until(lambda run: len(run.budget_warned) == 0 and run.llm_calls == 2, run_id)
    await first.die()
    await expire(database, run_id)
    second = engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert await told(database, run_id, "budget.warning") == [("budget.warning", "max_llm_calls")]
    await second.drain()


# --- reservations


async def test_a_start_waits_while_calls_in_flight_may_leave_room_for_it(serving: Engine, database: Database) -> None:
    gates = Gates()
    serving.model.begin(script({"executor": gates}))
    run_id = await make_run(database, plan={task: [] for task in "abc"}, budget={"max_tokens": 2_000})
    for task in "abc":
        await serving.model.until(lambda task=task: bool(serving.model.calls_for(key(task))))  # type: ignore[misc]
        gates.open(task)
    assert (await serving.ended(run_id)).status == "succeeded"
    assert gates.most == 1


async def test_a_start_that_no_call_in_flight_left_room_for_ends_the_run(serving: Engine, database: Database) -> None:
    gates = Gates(lambda call: text("x", usage={"prompt_tokens": 900, "completion_tokens": 900, "total_tokens": 1_800}))
    serving.model.begin(script({"executor": gates}))
    run_id = await make_run(database, plan={task: [] for task in "abc"}, budget={"max_tokens": 2_000})
    gates.open("a", "b", "c")
    run = await serving.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], run.progress["succeeded"], run.llm_calls) == ("budget_exceeded", 1, 1)


async def test_what_is_in_flight_may_finish_when_a_budget_ends_the_run(serving: Engine, database: Database) -> None:
    gates = Gates()
    serving.model.begin(script({"executor": gates}))
    run_id = await make_run(database, plan={task: [] for task in "abc"}, budget={"max_llm_calls": 2})
    await serving.model.until(lambda: len(serving.model.calls) == 2)
    gates.open("a")
    await serving.until(lambda run: run.progress["succeeded"] == 1, run_id)
    assert (await the_run(database, run_id)).status == RunStatus.RUNNING
    gates.open("b")
    run = await serving.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], run.progress["succeeded"], run.progress["cancelled"]) == ("budget_exceeded", 2, 1)
    assert not any(call.disconnected for call in serving.model.calls)


# --- over deaths and retries


async def test_lost_calls_are_charged_what_they_had_reserved(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": hang()}))
    first = engine.worker()
    run_id = await make_run(database, plan=PAIR, budget={"max_tokens": 3_000})
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    await first.die()
    await expire(database, run_id)
    engine.worker()
    run = await engine.ended(run_id)
    assert run.error is not None
    calls = await rows_of(database, tables.calls, run_id)
    assert (run.error["code"], [call["status"] for call in calls]) == ("budget_exceeded", ["lost", "lost"])
    assert run.input_tokens + run.output_tokens == sum(
        call["reserved_input_tokens"] + call["reserved_output_tokens"] for call in calls
    )
    assert run.cost_nano_usd == sum(call["reserved_cost_nano_usd"] for call in calls)


async def test_calls_are_counted_across_workers(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "a"): [hang(), text("a")], ("executor", "b"): [hang(), text("b")]}))
    first = engine.worker()
    run_id = await make_run(database, plan=PAIR, budget={"max_llm_calls": 3})
    await engine.model.until(lambda: len(engine.model.calls) == 2)
    await first.die()
    await expire(database, run_id)
    engine.worker()
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], run.llm_calls, len(engine.model.calls)) == ("budget_exceeded", 3, 3)
    assert run.progress["succeeded"] == 1


@pytest.mark.parametrize("limit", ["max_llm_calls", "max_tokens", "max_cost_usd"])
async def test_a_larger_budget_goes_on_where_a_smaller_one_ended(
    serving: Engine, database: Database, limit: str
) -> None:
    serving.model.begin(script({"executor": text("done", usage=MUCH)}))
    small = {"max_llm_calls": 2, "max_tokens": 2_500, "max_cost_usd": 0.025}[limit]
    run_id = await make_run(database, plan={"a": [], "b": ["a"], "c": ["b"]}, budget={limit: small})
    before = await serving.ended(run_id)
    assert before.error is not None
    assert (before.error["code"], 0 < before.progress["succeeded"] < 3) == ("budget_exceeded", True)
    await retried(database, run_id, **{limit: 100_000})
    run = await serving.ended(run_id)
    assert (run.status, run.error, run.result) == ("succeeded", None, "the answer")
    assert serving.model.order() == ["0.a", "0.b", "0.c", "synthesizer"]
    assert run.llm_calls == 4


async def test_a_deadline_can_be_put_off_by_a_retry(serving: Engine, database: Database) -> None:
    serving.model.begin(script({("executor", "b"): [hang(), text("b")]}))
    run_id = await make_run(database, plan=CHAIN, budget={"max_seconds": 0.5})
    before = await serving.ended(run_id)
    assert before.error is not None
    assert (before.error["code"], before.active_ms >= 400) == ("deadline_exceeded", True)
    await retried(database, run_id, max_seconds=1_000)
    run = await serving.ended(run_id)
    assert (run.status, serving.model.order()) == ("succeeded", ["0.a", "0.b", "0.b", "synthesizer"])
    assert run.active_ms > before.active_ms


# --- time


async def test_time_in_the_queue_does_not_count(engine: Engine, database: Database) -> None:
    run_id = await make_run(database, plan=PAIR, budget={"max_seconds": 30})
    await set_run(database, run_id, created_at=0, ready_at=0)
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_time_in_a_pause_does_not_count(serving: Engine, database: Database) -> None:
    gates = Gates()
    serving.model.begin(script({"executor": gates}))
    run_id = await make_run(database, plan=CHAIN, budget={"max_seconds": 60})
    await serving.model.until(lambda: len(serving.model.calls) == 1)
    async with database.write() as connection:
        await request_pause(connection, T, run_id)
    (worker,) = serving.workers
    await serving.until_true(lambda: worker.worker._drivers[run_id].is_stopping)
    gates.open("a")
    paused = await serving.until(lambda run: run.status is RunStatus.PAUSED, run_id)
    assert (paused.active_since, 0 <= paused.active_ms < 60_000) == (None, True)
    await set_run(database, run_id, active_ms=59_000)  # nearly all of it was used; an hour's pause adds nothing
    async with database.write() as connection:
        await request_resume(connection, T, run_id)
    gates.open("b")
    run = await serving.ended(run_id)
    assert (run.status, run.active_ms >= 59_000) == ("succeeded", True)


async def test_time_that_a_dead_worker_left_counts(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": [hang(), text("a")]}))
    first = engine.worker()
    run_id = await make_run(database, plan={"a": []}, budget={"max_seconds": 3_000})
    await engine.model.until(lambda: len(engine.model.calls) == 1)
    await first.die()
    row = await row_of(database, run_id)
    await set_run(database, run_id, active_since=row["active_since"] - 3_000_000, ready_at=0)
    engine.worker()
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], len(engine.model.calls)) == ("deadline_exceeded", 1)


async def test_a_deadline_ends_a_run_that_was_released_to_wait(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"executor": error(503, headers={"Retry-After": "3600"})}))
    engine.worker(lease_seconds=0.3)
    run_id = await make_run(database, plan={"a": []}, budget={"max_seconds": 2})
    await engine.until(lambda run: run.progress["retrying"] == 1 and not run.held, run_id)
    assert (await row_of(database, run_id))["lease_token"] is None
    run = await engine.ended(run_id)
    assert run.error is not None
    assert (run.error["code"], len(engine.model.calls)) == ("deadline_exceeded", 1)


# --- the sums


async def test_usage_adds_up_over_calls_attempts_and_generations(serving: Engine, database: Database) -> None:
    spent = iter(range(1, 100))

    def odd(content: str) -> Reply:
        tokens = next(spent)
        return text(content, usage={"prompt_tokens": tokens, "completion_tokens": 3, "total_tokens": tokens + 3})

    serving.model.begin(
        script(
            {
                "executor": lambda call: odd("" if call.task_key == "0.b" else "fine"),
                ("executor", "c"): [error(503), text("c")],
                "recovery": REPLANNED,
            }
        )
    )
    run_id = await make_run(database, plan=DIAMOND, max_attempts=2, on_failure="auto")
    run = await serving.ended(run_id)
    assert (run.status, run.generation) == ("succeeded", 1)
    calls = await rows_of(database, tables.calls, run_id)
    async with database.read() as connection:
        plans = await list_plans(connection, T, run_id, limit=10)
        by_generation = await usage_by_generation(connection, T, run_id, [plan.generation for plan in plans])
        keys = [task["key"] for task in await rows_of(database, tables.tasks, run_id)]
        attempts = [attempt for own in (await list_attempts(connection, T, run_id, keys)).values() for attempt in own]
    for name in ("llm_calls", "input_tokens", "output_tokens"):
        assert sum(getattr(usage, name) for usage in by_generation.values()) == getattr(run, name), name
    executed = [call for call in calls if call["seat"] == "executor"]
    assert sum(attempt.llm_calls for attempt in attempts) == len(executed)
    assert sum(a.input_tokens for a in attempts) == sum(call["input_tokens"] or 0 for call in executed)
    assert run.cost_nano_usd == sum(call["cost_nano_usd"] or 0 for call in calls)
    assert sum(usage.cost_nano_usd or 0 for usage in by_generation.values()) == run.cost_nano_usd
    assert Counter(call["seat"] for call in calls) == {"executor": 6, "recovery": 1, "synthesizer": 1}
    assert all(call["generation"] == int(call["task_key"][0]) for call in executed)
    assert {task["status"] for task in await rows_of(database, tables.tasks, run_id)} == {
        TaskStatus.SUCCEEDED,
        TaskStatus.FAILED,
        TaskStatus.SUPERSEDED,
    }
