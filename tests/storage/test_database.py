"""Transactions: what commits, what is rolled back, what is announced, and what a fault is called."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from app.domain.errors import ConfigurationError, StorageUnavailable
from app.storage import engines, tables
from app.storage.database import Database, new_id, now_ms
from app.storage.engines import parse_url
from app.storage.listen import listen
from tests.databases import Databases, opened
from tests.storage.goal_rows import count_goals, insert_goal
from tests.stored import forget_everything, make_goal, make_run, row_of

WITHIN_SECONDS = 30


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """One for each test: they cut connections, bend them, and listen."""
    opened = Database(database_url)
    await forget_everything(opened)
    yield opened
    await opened.close()


@contextmanager
def write_locked(url: str) -> Iterator[None]:
    """While another process keeps every writer of goals and runs out."""
    with ExitStack() as stack:
        if url.startswith("sqlite"):
            other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
            stack.callback(other.close)
            other.execute("BEGIN IMMEDIATE")
        else:
            session = stack.enter_context(psycopg.connect(url))
            session.execute("LOCK TABLE goals, runs IN ACCESS EXCLUSIVE MODE")
        yield


# --- what commits


async def test_what_eight_writers_read_change_and_write_at_once_is_not_lost(database: Database) -> None:
    run_id = await make_run(database)

    async def add(times: int) -> None:
        for _ in range(times):
            async with database.write() as connection:
                query = sa.select(tables.runs.c.priority).where(tables.runs.c.id == run_id).with_for_update()
                was = (await connection.execute(query)).scalar_one()
                await connection.execute(
                    sa.update(tables.runs).where(tables.runs.c.id == run_id).values(priority=was + 1)
                )

    await asyncio.gather(*(add(5) for _ in range(8)))
    assert (await row_of(database, run_id))["priority"] == 40


async def test_the_threads_writer_and_the_others_lose_nothing_of_each_other(database: Database) -> None:
    run_id = await make_run(database)
    query = sa.select(tables.runs.c.priority).where(tables.runs.c.id == run_id).with_for_update()

    def add(connection: sa.Connection) -> None:
        was = connection.execute(query).scalar_one()
        connection.execute(sa.update(tables.runs).where(tables.runs.c.id == run_id).values(priority=was + 1))

    async def in_thread() -> None:
        for _ in range(10):
            await database.write_in_thread(add)

    async def in_loop() -> None:
        for _ in range(10):
            async with database.write() as connection:
                await connection.run_sync(add)

    await asyncio.gather(in_thread(), in_loop())
    assert (await row_of(database, run_id))["priority"] == 20


async def test_two_processes_worth_of_writers_wait_for_each_other(database: Database, database_url: str) -> None:
    other = Database(database_url)

    async def add(where: Database) -> None:
        for _ in range(10):
            await make_goal(where)

    await asyncio.gather(add(database), add(other), add(database), add(other))
    await other.close()
    assert await count_goals(database) == 40


async def test_a_block_that_raises_is_rolled_back(database: Database) -> None:
    async def break_off() -> None:
        async with database.write() as connection:
            await connection.execute(insert_goal())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await break_off()
    assert await count_goals(database) == 0


async def test_what_raises_in_the_thread_is_rolled_back_and_the_next_call_works(database: Database) -> None:
    def insert(connection: sa.Connection) -> None:
        connection.execute(insert_goal())

    def break_off(connection: sa.Connection) -> None:
        insert(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.write_in_thread(break_off)
    assert await count_goals(database) == 0
    await database.write_in_thread(insert)
    assert await count_goals(database) == 1


async def test_a_reader_sees_only_what_is_committed(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(insert_goal())
        assert await count_goals(database) == 0
    assert await count_goals(database) == 1


async def test_a_foreign_key_that_leads_nowhere_is_refused(database: Database) -> None:
    with pytest.raises(IntegrityError):
        await make_run(database, goal_id=new_id())  # type: ignore[arg-type]


async def test_ids_made_later_sort_later() -> None:
    ids = [new_id() for _ in range(1_000)]
    assert ids == sorted(ids)


async def test_the_clock_is_that_of_the_database_in_milliseconds(database: Database) -> None:
    async with database.read() as connection:
        first, second = [(await connection.execute(sa.select(now_ms()))).scalar_one() for _ in range(2)]
    assert isinstance(first, int)
    assert 1_700_000_000_000 < first <= second


# --- what is announced


@pytest.fixture
def told(database: Database) -> dict[str, list[UUID]]:
    """What listeners of each kind have been told."""
    heard: dict[str, list[UUID]] = {"announce": [], "request": []}
    database.on_announce(lambda run_id, _: heard["announce"].append(run_id))
    database.on_request(heard["request"].append)
    return heard


async def test_an_announcement_is_heard_after_the_commit(database: Database, told: dict[str, list[UUID]]) -> None:
    run_id = new_id()
    async with database.write() as connection:
        await database.announce(connection, run_id)
        assert told == {"announce": [], "request": []}
    assert told == {"announce": [run_id], "request": [run_id]}


async def test_what_workers_write_is_no_request(database: Database, told: dict[str, list[UUID]]) -> None:
    run_id = new_id()
    async with database.write() as connection:
        await database.announce(connection, run_id, requested=False)
    assert told == {"announce": [run_id], "request": []}


async def test_nothing_is_announced_of_what_is_rolled_back(database: Database, told: dict[str, list[UUID]]) -> None:
    lost, kept = new_id(), new_id()

    async def break_off() -> None:
        async with database.write() as connection:
            await database.announce(connection, lost)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await break_off()
    async with database.write() as connection:
        await database.announce(connection, kept)
    assert told["announce"] == [kept]


async def test_every_one_of_many_announcements_at_once_is_heard_once(
    database: Database, told: dict[str, list[UUID]]
) -> None:
    ids = [new_id() for _ in range(60)]  # more than there are connections

    async def announce(run_id: UUID) -> None:
        async with database.write() as connection:
            await database.announce(connection, run_id)

    await asyncio.gather(*map(announce, ids))
    assert sorted(told["request"]) == ids


async def test_on_postgresql_other_processes_hear_of_requests_and_changes(databases: Databases) -> None:
    with databases.fresh("postgresql") as url:
        here, there = Database(url), Database(url)
        requested, changed = new_id(), new_id()
        heard = asyncio.Queue[tuple[str, UUID]]()
        there.on_announce(lambda run_id, _: heard.put_nowait(("announce", run_id)))
        there.on_request(lambda run_id: heard.put_nowait(("request", run_id)))

        async def announce(run_id: UUID, *, requested: bool) -> None:
            async with here.write() as connection:
                await here.announce(connection, run_id, requested=requested)

        listening = asyncio.create_task(listen(there))
        async with asyncio.timeout(WITHIN_SECONDS):
            while heard.empty():  # nothing says from when on it listens
                await announce(requested, requested=True)
            await announce(changed, requested=False)
            got = {await heard.get()}
            while ("announce", changed) not in got:
                got.add(await heard.get())
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        await here.close()
        await there.close()
    assert got == {("announce", requested), ("request", requested), ("announce", changed)}


# --- what a fault is called


async def test_a_database_that_is_absent_is_unavailable(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/missing/planwave.db", f"postgresql://nobody@/none?host={tmp_path}"):
        database = Database(url)
        with pytest.raises(StorageUnavailable):
            await database.ping()
        with pytest.raises(StorageUnavailable):
            async with database.write():
                pass
        with pytest.raises(StorageUnavailable):
            await database.write_in_thread(lambda connection: None)
        await database.close()


async def test_a_database_that_stays_locked_is_unavailable_and_then_works_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.engines.SQLITE_BUSY_SECONDS", 0)
    monkeypatch.setattr("app.storage.engines.LOCK_MS", 50)
    database = Database(database_url)

    async def write() -> None:
        async with database.write() as connection:
            await connection.execute(insert_goal())

    def write_now(connection: sa.Connection) -> None:
        connection.execute(insert_goal())

    with write_locked(database_url):
        with pytest.raises(StorageUnavailable):
            await write()
        with pytest.raises(StorageUnavailable):
            await database.write_in_thread(write_now)
    await write()
    await database.write_in_thread(write_now)
    assert await count_goals(database) == 2
    await database.close()


async def test_who_waits_to_write_to_a_file_looks_for_its_turn_again_and_again(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite looks ever more seldom, and so misses the moments between the transactions of a busy process."""
    begun: list[str] = []

    class Watched(engines.SQLiteConnection):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            self.set_trace_callback(lambda statement: begun.append(statement) if "BEGIN" in statement else None)

    monkeypatch.setattr(engines, "SQLiteConnection", Watched)
    with databases.fresh("sqlite") as url:
        async with opened(url) as database:

            async def write() -> None:
                async with database.write() as connection:
                    await connection.execute(insert_goal())

            async def write_in_thread() -> None:
                await database.write_in_thread(lambda connection: connection.execute(insert_goal()))

            for writing in (write, write_in_thread):
                begun.clear()
                with write_locked(url):
                    waiting = asyncio.create_task(writing())
                    while len(begun) < 20 and not waiting.done():  # noqa: ASYNC110 - SQLite tells by a plain call
                        await asyncio.sleep(0.01)
                await waiting
            assert await count_goals(database) == 2

            def waits(connection: sa.Connection) -> int:
                return int(connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one())

            async with database.write() as connection:
                found = [await connection.run_sync(waits)]
            found.append(await database.write_in_thread(waits))
            assert found == [engines.SQLITE_BUSY_SECONDS * 1000] * 2  # for whatever else meets a lock


@pytest.mark.parametrize(("given", "waits"), [({}, "10s"), ({"options": "-c lock_timeout=7s"}, "7s")])
async def test_postgresql_waits_for_a_lock_as_long_as_it_was_told_or_ten_seconds(
    databases: Databases, given: dict[str, str], waits: str
) -> None:
    with databases.fresh("postgresql") as url:
        database = Database(sa.make_url(url).update_query_dict(given).render_as_string(hide_password=False))
        ask = sa.text("SHOW lock_timeout")
        async with database.read() as reading, database.write() as writing:
            assert (await reading.execute(ask)).scalar_one() == waits
            assert (await writing.execute(ask)).scalar_one() == waits
        assert await database.write_in_thread(lambda connection: connection.execute(ask).scalar_one()) == waits
        await database.close()


async def test_a_database_that_takes_no_writes_is_unavailable(database: Database) -> None:
    """As after a failover to a standby, or on a file that may only be read: it is no fault of the rows."""
    forbid = "PRAGMA query_only = ON" if database.is_sqlite else "SET TRANSACTION READ ONLY"

    async def write() -> None:
        async with database.write() as connection:
            await connection.execute(sa.text(forbid))
            await connection.execute(insert_goal())

    with pytest.raises(StorageUnavailable):
        await write()


async def test_connections_that_were_cut_are_unavailable_once_and_then_made_anew(databases: Databases) -> None:
    with databases.fresh("postgresql") as url:
        database = Database(url)
        await make_goal(database)
        await database.write_in_thread(lambda connection: connection.execute(sa.select(1)))
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        with suppress(StorageUnavailable):
            await database.ping()
        with suppress(StorageUnavailable):
            await database.write_in_thread(lambda connection: connection.execute(sa.select(1)))
        await make_goal(database)
        await database.write_in_thread(lambda connection: connection.execute(insert_goal()))
        assert await count_goals(database) == 3
        await database.close()


async def test_an_error_does_not_show_what_was_to_be_written(database: Database) -> None:
    secret, twice = "what the client wrote", new_id()

    def insert_twice(connection: sa.Connection) -> None:
        connection.execute(insert_goal(id=twice, goal=secret))
        connection.execute(insert_goal(id=twice, goal=secret))

    async def write() -> None:
        async with database.write() as connection:
            await connection.run_sync(insert_twice)

    for writing in (write(), database.write_in_thread(insert_twice)):
        with pytest.raises(IntegrityError) as raised:
            await writing
        assert secret not in str(raised.value)


@pytest.mark.parametrize("url", ["nonsense", "mysql://localhost/planwave", "postgresql://host:port/planwave"])
def test_a_url_that_cannot_work_is_a_fault_of_configuration(url: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_url(url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused_since_every_connection_has_its_own(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Database(url)
