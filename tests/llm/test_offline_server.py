"""The offline model's HTTP server as the openai SDK and plain clients meet it, over a real socket."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from threading import Thread
from typing import Any

import httpx
import pytest
import uvicorn
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel

from app.llm.chat import ChatRequest, Message, ToolOffer
from app.llm.offline import NAME, OfflineModel
from app.llm.offline_server import create_model_app
from tests.endpoint import model_at

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluates an arithmetic expression.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
FETCH: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "http_get",
        "description": "Fetches a web page.",
        "parameters": {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]},
    },
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class PlannedTask(BaseModel):
    id: str
    description: str
    depends_on: list[str]
    critical: bool


class Plan(BaseModel):
    tasks: list[PlannedTask]


class Trip(BaseModel):
    city: str
    days: int
    sights: list[str]


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    app = create_model_app(OfflineModel(seed=1, delay_seconds=(0.0, 0.01)))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    listening = server.config.bind_socket()
    listening.listen()  # a request sent before the server runs waits in the backlog
    thread = Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
async def openai(server_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


async def chunks_of(openai: AsyncOpenAI, **asked: Any) -> list[ChatCompletionChunk]:
    return [chunk async for chunk in await openai.chat.completions.create(model=NAME, stream=True, **asked)]


async def test_a_plain_chat_is_answered(openai: AsyncOpenAI) -> None:
    completion = await openai.chat.completions.create(model=NAME, messages=user("What is 6 * 7?"))
    (choice,) = completion.choices
    assert choice.message.content == "6 * 7 = 42."
    assert choice.finish_reason == "stop"
    assert completion.model == NAME


async def test_usage_adds_up(openai: AsyncOpenAI) -> None:
    completion = await openai.chat.completions.create(model=NAME, messages=user("x" * 400))
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 100
    assert completion.usage.completion_tokens > 0
    assert completion.usage.total_tokens == 100 + completion.usage.completion_tokens


async def test_a_streamed_chat_says_the_same_as_a_plain_one(openai: AsyncOpenAI) -> None:
    asked = user("Tell me about the sea.\n\nAnd of ships,  please.")
    plain = await openai.chat.completions.create(model=NAME, messages=asked)
    chunks = await chunks_of(openai, messages=asked)
    assert len(chunks) > 4
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]


async def test_a_stream_ends_with_its_usage_where_asked(openai: AsyncOpenAI) -> None:
    plain = await openai.chat.completions.create(model=NAME, messages=user("Hello"))
    chunks = await chunks_of(openai, messages=user("Hello"), stream_options={"include_usage": True})
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage


async def test_a_stream_is_closed_by_done(server_url: str) -> None:
    body = {"model": NAME, "messages": user("Hello"), "stream": True}
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{server_url}/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk" for event in events[:-2])


async def test_structured_output_is_a_plan_where_the_schema_is_one(openai: AsyncOpenAI) -> None:
    completion = await openai.chat.completions.parse(
        model=NAME, messages=user("Goal: Compare tea and coffee"), response_format=Plan
    )
    plan = completion.choices[0].message.parsed
    assert plan is not None
    assert ["tea" in plan.tasks[0].description, "coffee" in plan.tasks[1].description] == [True, True]
    assert plan.tasks[-1].depends_on


async def test_structured_output_follows_any_schema(openai: AsyncOpenAI) -> None:
    completion = await openai.chat.completions.parse(
        model=NAME, messages=user("A trip for 3 days, the city is Rome."), response_format=Trip
    )
    trip = completion.choices[0].message.parsed
    assert trip is not None
    assert (trip.city, trip.days, len(trip.sights)) == ("Rome", 3, 1)


async def test_a_json_object_is_one(openai: AsyncOpenAI) -> None:
    completion = await openai.chat.completions.create(
        model=NAME, messages=user("What is 2 + 2? Answer in JSON."), response_format={"type": "json_object"}
    )
    assert json.loads(completion.choices[0].message.content or "") == {"answer": "2 + 2 = 4."}


async def test_the_planner_seat_answers_a_json_object_with_a_plan(openai: AsyncOpenAI) -> None:
    completion = await openai.chat.completions.create(
        model=NAME,
        messages=user("Goal: Write a story about tea"),
        response_format={"type": "json_object"},
        extra_headers={"X-Planwave-Seat": "planner"},
    )
    assert len(json.loads(completion.choices[0].message.content or "")["tasks"]) == 7


@pytest.mark.parametrize(
    ("question", "name", "arguments"),
    [
        ("What is 17 * 23?", "calculator", {"expression": "17 * 23"}),
        ("Read https://example.com/a?b=c.", "http_get", {"url": "https://example.com/a?b=c"}),
        ("What is the weather in New York?", "get_weather", {"city": "New York"}),
    ],
)
async def test_a_tool_that_fits_the_question_is_called(
    openai: AsyncOpenAI, question: str, name: str, arguments: dict[str, str]
) -> None:
    tools: Any = [CALCULATOR, FETCH, WEATHER]
    completion = await openai.chat.completions.create(model=NAME, messages=user(question), tools=tools)
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert (call.function.name, json.loads(call.function.arguments)) == (name, arguments)


@pytest.mark.parametrize(
    ("question", "choice", "called"),
    [
        ("Tell me a story.", "auto", []),
        ("What is 17 * 23?", "none", []),
        ("Tell me a story.", "required", ["calculator"]),
        ("What is 17 * 23?", {"type": "function", "function": {"name": "http_get"}}, ["http_get"]),
    ],
)
async def test_the_tool_choice_is_kept(openai: AsyncOpenAI, question: str, choice: Any, called: list[str]) -> None:
    tools: Any = [CALCULATOR, FETCH]
    completion = await openai.chat.completions.create(
        model=NAME, messages=user(question), tools=tools, tool_choice=choice
    )
    calls = completion.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls if call.type == "function"] == called


async def test_a_streamed_tool_call_can_be_put_together(openai: AsyncOpenAI) -> None:
    chunks = await chunks_of(openai, messages=user("What is 17 * 23?"), tools=[CALCULATOR])
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    functions = [piece.function for piece in pieces if piece.function]
    assert pieces[0].id
    assert functions[0].name == "calculator"
    assert json.loads("".join(function.arguments or "" for function in functions)) == {"expression": "17 * 23"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_what_a_tool_gave_is_answered_and_the_tool_not_called_again(openai: AsyncOpenAI) -> None:
    tools: Any = [WEATHER]
    asked = user("What is the weather in Rome?")
    first = await openai.chat.completions.create(model=NAME, messages=asked, tools=tools)
    (call,) = first.choices[0].message.tool_calls or []
    asked += [
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Rain until noon, 14 degrees."},
    ]
    second = await openai.chat.completions.create(model=NAME, messages=asked, tools=tools)
    assert second.choices[0].message.tool_calls is None
    assert second.choices[0].message.content == "Rain until noon, 14 degrees."


async def test_a_task_of_ours_is_done_with_tools_over_http(server_url: str) -> None:
    offer = ToolOffer(name="http_get", description="Fetches a web page.", parameters=FETCH["function"]["parameters"])
    asked = ChatRequest(
        model=NAME, messages=[Message(role="user", content="Read https://example.com/ for me.")], tools=[offer]
    )
    async with model_at(f"{server_url}/v1") as model:
        first = await model.complete(asked)
        (call,) = first.tool_calls
        later = [
            Message(role="assistant", content=first.content, tool_calls=[call]),
            Message(role="tool", content="Red beets grow here.", tool_call_id=call.id),
        ]
        second = await model.complete(replace(asked, messages=[*asked.messages, *later]))
    assert (call.name, json.loads(call.arguments)) == ("http_get", {"url": "https://example.com/"})
    assert (second.content, second.tool_calls) == ("Red beets grow here.", ())


async def test_a_client_may_insist_on_a_tool_that_has_answered(openai: AsyncOpenAI) -> None:
    tools: Any = [FETCH]
    asked = user("Read https://example.com/.")
    for _ in range(2):
        got = await openai.chat.completions.create(model=NAME, messages=asked, tools=tools, tool_choice="required")
        (call,) = got.choices[0].message.tool_calls or []
        asked += [
            got.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "Red beets."},
        ]
    ids = [message["tool_call_id"] for message in asked if message["role"] == "tool"]
    assert len(set(ids)) == 2


async def test_calls_one_at_a_time_are_made_one_at_a_time(openai: AsyncOpenAI) -> None:
    tools: Any = [CALCULATOR, FETCH]
    asked = user("Read https://example.com/ and work out 17 * 23.")
    for parallel, count in ((True, 2), (False, 1)):
        got = await openai.chat.completions.create(
            model=NAME, messages=asked, tools=tools, parallel_tool_calls=parallel
        )
        assert len(got.choices[0].message.tool_calls or []) == count


async def test_an_answer_over_the_token_limit_is_cut_and_says_so(openai: AsyncOpenAI) -> None:
    completion = await openai.chat.completions.create(model=NAME, messages=user("Hello"), max_completion_tokens=2)
    assert completion.choices[0].finish_reason == "length"
    assert len(completion.choices[0].message.content or "") == 8


async def test_the_models_are_listed(openai: AsyncOpenAI) -> None:
    assert [model.id async for model in openai.models.list()] == [NAME]


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"messages": [{"role": "nobody", "content": "x"}]},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"properties": [1]}}}},
        {"tool_choice": "required"},
        {"n": 2},
        {"model": None},
    ],
)
async def test_a_wrong_body_is_refused_as_openai_does(openai: AsyncOpenAI, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as refused:
        await openai.post("/chat/completions", cast_to=object, body={"model": NAME, "messages": user("x")} | wrong)
    assert isinstance(refused.value.body, dict)
    assert set(refused.value.body) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[]", b'"x"', b"[" * 100_000])
async def test_a_body_that_is_no_request_is_refused(server_url: str, body: bytes) -> None:
    async with httpx.AsyncClient(headers={"Content-Type": "application/json"}) as client:
        answer = await client.post(f"{server_url}/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_an_unknown_path_is_not_found(openai: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError) as refused:
        await openai.get("/embeddings", cast_to=object)
    assert refused.value.code == "unknown_url"


async def test_a_name_that_no_database_can_hold_is_answered_in_one_that_it_can(server_url: str) -> None:
    schema = '{"type": "json_schema", "json_schema": {"name": "a", "schema": {"properties": {"\\ud800": {}}}}}'
    body = f'{{"model": "m", "messages": [{{"role": "user", "content": "x"}}], "response_format": {schema}}}'
    async with httpx.AsyncClient(headers={"Content-Type": "application/json"}) as client:
        answer = await client.post(f"{server_url}/v1/chat/completions", content=body)
    assert list(json.loads(answer.json()["choices"][0]["message"]["content"])) == ["\N{REPLACEMENT CHARACTER}"]
