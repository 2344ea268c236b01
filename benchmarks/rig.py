"""What the benchmarks share: the model server, the service on a database, the in-memory loop, CPU seconds."""

import asyncio
import graphlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

from tests.databases import Databases
from tests.service_process import ROOT, ServiceProcess

_TICK = os.sysconf("SC_CLK_TCK")
UNLIMITED = 1_000


@dataclass(frozen=True, kw_only=True)
class BenchTask:
    """A task that its model answers after `seconds`."""

    id: str
    seconds: float
    depends_on: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """With the marks that the model server reads, and the place where it puts the run's number."""
        return f"Step {self.id}: do this piece of work and report. [[t={self.seconds:.6f}]][[id=@run@/{self.id}]]"


def critical_path_seconds(tasks: Sequence[BenchTask]) -> float:
    """The longest chain of answers: no schedule is shorter."""
    by_id = {task.id: task for task in tasks}
    ends: dict[str, float] = {}
    for i in graphlib.TopologicalSorter({task.id: task.depends_on for task in tasks}).static_order():
        ends[i] = by_id[i].seconds + max((ends[d] for d in by_id[i].depends_on), default=0.0)
    return max(ends.values())


def write_plan(directory: Path, name: str, tasks: Sequence[BenchTask]) -> None:
    """Have the model server answer `[[plan=NAME]]` with these tasks."""
    entries = [{"id": t.id, "description": t.description, "depends_on": list(t.depends_on)} for t in tasks]
    (directory / f"{name}.json").write_text(json.dumps({"tasks": entries}))


@contextmanager
def model_server(plans: Path) -> Iterator[str]:
    """The model server as a process of its own; gives its base URL."""
    command = [sys.executable, "-m", "benchmarks.model_server", "--plans", str(plans)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def service(kind: str, model_url: str, **settings: object) -> AsyncIterator[ServiceProcess]:
    """`planwave serve` on a fresh database of this kind (sqlite or postgresql), its model the model server."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        with closing(Databases(directory)) as databases, databases.fresh(kind) as url:
            all_settings = {
                "database_url": url,
                "llm_base_url": f"{model_url}/v1",
                "llm_api_key": "x",
                "llm_model": "bench",
                "llm_max_concurrency": UNLIMITED,
                **settings,
            }
            async with ServiceProcess("serve", directory=directory, settings=all_settings) as process:
                yield process


async def run_goal(client: httpx.AsyncClient, goal: str, options: dict[str, Any], **body: Any) -> dict[str, Any]:
    """Post a goal and wait for its end; raises unless it succeeded."""
    options = {"min_tasks": 1, "max_tasks": 10_000, "max_parallel": UNLIMITED, "synthesize": False, **options}
    response = await client.post(
        "/goals", json={"goal": goal, "options": options, **body}, headers={"Prefer": "wait=60"}
    )
    response.raise_for_status()
    run: dict[str, Any] = response.json()
    while run["status"] not in ("succeeded", "failed", "cancelled"):
        run = (await client.get(f"/runs/{run['id']}", headers={"Prefer": "wait=60"})).json()
    if run["status"] != "succeeded":
        raise RuntimeError(f"{goal}: {run['status']} {run['error']}")
    return run


class InMemoryLoop:
    """R: the ready-driven loop that everyone writes, with the openai SDK, nothing stored: the floor of its client."""

    def __init__(self, model_url: str, concurrency: int = UNLIMITED) -> None:
        self._client = AsyncOpenAI(base_url=f"{model_url}/v1", api_key="x", max_retries=0, timeout=120)
        self._places = asyncio.Semaphore(concurrency)

    async def run(self, plan: str, max_parallel: int = UNLIMITED) -> None:
        """Ask for the plan, then run its tasks, each as soon as its dependencies are done."""
        text = await self._ask(f"Goal: bench [[plan={plan}]]", "Decompose the goal into tasks.")
        tasks = {task["id"]: task for task in json.loads(text)["tasks"]}
        order = graphlib.TopologicalSorter({i: task["depends_on"] for i, task in tasks.items()})
        order.prepare()
        places = asyncio.Semaphore(max_parallel)
        results: dict[str, str] = {}
        done: asyncio.Queue[str] = asyncio.Queue()

        async def one(i: str) -> None:
            task = tasks[i]
            so_far = "\n".join(f"- {results[d]}" for d in task["depends_on"])
            async with places:
                results[i] = await self._ask(
                    f"Results so far:\n{so_far}\n\nTask: {task['description']}", "You carry out one task of a plan."
                )
            done.put_nowait(i)

        async with asyncio.TaskGroup() as group:
            while order.is_active():
                for i in order.get_ready():
                    group.create_task(one(i))
                order.done(await done.get())
                while not done.empty():
                    order.done(done.get_nowait())

    async def close(self) -> None:
        await self._client.close()

    async def _ask(self, user: str, system: str) -> str:
        async with self._places:
            answer = await self._client.chat.completions.create(
                model="bench",
                messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
            )
        return answer.choices[0].message.content or ""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and the children that it has reaped."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(field) for field in fields[11:15]) / _TICK
