"""Goals that arrive together: one transaction for all, and each its own answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.intake import Intake
from app.domain.errors import StorageUnavailable
from app.domain.ids import DEFAULT_TENANT
from app.domain.status import Mode
from app.storage.database import Database
from app.storage.records import RunRecord
from app.storage.runs import FirstRun, list_runs
from tests.databases import opened
from tests.invariants import check
from tests.service_process import free_port

_SPOILT = {
    "sqlite": [
        "CREATE TRIGGER spoilt BEFORE INSERT ON goals WHEN NEW.goal = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END"
    ],
    "postgresql": [
        "CREATE FUNCTION spoilt() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$",
        "CREATE TRIGGER spoilt BEFORE INSERT ON goals FOR EACH ROW WHEN (NEW.goal = 'bad') EXECUTE FUNCTION spoilt()",
    ],
}


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Of each kind in turn."""
    async with opened(database_url) as database:
        yield database


def first_run(goal: str) -> FirstRun:
    return FirstRun(
        tenant_id=DEFAULT_TENANT,
        goal=goal,
        context={"of": goal},
        mode=Mode.EXECUTE,
        options={"max_tasks": 7},
        budget={"max_tokens": None},
        metadata={"a": "b"},
        model="scripted",
    )


async def stored(database: Database) -> list[RunRecord]:
    async with database.read() as connection:
        return await list_runs(connection, DEFAULT_TENANT, limit=200)


def transactions_of(
    database: Database, monkeypatch: pytest.MonkeyPatch, has_begun: asyncio.Event | None = None
) -> list[AsyncConnection]:
    """One entry for each that has begun."""
    begun: list[AsyncConnection] = []
    write = database.write

    @asynccontextmanager
    async def counted() -> AsyncIterator[AsyncConnection]:
        async with write() as connection:
            begun.append(connection)
            if has_begun is not None:
                has_begun.set()
            yield connection

    monkeypatch.setattr(database, "write", counted)
    return begun


async def test_goals_that_arrive_together_share_a_transaction_and_are_answered_as_they_are_stored(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = transactions_of(database, monkeypatch)
    told: list[object] = []
    database.on_request(told.append)
    intake = Intake(database)

    made = await asyncio.gather(*(intake.take(first_run(f"goal {n}")) for n in range(20)))

    assert len(begun) == 1
    assert [run.goal for run in made] == [f"goal {n}" for n in range(20)]
    assert sorted(await stored(database), key=lambda run: run.id) == sorted(made, key=lambda run: run.id)
    assert told == [run.id for run in made]
    await check(database, made[7].id)


async def test_goals_that_arrive_during_a_write_make_the_next_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun = asyncio.Event()
    begun = transactions_of(database, monkeypatch, has_begun)
    intake = Intake(database)
    async with asyncio.TaskGroup() as group:
        group.create_task(intake.take(first_run("first")))
        await has_begun.wait()
        for n in range(10):
            group.create_task(intake.take(first_run(f"late {n}")))

    assert len(begun) == 2
    assert len(await stored(database)) == 11


async def test_a_goal_that_cannot_be_stored_costs_its_neighbours_nothing(database: Database) -> None:
    async with database.write() as connection:
        for statement in _SPOILT[connection.dialect.name]:
            await connection.exec_driver_sql(statement)
    intake = Intake(database)

    good, bad, other = await asyncio.gather(
        *(intake.take(first_run(goal)) for goal in ("good", "bad", "other")), return_exceptions=True
    )

    assert isinstance(bad, sa.exc.DBAPIError)
    assert isinstance(good, RunRecord)
    assert isinstance(other, RunRecord)
    assert {run.id for run in await stored(database)} == {good.id, other.id}


async def test_a_request_that_is_given_up_costs_its_neighbours_nothing(database: Database) -> None:
    intake = Intake(database)
    given_up, *others = [asyncio.create_task(intake.take(first_run(f"goal {n}"))) for n in range(3)]
    await asyncio.sleep(0)  # all are in the queue
    given_up.cancel()

    made = await asyncio.gather(*others)

    assert [run.goal for run in made] == ["goal 1", "goal 2"]
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert {run.id for run in made} <= {run.id for run in await stored(database)}


async def test_while_the_database_is_away_each_of_those_who_wait_hears_so() -> None:
    database = Database(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")
    intake = Intake(database)

    outcomes = await asyncio.gather(*(intake.take(first_run("x")) for _ in range(5)), return_exceptions=True)
    await database.close()

    assert [type(outcome) for outcome in outcomes] == [StorageUnavailable] * 5


async def test_after_a_fault_the_next_goal_is_taken(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    intake = Intake(database)

    def away() -> AbstractAsyncContextManager[AsyncConnection]:
        raise StorageUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(database, "write", away)
        with pytest.raises(StorageUnavailable):
            await intake.take(first_run("x"))

    assert await stored(database) == []
    assert (await intake.take(first_run("y"))).goal == "y"
