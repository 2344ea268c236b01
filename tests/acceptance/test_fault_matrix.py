"""Every fault of the model's endpoint and of its answers, at all four seats: each run ends, and ends as it should."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import Running
from tests.acceptance.looks import calls_at, is_sound, looked_at, run_at
from tests.faults import FAULTS, PLAN, SEATS, End, staged
from tests.scripted_model import Call, Reply, ScriptedModel, error, raw, script, tasks_of, text
from tests.service_process import Json, ended, events, finished

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("name", FAULTS)
async def test_a_run_ends_as_it_should_whichever_seat_meets_a_fault(
    running: Running, model: ScriptedModel, name: str
) -> None:
    fault = FAULTS[name]
    model.begin(staged(fault))
    async with asyncio.TaskGroup() as runs:
        for how, ends in fault.ways.items():
            for seat, end in ends.items():
                runs.create_task(ends_so(running.client, model, (name, seat, how), end))
    await is_sound(running)


async def ends_so(client: httpx.AsyncClient, model: ScriptedModel, place: tuple[str, str, str], end: End) -> None:
    """Have a run meet this fault at this seat in this way; assert that it ends like this."""
    name, seat, how = place
    run = await met(client, name, seat, how)
    calls = calls_at(seat, run, model)
    code = run["error"] and run["error"]["code"]
    assert (seat, how, code, len(calls)) == (seat, how, end.code, end.calls), run["error"]
    tasks = await looked_at(client, run)
    if seat == "executor":
        attempts = (await client.get(f"/runs/{run['id']}/tasks/0.b")).json()["attempts"]
        last = "succeeded" if end.code is None else "failed"
        assert [attempt["status"] for attempt in attempts] == ["failed"] * (end.attempts - 1) + [last]
    if end.code is None:
        begins = {seat: FAULTS[name].begins}
        assert run["result"] == begins.get("synthesizer", "") + "the answer"
        assert tasks["0.b"]["result"] == begins.get("executor", "") + "result of 0.b"


async def met(client: httpx.AsyncClient, name: str, seat: str, how: str) -> Json:
    """A run that meets the fault there, finished."""
    return await finished(client, (await run_at(seat, how, client, model=f"{name}, {seat}, {how}"))["id"])


@pytest.mark.parametrize("seat", SEATS)
async def test_a_request_too_long_for_the_model_is_made_shorter(
    client: httpx.AsyncClient, model: ScriptedModel, seat: str
) -> None:
    name = "16 context too short"
    model.begin(staged(FAULTS[name]))
    first, second = calls_at(seat, await met(client, name, seat, "once"), model)
    assert len(second.text) < len(first.text)


@pytest.mark.parametrize("name", [name for name in FAULTS if name.startswith("29")])
async def test_usage_that_cannot_be_true_lowers_no_count(
    client: httpx.AsyncClient, model: ScriptedModel, name: str
) -> None:
    model.begin(staged(FAULTS[name]))
    used = (await met(client, name, "executor", "always"))["usage"]
    assert used["llm_calls"] == 4
    assert used["input_tokens"] >= 3 * 10  # what the three other calls used
    assert used["output_tokens"] >= 3 * 5


async def test_whatever_usage_is_said_its_cost_can_be_counted(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    def boasts(call: Call) -> Reply:
        count = 10 ** int(call.task_id or 0)
        return text("done", usage={"prompt_tokens": count, "completion_tokens": count})

    model.begin(script({"executor": boasts}))
    plan = {"tasks": tasks_of({str(n): [] for n in range(19)})}
    run = await ended(client, plan=plan, options={"model": "dear", "synthesize": False})
    assert run["status"] == "succeeded", run["error"]
    assert run["usage"]["cost_usd"] >= 2 * (1 + 10 + 100)
    await looked_at(client, run)


# What is left of a run.


async def test_an_endpoint_that_stays_away_ends_the_run_and_leaves_what_was_done(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({("executor", "b"): error(503)}))
    run = await ended(client)
    assert (run["status"], run["error"]["code"], run["error"]["task_key"]) == ("failed", "llm_unavailable", "0.b")
    assert model.by_seat("recovery") == []
    tasks = await looked_at(client, run)
    statuses = {key: task["status"] for key, task in tasks.items()}
    assert statuses == {"0.a": "succeeded", "0.b": "failed", "0.c": "succeeded", "0.d": "cancelled"}


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_task_that_is_refused_for_good_ends_the_run_where_the_goal_says_so(
    client: httpx.AsyncClient, model: ScriptedModel, status: int
) -> None:
    model.begin(script({("executor", "b"): error(status, code="model_not_found")}))
    run = await ended(client, options={"on_failure": "fail"})
    assert (run["status"], run["error"]["code"], run["error"]["task_key"]) == ("failed", "task_failed", "0.b")
    statuses = {key: task["status"] for key, task in (await looked_at(client, run)).items()}
    assert statuses == {"0.a": "succeeded", "0.b": "failed", "0.c": "succeeded", "0.d": "cancelled"}
    assert [event["task_key"] for event in await events(client, run, "task.failed")] == ["0.b"]


async def test_a_task_has_as_many_attempts_as_the_goal_gives_it(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({("executor", "b"): text(None)}))
    run = await ended(client, options={"max_attempts": 2, "on_failure": "fail"})
    assert (run["status"], run["error"]["code"], run["error"]["task_key"]) == ("failed", "task_failed", "0.b")
    assert len(model.calls_for("0.b", run_id=run["id"])) == 2


async def test_a_synthesis_that_stays_unusable_fails_the_run_and_keeps_the_results(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({"synthesizer": text(None)}))
    run = await ended(client)
    assert (run["status"], run["error"]["code"]) == ("failed", "synthesis_failed")
    assert {task["status"] for task in (await looked_at(client, run)).values()} == {"succeeded"}


# What is left of the service.


def most_memory(running: Running) -> int:
    """The most bytes that the service has held so far."""
    status = Path(f"/proc/{running.service.pid}/status").read_text()
    (kibibytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kibibytes) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory as Linux tells it")
async def test_a_body_of_50_mib_at_every_seat_takes_less_than_20_mib(running: Running, model: ScriptedModel) -> None:
    rewords = text('{"strategy": "retry", "description": "Do b in another way."}')
    fails_once = [error(400), error(400), text("at last")]  # the first of them is what the body stands in for
    usual = script({("executor", "b"): fails_once, "recovery": rewords}, plan=PLAN)
    model.begin(script({("executor", "b"): fails_once[1:], "recovery": rewords}, plan=PLAN))
    await ended(running.client)
    before = most_memory(running)
    body = raw(bytes(50 * 2**20), headers={"Content-Type": "application/json"})
    model.begin(lambda call: body if call.turn == 0 else usual(call))
    run = await ended(running.client)
    assert [len(model.by_seat(seat)) for seat in SEATS] == [2, 5, 2, 2]
    assert run["status"] == "succeeded"
    assert most_memory(running) - before < 20 * 2**20
