"""What a commit does to the run's own row: its lease, its count of deaths, its plan, what its budget has told."""

import pytest

from app.domain.generation import first_plan
from app.domain.plan import PlannedTask
from app.domain.status import CallStatus, PlanReason, RunStatus, Seat
from app.storage.changes import Changes
from app.storage.database import Database
from app.storage.dispatch import Lease
from tests.stored import changes_of, claim_one, make_run, row_of, set_run, write_changes

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEATHS = 2


async def died_with(database: Database) -> Lease:
    """A run that has cost some workers, with a call in flight."""
    run_id = await make_run(database)
    lease = await claim_one(database)
    changes = changes_of(lease)
    changes.call_opened(1, seat=Seat.PLANNER, model="m", try_number=1)
    await write_changes(database, changes)
    await set_run(database, run_id, takeovers=DEATHS)
    return lease


async def takeovers_after(database: Database, changes: Changes) -> object:
    await write_changes(database, changes)
    return (await row_of(database, changes.run_id))["takeovers"]


async def test_an_outcome_clears_a_run_of_its_workers_deaths(database: Database) -> None:
    changes = changes_of(await died_with(database))
    changes.call_ended(1, CallStatus.ANSWERED)
    assert await takeovers_after(database, changes) == 0


async def test_an_end_without_an_outcome_clears_it_too(database: Database) -> None:
    changes = changes_of(await died_with(database))
    changes.status, changes.over = RunStatus.CANCELLED, True
    assert await takeovers_after(database, changes) == 0


async def test_that_a_call_was_lost_does_not_clear_it(database: Database) -> None:
    changes = changes_of(await died_with(database))
    changes.call_ended(1, CallStatus.LOST)
    assert await takeovers_after(database, changes) == DEATHS


@pytest.mark.parametrize(
    ("over", "parked", "is_held"), [(True, False, False), (False, True, False), (False, False, True)]
)
async def test_a_run_that_ends_or_stands_still_is_nobodys(
    database: Database, over: bool, parked: bool, is_held: bool
) -> None:
    lease = await died_with(database)
    changes = changes_of(lease)
    changes.over, changes.parked = over, parked
    await write_changes(database, changes)
    row = await row_of(database, lease.run_id)
    assert (row["lease_token"] is not None, row["lease_owner"] is not None) == (is_held, is_held)


async def test_a_plan_makes_its_generation_the_runs(database: Database) -> None:
    lease = await died_with(database)
    changes = changes_of(lease)
    changes.plans.append(first_plan([PlannedTask(id="a", description="Do a.")], PlanReason.INITIAL))
    await write_changes(database, changes)
    assert (await row_of(database, lease.run_id))["generation"] == 0


async def test_what_the_budget_has_told_is_kept(database: Database) -> None:
    lease = await died_with(database)
    changes = changes_of(lease)
    changes.budget_warned = ("max_tokens",)
    await write_changes(database, changes)
    await write_changes(database, changes_of(lease))
    assert (await row_of(database, lease.run_id))["budget_warned"] == ["max_tokens"]
