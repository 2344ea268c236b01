"""Runs: read and polled, cancelled, deleted."""

import asyncio

import httpx
import pytest

from app.api.services import Services
from app.domain.ids import TaskKey
from app.domain.status import RunStatus, TaskStatus
from app.storage.dispatch import claim
from tests.api.asking import NOWHERE, begin, chain, code_of, commit, end, get, new_run


async def test_an_unfinished_run_has_a_strong_etag_and_says_when_to_ask_again(client: httpx.AsyncClient) -> None:
    run = await new_run(client)

    response = await client.get(run["links"]["self"])

    assert response.json() == run
    assert response.headers["etag"] == '"1"'
    assert response.headers["retry-after"] == "1"
    assert response.headers["cache-control"] == "private, no-cache"


async def test_a_finished_run_is_not_asked_for_again(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client)
    await commit(services.database, run["id"], begin)
    error = {"code": "task_failed", "message": "Task 0.1 failed.", "task_key": "0.1"}
    await commit(services.database, run["id"], end(RunStatus.FAILED, error=error))

    response = await client.get(run["links"]["self"])

    found = response.json()
    assert "retry-after" not in response.headers
    assert (found["status"], found["error"], found["version"]) == ("failed", error, 3)
    assert found["allowed_actions"] == ["delete"]
    assert found["created_at"] <= found["started_at"] <= found["finished_at"]


@pytest.mark.parametrize("sent", ['"1"', 'W/"1"', '"0", "1"', '"0",W/"1" , "x"', "*"])
async def test_what_the_client_has_already_is_not_sent_again(client: httpx.AsyncClient, sent: str) -> None:
    run = await new_run(client)

    response = await client.get(run["links"]["self"], headers={"If-None-Match": sent})

    assert response.status_code == 304
    assert response.content == b""
    assert (response.headers["etag"], response.headers["retry-after"]) == ('"1"', "1")


@pytest.mark.parametrize("sent", ['"0"', "1", '"1.tasks"', '"11"', "", "rubbish"])
async def test_what_the_client_has_not_is_sent(client: httpx.AsyncClient, sent: str) -> None:
    run = await new_run(client)

    response = await client.get(run["links"]["self"], headers={"If-None-Match": sent})

    assert response.status_code == 200


async def test_a_change_gives_another_etag(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client)
    await commit(services.database, run["id"], begin)

    response = await client.get(run["links"]["self"], headers={"If-None-Match": '"1"'})

    assert response.status_code == 200
    assert response.headers["etag"] == '"2"'
    assert response.json()["status"] == "running"


async def test_with_tasks_the_newest_generation_comes_along_without_results(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await new_run(client, plan=chain("a", "b"))
    await commit(services.database, run["id"], lambda c: c.task(TaskKey("0.a"), TaskStatus.SUCCEEDED, result="long"))

    response = await client.get(run["links"]["self"], params={"include": "tasks"})

    found = response.json()
    assert response.headers["etag"] == '"2.tasks"'
    assert [(task["key"], task["status"], task["result"]) for task in found["tasks"]] == [
        ("0.a", "succeeded", None),
        ("0.b", "pending", None),
    ]
    assert found["tasks_truncated"] is False


async def test_no_more_than_500_tasks_come_along(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan=chain(*range(501)))

    found = await get(client, run["links"]["self"], include="tasks")

    assert len(found["tasks"]) == 500
    assert found["tasks_truncated"] is True


async def test_without_tasks_a_run_stays_small(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan=chain(*range(501)))

    response = await client.get(run["links"]["self"])

    assert "tasks" not in response.json()
    assert len(response.content) < 3_000


@pytest.mark.parametrize(
    "path",
    ["", "/plan", "/plans", "/tasks", "/tasks/0.1", "/events"],
)
async def test_a_run_that_is_not_there_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    assert code_of(await client.get(f"/runs/{NOWHERE}{path}"), 404) == "run_not_found"


@pytest.mark.parametrize("run_id", ["x", "%00", "%ff", "1" * 5_000, "01980000000070008000000000000001", "-1", "%20"])
@pytest.mark.parametrize("path", ["", "/plan", "/plans", "/tasks", "/tasks/0.1", "/events"])
async def test_a_malformed_run_id_is_not_found_without_sql(lonely: httpx.AsyncClient, run_id: str, path: str) -> None:
    assert code_of(await lonely.get(f"/runs/{run_id}{path}"), 404) == "run_not_found"


async def test_a_run_that_no_worker_holds_is_cancelled_at_once(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan=chain("a", "b"))

    response = await client.post(f"/runs/{run['id']}/cancel")

    cancelled = response.json()
    assert response.status_code == 202
    assert (cancelled["status"], cancelled["stop_requested"]) == ("cancelled", None)
    assert cancelled["progress"]["cancelled"] == 2
    assert cancelled["allowed_actions"] == ["delete"]
    assert [event["type"] for event in (await get(client, run["links"]["events"]))["data"]] == [
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
    async with services.database.write() as connection:
        assert await claim(connection, owner="worker", limit=1, lease_ms=60_000)
    await commit(services.database, run["id"], begin)

    first = await client.post(f"/runs/{run['id']}/cancel")
    second = await client.post(f"/runs/{run['id']}/cancel")

    assert (first.status_code, second.status_code) == (202, 200)
    assert (first.json()["status"], first.json()["stop_requested"]) == ("running", "cancel")
    assert first.json()["allowed_actions"] == []
    assert second.json() == first.json()


@pytest.mark.parametrize("status", [RunStatus.SUCCEEDED, RunStatus.FAILED])
async def test_a_run_that_finished_first_cannot_be_cancelled(
    client: httpx.AsyncClient, services: Services, status: RunStatus
) -> None:
    run = await new_run(client)
    await commit(services.database, run["id"], end(status))

    response = await client.post(f"/runs/{run['id']}/cancel")

    assert code_of(response, 409) == "invalid_transition"
    assert response.json()["allowed_actions"] == ["delete"]


async def test_many_cancels_at_once_cancel_once(client: httpx.AsyncClient) -> None:
    run = await new_run(client)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(client.post(f"/runs/{run['id']}/cancel")) for _ in range(8)]

    assert sorted(task.result().status_code for task in asked) == [200] * 7 + [202]
    assert [event["type"] for event in (await get(client, run["links"]["events"]))["data"]].count("run.cancelled") == 1


async def test_a_finished_run_is_deleted_with_all_that_it_held(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan=chain("a"))
    await client.post(f"/runs/{run['id']}/cancel")

    response = await client.delete(run["links"]["self"])

    assert (response.status_code, response.content) == (204, b"")
    for path in ("", "/plan", "/plans", "/tasks", "/tasks/0.a", "/events"):
        assert code_of(await client.get(run["links"]["self"] + path), 404) == "run_not_found"
    assert (await get(client, run["links"]["goal"]))["run_ids"] == []


async def test_an_unfinished_run_is_not_deleted(client: httpx.AsyncClient) -> None:
    run = await new_run(client)

    response = await client.delete(run["links"]["self"])

    assert code_of(response, 409) == "run_not_finished"
    assert (await client.get(run["links"]["self"])).status_code == 200


@pytest.mark.parametrize(("method", "path"), [("POST", "/cancel"), ("DELETE", "")])
async def test_what_is_not_there_is_neither_cancelled_nor_deleted(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    assert code_of(await client.request(method, f"/runs/{NOWHERE}{path}"), 404) == "run_not_found"
