"""Faults that pass, and such as do not: what they are called, and which transactions are tried again."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from app.domain.errors import StorageConflict, StorageUnavailable
from app.domain.ids import RunId
from app.storage import tables
from app.storage.database import Database
from app.storage.faults import tried_again
from tests.databases import KINDS, Databases, opened
from tests.stored import make_run, row_of

ROUNDS = 20
_CONFLICT = """
CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'of no consequence' USING ERRCODE = '{}'; END $$;
CREATE TRIGGER conflict BEFORE UPDATE ON runs EXECUTE FUNCTION conflict();
"""


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    """Of a database that only PostgreSQL can give: SQLite has one writer at a time."""
    with databases.fresh("postgresql") as url:
        yield url


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with opened(url) as database:
        yield database


async def test_transactions_that_lock_each_other_out_all_pass(database: Database) -> None:
    one, other = [await make_run(database) for _ in range(2)]
    tries: Counter[str] = Counter()

    @tried_again
    async def add(name: str, first: RunId, second: RunId, first_is_locked: asyncio.Barrier) -> None:
        tries[name] += 1
        async with database.write() as connection:
            await connection.execute(sa.text("SET LOCAL deadlock_timeout = '10ms'"))
            await connection.execute(raised(first))
            if tries[name] == 1:
                await first_is_locked.wait()
            await connection.execute(raised(second))

    for round_ in range(ROUNDS):
        tries.clear()
        both = asyncio.Barrier(2)
        async with asyncio.timeout(60):
            await asyncio.gather(add("there", one, other, both), add("back", other, one, both))
        assert tries.total() > 2, "they did not collide"
        assert [(await row_of(database, run))["priority"] for run in (one, other)] == [2 * (round_ + 1)] * 2


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_a_transaction_that_is_given_up_each_time_is_a_conflict_after_five_tries(
    database: Database, url: str, sqlstate: str
) -> None:
    run = await make_run(database)
    with psycopg.connect(url, autocommit=True) as operator:
        operator.execute(_CONFLICT.format(sqlstate).encode())
    tries = 0

    @tried_again
    async def write() -> None:
        nonlocal tries
        tries += 1
        async with database.write() as connection:
            await connection.execute(raised(run))

    with pytest.raises(StorageConflict):
        await write()
    assert tries == 5


def raised(run: RunId) -> sa.Update:
    return sa.update(tables.runs).where(tables.runs.c.id == run).values(priority=tables.runs.c.priority + 1)


# --- a database that can only be read

_NO_WRITES = {"sqlite": "PRAGMA query_only = ON", "postgresql": "SET SESSION default_transaction_read_only = on"}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_cannot_write_is_replaced(databases: Databases, kind: str) -> None:
    """After a failover it may lead to what is now the standby, or be older than the promotion."""
    with databases.fresh(kind) as url:
        async with opened(url) as database:
            run = await make_run(database)
            async with database.write() as connection:
                await connection.exec_driver_sql(_NO_WRITES[kind])
            with pytest.raises(StorageUnavailable):
                await written(database, run)
            await database.ping()
            await written(database, run)
            assert (await row_of(database, run))["priority"] == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_the_writers_connection_that_cannot_write_is_replaced(databases: Databases, kind: str) -> None:
    def forbid(connection: sa.Connection) -> None:
        connection.exec_driver_sql(_NO_WRITES[kind])

    def write(connection: sa.Connection) -> None:
        connection.execute(raised(run))

    with databases.fresh(kind) as url:
        async with opened(url) as database:
            run = await make_run(database)
            await database.write_in_thread(forbid)
            with pytest.raises(StorageUnavailable):
                await database.write_in_thread(write)
            await database.write_in_thread(write)
            assert (await row_of(database, run))["priority"] == 1


async def test_a_database_that_can_only_be_read_is_not_ready(database: Database, url: str) -> None:
    run = await make_run(database)
    name = sa.make_url(url).database
    with psycopg.connect(url, autocommit=True) as operator:
        operator.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'.encode())
        async with database.write() as connection:
            await connection.exec_driver_sql(_NO_WRITES["postgresql"])  # as the connections to come are by themselves
        with pytest.raises(StorageUnavailable):
            await written(database, run)
        with pytest.raises(StorageUnavailable):
            await database.ping()
        operator.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only'.encode())
        await database.ping()


async def written(database: Database, run: RunId) -> None:
    async with database.write() as connection:
        await connection.execute(raised(run))


# --- what is no fault of the database


async def test_a_statement_that_cannot_work_is_not_taken_for_a_database_that_is_away(
    databases: Databases,
) -> None:
    """It would be tried for ever."""
    for kind in KINDS:
        with databases.fresh(kind) as url:
            async with opened(url) as database:
                with pytest.raises(DBAPIError):
                    async with database.read() as connection:
                        await connection.exec_driver_sql("SELECT 1 FROM nowhere")


async def test_a_row_that_is_too_large_for_postgresql_is_not_taken_for_a_database_that_is_full(
    database: Database,
) -> None:
    words = "SELECT string_agg(md5(n::text), '') AS word FROM generate_series(1, 5000) AS n"

    async def write() -> None:
        async with database.write() as connection:
            await connection.exec_driver_sql("CREATE TEMP TABLE narrow (word text PRIMARY KEY)")
            await connection.exec_driver_sql(f"INSERT INTO narrow {words}")

    with pytest.raises(DBAPIError) as refused:
        await write()
    assert getattr(refused.value.orig, "sqlstate", None) == "54000"


async def test_who_waits_to_write_to_a_locked_file_does_not_wait_for_ever(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.engines.SQLITE_BUSY_SECONDS", 0.05)
    with databases.fresh("sqlite") as url:
        async with opened(url) as database:
            async with database.write():
                with pytest.raises(StorageUnavailable):
                    async with database.write():
                        pass
            async with database.write():  # and whoever comes later writes
                pass
