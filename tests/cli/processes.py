"""`planwave` as a process, for what only a process shows: exit codes, signals, both streams."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.service_process import environment

_COMMAND = (sys.executable, "-m", "app.cli")


def planwave(*arguments: str, directory: Path, **settings: object) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [*_COMMAND, *arguments],
        env=environment(**settings),
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def running(*arguments: str, directory: Path, **settings: object) -> Iterator["subprocess.Popen[str]"]:
    """A command that goes on; killed at the end of the block if it still runs."""
    log = (directory / "stderr.log").open("w")
    with log:
        process = subprocess.Popen(
            [*_COMMAND, *arguments],
            env=environment(**settings),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def greeted(process: "subprocess.Popen[str]", opening: str) -> str:
    """The rest of the first line that begins with this."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(opening):
            return line.removeprefix(opening).strip()
    raise AssertionError(f"It ended with {process.wait()} and never said {opening!r}.")
