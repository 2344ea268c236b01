"""A model server that costs next to nothing: raw asyncio and httptools, driven by marks in the request's text.

`[[plan=NAME]]` without a task mark is answered with PLANS/NAME.json, each `@run@` in it made the number of the answer:
tasks of runs at once can be told apart. `[[t=SECONDS]]` (the last one counts) is answered after that time, or with
`[[t=held]]` when POST /release comes. GET /trace lists (id, arrival, answer) of the marks `[[id=ID]]`, plans as `N/`;
GET /counts the calls in flight, the bytes of the tasks' requests, and the server's own pid; POST /reset forgets both.

    python -m benchmarks.model_server --port 0 --plans DIR
"""

import argparse
import asyncio
import json
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import cast

import httptools

_ANSWER = "result: done. " * 17


def _response(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


def _completion(content: str) -> bytes:
    message = {"role": "assistant", "content": content, "refusal": None}
    return _response(
        json.dumps(
            {
                "id": "chatcmpl-bench",
                "object": "chat.completion",
                "created": 1,
                "model": "bench",
                "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 60, "total_tokens": 160},
            }
        ).encode()
    )


@cache
def _plan(file: Path) -> str:
    return file.read_text()


class Exchange(asyncio.Protocol):
    """One connection. What the class holds is that of all connections: there is one server per process."""

    plans: Path
    trace: list[tuple[str, float, float]] = []  # noqa: RUF012
    held: list[tuple["Exchange", str, float]] = []  # noqa: RUF012
    planned = in_flight = request_bytes = 0
    done = _completion(_ANSWER)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's transports inherit from nothing
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._url = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        if self._url.endswith(b"/chat/completions"):
            self._answer(body)
            return
        found: object = {}
        if self._url == b"/trace":
            found = self.trace
        elif self._url == b"/counts":
            found = {"pid": os.getpid(), "in_flight": self.in_flight, "request_bytes": self.request_bytes}
        elif self._url == b"/reset":
            self.trace.clear()
            Exchange.request_bytes = 0
        elif self._url == b"/release":
            held, Exchange.held = Exchange.held, []
            for exchange, task, arrived in held:
                exchange._finish(task, arrived)
        self._transport.write(_response(json.dumps(found).encode()))

    def _answer(self, body: bytes) -> None:
        arrived = time.monotonic()
        if (at := body.rfind(b"[[t=")) >= 0:
            seconds = body[at + 4 : body.index(b"]]", at)]
            name = body.find(b"[[id=", at)
            task = body[name + 5 : body.index(b"]]", name)].decode() if name >= 0 else ""
            Exchange.in_flight += 1
            Exchange.request_bytes += len(body)
            if seconds == b"held":
                self.held.append((self, task, arrived))
            elif (wait := float(seconds)) > 0:
                asyncio.get_running_loop().call_later(wait, self._finish, task, arrived)
            else:
                self._finish(task, arrived)
        elif (at := body.rfind(b"[[plan=")) >= 0:
            plan = _plan(self.plans / (body[at + 7 : body.index(b"]]", at)].decode() + ".json"))
            Exchange.planned += 1
            answer = _completion(plan.replace("@run@", str(Exchange.planned)))
            self.trace.append((f"{Exchange.planned}/", arrived, time.monotonic()))
            self._transport.write(answer)
        else:
            self._transport.write(self.done)

    def _finish(self, task: str, arrived: float) -> None:
        Exchange.in_flight -= 1
        self.trace.append((task, arrived, time.monotonic()))
        if not self._transport.is_closing():
            self._transport.write(self.done)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--plans", type=Path, required=True)
    arguments = parser.parse_args()
    Exchange.plans = arguments.plans
    server = await asyncio.get_running_loop().create_server(Exchange, "127.0.0.1", arguments.port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main())
    except KeyboardInterrupt:
        sys.exit(0)
