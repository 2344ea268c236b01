"""Medians with their intervals, the tables, and the targets."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ENOUGH = 6
"""Fewer values have no interval of 95 %."""

Record = Mapping[str, Any]
"""What was measured of one contender, one workload, one round."""


@dataclass(frozen=True, kw_only=True)
class Median:
    """Of `n` values; `low` and `high` bound it with at least 95 % where n >= 6, else they are the extremes."""

    middle: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.middle:.2f} [{self.low:.2f}, {self.high:.2f}]"


def median(values: Iterable[float]) -> Median | None:
    """The interval is the sign test's: order statistics k and n+1-k, k the largest with 2 P(B(n, 1/2) < k) <= 5 %.

    It assumes nothing of the distribution. For n = 9 it is the second smallest and second largest value (96.1 %).
    """
    ordered = sorted(values)
    if not ordered:
        return None
    n, k = len(ordered), 1
    while 2 * sum(math.comb(n, i) for i in range(k + 1)) <= 0.05 * 2**n:
        k += 1
    return Median(middle=statistics.median(ordered), low=ordered[k - 1], high=ordered[n - k], n=n)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure, and where it says something: with an instant model and 100 calls at once, a gap is queueing."""

    field: str
    title: str
    workloads: frozenset[str]
    digits: int = 2
    compared: bool = True
    """Whether a ratio to the reference says something."""


_INSTANT = frozenset({"chain50z", "dag200z", "dag1000z", "dag5000z", "runs200"})
_WAITING = frozenset({"diamond7", "rand200"})

COLUMNS = (
    Column(field="cpu_ms_task", title="CPU of the client's processes, ms per task", workloads=_INSTANT | {"rand200"}),
    Column(
        field="pg_ms_task", title="CPU of PostgreSQL, ms per task", workloads=_INSTANT | {"rand200"}, compared=False
    ),
    Column(field="x_cp", title="Wall time / critical path", workloads=_WAITING, digits=3),
    Column(
        field="gap_p50_ms",
        title="Gap from the last dependency's answer to the call, p50 ms",
        workloads=_WAITING | {"chain50z"},
    ),
    Column(field="tasks_s", title="Tasks per second", workloads=_INSTANT, digits=0),
    Column(field="rss_mb", title="Peak memory, MiB", workloads=_INSTANT, digits=0),
)


class Results:
    """Valid records by contender, workload and round; what was wrong is kept apart and never averaged."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._found: dict[tuple[str, str], dict[int, Record]] = defaultdict(dict)
        self.wrong: list[Record] = []
        self.workloads: list[str] = []
        self.peers: list[str] = []
        for record in records:
            if fault_of(record) is not None:
                self.wrong.append(record)
                continue
            self._found[record["peer"], record["workload"]][record["round"]] = record
            self.workloads += [w for w in (record["workload"],) if w not in self.workloads]
            self.peers += [p for p in (record["peer"],) if p not in self.peers]

    def values(self, peer: str, workload: str, field: str) -> Mapping[int, float]:
        """By round."""
        found = self._found.get((peer, workload), {})
        return {n: record[field] for n, record in found.items() if record.get(field) is not None}

    def ratio(self, field: str, over: tuple[str, str], under: tuple[str, str]) -> Median | None:
        """Of two (contender, workload), both measured in the same round."""
        a, b = self.values(*over, field), self.values(*under, field)
        return median(a[n] / b[n] for n in sorted(a.keys() & b.keys()) if b[n])


def fault_of(record: Record) -> str | None:
    """Why a record must not be averaged."""
    if record.get("error"):
        return str(record["error"])
    if record.get("calls_ok") is False:
        return "not every task was called exactly once"
    return "a task was called before its dependencies were answered" if record.get("order_ok") is False else None


def tables(results: Results, reference: str) -> str:
    """One per figure, in Markdown: the median, and behind it the median ratio to the reference in the same round."""
    parts: list[str] = []
    for column in COLUMNS:
        shown = [w for w in results.workloads if w in column.workloads]
        if not shown:
            continue
        parts.append(f"\n### {column.title}\n\n| | {' | '.join(shown)} |\n|---|{'---|' * len(shown)}")
        for peer in results.peers:
            cells = [_cell(results, peer, workload, column, reference) for workload in shown]
            if any(cells):
                parts.append(f"| {peer} | {' | '.join(cells)} |")
    if results.wrong:
        parts.append("\n### Not counted\n")
        parts += [f"- round {r['round']}, {r['peer']}, {r['workload']}: {fault_of(r)}" for r in results.wrong]
    return "\n".join(parts)


def _cell(results: Results, peer: str, workload: str, column: Column, reference: str) -> str:
    middle = median(results.values(peer, workload, column.field).values())
    if middle is None:
        return ""
    ratio = None
    if column.compared and peer != reference:
        ratio = results.ratio(column.field, (peer, workload), (reference, workload))
    return f"{middle.middle:.{column.digits}f}" + (f" · ×{ratio}" if ratio else "") + f" n={middle.n}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bound of Planwave's ratio to a peer (or to itself, or of its own figure), at most or at least."""

    title: str
    field: str
    workload: str
    bound: float
    peer: str | None = None
    against: str | None = None
    """The workload of the other side, where it is another."""
    at_least: bool = False


def _faster(than: str, bound: float) -> Target:
    return Target(title="tasks/s", field="tasks_s", workload="runs200", bound=bound, peer=than, at_least=True)


TARGETS: Sequence[Target] = (
    Target(title="CPU per task", field="cpu_ms_task", workload="dag1000z", peer="R", bound=1.1),
    Target(title="CPU per task, same event loop", field="cpu_ms_task", workload="dag1000z", peer="R+uvloop", bound=0.7),
    _faster("procrastinate", 1.5),
    _faster("procrastinate", 2.0),
    *(_faster(peer, bound) for peer in ("dbos", "langgraph") for bound in (2.5, 3.0)),
    Target(title="wall / critical path", field="x_cp", workload="rand200", bound=1.03),
    *(
        Target(title="gap p50", field="gap_p50_ms", workload=workload, peer="R", bound=1.0)
        for workload in ("chain50z", "rand200", "diamond7")
    ),
    Target(title="CPU per task", field="cpu_ms_task", workload="dag5000z", peer="", against="dag200z", bound=1.1),
)


def targets(results: Results, ours: str = "planwave") -> str:
    """A table of those that were measured. One is missed when the whole interval lies on its wrong side."""
    lines = [f"\n### Targets of {ours}\n\n| | measured, median [95 %] | n | target | |\n|---|---|---|---|---|"]
    for target in TARGETS:
        if target.peer is None:
            title = f"{target.title}, {target.workload}"
            found = median(results.values(ours, target.workload, target.field).values())
        else:
            other, theirs = target.peer or ours, target.against or target.workload
            title = f"{target.title}, {target.workload}, of {other}'s" + (f" on {theirs}" if target.against else "")
            found = results.ratio(target.field, (ours, target.workload), (other, theirs))
        if found is None:
            continue
        missed = found.high < target.bound if target.at_least else found.low > target.bound
        reached = found.middle >= target.bound if target.at_least else found.middle <= target.bound
        verdict = "missed" if missed else "met" if reached else "within the interval"
        if found.n < _ENOUGH:
            verdict = "too few rounds to say"
        sign = "≥" if target.at_least else "≤"
        lines.append(f"| {title} | {found} | {found.n} | {sign} {target.bound} | {verdict} |")
    return "\n".join(lines)
