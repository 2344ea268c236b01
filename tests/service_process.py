"""The real `planwave` as a process of its own, and a client's usual requests to it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import httpx

from tests.scripted_model import ScriptedModel

ROOT = Path(__file__).parent.parent
FINISHED = ("succeeded", "failed", "cancelled")
_COMMAND = (sys.executable, "-m", "app.cli")

Json = dict[str, Any]


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**settings: object) -> dict[str, str]:
    """This process's environment with these PLANWAVE_ settings (`database_url=...`) and no others."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PLANWAVE_", "OPENAI_"))}
    ours = {f"PLANWAVE_{name.upper()}": str(value) for name, value in settings.items()}
    return {**kept, **ours, "PYTHONPATH": str(ROOT)}


def against(database_url: str, model: ScriptedModel) -> dict[str, object]:
    """The settings of a service on this database and this model that waits little before it tries again."""
    return {
        "database_url": database_url,
        "llm_base_url": model.url,
        "llm_api_key": "none",
        "llm_model": "scripted",
        "llm_backoff_base_seconds": 0.01,
        "llm_backoff_cap_seconds": 0.05,
    }


def upgrade(database_url: str, directory: Path) -> None:
    """Bring a database's schema up, as an operator does."""
    done = subprocess.run(
        [*_COMMAND, "db", "upgrade"],
        env=environment(database_url=database_url),
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"planwave db upgrade ended with {done.returncode}:\n{done.stdout}{done.stderr}")


class ServiceProcess:
    """`planwave COMMAND ARGUMENTS`; `serve` on a free port of loopback, which it keeps when it is started again.

    `directory` holds its log and is where it runs, so that no `.env` of the developer is read. Entering starts it and,
    for `serve`, waits until it is ready; leaving ends it whatever state it is in.
    """

    def __init__(self, command: str, *arguments: str, directory: Path, settings: Mapping[str, object]) -> None:
        self._arguments = [command, *arguments]
        self._serves = command == "serve"
        port = free_port()
        if self._serves:
            self._arguments += ["--host", "127.0.0.1", "--port", str(port)]
        self.url = f"http://127.0.0.1:{port}"
        self._directory = directory
        self._log = directory / f"{command}-{port}.log"
        self._env = environment(**settings)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self.cont()
            try:
                await self.terminate()
            except TimeoutError:
                await self.kill()
                raise

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written so far, on both streams, over all its starts."""
        return self._log.read_text(errors="replace")

    async def start(self) -> None:
        """Start it, for the first time or once more."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *_COMMAND,
                *self._arguments,
                env=self._env,
                cwd=self._directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if self._serves:
            await self._ready()

    async def kill(self) -> None:
        """SIGKILL: nothing is put in order."""
        await self._end(signal.SIGKILL)

    async def terminate(self) -> int:
        """SIGTERM; returns the exit status. TimeoutError if it is still there after 30 seconds."""
        return await self._end(signal.SIGTERM)

    async def interrupt(self) -> int:
        """SIGINT, as from Ctrl-C; the same."""
        return await self._end(signal.SIGINT)

    def stop(self) -> None:
        """SIGSTOP: it stands still until `cont`."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def client(self) -> httpx.AsyncClient:
        """A client of it, patient enough for long polls."""
        return httpx.AsyncClient(base_url=self.url, timeout=120)

    async def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        async with asyncio.timeout(30):
            return await self._process.wait()

    async def _ready(self) -> None:
        async with self.client() as client, asyncio.timeout(60):
            while self.running:
                try:
                    if (await client.get("/readyz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
        raise RuntimeError(f"planwave {' '.join(self._arguments)} did not start:\n{self.log}")


class StartProcess(Protocol):
    """Starts `planwave COMMAND ARGUMENTS` on the test's database and model; settings by their lower-case names."""

    async def __call__(self, command: str = "serve", *arguments: str, **settings: object) -> ServiceProcess: ...


async def start_run(client: httpx.AsyncClient, **body: object) -> Json:
    """Post a goal; the run as accepted."""
    response = await client.post("/goals", json={"goal": "Find out", **body})
    assert response.status_code == 202, response.text
    run: Json = response.json()
    return run


async def finished(client: httpx.AsyncClient, run_id: str, *, within_seconds: float = 60.0) -> Json:
    """The run once it has finished; fails with the run as it stands when that takes too long."""
    run: Json = {}
    try:
        async with asyncio.timeout(within_seconds):
            while run.get("status") not in FINISHED:
                response = await client.get(f"/runs/{run_id}", headers={"Prefer": "wait=20"})
                assert response.status_code == 200, response.text
                run = response.json()
    except TimeoutError:
        raise AssertionError(f"not finished after {within_seconds} s: {run}") from None
    return run


async def every(client: httpx.AsyncClient, path: str, **filters: str | int) -> AsyncIterator[Json]:
    """What a list holds, page after page."""
    query: dict[str, str | int] = {"limit": 200, **filters}
    while True:
        response = await client.get(path, params=query)
        assert response.status_code == 200, response.text
        page = response.json()
        for entry in page["data"]:
            yield entry
        if not page["has_more"]:
            return
        query["cursor"] = page["next_cursor"]


async def tasks_by_key(client: httpx.AsyncClient, run_id: str) -> dict[str, Json]:
    """The run's tasks, of all generations."""
    return {task["key"]: task async for task in every(client, f"/runs/{run_id}/tasks")}


async def ended(client: httpx.AsyncClient, **body: object) -> Json:
    """A run of this goal, finished."""
    return await finished(client, (await start_run(client, **body))["id"])


async def events(client: httpx.AsyncClient, run: Json, kind: str) -> list[Json]:
    """The run's events of a type, in order."""
    return [event async for event in every(client, f"/runs/{run['id']}/events") if event["type"] == kind]
