"""What the peers share: the model's calls, and the orders that come line by line on standard input.

A peer says once that it is ready and then answers each order, all in JSON lines. It is measured from outside.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from openai import AsyncOpenAI, DefaultAioHttpClient

_PROMPTS = Path(__file__).parents[3] / "app" / "agents" / "prompts"
_MARK = "1a2b3c4d"

Json = dict[str, Any]
Walk = Callable[[str], Coroutine[Any, Any, object]]
"""Runs the plan of this name once."""


class Task(TypedDict):
    """As the model's plan has it."""

    id: str
    description: str
    depends_on: list[str]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a peer is to run; the only argument of its command, as JSON."""

    model_url: str
    database_url: str
    concurrency: int
    """Model calls at once."""
    variant: str
    uvloop: bool


def messages(seat: str, user: str) -> list[Any]:
    """A request of the size of Planwave's own: with its instructions."""
    return [
        {"role": "system", "content": (_PROMPTS / f"{seat}.md").read_text().strip().replace("{mark}", _MARK)},
        {"role": "user", "content": user},
    ]


_EXECUTOR = messages("executor", "")[0]


def task_messages(plan: str, description: str, results: Mapping[str, str]) -> list[Any]:
    """A task's request: the goal, the results it depends on by key, and its description."""
    blocks = [f'<result-{_MARK} "{i}">\n{text}\n</result-{_MARK}>' for i, text in results.items()]
    user = "\n\n".join([f"Goal of the plan: bench [[plan={plan}]]", *blocks, f"Your task: {description}"])
    return [_EXECUTOR, {"role": "user", "content": user}]


class Model:
    """The openai SDK's client, without retries, and so many calls at once."""

    def __init__(self, setup: Setup, *, aiohttp: bool = False) -> None:
        self._client = AsyncOpenAI(
            base_url=f"{setup.model_url}/v1",
            api_key="x",
            max_retries=0,
            timeout=120,
            http_client=DefaultAioHttpClient() if aiohttp else None,
        )
        self._places = asyncio.Semaphore(setup.concurrency)

    async def plan(self, name: str) -> Sequence[Task]:
        """The tasks of the plan of this name, dependencies first."""
        tasks: Sequence[Task] = json.loads(await self._ask(messages("planner", f"Goal: bench [[plan={name}]]")))[
            "tasks"
        ]
        return tasks

    async def task(self, plan: str, description: str, results: Mapping[str, str]) -> str:
        """The result of a task, given those of its dependencies by key."""
        return await self._ask(task_messages(plan, description, results))

    async def close(self) -> None:
        """End its connections."""
        await self._client.close()

    async def _ask(self, asked: list[Any]) -> str:
        async with self._places:
            answer = await self._client.chat.completions.create(model="bench", messages=asked)
        return answer.choices[0].message.content or ""


@asynccontextmanager
async def model_of(setup: Setup) -> AsyncIterator[Model]:
    """A model whose connections end with the context."""
    model = Model(setup)
    try:
        yield model
    finally:
        await model.close()


def serve(opened: Callable[[Setup], AbstractAsyncContextManager[Walk]], *packages: str) -> None:
    """Be a peer until standard input ends; these packages' versions are told."""
    setup = Setup(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(said: Json) -> None:
        print(json.dumps(said), file=answers, flush=True)

    async def orders() -> None:
        async with opened(setup) as walk:
            say({"versions": {name: version(name) for name in ("openai", *packages)}})
            while line := await asyncio.to_thread(sys.stdin.readline):
                order = json.loads(line)
                try:
                    async with asyncio.timeout(order["seconds"]):
                        await asyncio.gather(*(walk(order["plan"]) for _ in range(order["runs"])))
                    say({})
                except Exception as failure:  # noqa: BLE001 - it is told, and the next order may go well
                    say({"error": f"{type(failure).__name__}: {failure}"[:400]})

    if setup.uvloop:
        import uvloop  # noqa: PLC0415

        uvloop.run(orders())
    else:
        asyncio.run(orders())
