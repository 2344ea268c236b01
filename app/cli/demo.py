"""`planwave demo`: the service in a process of its own, a goal posted to it over HTTP, its waves, its answer."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import typer

from app.cli.configuration import answering_model, load_settings
from app.cli.run import run_goal
from app.cli.terminal import harmless, leave

_VISIBLE_DELAY_SECONDS = "0.4,1.2"
_STOP_SECONDS = 30


def demo(goal: str, *, port: int, keep: bool) -> None:
    """Show a whole run and end with its exit code; `keep` leaves the service up until Ctrl-C."""
    signal.signal(signal.SIGTERM, _end)
    settings = load_settings()
    with (
        tempfile.TemporaryDirectory(prefix="planwave-demo-", ignore_cleanup_errors=True) as directory,
        _service(Path(directory), port) as url,
    ):
        if settings.offline:
            typer.echo("No key is set: the built-in offline model answers. It arranges text; it knows nothing.")
        else:
            typer.echo(f"Answers come from: {harmless(answering_model(settings))}")
        typer.echo(f"The service is at {url}\n")
        exit_code = run_goal(goal, url=url)
        if keep:
            _wait_for_ctrl_c(url)
    if exit_code == 0:
        typer.echo(_GO_ON)
    raise typer.Exit(exit_code)


_GO_ON = """
To go on:
  make serve                                     a service that stays up, with its API at /docs
  curl -s localhost:8000/goals -H 'Content-Type: application/json' -d '{"goal": "Plan a small birthday party"}'
  OPENAI_API_KEY=... make demo GOAL="..."        a real model (OPENAI_BASE_URL for another endpoint)"""


@contextmanager
def _service(directory: Path, port: int) -> Iterator[str]:
    """`planwave serve` on a new SQLite; yields its URL, and stops it afterwards."""
    log = directory / "service.log"
    # -P where we were started so: the directory we are in may hold another package called app.
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "app.cli", "serve", "--port", str(port)]
    environment = {
        "PLANWAVE_OFFLINE_DELAY_SECONDS": _VISIBLE_DELAY_SECONDS,
        **os.environ,
        "PLANWAVE_DATABASE_URL": f"sqlite:///{directory / 'planwave.db'}",
    }
    with log.open("wb") as errors:
        # Its own process group: Ctrl-C cancels the run here first, and the service is stopped when that is done.
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, process_group=0
        )
    try:
        yield _announced_url(process, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _announced_url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """What the service says once it answers requests; leaves with its last words when it ends instead."""
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    for line in process.stdout:
        words = line.decode(errors="replace").split()
        if words[:3] == ["Planwave", "is", "at"]:
            return words[3]
    last_words = log.read_text(errors="replace").strip().splitlines()[-1:]
    leave(f"The service did not start. {' '.join(last_words).removeprefix('planwave: ')}", 1)


def _wait_for_ctrl_c(url: str) -> None:
    typer.echo(f"\nThe service stays at {url} ({url}/docs) until Ctrl-C; its database goes with it.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        typer.echo("")


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
