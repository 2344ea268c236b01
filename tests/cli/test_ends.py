"""How a process that stays ends when it cannot end well: with 1, so that whatever watches over it starts it again."""

import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.cli.processes import greeted, running

WITHIN_SECONDS = 60
ARGUMENTS = {"serve": ["serve", "--port", "0"], "worker": ["worker"]}
GREETING = {"serve": "Planwave is at ", "worker": "The worker looks for runs."}


def wait_until_begun(url: str, run_id: str) -> None:
    """Until a worker has the run, and asks the model for a plan."""
    end = time.monotonic() + WITHIN_SECONDS
    while httpx.get(f"{url}/runs/{run_id}").json()["status"] != "planning":
        assert time.monotonic() < end, "nobody began"
        time.sleep(0.05)


def on_file(file: Path) -> "closing[sqlite3.Connection]":
    """Another connection to the processes' database."""
    return closing(sqlite3.connect(file, isolation_level=None, timeout=WITHIN_SECONDS))


@pytest.mark.parametrize("command", ["worker", pytest.param("serve", marks=pytest.mark.soak)])
def test_a_drain_that_does_not_come_to_an_end_is_left_with_1(command: str, tmp_path: Path) -> None:
    file = tmp_path / "planwave.db"
    settings = {"database_url": f"sqlite:///{file}", "offline_delay_seconds": "600,600", "drain_seconds": 0}
    (tmp_path / "api").mkdir()
    with running("serve", "--port", "0", "--no-worker", directory=tmp_path / "api", **settings) as api:
        url = greeted(api, GREETING["serve"]).split()[0]
        run_id = httpx.post(f"{url}/goals", json={"goal": "Find out"}).json()["id"]
        with running(*ARGUMENTS[command], directory=tmp_path, **settings) as process, on_file(file) as other:
            wait_until_begun(url, run_id)
            other.execute("BEGIN IMMEDIATE")  # it cannot hand its run back
            process.send_signal(signal.SIGTERM)
            assert process.wait(WITHIN_SECONDS) == 1
    assert "not drained in time, leaving" in (tmp_path / "stderr.log").read_text()


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_process_whose_worker_breaks_ends_with_1(command: str, tmp_path: Path) -> None:
    with running(*ARGUMENTS[command], directory=tmp_path, poll_seconds=0.1) as process:
        greeted(process, GREETING[command])
        with on_file(tmp_path / "planwave.db") as other:
            other.execute("ALTER TABLE runs RENAME TO gone")
        assert process.wait(WITHIN_SECONDS) == 1
    assert "no such table: runs" in (tmp_path / "stderr.log").read_text()
