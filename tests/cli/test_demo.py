import re
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.cli.processes import greeted, planwave, running

QUICK = {"offline_delay_seconds": "0,0"}


def answers(url: str) -> bool:
    """Whether a service is there."""
    try:
        httpx.get(f"{url}/healthz")
    except httpx.ConnectError:
        return False
    return True


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> "subprocess.CompletedProcess[str]":
    """A whole demo, as a person without a key sees it in a log."""
    slow_enough_to_see = {"offline_delay_seconds": "0.3,0.5"}
    return planwave("demo", "Compare tea and coffee", directory=tmp_path_factory.mktemp("demo"), **slow_enough_to_see)


def test_the_demo_shows_a_whole_run_and_ends_with_0(shown: "subprocess.CompletedProcess[str]") -> None:
    assert shown.returncode == 0, shown.stderr
    assert "No key is set: the built-in offline model answers." in shown.stdout
    assert re.search(r"run \S+  running  \d tasks in \d waves", shown.stdout)
    assert re.search(r"^0\.\S+ succeeded in ", shown.stdout, re.MULTILINE)


def test_the_demo_prints_an_answer_about_its_goal(shown: "subprocess.CompletedProcess[str]") -> None:
    answer = shown.stdout.partition("  succeeded\n")[2].partition("To go on:")[0]
    assert "tea" in answer
    assert "coffee" in answer


def test_the_demos_service_is_gone_when_it_has_ended(shown: "subprocess.CompletedProcess[str]") -> None:
    assert not answers(shown.stdout.partition("The service is at ")[2].split()[0])


def test_a_demo_that_is_ended_takes_its_service_along(tmp_path: Path) -> None:
    with running("demo", "--keep", directory=tmp_path, **QUICK) as process:
        url = greeted(process, "The service is at ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 128 + signal.SIGTERM
    assert not answers(url)


def test_a_demo_whose_service_cannot_start_says_why(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = planwave("demo", "--port", str(port), directory=tmp_path, **QUICK)
    assert done.returncode == 1
    assert done.stderr == (
        f"planwave: The service did not start. Port {port} is in use on 127.0.0.1; choose another with --port.\n"
    )
