"""Model calls spent to recover from one failed task in a 7-task plan, against re-running the plan.

A real service before a scripted model that spoils the first answer of one task: each task in turn. Calls are counted
where they arrive, so the figures are exact and the same on every machine. "after" are the calls from the failure to the
run's result, "more" those that a run without the failure would not have made; a rerun asks planner, tasks and
synthesizer again.

    python -m benchmarks.recovery [--database sqlite]
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import httpx

from tests.databases import Databases
from tests.scripted_model import Call, Plan, Reply, ScriptedModel, script, tasks_of, text
from tests.service_process import ServiceProcess, against, ended

PLAN: Plan = {"1": [], "2": ["1"], "3": ["1"], "4": ["2"], "5": ["3"], "6": ["4", "5"], "7": ["6"]}
RERUN = 1 + len(PLAN) + 1


def with_all_behind(task: str) -> list[str]:
    """The task and what cannot run without it, in plan order."""
    found = {task}
    for i, needs in PLAN.items():
        if not found.isdisjoint(needs):
            found.add(i)
    return [i for i in PLAN if i in found]


def answer(strategy: str, task: str) -> Reply:
    """What the recovery seat says of the task."""
    if strategy == "retry":
        return text(json.dumps({"strategy": "retry", "description": "Do it otherwise."}))
    if strategy == "skip":
        return text(json.dumps({"strategy": "skip"}))
    anew = with_all_behind(task)
    tasks = tasks_of({i: [d if d in anew else f"0.{d}" for d in PLAN[i]] for i in anew})
    drawn = [{**entry, "description": f"Do {entry['id']} in another way."} for entry in tasks]
    return text(json.dumps({"strategy": "replan", "tasks": drawn}))


CASES: Mapping[str, tuple[str, str]] = {
    "retry": ("retry", "retry"),
    "skip": ("skip", "skip"),
    "replan": ("replan", "replan"),
    "auto: retry": ("auto", "retry"),
    "auto: skip": ("auto", "skip"),
    "auto: replan": ("auto", "replan"),
}
"""The goal's `on_failure`, and what the recovery seat answers."""


async def spent(client: httpx.AsyncClient, model: ScriptedModel, case: str, task: str) -> tuple[int, int]:
    """Calls after the failure, and how many more than without it. Raises unless the run succeeds, repeating nothing."""
    on_failure, strategy = CASES[case]
    failed_at = 0

    def once_spoiled(call: Call) -> Reply:
        nonlocal failed_at
        if call.task_key == f"0.{task}" and not failed_at:
            failed_at = len(model.calls)
            return text("")
        return text(f"result of {call.task_key}")

    model.begin(script({"executor": once_spoiled, "recovery": answer(strategy, task)}, plan=PLAN))
    # One call at a time, or what is under way at the failure would depend on chance.
    options = {"on_failure": on_failure, "max_attempts": 1, "max_parallel": 1}
    run = await ended(client, goal="bench", options=options)
    model.check()
    repeated = [i for i in PLAN if i != task and len(model.calls_for(f"0.{i}")) > 1]
    if run["status"] != "succeeded" or repeated:
        raise RuntimeError(f"{case} at {task}: {run['status']} {run['error']}, called again: {repeated}")
    return len(model.calls) - failed_at, len(model.calls) - RERUN


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        with closing(Databases(directory)) as databases, databases.fresh(arguments.database) as url:
            async with (
                ScriptedModel(script()) as model,
                ServiceProcess("serve", directory=directory, settings=against(url, model)) as service,
                service.client() as client,
            ):
                print(f"{'calls after the failure of task':32}{''.join(f'{i:>6}' for i in PLAN)}{'mean':>8}{'more':>8}")
                for case in CASES:
                    counts = [await spent(client, model, case, task) for task in PLAN]
                    after, more = [count[0] for count in counts], sorted({count[1] for count in counts})
                    mean = sum(after) / len(after)
                    extra = "-".join(str(n) for n in dict.fromkeys((more[0], more[-1])))
                    print(f"{case:32}{''.join(f'{n:>6}' for n in after)}{mean:>8.1f}{extra:>8}", flush=True)
    print(f"{'rerun':32}{f'{RERUN:>6}' * len(PLAN)}{RERUN:>8.1f}{RERUN:>8}")


if __name__ == "__main__":
    asyncio.run(main())
