"""The ASGI application: the API, and by default a worker in the same process."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI

from app.api.routes import create_api
from app.api.services import Services
from app.api.watch import RunWatch
from app.bootstrap import make_database, make_model, make_toolbox, work
from app.settings import Settings

log = structlog.get_logger(__name__)


def create_app(settings: Settings, *, with_worker: bool = True) -> FastAPI:
    """The service of these settings. Its database must have the newest schema (`planwave db upgrade`)."""
    database = make_database(settings)
    toolbox = make_toolbox(settings)
    model = make_model(settings) if with_worker else None
    services = Services(database=database, settings=settings, watch=RunWatch(database), toolbox=toolbox)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await toolbox.open()  # a goal may name what MCP servers offer as soon as there is an answer at all
        working = asyncio.create_task(work(database, model, toolbox, settings, services.draining))
        working.add_done_callback(_stop_service_if_broken)
        app.state.is_drained = working.done
        yield
        services.draining.set()
        try:
            await working
        finally:
            await toolbox.close()
            await database.close()

    app = create_api(services, lifespan=lifespan)
    app.state.begin_drain = services.draining.set
    return app


def _stop_service_if_broken(working: asyncio.Task[None]) -> None:
    """A service whose worker has died would take goals and never run them: stop, so that it is started again."""
    if not working.cancelled() and (error := working.exception()) is not None:
        log.critical("worker broke, stopping", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)  # to the process: a thread may be waiting for it
