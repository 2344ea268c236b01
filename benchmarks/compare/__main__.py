"""Planwave beside its peers and the floors: prints tables, and writes every measurement to a file of JSON lines.

    python -m benchmarks.compare [--rounds 9] [--peers planwave,R,...] [--workloads dag1000z,...] [--out FILE]
    python -m benchmarks.compare --show FILE...

Each round starts every contender on a fresh database of one durable PostgreSQL; each workload is then run by all of
them in turn. At most 100 model calls at once, requests of the same size, no retries. CPU, memory and time are read from
outside; the model server says whether every task was called once and after its dependencies. Behind each figure stands
its ratio to R's of the same round: the median with the sign test's 95 % interval (order statistics; of 9 rounds the
second smallest and second largest). What was wrong is listed and not averaged.

Peers: planwave (one process), planwave-split (API and worker apart), R (the in-memory loop that everyone writes),
langgraph (durability "sync"), langgraph-async, procrastinate, dbos; floors: calls (the openai SDK), calls-aiohttp (on
its aiohttp transport), calls-bare (aiohttp alone), commits, commits-asyncpg, commits-grouped (raw commits, no calls).
All but Planwave, which runs on uvloop where it is installed, also as NAME+uvloop.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import httpx

from benchmarks.compare.contenders import KINDS, PLANWAVE
from benchmarks.compare.database import durable_server, shared_postgres
from benchmarks.compare.figures import Record, Results, fault_of, tables, targets
from benchmarks.compare.rounds import Field, measured
from benchmarks.compare.workloads import PLANS, WARM_UP, WORKLOADS
from benchmarks.rig import model_server, write_plan
from tests.databases import Databases

_PEERS = "planwave,R,R+uvloop,langgraph,procrastinate,dbos,calls,calls-aiohttp,calls-bare,commits,commits-grouped"
_WORKLOADS = "dag1000z,runs200,rand200,chain50z,dag200z,dag5000z,diamond7"


async def run(arguments: argparse.Namespace, out: Path) -> list[Record]:
    """Measure what the command line asks for, writing as it goes."""
    records: list[Record] = []
    graphs = {name: PLANS[name]() for name in {WARM_UP.plan, *(WORKLOADS[w].plan for w in arguments.workloads)}}
    with tempfile.TemporaryDirectory() as made, shared_postgres() as postgres:
        directory = Path(made)
        for name, graph in graphs.items():
            write_plan(directory, name, graph)
        databases = Databases(directory, lambda: postgres)
        with closing(databases), model_server(directory) as model_url:
            with databases.fresh("postgresql", migrated=False) as url:
                postgres_pid, server = durable_server(url)
            print(f"{server}; {arguments.rounds} rounds", file=sys.stderr, flush=True)
            field = Field(
                databases=databases,
                directory=directory,
                graphs=graphs,
                model_url=model_url,
                model_pid=httpx.get(f"{model_url}/counts").json()["pid"],  # noqa: ASYNC210 - nothing else goes on
                postgres_pid=postgres_pid,
                limit_seconds=arguments.limit,
            )
            with out.open("a") as lines:
                async for record in measured(arguments.rounds, arguments.peers, arguments.workloads, field):
                    records.append(record)
                    print(json.dumps(record), file=lines, flush=True)
                    print(progress(record), file=sys.stderr, flush=True)
    return records


def progress(record: Record) -> str:
    """A record in a line."""
    start = f"round {record['round']}  {record['workload']:9} {record['peer']:16}"
    if fault := fault_of(record):
        return f"{start} {fault}"
    return (
        f"{start} {record['cpu_ms_task']:8.3f} ms CPU  {record['tasks_s']:7.0f} tasks/s  {record['wall_s']:7.2f} s  "
        f"{record['rss_mb']:5.0f} MiB  steal {record['steal_pct']:.0f} %"
    )


def show(records: Sequence[Record]) -> None:
    """Print the tables: ratios to R, and the targets of each form of Planwave that was measured."""
    results = Results(records)
    print(tables(results, "R"))
    for name in PLANWAVE:
        if name in results.peers:
            print(targets(results, name))


def peers(text: str) -> list[str]:
    """A comma list of contenders."""
    return known(text, [*PLANWAVE, *KINDS, *(f"{name}+uvloop" for name in KINDS)])


def workloads(text: str) -> list[str]:
    """A comma list of workloads."""
    return known(text, list(WORKLOADS))


def known(text: str, names: Sequence[str]) -> list[str]:
    """The names in a comma list. Raises ArgumentTypeError unless they are among these."""
    if unknown := set(text.split(",")) - set(names):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return text.split(",")


def main() -> None:
    """Measure, or show what has been measured."""
    parser = argparse.ArgumentParser(prog="benchmarks.compare")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peers", type=peers, default=_PEERS)
    parser.add_argument("--workloads", type=workloads, default=_WORKLOADS)
    parser.add_argument("--limit", type=float, default=180, help="seconds that one workload may take")
    parser.add_argument(
        "--out",
        type=Path,
        help="where measurements are added; a new file in the directory for temporary files unless given",
    )
    parser.add_argument(
        "--show", type=Path, nargs="+", help="files of measurements to print the tables of, instead of measuring"
    )
    arguments = parser.parse_args()
    if arguments.show:
        show([json.loads(line) for file in arguments.show for line in file.read_text().splitlines()])
        return
    out = arguments.out or Path(tempfile.gettempdir()) / f"planwave-bench-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whatever ends it, nothing that it started is left
    records = asyncio.run(run(arguments, out))
    show(records)
    print(f"\nMeasurements: {out}")


if __name__ == "__main__":
    main()
