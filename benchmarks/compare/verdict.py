"""What the model server saw of a measured workload: every task called once, and in order? After which gaps?"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.compare.workloads import Graph


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`gaps` are seconds from the last dependency's answer to the call's arrival; none unless calls are right."""

    calls_ok: bool
    order_ok: bool
    gaps: Sequence[float] = ()

    def gap_ms(self, quantile: float) -> float | None:
        """The gap that this share of the tasks stays below."""
        if len(self.gaps) < 2:
            return None
        return 1_000 * statistics.quantiles(self.gaps, n=100, method="inclusive")[round(100 * quantile) - 1]


def judge(graph: Graph, runs: int, trace: Sequence[tuple[str, float, float]]) -> Verdict:
    """Of (id, arrival, answer), the id being RUN/TASK, or RUN/ for the call that drew the run's plan."""
    planned = [name.removesuffix("/") for name, _, _ in trace if name.endswith("/")]
    calls = {name: (arrived, answered) for name, arrived, answered in trace}
    wanted = {f"{run}/{i}" for run in planned for i in ("", *(task.id for task in graph))}
    twice = any(count > 1 for count in Counter(name for name, _, _ in trace).values())
    if len(planned) != runs or twice or wanted != calls.keys():
        return Verdict(calls_ok=False, order_ok=False)
    gaps: list[float] = []
    for run in planned:
        for task in graph:
            due = max(calls[f"{run}/{i}"][1] for i in (task.depends_on or ("",)))
            gaps.append(calls[f"{run}/{task.id}"][0] - due)
    return Verdict(calls_ok=True, order_ok=min(gaps) >= 0, gaps=gaps)
