"""One database of each kind per file, emptied for each test."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from app.storage.database import Database
from tests.databases import KINDS, Databases
from tests.stored import forget_everything


@pytest.fixture(scope="module", params=KINDS)
def database_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """With Planwave's schema; cheaper than a new one for each test."""
    with databases.fresh(request.param) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(database_url: str) -> AsyncIterator[Database]:
    """With the statements that it has compiled."""
    database = Database(database_url)
    yield database
    await database.close()


@pytest_asyncio.fixture(loop_scope="module")
async def database(opened: Database) -> Database:
    """Without a row. Its tests carry `pytest.mark.asyncio(loop_scope="module")`."""
    await forget_everything(opened)
    return opened
