"""The scripted model itself, seen through the SDK that the service uses."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.scripted_model import (
    Call,
    Reply,
    ScriptedModel,
    error,
    hang,
    markers,
    plan_reply,
    raw,
    reset,
    script,
    text,
    wire,
)


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with ScriptedModel(script()) as served:
        yield served


async def ask(
    model: ScriptedModel,
    question: str = "?",
    *,
    run: str = "r1",
    seat: str = "executor",
    task: str = "0.a",
    timeout_seconds: float = 30,
) -> ChatCompletion:
    """One request as the service sends it."""
    headers = {"X-Planwave-Run": run, "X-Planwave-Seat": seat}
    if seat == "executor":
        headers["X-Planwave-Task"] = task
    async with openai.AsyncOpenAI(base_url=model.url, api_key="none", max_retries=0, timeout=timeout_seconds) as client:
        return await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": question}], extra_headers=headers
        )


def content(answer: ChatCompletion) -> str | None:
    """What was said."""
    return answer.choices[0].message.content


async def test_every_seat_is_answered_well_by_default(model: ScriptedModel) -> None:
    plan = json.loads(content(await ask(model, seat="planner")) or "")
    assert [(task["id"], task["depends_on"]) for task in plan["tasks"]] == [
        ("a", []),
        ("b", ["a"]),
        ("c", ["a"]),
        ("d", ["b", "c"]),
    ]
    assert content(await ask(model, task="0.b")) == "result of 0.b"
    assert content(await ask(model, seat="synthesizer")) == "the answer"


async def test_calls_are_recorded_in_order_with_what_was_asked(model: ScriptedModel) -> None:
    await ask(model, seat="planner")
    await ask(model, "Do a.", task="0.a")
    await ask(model, run="r2", task="0.a")
    assert model.order() == ["planner", "0.a", "0.a"]
    assert [call.run_id for call in model.calls_for("0.a")] == ["r1", "r2"]
    call = model.calls_for("0.a", run_id="r1")[0]
    assert (call.seat, call.task_id, call.text, call.body["model"]) == ("executor", "a", "Do a.", "m")
    assert call.answered_at is not None
    assert call.arrived_at <= call.answered_at
    assert not call.disconnected


async def test_a_place_is_answered_in_turns_of_its_own_run(model: ScriptedModel) -> None:
    model.begin(script({("executor", "a"): [text("first"), text("then")]}))
    said = [content(await ask(model, run=run)) for run in ("r1", "r1", "r1", "r2")]
    assert said == ["first", "then", "then", "first"]


async def test_a_script_may_wait_for_the_test(model: ScriptedModel) -> None:
    gate = asyncio.Event()

    async def gated(call: Call) -> Reply:
        await gate.wait()
        return text("let through")

    model.begin(script({"executor": gated}))
    asking = asyncio.create_task(ask(model))
    await model.until(lambda: len(model.calls) == 1)
    assert model.calls[0].answered_at is None
    gate.set()
    assert content(await asking) == "let through"


async def test_a_client_that_leaves_is_noticed(model: ScriptedModel) -> None:
    model.begin(script({"executor": hang()}))
    asking = asyncio.create_task(ask(model))
    await model.until(lambda: len(model.calls) == 1)
    asking.cancel()
    await model.until(lambda: model.calls[0].disconnected)


async def test_errors_carry_their_code_and_headers(model: ScriptedModel) -> None:
    model.begin(script({"executor": error(429, code="rate_limit_exceeded", headers={"Retry-After": "7"})}))
    with pytest.raises(openai.RateLimitError) as raised:
        await ask(model)
    assert raised.value.code == "rate_limit_exceeded"
    assert raised.value.response.headers["Retry-After"] == "7"


async def test_recorded_bodies_are_served_byte_for_byte(model: ScriptedModel) -> None:
    model.begin(script({"executor": raw(b"<html>", status=502, headers={"Content-Type": "text/html", "X-Odd": "1"})}))
    async with httpx2.AsyncClient() as client:
        headers = {"X-Planwave-Seat": "executor", "X-Planwave-Task": "0.a"}
        answer = await client.post(f"{model.url}/chat/completions", json={"messages": []}, headers=headers)
    assert (answer.status_code, answer.content, answer.headers["X-Odd"]) == (502, b"<html>", "1")


@pytest.mark.parametrize(
    "fault",
    [reset(), text("cut").cut(body_bytes=20), wire(b"not HTTP at all\r\n\r\n"), wire(b"")],
    ids=["reset before headers", "reset in the body", "no HTTP", "closed unanswered"],
)
async def test_broken_connections_reach_the_client_as_such(model: ScriptedModel, fault: Reply) -> None:
    model.begin(script({"executor": [fault, text("well again")]}))
    with pytest.raises(openai.APIConnectionError):
        await ask(model)
    assert content(await ask(model)) == "well again"


async def test_a_dripping_answer_arrives_whole(model: ScriptedModel) -> None:
    model.begin(script({"executor": text("drop by drop").dripping(0.0001)}))
    assert content(await ask(model)) == "drop by drop"


async def test_a_client_that_gives_up_on_a_dripping_answer_is_noticed(model: ScriptedModel) -> None:
    model.begin(script({"executor": text("drop by drop").dripping(60)}))
    with pytest.raises(openai.APITimeoutError):
        await ask(model, timeout_seconds=0.2)
    await model.until(lambda: model.calls[0].disconnected)


async def test_an_answer_that_stalls_begins_and_never_ends(model: ScriptedModel) -> None:
    model.begin(script({"executor": text("half of it").stalled(body_bytes=20)}))
    async with httpx2.AsyncClient() as client:
        headers = {"X-Planwave-Seat": "executor", "X-Planwave-Task": "0.a"}
        url = f"{model.url}/chat/completions"
        async with client.stream("POST", url, json={"messages": []}, headers=headers) as answer:
            assert len(await anext(answer.aiter_raw())) == 20
    await model.until(lambda: model.calls[0].disconnected)


async def test_a_server_that_was_shut_serves_again_on_the_same_port(model: ScriptedModel) -> None:
    url = model.url
    model.shut()
    with pytest.raises(openai.APIConnectionError):
        await ask(model)
    await model.open()
    assert model.url == url
    assert content(await ask(model)) == "result of 0.a"


async def test_a_script_that_raises_fails_its_test() -> None:
    def broken(call: Call) -> Reply:
        raise KeyError("no answer")

    model = await ScriptedModel(broken).__aenter__()
    with pytest.raises(openai.InternalServerError):
        await ask(model)
    with pytest.raises(ExceptionGroup, match="could not answer"):
        await model.__aexit__(None, None, None)


async def test_markers_take_the_last_delay_of_the_request() -> None:
    async with ScriptedModel(markers) as model:
        assert content(await ask(model, "[[t=60]] first, then [[t=0.001]]")) == "result: done"


async def test_a_plan_may_be_given_as_whole_tasks(model: ScriptedModel) -> None:
    tasks = [{"id": 1, "description": "One.", "depends_on": []}]
    model.begin(script({"planner": plan_reply(tasks)}))
    assert json.loads(content(await ask(model, seat="planner")) or "") == {"tasks": tasks}
