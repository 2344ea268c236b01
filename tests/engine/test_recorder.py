"""The recorder: many outcomes in one commit, each run paying for itself, nothing lost or written twice."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa

from app.domain.errors import LeaseLost, StorageUnavailable
from app.domain.ids import RunId
from app.domain.status import RunStatus, TaskStatus
from app.engine.clock import Clock
from app.engine.recorder import Recorder
from app.storage import tables
from app.storage.changes import Changes
from app.storage.database import Database
from app.storage.dispatch import Fenced, Lease
from app.storage.engines import make_sync_engine
from tests.databases import Databases
from tests.invariants import check
from tests.stored import changes_of, claim_due, claim_one, expire, key, make_goal, make_run, row_of, rows_of

WITHIN_SECONDS = 30
Do = Callable[[sa.Connection], Any]


class Transactions:
    """Stands between a recorder and its database: counts what goes through, and loses what a test says."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.away = 0
        self.answers_lost = 0
        self._write = database.write_in_thread
        monkeypatch.setattr(database, "write_in_thread", self)
        monkeypatch.setattr("app.engine.recorder._AWAY_SECONDS", 0)

    async def __call__(self, do: Do) -> Any:
        self.count += 1
        if self.away:
            self.away -= 1
            raise StorageUnavailable("away")
        answer = await self._write(do)
        if self.answers_lost:
            self.answers_lost -= 1
            raise StorageUnavailable("the connection broke in COMMIT")
        return answer


@pytest.fixture
def transactions(database: Database, monkeypatch: pytest.MonkeyPatch) -> Transactions:
    """Of the recorder under test."""
    return Transactions(database, monkeypatch)


@pytest.fixture
async def recorder(database: Database) -> AsyncIterator[Recorder]:
    """At work."""
    made = Recorder(database, Clock())
    recording = asyncio.create_task(made.run())
    yield made
    made.close()
    async with asyncio.timeout(WITHIN_SECONDS):
        await recording


async def leased(database: Database, count: int) -> list[Lease]:
    goal_id = await make_goal(database)
    for _ in range(count):
        await make_run(database, goal_id=goal_id, plan={"a": []})
    return await claim_due(database)


def started(lease: Lease) -> Changes:
    """Its task starts: one event more, and rows that could not be written twice."""
    changes = changes_of(lease)
    changes.status, changes.begun = RunStatus.RUNNING, True
    changes.event("run.started")
    changes.task(key("a"), TaskStatus.RUNNING)
    changes.attempt_started(key("a"), 1, description="Do a.", prompt_hash="hash")
    changes.event("task.started", task_key=key("a"), attempt=1)
    changes.progress = {s.value: int(s is TaskStatus.RUNNING) for s in TaskStatus} | {"total": 1}
    return changes


async def committed(recorder: Recorder, batch: list[Changes]) -> list[Fenced | BaseException]:
    """All handed over at once."""
    async with asyncio.timeout(WITHIN_SECONDS):
        return await asyncio.gather(*map(recorder.commit, batch), return_exceptions=True)


async def is_started_once(database: Database, run_id: RunId) -> None:
    events = [event["type"] for event in await rows_of(database, tables.events, run_id)]
    assert events == ["run.queued", "plan.created", "run.started", "task.started"]
    await check(database, run_id)


async def test_changes_of_many_runs_that_come_together_share_a_transaction(
    database: Database, transactions: Transactions, recorder: Recorder
) -> None:
    leases = await leased(database, 20)
    await committed(recorder, [started(lease) for lease in leases])
    assert transactions.count == 1
    assert len({(await row_of(database, lease.run_id))["batch_id"] for lease in leases}) == 1
    for lease in leases:
        await is_started_once(database, lease.run_id)


async def test_what_comes_while_a_transaction_is_under_way_makes_the_next_one(
    database: Database, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    leases = await leased(database, 5)
    under_way, go_on, count = asyncio.Event(), asyncio.Event(), 0
    write = database.write_in_thread

    async def held_back(do: Do) -> Any:
        nonlocal count
        count += 1
        under_way.set()
        await go_on.wait()
        return await write(do)

    monkeypatch.setattr(database, "write_in_thread", held_back)
    first = asyncio.create_task(recorder.commit(started(leases[0])))
    await under_way.wait()
    rest = [asyncio.create_task(recorder.commit(started(lease))) for lease in leases[1:]]
    await asyncio.sleep(0)
    go_on.set()
    async with asyncio.timeout(WITHIN_SECONDS):
        await asyncio.gather(first, *rest)
    assert count == 2


async def test_an_answer_tells_the_time_the_events_and_what_clients_ask(database: Database, recorder: Recorder) -> None:
    (lease,) = await leased(database, 1)
    fenced = await recorder.commit(started(lease))
    row = await row_of(database, lease.run_id)
    assert (fenced.event_seq, fenced.stop_requested) == (4, None)
    assert abs(fenced.now - row["started_at"]) < 1_000


async def test_only_the_run_that_is_lost_is_told_so(database: Database, recorder: Recorder) -> None:
    leases = await leased(database, 3)
    lost = leases[1]
    await expire(database, lost.run_id)
    await claim_one(database, owner="b")
    answers = await committed(recorder, [started(lease) for lease in leases])
    assert [type(answer) for answer in answers] == [Fenced, LeaseLost, Fenced]
    assert [event["type"] for event in await rows_of(database, tables.events, lost.run_id)][2:] == []
    for lease in (leases[0], leases[2]):
        await is_started_once(database, lease.run_id)


async def test_a_run_whose_rows_the_database_refuses_pays_alone(database: Database, recorder: Recorder) -> None:
    leases = await leased(database, 4)
    await recorder.commit(started(leases[2]))
    answers = await committed(recorder, [started(lease) for lease in leases])  # the third once more
    assert [isinstance(answer, Fenced) for answer in answers] == [True, True, False, True]
    for lease in leases:
        await is_started_once(database, lease.run_id)


async def test_while_the_database_is_away_outcomes_wait(
    database: Database, transactions: Transactions, recorder: Recorder
) -> None:
    leases = await leased(database, 3)
    transactions.away = 4
    answers = await committed(recorder, [started(lease) for lease in leases])
    assert [type(answer) for answer in answers] == [Fenced] * 3
    for lease in leases:
        await is_started_once(database, lease.run_id)


@pytest.mark.parametrize("times", [1, 3])
async def test_a_commit_whose_answer_was_lost_is_not_written_twice(
    database: Database, transactions: Transactions, recorder: Recorder, times: int
) -> None:
    leases = await leased(database, 3)
    transactions.answers_lost = times
    answers = await committed(recorder, [started(lease) for lease in leases])
    assert [isinstance(answer, Fenced) and answer.event_seq for answer in answers] == [4, 4, 4]
    for lease in leases:
        await is_started_once(database, lease.run_id)


async def test_a_run_lost_in_a_commit_whose_answer_was_lost_is_still_told_so(
    database: Database, transactions: Transactions, recorder: Recorder
) -> None:
    leases = await leased(database, 3)
    await expire(database, leases[0].run_id)
    await claim_one(database, owner="b")
    transactions.answers_lost = 1
    answers = await committed(recorder, [started(lease) for lease in leases])
    assert [type(answer) for answer in answers] == [LeaseLost, Fenced, Fenced]


async def test_the_end_of_a_run_whose_answer_was_lost_is_known(
    database: Database, transactions: Transactions, recorder: Recorder
) -> None:
    (lease,) = await leased(database, 1)
    over = changes_of(lease)
    over.task(key("a"), TaskStatus.CANCELLED)
    over.event("task.cancelled", task_key=key("a"))
    over.event("run.cancelled")
    over.over, over.status = True, RunStatus.CANCELLED
    over.progress = {s.value: int(s is TaskStatus.CANCELLED) for s in TaskStatus} | {"total": 1}
    transactions.answers_lost = 1
    assert [type(answer) for answer in await committed(recorder, [over])] == [Fenced]
    await check(database, lease.run_id)


async def test_a_commit_that_is_still_under_way_when_its_connection_breaks_is_not_written_twice(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL goes on with a COMMIT whose client has gone; whoever looks before it is through must wait for it."""
    monkeypatch.setattr("app.engine.recorder._AWAY_SECONDS", 0)
    with databases.fresh("postgresql") as url:
        database = Database(url)
        (lease,) = await leased(database, 1)
        write, tries = database.write_in_thread, 0
        of_its_own = make_sync_engine(database.url)
        unfinished = of_its_own.connect()

        async def break_off_the_first(do: Do) -> Any:
            nonlocal tries
            tries += 1
            if tries > 1:
                return await write(do)
            unfinished.begin()
            do(unfinished)
            raise StorageUnavailable("the connection broke in COMMIT")

        monkeypatch.setattr(database, "write_in_thread", break_off_the_first)
        recorder = Recorder(database, Clock())
        recording = asyncio.create_task(recorder.run())
        commit = asyncio.create_task(recorder.commit(started(lease)))
        waiting = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        async with asyncio.timeout(WITHIN_SECONDS), database.read() as connection:
            while (await connection.execute(waiting)).scalar_one() == 0:
                pass
        await asyncio.to_thread(unfinished.commit)
        async with asyncio.timeout(WITHIN_SECONDS):
            answer = (await asyncio.gather(commit, return_exceptions=True))[0]
        recorder.close()
        await recording
        unfinished.close()
        of_its_own.dispose()
        assert isinstance(answer, Fenced), answer
        await is_started_once(database, lease.run_id)
        await database.close()


async def test_what_is_queued_when_it_closes_is_written(database: Database) -> None:
    leases = await leased(database, 3)
    recorder = Recorder(database, Clock())
    waiting = [asyncio.create_task(recorder.commit(started(lease))) for lease in leases]
    await asyncio.sleep(0)
    recorder.close()
    async with asyncio.timeout(WITHIN_SECONDS):
        await recorder.run()
    assert [type(answer) for answer in await asyncio.gather(*waiting)] == [Fenced] * 3
    for lease in leases:
        await is_started_once(database, lease.run_id)


async def test_changes_of_a_driver_that_was_cancelled_do_not_stop_those_of_others(
    database: Database, recorder: Recorder
) -> None:
    first, second = await leased(database, 2)
    cancelled = asyncio.create_task(recorder.commit(started(first)))
    await asyncio.sleep(0)
    cancelled.cancel()
    with suppress(asyncio.CancelledError):
        await cancelled
    assert [type(answer) for answer in await committed(recorder, [started(second)])] == [Fenced]


async def test_commits_are_made_outside_the_loop_that_serves_clients(database: Database) -> None:
    threads: list[int] = []
    await database.write_in_thread(lambda connection: threads.append(threading.get_ident()))
    assert threads != [threading.get_ident()]
