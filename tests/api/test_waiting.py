"""`Prefer: wait`: requests that are answered when something happens to the run, or when their time is up."""

import asyncio

import httpx
import pytest

from app.api.services import Services
from app.domain.status import RunStatus
from app.storage.database import Database
from tests.api.asking import begin, commit, end, get, new_run

PATIENT_SECONDS = 60


async def _waiting(services: Services, count: int = 1) -> None:
    """Until this many requests wait for news of a run."""
    async with asyncio.timeout(PATIENT_SECONDS):
        # Nothing tells who begins to wait, except for this.
        while sum(len(news) for news in services.watch._waiting.values()) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_waiting_client_hears_of_a_cancel(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client)
    async with asyncio.timeout(PATIENT_SECONDS), asyncio.TaskGroup() as group:
        asked = group.create_task(client.get(run["links"]["self"], headers={"Prefer": "wait=50"}))
        await _waiting(services)
        await client.post(f"/runs/{run['id']}/cancel")

    assert asked.result().json()["status"] == "cancelled"


async def test_a_waiting_client_is_answered_when_the_run_finishes(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await new_run(client)
    async with asyncio.timeout(PATIENT_SECONDS), asyncio.TaskGroup() as group:
        asked = group.create_task(client.get(run["links"]["self"], headers={"Prefer": "wait=50"}))
        await _waiting(services)
        await commit(services.database, run["id"], begin)
        await commit(services.database, run["id"], end(RunStatus.SUCCEEDED, result={"a": 1}))

    response = asked.result()
    assert response.status_code == 200
    assert response.json()["result"] == {"a": 1}
    assert response.headers["preference-applied"] == "wait=50"


async def test_a_waiting_client_with_an_etag_is_answered_at_the_next_change(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await new_run(client)
    headers = {"Prefer": "wait=50", "If-None-Match": '"1"'}
    async with asyncio.timeout(PATIENT_SECONDS), asyncio.TaskGroup() as group:
        asked = group.create_task(client.get(run["links"]["self"], headers=headers))
        await _waiting(services)
        await commit(services.database, run["id"], begin)

    assert asked.result().status_code == 200
    assert asked.result().json()["version"] == 2


async def test_a_client_whose_time_is_up_gets_304_with_an_etag_and_the_run_without(client: httpx.AsyncClient) -> None:
    run = await new_run(client)

    async with asyncio.timeout(PATIENT_SECONDS):
        with_etag = await client.get(run["links"]["self"], headers={"Prefer": "wait=1", "If-None-Match": '"1"'})
        without = await client.get(run["links"]["self"], headers={"Prefer": "wait=1"})

    assert with_etag.status_code == 304
    assert with_etag.headers["preference-applied"] == "wait=1"
    assert (without.status_code, without.json()["status"]) == (200, "queued")


async def test_a_change_that_nobody_announced_is_seen(
    client: httpx.AsyncClient, services: Services, database_url: str
) -> None:
    run = await new_run(client)
    elsewhere = Database(database_url)
    async with asyncio.timeout(PATIENT_SECONDS), asyncio.TaskGroup() as group:
        asked = group.create_task(client.get(run["links"]["self"], headers={"Prefer": "wait=50"}))
        await _waiting(services)
        await commit(elsewhere, run["id"], end(RunStatus.SUCCEEDED))
    await elsewhere.close()

    assert asked.result().json()["status"] == "succeeded"


async def test_waiting_clients_hold_no_connection(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client)
    many = 3 * 10  # thrice the connections there are
    async with asyncio.timeout(PATIENT_SECONDS), asyncio.TaskGroup() as group:
        asked = [
            group.create_task(client.get(run["links"]["self"], headers={"Prefer": "wait=50"})) for _ in range(many)
        ]
        await _waiting(services, many)
        assert (await client.get("/readyz")).status_code == 200
        await commit(services.database, run["id"], end(RunStatus.SUCCEEDED))

    assert {task.result().json()["status"] for task in asked} == {"succeeded"}
    assert not services.watch._waiting


async def test_waiting_clients_are_answered_when_the_service_drains(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await new_run(client)
    async with asyncio.timeout(PATIENT_SECONDS / 2), asyncio.TaskGroup() as group:
        asked = group.create_task(client.get(run["links"]["self"], headers={"Prefer": "wait=60"}))
        await _waiting(services)
        services.draining.set()

    assert asked.result().json()["status"] == "queued"


async def test_waiting_for_news_of_a_finished_run_is_answered_at_once(client: httpx.AsyncClient) -> None:
    run = await new_run(client)
    await client.post(f"/runs/{run['id']}/cancel")
    headers = {"Prefer": "wait=50", "If-None-Match": '"2"'}
    async with asyncio.timeout(PATIENT_SECONDS):
        response = await client.get(run["links"]["self"], headers=headers)

    assert response.status_code == 304


async def test_creating_may_wait_for_the_end(client: httpx.AsyncClient, services: Services) -> None:
    async with asyncio.timeout(PATIENT_SECONDS), asyncio.TaskGroup() as group:
        asked = group.create_task(client.post("/goals", json={"goal": "x"}, headers={"Prefer": "wait=50"}))
        await _waiting(services)
        run = (await get(client, "/runs"))["data"][0]
        await commit(services.database, run["id"], end(RunStatus.SUCCEEDED, result="done"))

    response = asked.result()
    assert response.status_code == 200
    assert response.json()["result"] == "done"
    assert response.headers["preference-applied"] == "wait=50"
    assert response.headers["location"] == f"/runs/{run['id']}"
    assert "retry-after" not in response.headers


async def test_creating_with_a_wait_that_is_too_short_is_answered_with_202(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENT_SECONDS):
        response = await client.post("/goals", json={"goal": "x"}, headers={"Prefer": "respond-async, wait=1"})

    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=1"


@pytest.mark.parametrize(
    ("sent", "applied"),
    [
        ("wait=0", "wait=0"),
        ("respond-async, wait=0", "wait=0"),
        ('WAIT = "0" ; x=1', "wait=0"),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=soon", None),
        ("wait", None),
        ("await=0", None),
        ("", None),
    ],
)
async def test_a_preference_is_applied_or_ignored(client: httpx.AsyncClient, sent: str, applied: str | None) -> None:
    run = await new_run(client)

    response = await client.get(run["links"]["self"], headers={"Prefer": sent})

    assert response.status_code == 200
    assert response.headers.get("preference-applied") == applied


async def test_nobody_waits_longer_than_a_minute(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client)
    await commit(services.database, run["id"], end(RunStatus.SUCCEEDED))

    response = await client.get(run["links"]["self"], headers={"Prefer": "wait=86400"})

    assert response.headers["preference-applied"] == "wait=60"
