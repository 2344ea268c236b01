"""One key, one run: replayed, refused or raced for."""

import asyncio

import httpx
import pytest
import sqlalchemy as sa

from app.api.routes import create_api
from app.api.services import Services
from app.api.watch import RunWatch
from app.domain.ids import DEFAULT_TENANT, RunId
from app.domain.status import RunStatus
from app.settings import Settings
from app.storage.database import Database, new_id
from app.storage.idempotency import KEPT_MS, keep_key
from app.storage.tables import idempotency_keys
from tests.api.asking import asking, chain, code_of, commit, end, get, places_of
from tests.databases import Databases


async def test_the_same_request_is_answered_with_the_same_run_as_it_now_is(
    client: httpx.AsyncClient, services: Services
) -> None:
    key = {"Idempotency-Key": "k 1"}
    first = await client.post("/goals", json={"goal": "x", "options": {"max_tasks": 3}}, headers=key)
    run = first.json()
    await commit(services.database, run["id"], end(RunStatus.SUCCEEDED, result="done"))

    again = await client.post("/goals", json={"options": {"max_tasks": 3}, "goal": "x"}, headers=key)

    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.status_code == 202
    assert again.headers["location"] == first.headers["location"]
    assert (again.json()["id"], again.json()["status"]) == (run["id"], "succeeded")
    assert len((await get(client, "/runs"))["data"]) == len((await get(client, "/goals"))["data"]) == 1


async def test_another_body_under_the_same_key_is_refused(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k"}
    await client.post("/goals", json={"goal": "x"}, headers=key)

    response = await client.post("/goals", json={"goal": "y"}, headers=key)

    assert code_of(response, 422) == "idempotency_key_reused"
    assert len((await get(client, "/runs"))["data"]) == 1


async def test_a_key_belongs_to_its_route(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k"}
    first = (await client.post("/goals", json={"goal": "x"}, headers=key)).json()
    other = (await client.post("/goals", json={"goal": "y"})).json()

    runs = [
        (await client.post(f"/goals/{goal_id}/runs", headers=key)).json()["id"]
        for goal_id in (first["goal_id"], other["goal_id"], first["goal_id"])
    ]

    assert runs[0] == runs[2]
    assert len({first["id"], *runs}) == 3


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tinside", "ü"])
async def test_an_unusable_key_is_refused(lonely: httpx.AsyncClient, key: str) -> None:
    headers = [(b"idempotency-key", key.encode("latin-1"))]
    response = await lonely.post("/goals", json={"goal": "x"}, headers=headers)

    assert code_of(response, 422) == "invalid_idempotency_key"
    assert response.json()["errors"][0]["header"] == "Idempotency-Key"
    assert places_of(response) == [(None, "invalid_idempotency_key")]


@pytest.mark.parametrize("key", ["x", "x" * 255, "~ !"])
async def test_keys_of_every_allowed_length_work(client: httpx.AsyncClient, key: str) -> None:
    first, second = [
        (await client.post("/goals", json={"goal": "x"}, headers={"Idempotency-Key": key})).json()["id"]
        for _ in range(2)
    ]
    assert first == second


async def test_a_refused_request_does_not_use_up_its_key(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k"}
    assert code_of(await client.post("/goals", json={"goal": ""}, headers=key), 422) == "invalid_request"

    assert (await client.post("/goals", json={"goal": "x"}, headers=key)).status_code == 202


async def test_a_key_of_a_deleted_run_makes_no_other(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k"}
    run = (await client.post("/goals", json={"goal": "x"}, headers=key)).json()
    await client.post(f"/runs/{run['id']}/cancel")
    await client.delete(f"/runs/{run['id']}")

    assert code_of(await client.post("/goals", json={"goal": "x"}, headers=key), 410) == "run_deleted"


async def test_after_72_hours_a_key_is_free_again(client: httpx.AsyncClient, services: Services) -> None:
    key = {"Idempotency-Key": "k"}
    first = (await client.post("/goals", json={"goal": "x"}, headers=key)).json()
    async with services.database.write() as connection:
        age = idempotency_keys.c.created_at - KEPT_MS - 1
        await connection.execute(sa.update(idempotency_keys).values(created_at=age))

    second = await client.post("/goals", json={"goal": "other"}, headers=key)

    assert second.status_code == 202
    assert second.json()["id"] != first["id"]


async def test_50_equal_requests_at_once_make_one_run(client: httpx.AsyncClient) -> None:
    body = {"goal": "x", "plan": chain("a", "b")}
    async with asyncio.TaskGroup() as group:
        sent = [
            group.create_task(client.post("/goals", json=body, headers={"Idempotency-Key": "k"})) for _ in range(50)
        ]
    answers = [task.result() for task in sent]

    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers].count(None) == 1 + sum(
        answer.status_code == 409 for answer in answers
    )
    assert len((await get(client, "/runs"))["data"]) == len((await get(client, "/goals"))["data"]) == 1


async def test_50_different_keys_at_once_make_50_runs(client: httpx.AsyncClient) -> None:
    async with asyncio.TaskGroup() as group:
        for n in range(50):
            group.create_task(client.post("/goals", json={"goal": "x"}, headers={"Idempotency-Key": str(n)}))

    assert len((await get(client, "/runs", limit=200))["data"]) == 50


async def test_while_another_request_binds_the_key_the_client_is_asked_to_try_again(
    databases: Databases, settings: Settings
) -> None:
    with databases.fresh("postgresql") as url:  # SQLite has one writer: its requests queue and cannot meet
        database = Database(url)
        api = create_api(Services(database=database, settings=settings, watch=RunWatch(database)))
        async with asking(api) as client, database.write() as slow:
            await keep_key(slow, DEFAULT_TENANT, route="createGoal", key="k", request_hash="", run_id=RunId(new_id()))
            response = await client.post("/goals", json={"goal": "x"}, headers={"Idempotency-Key": "k"})
        await database.close()

    assert code_of(response, 409) == "idempotency_in_progress"
    assert response.headers["retry-after"] == "1"
