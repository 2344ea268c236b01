"""The composition root: settings in, wired parts out."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from app.engine.worker import Worker
from app.llm.chat import ChatModel
from app.llm.offline import OfflineModel
from app.settings import Settings
from app.storage.database import Database
from app.storage.listen import listen
from app.tools.calculator import calculator
from app.tools.functions import installed_tools, tools_of
from app.tools.http_get import HttpGet
from app.tools.mcp import McpServer
from app.tools.mcp_settings import servers_from_json
from app.tools.read_result import read_result
from app.tools.toolbox import Toolbox

_NO_KEY = "none"
"""Local servers ask for no key, but the SDK wants one."""


def make_database(settings: Settings) -> Database:
    """The database of these settings; it connects when it is first used."""
    return Database(settings.database_url, pool_size=settings.database_pool_size)


def make_model(settings: Settings) -> ChatModel:
    """The model of these settings: an endpoint's, or the built-in one where neither endpoint nor key is set.

    Raises `ConfigurationError` for an endpoint, or a proxy on the way there, that nobody could call.
    """
    if settings.offline:
        return OfflineModel(seed=settings.offline_seed, delay_seconds=settings.offline_delay_seconds)
    from app.llm.openai_model import OpenAIModel  # noqa: PLC0415 - the SDK takes most of a second to import

    return OpenAIModel(
        base_url=settings.llm_base_url,
        api_key=_NO_KEY if settings.llm_api_key is None else settings.llm_api_key.get_secret_value(),
        max_concurrency=settings.llm_max_concurrency,
        max_answer_bytes=settings.llm_max_answer_bytes,
    )


def make_toolbox(settings: Settings) -> Toolbox:
    """The tools of these settings: those that ship, the operator's own, and those of MCP servers once it is opened."""
    servers = [
        McpServer(name, server) for name, server in servers_from_json(settings.mcp_servers.get_secret_value()).items()
    ]
    own = [tool for module in settings.tool_modules for tool in tools_of(module)]
    return Toolbox(
        [calculator, read_result, HttpGet(allowed_private=settings.http_get_private), *installed_tools(), *own],
        servers,
        allowed=settings.tools,
        secrets={name: secret.get_secret_value() for name, secret in settings.tool_secrets.items()},
        redact=[secret for server in servers for secret in server.secrets],
    )


async def run_worker(settings: Settings, stop: asyncio.Event, on_start: Callable[[], None] = lambda: None) -> None:
    """A worker alone, with everything it needs, until `stop` is set and it has drained.

    Raises `ConfigurationError` before `on_start` is called.
    """
    toolbox, model = make_toolbox(settings), make_model(settings)
    on_start()
    database = make_database(settings)
    try:
        await toolbox.open()
        await work(database, model, toolbox, settings, stop)
    finally:
        await toolbox.close()
        await database.close()


async def work(
    database: Database, model: ChatModel | None, toolbox: Toolbox, settings: Settings, stop: asyncio.Event
) -> None:
    """Listen for what other processes announce and, where there is a model, drive runs; until `stop` is set.

    The toolbox is open. The model is closed afterwards.
    """
    listening = asyncio.create_task(listen(database)) if settings.wake == "auto" else None
    try:
        if model is None:
            await stop.wait()
            return
        try:
            await Worker(database, model, settings, toolbox).run(stop)
        finally:
            await model.close()
    finally:
        if listening is not None:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
