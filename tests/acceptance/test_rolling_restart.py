"""Every worker and every service started anew, one after the other, under load: nobody notices."""

import asyncio
import random
import time
from collections import Counter
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa

from app.domain.ids import RunId
from app.storage.tables import attempts, runs
from tests.databases import opened
from tests.invariants import check
from tests.scripted_model import Call, Reply, ScriptedModel, script, text
from tests.service_process import FINISHED, Json, ServiceProcess, StartProcess

WORKERS, SERVICES = 3, 2
RUNS_PER_SECOND = 5
LEASE_SECONDS = 120
"""Longer than a round: what a worker did not hand back would be missed."""


class Clients:
    """Ask one service, and the next one once if that fails."""

    def __init__(self, services: list[ServiceProcess]) -> None:
        self._clients = [service.client() for service in services]
        self._next = 0
        self.retried: Counter[str] = Counter()

    async def ask(self, method: str, path: str, **more: object) -> httpx.Response:
        """What was answered, which is never an error of the service's."""
        self._next += 1
        first, second = (self._clients[(self._next + n) % len(self._clients)] for n in (0, 1))
        try:
            answer = await first.request(method, path, **more)  # type: ignore[arg-type]
            if answer.status_code < 500:
                return answer
            self.retried[str(answer.status_code)] += 1
        except httpx.TransportError as error:
            self.retried[type(error).__name__] += 1
        answer = await second.request(method, path, **more)  # type: ignore[arg-type]
        assert answer.status_code < 500, answer.text
        return answer

    async def run(self, number: int) -> Json:
        """A run from its goal to its end."""
        headers = {"Idempotency-Key": str(uuid4())}
        answer = await self.ask("POST", "/goals", json={"goal": f"Goal {number}"}, headers=headers)
        assert answer.status_code == 202, answer.text
        run: Json = answer.json()
        async with asyncio.timeout(LEASE_SECONDS / 2):
            while run["status"] not in FINISHED:
                answer = await self.ask("GET", f"/runs/{run['id']}", headers={"Prefer": "wait=20"})
                assert answer.status_code == 200, answer.text
                run = answer.json()
                if run["status"] not in FINISHED:
                    await asyncio.sleep(0.2)  # a client's pace, when a service that stops has answered at once
        return run

    async def close(self) -> None:
        """Close them."""
        for client in self._clients:
            await client.aclose()


def unhurried(call: Call) -> Reply:
    """A result that takes its time, the same for the same task."""
    return text(f"result of {call.task_key}").after(random.Random(str(call.task_key)).uniform(0.1, 0.8))


@pytest.mark.soak
@pytest.mark.parametrize("rounds", [10])
async def test_rolling_restarts_lose_nothing_and_charge_nobody(
    database_url: str, start_process: StartProcess, scripted_model: ScriptedModel, rounds: int
) -> None:
    scripted_model.begin(script({"executor": unhurried}))
    services = [await start_process("serve", "--no-worker") for _ in range(SERVICES)]
    workers = [await start_process("worker", lease_seconds=LEASE_SECONDS, drain_seconds=0.3) for _ in range(WORKERS)]
    clients = Clients(services)
    asked: list[asyncio.Task[Json]] = []
    stopping = asyncio.Event()

    async def load() -> None:
        while not stopping.is_set():
            asked.append(asyncio.create_task(clients.run(len(asked))))
            await asyncio.sleep(1 / RUNS_PER_SECOND)

    loading = asyncio.create_task(load())
    begun = time.monotonic()
    stopped_busy = 0
    for _ in range(rounds):
        for process in [*workers, *services]:
            await scripted_model.until(lambda: len(scripted_model.in_flight) >= 2)
            stopped_busy += 1
            assert await process.terminate() == 0
            await process.start()
    stopping.set()
    await loading
    ended = await asyncio.gather(*asked)
    await clients.close()
    assert Counter(run["status"] for run in ended) == {"succeeded": len(ended)}
    cut = sum(call.disconnected for call in scripted_model.calls)
    assert cut > 0, "no call was in flight when its worker was stopped"
    async with opened(database_url) as database:
        async with database.read() as connection:
            epochs = Counter((await connection.execute(sa.select(runs.c.epoch))).scalars())
            assert (await connection.execute(sa.select(sa.func.max(runs.c.takeovers)))).scalar_one() == 0
            assert (await connection.execute(sa.select(sa.func.max(attempts.c.number)))).scalar_one() == 1
        for run in ended:
            await check(database, RunId(UUID(run["id"])))
    print(  # noqa: T201 - `make soak` shows it
        f"{rounds} rounds, {stopped_busy} restarts in {time.monotonic() - begun:.0f} s: {len(ended)} runs, {cut} calls "
        f"cut, requests that were sent twice {dict(clients.retried)}, claims per run {dict(sorted(epochs.items()))}"
    )
