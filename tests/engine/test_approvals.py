"""Plans that people approve, draw themselves, turn down or ask for, and answers that outlive workers."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from app.domain.ids import RunId
from app.domain.status import RunStatus
from app.engine import worker
from app.storage import tables
from app.storage.database import Database
from tests.engine.conftest import Engine, Gates
from tests.engine.troubled import (
    CHAIN,
    NO_ANSWER,
    ONE,
    PAIR,
    REFUSED,
    SPOILED,
    Answers,
    anew,
    answer,
    asked,
    calls_of,
    code_of,
    dies,
    executed,
    fragile,
    is_asked,
    seats,
    statuses,
    the_plan,
)
from tests.invariants import check
from tests.scripted_model import Reply, error, hang, plan_reply, script
from tests.stored import expire, make_run, rows_of, the_run

# --- approval of plans


async def test_a_plan_is_held_until_it_is_approved(engine: Engine, database: Database) -> None:
    engine.model.begin(script())
    engine.worker()
    run_id = await make_run(database, approval="plan")
    run = await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert (run.open_reviews, seats(engine)) == (1, ["planner"])
    (review,) = await rows_of(database, tables.reviews, run_id)
    assert (review["kind"], review["generation"]) == ("plan", 0)
    assert [task["key"] for task in review["question"]["plan"]["tasks"]] == ["0.a", "0.b", "0.c", "0.d"]
    await answer(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert len(asked(engine, "planner")) == 1


async def test_a_clients_plan_is_held_too(engine: Engine, database: Database) -> None:
    engine.worker()
    run_id = await make_run(database, plan=PAIR, approval="plan")
    await engine.until(is_asked, run_id)
    assert engine.model.calls == []
    await answer(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"


EDITED = {
    "tasks": [
        {"id": "x", "description": "Do x.", "depends_on": []},
        {"id": "y", "description": "Do y.", "depends_on": ["x"]},
    ]
}


async def test_a_persons_own_plan_stands_in_for_the_one_that_was_held(engine: Engine, database: Database) -> None:
    engine.worker()
    run_id = await make_run(database, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "edit", plan=EDITED)
    assert (await engine.ended(run_id)).status == "succeeded"
    row = await the_plan(database, run_id, 1)
    assert (row["reason"], row["added"], row["carried"]) == ("client", ["1.x", "1.y"], [])
    assert row["superseded"] == ["0.a", "0.b", "0.c", "0.d"]
    assert (seats(engine).count("planner"), executed(engine)) == (1, ["1.x", "1.y"])


async def test_a_plan_that_is_rejected_with_words_is_drawn_again(engine: Engine, database: Database) -> None:
    engine.model.begin(script({"planner": [plan_reply(PAIR), plan_reply({"c": []})]}))
    engine.worker()
    run_id = await make_run(database, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "reject", instructions="One task is enough, I say.")
    await engine.until(lambda run: is_asked(run) and run.generation == 1, run_id)
    await check(database, run_id)
    _, again = asked(engine, "planner")
    assert "One task is enough, I say." in again.text
    assert "Do a." in again.text
    row = await the_plan(database, run_id, 1)
    assert (row["reason"], row["superseded"], row["failed_task_keys"]) == ("requested", ["0.a", "0.b"], [])
    await answer(database, run_id, "approve")
    run = await engine.ended(run_id)
    assert (run.status, executed(engine), run.replans) == ("succeeded", ["1.c"], 0)


async def test_a_planner_is_told_of_everything_that_was_turned_down(engine: Engine, database: Database) -> None:
    plans = [plan_reply(PAIR), plan_reply({"c": []}), plan_reply({"d": []})]
    engine.model.begin(script({"planner": plans}))
    engine.worker()
    run_id = await make_run(database, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "reject", instructions="Not a pair.")
    await engine.until(lambda run: is_asked(run) and run.generation == 1, run_id)
    await answer(database, run_id, "reject", instructions="Not c.")
    await engine.until(lambda run: is_asked(run) and run.generation == 2, run_id)
    last = asked(engine, "planner")[-1].text
    assert ("Not a pair." in last, "Not c." in last) == (True, True)


async def test_a_plan_that_is_rejected_without_words_fails_the_run(engine: Engine, database: Database) -> None:
    engine.worker()
    run_id = await make_run(database, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "reject")
    run = await engine.ended(run_id)
    assert (code_of(run), seats(engine)) == ("review_rejected", ["planner"])
    assert set((await statuses(database, run_id)).values()) == {"cancelled"}


async def test_of_a_replan_only_the_new_tasks_are_held(engine: Engine, database: Database) -> None:
    gates = Gates()
    answers: Answers = {("executor", "a"): SPOILED, ("executor", "b"): gates, "recovery": anew({"x": ["0.b"], "y": []})}
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await fragile(database, {"a": [], "b": [], "c": ["b"]}, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "approve")
    run = await engine.until(lambda run: run.generation == 1, run_id)
    assert (run.status, run.open_reviews) == ("running", 1)
    gates.open("b")
    await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert executed(engine) == ["0.a", "0.b", "0.c"]
    await answer(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert sorted(map(str, executed(engine)[3:])) == ["1.x", "1.y"]


async def held_replan(engine: Engine, database: Database, recovery_says: Sequence[Reply], **options: Any) -> RunId:
    """A run that asks whether its replan may be carried out."""
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": recovery_says}))
    engine.worker()
    run_id = await fragile(database, CHAIN, approval="plan", **options)
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "approve")
    await engine.until(lambda run: is_asked(run) and run.generation == 1, run_id)
    return run_id


async def test_a_replan_that_is_rejected_with_words_is_asked_of_recovery_again(
    engine: Engine, database: Database
) -> None:
    run_id = await held_replan(engine, database, [anew({"x": []}), anew({"y": ["0.a"]})], max_replans=1)
    await answer(database, run_id, "reject", instructions="Build on what there is.")
    run = await engine.until(lambda run: is_asked(run) and run.generation == 2, run_id)
    await check(database, run_id)
    assert run.replans == 1
    assert "Build on what there is." in asked(engine)[1].text
    row = await the_plan(database, run_id, 2)
    assert (row["reason"], row["superseded"], row["carried"]) == ("requested", ["1.x"], ["0.a"])
    assert row["failed_task_keys"] == ["0.b"]
    await answer(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert executed(engine) == ["0.a", "0.b", "2.y"]


async def test_a_replan_that_is_rejected_without_words_fails_the_run(engine: Engine, database: Database) -> None:
    run_id = await held_replan(engine, database, [anew({"x": []})])
    await answer(database, run_id, "reject")
    assert code_of(await engine.ended(run_id)) == "review_rejected"


async def test_a_replan_may_be_edited(engine: Engine, database: Database) -> None:
    run_id = await held_replan(engine, database, [anew({"x": []})])
    mine = {"tasks": [{"id": "x", "description": "Do x my way.", "depends_on": ["0.a"]}]}
    await answer(database, run_id, "edit", plan=mine)
    assert (await engine.ended(run_id)).status == "succeeded"
    row = await the_plan(database, run_id, 2)
    assert (row["reason"], row["superseded"], row["carried"]) == ("client", ["1.x"], ["0.a"])
    assert executed(engine) == ["0.a", "0.b", "2.x"]


async def test_when_no_other_plan_comes_of_a_rejection_the_first_is_asked_about_again(
    engine: Engine, database: Database
) -> None:
    run_id = await held_replan(engine, database, [anew({"x": []}), NO_ANSWER])
    await answer(database, run_id, "reject", instructions="Otherwise.")
    await engine.model.until(lambda: len(asked(engine)) == 4)
    await engine.until(is_asked, run_id)
    await check(database, run_id)
    await answer(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert executed(engine) == ["0.a", "0.b", "1.x"]


# --- answers that outlive workers


@pytest.mark.parametrize("decision", ["approve", "edit", "reject", "reject with words"])
@pytest.mark.parametrize("about", ["plan", "replan"])
async def test_an_answer_about_a_plan_outlives_the_worker_that_was_to_carry_it_out(
    engine: Engine, database: Database, about: str, decision: str
) -> None:
    with_it: dict[str, dict[str, Any]] = {"edit": {"plan": EDITED}, "reject with words": {"instructions": "So."}}
    given = with_it.get(decision, {})
    if about == "replan":
        run_id = await held_replan(engine, database, [anew({"x": []}), anew({"y": []})])
    else:
        engine.model.begin(script({"planner": [plan_reply(PAIR), plan_reply({"c": []})]}))
        engine.worker()
        run_id = await make_run(database, approval="plan")
        await engine.until(is_asked, run_id)
    generation = 1 if about == "replan" else 0
    await engine.workers[0].drain()
    await answer(database, run_id, decision.split(maxsplit=1)[0], **given)
    await check(database, run_id)
    dying = engine.worker(worker_max_runs=1)
    await engine.until(lambda run: run.status is not RunStatus.QUEUED, run_id)
    await dying.die()
    await expire(database, run_id)
    engine.worker()
    if decision == "reject with words":
        await engine.until(lambda run: is_asked(run) and run.generation == generation + 1, run_id)
        await answer(database, run_id, "approve")
    run = await engine.ended(run_id)
    assert code_of(run) == ("review_rejected" if decision == "reject" else None)
    assert run.generation == generation + (decision in ("edit", "reject with words"))


async def test_a_rejection_is_not_forgotten_while_calls_are_in_flight(engine: Engine, database: Database) -> None:
    gates = Gates()
    answers: Answers = {
        ("executor", "a"): SPOILED,
        ("executor", "b"): hang(),
        "executor": gates,
        "recovery": anew({"x": []}),
    }
    engine.model.begin(script(answers))
    first = engine.worker()
    run_id = await fragile(database, {**PAIR, "c": [], "d": []}, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "approve")
    await engine.until(lambda run: run.generation == 1, run_id)
    await answer(database, run_id, "reject")
    gates.open("c")
    await engine.until(lambda run: run.progress["succeeded"] == 1, run_id)
    gates.open("d")  # what was written with the end of c has been read before the end of this one is written
    await engine.until(lambda run: run.progress["succeeded"] == 2, run_id)
    await dies(first, database, run_id)
    engine.worker()
    run = await engine.until(lambda run: run.finished_at is not None or run.open_reviews == 1, run_id)
    assert code_of(run) == "review_rejected"


async def test_a_redrawn_plan_waits_as_the_endpoint_asked_after_a_takeover(engine: Engine, database: Database) -> None:
    wait = error(503, headers={"Retry-After": "30"})
    engine.model.begin(script({"planner": [plan_reply(PAIR), wait]}))
    first = engine.worker()
    run_id = await make_run(database, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "reject", instructions="Otherwise.")
    await engine.until(lambda run: run.llm_calls == 2, run_id)
    await no_call_is_open(database, run_id)
    await dies(first, database, run_id)
    before = await the_run(database, run_id)
    engine.worker()
    await engine.until(lambda run: run.version > before.version, run_id)
    assert (await the_run(database, run_id)).llm_calls == 2


async def test_a_replan_that_a_person_asked_for_waits_as_the_endpoint_asked_after_a_takeover(
    engine: Engine, database: Database
) -> None:
    wait = error(503, headers={"Retry-After": "30"})
    engine.model.begin(script({"executor": SPOILED, "recovery": wait}))
    first = engine.worker()
    run_id = await fragile(database, ONE, on_failure="review")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "replan", instructions="Otherwise.")
    await engine.until(lambda run: run.llm_calls == 2, run_id)
    await no_call_is_open(database, run_id)
    await dies(first, database, run_id)
    before = await the_run(database, run_id)
    engine.worker()
    await engine.until(lambda run: run.version > before.version, run_id)
    assert (await the_run(database, run_id)).llm_calls == 2


async def no_call_is_open(database: Database, run_id: RunId) -> None:
    async with asyncio.timeout(20):
        while any(call["status"] == "open" for call in await calls_of(database, run_id)):
            await database.ping()


# --- a person's replan


async def test_a_replan_that_a_person_asks_for_does_not_count(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": anew({"x": ["0.a"]})}))
    engine.worker()
    run_id = await fragile(database, max_replans=0, on_exhausted="review")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "replan", instructions="Go another way, I say.")
    run = await engine.ended(run_id)
    assert (run.status, run.replans, len(asked(engine))) == ("succeeded", 0, 1)
    assert "Go another way, I say." in asked(engine)[0].text
    row = await the_plan(database, run_id, 1)
    assert (row["reason"], row["failed_task_keys"], row["superseded"]) == ("requested", ["0.b"], ["0.c"])


@pytest.mark.parametrize("spoils", [NO_ANSWER, REFUSED], ids=["no answer", "refusal"])
async def test_when_no_plan_comes_of_a_persons_replan_they_are_asked_again(
    engine: Engine, database: Database, spoils: Reply
) -> None:
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": spoils}))
    engine.worker()
    run_id = await fragile(database, on_failure="review")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "replan")
    await engine.model.until(lambda: len(asked(engine)) == (3 if spoils is NO_ANSWER else 1))
    run = await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert (run.open_reviews, run.replans) == (1, 0)
    assert await statuses(database, run_id) == {"0.a": "succeeded", "0.b": "awaiting_review", "0.c": "pending"}
    await answer(database, run_id, "skip")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_a_persons_replan_outlives_the_worker_that_asked_for_it(engine: Engine, database: Database) -> None:
    engine.model.begin(script({("executor", "b"): SPOILED, "recovery": [hang(), anew({"x": ["0.a"]})]}))
    first = engine.worker()
    run_id = await fragile(database, on_failure="review", max_replans=0)
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "replan", instructions="Go another way, I say.")
    await engine.model.until(lambda: len(asked(engine)) == 1)
    await dies(first, database, run_id)
    engine.worker()
    assert (await engine.ended(run_id)).status == "succeeded"
    lost, again = asked(engine)
    assert lost.messages == again.messages
    assert executed(engine) == ["0.a", "0.b", "1.x"]


async def two_held_plans(engine: Engine, database: Database, third: Reply) -> RunId:
    """A run that asks about two replans; the third answer of recovery about task 0.a and after is this one."""
    drawn = Gates(lambda call: third if call.turn else anew({"x" if call.task_id == "a" else "y": []}))
    spoiled = Gates(lambda call: SPOILED)
    drawn.open("a", "b")
    engine.model.begin(script({("executor", "a"): SPOILED, ("executor", "b"): spoiled, "recovery": drawn}))
    engine.worker()
    run_id = await fragile(database, {"a": [], "b": [], "c": ["b"]}, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "approve")
    await engine.until(lambda run: run.generation == 1, run_id)
    spoiled.open("b")
    await engine.until(lambda run: is_asked(run) and run.open_reviews == 2, run_id)
    return run_id


async def test_an_earlier_replan_may_be_rejected_with_words_too(engine: Engine, database: Database) -> None:
    run_id = await two_held_plans(engine, database, anew({"z": []}))
    await answer(database, run_id, "reject", about=1, instructions="Otherwise.")
    await engine.until(lambda run: is_asked(run) and run.generation == 3, run_id)
    await check(database, run_id)
    row = await the_plan(database, run_id, 3)
    assert (row["failed_task_keys"], row["superseded"], row["carried"]) == (["0.a"], ["1.x"], ["2.y"])
    for generation in (2, 3):
        await answer(database, run_id, "approve", about=generation)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert sorted(map(str, executed(engine)[2:])) == ["2.y", "3.z"]


async def test_when_no_other_plan_comes_of_an_earlier_rejection_that_plan_is_asked_about_again(
    engine: Engine, database: Database
) -> None:
    run_id = await two_held_plans(engine, database, NO_ANSWER)
    await answer(database, run_id, "reject", about=1, instructions="Otherwise.")
    await engine.model.until(lambda: len(asked(engine)) == 5)
    run = await engine.until(is_asked, run_id)
    assert run.open_reviews == 2


async def test_an_answer_about_one_plan_is_not_closed_by_another_that_comes_first(
    engine: Engine, database: Database
) -> None:
    """Generation 2 is stored after generation 1 was rejected, and before another is drawn in its place."""
    drawn = Gates(lambda call: anew({f"{call.task_id}1": []}))
    redrawn = Gates(lambda call: anew({f"{call.task_id}2": []}))
    spoiled = Gates(lambda call: SPOILED)
    answers: Answers = {
        ("executor", "a"): SPOILED,
        ("executor", "b"): spoiled,
        "recovery": lambda call: (redrawn if call.turn else drawn)(call),
    }
    engine.model.begin(script(answers))
    first = engine.worker()
    run_id = await fragile(database, {"a": [], "b": [], "c": []}, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "approve")
    drawn.open("a")
    await engine.until(lambda run: run.generation == 1, run_id)
    spoiled.open("b")
    await engine.model.until(lambda: len(asked(engine)) == 2)
    await answer(database, run_id, "reject", about=1, instructions="Otherwise.")
    await first.worker._look_at_flags()
    drawn.open("b")
    await engine.until(lambda run: run.generation == 2, run_id)
    await engine.model.until(lambda: len(asked(engine)) == 3)
    await dies(first, database, run_id)
    redrawn.open("a")
    engine.worker()
    run = await engine.until(is_asked, run_id)
    assert (run.generation, run.open_reviews) == (3, 2)
    assert (await the_plan(database, run_id, 3))["superseded"] == ["1.a1"]


async def test_an_edit_that_builds_on_what_is_gone_is_asked_about_again(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generation 1 waits for a person, whose plan builds on a task that generation 2 replaces meanwhile."""
    monkeypatch.setattr(worker, "_FLAGS_SECONDS", 600)  # the answer is found with the commit of generation 2
    drawn = Gates(lambda call: anew({"x" if call.task_id == "a" else "y": []}))
    spoiled = Gates(lambda call: SPOILED)
    answers: Answers = {("executor", "a"): SPOILED, ("executor", "b"): spoiled, "recovery": drawn}
    engine.model.begin(script(answers))
    engine.worker()
    run_id = await fragile(database, {"a": [], "b": [], "c": ["b"]}, approval="plan")
    await engine.until(is_asked, run_id)
    await answer(database, run_id, "approve")
    drawn.open("a")
    await engine.until(lambda run: run.generation == 1, run_id)
    spoiled.open("b")
    await engine.model.until(lambda: len(asked(engine)) == 2)
    mine = {"tasks": [{"id": "z", "description": "Do z.", "depends_on": ["0.c"]}]}
    await answer(database, run_id, "edit", announced=False, about=1, plan=mine)
    drawn.open("b")
    await engine.until(lambda run: run.generation == 2, run_id)
    await engine.until(is_asked, run_id)
    await check(database, run_id)
    for generation in (1, 2):
        await answer(database, run_id, "approve", about=generation)
    assert (await engine.ended(run_id)).status == "succeeded"
