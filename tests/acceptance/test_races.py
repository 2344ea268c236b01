"""Clients that ask for opposite things at once, and of a run that moves by itself: one wins, the others are told so."""

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import httpx
import pytest

from tests.acceptance.conftest import Running
from tests.scripted_model import Call, Plan, Reply, ScriptedModel, script, tasks_of, text
from tests.service_process import Json, every, finished, start_run
from tests.sizes import sizes

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENTS = 8
AT_ONCE = 10
EMPTY = text("")
NEW_PLAN = text(json.dumps({"strategy": "replan", "tasks": tasks_of({"x": ["0.a"]})}))
ENDS = ("run.succeeded", "run.failed", "run.cancelled")

races = pytest.mark.parametrize("races", sizes(8, 2_000))
Post = Callable[[], Awaitable[httpx.Response]]


class Gates:
    """Holds back one answer to each run, until it is let through."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._arrived: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._opened: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def __call__(self, call: Call) -> Reply:
        self._arrived[call.run_id].set()
        await self._opened[call.run_id].wait()
        return self._reply

    async def reached_by(self, run: Json) -> None:
        async with asyncio.timeout(60):
            await self._arrived[run["id"]].wait()

    def open_for(self, run: Json) -> None:
        self._opened[run["id"]].set()


async def raced(races: int, one: Callable[[random.Random], Awaitable[None]]) -> None:
    """Run the race so many times, some of them side by side; each draws from a seed, which is named when it fails."""
    base = random.randrange(10**6)

    async def seeded(seed: str) -> None:
        try:
            await one(random.Random(seed))
        except AssertionError as error:
            error.add_note(f"the race of seed {seed!r}")
            raise

    for start in range(0, races, AT_ONCE):
        await asyncio.gather(*(seeded(f"{base} {n}") for n in range(start, min(start + AT_ONCE, races))))


async def together(draw: random.Random, requests: Iterable[Post], let_go: Callable[[], None]) -> list[httpx.Response]:
    """Everybody at once, in any order, and somewhere among them what the run waits for."""
    asked = list(requests)
    draw.shuffle(asked)
    among = draw.randint(0, len(asked))
    first = [asyncio.ensure_future(request()) for request in asked[:among]]
    for _ in range(draw.randint(0, 20)):
        await asyncio.sleep(0)  # some of them are on their way, some not yet
    let_go()
    answers = await asyncio.gather(*first, *(request() for request in asked[among:]))
    assert max(answer.status_code for answer in answers) < 500, [answer.text for answer in answers]
    return answers


def post(client: httpx.AsyncClient, run: Json, verb: str, body: Json | None = None) -> Post:
    return lambda: client.post(f"/runs/{run['id']}/{verb}", json=body)


def statuses(answers: Sequence[httpx.Response], verb: str) -> list[int]:
    return sorted(answer.status_code for answer in answers if answer.request.url.path.endswith(verb))


async def ends_of(client: httpx.AsyncClient, run: Json) -> list[str]:
    return [event["type"] async for event in every(client, f"/runs/{run['id']}/events") if event["type"] in ENDS]


async def ended_once(client: httpx.AsyncClient, run: Json, cancels: list[int]) -> Json:
    """The run, which has ended in one way, and agrees with what was said to those who wanted it cancelled."""
    ended = await finished(client, run["id"])
    assert await ends_of(client, run) == [f"run.{ended['status']}"]
    assert cancels.count(202) <= 1
    if ended["status"] == "cancelled":
        assert cancels == [200] * (len(cancels) - 1) + [202]
    else:
        assert ended["status"] == "succeeded"
        assert set(cancels) <= {200, 202, 409}
        assert 202 in cancels or set(cancels) <= {409}
    return ended


@races
async def test_a_cancel_and_the_end_of_the_run(client: httpx.AsyncClient, model: ScriptedModel, races: int) -> None:
    gates = Gates(text("result"))
    model.begin(script({"executor": gates}))

    async def race(draw: random.Random) -> None:
        run = await start_run(client, plan={"tasks": tasks_of({"a": []})})
        await gates.reached_by(run)
        cancels = [post(client, run, "cancel")] * CLIENTS
        answers = await together(draw, cancels, lambda: gates.open_for(run))
        await ended_once(client, run, statuses(answers, "cancel"))

    await raced(races, race)


@races
async def test_a_cancel_and_a_new_plan(client: httpx.AsyncClient, model: ScriptedModel, races: int) -> None:
    gates = Gates(NEW_PLAN)
    model.begin(script({("executor", "b"): EMPTY, "recovery": gates}))
    options = {"max_attempts": 1, "on_failure": "replan", "max_replans": 1}
    plan: Plan = {"a": [], "b": ["a"]}

    async def race(draw: random.Random) -> None:
        run = await start_run(client, plan={"tasks": tasks_of(plan)}, options=options)
        await gates.reached_by(run)
        cancels = [post(client, run, "cancel")] * CLIENTS
        answers = await together(draw, cancels, lambda: gates.open_for(run))
        ended = await ended_once(client, run, statuses(answers, "cancel"))
        assert ended["status"] == "cancelled" or ended["generation"] == 1

    await raced(races, race)


@races
async def test_pauses_resumes_and_a_cancel(client: httpx.AsyncClient, model: ScriptedModel, races: int) -> None:
    gates = Gates(text("result"))
    model.begin(script({("executor", "a"): gates}))

    async def race(draw: random.Random) -> None:
        run = await start_run(client, plan={"tasks": tasks_of({"a": [], "b": ["a"]})})
        await gates.reached_by(run)
        verbs = [*draw.choices(["pause", "resume"], k=CLIENTS - 1), draw.choice(["cancel", "pause"])]
        answers = await together(draw, [post(client, run, verb) for verb in verbs], lambda: gates.open_for(run))
        assert {answer.status_code for answer in answers} <= {200, 202, 409}
        async with asyncio.timeout(60):
            while (now := (await client.get(f"/runs/{run['id']}")).json())["finished_at"] is None:
                if now["status"] == "paused" or "resume" in now["allowed_actions"]:
                    assert (await client.post(f"/runs/{run['id']}/resume")).status_code in (200, 202, 409)
        await ended_once(client, run, statuses(answers, "cancel"))

    await raced(races, race)


@races
async def test_retries_of_a_failed_run(client: httpx.AsyncClient, model: ScriptedModel, races: int) -> None:
    model.begin(script({"executor": [EMPTY, text("at last")]}))

    async def race(draw: random.Random) -> None:
        options = {"max_attempts": 1, "on_failure": "fail"}
        run = await start_run(client, plan={"tasks": tasks_of({"a": []})}, options=options)
        assert (await finished(client, run["id"]))["status"] == "failed"
        answers = await together(draw, [post(client, run, "retry")] * CLIENTS, lambda: None)
        assert statuses(answers, "retry") == [202] + [409] * (CLIENTS - 1)
        assert (await finished(client, run["id"]))["result"] == "at last"
        assert await ends_of(client, run) == ["run.failed", "run.succeeded"]

    await raced(races, race)


@races
async def test_opposite_answers_to_a_review(client: httpx.AsyncClient, model: ScriptedModel, races: int) -> None:
    async def race(draw: random.Random) -> None:
        run = await start_run(client, plan={"tasks": tasks_of({"a": []})}, options={"approval": "plan"})
        async with asyncio.timeout(60):
            while not (reviews := [review async for review in every(client, f"/runs/{run['id']}/reviews")]):
                pass
        verb = f"reviews/{reviews[0]['id']}"
        decisions = ["approve", "reject"] * (CLIENTS // 2)
        given = [post(client, run, verb, {"decision": decision}) for decision in decisions]
        answers = await together(draw, given, lambda: None)
        assert statuses(answers, verb) == [200] + [409] * (CLIENTS - 1)
        (told,) = [answer.json()["answer"]["decision"] for answer in answers if answer.status_code == 200]
        assert (await client.get(f"/runs/{run['id']}/{verb}")).json()["answer"]["decision"] == told
        ended = await finished(client, run["id"])
        assert (ended["status"] == "succeeded") == (told == "approve")
        assert len(await ends_of(client, run)) == 1

    await raced(races, race)


@races
async def test_deletes_of_a_run_that_others_read(
    running: Running, client: httpx.AsyncClient, model: ScriptedModel, races: int
) -> None:
    async def race(draw: random.Random) -> None:
        run = await start_run(client, plan={"tasks": tasks_of({"a": []})})
        await finished(client, run["id"])
        here = f"/runs/{run['id']}"
        deletes: list[Post] = [lambda: client.delete(here)] * (CLIENTS // 2)
        reads: list[Post] = [partial(client.get, path) for path in (here, f"{here}/events", f"{here}/tasks/0.a")]
        waits: list[Post] = [lambda: client.get(here, headers={"Prefer": "wait=1"})]
        answers = await together(draw, [*deletes, *reads, *waits], lambda: None)
        deleted = sorted(answer.status_code for answer in answers if answer.request.method == "DELETE")
        assert deleted == [204] + [404] * (len(deletes) - 1)
        assert {answer.status_code for answer in answers if answer.request.method == "GET"} <= {200, 404}
        assert (await client.get(here)).status_code == 404

    await raced(races, race)
    assert "Traceback" not in running.service.log
    model.begin(script())  # no run is left to be looked at
