"""Lists of runs: their order, filters and pages."""

import math
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from app.api.services import Services
from app.domain.status import RunStatus
from tests.api.asking import NOWHERE, begin, code_of, commit, end, get, new_run


async def _listed(client: httpx.AsyncClient, **query: Any) -> list[str]:
    return [run["id"] for run in (await get(client, "/runs", **query))["data"]]


async def test_runs_are_listed_newest_first_and_by_status(client: httpx.AsyncClient, services: Services) -> None:
    queued, running, failed = [(await new_run(client))["id"] for _ in range(3)]
    await commit(services.database, running, begin)
    await commit(services.database, failed, end(RunStatus.FAILED))

    assert await _listed(client) == [failed, running, queued]
    assert await _listed(client, status="running") == [running]
    assert await _listed(client, status=["failed", "queued"]) == [failed, queued]
    assert await _listed(client, status="paused") == []


async def test_runs_are_listed_by_goal(client: httpx.AsyncClient) -> None:
    run = await new_run(client)
    await new_run(client)

    assert await _listed(client, goal_id=run["goal_id"]) == [run["id"]]
    assert await _listed(client, goal_id=NOWHERE) == []


async def test_runs_are_listed_by_the_time_they_were_made(client: httpx.AsyncClient) -> None:
    run = await new_run(client)
    made = datetime.fromisoformat(run["created_at"])
    before, after = [datetime.fromtimestamp(made.timestamp() + n, UTC).isoformat() for n in (-3600, 3600)]

    assert await _listed(client, created_after=before, created_before=after) == [run["id"]]
    assert await _listed(client, created_after=after) == await _listed(client, created_before=before) == []
    assert await _listed(client, created_after=run["created_at"]) == []
    assert await _listed(client, created_before="2026-01-01 00:00:00") == []


@pytest.mark.parametrize("key", ["ticket", 'a"b', "a.b", "$", "[0]", "a'b", "ü", "a]b", "\\", "%"])
async def test_runs_are_listed_by_metadata_whatever_its_key(client: httpx.AsyncClient, key: str) -> None:
    run = await new_run(client, metadata={key: "42", "other": "x"})
    await new_run(client, metadata={key: "43"})
    await new_run(client)

    assert await _listed(client, **{f"metadata[{key}]": "42"}) == [run["id"]]
    assert await _listed(client, **{f"metadata[{key}]": "42", "metadata[other]": "x"}) == [run["id"]]
    assert await _listed(client, **{f"metadata[{key}]": "42", "metadata[other]": "y"}) == []


async def test_unknown_parameters_are_ignored(client: httpx.AsyncClient) -> None:
    run = await new_run(client)

    assert await _listed(client, colour="red") == [run["id"]]


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("/runs", "status", "asleep"),
        ("/runs", "goal_id", "x"),
        ("/runs", "created_after", "yesterday"),
        ("/runs", "created_after", "2026-02-30T00:00:00Z"),
        ("/runs", "created_before", "1700000000"),
        ("/runs", "metadata[a]", "\x00"),
        ("/runs", "metadata[]", "x"),
        ("/runs", "metadata", "x"),
        ("/runs", "metadata[a", "x"),
        ("/runs", "limit", "0"),
        ("/runs", "limit", "201"),
        ("/runs", "limit", "ten"),
        ("/runs", "limit", "9" * 5_000),
        ("/goals", "limit", "0"),
        (f"/runs/{NOWHERE}", "include", "everything"),
        (f"/runs/{NOWHERE}/plan", "format", "svg"),
        (f"/runs/{NOWHERE}/plan", "generation", "-1"),
        (f"/runs/{NOWHERE}/plan", "generation", str(2**63)),
        (f"/runs/{NOWHERE}/tasks", "generation", "x"),
        (f"/runs/{NOWHERE}/tasks", "status", "queued"),
        (f"/runs/{NOWHERE}/events", "after", "-1"),
        (f"/runs/{NOWHERE}/events", "after", str(2**31)),
    ],
)
async def test_a_bad_parameter_is_refused_by_name(lonely: httpx.AsyncClient, path: str, name: str, value: str) -> None:
    response = await lonely.get(path, params={name: value})

    assert code_of(response, 422) == "invalid_request"
    assert [error["query"] for error in response.json()["errors"]] == [name]


async def test_walking_the_pages_misses_and_repeats_nothing_while_runs_are_added(client: httpx.AsyncClient) -> None:
    made = [(await new_run(client))["id"] for _ in range(25)]

    seen: list[str] = []
    query: dict[str, Any] = {"limit": 4}
    for _ in range(math.ceil(25 / 4)):
        page = await get(client, "/runs", **query)
        seen += [run["id"] for run in page["data"]]
        query["cursor"] = page["next_cursor"]
        await new_run(client)

    assert seen == made[::-1]
    assert (page["has_more"], page["next_cursor"]) == (False, None)
