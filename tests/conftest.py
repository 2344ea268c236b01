"""Databases of both kinds, a scripted model, and the service as a process, for every test that asks."""

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from tests.databases import KINDS, Databases
from tests.postgres import Postgres
from tests.scripted_model import ScriptedModel, script
from tests.service_process import ServiceProcess, StartProcess, against

# A shell's background jobs ignore it, and so would every process that the tests start from there.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def no_proxies() -> Iterator[None]:
    """What the caller's environment says of proxies is none of the tests' business."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            environment.delenv(name, raising=False)
            environment.delenv(name.lower(), raising=False)
        yield


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Where tests with needs of their own get databases: `with databases.fresh("sqlite") as url`.

    What tests end are processes, never the machine, so their PostgreSQL need not wait for the disk.
    """
    with closing(Databases(tmp_path_factory.mktemp("databases"), fsync=False)) as made:
        yield made


@pytest.fixture
def postgres(databases: Databases) -> Postgres:
    """A real server, started when the first test needs it and kept for all."""
    return databases.postgres


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """A new database with Planwave's schema, of each kind in turn."""
    with databases.fresh(request.param) as url:
        yield url


@pytest.fixture(params=KINDS)
def empty_database_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """A new database without any table, of each kind in turn."""
    with databases.fresh(request.param, migrated=False) as url:
        yield url


@pytest.fixture
async def scripted_model() -> AsyncIterator[ScriptedModel]:
    """A model server on which every seat answers well; `begin` gives it another script."""
    async with ScriptedModel(script()) as model:
        yield model


@pytest.fixture
async def start_process(
    database_url: str, scripted_model: ScriptedModel, tmp_path: Path
) -> AsyncIterator[StartProcess]:
    """`await start_process("serve", "--no-worker", lease_seconds=2)`; whatever a test starts ends with it."""
    async with AsyncExitStack() as started:

        async def start(command: str = "serve", *arguments: str, **settings: object) -> ServiceProcess:
            given = {**against(database_url, scripted_model), **settings}
            return await started.enter_async_context(
                ServiceProcess(command, *arguments, directory=tmp_path, settings=given)
            )

        yield start
