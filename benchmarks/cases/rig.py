"""A running service with a model behind it that answers each case in its own way, and the account of what was off."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.cases.request_schema import RequestSchema
from tests.scripted_model import Call, Reply, Script, ScriptedModel
from tests.service_process import Json, ServiceProcess, against, every, finished

IN_FLIGHT = 20
_MARK = re.compile(r"\[case (\d+)\]")


@dataclass(kw_only=True)
class Section:
    """What one kind of case came to."""

    title: str
    cases: int = 0
    calls: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    off: list[str] = field(default_factory=list)

    def count(self, kind: str, outcome: str) -> None:
        """One more case of this kind ended so."""
        self.outcomes[kind, outcome] += 1

    def expect(self, case: str, *claims: tuple[bool, str]) -> None:
        """Note the claims about a case that do not hold."""
        self.off += [f"{case}: {words}" for holds, words in claims if not holds]


@dataclass(kw_only=True)
class Trial:
    """A run and everything that the model was asked for it."""

    run: Json
    calls: list[Call]

    @property
    def outcome(self) -> str:
        """The status, and the code of the error if it failed."""
        error = self.run["error"]
        return f"{self.run['status']} {error['code']}" if error else str(self.run["status"])

    def of_seat(self, seat: str) -> list[Call]:
        """Its calls for a seat."""
        return [call for call in self.calls if call.seat == seat]


class Rig:
    """Posts goals, a bounded number at once; the model's calls find their goal's script by a mark in its text."""

    def __init__(self, client: httpx.AsyncClient, schema: RequestSchema) -> None:
        self.client = client
        self._schema = schema
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._scripts: list[Script] = []
        self._calls: list[list[Call]] = []
        self.server_errors: list[str] = []
        self.invalid_requests: Counter[str] = Counter()
        self.requests_checked = 0
        client.event_hooks["response"].append(self._note_server_error)

    def answer(self, call: Call) -> Any:
        """The script of the goal that the call is for."""
        marked = _MARK.search(call.text)
        assert marked, f"no case in the {call.seat}'s request: {call.text[:300]}"
        number = int(marked[1])
        self._calls[number].append(call)
        return self._scripts[number](call)

    async def post(self, script: Script, *, goal: str, **body: object) -> tuple[httpx.Response, int]:
        """The answer to POST /goals, and the number under which its calls are kept."""
        number = len(self._scripts)
        self._scripts.append(script)
        self._calls.append([])
        return await self.client.post("/goals", json={"goal": f"{goal} [case {number}]", **body}), number

    async def trial(self, section: Section, case: str, script: Script, *, goal: str, **body: object) -> Trial | None:
        """Run a goal to its end; None, and a note, when it is not taken or does not end."""
        async with self._room:
            section.cases += 1
            response, number = await self.post(script, goal=goal, **body)
            if response.status_code != 202:
                section.off.append(f"{case}: POST answered {response.status_code}: {response.text[:300]}")
                return None
            try:
                run = await finished(self.client, response.json()["id"], within_seconds=300)
            except AssertionError as stuck:
                section.off.append(f"{case}: {stuck}")
                return None
        # The script is let go: what it holds of a large case is not needed again.
        calls, self._calls[number], self._scripts[number] = self._calls[number], [], _finished
        section.calls += len(calls)
        for call in calls:
            self.requests_checked += 1
            self.invalid_requests.update(self._schema.errors(call.body))
        section.expect(
            case,
            (run["usage"]["llm_calls"] == len(calls), f"{run['usage']['llm_calls']} calls counted, {len(calls)} seen"),
        )
        return Trial(run=run, calls=calls)

    async def entries(self, path: str) -> list[Json]:
        """All that a list of the API holds."""
        return [entry async for entry in every(self.client, path)]

    async def rejections(self, trial: Trial) -> list[list[Json]]:
        """The problems of each plan of the run that was rejected."""
        events = await self.entries(f"/runs/{trial.run['id']}/events")
        return [event["data"]["errors"] for event in events if event["type"] == "plan.rejected"]

    async def _note_server_error(self, response: httpx.Response) -> None:
        if response.status_code >= 500:
            await response.aread()
            self.server_errors.append(f"{response.request.method} {response.request.url.path}: {response.text[:300]}")


def _finished(call: Call) -> Reply:
    raise AssertionError(f"a finished run called the model: {call.seat} {call.task_key}")


@asynccontextmanager
async def running_rig(database_url: str, schema: RequestSchema, directory: Path) -> AsyncIterator[tuple[Rig, Section]]:
    """The rig over a service of its own, and a section for what is off with the service as a whole."""
    service_itself = Section(title="the service itself")

    def route(call: Call) -> Any:
        return rig.answer(call)

    async with ScriptedModel(route, keep_calls=True) as model:
        service = ServiceProcess("serve", directory=directory, settings=against(database_url, model))
        async with service:
            limits = httpx.Limits(max_connections=2 * IN_FLIGHT)
            async with httpx.AsyncClient(base_url=service.url, timeout=120, limits=limits) as client:
                rig = Rig(client, schema)
                yield rig, service_itself
            status = await service.terminate()
        service_itself.off += [f"script: {raised!r}" for raised in model.errors]
        model.errors.clear()
        service_itself.expect("exit", (status == 0, f"SIGTERM ended it with {status}"))
        service_itself.off += [f"5xx: {answer}" for answer in rig.server_errors]
        service_itself.off += [f"request ({n} times): {error}" for error, n in rig.invalid_requests.most_common(20)]
        service_itself.off += [f"log: {line}" for line in _tracebacks(service.log)]
        service_itself.count("requests valid against the schema", str(rig.requests_checked))


def _tracebacks(log: str) -> Iterable[str]:
    lines = log.splitlines()
    return [line[:300] for line in lines if "Traceback" in line or "Unclosed" in line or "never awaited" in line][:20]
