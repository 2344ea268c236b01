"""DBOS: one workflow per run, one durable step per task, started as soon as its dependencies are done.

Step ids are drawn in plan order, so that a replay is deterministic. Its defaults otherwise: 20 connections, system
database on PostgreSQL; no tracing, no admin server.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from dbos import DBOS  # type: ignore[import-not-found]

from benchmarks.compare.peers.peer import Setup, Task, Walk, model_of, serve


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Walk]:
    DBOS(
        config={
            "name": "bench",
            "system_database_url": setup.database_url,
            "log_level": "WARNING",
            "run_admin_server": False,
            "max_executor_threads": 64,
        }
    )
    async with model_of(setup) as model:

        async def draw(plan: str) -> Sequence[Task]:
            return await model.plan(plan)

        async def do(plan: str, description: str, results: Mapping[str, str]) -> str:
            return await model.task(plan, description, results)

        async def run(plan: str) -> int:
            tasks = await draw_plan(plan)
            ends: dict[str, asyncio.Future[str]] = {}

            async def one(task: Task, step: Any) -> str:
                results = {d: await ends[d] for d in task["depends_on"]}
                result: str = await step.run_async({"name": "task"}, do, plan, task["description"], results)
                return result

            for task in tasks:
                ends[task["id"]] = asyncio.ensure_future(one(task, DBOS.reserve_step()))
            return len(await asyncio.gather(*ends.values()))

        draw_plan = DBOS.step()(draw)
        run_plan = DBOS.workflow()(run)
        DBOS.launch()

        async def walk(plan: str) -> None:
            await (await DBOS.start_workflow_async(run_plan, plan)).get_result()

        try:
            yield walk
        finally:
            DBOS.destroy()


if __name__ == "__main__":
    serve(opened, "dbos")
