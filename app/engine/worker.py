"""The worker: claims due runs, drives up to N at once, keeps their leases, hands them back when it is told to stop."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from uuid import UUID, uuid4

import structlog

from app.domain.errors import StorageConflict, StorageUnavailable
from app.domain.failures import Backoff, RunError
from app.domain.ids import RunId
from app.domain.status import RunStatus, StopRequest
from app.engine.calls import Caller
from app.engine.clock import Clock
from app.engine.driver import Driver
from app.engine.places import Places
from app.engine.recorder import Recorder
from app.engine.suspects import SortedOut, crash_loop, is_suspect
from app.engine.throttle import Throttle
from app.engine.tooling import ToolCaller
from app.engine.workshop import Workshop
from app.llm.chat import ChatModel
from app.settings import Settings
from app.storage.changes import Changes
from app.storage.database import Database, unbroken
from app.storage.dispatch import Flags, Lease, claim, flags, flags_locked, release, renew, set_owner
from app.storage.faults import patient
from app.storage.idempotency import forget_old_keys
from app.storage.runs import end_unfinished
from app.storage.writing import write
from app.tools.toolbox import Toolbox

log = structlog.get_logger(__name__)

_NO_FLAGS = Flags(stop_requested=None, answers=0)
_AT_ONCE = 500
"""Leases that one statement names: of ten thousand PostgreSQL says that its stack is too small."""
_FLAGS_SECONDS = 1.0
_HOUSEKEEPING_SECONDS = 3600.0


class Worker:
    """One per process. Any number of processes may work on one database."""

    def __init__(
        self, database: Database, model: ChatModel, settings: Settings, toolbox: Toolbox | None = None
    ) -> None:
        self._database = database
        self._settings = settings
        self._owner = f"{socket.gethostname()[:100]}:{os.getpid()}:{uuid4().hex[:12]}"  # no other process has it, ever
        self._lease_ms = int(settings.lease_seconds * 1000)
        clock = Clock()
        places = Places(settings.llm_max_concurrency)
        tools = ToolCaller(toolbox or Toolbox(), settings)
        self._recorder = Recorder(database, clock)
        self._shop = Workshop(
            database=database,
            recorder=self._recorder,
            caller=Caller(model, tools, settings, places, Throttle(clock)),
            tools=tools,
            places=places,
            clock=clock,
            backoff=Backoff(
                base_seconds=settings.llm_backoff_base_seconds, cap_seconds=settings.llm_backoff_cap_seconds
            ),
            lease_ms=self._lease_ms,
        )
        self._drivers: dict[RunId, Driver] = {}
        self._driving: dict[RunId, asyncio.Task[None]] = {}
        self._work_may_be_due = asyncio.Event()
        self._flags_may_be_set = asyncio.Event()
        self._renewed_at = 0.0  # by the loop's clock
        self._is_behind = False  # with a lease of its own, whose run somebody has locked
        self._was_away = False  # the database, when it was last asked to claim or renew
        self._others_renew_until = 0.0  # by the loop's clock
        database.on_request(self._requested)

    async def run(self, stop: asyncio.Event) -> None:
        """Claim and drive until `stop` is set, then drain: no new starts, grace for calls in flight, leases back."""
        async with asyncio.TaskGroup() as group:
            recording = group.create_task(self._recorder.run())
            keepers = [
                group.create_task(self._every(self._settings.lease_seconds / 3, self._renew)),
                group.create_task(self._every(_FLAGS_SECONDS, self._look_at_flags, self._flags_may_be_set)),
                group.create_task(self._every(_HOUSEKEEPING_SECONDS, self._forget)),
                group.create_task(self._wake_on(stop)),
            ]
            await self._claim_until(stop, group)
            await self._drain()
            for keeper in keepers:
                keeper.cancel()
            self._recorder.close()
            await asyncio.wait([recording], timeout=self._settings.drain_seconds)
            recording.cancel()  # the database is away: what could not be written is repeated by whoever takes over

    async def _claim_until(self, stop: asyncio.Event, group: asyncio.TaskGroup) -> None:
        while not stop.is_set():
            self._work_may_be_due.clear()
            room = self._room()
            claimed = await self._claim(room) if room > 0 else None
            if claimed is None:
                await self._wait(self._work_may_be_due, self._settings.poll_seconds)
                continue
            for lease in claimed.driven:
                if lease.run_id in self._drivers:
                    await self._abandon(self._drivers[lease.run_id])
                self._start(lease, group)
            for lease in claimed.given_up:
                log.error("run given up", run_id=str(lease.run_id), takeovers=lease.takeovers)
                await self._fail(lease, crash_loop(lease))

    def _room(self) -> int:
        """How many more runs it may drive; none beside a suspect."""
        if any(driver.is_suspect for driver in self._drivers.values()):
            return 0
        return self._settings.worker_max_runs - len(self._drivers)

    def _start(self, lease: Lease, group: asyncio.TaskGroup) -> None:
        driver = Driver(lease, self._shop, self._work_may_be_due.set)
        neighbours = []
        if driver.is_suspect:
            log.warning("run driven alone", run_id=str(lease.run_id), takeovers=lease.takeovers)
            neighbours = list(self._driving.values())
            for neighbour in self._drivers.values():
                neighbour.drain()
        self._drivers[lease.run_id] = driver
        self._driving[lease.run_id] = group.create_task(self._drive(driver, after=neighbours))

    @unbroken
    async def _claim(self, limit: int) -> SortedOut | None:
        """What is due; None when there is nothing, or no database to ask."""
        began = time.monotonic()
        try:
            now = asyncio.get_running_loop().time()
            if now - self._renewed_at > self._settings.lease_seconds / 2:
                await self._renew(wait=False)  # what it drives itself must not seem abandoned
            asked_at = time.monotonic()
            abandoned = not self._was_away and not self._is_behind and now >= self._others_renew_until
            async with self._database.write() as connection:
                leases = await claim(
                    connection, owner=self._owner, limit=limit, lease_ms=self._lease_ms, abandoned=abandoned
                )
                if abandoned:
                    self._refuse_if_late(began)
                claimed = SortedOut.of(leases)
                # In the claim's own transaction: a death right after it must not be charged to these.
                for lease in claimed.handed_back:
                    await release(connection, lease, ready_in_ms=0)
                    await self._database.announce(connection, lease.run_id)
                for lease in claimed.driven if self._drivers else ():
                    if is_suspect(lease):
                        await set_owner(connection, lease, None)
        except StorageUnavailable as error:
            self._note_away(error)
            log.warning("database away, not claiming", reason=str(error.__cause__ or error))
            return None
        if self._was_away:
            self._was_away = False
            self._others_renew_until = asyncio.get_running_loop().time() + self._settings.lease_seconds / 2
        if not leases:
            return None
        self._shop.clock.set(leases[0].claimed_at, asked_at=asked_at)
        return claimed

    def _refuse_if_late(self, began: float) -> None:
        """Raises `StorageUnavailable` for a claim that had to wait: so had renewals, other workers' and its own."""
        if time.monotonic() - began > self._settings.lease_seconds / 3:
            raise StorageUnavailable("The database has kept a claim waiting.")

    def _note_away(self, error: StorageUnavailable) -> None:
        """While nobody could renew, leases ran out whose workers live: they are to have their turn when it is back."""
        if not isinstance(error, StorageConflict):
            self._was_away = True

    async def _abandon(self, driver: Driver) -> None:
        """Stop driving a run whose lease has run out under us, and which we have just claimed anew."""
        driving = self._driving[driver.lease.run_id]
        driving.cancel()
        await asyncio.wait([driving])

    async def _drive(self, driver: Driver, *, after: Collection[asyncio.Task[None]]) -> None:
        lease = driver.lease
        try:
            if after:
                await asyncio.wait(after)
                if not await self._own(lease):
                    return
            await driver.drive()
        except Exception:
            log.exception("driver broke", run_id=str(lease.run_id))
            await self._fail(lease, RunError(code="internal_error", message="Planwave met a fault of its own."))
        finally:
            self._drivers.pop(lease.run_id, None)
            self._driving.pop(lease.run_id, None)
            self._work_may_be_due.set()

    @patient
    @unbroken
    async def _own(self, lease: Lease) -> bool:
        async with self._database.write() as connection:
            return await set_owner(connection, lease, self._owner)

    @unbroken
    async def _fail(self, lease: Lease, error: RunError) -> None:
        """End a run that cannot be driven, rather than meet the same trouble for ever; or cancel it, where asked to."""
        changes = Changes(tenant_id=lease.tenant_id, run_id=lease.run_id, token=lease.token)
        try:
            async with self._database.write() as connection:
                asked = await flags_locked(connection, lease)
                if asked is not None and asked.stop_requested is StopRequest.CANCEL:
                    await end_unfinished(connection, changes, RunStatus.CANCELLED)
                else:
                    changes.error = error.as_json()
                    await end_unfinished(connection, changes, RunStatus.FAILED)
                await connection.run_sync(write, [changes])
                await self._database.announce(connection, lease.run_id, requested=False)
        except StorageUnavailable:
            log.warning("database away, run left to its lease", run_id=str(lease.run_id))

    @unbroken
    async def _renew(self, *, wait: bool = True) -> None:
        """Extend the leases, and give up the runs of those that were lost; without `wait`, of what nobody has locked.

        What is locked comes last: it must not cost the others their leases.
        """
        began = asyncio.get_running_loop().time()
        try:
            left = await self._not_renewed([driver.lease for driver in self._drivers.values()], skip_locked=True)
            self._renewed_at, self._is_behind = began, bool(left)
            if not left or not wait:
                return
            lost = await self._not_renewed(left, skip_locked=False)
            self._is_behind = False
        except StorageUnavailable as error:
            self._note_away(error)
            raise
        for lease in lost:
            log.warning("lease lost", run_id=str(lease.run_id), epoch=lease.epoch)
            self._driving[lease.run_id].cancel()

    async def _not_renewed(self, leases: Sequence[Lease], *, skip_locked: bool) -> Sequence[Lease]:
        kept: set[RunId] = set()
        for some in _some_at_a_time(leases):
            async with self._database.write() as connection:
                kept |= (await renew(connection, some, lease_ms=self._lease_ms, skip_locked=skip_locked)).keys()
        return [lease for lease in leases if lease.run_id not in kept and self._is_missed(lease)]

    async def _look_at_flags(self) -> None:
        heard = {driver: driver.heard for driver in self._drivers.values()}
        if not heard:
            return
        async with self._database.read() as connection:
            asked = await flags(connection, self._owner)
        for driver, before in heard.items():
            if driver.heard != before:
                continue  # a commit of its own has told it more than this look, which may be older
            lease = driver.lease
            if (found := asked.get((lease.tenant_id, lease.run_id, lease.token))) is not None:
                driver.heed(found)
            elif driver.is_stopping:
                driver.heed(_NO_FLAGS)  # the request was taken back

    @unbroken
    async def _forget(self) -> None:
        async with self._database.write() as connection:
            await forget_old_keys(connection)

    async def _drain(self) -> None:
        """Let calls in flight come back for a while, then cut them; hand every run back at once."""
        for driver in self._drivers.values():
            driver.drain()
        if self._driving:
            await asyncio.wait(self._driving.values(), timeout=self._settings.drain_seconds)
        left = {run_id: driver.lease for run_id, driver in self._drivers.items()}
        tasks = list(self._driving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lease in left.values():
            try:
                async with self._database.write() as connection:
                    await release(connection, lease, ready_in_ms=0)
                    await self._database.announce(connection, lease.run_id)
            except StorageUnavailable:
                return  # their leases run out by themselves

    async def _every(
        self, seconds: float, do: Callable[[], Awaitable[None]], sooner: asyncio.Event | None = None
    ) -> None:
        """Do it again and again, `sooner` when that is set; a database that is away ends nothing, nor does a fault."""
        while True:
            try:
                await do()
            except StorageUnavailable as error:
                log.warning("database away", doing=do.__name__, reason=str(error.__cause__))
            except Exception:
                log.exception("worker broke", doing=do.__name__)  # its runs go on while their leases last
            if sooner is None:
                await asyncio.sleep(seconds)
            else:
                await self._wait(sooner, seconds)
                sooner.clear()

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._work_may_be_due.set()

    def _requested(self, run_id: UUID) -> None:
        if RunId(run_id) in self._drivers:
            self._flags_may_be_set.set()
        else:
            self._work_may_be_due.set()

    def _is_missed(self, lease: Lease) -> bool:
        driver = self._drivers.get(lease.run_id)
        return driver is not None and driver.lease is lease and not driver.is_leaving


def _some_at_a_time(leases: Sequence[Lease]) -> Iterator[Sequence[Lease]]:
    for first in range(0, len(leases), _AT_ONCE):
        yield leases[first : first + _AT_ONCE]
