"""How the API's tests ask, and how they make a run go on without a worker."""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import httpx
from fastapi import FastAPI

from app.domain.ids import DEFAULT_TENANT, RunId, TaskKey
from app.domain.status import AttemptStatus, RunStatus, Seat, TaskStatus
from app.storage.changes import Changes
from app.storage.database import Database
from app.storage.writing import count_by_status, write
from tests.stored import set_run

Json = dict[str, Any]
NOWHERE = "01980000-0000-7000-8000-00000000dead"


def asking(app: FastAPI) -> httpx.AsyncClient:
    """A client of the app in this process; a failure inside is answered, not raised."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://planwave.test")


def chain(*ids: str | int) -> Json:
    """A plan in which each task depends on the one before."""
    return {
        "tasks": [
            {"id": one, "description": f"Do {one}", "depends_on": list(ids[n - 1 : n]) if n else []}
            for n, one in enumerate(ids)
        ]
    }


async def new_run(client: httpx.AsyncClient, **body: object) -> Json:
    """Post a goal; its run."""
    response = await client.post("/goals", json={"goal": "Find out", **body})
    assert response.status_code == 202, response.text
    run: Json = response.json()
    return run


async def get(client: httpx.AsyncClient, path: str, **query: Any) -> Json:
    """The body of a 200."""
    response = await client.get(path, params=query)
    assert response.status_code == 200, response.text
    found: Json = response.json()
    return found


async def types_of_events(client: httpx.AsyncClient, run: Json) -> list[str]:
    """What happened to the run, in order."""
    return [event["type"] for event in (await get(client, run["links"]["events"]))["data"]]


async def steer(client: httpx.AsyncClient, run: Json, action: str) -> httpx.Response:
    """Ask the run to cancel, pause, resume or retry."""
    return await client.post(f"/runs/{run['id']}/{action}")


async def bend(database: Database, run: Json, **columns: Any) -> None:
    """Bend the run's row."""
    await set_run(database, RunId(UUID(run["id"])), **columns)


def code_of(response: httpx.Response, status: int) -> str:
    """The code of a problem with this status, after a look at all that every problem has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]
    assert {"type", "title", "detail", "instance", "errors"} <= body.keys()
    return str(body["code"])


def places_of(response: httpx.Response) -> list[tuple[str | None, str]]:
    """Pointer and code of each error of a problem."""
    return [(error["pointer"], error["code"]) for error in response.json()["errors"]]


async def commit(database: Database, run_id: str, say: Callable[[Changes], object]) -> None:
    """One announced commit for the run, as a worker does it."""
    run = RunId(UUID(run_id))
    async with database.write() as connection:
        changes = Changes(tenant_id=DEFAULT_TENANT, run_id=run, token=None)
        say(changes)
        assert await connection.run_sync(write, [changes])
        await database.announce(connection, run, requested=False)


def end(
    status: RunStatus, *, result: object = None, error: Mapping[str, Any] | None = None
) -> Callable[[Changes], None]:
    """What finishes a run without tasks."""

    def say(changes: Changes) -> None:
        changes.status = status
        changes.over = True
        changes.result = result
        changes.error = error
        changes.event(f"run.{status}")

    return say


def parked(status: RunStatus) -> Callable[[Changes], None]:
    """What has a run stand still."""

    def say(changes: Changes) -> None:
        changes.status = status
        changes.parked = True
        changes.event(f"run.{status}")

    return say


def begin(changes: Changes) -> None:
    """What a worker writes first."""
    changes.status = RunStatus.RUNNING
    changes.begun = True
    changes.event("run.started")


def attempt_spoiled(key: str) -> Callable[[Changes], None]:
    """A first attempt that the model spoiled, with its call; the task waits for another."""

    def say(changes: Changes) -> None:
        task = TaskKey(key)
        error = {"kind": "empty_answer", "message": "The answer is empty.", "retryable": True}
        changes.task(task, TaskStatus.RUNNING)
        changes.attempt_started(task, 1, description="Do it", prompt_hash="0123456789abcdef")
        changes.call_opened(1, seat=Seat.EXECUTOR, model="scripted", try_number=1, task_key=task, attempt=1)
        changes.attempt_ended(task, 1, AttemptStatus.FAILED, error=error)
        changes.task(task, TaskStatus.RETRYING, retry_in_ms=60_000)
        changes.progress = count_by_status([TaskStatus.RETRYING])

    return say
