"""The graphs that are run, drawn from fixed seeds, and how many runs of each at once."""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.rig import BenchTask

Graph = Sequence[BenchTask]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """So many runs, all at once, of one plan."""

    plan: str
    runs: int = 1


def named(tasks: Iterable[tuple[str, float, str]]) -> Graph:
    """Of (id, seconds, ids of the dependencies with spaces between)."""
    return [BenchTask(id=i, seconds=seconds, depends_on=tuple(needs.split())) for i, seconds, needs in tasks]


def layered(size: int, layers: int, *, seed: int, uneven: bool = False) -> Graph:
    """Each task needs one of the layer before and up to two of any before; `uneven`: lognormal, median 80 ms."""
    chance = random.Random(seed)
    depths = sorted([*range(layers), *(chance.randrange(layers) for _ in range(size - layers))])
    ids: list[list[str]] = [[] for _ in range(layers)]
    tasks: list[BenchTask] = []
    for n, depth in enumerate(depths):
        needs: set[str] = set()
        if depth:
            needs.add(chance.choice(ids[depth - 1]))
            needs.update(chance.choice(ids[chance.randrange(depth)]) for _ in range(chance.choice((0, 1, 1, 2))))
        seconds = min(1.5, max(0.01, chance.lognormvariate(math.log(0.08), 0.9))) if uneven else 0.0
        tasks.append(BenchTask(id=f"t{n}", seconds=round(seconds, 3), depends_on=tuple(sorted(needs))))
        ids[depth].append(f"t{n}")
    return tasks


PLANS: Mapping[str, Callable[[], Graph]] = {
    # Two branches whose short and long tasks lie across each other: here a barrier between waves costs.
    "diamond7": lambda: named(
        [
            ("t0", 0.1, ""),
            *(("t1", 0.05, "t0"), ("t2", 0.3, "t0")),
            *(("t3", 0.3, "t1"), ("t4", 0.05, "t2"), ("t5", 0.05, "t2")),
            ("t6", 0.1, "t3 t4 t5"),
        ]
    ),
    "diamond5z": lambda: named(
        [("t0", 0, ""), ("t1", 0, "t0"), ("t2", 0, "t0"), ("t3", 0, "t0"), ("t4", 0, "t1 t2 t3")]
    ),
    "chain50z": lambda: named((f"t{n}", 0, f"t{n - 1}" if n else "") for n in range(50)),
    "rand200": lambda: layered(200, 12, seed=13, uneven=True),
    "dag200z": lambda: layered(200, 12, seed=14),
    "dag1000z": lambda: layered(1_000, 20, seed=15),
    "dag5000z": lambda: layered(5_000, 50, seed=16),
}
"""A name that ends in z: the model answers at once."""

WARM_UP = Workload(plan="dag200z")

WORKLOADS: Mapping[str, Workload] = {
    **{name: Workload(plan=name) for name in PLANS},
    "runs200": Workload(plan="diamond5z", runs=200),
}
