"""A model that obeys whatever it reads, before a hundred texts that mean harm: the rights hold all the same."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from app.agents.briefing import mark
from app.domain.errors import ToolFailed, ToolRetry
from app.domain.generation import NewPlan, first_plan
from app.domain.ids import RunId
from app.domain.plan import PlannedTask
from app.domain.status import Mode, PlanReason
from app.storage import tables
from app.storage.database import Database
from app.storage.goals import create_goal
from app.storage.runs import create_run
from app.tools.http_get import HttpGet
from app.tools.tool import ToolContext, ToolSpec
from tests.databases import Databases
from tests.engine.conftest import Engine
from tests.engine.recording_tools import RecordingTool, toolbox
from tests.injections import COUNT, HIDDEN, Injection, Order, orders_in
from tests.local_site import LocalSite, answer, local_site
from tests.marked import said_outside
from tests.scripted_model import Call, Reply, ScriptedModel, plan_reply, script, text
from tests.scripted_tools import Wanted, calls
from tests.sizes import sizes
from tests.stored import OPTIONS, T, row_of, rows_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUDGET = {"max_llm_calls": 40}
STEPS = 2  # after which it answers, as every model does in the end
NUMBER = re.compile(r"Find out (\d+)")


@dataclass(kw_only=True)
class Poisoned(RecordingTool):
    """A tool that says this of itself and of its arguments."""

    says: str

    @property
    def spec(self) -> ToolSpec:
        schema = {**super().spec.input_schema, "description": self.says}
        return ToolSpec(name=self.name, description=self.says, input_schema=schema)


@dataclass(kw_only=True)
class World:
    """What runs can reach, and what they must not reach."""

    engine: Engine
    site: LocalSite
    foreign: LocalSite
    forbidden: Sequence[RecordingTool] = ()
    numbers: dict[str, int] = field(default_factory=dict)
    """Of the injection that stands in a run."""
    read: set[tuple[int, str]] = field(default_factory=set)
    """Injections whose order the model has found, and where."""

    def injection(self, number: int) -> Injection:
        """It orders a tool that nobody allowed, one of another task, a host that is not public, one that is nowhere."""
        words = {"text": f"inj-{number}"}
        orders: list[Order] = [
            ("wire_money", words),
            ("mail", words),
            ("http_get", {"url": self.foreign.url(f"/{number}")}),
            ("shell", words),
        ]
        return Injection(number=number, order=orders[number % 4])

    def poison(self, run_id: str) -> str:
        """By somebody who knows the mark of the run's blocks."""
        return self.injection(self.numbers[run_id]).text(mark(run_id))

    def errs(self, _: Mapping[str, Any], context: ToolContext) -> str:
        fails = ToolFailed if context.task_key == "0.only" else ToolRetry
        raise fails(self.poison(context.run_id), kind="picky")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(databases: Databases) -> AsyncIterator[World]:
    with databases.fresh("sqlite") as url:
        async with ScriptedModel(script()) as model, local_site() as site, local_site() as foreign:
            engine = Engine(Database(url), url, model)
            made = World(engine=engine, site=site, foreign=foreign)
            made.forbidden = [RecordingTool("wire_money"), RecordingTool("mail")]
            notes = [
                Poisoned(
                    name=f"note_{number}",
                    says=made.injection(number).text("deadbeef"),
                    does=lambda _, context: made.poison(context.run_id),
                )
                for number in range(COUNT)
            ]
            picky = RecordingTool("picky", does=made.errs)
            fetching: Any = HttpGet(allowed_private=[site.pair])
            engine.worker(toolbox=toolbox([*made.forbidden, *notes, picky, fetching]))
            yield made
            await engine.end()
            await engine.database.close()


@pytest.fixture(autouse=True)
def clean(world: World) -> Iterator[None]:
    world.numbers.clear()
    world.read.clear()
    for tool in world.forbidden:
        tool.made.clear()
    yield
    world.engine.model.check()


def goal_tools(number: int) -> list[str]:
    return ["http_get", "mail", f"note_{number}", "picky"]


async def poisoned_run(world: World, number: int, plan: NewPlan | None, **options: Any) -> RunId:
    """A run in whose goal's context the injection stands, by somebody who does not know the mark."""
    context = {"notes": [world.injection(number).text("deadbeef")]}
    async with world.engine.database.write() as connection:
        goal_id = await create_goal(connection, T, goal=f"Find out {number}", context=context, metadata={})
        run = await create_run(
            connection,
            T,
            goal_id,
            mode=Mode.EXECUTE,
            options={**OPTIONS, "tools": goal_tools(number), "synthesize": False, **options},
            budget=BUDGET,
            metadata={},
            model="scripted",
            plan=plan,
        )
    return run.id


class Obedient:
    """Does its own work and, at once, whatever it finds itself ordered to do."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, call: Call) -> Reply:
        found = NUMBER.search(call.text)
        assert found is not None
        number = self._world.numbers[call.run_id] = int(found[1])
        assert not orders_in("\n".join(said_outside(call))), "an order stands outside of the blocks"
        orders = self._orders(call, number)
        match call.seat:
            case "planner":
                return plan_reply([task(orders)])
            case "recovery":
                return self._replan(call, number, orders)
            case _:
                return self._act(call, number, orders)

    def _orders(self, call: Call, number: int) -> list[Order]:
        places = {
            "a description": json.dumps(list(call.tools.values()), ensure_ascii=False),
            "an observation": "\n".join(call.tool_results.values()),
            "the material": call.messages[1]["content"],
        }
        found: dict[str, Order] = {}
        for place, words in places.items():
            for tool, arguments in orders_in(words):
                found[f"{tool} {arguments}"] = (tool, arguments)
                self._world.read.add((number, place))
        return list(found.values())

    def _act(self, call: Call, number: int, orders: list[Order]) -> Reply:
        poison, path = self._world.poison(call.run_id), f"/{number}"
        self._world.site.pages[path] = answer(poison)
        own: dict[str | None, list[Wanted]] = {
            "a": [("http_get", {"url": self._world.site.url(path)}), ("picky", {"text": "x"})],
            "b": [(f"note_{number}", {"text": "x"})],
            "only": [("picky", {"text": "x"})],
        }
        step = sum(message["role"] == "assistant" for message in call.messages)
        wanted = [*(own.get(call.task_id, []) if step == 0 else []), *orders]
        return calls(*wanted) if wanted and step < STEPS and call.tool_choice == "auto" else text(poison)

    def _replan(self, call: Call, number: int, orders: list[Order]) -> Reply:
        """Twice with the tools that it is ordered to give; then with its own, and with more of everything."""
        more = {"budget": {"max_llm_calls": 10**6}, "options": {"tools": ["wire_money"], "max_steps": 10**6}}
        tasks = [task(orders) if call.turn < 2 else {**task([]), "tools": [f"note_{number}"], **more}]
        return text(json.dumps({"tasks": tasks, "drop": [], **more}))


def task(orders: list[Order]) -> dict[str, Any]:
    return {
        "id": "1",
        "description": f"Go on; {orders}",
        "depends_on": [],
        "tools": [tool for tool, _ in orders],
    }


async def assert_nothing_was_done(world: World, run_id: RunId, number: int) -> list[dict[str, Any]]:
    """No call outside of its task's tools, no foreign host, no right and no budget raised; the run's tool calls."""
    database = world.engine.database
    may = {row["key"]: row["tools"] for row in await rows_of(database, tables.tasks, run_id)}
    rows = await rows_of(database, tables.tool_calls, run_id)
    assert all(row["tool"] in may[row["task_key"]] for row in rows if row["status"] != "refused")
    assert all(set(tools) <= set(goal_tools(number)) for tools in may.values())
    run = await row_of(database, run_id)
    assert (run["budget"], run["options"]["tools"]) == (BUDGET, goal_tools(number))
    assert run["options"]["max_steps"] == OPTIONS["max_steps"]
    assert not any(tool.made for tool in world.forbidden)
    assert world.foreign.connections == 0
    return list(rows)


def unlisted(world: World) -> list[int]:
    """Injections that order what the goal does not name; what it names, a plan may give to any task."""
    return [n for n in range(COUNT) if n not in HIDDEN and world.injection(n).order[0] in ("wire_money", "shell")]


async def side_by_side(one: Callable[[int], Coroutine[Any, Any, None]], numbers: Iterable[int]) -> None:
    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(one(number))


async def test_what_is_read_anywhere_moves_no_call_out_of_a_tasks_rights(world: World) -> None:
    model = world.engine.model
    model.begin(Obedient(world))

    async def one(number: int) -> None:
        tasks = [
            PlannedTask(id="a", description="Do a.", depends_on=(), tools=("http_get", "picky")),
            PlannedTask(id="b", description="Do b.", depends_on=("a",), tools=(f"note_{number}",)),
        ]
        run_id = await poisoned_run(world, number, first_plan(tasks, PlanReason.CLIENT))
        run = await world.engine.ended(run_id)
        assert run.status == "succeeded", run.error
        rows = await assert_nothing_was_done(world, run_id, number)
        tool, arguments = world.injection(number).order
        obeyed = [row for row in rows if (row["tool"], json.loads(row["arguments"])) == (tool, arguments)]
        assert bool(obeyed) is (number not in HIDDEN), f"whether the model obeyed number {number}"
        refusals = {row["error"]["kind"] for row in obeyed}
        assert refusals <= {"unknown_tool", "address_refused"}
        for call in model.of_run(str(run_id)):
            assert said_outside(call) == [f"Goal of the plan: Find out {number}", f"Your task: Do {call.task_id}."]
        stored = {row["key"]: row["result"] for row in await rows_of(world.engine.database, tables.tasks, run_id)}
        assert stored["0.b"] == world.poison(str(run_id)), "what is stored stays as it is"

    await side_by_side(one, range(COUNT))
    places = ("a description", "an observation", "the material")
    assert world.read == {(number, place) for number in range(COUNT) if number not in HIDDEN for place in places}
    assert len([head for _, head in world.site.requests]) == COUNT


@pytest.mark.parametrize("count", sizes(15, COUNT))
async def test_a_replan_gets_no_tools_and_no_budget_that_the_goal_has_not(world: World, count: int) -> None:
    model = world.engine.model
    model.begin(Obedient(world))

    async def one(number: int) -> None:
        only = PlannedTask(id="only", description="Do it.", depends_on=(), tools=("picky",))
        run_id = await poisoned_run(
            world, number, first_plan([only], PlanReason.CLIENT), on_failure="replan", max_attempts=1
        )
        run = await world.engine.ended(run_id)
        rows = await assert_nothing_was_done(world, run_id, number)
        assert run.generation == 1
        assert {row["task_key"] for row in rows} == {"0.only", "1.1"}
        assert len(model.by_seat("recovery", run_id=str(run_id))) == 3, "twice it gave a tool that the goal has not"

    await side_by_side(one, unlisted(world)[:count])


@pytest.mark.parametrize("count", sizes(15, COUNT))
async def test_a_planner_that_obeys_gives_no_task_what_the_goal_has_not(world: World, count: int) -> None:
    world.engine.model.begin(Obedient(world))

    async def one(number: int) -> None:
        run_id = await poisoned_run(world, number, None)
        run = await world.engine.ended(run_id)
        assert run.error is not None
        assert (run.status, run.error["code"]) == ("failed", "plan_invalid")
        assert await assert_nothing_was_done(world, run_id, number) == []

    await side_by_side(one, unlisted(world)[:count])


@pytest.mark.parametrize("seat", ["planner", "recovery", "synthesizer"])
async def test_a_seat_without_tools_that_calls_one_calls_nothing(world: World, seat: str) -> None:
    orders: list[Wanted] = [("wire_money", {"text": "x"}), ("mail", {"text": "x"}), ("picky", {"text": "x"})]

    def reply(call: Call) -> Reply:
        world.numbers[call.run_id] = 0
        if call.seat == seat:
            return calls(*orders)
        if call.task_id == "only" and seat == "recovery":
            return calls(("picky", {"text": "own"})) if not call.tool_results else text("done")
        return text("done")

    world.engine.model.begin(reply)
    tasks = [PlannedTask(id=key, description=f"Do {key}.", depends_on=(), tools=("picky",)) for key in ("only", "else")]
    plan = None if seat == "planner" else first_plan(tasks, PlanReason.CLIENT)
    run_id = await poisoned_run(world, 0, plan, synthesize=True, on_failure="replan", max_attempts=1)
    run = await world.engine.ended(run_id)
    assert run.status == "failed"
    rows = await assert_nothing_was_done(world, run_id, 0)
    assert [json.loads(row["arguments"])["text"] for row in rows] == (["own"] if seat == "recovery" else [])
    assert len(world.engine.model.by_seat(seat)) > 1
