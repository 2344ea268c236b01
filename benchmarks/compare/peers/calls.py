"""A floor: the same calls with no orchestration, all tasks at once, as if their dependencies' results were known.

Variants: "sdk" (the openai SDK on its own transport), "sdk-aiohttp" (on its aiohttp transport), "bare" (aiohttp alone).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import aiohttp
import orjson  # type: ignore[import-not-found]

from benchmarks.compare.peers.peer import Model, Setup, Walk, serve, task_messages

_RESULT = "result: done. " * 17

Ask = Callable[[str, str, Mapping[str, str]], Awaitable[str]]


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Walk]:
    places = asyncio.Semaphore(setup.concurrency)
    model = Model(setup, aiohttp=setup.variant == "sdk-aiohttp")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=setup.concurrency)) as session:

        async def bare(plan: str, description: str, results: Mapping[str, str]) -> str:
            body = orjson.dumps({"model": "bench", "messages": task_messages(plan, description, results)})
            headers = {"Content-Type": "application/json"}
            url = f"{setup.model_url}/v1/chat/completions"
            async with places, session.post(url, data=body, headers=headers) as response:
                content: str = orjson.loads(await response.read())["choices"][0]["message"]["content"]
                return content

        ask: Ask = bare if setup.variant == "bare" else model.task

        async def walk(plan: str) -> None:
            await asyncio.gather(
                *(
                    ask(plan, task["description"], dict.fromkeys(task["depends_on"], _RESULT))
                    for task in await model.plan(plan)
                )
            )

        yield walk
        await model.close()


if __name__ == "__main__":
    serve(opened, "aiohttp")
