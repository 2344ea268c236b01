"""The API in this process, on a real database; no worker runs, so that runs stand as the tests leave them."""

from collections.abc import AsyncIterator
from decimal import Decimal

import httpx
import pytest
from fastapi import FastAPI

from app.api.routes import create_api
from app.api.services import Services
from app.api.watch import RunWatch
from app.domain.status import SideEffects
from app.settings import ModelPrice, Settings
from app.storage.database import Database
from tests.api.asking import asking
from tests.engine.recording_tools import RecordingTool, toolbox
from tests.service_process import free_port


@pytest.fixture
def settings() -> Settings:
    """Of a service with a model."""
    return Settings(llm_base_url="http://127.0.0.1:9/v1", llm_model="scripted")


@pytest.fixture
def priced(settings: Settings) -> None:
    """The models of the service have prices."""
    settings.llm_prices["scripted"] = ModelPrice(input=Decimal("0.15"), output=Decimal("0.6"))


@pytest.fixture
async def services(database_url: str, settings: Settings) -> AsyncIterator[Services]:
    """On a new database of each kind in turn, with the tools `calculator`, `mail` and `read_result`."""
    database = Database(database_url)
    tools = toolbox([RecordingTool("mail", side_effects=SideEffects.ONCE)])
    yield Services(database=database, settings=settings, watch=RunWatch(database), toolbox=tools)
    await database.close()


@pytest.fixture
def api(services: Services) -> FastAPI:
    """The app on these services."""
    return create_api(services)


@pytest.fixture
async def client(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Asks the app without a network."""
    async with asking(api) as client:
        yield client


@pytest.fixture
async def lonely(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Asks an app whose database is away: whatever it answers but 503, it answers without SQL."""
    database = Database(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")
    async with asking(create_api(Services(database=database, settings=settings, watch=RunWatch(database)))) as client:
        yield client
    await database.close()
