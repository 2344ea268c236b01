"""One simulation: workers, clients, a model and a database in one loop, in trouble for a while and then healed."""

import asyncio
import json
import random
import traceback
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from contextvars import Context
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch
from uuid import UUID

from app.domain.errors import StorageUnavailable
from app.domain.ids import RunId
from app.domain.status import FINISHED, SideEffects
from app.settings import Settings
from app.storage.steering import request_cancel, request_pause
from tests.simulation.clients import Clients
from tests.simulation.loop import VirtualLoop
from tests.simulation.machine import Machine
from tests.simulation.model import SimulatedModel
from tests.simulation.process import Process, WorkerProcess
from tests.simulation.reactions import Reactions
from tests.simulation.storage import Storage
from tests.simulation.tool_witness import ToolWitness
from tests.simulation.tools import KINDS, SimulatedTools, Use
from tests.simulation.trace import Trace
from tests.simulation.witness import Witness

LEASE_SECONDS = 3.0
HEAL_SECONDS = 400.0
"""By then, after the last fault, every run has come to its end."""
STOP_SECONDS = 2.5
"""After it a worker in good health starts nothing more of a run that is to stop."""
WITH_TOOLS = 0.35
"""How many worlds have tools."""
_STORAGE_TROUBLES = ("away", "shaky")
_TROUBLES = ("crash", "stall", "drain", *_STORAGE_TROUBLES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a simulation went: `problems` is empty when all was as promised."""

    seed: int
    problems: list[str]
    trace: list[str]
    hash: str
    seen: Counter[str]


def simulate(seed: int) -> Outcome:
    """Everything that happens follows from the seed."""
    loop = VirtualLoop(_dice(seed, "loop"))
    world = World(seed, loop)
    try:
        with ExitStack() as stack:
            for name, stand_in in world.machine.stand_ins.items():
                stack.enter_context(patch(name, stand_in))
            world.begin()
            stack.enter_context(world.witness.watching())
            stack.enter_context(world.tool_witness.watching())
            try:
                loop.run_until_complete(world.live())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is shown with its seed
                world.witness.problem("".join(traceback.format_exception(error)))
            world.witness.seen["calls"] = len(world.model.asked)
            world.witness.look_away()
            loop.abandon()
    finally:
        loop.close()
    return Outcome(
        seed=seed,
        problems=world.witness.problems,
        trace=world.trace.lines,
        hash=world.trace.hash,
        seen=world.witness.seen,
    )


def _dice(seed: int, of: str) -> random.Random:
    return random.Random(f"{seed} {of}")


class World:
    """What a seed draws: who is there, and what befalls them."""

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self._loop = loop
        self._dice = dice = _dice(seed, "world")
        self._faults = _dice(seed, "faults")
        self.trace = Trace(loop)
        self.storage = Storage(loop, _dice(seed, "storage"), self.trace)
        self.machine = Machine(loop, self.storage, _dice(seed, "ids"))
        self.storage.latency_seconds = dice.choice((0.0005, 0.005, 0.03))
        self.storage.notices_lost = dice.choice((0.0, 0.3, 1.0))
        self.model = SimulatedModel(loop, _dice(seed, "model"), self.trace)
        self.model.fault_rate = dice.choice((0.0, 0.2, 0.5))
        self.model.slow_rate = dice.choice((0.0, 0.1, 0.2))
        self.model.usual_seconds = dice.choice((0.1, 0.5, 2.0))
        self.model.known_keys = self._succeeded
        self.witness = Witness(loop, self.storage, self.model, self.trace, lease_seconds=LEASE_SECONDS)
        tool_dice = _dice(seed, "tools")
        self.has_tools = tool_dice.random() < WITH_TOOLS
        self.tools = SimulatedTools(loop, tool_dice, self.trace)
        self.tools.fault_rate = tool_dice.choice((0.0, 0.1, 0.4))
        self.tools.usual_seconds = tool_dice.choice((0.1, 0.5, 2.0))
        self.tool_witness = ToolWitness(
            self.storage, self.tools, self.trace, problem=self.witness.problem, seen=self.witness.seen
        )
        self.tools.called = self._tool_called
        self.model.tools_of = self._tools_of
        self._tool_dice = _dice(seed, "clients of tools")
        self._toolbox = self.tools.toolbox()
        self._clients_dice = _dice(seed, "clients")
        possible = dice.choice((_TROUBLES, _TROUBLES, _STORAGE_TROUBLES))
        self.troubles = [trouble for trouble in possible if dice.random() < 0.5]
        self.trouble_seconds = dice.uniform(4, 16)
        self.workers: list[WorkerProcess] = []
        self._settings = Settings(
            _env_file=None,
            database_url="sqlite:///simulated.db",
            llm_base_url="http://localhost:9",
            llm_model="scripted",
            llm_max_concurrency=dice.choice((1, 3, 8)),
            llm_backoff_base_seconds=0.2,
            llm_backoff_cap_seconds=4,
            worker_max_runs=dice.choice((1, 2, 100)),
            poll_seconds=dice.choice((0.8, *[5] * 7)),
            lease_seconds=LEASE_SECONDS,
            drain_seconds=2,
            tool_timeout_seconds=tool_dice.choice((2, 6)),
            tool_max_concurrency=tool_dice.choice((1, 2, 32)),
        )

    def begin(self) -> None:
        """Once the stand-ins are in their places."""
        self.client = Process("client", self._loop, self.storage)
        tool_dice = self._tool_dice if self.has_tools else None
        self.clients = Clients(self.client, self._clients_dice, self.trace, tool_dice)
        at_once = 2 * self.storage.latency_seconds
        within = self._clients_dice.choice((at_once, at_once, 1.0))
        self.reactions = Reactions(self._loop, self.client, self.clients, self._clients_dice, within_seconds=within)
        self.storage.noted = self.reactions.see

    async def live(self) -> None:
        """Trouble, then healing, then the end; looked over in between."""
        dice = self._dice
        self.trace.note(f"troubles: {', '.join(self.troubles) or 'none'}; {self._settings.worker_max_runs} runs each")
        for _ in range(dice.choice((1, 1, 2, 2, 3))):
            self._start_worker()
        befalling = [
            self._spawn(self._meddle(dice.choice((1, 1, 2, 3)), dice.choice((0, 2, 6)))),
            self._spawn(self._befall()),
            self._spawn(self._look_over()),
        ]
        await asyncio.wait(befalling, timeout=self.trouble_seconds)
        for task in befalling:
            task.cancel()
        await asyncio.wait(befalling)
        for task in befalling:
            if not task.cancelled():
                task.result()
        await self._heal()
        if not self.witness.problems:
            await self._stop_some_run()
            await self._until_all_is_over()
        if not self.witness.problems:
            await asyncio.sleep(3 * LEASE_SECONDS)  # whoever comes late
            self._is_well()
            if self._every_worker_kept_its_runs():
                self.witness.nothing_was_lost(but_of=self.clients.stopped)
                self.tool_witness.nothing_was_lost(but_of=self.clients.stopped)
            for worker in self.workers:
                if worker.is_up:
                    await self._spawn(worker.drain())
            await self._look()
            self.witness.calls_add_up()
            self.tool_witness.calls_add_up()
            self._everything_acknowledged_is_there()
            self._note_the_end()

    # Clients.

    async def _meddle(self, runs: int, deeds: int) -> None:
        dice = self._dice
        moments = sorted(dice.uniform(0, self.trouble_seconds) for _ in range(deeds))
        submits = sorted(0.0 if n == 0 else dice.uniform(0, 5) for n in range(runs))
        for moment, do in sorted(
            [(at, self.clients.submit) for at in submits] + [(at, self.clients.meddle) for at in moments],
            key=lambda entry: entry[0],
        ):
            await asyncio.sleep(max(0.0, moment - self._loop.time()))
            for _ in range(3):  # a client tries again
                try:
                    await self._by_client(do())
                    break
                except StorageUnavailable:
                    await asyncio.sleep(0.5)

    async def _by_client(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return await self._loop.create_task(doing, context=self.client.context)

    # Trouble.

    async def _befall(self) -> None:
        if not self.troubles:
            return
        dice = self._faults
        while True:
            await asyncio.sleep(dice.expovariate(1 / 2.5))
            trouble = dice.choice(self.troubles)
            victims = [worker for worker in self.workers if worker.is_up and not worker.is_stalled]
            if not victims:
                continue
            self._befalls(trouble, dice.choice(victims))

    def _befalls(self, trouble: str, victim: WorkerProcess) -> None:
        dice = self._faults
        self.trace.note(f"{trouble.upper()} {victim}")
        self.witness.seen[trouble] += 1
        match trouble:
            case "crash":
                victim.die()
                self._loop.call_later(dice.uniform(0, 5), self._start_worker)
            case "stall":
                victim.stall()
                seconds = dice.choice((0.5, LEASE_SECONDS, 3 * LEASE_SECONDS)) * dice.uniform(0.5, 1.5)
                self._loop.call_later(seconds, self._go_on, victim)
            case "drain":
                self._spawn(self._replace(victim))
            case _:
                away = trouble == "away"
                all_ = dice.random() < 0.5
                until = self._loop.time() + dice.choice((0.3, 2.0, 2 * LEASE_SECONDS)) * dice.uniform(0.5, 1.5)
                for process in self.storage.processes if all_ else [victim]:
                    process.disturb()
                    setattr(process, "database_away_until" if away else "commits_shaky_until", until)
                    self._loop.call_at(until, process.disturb)

    def _tool_called(self, use: Use, seconds: float) -> None:
        """Now and then it befalls its caller while the tool is at work: before it has acted, or after."""
        self.tool_witness.called(use)
        rate = 0.1 if KINDS[use.tool] is SideEffects.NONE else 0.3
        if self.troubles and self._tool_dice.random() < rate:
            trouble = self._tool_dice.choice(self.troubles)
            after = self._tool_dice.random() * seconds
            self._loop.call_later(after, self._befalls_caller, trouble, use.process, context=Context())
        if self.reactions.is_restless and self._tool_dice.random() < 0.05:
            self.reactions.change_mind(use.run_id, after_seconds=self._tool_dice.uniform(0.5, 4))

    def _befalls_caller(self, trouble: str, caller: WorkerProcess) -> None:
        if trouble in self.troubles and caller.is_up and not caller.is_stalled:
            self._befalls(trouble, caller)

    def _go_on(self, worker: WorkerProcess) -> None:
        self.trace.note(f"{worker} goes on")
        if self.storage.is_writing(worker):  # it has held up everybody
            for process in self.storage.processes:
                process.disturb()
        worker.go_on()

    async def _replace(self, worker: WorkerProcess) -> None:
        await worker.drain()
        self._start_worker()

    def _start_worker(self) -> None:
        skew = self._dice.choice((0.0, 0.0, 60.0, -60.0))
        name = f"worker-{len(self.workers) + 1}"
        worker = WorkerProcess(
            name, self._loop, self.storage, self.model, self._settings, toolbox=self._toolbox, skew=skew
        )
        self.workers.append(worker)
        self.trace.note(f"{worker} starts")

    # Healing.

    async def _heal(self) -> None:
        self.trace.note("HEALED")
        self.storage.notices_lost = min(self.storage.notices_lost, 0.3)
        self.reactions.is_restless = False
        self.model.fault_rate = 0.0
        self.model.slow_rate = 0.0
        self.model.is_docile = True
        self.tools.fault_rate = 0.0
        self.troubles = []
        for process in self.storage.processes:
            process.reaches_database()
            if process.is_stalled:
                self._go_on(process)
        if not any(worker.is_up for worker in self.workers):
            self._start_worker()
        self._is_well()

    async def _stop_some_run(self) -> None:
        """With everybody in good health: a cancel or a pause is heeded at once."""
        if self._dice.random() < 0.5:
            return
        await asyncio.sleep(3 * LEASE_SECONDS)
        running = [run["id"] for run in await self._by_client(self.clients.runs()) if run["status"] not in FINISHED]
        if not running:
            return
        run_id = self._dice.choice(running)
        request = self._dice.choice((request_cancel, request_pause))
        if not await self._by_client(self.clients.steer(run_id, request)):
            return
        asked_at = self.storage.now_ms()
        late_at = asked_at + STOP_SECONDS * 1000
        stands = ("cancelled", "failed", "succeeded", "paused")
        for _ in range(60):
            await asyncio.sleep(1)
            (run,) = [run for run in await self._by_client(self.clients.runs()) if run["id"] == run_id]
            if run["status"] in stands:
                break
        what = f"{self.trace.short(run_id)}, after a {request.__name__}, "
        if run["status"] not in stands:
            self.witness.problem(f"{what}is {run['status']}")
        elif request is request_cancel and run["status"] != "cancelled" and run["finished_at"] > late_at:
            self.witness.problem(f"{what}has {run['status']}")
        for table in ("calls", "tool_calls"):
            query = f"SELECT count(*) FROM {table} WHERE run_id = ? AND started_at > ?"
            (calls,) = self.storage.driver.execute(query, (run_id.hex, late_at)).fetchone()
            if calls:
                self.witness.problem(f"{what}has made {calls} more {table}")
        self.witness.seen[request.__name__] += 1

    async def _until_all_is_over(self) -> None:
        until = self._loop.time() + HEAL_SECONDS
        runs: Sequence[Any] = ()
        while self._loop.time() < until and not self.witness.problems:
            self._is_well()
            for run_id in await self._by_client(self.clients.stand_still_unasked()):
                self.witness.problem(f"{self.trace.short(run_id)} stands still though somebody wants it to go on")
            await self._by_client(self.clients.help())
            runs = await self._by_client(self.clients.runs())
            if all(run["status"] in FINISHED for run in runs):
                return
            await asyncio.sleep(3)
        for run in runs:
            if run["status"] not in FINISHED:
                self.witness.problem(
                    f"{self.trace.short(run['id'])} does not come to an end: {run['status']},"
                    f" stop {run['stop_requested']}, lease {run['lease_token']},"
                    f" due in {run['ready_at'] - self.storage.now_ms()} ms, {run['progress']}"
                )

    # Looking.

    async def _look_over(self) -> None:
        while True:
            await asyncio.sleep(self._dice.uniform(2, 10))
            await self._look()

    async def _look(self) -> None:
        async with self.storage.alone() as connection:
            await self.witness.look(connection)
        self.tool_witness.look()

    def _is_well(self) -> None:
        for worker in self.workers:
            if worker.is_up and worker.broke:
                error = worker.running.exception()
                lines = traceback.format_exception(error) if error else ["without an error"]
                self.witness.problem(f"{worker} ended by itself: {''.join(lines)}")

    def _every_worker_kept_its_runs(self) -> bool:
        """Whether nobody was in trouble, or only the database, of which one worker waits for nobody else to be back."""
        befell = {trouble for trouble in _TROUBLES if self.witness.seen[trouble]}
        return not befell or (len(self.workers) == 1 and befell <= set(_STORAGE_TROUBLES))

    def _everything_acknowledged_is_there(self) -> None:
        stored = {row[0] for row in self.storage.driver.execute("SELECT id FROM runs").fetchall()}
        for run_id in self.clients.acknowledged:
            if run_id.hex not in stored:
                self.witness.problem(f"{self.trace.short(run_id)} was acknowledged, and is not there")

    def _note_the_end(self) -> None:
        query = "SELECT id, status, llm_calls, event_seq, epoch, version, finished_at FROM runs ORDER BY id"
        for id_, *values in self.storage.driver.execute(query).fetchall():
            self.trace.note(f"{self.trace.short(RunId(UUID(id_)))}: {values}")
            self.witness.seen[f"run {values[0]}"] += 1

    def _succeeded(self, run_id: RunId) -> list[str]:
        query = "SELECT key FROM tasks WHERE run_id = ? AND status = 'succeeded' ORDER BY position"
        return [row[0] for row in self.storage.driver.execute(query, (run_id.hex,)).fetchall()]

    def _tools_of(self, run_id: RunId) -> list[str]:
        query = "SELECT options FROM runs WHERE id = ?"
        (options,) = self.storage.driver.execute(query, (run_id.hex,)).fetchone()
        tools: list[str] = json.loads(options)["tools"]
        return tools

    def _spawn(self, doing: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        return self._loop.create_task(doing)
