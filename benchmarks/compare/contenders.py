"""Who takes part: Planwave as a service, and the peers and floors as processes in their own environments."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

import httpx

from benchmarks.compare.venvs import python_of
from benchmarks.compare.workloads import Graph, Workload
from tests.databases import Databases
from tests.service_process import ROOT, ServiceProcess

CONCURRENCY = 100
"""Model calls at once, of every contender."""

_POSTS_AT_ONCE = 20
_UNFINISHED = ("queued", "planning", "running")
_FAILED = ("failed", "cancelled", "paused", "awaiting_review")

Seen = Literal["walk", "calls", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A contender's name taken apart. `seen`: what the model server must have seen of it."""

    module: str
    venv: str = "floors"
    variant: str = ""
    seen: Seen = "walk"


PLANWAVE: Mapping[str, bool] = {"planwave": False, "planwave-split": True}
"""Whether API and worker are two processes."""

KINDS: Mapping[str, Kind] = {
    "R": Kind(module="in_memory"),
    "langgraph": Kind(module="on_langgraph", venv="langgraph", variant="sync"),
    "langgraph-async": Kind(module="on_langgraph", venv="langgraph", variant="async"),
    "procrastinate": Kind(module="on_procrastinate", venv="procrastinate"),
    "dbos": Kind(module="on_dbos", venv="dbos"),
    "calls": Kind(module="calls", variant="sdk", seen="calls"),
    "calls-aiohttp": Kind(module="calls", variant="sdk-aiohttp", seen="calls"),
    "calls-bare": Kind(module="calls", variant="bare", seen="calls"),
    "commits": Kind(module="commits", variant="psycopg", seen="nothing"),
    "commits-asyncpg": Kind(module="commits", variant="asyncpg", seen="nothing"),
    "commits-grouped": Kind(module="commits", variant="grouped", seen="nothing"),
}
"""Any of them may be followed by `+uvloop`."""

FLOORS = tuple(name for name, kind in KINDS.items() if kind.seen != "walk")


class Failed(Exception):
    """A contender could not start, or not do what it was told."""


class Contender(Protocol):
    """Something that runs workloads. `pids` are the processes whose CPU and memory are its own."""

    pids: tuple[int, ...]
    versions: Mapping[str, str]

    async def run(self, workload: Workload, graph: Graph, seconds: float) -> None:
        """All runs, to their ends. Raises Failed, at the latest after so many seconds."""
        ...


def seen_of(name: str) -> Seen:
    """What the model server must have seen of a contender."""
    return "walk" if name in PLANWAVE else KINDS[name.removesuffix("+uvloop")].seen


@asynccontextmanager
async def contender(name: str, *, model_url: str, databases: Databases, directory: Path) -> AsyncIterator[Contender]:
    """A fresh one on a fresh database. Raises Failed or NotInstalled."""
    if name in PLANWAVE:
        with databases.fresh("postgresql") as url:
            async with _planwave(url, model_url, directory, split=PLANWAVE[name]) as planwave:
                yield planwave
        return
    kind = KINDS[name.removesuffix("+uvloop")]
    python = await asyncio.to_thread(python_of, kind.venv)
    with databases.fresh("postgresql", migrated=False) as url:
        setup = {
            "model_url": model_url,
            "database_url": url,
            "concurrency": CONCURRENCY,
            "variant": kind.variant,
            "uvloop": name.endswith("+uvloop"),
        }
        command = (str(python), "-m", f"benchmarks.compare.peers.{kind.module}", json.dumps(setup))
        async with _peer(command, directory / f"{name}.log", directory) as peer:
            yield peer


@asynccontextmanager
async def _peer(command: tuple[str, ...], log: Path, directory: Path) -> AsyncIterator[Contender]:
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=directory,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    try:
        peer = _Peer(process, log)
        peer.versions = (await peer.answer(60))["versions"]
        yield peer
    finally:
        if process.returncode is None:
            process.kill()  # what it has left undone is of no interest
        await process.wait()


class _Peer:
    """A process that is told on standard input what to run."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process, self._log = process, log
        self.pids: tuple[int, ...] = (process.pid,)
        self.versions: Mapping[str, str] = {}

    async def run(self, workload: Workload, graph: Graph, seconds: float) -> None:
        assert self._process.stdin is not None
        plan = str(len(graph)) if "commits" in self._log.name else workload.plan
        order = {"plan": plan, "runs": workload.runs, "seconds": seconds}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self.answer(seconds + 5)

    async def answer(self, seconds: float) -> dict[str, Any]:
        """The next one. Raises Failed."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise Failed(f"no answer after {seconds:.0f} s") from None
        if not line:
            raise Failed(f"it ended: {self._log.read_text(errors='replace').strip()[-400:]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer


@asynccontextmanager
async def _planwave(url: str, model_url: str, directory: Path, *, split: bool) -> AsyncIterator[Contender]:
    settings = {
        "database_url": url,
        "llm_base_url": f"{model_url}/v1",
        "llm_api_key": "x",
        "llm_model": "bench",
        "llm_max_concurrency": CONCURRENCY,
        "worker_max_runs": 1_000,
    }
    async with AsyncExitStack() as stack:
        serve = ServiceProcess("serve", *(["--no-worker"] if split else []), directory=directory, settings=settings)
        processes = [serve, *([ServiceProcess("worker", directory=directory, settings=settings)] if split else [])]
        try:
            for process in processes:
                await stack.enter_async_context(process)
        except RuntimeError as failure:
            raise Failed(str(failure)[-400:]) from None
        yield _Planwave(await stack.enter_async_context(serve.client()), tuple(p.pid for p in processes))


class _Planwave:
    """The service, over HTTP as its clients use it."""

    versions: Mapping[str, str] = {"openai": version("openai"), "sqlalchemy": version("sqlalchemy")}

    def __init__(self, client: httpx.AsyncClient, pids: tuple[int, ...]) -> None:
        self._client, self.pids = client, pids

    async def run(self, workload: Workload, graph: Graph, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._run(workload)
        except (TimeoutError, httpx.HTTPError) as failure:
            raise Failed(f"{type(failure).__name__}: {failure}") from failure

    async def _run(self, workload: Workload) -> None:
        options = {"min_tasks": 1, "max_tasks": 10_000, "max_parallel": CONCURRENCY, "synthesize": False}
        batch = uuid4().hex
        goal = {"goal": f"bench [[plan={workload.plan}]]", "options": options, "metadata": {"batch": batch}}
        places = asyncio.Semaphore(_POSTS_AT_ONCE)

        async def post() -> dict[str, Any]:
            async with places:
                response = await self._client.post("/goals", json=goal)
            return self._answer(response)

        async def first_that(*statuses: str) -> dict[str, Any] | None:
            query: dict[str, Any] = {"metadata[batch]": batch, "status": statuses, "limit": 1}
            found = self._answer(await self._client.get("/runs", params=query))["data"]
            return found[0] if found else None

        run: dict[str, Any] | None
        *others, run = await asyncio.gather(*(post() for _ in range(workload.runs)))
        # One long poll after the other, each for a run that is not over, or asking would be the work.
        while run is not None:
            run = self._answer(await self._client.get(f"/runs/{run['id']}", headers={"Prefer": "wait=60"}))
            if run["status"] in _FAILED:
                raise Failed(f"a run {run['status']}: {run['error']}")
            if run["status"] not in _UNFINISHED:
                run = await first_that(*_UNFINISHED) if others else None
        if others and (run := await first_that(*_FAILED)):
            raise Failed(f"a run {run['status']}: {run['error']}")

    def _answer(self, response: httpx.Response) -> dict[str, Any]:
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer
