"""Runs that meet a fault, and all that can be looked at of a run."""

import json

import httpx

from tests.acceptance.conftest import Running
from tests.faults import goal_at
from tests.scripted_model import Call, ScriptedModel
from tests.service_process import Json, every, start_run


async def run_at(seat: str, how: str, client: httpx.AsyncClient, **options: object) -> Json:
    """A run that meets its fault there, as accepted.

    Its model is its own: what is learnt of a model, such as a limit, holds for all its runs.
    """
    given = {
        "model": f"{seat}, {how}",
        "on_failure": "auto" if seat == "recovery" else "fail",
        "max_replans": 1,
        **options,
    }
    return await start_run(client, goal=goal_at(seat, how), context={"notes": "word " * 1_000}, options=given)


def calls_at(seat: str, run: Json, model: ScriptedModel) -> list[Call]:
    """The run's calls of the seat at fault."""
    return [call for call in model.by_seat(seat, run_id=run["id"]) if call.task_id in (None, "b")]


async def looked_at(client: httpx.AsyncClient, run: Json) -> dict[str, Json]:
    """Ask for everything there is about the run, none of which may fail; its tasks by key."""
    here = f"/runs/{run['id']}"
    tasks = {task["key"]: task async for task in every(client, f"{here}/tasks")}
    for path in [f"{here}?include=tasks", f"{here}/events", f"{here}/plans", *(f"{here}/tasks/{key}" for key in tasks)]:
        response = await client.get(path)
        assert response.status_code == 200, (path, response.text)
        json.loads(response.content.decode("utf-8", errors="strict"))
    plan = await client.get(f"{here}/plan")
    assert plan.status_code == (200 if tasks else 404), plan.text
    return tasks


async def is_sound(running: Running) -> None:
    """Assert that the service is there, and that nothing broke in it that it should have known of."""
    assert (await running.client.get("/readyz")).status_code == 200
    assert "Traceback" not in running.service.log
