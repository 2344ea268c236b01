"""Tools as an operator writes them: they act on a `ToolServer`, whose URL is their secret."""

import asyncio
import json
from contextlib import suppress
from urllib.request import ProxyHandler, Request, build_opener

import aiohttp

from app.tools.functions import tool
from app.tools.tool import ToolContext

URL = "TOOL_SERVER"
NAMES = ["look", "put", "charge", "block"]


def _said(text: str, context: ToolContext) -> dict[str, str]:
    return {"text": text, "run_id": context.run_id, "key": context.idempotency_key}


async def _act(name: str, text: str, context: ToolContext) -> str:
    async with (
        aiohttp.ClientSession(raise_for_status=True) as session,
        session.post(f"{context.secrets[URL]}/{name}", json=_said(text, context)) as response,
    ):
        return await response.text()


@tool(secrets=(URL,))
async def look(text: str, context: ToolContext) -> str:
    """Look at something: changes nothing."""
    return await _act("look", text, context)


@tool(side_effects="idempotent", secrets=(URL,))
async def put(text: str, context: ToolContext) -> str:
    """Put something somewhere: once for each key."""
    return await _act("put", text, context)


@tool(side_effects="once", secrets=(URL,))
async def charge(text: str, context: ToolContext) -> str:
    """Charge somebody: each time anew."""
    return await _act("charge", text, context)


@tool(side_effects="once", secrets=(URL,))
def block(text: str, context: ToolContext) -> str:
    """Charge somebody, and keep the thread until that is done."""
    request = Request(f"{context.secrets[URL]}/block", json.dumps(_said(text, context)).encode())
    with build_opener(ProxyHandler({})).open(request) as response:
        answer: bytes = response.read()
    return answer.decode()


@tool(side_effects="idempotent", secrets=(URL,))
async def linger(text: str, context: ToolContext) -> str:
    """Go on for ever, whatever is said."""
    await _act("linger", text, context)
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
