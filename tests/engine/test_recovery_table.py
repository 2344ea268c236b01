"""Every strategy at every place of a diamond, a chain and a fan: the exact calls, and what they come to."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from app.domain import recovery
from app.domain.generation import first_plan
from app.domain.ids import RunId
from app.domain.plan import PlannedTask
from app.domain.status import Mode, PlanReason, RunStatus
from app.storage import tables
from app.storage.database import Database
from app.storage.reviews import answer_review, list_reviews
from app.storage.runs import create_run, lock_run
from tests.engine.conftest import Engine
from tests.scripted_model import DIAMOND, Call, Plan, Reply, ScriptedModel, script, text
from tests.stored import OPTIONS, T, make_goal, rows_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAIN: Plan = {"a": [], "b": ["a"], "c": ["b"]}
TWO_CHAINS: Plan = {"a": [], "x": [], "b": ["a"], "y": ["x"], "c": ["b"], "z": ["y"]}
FAN: Plan = {"a": [], "b": ["a"], "c": ["a"], "d": ["a"]}
PLACES: Mapping[str, tuple[Plan, Sequence[str]]] = {
    "first of a diamond": (DIAMOND, ["a"]),
    "middle of a diamond": (DIAMOND, ["c"]),
    "last of a diamond": (DIAMOND, ["d"]),
    "two at once in a diamond": (DIAMOND, ["b", "c"]),
    "first of a chain": (CHAIN, ["a"]),
    "middle of a chain": (CHAIN, ["b"]),
    "last of a chain": (CHAIN, ["c"]),
    "two at once in two chains": (TWO_CHAINS, ["b", "y"]),
    "first of a fan": (FAN, ["a"]),
    "middle of a fan": (FAN, ["c"]),
    "last of a fan": (FAN, ["d"]),
    "two at once in a fan": (FAN, ["b", "d"]),
}
STRATEGIES = (
    "retry",
    "skip",
    "replan",
    "auto -> retry",
    "auto -> skip",
    "auto -> replan",
    "fail",
    "review -> retry",
    "review -> skip",
    "review -> replan",
    "review -> supply",
    "review -> fail",
    "not critical",
)
GATHER_MS = 3_000
"""Long enough that what fails together is told together on a machine that is busy with other things."""

Groups = list[list[str]]
"""What is called, in order; the calls of a group run side by side."""


@dataclass(kw_only=True)
class Expected:
    groups: Groups
    statuses: Mapping[str, str]
    code: str | None


@dataclass
class ByHand:
    """A run worked out in rounds: each round makes every call that can be made, and then has all the answers."""

    needs: dict[str, tuple[str, ...]]
    failing: set[str]
    status: dict[str, str] = field(default_factory=dict)
    groups: Groups = field(default_factory=list)
    code: str | None = None
    generation: int = 0

    def ready(self) -> list[str]:
        done = ("succeeded", "skipped")
        waiting = [k for k, s in self.status.items() if s == "pending"]
        return [k for k in waiting if all(self.status[d] in done for d in self.needs[k])]

    def behind(self, keys: Collection[str]) -> set[str]:
        found = set(keys)
        while more := {k for k, d in self.needs.items() if found.intersection(d)} - found:
            found |= more
        return found - set(keys)

    def replan(self, keys: Sequence[str]) -> None:
        """The new plan is always `m`, and `n` after it."""
        self.status |= dict.fromkeys(self.behind(keys), "superseded")
        self.generation += 1
        first, second = f"{self.generation}.m", f"{self.generation}.n"
        self.needs |= {first: (), second: (first,)}
        self.status |= dict.fromkeys((first, second), "pending")

    def mended(self, how: str, keys: Sequence[str]) -> None:
        if how == "replan":
            self.replan(keys)
        elif how != "fail":
            self.status |= dict.fromkeys(keys, {"retry": "pending", "skip": "skipped", "supply": "succeeded"}[how])


def by_hand(plan: Plan, failing: Sequence[str], strategy: str) -> Expected:
    policy, _, how = strategy.partition(" -> ")
    how = "skip" if policy == "not critical" else how or policy
    run = ByHand({f"0.{k}": tuple(f"0.{d}" for d in before) for k, before in plan.items()}, {f"0.{k}" for k in failing})
    run.status = dict.fromkeys(run.needs, "pending")
    to_ask: list[list[str]] = []  # each a question to recovery
    with_person: list[str] = []
    while not run.code:
        at_once = to_ask if policy == "retry" else to_ask[:1]
        tasks, to_ask = run.ready(), to_ask[len(at_once) :]
        if not tasks and not at_once:
            if not with_person:
                break
            asked, with_person = with_person, []
            if how == "replan":
                run.status |= dict.fromkeys(asked, "failed")
                to_ask = [[k] for k in asked]
            else:
                run.mended(how, asked)
                if how == "fail":
                    run.status |= dict.fromkeys(asked, "failed")
                    run.code = "task_failed"
            continue
        shared = [f"recovery {q[0]}" if len(q) == 1 else "recovery" for q in at_once]
        run.groups.append(sorted(tasks + shared))
        failed = [k for k in tasks if k in run.failing]
        run.failing -= set(failed)
        run.status |= {k: "failed" if k in failed else "succeeded" for k in tasks}
        for question in at_once:
            run.mended(how, question if how == "replan" else question[:1])
            if len(question) > 1 and how != "replan":
                to_ask.append(question[1:])
        if failed and policy == "fail":
            run.code = "task_failed"
        elif policy in ("skip", "not critical"):
            run.mended("skip", failed)
        elif policy == "review":
            with_person += failed
            run.status |= dict.fromkeys(failed, "awaiting_review")
        elif failed:
            to_ask += [[k] for k in failed] if policy == "retry" else [failed]
    if run.code:
        run.status |= {k: "cancelled" for k, s in run.status.items() if s == "pending"}
    else:
        run.groups.append(["synthesizer"])
    return Expected(groups=run.groups, statuses=run.status, code=run.code)


# The rounds above, pinned by a few that are written out.
WRITTEN_OUT: Sequence[tuple[str, str, Groups, str]] = [
    (
        "middle of a diamond",
        "retry",
        [["0.a"], ["0.b", "0.c"], ["recovery 0.c"], ["0.c"], ["0.d"], ["synthesizer"]],
        "a succeeded, b succeeded, c succeeded, d succeeded",
    ),
    (
        "middle of a diamond",
        "replan",
        [["0.a"], ["0.b", "0.c"], ["recovery 0.c"], ["1.m"], ["1.n"], ["synthesizer"]],
        "a succeeded, b succeeded, c failed, d superseded, m succeeded, n succeeded",
    ),
    (
        "two at once in a diamond",
        "auto -> replan",
        [["0.a"], ["0.b", "0.c"], ["recovery"], ["1.m"], ["1.n"], ["synthesizer"]],
        "a succeeded, b failed, c failed, d superseded, m succeeded, n succeeded",
    ),
    (
        "two at once in two chains",
        "auto -> retry",
        [
            ["0.a", "0.x"],
            ["0.b", "0.y"],
            ["recovery"],
            ["0.b", "recovery 0.y"],
            ["0.c", "0.y"],
            ["0.z"],
            ["synthesizer"],
        ],
        "a succeeded, x succeeded, b succeeded, y succeeded, c succeeded, z succeeded",
    ),
    (
        "two at once in a fan",
        "retry",
        [["0.a"], ["0.b", "0.c", "0.d"], ["recovery 0.b", "recovery 0.d"], ["0.b", "0.d"], ["synthesizer"]],
        "a succeeded, b succeeded, c succeeded, d succeeded",
    ),
    (
        "two at once in a diamond",
        "review -> replan",
        [["0.a"], ["0.b", "0.c"], ["recovery 0.b"], ["1.m", "recovery 0.c"], ["1.n", "2.m"], ["2.n"], ["synthesizer"]],
        "a succeeded, b failed, c failed, d superseded, m succeeded, n succeeded, m succeeded, n succeeded",
    ),
    ("first of a chain", "fail", [["0.a"]], "a failed, b cancelled, c cancelled"),
    (
        "last of a chain",
        "auto -> skip",
        [["0.a"], ["0.b"], ["0.c"], ["recovery 0.c"], ["synthesizer"]],
        "a succeeded, b succeeded, c skipped",
    ),
    (
        "first of a fan",
        "not critical",
        [["0.a"], ["0.b", "0.c", "0.d"], ["synthesizer"]],
        "a skipped, b succeeded, c succeeded, d succeeded",
    ),
]


@pytest.mark.parametrize(("place", "strategy", "groups", "statuses"), WRITTEN_OUT)
async def test_what_is_worked_out_is_what_is_written_out(
    place: str, strategy: str, groups: Groups, statuses: str
) -> None:
    expected = by_hand(*PLACES[place], strategy)
    assert expected.groups == groups
    assert ", ".join(f"{key.split('.')[1]} {status}" for key, status in expected.statuses.items()) == statuses


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(database_url: str) -> AsyncIterator[Engine]:
    """One worker for all tests of this file."""
    async with ScriptedModel(script()) as model:
        engine = Engine(Database(database_url), database_url, model)
        engine.worker()
        yield engine
        await engine.end()
        await engine.database.close()


@pytest.fixture
def engine(serving: Engine) -> Iterator[Engine]:
    yield serving
    serving.model.check()


@pytest.fixture
def database(serving: Engine) -> Database:
    return serving.database


class Room:
    """The model of one run: it answers a group when all of it has been asked.

    Of two failures the second waits until the first is stored: they are asked about in their order.
    """

    def __init__(self, engine: Engine, run_id: RunId, failing: Sequence[str], strategy: str, groups: Groups) -> None:
        self._engine = engine
        self._run_id = run_id
        self._failing = [f"0.{k}" for k in failing]
        self._how = strategy.partition(" -> ")[2] or strategy
        self._ends = [sum(map(len, groups[: n + 1])) for n in range(len(groups))]
        self._asked = 0

    async def __call__(self, call: Call) -> Reply:
        self._asked += 1
        number = self._asked
        self._engine.model.note_change()
        end = next((end for end in self._ends if number <= end), number)
        await self._engine.model.until(lambda: self._asked >= end, within_seconds=15)
        if call.seat == "synthesizer":
            return text("the answer")
        if call.seat == "recovery":
            return self._recovery(number)
        if call.task_key not in self._failing or call.turn > 0:
            return text(f"result of {call.task_key}")
        before = self._failing[: self._failing.index(call.task_key)]
        while await self._failures() < len(before):  # noqa: ASYNC110 - the rows tell
            await asyncio.sleep(0.02)
        return text("")

    def _recovery(self, number: int) -> Reply:
        tasks = [
            {"id": "m", "description": f"Do m ({number}).", "depends_on": []},
            {"id": "n", "description": f"Do n ({number}).", "depends_on": ["m"]},
        ]
        answer = {"strategy": self._how, "description": "Do it in another way.", "tasks": tasks, "drop": []}
        return text(json.dumps(answer))

    async def _failures(self) -> int:
        events = await rows_of(self._engine.database, tables.events, self._run_id)
        return sum(event["type"] == "task.failed" for event in events)


async def begin(database: Database, plan: Plan, failing: Sequence[str], strategy: str) -> RunId:
    planned = [
        PlannedTask(
            id=i,
            description=f"Do {i}.",
            depends_on=tuple(before),
            critical=strategy != "not critical" or i not in failing,
        )
        for i, before in plan.items()
    ]
    on_failure = "auto" if strategy == "not critical" else strategy.partition(" -> ")[0]
    goal_id = await make_goal(database)
    async with database.write() as connection:
        run = await create_run(
            connection,
            T,
            goal_id,
            mode=Mode.EXECUTE,
            options={**OPTIONS, "on_failure": on_failure, "max_attempts": 1},
            budget={},
            metadata={},
            model="scripted",
            plan=first_plan(planned, PlanReason.CLIENT),
        )
        return run.id


async def answer_all(database: Database, run_id: RunId, decision: str) -> None:
    """Answer whatever the run asks, all of it in one transaction."""
    answer: dict[str, Any] = {"decision": decision}
    if decision == "supply":
        answer["result"] = "supplied"
    async with database.write() as connection:
        for review in await list_reviews(connection, T, run_id, limit=100):
            run = await lock_run(connection, T, run_id)
            assert run is not None
            if review.answered_at is None:
                await answer_review(connection, run, review, answer)
        await database.announce(connection, run_id)


def named(call: Call) -> str:
    if call.seat == "recovery":
        return f"recovery {call.task_key}" if call.task_key else "recovery"
    return call.task_key or call.seat


def in_groups(order: Sequence[str], like: Groups) -> Groups:
    """The calls cut as the expected ones are; what is left over makes a group of its own."""
    groups, left = [], list(order)
    for size in map(len, like):
        groups.append(sorted(left[:size]))
        left = left[size:]
    return [*groups, left] if left else groups


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_exactly_the_expected_calls_are_made_at_every_place(
    engine: Engine, database: Database, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "GATHER_MS", GATHER_MS)
    expected = {place: by_hand(plan, failing, strategy) for place, (plan, failing) in PLACES.items()}
    runs: dict[str, RunId] = {}
    rooms: dict[str, Room] = {}
    all_begun = asyncio.Event()

    async def reply(call: Call) -> Reply:
        await all_begun.wait()
        return await rooms[call.run_id](call)

    engine.model.begin(reply)
    for place, (plan, failing) in PLACES.items():
        runs[place] = await begin(database, plan, failing, strategy)
        rooms[str(runs[place])] = Room(engine, runs[place], failing, strategy, expected[place].groups)
    all_begun.set()
    if strategy.startswith("review"):
        for run_id in runs.values():
            await engine.until(lambda run: run.status is RunStatus.AWAITING_REVIEW, run_id)
            await answer_all(database, run_id, strategy.partition(" -> ")[2])
    found: dict[str, Expected] = {}
    for place, run_id in runs.items():
        run = await engine.ended(run_id)
        order = [named(call) for call in engine.model.of_run(str(run_id))]
        tasks = await rows_of(database, tables.tasks, run_id)
        found[place] = Expected(
            groups=in_groups(order, expected[place].groups),
            statuses={task["key"]: task["status"] for task in sorted(tasks, key=lambda task: task["position"])},
            code=run.error["code"] if run.error else None,
        )
        assert run.result == (None if run.error else "the answer")
        await what_had_succeeded_is_not_called_again(database, run_id)
    assert found == expected


async def what_had_succeeded_is_not_called_again(database: Database, run_id: RunId) -> None:
    """What had succeeded when the first task failed was called once, and before that."""
    events = await rows_of(database, tables.events, run_id)
    types = [event["type"] for event in events]
    failed_at = types.index("task.failed")
    succeeded = {event["task_key"] for event in events[:failed_at] if event["type"] == "task.succeeded"}
    started = Counter(event["task_key"] for event in events if event["type"] == "task.started")
    assert {key: started[key] for key in succeeded} == dict.fromkeys(succeeded, 1)
    again = [event["task_key"] for event in events[failed_at:] if event["type"] == "task.started"]
    assert succeeded.isdisjoint(again)
