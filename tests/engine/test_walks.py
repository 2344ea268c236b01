"""Walks of one run through trouble: those that once went astray, and every move of the tables of states."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from app.domain.ids import RunId
from app.storage.steering import request_cancel, request_pause, request_resume
from tests.databases import KINDS
from tests.engine.bench import Bench
from tests.engine.machine import MOVED, Pending, faults_of, moved_on
from tests.scripted_model import Plan

RUN_MOVES = {
    ("queued", "planning running cancelled paused"),
    ("planning", "running failed cancelled paused"),
    ("running", "planning awaiting_review paused succeeded failed cancelled"),
    ("awaiting_review", "queued paused cancelled"),
    ("paused", "queued cancelled"),
    ("failed", "queued"),
    ("cancelled", "queued"),
}
TASK_MOVES = {
    ("pending", "running cancelled superseded"),
    ("running", "running retrying succeeded failed cancelled"),
    ("retrying", "running cancelled superseded"),
    ("awaiting_review", "running succeeded skipped failed cancelled"),
    ("failed", "retrying skipped awaiting_review pending"),
    ("cancelled", "pending"),
}
EXPECTED = {
    (of, before, after)
    for of, table in (("run", RUN_MOVES), ("task", TASK_MOVES))
    for before, afters in table
    for after in afters.split()
}


class Walk:
    """One run on a bench, step by step, each of them settled and checked."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.run_id = RunId(UUID(int=0))

    async def begin(self, plan: Plan | None, **options: Any) -> None:
        tasks = None if plan is None else [task_of(i, *before) for i, before in plan.items()]
        given: dict[str, Any] = {"max_attempts": 1, "synthesize": False, **options}
        self.run_id = await self.bench.create(tasks, **given)
        await self.settled()

    async def settled(self) -> None:
        await self.bench.settle()
        await self.bench.check()

    def call(self, seat: str, key: str | None = None) -> Pending:
        (call,) = [c for c in self.bench.model.pending if c.seat == seat and key in (None, c.task_key)]
        return call

    async def say(self, seat: str, said: Any, key: str | None = None) -> None:
        self.call(seat, key).say(said if isinstance(said, str) else json.dumps(said))
        await self.settled()

    async def fail(self, *keys: str, seat: str = "executor", fault: str = "refused") -> None:
        for call in [self.call(seat, key) for key in keys] or [self.call(seat)]:
            faults_of(call)[fault]()
        await self.settled()

    async def steer(self, request: Any) -> None:
        await self.bench.steer(self.run_id, request)
        await self.settled()

    async def restart(self) -> None:
        await self.bench.restart()
        await self.settled()

    async def answer(self, about: str | int, decision: str, **given: Any) -> None:
        """The open review of this task or generation."""
        (review,) = [r for r in await self.bench.open_reviews() if about in (r["task_key"], r["generation"])]
        await self.bench.answer(review, decision, **given)
        await self.settled()

    async def replaced(self, key: str, generation: int) -> None:
        """The task fails, and a plan of one task, `GENERATION.1`, is drawn in its place."""
        await self.fail(key)
        await self.say("recovery", new_tasks(f"in place of {key}"))
        assert (await self.tasks())[f"{generation}.1"] == "pending"

    async def asked(self) -> set[str | int]:
        """The tasks and generations that open reviews are about."""
        return {r["task_key"] or r["generation"] for r in await self.bench.open_reviews()}

    async def status(self) -> str:
        return str((await self.bench.rows()).runs[self.run_id]["status"])

    async def result(self) -> Any:
        return (await self.bench.rows()).runs[self.run_id]["result"]

    async def tasks(self) -> dict[str, str]:
        return {key: task["status"] for key, task in (await self.bench.rows()).tasks[self.run_id].items()}


def task_of(task_id: str, *depends_on: str, description: str | None = None) -> dict[str, Any]:
    return {"id": task_id, "description": description or f"Do {task_id}.", "depends_on": list(depends_on)}


def new_tasks(description: str, **more: Any) -> dict[str, Any]:
    return {"strategy": "replan", "tasks": [task_of("1", description=description)], **more}


@pytest.fixture
async def walk(database_url: str) -> AsyncIterator[Walk]:
    bench = Bench(database_url)
    await bench.open()
    yield Walk(bench)
    moved_on(database_url).update(await bench.moves())
    await bench.close()


PAIR: Plan = {"a": [], "b": []}
CHAIN: Plan = {"a": [], "b": ["a"]}


async def test_a_person_who_has_failed_a_task_is_heeded_after_a_crash(walk: Walk) -> None:
    await walk.begin(PAIR, on_failure="review")
    await walk.fail("0.a")
    await walk.answer("0.a", "fail")
    assert await walk.status() == "running"
    await walk.restart()
    assert (await walk.status(), await walk.asked()) == ("failed", set())


async def test_a_person_who_has_rejected_a_plan_is_heeded_after_a_crash(walk: Walk) -> None:
    await walk.begin(PAIR, on_failure="replan", approval="plan")
    await walk.answer(0, "approve")
    await walk.replaced("0.a", 1)
    await walk.answer(1, "reject")
    assert await walk.status() == "running"
    await walk.restart()
    assert (await walk.status(), await walk.asked()) == ("failed", set())


async def two_plans_wait(walk: Walk) -> None:
    """Generations 1 and 2, each in place of a task of its own, and neither approved."""
    await walk.begin(PAIR, on_failure="replan", approval="plan")
    await walk.answer(0, "approve")
    await walk.replaced("0.a", 1)
    await walk.replaced("0.b", 2)
    assert await walk.asked() == {1, 2}


async def test_after_a_retry_every_plan_that_nobody_has_approved_is_asked_about(walk: Walk) -> None:
    await two_plans_wait(walk)
    await walk.steer(request_cancel)
    await walk.bench.retry(walk.run_id)
    await walk.settled()
    assert await walk.asked() == {1, 2}
    await walk.answer(1, "approve")
    await walk.answer(2, "approve")
    await walk.say("executor", "one", "1.1")
    await walk.say("executor", "two", "2.1")
    assert await walk.status() == "succeeded"


async def test_approval_that_a_retry_asks_for_holds_for_every_plan_with_tasks_to_start(walk: Walk) -> None:
    await walk.begin(PAIR, on_failure="replan")
    await walk.fail("0.a")
    await walk.say("recovery", new_tasks("otherwise"))
    await walk.steer(request_cancel)
    await walk.bench.retry(walk.run_id, approval="plan")
    await walk.settled()
    assert await walk.asked() == {0, 1}


async def test_a_plan_is_drawn_anew_though_another_was_stored_meanwhile(walk: Walk) -> None:
    await walk.begin(PAIR, on_failure="replan", approval="plan")
    await walk.answer(0, "approve")
    await walk.replaced("0.a", 1)
    await walk.fail("0.b")
    await walk.answer(1, "reject", instructions="Otherwise.")
    await walk.say("recovery", new_tasks("in place of b"))
    await walk.restart()
    await walk.say("recovery", new_tasks("in place of a, otherwise"))
    assert await walk.tasks() == {
        "0.a": "failed",
        "0.b": "failed",
        "1.1": "superseded",
        "2.1": "pending",
        "3.1": "pending",
    }
    assert await walk.asked() == {2, 3}


async def test_a_plan_that_could_not_be_drawn_anew_is_asked_about_again(walk: Walk) -> None:
    await two_plans_wait(walk)
    await walk.answer(1, "reject", instructions="Otherwise.")
    await walk.fail(seat="recovery", fault="declined")
    assert await walk.asked() == {1, 2}


async def test_what_a_rejected_plan_has_done_is_carried_by_the_one_drawn_in_its_place(walk: Walk) -> None:
    await walk.begin(CHAIN, on_failure="fail")
    await walk.say("executor", "done", "0.a")
    await walk.fail("0.b")
    await walk.bench.retry(walk.run_id, approval="plan")
    await walk.settled()
    await walk.answer(0, "reject", instructions="Otherwise.")
    await walk.say("planner", {"tasks": [task_of("1")]})
    assert await walk.tasks() == {"0.a": "succeeded", "0.b": "superseded", "1.1": "pending"}
    await walk.answer(1, "approve")
    await walk.say("executor", "one", "1.1")
    assert await walk.result() == {"0.a": "done", "1.1": "one"}


async def test_a_rejected_plan_is_replaced_and_not_the_newest(walk: Walk) -> None:
    await walk.begin(PAIR, on_failure="replan", max_parallel=1)
    await walk.fail("0.a")
    await walk.say("recovery", new_tasks("in place of a"))
    await walk.steer(request_cancel)
    await walk.bench.retry(walk.run_id, approval="plan")
    await walk.settled()
    assert await walk.asked() == {0, 1}
    await walk.answer(0, "reject", instructions="Otherwise.")
    await walk.say("planner", {"tasks": [task_of("1")]})
    assert await walk.asked() == {1, 2}
    assert await walk.tasks() == {"0.a": "failed", "0.b": "superseded", "1.1": "pending", "2.1": "pending"}


async def test_a_plan_that_is_rejected_while_no_worker_lives_is_drawn_anew(walk: Walk) -> None:
    await walk.begin(None, approval="plan")
    walk.bench.stays_away = True
    walk.bench.database.stop_at(0, before=False)
    await walk.say("planner", {"tasks": [task_of("1")]})
    assert await walk.status() == "running"
    await walk.answer(0, "reject", instructions="Otherwise.")
    await walk.restart()
    assert await walk.status() == "planning"
    await walk.say("planner", {"tasks": [task_of("1", description="otherwise")]})
    assert (await walk.tasks(), await walk.asked()) == ({"0.1": "superseded", "1.1": "pending"}, {1})


async def test_the_planner_sees_every_plan_that_was_rejected_though_the_words_were_the_same(walk: Walk) -> None:
    await walk.begin(None, approval="plan")
    for generation, description in enumerate(("first try", "second try")):
        await walk.say("planner", {"tasks": [task_of("1", description=description)]})
        await walk.answer(generation, "reject", instructions="Otherwise.")
    asked = " ".join(message.content for message in walk.call("planner").request.messages)
    assert "first try" in asked
    assert "second try" in asked


async def test_a_task_that_waits_for_long_can_be_dropped(walk: Walk) -> None:
    await walk.begin(PAIR, on_failure="replan")
    await walk.fail("0.a", fault="away for long")
    await walk.fail("0.b")
    await walk.say("recovery", new_tasks("instead of both", drop=["0.a"]))
    assert await walk.tasks() == {"0.a": "superseded", "0.b": "failed", "1.1": "running"}


async def test_every_decision_about_a_failed_task_moves_it(walk: Walk) -> None:
    await walk.begin({task_id: [] for task_id in "abcde"}, on_failure="review")
    await walk.fail(*(f"0.{task_id}" for task_id in "abcde"))
    assert await walk.status() == "awaiting_review"
    for key, decision, given in (
        ("0.a", "skip", {}),
        ("0.b", "supply", {"result": 1}),
        ("0.c", "retry", {}),
        ("0.d", "fail", {}),
    ):
        await walk.answer(key, decision, **given)
    await walk.say("executor", "done", "0.c")
    assert await walk.tasks() == {
        "0.a": "skipped",
        "0.b": "succeeded",
        "0.c": "succeeded",
        "0.d": "failed",
        "0.e": "cancelled",
    }
    assert await walk.status() == "failed"


async def test_a_run_that_waits_for_a_person_can_be_paused_and_cancelled(walk: Walk) -> None:
    await walk.begin({"a": []}, on_failure="review")
    await walk.fail("0.a")
    await walk.steer(request_pause)
    await walk.steer(request_resume)
    assert (await walk.status(), await walk.asked()) == ("awaiting_review", {"0.a"})
    await walk.steer(request_cancel)
    assert (await walk.tasks(), await walk.asked()) == ({"0.a": "cancelled"}, set())


async def test_a_run_that_failed_goes_on_with_the_words_that_recovery_finds(walk: Walk) -> None:
    await walk.begin(CHAIN)
    await walk.fail("0.a")
    assert (await walk.status(), await walk.tasks()) == ("failed", {"0.a": "failed", "0.b": "cancelled"})
    await walk.bench.retry(walk.run_id, on_failure="retry")
    await walk.settled()
    await walk.fail("0.a")
    await walk.say("recovery", {"description": "Do a, otherwise."})
    await walk.restart()
    await walk.say("executor", "done", "0.a")
    await walk.say("executor", "done", "0.b")
    assert await walk.status() == "succeeded"


async def test_a_run_that_nobody_plans_fails(walk: Walk) -> None:
    await walk.begin(None)
    await walk.fail(seat="planner", fault="declined")
    assert await walk.status() == "failed"


@pytest.mark.parametrize("plan", [None, CHAIN], ids=["planning", "running"])
@pytest.mark.parametrize("away", [False, True], ids=["with a worker", "without"])
async def test_a_run_is_paused_wherever_it_stands_and_then_cancelled(walk: Walk, plan: Plan | None, away: bool) -> None:
    if away:
        await walk.bench.die()
    await walk.begin(plan)
    await walk.steer(request_pause)
    if not away:
        assert await walk.status() == ("planning" if plan is None else "running")
        call = walk.call("planner" if plan is None else "executor")
        await walk.fail(seat=call.seat, fault="nonsense" if plan is None else "away for long")
    assert await walk.status() == "paused"
    await walk.steer(request_cancel)
    assert await walk.status() == "cancelled"


@pytest.mark.parametrize("plan", [None, CHAIN], ids=["planning", "running"])
@pytest.mark.parametrize("away", [False, True], ids=["with a worker", "without"])
async def test_a_run_is_cancelled_wherever_it_stands(walk: Walk, plan: Plan | None, away: bool) -> None:
    if away:
        await walk.bench.die()
    await walk.begin(plan)
    await walk.steer(request_cancel)
    assert await walk.status() == "cancelled"
    await walk.bench.retry(walk.run_id)
    await (walk.restart() if away else walk.settled())
    assert await walk.status() == ("planning" if plan is None else "running")


async def test_a_task_that_is_skipped_lets_its_dependents_run(walk: Walk) -> None:
    await walk.begin(CHAIN, on_failure="skip")
    await walk.fail("0.a")
    await walk.say("executor", "done", "0.b")
    assert await walk.tasks() == {"0.a": "skipped", "0.b": "succeeded"}


# --- all of them together


@pytest.mark.parametrize("kind", KINDS)
def test_every_move_of_the_tables_was_made(kind: str) -> None:
    if kind not in MOVED:
        pytest.skip("nothing has moved on it")
    missing, unknown = EXPECTED - set(MOVED[kind]), set(MOVED[kind]) - EXPECTED
    assert not missing, f"never made: {sorted(missing)}"
    assert not unknown, f"not in the tables: {sorted(unknown)}"
