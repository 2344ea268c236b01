"""What a run is to do: end, stand still, go on; and what may be asked of it when."""

import asyncio
from uuid import UUID

import httpx
import pytest

from app.api.services import Services
from app.domain.ids import RunId
from app.domain.status import RunStatus, StopRequest
from tests.api.asking import (
    NOWHERE,
    Json,
    begin,
    bend,
    chain,
    code_of,
    commit,
    end,
    get,
    new_run,
    parked,
    steer,
    types_of_events,
)
from tests.stored import claim_due, claim_one, expire, row_of

ACTIONS = ("cancel", "pause", "resume", "retry")


async def held_run(client: httpx.AsyncClient, services: Services) -> Json:
    """A run that a worker drives."""
    run = await new_run(client, plan=chain("a", "b"))
    await claim_one(services.database)
    await commit(services.database, run["id"], begin)
    return run


# --- cancel


async def test_a_run_that_no_worker_holds_is_cancelled_at_once(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan=chain("a", "b"))

    response = await client.post(f"/runs/{run['id']}/cancel")

    cancelled = response.json()
    assert response.status_code == 202
    assert (cancelled["status"], cancelled["stop_requested"]) == ("cancelled", None)
    assert cancelled["progress"]["cancelled"] == 2
    assert cancelled["allowed_actions"] == ["retry", "delete"]
    assert await types_of_events(client, run) == [
        "run.queued",
        "plan.created",
        "task.cancelled",
        "task.cancelled",
        "run.cancelled",
    ]


async def test_cancelling_again_changes_nothing(client: httpx.AsyncClient) -> None:
    run = await new_run(client)
    first = await client.post(f"/runs/{run['id']}/cancel")

    second = await client.post(f"/runs/{run['id']}/cancel")

    assert second.status_code == 200
    assert second.json() == first.json()


async def test_the_worker_that_holds_a_run_is_asked_to_cancel_it(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client)
    await claim_one(services.database)
    await commit(services.database, run["id"], begin)

    first = await client.post(f"/runs/{run['id']}/cancel")
    second = await client.post(f"/runs/{run['id']}/cancel")

    assert (first.status_code, second.status_code) == (202, 200)
    assert (first.json()["status"], first.json()["stop_requested"]) == ("running", "cancel")
    assert first.json()["allowed_actions"] == []
    assert second.json() == first.json()


async def test_many_cancels_at_once_cancel_once(client: httpx.AsyncClient) -> None:
    run = await new_run(client)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(client.post(f"/runs/{run['id']}/cancel")) for _ in range(8)]

    assert sorted(task.result().status_code for task in asked) == [200] * 7 + [202]
    assert (await types_of_events(client, run)).count("run.cancelled") == 1


# --- pause and resume


async def test_a_run_that_no_worker_holds_is_paused_at_once(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client, plan=chain("a", "b"))

    response = await steer(client, run, "pause")

    paused = response.json()
    assert response.status_code == 202
    assert (paused["status"], paused["stop_requested"]) == ("paused", None)
    assert paused["allowed_actions"] == ["cancel", "resume"]
    assert (await types_of_events(client, run))[-1] == "run.paused"
    assert await claim_due(services.database) == []


async def test_the_worker_that_holds_a_run_is_asked_to_pause_it(client: httpx.AsyncClient, services: Services) -> None:
    run = await held_run(client, services)

    asked = (await steer(client, run, "pause")).json()

    assert (asked["status"], asked["stop_requested"]) == ("running", "pause")
    assert asked["allowed_actions"] == ["cancel", "resume"]
    assert "run.paused" not in await types_of_events(client, run)


@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
async def test_pausing_again_changes_nothing(client: httpx.AsyncClient, services: Services, held: bool) -> None:
    run = await held_run(client, services) if held else await new_run(client)
    first = await steer(client, run, "pause")

    second = await steer(client, run, "pause")

    assert (first.status_code, second.status_code) == (202, 200)
    assert second.json() == first.json()


async def test_a_paused_run_is_queued_again_when_it_is_resumed(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client)
    await steer(client, run, "pause")

    response = await steer(client, run, "resume")

    assert response.status_code == 202
    assert response.json()["status"] == "queued"
    assert response.json()["allowed_actions"] == ["cancel", "pause"]
    assert (await types_of_events(client, run))[-1] == "run.resumed"
    assert str((await claim_one(services.database)).run_id) == run["id"]


async def test_a_pause_that_no_worker_has_followed_yet_is_taken_back(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await held_run(client, services)
    await steer(client, run, "pause")

    response = await steer(client, run, "resume")

    assert response.status_code == 202
    assert (response.json()["status"], response.json()["stop_requested"]) == ("running", None)
    assert (await row_of(services.database, RunId(UUID(run["id"]))))["lease_token"] is not None


@pytest.mark.parametrize("status", [RunStatus.QUEUED, RunStatus.PLANNING, RunStatus.RUNNING])
async def test_resuming_a_run_that_goes_on_changes_nothing(
    client: httpx.AsyncClient, services: Services, status: RunStatus
) -> None:
    run = await new_run(client)
    await bend(services.database, run, status=status)

    response = await steer(client, run, "resume")

    assert response.status_code == 200
    assert (response.json()["status"], response.json()["version"]) == (status, 1)


async def test_a_run_that_waits_for_a_person_is_paused_and_resumed_but_not_resumed_without_an_answer(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await new_run(client, plan=chain("a"))
    await commit(services.database, run["id"], parked(RunStatus.AWAITING_REVIEW))

    refused = await steer(client, run, "resume")
    paused = await steer(client, run, "pause")
    resumed = await steer(client, run, "resume")

    assert code_of(refused, 409) == "invalid_transition"
    assert refused.json()["allowed_actions"] == ["cancel", "pause"]
    assert "review" in refused.json()["detail"]
    assert (paused.status_code, paused.json()["status"]) == (202, "paused")
    assert (resumed.status_code, resumed.json()["status"]) == (202, "queued")


async def test_a_paused_run_is_cancelled(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan=chain("a"))
    await steer(client, run, "pause")

    response = await steer(client, run, "cancel")

    assert (response.status_code, response.json()["status"]) == (202, "cancelled")


async def test_a_cancel_overrides_a_pause_that_was_asked_for(client: httpx.AsyncClient, services: Services) -> None:
    run = await held_run(client, services)
    await steer(client, run, "pause")

    response = await steer(client, run, "cancel")

    assert (response.status_code, response.json()["stop_requested"]) == (202, "cancel")
    assert response.json()["allowed_actions"] == []


@pytest.mark.parametrize("action", ["pause", "resume"])
async def test_a_run_that_is_being_cancelled_is_neither_paused_nor_resumed(
    client: httpx.AsyncClient, services: Services, action: str
) -> None:
    run = await held_run(client, services)
    await steer(client, run, "cancel")

    response = await steer(client, run, action)

    assert code_of(response, 409) == "invalid_transition"
    assert response.json()["allowed_actions"] == []


async def test_a_pause_is_done_at_once_when_the_worker_that_was_asked_has_died(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await held_run(client, services)
    await steer(client, run, "pause")
    await expire(services.database, RunId(UUID(run["id"])))

    response = await steer(client, run, "pause")

    assert (response.status_code, response.json()["status"]) == (202, "paused")


@pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
@pytest.mark.parametrize(
    ("status", "allowed"),
    [
        (RunStatus.SUCCEEDED, ["delete"]),
        (RunStatus.FAILED, ["retry", "delete"]),
        (RunStatus.CANCELLED, ["retry", "delete"]),
    ],
)
async def test_a_finished_run_is_neither_cancelled_nor_paused_nor_resumed(
    client: httpx.AsyncClient, services: Services, status: RunStatus, allowed: list[str], action: str
) -> None:
    run = await new_run(client)
    await commit(services.database, run["id"], end(status))

    response = await steer(client, run, action)

    if (action, status) == ("cancel", "cancelled"):
        assert response.status_code == 200
    else:
        assert code_of(response, 409) == "invalid_transition"
        assert response.json()["allowed_actions"] == allowed


async def test_many_pauses_and_resumes_at_once_leave_one_event_for_each_that_did_something(
    client: httpx.AsyncClient,
) -> None:
    run = await new_run(client)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(steer(client, run, action)) for action in ("pause", "resume") * 8]

    moved = [task.result().status_code for task in asked].count(202)
    types = await types_of_events(client, run)
    assert {task.result().status_code for task in asked} <= {200, 202}
    assert types == ["run.queued", *(["run.paused", "run.resumed"] * 8)[:moved]]


# --- all of them


@pytest.mark.parametrize("action", ACTIONS)
async def test_a_run_that_is_not_there_is_not_found(client: httpx.AsyncClient, action: str) -> None:
    assert code_of(await client.post(f"/runs/{NOWHERE}/{action}"), 404) == "run_not_found"


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("run_id", ["x", "%00", "01980000000070008000000000000001"])
async def test_a_malformed_run_id_is_not_found_without_sql(lonely: httpx.AsyncClient, run_id: str, action: str) -> None:
    assert code_of(await lonely.post(f"/runs/{run_id}/{action}"), 404) == "run_not_found"


STANDS: dict[str, tuple[RunStatus, StopRequest | None, list[str]]] = {
    "queued": (RunStatus.QUEUED, None, ["cancel", "pause"]),
    "planning": (RunStatus.PLANNING, None, ["cancel", "pause"]),
    "running": (RunStatus.RUNNING, None, ["cancel", "pause"]),
    "to be paused": (RunStatus.RUNNING, StopRequest.PAUSE, ["cancel", "resume"]),
    "to be cancelled": (RunStatus.RUNNING, StopRequest.CANCEL, []),
    "paused": (RunStatus.PAUSED, None, ["cancel", "resume"]),
    "awaiting review": (RunStatus.AWAITING_REVIEW, None, ["cancel", "pause"]),
    "succeeded": (RunStatus.SUCCEEDED, None, ["delete"]),
    "failed": (RunStatus.FAILED, None, ["retry", "delete"]),
    "cancelled": (RunStatus.CANCELLED, None, ["retry", "delete"]),
}


@pytest.mark.parametrize(("status", "stop", "allowed"), STANDS.values(), ids=STANDS)
async def test_a_run_says_what_may_be_done_with_it(
    client: httpx.AsyncClient, services: Services, status: RunStatus, stop: StopRequest | None, allowed: list[str]
) -> None:
    run = await new_run(client)
    await bend(services.database, run, status=status, stop_requested=stop)

    assert (await get(client, run["links"]["self"]))["allowed_actions"] == allowed


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("stand", STANDS.values(), ids=STANDS)
async def test_what_it_says_may_be_done_can_be_done_and_nothing_else_moves_it(
    client: httpx.AsyncClient, services: Services, stand: tuple[RunStatus, StopRequest | None, list[str]], action: str
) -> None:
    status, stop, allowed = stand
    run = await new_run(client)
    held = {"lease_token": UUID(NOWHERE), "ready_at": 2**53} if stop else {}
    await bend(services.database, run, status=status, stop_requested=stop, **held)

    response = await steer(client, run, action)

    assert (response.status_code == 202) == (action in allowed), response.text
