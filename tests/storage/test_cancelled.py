"""Reads and writes that are cancelled: nothing stays open, and nobody waits for a server that hangs."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.storage.database import Database
from tests.databases import Databases
from tests.polling import until
from tests.storage.goal_rows import count_goals, insert_goal
from tests.stored import forget_everything

WITHIN_SECONDS = 30


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """One for each test: they spoil its connections."""
    opened = Database(database_url)
    await forget_everything(opened)
    yield opened
    await opened.close()


@contextmanager
def uncollected() -> Iterator[None]:
    """While what lies about in cycles goes on lying about."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def cut_after(turns: int, do: Callable[[], Coroutine[Any, Any, object]], *, times: int) -> None:
    """Start it so many times at once, and cancel all after so many turns of the loop."""
    started = [asyncio.create_task(do()) for _ in range(times)]
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)


async def test_transactions_that_are_cancelled_leave_the_pool_usable(database: Database) -> None:
    async def write() -> None:
        async with database.write() as connection:
            await connection.execute(insert_goal())

    async with asyncio.timeout(WITHIN_SECONDS):
        for turns in range(40):
            await cut_after(turns, write, times=3)
        before = await count_goals(database)
        await asyncio.gather(*(write() for _ in range(20)))
    assert await count_goals(database) == before + 20


async def test_reads_that_are_cancelled_leave_the_pool_usable(database: Database) -> None:
    async with asyncio.timeout(WITHIN_SECONDS):
        for turns in range(0, 40, 2):
            await cut_after(turns, partial(count_goals, database), times=12)
        assert await asyncio.gather(*(count_goals(database) for _ in range(30))) == [0] * 30


async def test_connections_that_nobody_awaits_any_more_are_closed(databases: Databases) -> None:
    """And not left to the garbage collector, which may come late: the server would run out of them."""
    with databases.fresh("postgresql") as url, psycopg.connect(url, autocommit=True) as watching, uncollected():
        database = Database(url, pool_size=2)

        def are_few() -> bool:  # a server takes a moment to end one
            others = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
            return len(watching.execute(others).fetchall()) <= 2

        for turns in range(0, 40, 2):
            await cut_after(turns, partial(count_goals, database), times=2)
        await until(are_few, within_seconds=WITHIN_SECONDS)
        await database.close()


async def test_reads_that_are_cancelled_leave_no_file_open(databases: Databases) -> None:
    """Nor a read transaction, behind which a WAL cannot be emptied."""
    with databases.fresh("sqlite") as url, uncollected():
        database = Database(url)
        for turns in range(0, 80, 2):
            await cut_after(turns, partial(count_goals, database), times=12)
        await database.close()
        await until(lambda: not files_open(url), within_seconds=WITHIN_SECONDS)


async def test_a_cursor_that_nobody_has_closed_keeps_no_file_open(databases: Databases) -> None:
    """As a read leaves it that is cancelled while its statement runs."""
    with databases.fresh("sqlite") as url, uncollected():
        database = Database(url)
        async with database.read() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            left = await driver.cursor()
            await left.execute("SELECT 1 FROM sqlite_master")  # with rows that nobody reads
            await connection.invalidate()
        assert not files_open(url)
        await database.close()


@pytest.mark.parametrize("cancels", [1, 2])
async def test_a_read_that_is_cancelled_does_not_wait_for_a_server_that_hangs(
    databases: Databases, monkeypatch: pytest.MonkeyPatch, cancels: int
) -> None:
    """And the connection is closed all the same when the server makes it after all."""
    connect = psycopg.AsyncConnection.connect
    asked, hangs_no_more = asyncio.Event(), asyncio.Event()
    made: list[psycopg.AsyncConnection] = []

    async def late(*args: Any, **more: Any) -> psycopg.AsyncConnection:
        asked.set()
        await hangs_no_more.wait()
        made.append(await connect(*args, **more))
        return made[0]

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", late)
    with databases.fresh("postgresql") as url:
        database = Database(url)
        reading = asyncio.create_task(count_goals(database))
        await asked.wait()
        for _ in range(cancels):
            reading.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([reading], timeout=WITHIN_SECONDS)
        assert reading.cancelled()
        hangs_no_more.set()
        await until(lambda: bool(made) and made[0].closed, within_seconds=WITHIN_SECONDS)
        await database.close()


async def test_a_read_that_is_cancelled_as_its_connection_is_prepared_gives_its_place_back(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves no connection behind that writes without transactions."""
    set_autocommit = psycopg.AsyncConnection.set_autocommit
    preparing = asyncio.Event()

    async def slowly(connection: psycopg.AsyncConnection, value: bool) -> None:
        await set_autocommit(connection, value)
        preparing.set()
        await asyncio.sleep(WITHIN_SECONDS)

    with databases.fresh("postgresql") as url:
        database = Database(url, pool_size=1)
        assert await count_goals(database) == 0
        with monkeypatch.context() as patch:
            patch.setattr(psycopg.AsyncConnection, "set_autocommit", slowly)
            reading = asyncio.create_task(count_goals(database))
            await preparing.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError) as kept:  # with all that its frames refer to
                await reading
        with suppress(LookupError):
            async with database.write() as connection:
                await connection.execute(insert_goal())
                raise LookupError
        assert await count_goals(database) == 0
        assert kept.value
        await database.close()


def files_open(url: str) -> list[str]:
    """This process's descriptors of a SQLite database."""
    file = url.removeprefix("sqlite:///")
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(descriptor.readlink()))
    return [name for name in found if name.startswith(file)]
