"""Scripts with tools, seen through the client that the service uses."""

from collections.abc import Sequence

import pytest

from app.agents.tool_words import in_words, read_calls
from app.domain.errors import ToolsRefused
from app.llm.chat import ChatAnswer, ChatRequest, Message, ToolOffer
from app.llm.openai_model import OpenAIModel
from tests.endpoint import model_at
from tests.scripted_model import ScriptedModel, error, script, text
from tests.scripted_tools import calls, calls_in_words, steps, without_tools

OFFER = ToolOffer(name="calculator", description="Works out a sum.", parameters={"type": "object"})
OPENING = [Message(role="system", content="Do it."), Message(role="user", content="Your task: 6*7")]


async def ask(model: OpenAIModel, messages: Sequence[Message], offers: Sequence[ToolOffer] = (OFFER,)) -> ChatAnswer:
    headers = {"X-Planwave-Run": "r1", "X-Planwave-Seat": "executor", "X-Planwave-Task": "0.a"}
    return await model.complete(ChatRequest(model="m", messages=messages, tools=offers, headers=headers))


def after(answer: ChatAnswer, *results: str) -> list[Message]:
    """The calls of an answer, and what they gave."""
    said = Message(role="assistant", content=answer.content, tool_calls=answer.tool_calls)
    given = zip(answer.tool_calls, results, strict=True)
    return [said, *(Message(role="tool", content=result, tool_call_id=call.id) for call, result in given)]


async def test_steps_are_answered_by_what_the_request_holds() -> None:
    two = steps(calls(("calculator", {"x": 1}), ("calculator", {"x": 2})), text("42"))
    async with ScriptedModel(script({("executor", "a"): two})) as server, model_at(server.url) as model:
        first = await ask(model, OPENING)
        again = await ask(model, OPENING)
        last = await ask(model, [*OPENING, *after(first, "one", "two")])
    assert again == first
    assert last.content == "42"
    call = server.calls[-1]
    assert list(call.tools) == ["calculator"]
    assert call.tool_choice == "auto"
    assert call.tool_calls == [("calculator", {"x": 1}), ("calculator", {"x": 2})]
    assert list(call.tool_results.values()) == ["one", "two"]
    assert call.text == "Do it.\nYour task: 6*7\n\none\ntwo"


async def test_an_endpoint_without_tools_is_spoken_to_in_words() -> None:
    two = steps(calls_in_words(("calculator", {"x": 1})), text("42"))
    async with ScriptedModel(without_tools(script({"executor": two}))) as server, model_at(server.url) as model:
        with pytest.raises(ToolsRefused):
            await ask(model, OPENING)
        first = await ask(model, in_words(OPENING, [OFFER]), ())
        called = ChatAnswer(content="", model="m", tool_calls=read_calls(first.content, [OFFER]))
        last = await ask(model, in_words([*OPENING, *after(called, "one")], [OFFER]), ())
    assert [(call.name, call.arguments) for call in called.tool_calls] == [("calculator", '{"x": 1}')]
    assert (last.content, read_calls(last.content, [OFFER])) == ("42", [])
    assert [list(call.tools) for call in server.calls] == [["calculator"], [], []]


async def test_the_refusal_may_be_any() -> None:
    refusal = error(500, message="tools param requires --jinja flag")
    async with ScriptedModel(without_tools(script(), refusal)) as server, model_at(server.url) as model:
        with pytest.raises(ToolsRefused, match="--jinja"):
            await ask(model, OPENING)
