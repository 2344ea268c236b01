"""Real `planwave worker` processes that start at once: forked off a process that has imported everything.

An import costs each of them most of two seconds of CPU, which a test that kills dozens cannot spend. From the fork on
they are what the command line starts: `app.cli.main` with the arguments `worker`, their own environment, directory and
log. The process that forks runs nothing else, and takes them along when it ends, however the tests end.
"""

import asyncio
import importlib
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests import points
from tests.service_process import ROOT, environment

_IMPORTED = (
    *("app.cli.commands", "app.cli.worker", "app.engine.worker", "app.llm.openai_model"),
    *("app.storage.migrate", "aiosqlite", "psycopg", "psycopg_pool", "uvloop"),
    *("sqlalchemy.dialects.sqlite.aiosqlite", "sqlalchemy.dialects.postgresql.psycopg"),
)


class PreparedWorker:
    """One process. `point` is where it ends, or stands still, by itself: see `tests.points`."""

    def __init__(self, workers: "PreparedWorkers", order: Mapping[str, Any]) -> None:
        self._workers = workers
        self._order = order
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.pid = 0

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return not self._ended.done()

    @property
    def log(self) -> str:
        """What it has written so far, on both streams, over all its starts."""
        return Path(self._order["log"]).read_text(errors="replace")

    async def start(self) -> None:
        """Start it, for the first time or once more."""
        self.pid, self._ended = await self._workers.fork(self._order)

    async def gone(self, *, within_seconds: float = 60.0) -> int:
        """Its exit status once it has ended; negative where a signal ended it."""
        async with asyncio.timeout(within_seconds):
            return await asyncio.shield(self._ended)

    async def kill(self) -> None:
        """SIGKILL: nothing is put in order."""
        self._signal(signal.SIGKILL)
        await self.gone()

    async def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        self._signal(signal.SIGTERM)
        return await self.gone()

    def ask_to_end(self) -> None:
        """SIGTERM, without waiting for what it does."""
        self._signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGSTOP: it stands still until `cont`."""
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            os.kill(self.pid, number)


class PreparedWorkers:
    """Starts them: `async with PreparedWorkers(directory, settings) as workers: await workers.start()`."""

    def __init__(self, directory: Path, settings: Mapping[str, object]) -> None:
        self._directory = directory
        self._settings = settings
        self._started = 0
        self._forked: asyncio.Queue[int] = asyncio.Queue()
        self._ends: dict[int, asyncio.Future[int]] = {}

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.prepared_workers"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(60):
            await self._process.wait()
            await self._reading

    async def start(self, *, point: str | None = None, **settings: object) -> PreparedWorker:
        """A worker with these settings besides those of all."""
        self._started += 1
        environ = environment(**{**self._settings, **settings})
        log = self._directory / f"prepared-{self._started}.log"
        log.touch()
        order = {"environ": environ, "directory": str(self._directory), "log": str(log), "point": point}
        worker = PreparedWorker(self, order)
        await worker.start()
        return worker

    async def fork(self, order: Mapping[str, Any]) -> tuple[int, asyncio.Future[int]]:
        """The id of a new process, and its exit status when it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(60):
            pid = await self._forked.get()
        return pid, self._ends[pid]

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            word, pid, *status = line.decode().split()
            if word == "forked":
                self._ends[int(pid)] = asyncio.get_running_loop().create_future()
                self._forked.put_nowait(int(pid))
            else:
                self._ends.pop(int(pid)).set_result(os.waitstatus_to_exitcode(int(status[0])))


def _serve() -> None:
    """Fork a worker for each line of orders; say on stdout which process that is, and how it has ended."""
    for name in _IMPORTED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork takes one thread along"
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(ended, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    running: set[int] = set()
    orders = b""
    while True:
        readable, _, _ = select.select([0, ended], [], [])
        if ended in readable:
            os.read(ended, 4096)
            _tell_of_ended(running)
        if 0 in readable:
            read = os.read(0, 65536)
            if not read:
                break
            *whole, orders = (orders + read).split(b"\n")
            for line in whole:
                pid = os.fork()
                if pid == 0:
                    os.close(ended)
                    os.close(wake)
                    _work(json.loads(line))
                running.add(pid)
                os.write(1, f"forked {pid}\n".encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _tell_of_ended(running: set[int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        running.remove(pid)
        os.write(1, f"ended {pid} {status}\n".encode())


def _work(order: Mapping[str, Any]) -> None:
    """Be the worker; never returns."""
    from app.cli import main  # noqa: PLC0415 - the process that reads orders needs nothing of it

    status: object = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(order["environ"])
        os.chdir(order["directory"])
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for stream, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
            os.dup2(stream, target)
        if order["point"] is not None:
            points.arm(order["point"])
        sys.argv = ["planwave", "worker"]
        main()
        status = 0
    except SystemExit as ended:
        status = ended.code
    except BaseException:  # noqa: BLE001 - shown in the log; nothing of the parent may run on in here
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 0 if status is None else 1)


if __name__ == "__main__":
    _serve()
