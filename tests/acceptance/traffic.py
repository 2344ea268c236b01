"""Clients of a service whose database comes and goes: they ask again while they are told to, and note every answer."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

import httpx

from tests.service_process import FINISHED, Json

PATIENCE_SECONDS = 240
_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back, and between which moments (`time.monotonic()`)."""

    what: str
    sent_at: float
    answered_at: float
    status: int
    code: str | None


class Traffic:
    """Of one service. Every answer must be what was asked for, or a 503 that says when to come back."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.answers: list[Answer] = []
        self._answered = asyncio.Condition()
        self.replayed = 0
        """POSTs refused although they had been done, as their repetition showed."""

    async def ask(self, method: str, path: str, **more: object) -> httpx.Response:
        """The first answer that is no 503."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                response = await self.ask_once(method, path, **more)
                if response.status_code != 503:
                    return response
                await asyncio.sleep(_PAUSE_SECONDS)  # the client's pace; it need not be as patient as Retry-After

    async def ask_once(self, method: str, path: str, **more: object) -> httpx.Response:
        """Whatever is answered, if it may be answered."""
        sent_at = time.monotonic()
        response = await self._client.request(method, path, **more)  # type: ignore[arg-type]
        refused = response.status_code == 503
        assert refused or response.status_code in (200, 202, 204, 304), (method, path, response.text)
        if refused:
            assert int(response.headers["Retry-After"]) >= 1
            assert response.headers["Content-Type"] == "application/problem+json"
        self.answers.append(
            Answer(
                what=f"{method} {path.split('/')[1]}",
                sent_at=sent_at,
                answered_at=time.monotonic(),
                status=response.status_code,
                code=response.json()["code"] if refused else None,
            )
        )
        async with self._answered:
            self._answered.notify_all()
        return response

    async def run_to_its_end(self, key: str, **body: object) -> Json:
        """Post a goal under this idempotency key, and look until its run has finished."""
        response = await self.ask("POST", "/goals", json=body, headers={"Idempotency-Key": key})
        self.replayed += "Idempotency-Replayed" in response.headers
        run: Json = response.json()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while run["status"] not in FINISHED:
                await asyncio.sleep(_PAUSE_SECONDS)
                run = (await self.ask("GET", f"/runs/{run['id']}")).json()
        return run

    async def until_answers(self, count: int) -> None:
        """Wait until there have been so many."""
        async with self._answered, asyncio.timeout(PATIENCE_SECONDS):
            await self._answered.wait_for(lambda: len(self.answers) >= count)

    @property
    def refused(self) -> int:
        """How many answers were 503s."""
        return sum(answer.status == 503 for answer in self.answers)

    def of_span(self, begin: float, end: float) -> Counter[int]:
        """The answers to what was asked and answered between these moments, by status."""
        return Counter(a.status for a in self.answers if begin <= a.sent_at and a.answered_at <= end)
