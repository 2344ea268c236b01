"""A model server for tests: chat completions over real HTTP, every call recorded, every answer from a script.

    async with ScriptedModel(script({("executor", "b"): error(503)})) as model:
        ...  # point the service at model.url
        assert model.order() == ["planner", "0.a", "0.b"]

It runs in the test's own event loop, so a script may be a coroutine that waits for the test's events.
By hand, as a process of its own: `python -m tests.scripted_model --port 9000 --script markers`.
"""

import argparse
import asyncio
import inspect
import json
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import unquote

import httptools
import uvloop

Plan = Mapping[str, Sequence[str]]
"""A plan in short: the ids that each id depends on."""

DIAMOND: Plan = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


@dataclass(kw_only=True, slots=True, eq=False)
class Call:
    """One request as it arrived. Times are `time.monotonic()`; `turn` counts the earlier ones of its run and place."""

    run_id: str
    seat: str
    task_key: str | None
    turn: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    arrived_at: float
    answered_at: float | None = None
    """Set just before the answer's last byte leaves; None while it is awaited and when the client left first."""
    disconnected: bool = False
    """The client left before the answer was complete."""

    @property
    def task_id(self) -> str | None:
        """The task's id in its plan: its key without the generation."""
        return None if self.task_key is None else self.task_key.split(".", 1)[1]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said, as sent."""
        return cast(list[dict[str, Any]], self.body["messages"])

    @property
    def text(self) -> str:
        """The contents of all messages, one after the other."""
        return "\n".join(message["content"] or "" for message in self.messages)

    @property
    def response_format(self) -> Mapping[str, Any] | None:
        """How the answer was asked for; None for plain text."""
        return self.body.get("response_format")

    @property
    def tools(self) -> dict[str, dict[str, Any]]:
        """The tools that were offered: description and parameters by name."""
        return {tool["function"]["name"]: tool["function"] for tool in self.body.get("tools", ())}

    @property
    def tool_choice(self) -> str:
        """Whether tools may be called now."""
        return str(self.body.get("tool_choice", "auto" if "tools" in self.body else "none"))

    @property
    def tool_calls(self) -> list[tuple[str, dict[str, Any]]]:
        """The tool calls of earlier answers as they were sent back: names and arguments, in order."""
        asked = [call["function"] for message in self.messages for call in message.get("tool_calls") or ()]
        return [(function["name"], json.loads(function["arguments"])) for function in asked]

    @property
    def tool_results(self) -> dict[str, str]:
        """What the tools gave, by the id of the call, in order."""
        return {m["tool_call_id"]: m["content"] for m in self.messages if m["role"] == "tool"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the server does with a call: an HTTP answer, or one of the ways to withhold or spoil it."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    delay_seconds: float = 0.0
    bytes_before_cut: int | None = None
    seconds_per_byte: float | None = None
    hangs: bool = False
    stream: bytes | None = None

    def after(self, seconds: float) -> "Reply":
        """The same, but nothing is sent before then."""
        return replace(self, delay_seconds=seconds)

    def cut(self, *, body_bytes: int | None = None) -> "Reply":
        """The same, but the connection is reset: before the headers, or once so many bytes of the body are out."""
        return replace(self, bytes_before_cut=0 if body_bytes is None else len(self._head()) + body_bytes)

    def dripping(self, seconds_per_byte: float) -> "Reply":
        """The same, but it leaves byte by byte, headers and all."""
        return replace(self, seconds_per_byte=seconds_per_byte)

    def stalled(self, *, body_bytes: int) -> "Reply":
        """The same, but after so many bytes of the body nothing more comes, and the connection stays open."""
        return replace(self, hangs=True, bytes_before_cut=len(self._head()) + body_bytes)

    def on_the_wire(self) -> bytes:
        """Everything that is sent."""
        return self._head() + self.body if self.stream is None else self.stream

    def _head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} Scripted", *(f"{name}: {value}" for name, value in self.headers.items())]
        if "content-length" not in (name.lower() for name in self.headers):
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def text(content: str | None, *, finish_reason: str = "stop", usage: Mapping[str, int] | None = None) -> Reply:
    """A completion with this content; `usage` defaults to 10 tokens in, 5 out."""
    return message_reply({"content": content}, finish_reason=finish_reason, usage=usage)


def message_reply(
    message: Mapping[str, Any], *, finish_reason: str = "stop", usage: Mapping[str, int] | None = None
) -> Reply:
    """A completion with this message; `usage` as in `text`."""
    message = {"role": "assistant", "refusal": None, **message}
    body = {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "finish_reason": finish_reason, "logprobs": None, "message": message}],
        "usage": usage or {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
    return verbatim(body)


def verbatim(body: object) -> Reply:
    """A 200 with this JSON, whatever it is."""
    return Reply(body=json.dumps(body).encode())


def raw(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """These bytes under this status and these headers; the length is added where they do not give one."""
    return Reply(body=body, status=status, headers=headers or {})


def wire(stream: bytes) -> Reply:
    """These bytes in place of an HTTP answer; then the connection is closed."""
    return Reply(stream=stream, headers={"Connection": "close"})


def error(
    status: int, *, code: str | None = None, message: str = "scripted", headers: Mapping[str, str] | None = None
) -> Reply:
    """An error as the OpenAI API words it."""
    body = {"error": {"message": message, "type": "scripted_error", "param": None, "code": code}}
    return Reply(
        body=json.dumps(body).encode(),
        status=status,
        headers={"Content-Type": "application/json", **(headers or {})},
    )


def hang() -> Reply:
    """No answer, ever: the connection stays open until the client leaves."""
    return Reply(hangs=True)


def reset() -> Reply:
    """A connection that is reset before any answer."""
    return Reply().cut()


def tasks_of(plan: Plan) -> list[dict[str, Any]]:
    """The plan's tasks as a client or a planner writes them."""
    return [{"id": i, "description": f"Do {i}.", "depends_on": list(before)} for i, before in plan.items()]


def plan_reply(plan: Plan | Sequence[Mapping[str, Any]]) -> Reply:
    """A planner's answer with this plan, given in short or as whole tasks."""
    return text(json.dumps({"tasks": tasks_of(plan) if isinstance(plan, Mapping) else list(plan)}))


Script = Callable[[Call], Reply | Awaitable[Reply]]
Answer = Reply | Sequence[Reply] | Script
"""Of a place: always this, these in turn (the last one stays), or whatever a script says."""


def script(answers: Mapping[str | tuple[str, str], Answer] | None = None, *, plan: Plan = DIAMOND) -> Script:
    """Answers by `(seat, task id)`, then by seat.

    A place that is not named answers well: the planner with `plan`, a task with `result of KEY`, the synthesizer with
    `the answer`.
    """
    places: dict[str | tuple[str, str], Answer] = {
        "planner": plan_reply(plan),
        "executor": lambda call: text(f"result of {call.task_key}"),
        "synthesizer": text("the answer"),
    }
    places.update(answers or {})

    def reply(call: Call) -> Reply | Awaitable[Reply]:
        answer = places.get((call.seat, call.task_id or ""), places[call.seat])
        if isinstance(answer, Reply):
            return answer
        return answer[min(call.turn, len(answer) - 1)] if isinstance(answer, Sequence) else answer(call)

    return reply


class ScriptedModel:
    """The server. Enter it to serve on `url`; a script that raised fails the test when it is left."""

    def __init__(self, script: Script, *, port: int = 0, keep_calls: bool = True) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.errors: list[Exception] = []
        self._port = port
        self._keep_calls = keep_calls
        self._turns: Counter[tuple[str, str, str | None]] = Counter()
        self._changed = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shut()
        if raised is None:
            self.check()

    async def open(self) -> None:
        """Serve; after `shut`, on the same port again."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self._port, backlog=2048)
        self._port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        """Drop every connection and refuse new ones."""
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.close()

    @property
    def url(self) -> str:
        """What PLANWAVE_LLM_BASE_URL takes."""
        return f"http://127.0.0.1:{self._port}/v1"

    def check(self) -> None:
        """Raise what the script raised."""
        if self.errors:
            raise ExceptionGroup("the script could not answer", self.errors)

    def begin(self, script: Script) -> None:
        """Forget what came before and answer from this script."""
        self.script, self.calls, self.errors = script, [], []
        self._turns.clear()

    def of_run(self, run_id: str) -> list[Call]:
        """Its calls, in order of arrival."""
        return [call for call in self.calls if call.run_id == run_id]

    def by_seat(self, seat: str, *, run_id: str | None = None) -> list[Call]:
        """The calls of a seat, in order of arrival."""
        return [call for call in self.calls if call.seat == seat and run_id in (None, call.run_id)]

    def calls_for(self, task_key: str, *, run_id: str | None = None) -> list[Call]:
        """The calls for a task, in order of arrival."""
        return [call for call in self.calls if call.task_key == task_key and run_id in (None, call.run_id)]

    @property
    def in_flight(self) -> list[Call]:
        """The calls that have arrived, are not answered, and whose clients still wait."""
        return [call for call in self.calls if call.answered_at is None and not call.disconnected]

    def order(self, *, run_id: str | None = None) -> list[str]:
        """What was called, in order of arrival: task keys, and seats where there is no task."""
        return [call.task_key or call.seat for call in self.calls if run_id in (None, call.run_id)]

    async def until(self, holds: Callable[[], bool], *, within_seconds: float = 60.0) -> None:
        """Wait until this holds; it is looked at after every arrival, answer and disconnection."""
        async with asyncio.timeout(within_seconds):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    def record(self, headers: Mapping[str, str], body: Mapping[str, Any]) -> Call:
        """The call as it arrives."""
        run_id, seat = headers.get("x-planwave-run", ""), headers.get("x-planwave-seat", "")
        task_key = headers.get("x-planwave-task")
        task_key = None if task_key is None else unquote(task_key)
        call = Call(
            run_id=run_id,
            seat=seat,
            task_key=task_key,
            turn=self._turns[run_id, seat, task_key],
            headers=headers,
            body=body,
            arrived_at=time.monotonic(),
        )
        if self._keep_calls:
            self._turns[run_id, seat, task_key] += 1
            self.calls.append(call)
        self.note_change()
        return call

    async def reply_to(self, call: Call) -> Reply:
        """What the script says; 500 and a failed test where it raises."""
        try:
            reply = self.script(call)
            return await reply if inspect.isawaitable(reply) else reply
        except Exception as raised:  # noqa: BLE001 - whatever a test's script raises must fail that test
            self.errors.append(raised)
            return error(500, message=f"the script raised {raised!r}")

    def note_change(self) -> None:
        """Let `until` look again."""
        self._changed.set()

    def opened(self, connection: "_Connection") -> None:
        """To be closed with the server."""
        self._connections.add(connection)

    def closed(self, connection: "_Connection") -> None:
        """No longer ours to close."""
        self._connections.discard(connection)


class _Connection(asyncio.Protocol):
    """One client connection: requests one after the other, as an HTTP/1.1 client without pipelining sends them."""

    def __init__(self, model: ScriptedModel) -> None:
        self._model = model
        self._call: Call | None = None
        self._answering: asyncio.Task[None] | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._model.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._model.closed(self)
        if self._answering is not None:
            self._answering.cancel()
        if self._call is not None:
            self._call.disconnected = True
            self._model.note_change()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._path, self._headers, self._body = b"", {}, []

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._path != b"/v1/chat/completions":
            self._transport.write(error(404, message="only chat completions are served").on_the_wire())
            return
        self._call = self._model.record(self._headers, json.loads(b"".join(self._body)))
        self._answering = asyncio.create_task(self._answer(self._call))

    def close(self) -> None:
        """Drop the connection; whatever it was doing ends without an answer."""
        self._transport.abort()

    async def _answer(self, call: Call) -> None:
        reply = await self._model.reply_to(call)
        if reply.delay_seconds:
            await asyncio.sleep(reply.delay_seconds)
        stream = reply.on_the_wire()[: reply.bytes_before_cut]
        if reply.hangs:
            self._transport.write(stream if reply.bytes_before_cut else b"")
            return
        if reply.seconds_per_byte is not None:
            while len(stream) > 1:
                self._transport.write(stream[:1])
                stream = stream[1:]
                await asyncio.sleep(reply.seconds_per_byte)
        call.answered_at, self._call = time.monotonic(), None
        self._transport.write(stream)
        if reply.bytes_before_cut is not None:
            await asyncio.sleep(0)  # uvloop writes at the end of its turn
            # Without lingering, closing sends a reset in place of an orderly end.
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
        elif "Connection" in reply.headers:
            self._transport.close()
        self._model.note_change()


def markers(call: Call) -> Reply:
    """A plain answer, late by what the last `[[t=SECONDS]]` of the request says."""
    marks = re.findall(r"\[\[t=([\d.]+)\]\]", call.text)
    return text("result: done").after(float(marks[-1]) if marks else 0.0)


async def _serve(port: int) -> None:
    async with ScriptedModel(markers, port=port, keep_calls=False) as model:
        print(model.url, flush=True)  # noqa: T201 - run by hand, this is how one learns the port
        await asyncio.Event().wait()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="A chat completions server that answers from a script.")
    arguments.add_argument("--port", type=int, default=0)
    arguments.add_argument("--script", choices=["markers"], default="markers")
    uvloop.run(_serve(arguments.parse_args().port))
