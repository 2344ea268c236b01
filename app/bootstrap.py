"""The composition root: settings in, wired parts out."""

import asyncio
from contextlib import suppress

from app.engine.worker import Worker
from app.llm.chat import ChatModel
from app.llm.offline import OfflineModel
from app.settings import Settings
from app.storage.database import Database
from app.storage.listen import listen

_NO_KEY = "none"
"""Local servers ask for no key, but the SDK wants one."""


def make_database(settings: Settings) -> Database:
    """The database of these settings; it connects when it is first used."""
    return Database(settings.database_url, pool_size=settings.database_pool_size)


def make_model(settings: Settings) -> ChatModel:
    """The model of these settings: an endpoint's, or the built-in one where neither endpoint nor key is set."""
    if settings.offline:
        return OfflineModel(seed=settings.offline_seed, delay_seconds=settings.offline_delay_seconds)
    from app.llm.openai_model import OpenAIModel  # noqa: PLC0415 - the SDK takes most of a second to import

    return OpenAIModel(
        base_url=settings.llm_base_url,
        api_key=_NO_KEY if settings.llm_api_key is None else settings.llm_api_key.get_secret_value(),
        max_concurrency=settings.llm_max_concurrency,
        max_answer_bytes=settings.llm_max_answer_bytes,
    )


async def run_worker(settings: Settings, stop: asyncio.Event) -> None:
    """A worker alone, with everything it needs, until `stop` is set and it has drained."""
    database = make_database(settings)
    try:
        await work(database, settings, stop)
    finally:
        await database.close()


async def work(database: Database, settings: Settings, stop: asyncio.Event, *, with_worker: bool = True) -> None:
    """Listen for what other processes announce and, `with_worker`, drive runs; until `stop` is set."""
    listening = asyncio.create_task(listen(database)) if settings.wake == "auto" else None
    try:
        if not with_worker:
            await stop.wait()
            return
        model = make_model(settings)
        try:
            await Worker(database, model, settings).run(stop)
        finally:
            await model.close()
    finally:
        if listening is not None:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
