"""What becomes of a run when the model's endpoint or its answers are at fault."""

import asyncio

import httpx
import pytest

from tests.scripted_model import Reply, ScriptedModel, error, raw, reset, script, text, verbatim, wire
from tests.service_process import Json, ended, events, finished, start_run, tasks_by_key

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRANSPORT_FAULTS = {
    "429": error(429, code="rate_limit_exceeded"),
    "429 with Retry-After": error(429, headers={"Retry-After": "0"}),
    "408": error(408),
    "409": error(409),
    "500": error(500),
    "502 page": raw(b"<html>Bad gateway</html>", status=502, headers={"Content-Type": "text/html"}),
    "503": error(503),
    "529": error(529),
    "reset before headers": reset(),
    "reset in the body": text("cut off").cut(body_bytes=30),
    "no HTTP": wire(b"220 ready\r\n\r\n"),
    "empty body": raw(b"", headers={"Content-Type": "application/json"}),
    "truncated JSON": raw(b'{"id": "chatcmpl-1", "choices": [{"ind', headers={"Content-Type": "application/json"}),
    "no choices": verbatim({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []}),
    "an error in a 200": verbatim({"error": {"message": "upstream is away", "code": 502}}),
    "page in a 200": raw(b"<html>Welcome</html>", headers={"Content-Type": "text/html"}),
}

REFUSED = verbatim(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": None, "refusal": "I will not."},
            }
        ],
        "usage": None,
    }
)

SPOILED_ANSWERS = {
    "no content": text(None),
    "empty content": text(""),
    "cut off by length": text("half a senten", finish_reason="length"),
}


@pytest.mark.parametrize("fault", TRANSPORT_FAULTS.values(), ids=TRANSPORT_FAULTS.keys())
async def test_a_transport_fault_is_tried_again_at_every_seat_and_uses_no_attempt(
    client: httpx.AsyncClient, model: ScriptedModel, fault: Reply
) -> None:
    well = script()
    model.begin(lambda call: fault if call.turn == 0 else well(call))
    run = await ended(client)
    assert (run["status"], run["result"]) == ("succeeded", "the answer")
    assert sorted(model.order(run_id=run["id"])) == sorted(["planner", "0.a", "0.b", "0.c", "0.d", "synthesizer"] * 2)
    task = (await client.get(f"/runs/{run['id']}/tasks/0.b")).json()
    assert [attempt["status"] for attempt in task["attempts"]] == ["succeeded"]


async def test_an_endpoint_that_stays_away_fails_the_run_after_eight_tries(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({("executor", "b"): error(503)}))
    run = await ended(client)
    assert (run["status"], run["error"]["code"]) == ("failed", "llm_unavailable")
    assert len(model.calls_for("0.b", run_id=run["id"])) == 8
    tasks = await tasks_by_key(client, run["id"])
    assert {key: tasks[key]["status"] for key in ("0.a", "0.c", "0.d")} == {
        "0.a": "succeeded",
        "0.c": "succeeded",
        "0.d": "cancelled",
    }


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_fail_the_run_at_once(
    client: httpx.AsyncClient, model: ScriptedModel, status: int
) -> None:
    model.begin(script({"planner": error(status)}))
    run = await ended(client)
    assert (run["status"], run["error"]["code"]) == ("failed", "llm_auth_failed")
    assert model.order(run_id=run["id"]) == ["planner"]


async def test_a_long_retry_after_is_stored_and_does_not_keep_a_cancel_waiting(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({("executor", "a"): error(429, headers={"Retry-After": "3600"})}))
    run = await start_run(client)
    task = await task_once(client, run, "0.a", "retrying")
    assert task["next_attempt_at"] > task["started_at"]
    await client.post(f"/runs/{run['id']}/cancel")
    assert (await finished(client, run["id"]))["status"] == "cancelled"
    assert len(model.calls_for("0.a", run_id=run["id"])) == 1


async def task_once(client: httpx.AsyncClient, run: Json, key: str, status: str) -> Json:
    """The task once it stands there."""
    async with asyncio.timeout(60):
        while True:
            response = await client.get(f"/runs/{run['id']}/tasks/{key}")
            if response.status_code == 200 and response.json()["status"] == status:
                task: Json = response.json()
                return task
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_request_that_is_refused_for_good_fails_its_task_and_the_run(
    client: httpx.AsyncClient, model: ScriptedModel, status: int
) -> None:
    model.begin(script({("executor", "b"): error(status, code="model_not_found")}))
    run = await ended(client)
    assert (run["status"], run["error"]["code"], run["error"]["task_key"]) == ("failed", "task_failed", "0.b")
    assert len(model.calls_for("0.b", run_id=run["id"])) == 1
    tasks = await tasks_by_key(client, run["id"])
    assert {key: task["status"] for key, task in tasks.items()} == {
        "0.a": "succeeded",
        "0.b": "failed",
        "0.c": "succeeded",
        "0.d": "cancelled",
    }
    assert [event["task_key"] for event in await events(client, run, "task.failed")] == ["0.b"]


@pytest.mark.parametrize("spoiled", SPOILED_ANSWERS.values(), ids=SPOILED_ANSWERS.keys())
async def test_a_spoiled_answer_is_an_attempt_and_the_next_one_may_do(
    client: httpx.AsyncClient, model: ScriptedModel, spoiled: Reply
) -> None:
    model.begin(script({("executor", "b"): [spoiled, text("better")]}))
    run = await ended(client)
    assert run["status"] == "succeeded"
    task = (await client.get(f"/runs/{run['id']}/tasks/0.b")).json()
    assert (task["result"], [attempt["status"] for attempt in task["attempts"]]) == ("better", ["failed", "succeeded"])


async def test_a_task_whose_attempts_are_used_up_fails_the_run(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({("executor", "b"): text(None)}))
    run = await ended(client, options={"max_attempts": 2})
    assert (run["status"], run["error"]["code"], run["error"]["task_key"]) == ("failed", "task_failed", "0.b")
    assert len(model.calls_for("0.b", run_id=run["id"])) == 2


async def test_a_refusal_is_not_asked_again(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({("executor", "b"): REFUSED}))
    run = await ended(client)
    assert (run["status"], run["error"]["code"]) == ("failed", "task_failed")
    assert len(model.calls_for("0.b", run_id=run["id"])) == 1


async def test_a_planner_that_refuses_fails_the_run_plan_refused(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({"planner": REFUSED}))
    run = await ended(client)
    assert (run["status"], run["error"]["code"]) == ("failed", "plan_refused")
    assert model.order(run_id=run["id"]) == ["planner"]


async def test_a_synthesis_that_stays_unusable_fails_the_run_and_keeps_the_results(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({"synthesizer": text(None)}))
    run = await ended(client)
    assert (run["status"], run["error"]["code"]) == ("failed", "synthesis_failed")
    assert model.order(run_id=run["id"]).count("synthesizer") == 3
    assert {task["status"] for task in (await tasks_by_key(client, run["id"])).values()} == {"succeeded"}


async def test_text_that_no_database_takes_is_stored_without_it(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({("executor", "d"): text("nul \0, half a pair \ud800, \u202e turned")}))
    run = await ended(client)
    assert run["status"] == "succeeded"
    result = (await tasks_by_key(client, run["id"]))["0.d"]["result"]
    assert result == "nul \ufffd, half a pair \ufffd, \u202e turned"


async def test_an_answer_that_hangs_is_cut_at_the_tasks_time_limit(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({("executor", "b"): [Reply(hangs=True), text("in time")]}))
    run = await ended(client, options={"task_timeout_seconds": 1})
    assert run["status"] == "succeeded"
    task = (await client.get(f"/runs/{run['id']}/tasks/0.b")).json()
    assert [attempt["status"] for attempt in task["attempts"]] == ["failed", "succeeded"]
    assert [call.disconnected for call in model.calls_for("0.b", run_id=run["id"])] == [True, False]


async def test_an_answer_that_drips_is_cut_at_the_tasks_time_limit(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({("executor", "b"): [text("x" * 1_000).dripping(0.1), text("in time")]}))
    run = await ended(client, options={"task_timeout_seconds": 1})
    assert run["status"] == "succeeded"
    task = (await client.get(f"/runs/{run['id']}/tasks/0.b")).json()
    assert [attempt["status"] for attempt in task["attempts"]] == ["failed", "succeeded"]
    assert [call.disconnected for call in model.calls_for("0.b", run_id=run["id"])] == [True, False]
