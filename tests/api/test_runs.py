"""Runs: read and polled, deleted."""

import httpx
import pytest

from app.api.services import Services
from app.domain.ids import TaskKey
from app.domain.status import RunStatus, TaskStatus
from tests.api.asking import NOWHERE, begin, chain, code_of, commit, end, get, new_run

PATHS = ["", "/plan", "/plans", "/tasks", "/tasks/0.a", "/reviews", f"/reviews/{NOWHERE}", "/events"]


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
    assert found["allowed_actions"] == ["retry", "delete"]
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
    PATHS,
)
async def test_a_run_that_is_not_there_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    assert code_of(await client.get(f"/runs/{NOWHERE}{path}"), 404) == "run_not_found"


@pytest.mark.parametrize("run_id", ["x", "%00", "%ff", "1" * 5_000, "01980000000070008000000000000001", "-1", "%20"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_malformed_run_id_is_not_found_without_sql(lonely: httpx.AsyncClient, run_id: str, path: str) -> None:
    assert code_of(await lonely.get(f"/runs/{run_id}{path}"), 404) == "run_not_found"


async def test_a_finished_run_is_deleted_with_all_that_it_held(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan=chain("a"))
    await client.post(f"/runs/{run['id']}/cancel")

    response = await client.delete(run["links"]["self"])

    assert (response.status_code, response.content) == (204, b"")
    for path in PATHS:
        assert code_of(await client.get(run["links"]["self"] + path), 404) == "run_not_found"
    assert (await get(client, run["links"]["goal"]))["run_ids"] == []


async def test_an_unfinished_run_is_not_deleted(client: httpx.AsyncClient) -> None:
    run = await new_run(client)

    response = await client.delete(run["links"]["self"])

    assert code_of(response, 409) == "run_not_finished"
    assert (await client.get(run["links"]["self"])).status_code == 200


async def test_what_is_not_there_is_not_deleted(client: httpx.AsyncClient) -> None:
    assert code_of(await client.delete(f"/runs/{NOWHERE}"), 404) == "run_not_found"
