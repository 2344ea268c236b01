"""Runs on a real database with one worker at a time that is settled after every step, killed and replaced."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from decimal import Decimal
from math import inf
from typing import Any
from unittest.mock import patch

import sqlalchemy as sa
import structlog

from app.domain import recovery
from app.domain.generation import first_plan
from app.domain.ids import RunId
from app.domain.plan import PlannedTask
from app.domain.status import CLAIMABLE, FINISHED, Decision, Mode, PlanReason, StopRequest
from app.engine.worker import Worker
from app.settings import ModelPrice, Settings
from app.storage import tables
from app.storage.database import Database, now_ms
from app.storage.reviews import answer_review, get_review
from app.storage.runs import create_run, lock_run
from app.storage.steering import Steered, retry_run
from tests.engine.machine import FrailDatabase, Moves, PatientModel, Pending, WatchedInbox, moves_of, random_plan
from tests.invariants import Row, check
from tests.stored import OPTIONS, T, forget_everything, make_goal

WITHIN_SECONDS = 20
SOON_SECONDS = 5.0
"""What a driver waits for this long is waited for; anything longer only ends when time is made to pass."""


@dataclass(kw_only=True)
class Known:
    """What the bench remembers of a run."""

    checked: int = -1
    calls: int | None = None
    """How many there may be at most, once somebody wants no more."""
    is_refused: bool = False
    """Whether a person has given it up."""


@dataclass(kw_only=True)
class Rows:
    """The rows of all runs that bear on what may be in flight."""

    runs: dict[RunId, Row]
    tasks: dict[RunId, dict[str, Row]]
    reviews: list[Row]
    needs: dict[tuple[RunId, str], list[str]]


class Bench:
    """One worker at a time, any number of runs. Every method leaves things as they stand; `settle` waits."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._stack = AsyncExitStack()
        self._client = Database(database_url, pool_size=2)
        self.model = PatientModel()
        self.runs: dict[RunId, Known] = {}
        self.is_away = True
        self.stays_away = False
        """Whether a worker that was stopped at a write is not replaced by itself."""
        self._settings = Settings(
            _env_file=None,
            database_url=database_url,
            llm_base_url="http://localhost:9",
            llm_model="scripted",
            llm_prices={"scripted": ModelPrice(input=Decimal(1), output=Decimal(2))},
            llm_max_concurrency=6,
            llm_backoff_base_seconds=0,
            llm_backoff_cap_seconds=0.02,
            poll_seconds=600,
            lease_seconds=600,
            drain_seconds=0.02,
        )

    async def open(self) -> None:
        self._stack.enter_context(patch("app.engine.driver.Inbox", WatchedInbox))
        self._stack.enter_context(patch.object(recovery, "GATHER_MS", 0))  # what is answered together comes together
        self._logged = self._stack.enter_context(structlog.testing.capture_logs())
        await forget_everything(self._client)
        self._start()

    async def close(self) -> None:
        if not self.is_away:
            await self.die()
        await self._client.close()
        await self._stack.aclose()

    def _start(self) -> None:
        self.database = FrailDatabase(self._url)
        self.worker = Worker(self.database, self.model, self._settings)
        self._stop = asyncio.Event()
        self._running = asyncio.create_task(self.worker.run(self._stop))
        self.is_away = False

    async def die(self, *, drain: bool = False) -> None:
        """End the worker, in the middle of everything unless it may drain; it leaves its leases where it did not."""
        drain = drain and not self.database.stopped
        if drain:
            self._stop.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(WITHIN_SECONDS):
                    await asyncio.shield(self._running)
        self._running.cancel()
        self.database.die()
        with suppress(asyncio.CancelledError):
            await self._running
        assert not self.model.pending
        places = self.worker._shop.places
        assert (places._free, len(places._waiting)) == (self._settings.llm_max_concurrency, 0), "places were leaked"
        await self.database.close()
        self.is_away = True

    async def expire(self) -> None:
        """The leases of the worker that died have run out; its deaths are the machine's, and charged to no run."""
        async with self._client.write() as connection:
            held = tables.runs.c.lease_token.is_not(None)
            await connection.execute(sa.update(tables.runs).where(held).values(ready_at=0, takeovers=-1))

    async def restart(self, *, later: bool = False) -> None:
        """Another worker takes all runs over, long after the last one."""
        if not self.is_away:
            await self.die()
        await self.expire()
        if later:
            await self.let_time_pass()
        self._start()

    async def let_time_pass(self) -> None:
        """Whatever waits in the database alone is due."""
        async with self._client.write() as connection:
            free = tables.runs.c.lease_token.is_(None)
            await connection.execute(sa.update(tables.runs).where(free).values(ready_at=0))
            for column in (tables.tasks.c.next_attempt_at, tables.calls.c.retry_at):
                await connection.execute(sa.update(column.table).where(column.is_not(None)).values({column.name: 0}))

    # Waiting.

    async def settle(self) -> None:
        """Return when nothing happens any more unless the model answers, a client asks, or long time passes."""
        if self.is_away:
            return
        try:
            async with asyncio.timeout(WITHIN_SECONDS):
                while True:
                    if self.database.stopped and self.stays_away:
                        await self.die()
                        return
                    if self.database.stopped:
                        await self.restart()
                    assert not self._running.done(), "the worker ended by itself"
                    if self._is_quiet and await self._is_up_to_date() and self._is_quiet:
                        break
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise AssertionError(f"it does not settle: {await self._account()}") from None
        broken = [entry for entry in self._logged if entry["log_level"] in ("error", "critical")]
        assert not broken, broken

    @property
    def _is_quiet(self) -> bool:
        drivers = self.worker._drivers.values()
        return (
            not self.database.stopped
            and not self.worker._recorder._queue
            and all(_waits_seconds(driver) > SOON_SECONDS for driver in drivers)
            and sum(len(driver._calls) for driver in drivers) == len(self.model.pending)
            and not any(call.cancelling() for driver in drivers for call in driver._calls)
        )

    async def _is_up_to_date(self) -> bool:
        """Whether the worker has what is due, and knows what clients want; it is told where it does not."""
        query = sa.select(tables.runs, now_ms().label("now")).where(tables.runs.c.status.in_(CLAIMABLE))
        async with self._client.read() as connection:
            rows = (await connection.execute(query)).all()
        behind = [row.id for row in rows if not self._knows(row)]
        for run_id in behind:
            self.database.tell(run_id, requested=True)
        return not behind

    def _knows(self, row: Any) -> bool:
        driver = self.worker._drivers.get(row.id)
        if row.lease_token is None:
            return driver is None and row.ready_at > row.now
        wanted = None if row.stop_requested is None else StopRequest(row.stop_requested)
        return (
            driver is not None
            and driver.lease.token == row.lease_token
            and (driver._stop, driver._answers) == (wanted, row.answers)
        )

    async def _account(self) -> str:
        rows = await self.rows()
        lines = [
            f"{run_id} {run['status']} stop={run['stop_requested']} calls={run['llm_calls']} lease={run['lease_token']}"
            f" error={run['error']}"
            for run_id, run in rows.runs.items()
        ]
        lines += [
            f"waits {_waits_seconds(driver)} s: {driver.lease.run_id}" for driver in self.worker._drivers.values()
        ]
        lines += [f"pending {p.seat} {p.task_key} of {p.run_id}" for p in self.model.pending]
        return "\n".join(lines)

    # What clients do.

    async def create(
        self,
        tasks: Sequence[Mapping[str, Any]] | None,
        *,
        budget: Mapping[str, Any] | None = None,
        mode: Mode = Mode.EXECUTE,
        **options: Any,
    ) -> RunId:
        """A run with this plan of its own, or one that is to be drawn."""
        planned = [
            PlannedTask(
                id=task["id"],
                description=task["description"],
                depends_on=tuple(task["depends_on"]),
                critical=task.get("critical", True),
            )
            for task in tasks or ()
        ]
        goal_id = await make_goal(self._client)
        async with self._client.write() as connection:
            run = await create_run(
                connection,
                T,
                goal_id,
                mode=mode,
                options={**OPTIONS, **options},
                budget=budget or {},
                metadata={},
                model="scripted",
                plan=None if tasks is None else first_plan(planned, PlanReason.CLIENT),
            )
            run_id = run.id
        self.runs[run_id] = Known()
        return run_id

    async def submit(self, dice: random.Random) -> None:
        """A small run of any kind."""
        tasks = [{**task, "critical": dice.random() < 0.85} for task in random_plan(dice)]
        await self.create(
            tasks if dice.random() < 0.6 else None,
            budget={"max_llm_calls": dice.randint(3, 12)} if dice.random() < 0.15 else {},
            mode=Mode.PLAN_ONLY if dice.random() < 0.05 else Mode.EXECUTE,
            max_parallel=dice.choice((1, 2, 8)),
            max_attempts=dice.choice((1, 2)),
            on_failure=dice.choice(("auto", "auto", "retry", "skip", "replan", "replan", "fail", "review", "review")),
            on_exhausted=dice.choice(("fail", "review")),
            max_replans=dice.choice((0, 1, 2)),
            approval=dice.choice(("none", "plan")),
            synthesize=dice.random() < 0.3,
        )

    async def steer(self, run_id: RunId, request: Callable[..., Any]) -> bool:
        """Cancel, pause or resume; whether it did anything."""
        async with self._client.write() as connection:
            steered: Steered = await request(connection, T, run_id)
        assert steered is not None
        run, did = steered
        known = self.runs[run_id]
        if did:
            stops = run.stop_requested is not None or run.status in ("paused", "cancelled")
            known.calls = run.llm_calls if stops else None
        return did

    async def retry(self, run_id: RunId, **changed: Any) -> bool:
        """Have a failed or cancelled run go on, with these options and without a budget; False for any other."""
        async with self._client.write() as connection:
            run = await lock_run(connection, T, run_id)
            assert run is not None
            if run.status not in ("failed", "cancelled"):
                return False
            await retry_run(connection, run, options={**run.options, **changed}, budget={})
        self.runs[run_id] = Known(checked=self.runs[run_id].checked)
        return True

    async def open_reviews(self) -> list[Row]:
        """Those that may be answered."""
        rows = await self.rows()
        ending = {i for i, run in rows.runs.items() if run["status"] in FINISHED or run["stop_requested"] == "cancel"}
        is_open = [r for r in rows.reviews if r["answered_at"] is None and r["closed_at"] is None]
        return [review for review in is_open if review["run_id"] not in ending]

    async def answer_as_any(self, row: Row, decision: str, dice: random.Random) -> None:
        """Answer an open review as a person might."""
        given: dict[str, Any] = {}
        match decision:
            case Decision.EDIT:
                rows = await self.rows()
                given["plan"] = {"tasks": random_plan(dice, known=_succeeded(rows.tasks[row["run_id"]]))}
            case Decision.SUPPLY:
                given["result"] = "supplied"
            case Decision.RETRY if dice.random() < 0.5:
                given["description"] = f"Reworded by hand {dice.random()}"
            case Decision.REJECT | Decision.REPLAN if dice.random() < 0.7:
                given["instructions"] = "Otherwise."
        await self.answer(row, decision, **given)

    async def answer(self, row: Row, decision: str, **given: Any) -> None:
        """Answer an open review."""
        async with self._client.write() as connection:
            run = await lock_run(connection, T, row["run_id"])
            review = await get_review(connection, T, row["run_id"], row["id"])
            assert run is not None
            assert review is not None
            await answer_review(connection, run, review, {"decision": decision, **given})
        if decision == Decision.FAIL or (decision == Decision.REJECT and "instructions" not in given):
            self.runs[row["run_id"]].is_refused = True

    # What the model says.

    async def answer_well(self, call: Pending, dice: random.Random) -> None:
        """Something that can be used, whatever it is."""
        match call.seat:
            case "planner":
                call.say(json.dumps({"tasks": random_plan(dice)}))
            case "recovery":
                call.say(json.dumps(await self._recovery(call, dice)))
            case _:
                call.say(f"result {dice.random()}")

    async def _recovery(self, call: Pending, dice: random.Random) -> Mapping[str, Any]:
        strategy = dice.choice(("retry", "skip", "replan"))
        if "strategy" not in call.asks_for:
            strategy = "replan" if "tasks" in call.asks_for else "retry"
        if strategy != "replan":
            return {"strategy": strategy, "description": f"Reworded {dice.random()}"}
        rows = await self.rows()
        tasks = rows.tasks[call.run_id]
        unstarted = [key for key, task in tasks.items() if task["status"] in ("pending", "retrying")]
        drop = [key for key in unstarted if dice.random() < 0.25]
        return {"strategy": strategy, "tasks": random_plan(dice, known=_succeeded(tasks)), "drop": drop}

    # What is always true.

    async def rows(self) -> Rows:
        """As they are now."""
        async with self._client.read() as connection:

            async def all_of(table: sa.Table) -> list[Row]:
                query = sa.select(table).order_by(*table.primary_key.columns)
                return [dict(row._mapping) for row in await connection.execute(query)]

            tasks: dict[RunId, dict[str, Row]] = {run_id: {} for run_id in self.runs}
            for task in await all_of(tables.tasks):
                tasks[task["run_id"]][task["key"]] = task
            needs: dict[tuple[RunId, str], list[str]] = {}
            runs = {row["id"]: row for row in await all_of(tables.runs)}
            if any(run["status"] == "awaiting_review" for run in runs.values()):  # they matter to nothing else
                for row in await all_of(tables.dependencies):
                    needs.setdefault((row["run_id"], row["task_key"]), []).append(row["depends_on"])
            return Rows(
                runs={run_id: runs[run_id] for run_id in self.runs},
                tasks=tasks,
                reviews=await all_of(tables.reviews),
                needs=needs,
            )

    async def check(self) -> None:
        """Assert all of it, with the worker settled."""
        rows = await self.rows()
        for run_id, known in self.runs.items():
            run = rows.runs[run_id]
            if run["version"] != known.checked:
                await check(self._client, run_id)
                known.checked = run["version"]
            self._nothing_starts_after_a_stop(run, known)
            if self.is_away:
                continue
            calls = [call for call in self.model.pending if call.run_id == run_id]
            _calls_are_wanted(run, rows.tasks[run_id], calls)
            self._it_can_go_on(run, calls)
            if run["status"] == "awaiting_review":
                _only_a_person_can_help(run, rows)

    def _nothing_starts_after_a_stop(self, run: Row, known: Known) -> None:
        if known.calls is not None:
            assert run["llm_calls"] <= known.calls, "a call after a stop"
        if known.is_refused and not self.is_away and run["status"] in ("planning", "running", *FINISHED):
            assert run["status"] != "succeeded", "a person had given it up"
            known.calls = run["llm_calls"] if known.calls is None else known.calls

    def _it_can_go_on(self, run: Row, calls: Sequence[Pending]) -> None:
        assert run["status"] != "queued"
        assert run["stop_requested"] != "cancel", "it is not cancelled"
        if run["stop_requested"] == "pause":
            assert calls, "nothing is in flight, and it is not paused"
        driver = self.worker._drivers.get(run["id"])
        if driver is not None and not calls:
            assert driver._admission.waits_for_place or _waits_seconds(driver) < inf, "it is stuck"

    async def moves(self) -> Moves:
        """Every change of status that the events tell of."""
        moves: Moves = Counter()
        query = sa.select(tables.events).order_by(tables.events.c.run_id, tables.events.c.seq)
        async with self._client.read() as connection:
            events = [dict(row._mapping) for row in await connection.execute(query)]
        for run_id in self.runs:
            moves.update(moves_of([event for event in events if event["run_id"] == run_id]))
        return moves


def _waits_seconds(driver: Any) -> float:
    inbox: WatchedInbox[Any] = driver._inbox
    return inbox.waits_seconds


def _calls_are_wanted(run: Row, tasks: Mapping[str, Row], calls: Sequence[Pending]) -> None:
    assert not calls or run["status"] in ("planning", "running"), f"a call in flight while {run['status']}"
    assert max(Counter((c.seat, c.task_key) for c in calls).values(), default=0) <= 1, "asked twice at once"
    executed = [str(call.task_key) for call in calls if call.seat == "executor"]
    assert len(executed) <= run["options"]["max_parallel"]
    for key in executed:
        assert tasks[key]["status"] == "running", f"{key} is called, and is {tasks[key]['status']}"
    for call in calls:
        if call.seat == "recovery" and call.task_key is not None:
            assert tasks[call.task_key]["status"] == "failed"


def _only_a_person_can_help(run: Row, rows: Rows) -> None:
    tasks = rows.tasks[run["id"]]
    asked = {r["generation"] for r in rows.reviews if r["run_id"] == run["id"] and r["closed_at"] is None}
    for key, task in tasks.items():
        needs = rows.needs.get((run["id"], key), ())
        if task["status"] == "pending" and all(tasks[n]["status"] in ("succeeded", "skipped") for n in needs):
            assert task["generation"] in asked, f"{key} could start"
        assert task["status"] not in ("running", "retrying")


def _succeeded(tasks: Mapping[str, Row]) -> list[str]:
    return [key for key, task in tasks.items() if task["status"] == "succeeded"]
