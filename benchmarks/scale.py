"""Whether a task costs more in a larger plan: CPU of the service per task, for client plans of growing size.

Layered random graphs, the model answering at once; rounds are interleaved, medians and their ratio are shown.

    python -m benchmarks.scale [--database sqlite] [--sizes 200 5000] [--rounds 5]
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.rig import BenchTask, cpu_seconds, model_server, run_goal, service


def layered(size: int, seed: int = 7) -> list[BenchTask]:
    """Tasks in layers of about 20, each depending on one to three earlier ones."""
    chance = random.Random(seed)
    tasks: list[BenchTask] = []
    for n in range(size):
        before = n // 20 * 20
        needs = (
            {chance.randrange(max(0, before - 20), before) for _ in range(chance.randint(1, 3))} if before else set()
        )
        tasks.append(BenchTask(id=f"t{n}", seconds=0.0, depends_on=tuple(f"t{d}" for d in sorted(needs))))
    return tasks


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 5_000])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    plans = {
        size: [{"id": t.id, "description": t.description, "depends_on": list(t.depends_on)} for t in layered(size)]
        for size in arguments.sizes
    }
    cost: dict[int, list[float]] = {size: [] for size in arguments.sizes}
    with tempfile.TemporaryDirectory() as made, model_server(Path(made)) as model:
        settings = {"llm_max_concurrency": 100}
        async with service(arguments.database, model, **settings) as process, process.client() as client:
            for n in range(arguments.rounds + 1):
                for size, tasks in plans.items():
                    cpu, began = cpu_seconds(process.pid), time.perf_counter()
                    await run_goal(client, "bench", {"max_parallel": 100}, plan={"tasks": tasks})
                    per_task = 1_000 * (cpu_seconds(process.pid) - cpu) / size
                    if n:  # the first round warms up
                        cost[size].append(per_task)
                        wall = time.perf_counter() - began
                        print(f"{size:6} tasks  {per_task:.3f} ms CPU per task  {wall:.2f} s wall", flush=True)
    medians = {size: statistics.median(values) for size, values in cost.items()}
    least, most = min(medians), max(medians)
    print(f"median ms CPU per task: {', '.join(f'{size}: {ms:.3f}' for size, ms in medians.items())}")
    print(f"{most} tasks against {least}: {medians[most] / medians[least]:.3f} times")


if __name__ == "__main__":
    asyncio.run(main())
