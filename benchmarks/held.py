"""What a run with a call in flight costs in memory: many at once in one worker process, whose model holds every call.

Each run is a client's plan of one task. Once all calls are in flight the worker's memory is read; then the model
answers, and every run must succeed.

    python -m benchmarks.held [--runs 10000] [--database postgresql]
"""

import argparse
import asyncio
import resource
import signal
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, closing
from pathlib import Path

import httpx

from benchmarks.compare import meter
from benchmarks.rig import model_server
from tests.databases import KINDS, Databases
from tests.service_process import ServiceProcess, every

_POSTS_AT_ONCE = 20
_PLAN = {"tasks": [{"id": "t", "description": "Do this piece of work. [[t=held]][[id=t]]", "depends_on": []}]}
_BODY = {"goal": "bench", "plan": _PLAN, "options": {"synthesize": False}}


def allow_files(count: int) -> None:
    """Let this process and those that it starts open so many files, as far as the system lets them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, hard)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        print(f"Only {hard} files may be open at once; {count} were wanted.")


async def in_flight(model: httpx.AsyncClient) -> int:
    """Calls that have arrived at the model and are not answered."""
    count: int = (await model.get("/counts")).json()["in_flight"]
    return count


async def measure(runs: int, kind: str, hold_seconds: float, within_seconds: float) -> None:
    """Print the figures. Raises TimeoutError, or RuntimeError when a run has not succeeded."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(stack.enter_context(closing(Databases(directory))).fresh(kind))
        model_url = stack.enter_context(model_server(directory))
        settings = {
            "database_url": url,
            "llm_base_url": f"{model_url}/v1",
            "llm_api_key": "x",
            "llm_model": "bench",
            "llm_max_concurrency": runs,
            "worker_max_runs": runs,
        }
        api = ServiceProcess("serve", "--no-worker", directory=directory, settings=settings)
        worker = ServiceProcess("worker", directory=directory, settings=settings)
        for process in (api, worker):
            await stack.enter_async_context(process)
        client = await stack.enter_async_context(api.client())
        model = await stack.enter_async_context(httpx.AsyncClient(base_url=model_url, timeout=60))

        def check() -> None:
            if not worker.running:
                raise RuntimeError(f"The worker ended:\n{worker.log[-1_000:]}")

        async with asyncio.timeout(60):
            while "looks for runs" not in worker.log:
                check()
                await asyncio.sleep(0.1)
        idle, began, places = meter.resident_mb(worker.pid), time.monotonic(), asyncio.Semaphore(_POSTS_AT_ONCE)

        async def post() -> str:
            async with places:
                response = await client.post("/goals", json=_BODY)
            response.raise_for_status()
            run: str = response.json()["id"]
            return run

        await asyncio.gather(*(post() for _ in range(runs)))
        posted = time.monotonic() - began
        async with asyncio.timeout(within_seconds):
            while (held := await in_flight(model)) < runs:
                check()
                await asyncio.sleep(0.5)
        resident, peak = meter.resident_mb(worker.pid), meter.peak_mb([worker.pid])
        print(
            f"{held} calls in flight, {kind}: {resident:.0f} MiB resident, {peak:.0f} MiB at most; "
            f"idle {idle:.0f} MiB; {1024 * (resident - idle) / runs:.0f} KiB a run; posted in {posted:.0f} s, "
            f"all in flight after {time.monotonic() - began:.0f} s",
            flush=True,
        )
        await asyncio.sleep(hold_seconds)
        check()
        print(f"{hold_seconds:.0f} s later: {meter.resident_mb(worker.pid):.0f} MiB resident", flush=True)
        began = time.monotonic()
        await model.post("/release")
        async with asyncio.timeout(within_seconds):
            while statuses := Counter([run["status"] async for run in every(client, "/runs")]):
                check()
                if statuses == {"succeeded": runs}:
                    break
                if over := statuses.keys() & {"failed", "cancelled"}:
                    raise RuntimeError(f"{', '.join(over)}: {statuses}")
                await asyncio.sleep(1)
        seen = len((await model.get("/trace")).json())
        if seen != runs:
            raise RuntimeError(f"{seen} calls were made by {runs} runs")
        print(f"All have succeeded, with one call each, {time.monotonic() - began:.0f} s after the model answered")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--database", choices=KINDS, default="postgresql")
    parser.add_argument("--hold", type=float, default=30, help="seconds for which all calls are held")
    parser.add_argument("--within", type=float, default=600, help="seconds that starting and ending may take, each")
    arguments = parser.parse_args()
    allow_files(arguments.runs + 1_000)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whatever ends it, nothing that it started is left
    asyncio.run(measure(arguments.runs, arguments.database, arguments.hold, arguments.within))


if __name__ == "__main__":
    main()
