"""What every answer carries, and what is answered when something is wrong with the service itself."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from app.api.services import Services
from tests.api.asking import NOWHERE, code_of


@pytest.mark.parametrize("path", ["/healthz", "/goals", "/nowhere", "/openapi.json", "/docs", "/"])
async def test_every_answer_carries_its_id_and_no_sniffing(lonely: httpx.AsyncClient, path: str) -> None:
    response = await lonely.get(path)

    assert response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "private, no-cache"


async def test_a_sane_request_id_is_kept(lonely: httpx.AsyncClient) -> None:
    response = await lonely.get("/nowhere", headers={"X-Request-Id": "trace:4f.9_c-6"})

    assert response.headers["x-request-id"] == response.json()["request_id"] == "trace:4f.9_c-6"


@pytest.mark.parametrize("sent", [b"", b"x" * 129, b"a b", b"a;b", b"\xff", b'"'])
async def test_another_request_id_is_replaced(lonely: httpx.AsyncClient, sent: bytes) -> None:
    response = await lonely.get("/healthz", headers=[(b"x-request-id", sent)])

    assert response.headers["x-request-id"].encode() != sent
    assert response.headers["x-request-id"].isalnum()


async def test_requests_have_ids_of_their_own(lonely: httpx.AsyncClient) -> None:
    assert len({(await lonely.get("/healthz")).headers["x-request-id"] for _ in range(3)}) == 3


async def test_an_unknown_path_is_a_problem(lonely: httpx.AsyncClient) -> None:
    response = await lonely.get("/no%00where/ü")

    assert code_of(response, 404) == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/goals", "GET, POST"),
        ("PATCH", f"/runs/{NOWHERE}", "DELETE, GET"),
        ("GET", f"/runs/{NOWHERE}/cancel", "POST"),
        ("POST", "/healthz", "GET"),
        ("DELETE", "/docs", "GET"),
    ],
)
async def test_a_method_that_a_path_does_not_take_is_a_problem_that_names_those_it_does(
    lonely: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    response = await lonely.request(method, path)

    assert code_of(response, 405) == "method_not_allowed"
    assert response.headers["allow"] == allowed


async def test_a_slash_too_many_is_another_path(lonely: httpx.AsyncClient) -> None:
    assert code_of(await lonely.get("/goals/"), 404) == "not_found"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/goals"),
        ("GET", "/goals"),
        ("GET", f"/goals/{NOWHERE}"),
        ("POST", f"/goals/{NOWHERE}/runs"),
        ("GET", "/runs"),
        ("GET", f"/runs/{NOWHERE}"),
        ("GET", f"/runs/{NOWHERE}/plan"),
        ("GET", f"/runs/{NOWHERE}/plans"),
        ("GET", f"/runs/{NOWHERE}/tasks"),
        ("GET", f"/runs/{NOWHERE}/tasks/0.a"),
        ("GET", f"/runs/{NOWHERE}/events"),
        ("POST", f"/runs/{NOWHERE}/cancel"),
        ("DELETE", f"/runs/{NOWHERE}"),
        ("GET", "/readyz"),
    ],
)
async def test_while_the_database_is_away_clients_are_asked_to_try_again(
    lonely: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await lonely.request(method, path, json={"goal": "x"} if path == "/goals" else {})

    assert code_of(response, 503) == "storage_unavailable"
    assert response.headers["retry-after"] == "1"


async def test_a_failure_inside_is_logged_and_tells_nothing_of_itself(
    lonely: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr("app.api.runs.parse_uuid", broken)
    with capture_logs() as logged:
        response = await lonely.get(f"/runs/{NOWHERE}")

    assert code_of(response, 500) == "internal_error"
    assert "hunter2" not in response.text
    assert [(entry["event"], entry["request_id"]) for entry in logged] == [
        ("request_failed", response.headers["x-request-id"])
    ]


async def test_a_client_that_goes_away_while_it_sends_is_no_failure(api: FastAPI) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/goals", "raw_path": b"/goals", "query_string": b""}
    await api({**scope, "headers": headers, "http_version": "1.1", "scheme": "http", "asgi": {}}, receive, send)

    assert sent == []


async def test_the_process_is_healthy_even_while_the_database_is_away(lonely: httpx.AsyncClient) -> None:
    response = await lonely.get("/healthz")

    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_the_service_is_ready_with_its_database(client: httpx.AsyncClient) -> None:
    response = await client.get("/readyz")

    assert (response.status_code, response.json()) == (200, {"status": "ready"})


async def test_a_draining_service_is_not_ready(client: httpx.AsyncClient, services: Services) -> None:
    services.draining.set()

    assert code_of(await client.get("/readyz"), 503) == "draining"


async def test_the_root_leads_to_the_documentation(lonely: httpx.AsyncClient) -> None:
    response = await lonely.get("/")

    assert (response.status_code, response.headers["location"]) == (307, "/docs")
