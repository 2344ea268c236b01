"""A model server that costs next to nothing: raw asyncio and httptools, driven by marks in the request's text.

`[[plan=NAME]]` without a task mark is answered with PLANS/NAME.json; `[[t=SECONDS]]` (the last one counts) is answered
after that time. GET /trace lists (id, arrival, answer) of the marks `[[id=ID]]`; POST /reset forgets them.

    python -m benchmarks.model_server --port 0 --plans DIR
"""

import argparse
import asyncio
import json
import sys
import time
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


class Exchange(asyncio.Protocol):
    """One connection."""

    plans: Path
    trace: list[tuple[str, float, float]] = []  # noqa: RUF012 - one server per process
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
        if self._url == b"/trace":
            self._transport.write(_response(json.dumps(self.trace).encode()))
        elif self._url == b"/reset":
            self.trace.clear()
            self._transport.write(_response(b"{}"))
        else:
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        if (at := body.rfind(b"[[t=")) >= 0:
            seconds = float(body[at + 4 : body.index(b"]]", at)])
            name = body.find(b"[[id=", at)
            task = body[name + 5 : body.index(b"]]", name)].decode() if name >= 0 else ""
            arrived = time.monotonic()
            if seconds > 0:
                asyncio.get_running_loop().call_later(seconds, self._finish, task, arrived)
            else:
                self._finish(task, arrived)
        elif (at := body.rfind(b"[[plan=")) >= 0 and b"[[t=" not in body:
            plan = self.plans / (body[at + 7 : body.index(b"]]", at)].decode() + ".json")
            self._transport.write(_completion(plan.read_text()))
        else:
            self._transport.write(self.done)

    def _finish(self, task: str, arrived: float) -> None:
        self.trace.append((task, arrived, time.monotonic()))
        if not self._transport.is_closing():
            self._transport.write(self.done)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--plans", type=Path, required=True)
    arguments = parser.parse_args()
    Exchange.plans = arguments.plans
    server = await asyncio.get_running_loop().create_server(Exchange, "127.0.0.1", arguments.port, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main())
    except KeyboardInterrupt:
        sys.exit(0)
