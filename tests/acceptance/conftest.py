"""One service and one model behind it per file and kind of database, for tests that need no process of their own."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

import httpx
import pytest
import pytest_asyncio

from app.domain.ids import RunId
from app.storage.database import Database
from tests.databases import KINDS, Databases, opened
from tests.invariants import check
from tests.scripted_model import ScriptedModel, script
from tests.service_process import ServiceProcess, against

SETTINGS = {
    "context_max_characters": 4_000,
    "llm_backoff_base_seconds": 0.002,
    "llm_backoff_cap_seconds": 0.01,
    "llm_prices": '{"dear": {"input": 1000000, "output": 1000000}}',
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Processes that are killed or stopped cost most of the time: on SQLite they are for `make soak`."""
    for item in items:
        name, _, parameters = item.name.partition("[")
        if ("_kill" in name or "_stopped" in name) and "sqlite" in parameters:
            item.add_marker(pytest.mark.soak)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A service, its model, and a look into its database."""

    client: httpx.AsyncClient
    model: ScriptedModel
    database: Database
    service: ServiceProcess


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def running(
    request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """Its tests carry `pytest.mark.asyncio(loop_scope="module")`: the model answers in that loop."""
    directory = tmp_path_factory.mktemp("service")
    with databases.fresh(request.param) as url:
        async with ScriptedModel(script()) as model:
            settings = {**against(url, model), **SETTINGS}
            async with (
                ServiceProcess("serve", directory=directory, settings=settings) as service,
                service.client() as client,
                opened(url) as database,
            ):
                yield Running(client=client, model=model, database=database, service=service)


@pytest_asyncio.fixture(loop_scope="module")
async def model(running: Running) -> AsyncIterator[ScriptedModel]:
    """The service's model, on which every seat answers well until the test says otherwise.

    Afterwards the rows of every run that called it must hold together.
    """
    running.model.begin(script())
    yield running.model
    running.model.check()
    for run_id in {call.run_id for call in running.model.calls}:
        await check(running.database, RunId(UUID(run_id)))


@pytest.fixture
def client(running: Running) -> httpx.AsyncClient:
    """A client of the service."""
    return running.client


@pytest.fixture
async def runs_hold_together(database_url: str, scripted_model: ScriptedModel) -> AsyncIterator[None]:
    """Afterwards the rows of every run that called the model of a test with its own processes must hold together."""
    yield
    async with opened(database_url) as database:
        for run_id in {call.run_id for call in scripted_model.calls}:
            await check(database, RunId(UUID(run_id)))
