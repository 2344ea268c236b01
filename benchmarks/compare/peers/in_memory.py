"""R: the ready-driven loop that everyone writes, nothing stored: the floor of the SDK's client."""

import asyncio
import graphlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.compare.peers.peer import Setup, Walk, model_of, serve


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Walk]:
    async with model_of(setup) as model:

        async def walk(plan: str) -> None:
            tasks = {task["id"]: task for task in await model.plan(plan)}
            order = graphlib.TopologicalSorter({i: task["depends_on"] for i, task in tasks.items()})
            order.prepare()
            results: dict[str, str] = {}
            done: asyncio.Queue[str] = asyncio.Queue()

            async def one(i: str) -> None:
                task = tasks[i]
                results[i] = await model.task(plan, task["description"], {d: results[d] for d in task["depends_on"]})
                done.put_nowait(i)

            async with asyncio.TaskGroup() as group:
                while order.is_active():
                    for i in order.get_ready():
                        group.create_task(one(i))
                    order.done(await done.get())
                    while not done.empty():
                        order.done(done.get_nowait())

        yield walk


if __name__ == "__main__":
    serve(opened)
