"""What is not built yet is taken at its default and refused otherwise."""

from typing import Any

import httpx
import pytest

from app.api.unbuilt import UNBUILT
from tests.api.asking import code_of, new_run, places_of

OTHER_VALUES: dict[tuple[str, str], list[Any]] = {
    ("NewGoal", "webhook_url"): ["https://example.com/hook"],
}


def test_every_row_of_the_table_is_tried() -> None:
    assert {(row.body.__name__, row.field) for row in UNBUILT} == OTHER_VALUES.keys()


CASES = [(field, value) for (_, field), values in OTHER_VALUES.items() for value in values]


@pytest.mark.parametrize(("field", "value"), CASES)
async def test_another_value_is_refused(lonely: httpx.AsyncClient, field: str, value: Any) -> None:
    response = await lonely.post("/goals", json={"goal": "x", field: value})

    assert code_of(response, 422) == "not_supported"
    assert places_of(response) == [(f"/{field}", "not_supported")]
    assert "not built yet" in response.json()["detail"]


@pytest.mark.parametrize("row", UNBUILT, ids=lambda row: row.field)
async def test_every_accepted_value_is_taken(client: httpx.AsyncClient, row: Any) -> None:
    for value in row.accepted:
        await new_run(client, **{row.field: value})


async def test_a_route_of_a_later_issue_is_not_there(lonely: httpx.AsyncClient) -> None:
    assert code_of(await lonely.get("/metrics"), 404) == "not_found"


async def test_the_live_stream_is_refused(client: httpx.AsyncClient) -> None:
    run = await new_run(client)

    response = await client.get(run["links"]["events"], headers={"Accept": "text/event-stream"})

    assert code_of(response, 406) == "not_supported"


async def test_a_client_that_takes_json_as_well_gets_a_page_of_events(client: httpx.AsyncClient) -> None:
    run = await new_run(client)

    accept = {"Accept": "text/event-stream, application/json;q=0.9"}
    response = await client.get(run["links"]["events"], headers=accept)

    assert response.status_code == 200
