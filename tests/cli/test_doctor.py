import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from app.domain.ids import RunId
from app.storage.database import Database
from app.storage.steering import request_cancel
from tests.cli.processes import planwave
from tests.databases import opened
from tests.scripted_model import DIAMOND
from tests.stored import T, claim_one, make_run, set_run


def having(url: str, make: Callable[[Database], Awaitable[Any]]) -> Any:
    """What `make(database)` gives."""

    async def made() -> Any:
        async with opened(url) as database:
            return await make(database)

    return asyncio.run(made())


async def three_runs(database: Database) -> list[RunId]:
    """Cancelled, held by a worker, and queued."""
    cancelled = await make_run(database, plan=DIAMOND)
    async with database.write() as connection:
        await request_cancel(connection, T, cancelled)
    held = await make_run(database, plan=DIAMOND)
    await claim_one(database)
    return [cancelled, held, await make_run(database)]


async def three_runs_and_one_bent(database: Database) -> list[RunId]:
    runs = await three_runs(database)
    await set_run(database, runs[1], input_tokens=7, llm_calls=1)
    return runs


def test_a_sound_database_is_said_to_be_one(database_url: str, tmp_path: Path) -> None:
    having(database_url, three_runs)
    ended = planwave("doctor", directory=tmp_path, database_url=database_url)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "All is well with 3 runs.\n", "")


def test_what_is_wrong_is_one_line_each_with_the_run(database_url: str, tmp_path: Path) -> None:
    _, bent, _ = having(database_url, three_runs_and_one_bent)
    ended = planwave("doctor", directory=tmp_path, database_url=database_url)
    assert ended.returncode == 1
    assert ended.stdout.splitlines() == [
        f"{bent} usage_is_the_sum_of_the_calls: the run counts 1 calls, and those stored are none",
        f"{bent} usage_is_the_sum_of_the_calls: input_tokens of the run is 7, of its calls 0",
    ]
    assert ended.stderr == "planwave: 2 findings in 3 runs.\n"


@pytest.mark.parametrize(("place", "exit_code"), [(0, 0), (1, 1)])
def test_one_run_can_be_looked_at_alone(database_url: str, tmp_path: Path, place: int, exit_code: int) -> None:
    run_id = having(database_url, three_runs_and_one_bent)[place]
    ended = planwave("doctor", "--run", str(run_id), directory=tmp_path, database_url=database_url)
    assert ended.returncode == exit_code
    assert "1 run." in ended.stdout + ended.stderr


def test_a_run_that_is_not_there_is_said_to_be_missing(database_url: str, tmp_path: Path) -> None:
    run_id = uuid4()
    ended = planwave("doctor", "--run", str(run_id), directory=tmp_path, database_url=database_url)
    assert (ended.returncode, ended.stderr) == (1, f"planwave: There is no run {run_id}.\n")


def test_a_schema_of_another_version_is_not_looked_at(empty_database_url: str, tmp_path: Path) -> None:
    ended = planwave("doctor", directory=tmp_path, database_url=empty_database_url)
    assert ended.returncode == 3
    assert "planwave db upgrade" in ended.stderr
