"""The ASGI application: the API, and by default a worker in the same process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app.api.routes import create_api
from app.api.services import Services
from app.api.watch import RunWatch
from app.bootstrap import make_database, work
from app.settings import Settings


def create_app(settings: Settings, *, with_worker: bool = True) -> FastAPI:
    """The service of these settings. Its database must have the newest schema (`planwave db upgrade`)."""
    database = make_database(settings)
    services = Services(database=database, settings=settings, watch=RunWatch(database))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        working = asyncio.create_task(work(database, settings, services.draining, with_worker=with_worker))
        yield
        services.draining.set()
        await working
        await database.close()

    app = create_api(services, lifespan=lifespan)
    app.state.begin_drain = services.draining.set
    return app
