"""What a task has done counts for its later attempts, in whatever words: it is neither forgotten nor done again."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from app.domain.errors import ToolFailed, ToolRetry
from app.storage.database import Database
from tests.engine.acting_runs import ONE, Shop, a_shop, became, charge, decide, look, open_reviews, put, tool_rows
from tests.engine.conftest import Engine
from tests.engine.troubled import REWORDED, is_asked, retried, say
from tests.invariants import check
from tests.scripted_model import script, text
from tests.scripted_tools import calls, steps
from tests.stored import row_of, set_run

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(database_url: str) -> AsyncIterator[Shop]:
    async with a_shop(database_url, tool_timeout_seconds=0.5) as shop:
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


def fails_once(shop: Shop) -> None:
    """`look` is broken the first time."""

    def does(*_: Any) -> str:
        if len(shop.look.made) == 1:
            raise ToolFailed("Out of order.", kind="tool_failed")
        return "seen"

    shop.look.does = does


async def test_the_next_attempt_gets_the_recorded_result(engine: Engine, database: Database, shop: Shop) -> None:
    fails_once(shop)
    told = steps(calls(charge("x")), calls(look("y")), calls(charge("x")), text("done"))
    engine.model.begin(script({("executor", "a"): told}))
    run_id = await shop.run(max_attempts=2)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x"]
    first, broken, again = await tool_rows(database, run_id)
    assert (broken["status"], again["attempt"], again["started_at"]) == ("failed", 2, None)
    assert (first["result"], again["result"]) == ("done: x", "done: x")
    assert "done: x" in list(engine.model.calls[-1].tool_results.values())[-1]


async def test_a_task_in_other_words_gets_the_recorded_result(engine: Engine, database: Database, shop: Shop) -> None:
    fails_once(shop)
    told = [calls(charge("x")), calls(look("y")), calls(charge("x"), charge("z")), text("done")]
    engine.model.begin(script({("executor", "a"): told, "recovery": REWORDED}))
    run_id = await shop.run(max_attempts=1, on_failure="auto")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x", "z"]
    assert not engine.model.calls_for("0.a")[2].tool_results, "it began anew"
    assert "done: x" in next(iter(engine.model.calls[-1].tool_results.values()))


async def test_a_run_that_is_tried_again_gets_the_recorded_result(
    engine: Engine, database: Database, shop: Shop
) -> None:
    fails_once(shop)
    told = [calls(charge("x")), calls(look("y")), calls(charge("x")), text("done")]
    engine.model.begin(script({("executor", "a"): told}))
    run_id = await shop.run(max_attempts=1)
    assert (await engine.ended(run_id)).status == "failed"
    await retried(database, run_id)
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x"]


async def test_recovery_is_told_what_a_failed_task_has_done(engine: Engine, database: Database, shop: Shop) -> None:
    fails_once(shop)
    told = steps(calls(charge("a thing"), put("b thing")), calls(look("c thing")), text("never"))
    engine.model.begin(
        script({("executor", "a"): told, "recovery": say("replan", tasks=[{"id": "m", "description": "Do m."}])})
    )
    run_id = await shop.run(ONE, max_attempts=1, on_failure="auto")
    assert (await engine.ended(run_id)).status == "succeeded"
    (asked,) = engine.model.by_seat("recovery")
    assert ("a thing" in asked.text, "b thing" in asked.text, "done: a thing" in asked.text) == (True, True, True)


# --- calls that gave nothing


async def test_what_certainly_did_nothing_is_simply_sent_again(engine: Engine, database: Database, shop: Shop) -> None:
    def busy(arguments: Mapping[str, Any], _: Any) -> str:
        if len(shop.charge.made) == 1:
            raise ToolRetry("Busy.", kind="busy", may_have_acted=False)
        return "paid"

    shop.charge.does = busy
    engine.model.begin(script({("executor", "a"): steps(calls(charge("x")), calls(charge("x")), text("done"))}))
    run_id = await shop.run()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert await became(database, run_id) == [("charge", "failed"), ("charge", "returned")]


async def hangs(*_: Any) -> str:
    await asyncio.Event().wait()
    return "never"


def breaks(*_: Any) -> str:
    raise RuntimeError("Something happened half-way.")


@pytest.mark.parametrize(
    ("does", "kind"), [(hangs, "timeout"), (breaks, "tool_failed")], ids=["gives nothing in time", "breaks"]
)
async def test_what_says_nothing_after_it_may_have_acted_is_asked_about_before_the_model_hears_of_it(
    engine: Engine, database: Database, shop: Shop, does: Any, kind: str
) -> None:
    """A model that is told of it would do it in other words, which nobody can tell from doing it twice."""
    shop.charge.does = does
    engine.model.begin(script({("executor", "a"): steps(calls(charge("x"), look("y")), text("done"))}))
    run_id = await shop.run(max_attempts=1)
    await engine.until(is_asked, run_id)
    await check(database, run_id)
    assert len(engine.model.by_seat("executor")) == 1
    (review,) = await open_reviews(database, run_id)
    assert review.question["tool_call"]["outcome_unknown"] is True
    assert review.question["error"]["kind"] == kind
    assert "retry" in review.allowed_answers
    shop.does_as_told()
    await decide(database, run_id, "retry")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x", "x"]
    assert sorted(await became(database, run_id)) == [("charge", "lost"), ("charge", "returned"), ("look", "returned")]
    await check(database, run_id)


async def test_it_is_asked_about_as_often_as_it_says_nothing(engine: Engine, database: Database, shop: Shop) -> None:
    shop.charge.does = hangs
    engine.model.begin(script({("executor", "a"): steps(calls(charge("x")), text("done"))}))
    run_id = await shop.run(max_attempts=1)
    for times in (1, 2, 3):
        await engine.until(lambda run: is_asked(run) and len(shop.charge.made) == times, run_id)  # noqa: B023 - awaited
        if times < 3:
            await decide(database, run_id, "retry")
    await decide(database, run_id, "supply", result="paid")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x", "x", "x"]
    assert "paid" in engine.model.by_seat("executor")[-1].text


async def test_a_task_whose_time_it_used_up_has_its_time_again_after_a_persons_word(
    engine: Engine, database: Database, shop: Shop
) -> None:
    shop.charge.does = hangs
    engine.model.begin(script({("executor", "a"): steps(*[calls(charge(t)) for t in "xyz"], text("done"))}))
    run_id = await shop.run(max_attempts=1, task_timeout_seconds=1)
    for times in (1, 2, 3):
        await engine.until(lambda run: is_asked(run) and len(shop.charge.made) == times, run_id)  # noqa: B023 - awaited
        await decide(database, run_id, "supply", result="paid")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_a_person_is_shown_what_was_seen_of_the_last_such_call(
    engine: Engine, database: Database, shop: Shop
) -> None:
    def does(*_: Any) -> str:
        if len(shop.charge.made) == 1:
            raise ToolRetry("The bank says perhaps.", kind="perhaps")
        raise RuntimeError("Something happened half-way.")

    shop.charge.does = does
    engine.model.begin(script({("executor", "a"): steps(calls(charge("x")), calls(charge("x")), text("done"))}))
    run_id = await shop.run(max_attempts=1)
    for times, kind in ((1, "perhaps"), (2, "tool_failed")):
        await engine.until(lambda run: is_asked(run) and len(shop.charge.made) == times, run_id)  # noqa: B023 - awaited
        (review,) = await open_reviews(database, run_id)
        assert review.question["error"]["kind"] == kind
        if kind == "perhaps":
            await decide(database, run_id, "retry")
    await decide(database, run_id, "supply", result="paid")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_a_person_who_calls_it_failed_is_heard_though_another_call_has_failed_before(
    engine: Engine, database: Database, shop: Shop
) -> None:
    def out_of_order(*_: Any) -> str:
        raise ToolFailed("Out of order.", kind="tool_failed")

    shop.look.does, shop.charge.does = out_of_order, breaks
    engine.model.begin(script({("executor", "a"): steps(calls(look("y"), charge("x")), text("done"))}))
    run_id = await shop.run(max_attempts=3, on_failure="fail")
    await engine.until(is_asked, run_id)
    await decide(database, run_id, "fail")
    assert (await engine.ended(run_id)).status == "failed"
    assert len(engine.model.by_seat("executor")) == 1


async def test_a_tool_that_says_nothing_does_not_pass_for_the_death_of_a_worker(
    engine: Engine, database: Database, shop: Shop
) -> None:
    shop.charge.does = hangs
    engine.model.begin(script({("executor", "a"): steps(calls(charge("x")), text("done"))}))
    run_id = await shop.run(max_attempts=1)
    await engine.until(is_asked, run_id)
    await set_run(database, run_id, takeovers=4)
    await decide(database, run_id, "retry")
    await engine.until(lambda run: is_asked(run) and len(shop.charge.made) == 2, run_id)
    assert (await row_of(database, run_id))["takeovers"] == 0
    await decide(database, run_id, "supply", result="paid")
    assert (await engine.ended(run_id)).status == "succeeded"


async def test_a_tool_that_says_itself_that_it_failed_is_heard_by_the_model(
    engine: Engine, database: Database, shop: Shop
) -> None:
    def declined(*_: Any) -> str:
        raise ToolRetry("The card was declined.", kind="declined")

    shop.charge.does = declined
    engine.model.begin(script({("executor", "a"): steps(calls(charge("x")), text("done"))}))
    run_id = await shop.run()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert "The card was declined." in engine.model.by_seat("executor")[-1].text
    assert await became(database, run_id) == [("charge", "failed")]


async def test_what_a_person_has_called_failed_is_asked_about_before_it_is_sent_again(
    engine: Engine, database: Database, shop: Shop
) -> None:
    """`fail` ends the attempt and says nothing of whether the lost call acted."""
    shop.charge.does = hangs
    told = [calls(charge("x")), calls(charge("x")), calls(charge("x")), text("done")]
    engine.model.begin(script({("executor", "a"): told, "recovery": REWORDED}))
    run_id = await shop.run(on_failure="auto")
    await engine.until(is_asked, run_id)
    await decide(database, run_id, "fail")
    await engine.until(lambda run: is_asked(run) and run.open_reviews == 1, run_id)
    assert shop.charge.texts == ["x"]
    await decide(database, run_id, "supply", result="paid")
    assert (await engine.ended(run_id)).status == "succeeded"
    assert shop.charge.texts == ["x"]


async def test_the_same_call_twice_in_one_step_is_sent_once(engine: Engine, database: Database, shop: Shop) -> None:
    told = steps(calls(charge("x"), charge("x"), put("y"), put("y")), calls(look("z")), text("done"))
    engine.model.begin(script({("executor", "a"): told}))
    run_id = await shop.run()
    assert (await engine.ended(run_id)).status == "succeeded"
    assert (shop.charge.texts, shop.put.texts, shop.look.texts) == (["x"], ["y", "y"], ["z"])
    assert len({key for _, key in shop.put.made}) == 1
