"""Clients and people: they submit runs, cancel, pause, resume and retry them, and answer reviews, as the API does."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from app.domain.errors import StorageUnavailable
from app.domain.generation import first_plan
from app.domain.ids import RunId
from app.domain.plan import PlannedTask
from app.domain.status import FINISHED, Decision, Mode, PlanReason, StopRequest
from app.storage import tables
from app.storage.goals import create_goal
from app.storage.reviews import answer_review, get_review
from app.storage.runs import create_run, lock_run
from app.storage.steering import request_cancel, request_pause, request_resume, retry_run
from tests.engine.machine import random_plan
from tests.simulation.model import with_tools
from tests.simulation.process import Process
from tests.simulation.tools import KINDS
from tests.simulation.trace import Trace
from tests.stored import OPTIONS, T

Row = Mapping[str, Any]


class Clients:
    """All of them, in one process that stands for any number of APIs. What is acknowledged is remembered."""

    def __init__(self, process: Process, dice: random.Random, trace: Trace, tool_dice: random.Random | None) -> None:
        """`tool_dice` where tasks may have tools."""
        self._database = process.database
        self._dice, self._trace, self._tool_dice = dice, trace, tool_dice
        self.acknowledged: list[RunId] = []
        self.stopped: set[RunId] = set()
        """Runs that somebody has wanted to stop; one whose lease has run out ends by that itself."""
        self._wishes: dict[RunId, Callable[..., Any] | None] = {}  # None: nobody knows whether it was committed

    async def submit(self) -> None:
        """A small run of any kind; it counts once it is acknowledged."""
        dice = self._dice
        tasks = [{**task, "critical": dice.random() < 0.85} for task in random_plan(dice)]
        tools, more, budget = self._means()
        if self._tool_dice is not None:
            with_tools(self._tool_dice, tasks, tools)
        planned = [
            PlannedTask(
                id=task["id"],
                description=task["description"],
                depends_on=tuple(task["depends_on"]),
                critical=task["critical"],
                tools=tuple(task.get("tools", ())),
            )
            for task in tasks
        ]
        has_plan = dice.random() < 0.7
        options = {
            **OPTIONS,
            "max_parallel": dice.choice((1, 2, 8)),
            "max_attempts": dice.choice((1, 2)),
            "on_failure": dice.choice(("auto", "auto", "retry", "skip", "replan", "replan", "fail", "review")),
            "on_exhausted": dice.choice(("fail", "review")),
            "max_replans": dice.choice((0, 1, 2)),
            "approval": dice.choice(("none", "none", "plan")),
            "synthesize": dice.random() < 0.3,
        }
        if "approval" in more and options["approval"] == "plan":
            more["approval"] = "plan_and_tools"
        options |= more
        budget |= {"max_llm_calls": dice.randint(3, 12)} if dice.random() < 0.1 else {}
        async with self._database.write() as connection:
            goal_id = await create_goal(connection, T, goal="Find out", context={}, metadata={})
            run = await create_run(
                connection,
                T,
                goal_id,
                mode=Mode.PLAN_ONLY if dice.random() < 0.05 else Mode.EXECUTE,
                options=options,
                budget=budget,
                metadata={},
                model="scripted",
                plan=first_plan(planned, PlanReason.CLIENT) if has_plan else None,
            )
            run_id = run.id
            await self._database.announce(connection, run_id)
        self.acknowledged.append(run_id)
        self._trace.note(f"submitted {self._trace.short(run_id)}")

    def _means(self) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
        """What tools a run has, with the options and the budget that go with them."""
        dice = self._tool_dice
        if dice is None:
            return [], {}, {}
        tools = [name for name in KINDS if dice.random() < 0.7]
        options: dict[str, Any] = {
            "tools": tools,
            "max_steps": dice.choice((2, 3, 5, 20)),
            "task_timeout_seconds": dice.choice((300, 300, 8)),
        }
        if dice.random() < 0.35:
            options["approval"] = "tools"
        return tools, options, {"max_tool_calls": dice.randint(1, 6)} if dice.random() < 0.15 else {}

    async def meddle(self) -> None:
        """Do something to some run."""
        dice = self._dice
        if not self.acknowledged:
            return
        run_id = dice.choice(self.acknowledged)
        action = dice.choice(("answer", "answer", "answer", "pause", "resume", "resume", "cancel", "retry"))
        match action:
            case "answer":
                await self.answer_some()
            case "pause":
                await self.steer(run_id, request_pause)
            case "resume":
                await self.steer(run_id, request_resume)
            case "cancel":
                await self.steer(run_id, request_cancel)
            case _:
                await self.retry(run_id)

    async def steer(self, run_id: RunId, request: Callable[..., Any]) -> bool:
        """Cancel, pause or resume; whether it did anything."""
        self.stopped.add(run_id)
        try:
            async with self._database.write() as connection:
                steered = await request(connection, T, run_id)
                did: bool = steered[1]
                if did:
                    self._wishes[run_id] = request
                    await self._database.announce(connection, run_id)
        except StorageUnavailable:
            self._wishes[run_id] = None
            raise
        self._trace.note(f"{request.__name__} {self._trace.short(run_id)} {'done' if did else 'left as it is'}")
        return did

    def wants_pause(self, run_id: RunId) -> bool:
        """Whether that is what somebody last asked of it."""
        return self._wishes.get(run_id) is request_pause

    async def stand_still_unasked(self) -> list[RunId]:
        """Runs that are paused, though somebody has wanted them to go on since."""
        paused = [run["id"] for run in await self._rows(tables.runs) if run["status"] == "paused"]
        return [run_id for run_id in paused if self._wishes.get(run_id) is request_resume]

    async def resume(self, run_id: RunId) -> None:
        """Have it go on after all."""
        await self.steer(run_id, request_resume)

    async def cancel(self, run_id: RunId) -> None:
        """Have no more of it."""
        await self.steer(run_id, request_cancel)

    async def retry(self, run_id: RunId) -> None:
        """Have a failed or cancelled run go on without a budget."""
        async with self._database.write() as connection:
            run = await lock_run(connection, T, run_id)
            if run is None or run.status not in ("failed", "cancelled"):
                return
            await retry_run(connection, run, options=run.options, budget={})
            await self._database.announce(connection, run_id)
        self._trace.note(f"retried {self._trace.short(run_id)}")

    async def help(self) -> None:
        """Have every run go on that stands still for want of a person."""
        for run in await self._rows(tables.runs):
            if run["status"] == "paused" or run["stop_requested"] == "pause":
                await self.steer(run["id"], request_resume)
        for review in await self.open_reviews():
            await self.answer(review, "approve" if "approve" in review["allowed_answers"] else "retry")

    async def answer_some(self, run_id: RunId | None = None) -> None:
        """Answer an open review, of this run where one is named, in one of the ways that it allows."""
        reviews = [review for review in await self.open_reviews() if run_id in (None, review["run_id"])]
        if reviews:
            review = self._dice.choice(reviews)
            await self.answer(review, self._dice.choice(review["allowed_answers"]))

    async def open_reviews(self) -> list[Row]:
        """Those that may be answered."""
        ending = {
            run["id"]
            for run in await self._rows(tables.runs)
            if run["status"] in FINISHED or run["stop_requested"] == StopRequest.CANCEL
        }
        reviews = await self._rows(tables.reviews)
        is_open = [r for r in reviews if r["answered_at"] is None and r["closed_at"] is None]
        return [review for review in is_open if review["run_id"] not in ending]

    async def answer(self, row: Row, decision: str) -> None:
        """Answer an open review as a person might; one that somebody has answered meanwhile is left as it is."""
        run_id = row["run_id"]
        given = self._given(decision, row)
        async with self._database.write() as connection:
            run = await lock_run(connection, T, run_id)
            review = await get_review(connection, T, run_id, row["id"])
            if run is None or review is None:
                return
            ends = run.status in FINISHED or run.stop_requested is StopRequest.CANCEL
            if ends or review.answered_at is not None or review.closed_at is not None:
                return
            if decision == Decision.EDIT and self._tool_dice is not None:
                with_tools(self._tool_dice, given["plan"]["tasks"], run.options["tools"])
            await answer_review(connection, run, review, {"decision": decision, **given})
            await self._database.announce(connection, run_id)
        self._trace.note(f"answered a review of {self._trace.short(run_id)}: {decision}")

    async def runs(self) -> Sequence[Row]:
        """All runs as they are."""
        return await self._rows(tables.runs)

    def _given(self, decision: str, review: Row) -> dict[str, Any]:
        dice = self._dice
        match decision:
            case Decision.EDIT:
                return {"plan": {"tasks": random_plan(dice)}}
            case Decision.SUPPLY:
                return {"result": "supplied"}
            case Decision.RETRY if review["kind"] == "failure" and dice.random() < 0.5:
                return {"description": f"Reworded by hand {dice.random()}"}
            case Decision.REJECT | Decision.REPLAN if dice.random() < 0.8:
                return {"instructions": "Otherwise."}
            case _:
                return {}

    async def _rows(self, table: sa.Table) -> Sequence[Row]:
        query = sa.select(table).order_by(*table.primary_key.columns)
        async with self._database.read() as connection:
            return [dict(row._mapping) for row in await connection.execute(query)]
