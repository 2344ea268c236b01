"""A service that shows one scripted run: each long poll gets the next state of it."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]

AT = "2026-01-01T00:00:0{}.000Z"


def a_task(key: str = "0.1", status: str = "pending", **fields: object) -> Json:
    """A task as the API shows it."""
    times = {
        "started_at": None if status == "pending" else AT.format(1),
        "finished_at": AT.format(3) if status in {"succeeded", "failed"} else None,
    }
    return {"key": key, "wave": 1, "status": status, "description": f"Do {key}", "depends_on": [], **times, **fields}


def a_run(status: str = "running", tasks: Sequence[Json] = (), **fields: object) -> Json:
    """A run as the API shows it with its tasks."""
    return {
        "id": "run-1",
        "goal": "Find out",
        "status": status,
        "stop_requested": None,
        "result": None,
        "error": None,
        "progress": {"total": len(tasks)},
        "tasks": list(tasks),
        "created_at": AT.format(0),
        "finished_at": AT.format(5) if status in {"succeeded", "failed", "cancelled"} else None,
        **fields,
    }


class FakeService:
    """Answers as Planwave does; `cancelled` is shown, and all that follows, once a client has asked to cancel."""

    def __init__(self, states: Sequence[Json], *, refusal: tuple[int, Json] | None, cancelled: Json | None) -> None:
        self.states = list(states)
        self.refusal = refusal
        self.cancelled = cancelled
        self.goals: list[Json] = []
        self.polls: list[dict[str, str]] = []
        self.waiting = threading.Event()
        self.cancel_asked = threading.Event()
        self.url = ""

    def answer(self, method: str, path: str, headers: dict[str, str], body: Json | None) -> tuple[int, str, Json]:
        """Status, ETag and body."""
        if method == "POST" and path == "/goals":
            self.goals.append(body or {})
            if self.refusal:
                return self.refusal[0], "", self.refusal[1]
            run = {name: value for name, value in self.states[0].items() if name != "tasks"}
            return 202, "", run
        if method == "POST" and path == "/runs/run-1/cancel":
            assert self.cancelled is not None
            self.states.append(self.cancelled)
            self.cancel_asked.set()
            return 202, "", self.cancelled
        if method == "GET" and path == "/runs/run-1?include=tasks":
            self.polls.append(headers)
            number = int(headers.get("if-none-match", '"-1"').strip('"')) + 1
            if number == len(self.states):
                self.waiting.set()
                self.cancel_asked.wait(20)
            return 200, f'"{number}"', self.states[number]
        return 404, "", {"title": "Not found", "status": 404}


@contextmanager
def fake_service(
    *states: Json, refusal: tuple[int, Json] | None = None, cancelled: Json | None = None
) -> Iterator[FakeService]:
    """Runs on a free port for as long as the block."""
    service = FakeService(states, refusal=refusal, cancelled=cancelled)

    class Requests(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, etag, answer = service.answer(self.command, self.path, headers, body)
            sent = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            if etag:
                self.send_header("ETag", etag)
            self.end_headers()
            with suppress(BrokenPipeError):  # who interrupts a request does not wait for its answer
                self.wfile.write(sent)

        do_GET = do_POST = _serve  # noqa: N815 - the names that http.server calls

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service
    finally:
        service.cancel_asked.set()
        server.shutdown()
        server.server_close()
        thread.join()
