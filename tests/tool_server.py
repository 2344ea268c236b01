"""What the tools of a test act on: a server that takes note of every call, by real HTTP, and answers when it may."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Act:
    """A call as it arrived."""

    tool: str
    text: str
    run_id: str
    key: str


class ToolServer:
    """Enter it to serve on `url`: `POST /TOOL` with `text`, `run_id` and `key` gives `TOOL did TEXT`."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self.may_answer = asyncio.Event()
        """Set, unless a test clears it: then every answer waits."""
        self.may_answer.set()
        self._changed = asyncio.Event()
        app = web.Application()
        app.router.add_post("/{tool}", self._act)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.may_answer.set()
        await self._runner.cleanup()

    def of_run(self, run_id: object, tool: str | None = None) -> list[Act]:
        """The calls that a run has made, in order of arrival."""
        return [act for act in self.acts if act.run_id == str(run_id) and tool in (None, act.tool)]

    def times(self, run_id: object) -> Counter[Act]:
        """How often a run has made each call."""
        return Counter(self.of_run(run_id))

    async def until_called(self, times: int) -> None:
        """Wait until so many calls have arrived in all."""
        async with asyncio.timeout(60):
            while len(self.acts) < times:
                self._changed.clear()
                await self._changed.wait()

    async def _act(self, request: web.Request) -> web.Response:
        given = await request.json()
        act = Act(request.match_info["tool"], given["text"], given["run_id"], given["key"])
        self.acts.append(act)
        self._changed.set()
        await self.may_answer.wait()
        return web.Response(text=f"{act.tool} did {act.text}")
