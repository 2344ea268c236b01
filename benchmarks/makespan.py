"""How close a run comes to its critical path: real workflow graphs, planned and walked, beside the in-memory loop.

Each graph's runtimes are scaled so that its critical path takes `--seconds`. With room for everything at once, wall
time over critical path is shown for Planwave and for R, in turn; with `--places 4 16`, whether the wall time lies
within [max(CP, work/m), work/m + (1 - 1/m) CP] (Graham's bound).

    python -m benchmarks.makespan --graphs FILE.jsonl [--database sqlite] [--rounds 3] [--places 4 16]
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.rig import (
    UNLIMITED,
    BenchTask,
    InMemoryLoop,
    critical_path_seconds,
    model_server,
    run_goal,
    service,
    write_plan,
)

Graphs = Mapping[str, Sequence[BenchTask]]


class Timed(Protocol):
    """Runs a named plan with so many places; gives the seconds that it took."""

    async def __call__(self, name: str, places: int = UNLIMITED) -> float: ...


def load(file: Path, seconds: float, most: int) -> dict[str, list[BenchTask]]:
    """The graphs of up to `most` tasks, scaled."""
    graphs: dict[str, list[BenchTask]] = {}
    for line in file.read_text().splitlines():
        case = json.loads(line)
        tasks = [
            BenchTask(id=t["id"], seconds=t["runtime_s"] or 0.0, depends_on=tuple(t["depends_on"]))
            for t in case["tasks"]
        ]
        if len(tasks) > most:
            continue
        scale = seconds / critical_path_seconds(tasks)
        graphs[f"g{len(graphs):02d}-{len(tasks)}"] = [
            BenchTask(id=t.id, seconds=t.seconds * scale, depends_on=t.depends_on) for t in tasks
        ]
    return graphs


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--graphs", type=Path, required=True)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most-tasks", type=int, default=300)
    parser.add_argument("--places", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    graphs = load(arguments.graphs, arguments.seconds, arguments.most_tasks)
    with tempfile.TemporaryDirectory() as made:
        plans = Path(made)
        for name, tasks in graphs.items():
            write_plan(plans, name, tasks)
        write_plan(plans, "warm-up", [BenchTask(id=str(n), seconds=0) for n in range(50)])
        with model_server(plans) as model:
            async with service(arguments.database, model) as process, process.client() as client:
                loop = InMemoryLoop(model)
                for _ in range(3):
                    await run_goal(client, "bench [[plan=warm-up]]", {})
                    await loop.run("warm-up")

                async def planwave(name: str, places: int = UNLIMITED) -> float:
                    began = time.perf_counter()
                    await run_goal(client, f"bench [[plan={name}]]", {"max_parallel": places})
                    return time.perf_counter() - began

                async def in_memory(name: str, places: int = UNLIMITED) -> float:
                    began = time.perf_counter()
                    await loop.run(name, places)
                    return time.perf_counter() - began

                if arguments.places:
                    for places in arguments.places:
                        await bounded(graphs, places, planwave, in_memory)
                else:
                    await unlimited(graphs, arguments.rounds, planwave, in_memory)
                await loop.close()


async def unlimited(graphs: Graphs, rounds: int, planwave: Timed, in_memory: Timed) -> None:
    """Every graph with room for all, in pairs whose order changes from round to round."""
    ratios, over = [], []
    for name, tasks in graphs.items():
        path = critical_path_seconds(tasks)
        pairs = []
        for n in range(rounds):
            if n % 2:
                r = await in_memory(name)
                p = await planwave(name)
            else:
                p = await planwave(name)
                r = await in_memory(name)
            pairs.append((p / path, r / path))
        p, r = (statistics.median(column) for column in zip(*pairs, strict=True))
        difference = statistics.median(a - b for a, b in pairs)
        ratios.append(p)
        over.append(difference)
        print(f"{name:10}  planwave {p:.3f}  R {r:.3f}  above R {difference:+.3f}", flush=True)
    print(f"wall / critical path, {len(ratios)} graphs: median {statistics.median(ratios):.3f}, most {max(ratios):.3f}")
    print(f"above R: median {statistics.median(over):+.3f}, most {max(over):+.3f}")


async def bounded(graphs: Graphs, places: int, planwave: Timed, in_memory: Timed) -> None:
    """Every graph with this many places, against the bounds of any schedule that leaves none idle."""
    worst = 0.0
    for name, tasks in graphs.items():
        path, work = critical_path_seconds(tasks), sum(t.seconds for t in tasks)
        least, most = max(path, work / places), work / places + (1 - 1 / places) * path
        wall = await planwave(name, places)
        r = await in_memory(name, places)
        excess = (wall - most) / path
        worst = max(worst, excess)
        verdict = "inside" if wall <= most else f"above by {excess:.3f} CP"
        print(
            f"{name:10}  m={places}  [{least:.2f}, {most:.2f}] s  planwave {wall:.2f} s  R {r:.2f} s  {verdict}",
            flush=True,
        )
        assert wall >= least * 0.999, "faster than possible: max_parallel was not kept"
    print(f"m={places}: at most {worst:.3f} of the critical path above the bound")


if __name__ == "__main__":
    asyncio.run(main())
