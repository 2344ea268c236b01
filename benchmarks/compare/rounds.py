"""Interleaved rounds: fresh contenders on fresh databases, and each workload by all of them, one after the other."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.compare import meter
from benchmarks.compare.contenders import FLOORS, Contender, Failed, contender, seen_of
from benchmarks.compare.venvs import NotInstalled
from benchmarks.compare.verdict import judge
from benchmarks.compare.workloads import WARM_UP, WORKLOADS, Graph, Workload
from benchmarks.rig import critical_path_seconds
from tests.databases import Databases

FLOORS_ON = "dag1000z"
"""They are measured on this workload alone."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """What the contenders of all rounds share."""

    databases: Databases
    directory: Path
    graphs: Mapping[str, Graph]
    model_url: str
    model_pid: int
    postgres_pid: int | None
    limit_seconds: float
    """Of one workload."""


class Place:
    """A contender's place in a round: it is started anew after a failure, and out when that fails too."""

    def __init__(self, name: str, field: Field) -> None:
        self.name, self._field = name, field
        self._stack = AsyncExitStack()
        self._contender: Contender | None = None

    async def start(self) -> None:
        """Start and warm up. Raises Failed or NotInstalled."""
        await self.stop()
        field = self._field
        started = await self._stack.enter_async_context(
            contender(self.name, model_url=field.model_url, databases=field.databases, directory=field.directory)
        )
        await started.run(WARM_UP, field.graphs[WARM_UP.plan], field.limit_seconds)
        self._contender = started

    async def stop(self) -> None:
        """End it, if it runs."""
        self._contender = None
        await self._stack.aclose()

    async def measure(self, name: str, model: httpx.AsyncClient) -> dict[str, Any]:
        """Run a workload: what it took, what the model server saw of it, or the error."""
        workload = WORKLOADS[name]
        graph = self._field.graphs[workload.plan]
        try:
            if self._contender is None:
                await self.start()
            assert self._contender is not None
            return await self._measured(self._contender, workload, graph, model)
        except (Failed, NotInstalled) as failure:
            await self.stop()
            await _idle(model)
            return {"error": str(failure)}

    async def _measured(
        self, contender: Contender, workload: Workload, graph: Graph, model: httpx.AsyncClient
    ) -> dict[str, Any]:
        field, pids = self._field, contender.pids
        await model.post("/reset")
        meter.forget_peak(pids)
        readings: tuple[Callable[[], float], ...] = (
            lambda: meter.cpu_seconds(pids),
            lambda: meter.cpu_seconds([field.model_pid]),
            lambda: meter.cpu_seconds([field.postgres_pid]) if field.postgres_pid else 0.0,
            time.process_time,
            meter.stolen_seconds,
            time.perf_counter,
        )
        before = [read() for read in readings]
        await contender.run(workload, graph, field.limit_seconds)
        after = [read() for read in reversed(readings)][::-1]  # the wall's end first
        own, model_cpu, postgres, client, stolen, wall = (b - a for a, b in zip(before, after, strict=True))
        tasks, path = len(graph) * workload.runs, critical_path_seconds(graph)
        record: dict[str, Any] = {
            "tasks": tasks,
            "wall_s": round(wall, 5),
            "x_cp": round(wall / path, 4) if path else None,
            "tasks_s": round(tasks / wall, 2),
            "cpu_ms_task": round(1_000 * own / tasks, 5),
            "model_ms_task": round(1_000 * model_cpu / tasks, 5),
            "pg_ms_task": round(1_000 * postgres / tasks, 5) if field.postgres_pid else None,
            "client_ms_task": round(1_000 * client / tasks, 5),
            "rss_mb": round(meter.peak_mb(pids), 1),
            "steal_pct": round(100 * stolen / wall / (meter.cores()), 1),
            "uvloop": all(meter.maps(pid, "uvloop") for pid in pids),
            "versions": contender.versions,
        }
        return {**record, **await self._seen(workload, graph, model)}

    async def _seen(self, workload: Workload, graph: Graph, model: httpx.AsyncClient) -> dict[str, Any]:
        seen = seen_of(self.name)
        if seen == "nothing":
            return {}
        verdict = judge(graph, workload.runs, (await model.get("/trace")).json())
        counts = (await model.get("/counts")).json()
        found = {
            "calls_ok": verdict.calls_ok and not counts["in_flight"],
            "request_bytes": round(counts["request_bytes"] / (len(graph) * workload.runs)),
        }
        if seen == "walk":
            gaps = {f"gap_p{q}_ms": verdict.gap_ms(q / 100) for q in (50, 95)}
            found |= {"order_ok": verdict.order_ok, **{k: v and round(v, 4) for k, v in gaps.items()}}
        return found


async def measured(
    rounds: int, peers: Sequence[str], workloads: Sequence[str], field: Field
) -> AsyncIterator[dict[str, Any]]:
    """Every record as it is made. A contender that cannot start is said to be out, and tried again next round."""
    async with httpx.AsyncClient(base_url=field.model_url, timeout=60) as model:
        for turn in range(1, rounds + 1):
            async with AsyncExitStack() as stack:
                places: list[Place] = []
                for name in peers:
                    place = Place(name, field)
                    try:
                        await place.start()
                    except (Failed, NotInstalled) as failure:
                        await place.stop()
                        print(f"round {turn}: {name} is out: {failure}", file=sys.stderr, flush=True)
                        continue
                    stack.push_async_callback(place.stop)
                    places.append(place)
                for n, workload in enumerate(workloads):
                    first = (turn + n) % max(1, len(places))  # nobody always comes first, or after the same one
                    order = places[first:] + places[:first]
                    for place in order if turn % 2 else order[::-1]:
                        if workload == FLOORS_ON or place.name.removesuffix("+uvloop") not in FLOORS:
                            record = await place.measure(workload, model)
                            yield {"round": turn, "peer": place.name, "workload": workload, **record}


async def _idle(model: httpx.AsyncClient) -> None:
    """Wait until no call of one that has been ended is left at the model server: it would count as the next one's."""
    async with asyncio.timeout(60):
        while (await model.get("/counts")).json()["in_flight"]:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)
