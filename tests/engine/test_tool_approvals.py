"""Calls that a person is asked about before they are sent: which, with what, and what their answers do."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from app.domain.ids import RunId
from app.storage.database import Database
from app.storage.steering import request_pause, request_resume
from tests.engine.acting_runs import ONE, Shop, a_shop, became, charge, decide, look, open_reviews, put, tool_rows
from tests.engine.conftest import Engine
from tests.engine.troubled import answer, is_asked
from tests.invariants import check
from tests.scripted_model import Plan, Reply, script, text
from tests.scripted_tools import calls, steps
from tests.stored import T

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWO_AND_ONE: Plan = {"a": [], "b": [], "c": []}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(database_url: str) -> AsyncIterator[Shop]:
    async with a_shop(database_url) as shop:
        yield shop


@pytest.fixture
def shop(served: Shop) -> Iterator[Shop]:
    served.begin()
    yield served
    served.engine.model.check()


@pytest.fixture
def engine(shop: Shop) -> Engine:
    return shop.engine


@pytest.fixture
def database(shop: Shop) -> Database:
    return shop.engine.database


async def asking(shop: Shop, *replies: Reply, plan: Plan = ONE, **options: Any) -> RunId:
    """A run that has come to where it awaits review, by these steps of task a."""
    shop.engine.model.begin(script({("executor", "a"): steps(*replies)}))
    run_id = await shop.run(plan, **{"approval": "tools", **options})
    await shop.engine.until(is_asked, run_id)
    await check(shop.engine.database, run_id)
    return run_id


async def test_only_calls_that_act_are_held_and_their_arguments_are_shown(
    engine: Engine, database: Database, shop: Shop
) -> None:
    run_id = await asking(shop, calls(look("x"), put("y"), charge("z")), text("done"))
    assert (shop.look.texts, shop.put.texts, shop.charge.texts) == (["x"], [], [])
    reviews = await open_reviews(database, run_id)
    assert [review.question["tool_call"] for review in reviews] == [
        {
            "number": 2,
            "tool": "put",
            "arguments": {"text": "y"},
            "side_effects": "idempotent",
            "outcome_unknown": False,
        },
        {"number": 3, "tool": "charge", "arguments": {"text": "z"}, "side_effects": "once", "outcome_unknown": False},
    ]
    assert {tuple(review.allowed_answers) for review in reviews} == {("approve", "reject")}
    assert len(engine.model.calls) == 1


@pytest.mark.parametrize("order", [("put", "charge"), ("charge", "put")])
async def test_the_calls_of_one_step_are_answered_in_any_order(
    engine: Engine, database: Database, shop: Shop, order: Sequence[str]
) -> None:
    run_id = await asking(shop, calls(put("y"), look("x"), charge("z")), text("done"))
    first, second = order
    await decide(database, run_id, "approve", tool=first)
    tools = {"put": shop.put, "charge": shop.charge}
    await engine.until_true(lambda: len(tools[first].made) == 1)
    await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert (len(tools[second].made), len(engine.model.calls)) == (0, 1)
    await decide(database, run_id, "approve", tool=second)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert (shop.look.texts, shop.put.texts, shop.charge.texts) == (["x"], ["y"], ["z"])
    read = list(engine.model.calls[-1].tool_results.values())
    assert [f"done: {given}" in one for given, one in zip("yxz", read, strict=True)] == [True] * 3


async def test_the_model_is_told_that_and_why_a_person_has_refused(
    engine: Engine, database: Database, shop: Shop
) -> None:
    run_id = await asking(shop, calls(charge("x"), put("y")), text("done"))
    await decide(database, run_id, "reject", tool="charge", instructions="Far too dear.")
    await decide(database, run_id, "reject", tool="put")
    assert (await engine.ended(run_id)).status == "succeeded"
    dear, plain = engine.model.calls[-1].tool_results.values()
    assert "A person has refused this call: Far too dear." in dear
    assert "A person has refused this call." in plain
    assert (shop.charge.texts, shop.put.texts) == ([], [])
    assert await became(database, run_id) == [("charge", "refused"), ("put", "refused")]


async def test_another_argument_needs_another_answer(engine: Engine, database: Database, shop: Shop) -> None:
    run_id = await asking(shop, calls(charge("x")), calls(charge("y")), text("done"))
    await decide(database, run_id, "approve")
    await engine.until(lambda run: is_asked(run) and run.llm_calls == 2, run_id)
    (review,) = await open_reviews(database, run_id)
    assert (review.question["tool_call"]["arguments"], shop.charge.texts) == ({"text": "y"}, ["x"])
    await decide(database, run_id, "reject")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x"]


async def test_a_refused_call_that_is_asked_for_again_is_shown_again(
    engine: Engine, database: Database, shop: Shop
) -> None:
    run_id = await asking(shop, calls(charge("x")), calls(charge("x")), text("done"))
    await decide(database, run_id, "reject")
    await engine.until(lambda run: is_asked(run) and run.llm_calls == 2, run_id)
    assert shop.charge.texts == []
    await decide(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x"]


async def test_the_same_call_twice_in_one_step_is_held_once(engine: Engine, database: Database, shop: Shop) -> None:
    run_id = await asking(shop, calls(charge("x"), charge("x")), text("done"))
    await decide(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x"]
    assert await became(database, run_id) == [("charge", "returned"), ("charge", "refused")]


async def test_what_was_done_with_approval_is_not_asked_about_again(
    engine: Engine, database: Database, shop: Shop
) -> None:
    run_id = await asking(shop, calls(charge("x")), calls(charge("x")), text("done"))
    await decide(database, run_id, "approve")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x"]
    first, again = await tool_rows(database, run_id)
    assert (first["result"], again["result"], again["started_at"]) == ("done: x", "done: x", None)


async def test_tasks_wait_for_their_own_calls_and_no_other_task_does(
    engine: Engine, database: Database, shop: Shop
) -> None:
    engine.model.begin(
        script(
            {
                ("executor", "a"): steps(calls(charge("x")), text("a is done")),
                ("executor", "b"): steps(calls(put("y")), text("b is done")),
                ("executor", "c"): steps(calls(look("z")), text("c is done")),
            }
        )
    )
    run_id = await shop.run({**TWO_AND_ONE, "d": ["c"]}, approval="plan_and_tools")
    await engine.until(is_asked, run_id)
    assert engine.model.calls == []
    (review,) = await open_reviews(database, run_id)
    assert review.kind == "plan"
    await answer(database, run_id, "approve")
    run = await engine.until(lambda run: is_asked(run) and run.progress["succeeded"] == 2, run_id)
    await check(database, run_id)
    assert (run.open_reviews, run.progress["awaiting_review"], shop.look.texts) == (2, 2, ["z"])
    await decide(database, run_id, "approve", tool="put")
    await engine.until(lambda run: is_asked(run) and run.progress["succeeded"] == 3, run_id)
    assert (shop.put.texts, shop.charge.texts) == (["y"], [])
    await decide(database, run_id, "approve", tool="charge")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x"]


@pytest.mark.parametrize(("on_put", "sent"), [("approve", ["y"]), ("reject", [])])
async def test_answers_that_are_carried_out_together_start_the_task_once(
    engine: Engine, database: Database, shop: Shop, on_put: str, sent: list[str]
) -> None:
    run_id = await asking(shop, calls(put("y"), charge("z")), text("done"))
    async with database.write() as connection:
        assert await request_pause(connection, T, run_id)
    await decide(database, run_id, "approve", tool="charge")
    await decide(database, run_id, on_put, tool="put")
    async with database.write() as connection:
        assert await request_resume(connection, T, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert (shop.put.texts, shop.charge.texts, len(engine.model.calls)) == (sent, ["z"], 2)


async def test_an_answer_to_a_run_that_is_paused_counts_once_it_goes_on(
    engine: Engine, database: Database, shop: Shop
) -> None:
    run_id = await asking(shop, calls(charge("x")), text("done"))
    async with database.write() as connection:
        assert await request_pause(connection, T, run_id)
    await decide(database, run_id, "approve")
    run = await engine.until(lambda run: run.status == "paused", run_id)
    await check(database, run_id)
    assert (run.open_reviews, shop.charge.texts) == (0, [])
    async with database.write() as connection:
        assert await request_resume(connection, T, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x"]
