"""The HTTP client of `planwave run`: posts a goal, waits for changes of its run, asks to cancel it."""

import ipaddress
import time
from collections.abc import Sequence
from typing import Any

import httpx

from app.domain.errors import PlanwaveError

Json = dict[str, Any]

FINISHED = ("succeeded", "failed", "cancelled")
_WAIT_SECONDS = 20
_ASK_AGAIN = {304, 429}
_PATIENCE_TRIES = 15
"""Requests in a row that may find the service away: it may be restarting, and the run goes on when it is back."""


class ServiceUnreachable(PlanwaveError):
    """Nothing answers at the URL, or what does is not Planwave."""


class RequestRefused(PlanwaveError):
    """The service answered with a problem; the message is the problem's detail."""


class RunClient:
    """One run over HTTP, from its goal to its end."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self._url,
            timeout=httpx.Timeout(10, read=_WAIT_SECONDS + 20),
            trust_env=not _is_this_machine(_parsed(url)),  # a proxy knows nothing of our loopback
        )
        self._path = ""
        self._etag: str | None = None

    def close(self) -> None:
        """Close the connection; the run goes on."""
        self._http.close()

    def start(self, goal: str, tools: Sequence[str] = ()) -> Json:
        """Post the goal and the tools that its tasks may use; the run as accepted."""
        body: Json = {"goal": goal} | ({"options": {"tools": list(tools)}} if tools else {})
        try:
            response = self._http.post("/goals", json=body)
        except httpx.TransportError as error:
            raise ServiceUnreachable(
                f"No service answers at {self._url} ({error}). Start it with: make serve (or: planwave serve)"
            ) from None
        run = self._read(response)
        self._path = f"/runs/{run['id']}"
        return run

    def changed(self) -> Json:
        """The run with its tasks, once it differs from what this returned last. One request waits; nothing is polled.

        Raises `ServiceUnreachable` when the service stays away; `start` must have been called.
        """
        # Without an ETag a wait would be for the end of the run.
        headers = {"If-None-Match": self._etag, "Prefer": f"wait={_WAIT_SECONDS}"} if self._etag else {}
        tries = 0
        while True:
            asked = time.monotonic()
            try:
                response = self._http.get(self._path, params={"include": "tasks"}, headers=headers)
            except httpx.TransportError as error:
                fault = str(error)
            else:
                if response.status_code not in _ASK_AGAIN and not response.is_server_error:
                    self._etag = response.headers.get("ETag")
                    return self._read(response)
                fault = f"HTTP {response.status_code}" if response.is_server_error else ""
            tries = tries + 1 if fault else 0
            if tries == _PATIENCE_TRIES:
                raise ServiceUnreachable(f"The service at {self._url} went away ({fault}); its run may still go on.")
            # A server that does not wait is not asked more than once a second.
            time.sleep(max(0.0, asked + 1 - time.monotonic()))

    def cancel(self) -> None:
        """Ask for the run to be cancelled. It may finish first."""
        try:
            response = self._http.post(f"{self._path}/cancel")
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"No service answers at {self._url} ({error}); the run goes on.") from None
        if response.status_code != 409:  # it has finished: the next look says how
            self._read(response)

    def _read(self, response: httpx.Response) -> Json:
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise ServiceUnreachable(f"What answers at {self._url} is not Planwave (HTTP {response.status_code}).")
        if response.is_success and "id" in body and "status" in body:
            return body
        reasons = [str(body.get("detail") or body.get("title") or "no reason given")]
        reasons += [
            f"{entry.get('pointer', '')} {entry.get('message', '')}".strip() for entry in body.get("errors") or []
        ]
        raise RequestRefused(f"The service refused (HTTP {response.status_code}): {'; '.join(reasons)}")


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ServiceUnreachable(f"{url} is not the URL of a service; one looks like http://127.0.0.1:8000.")
    return parsed


def _is_this_machine(url: httpx.URL) -> bool:
    try:
        return ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return url.host == "localhost"
