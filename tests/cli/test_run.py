import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from app.cli.client import RequestRefused, ServiceUnreachable
from app.cli.run import run_goal
from app.cli.waves import LiveTable
from tests.cli.fake_service import a_run, a_task, fake_service
from tests.service_process import environment

EVIL = "\x1b[31mred\x1b[0m [bold red]loud[/] \x9b2J\x07\u202eback"


def test_each_change_is_a_plain_line_where_stdout_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    second: dict[str, Any] = {"wave": 2, "depends_on": ["0.1"]}
    with fake_service(
        a_run("planning"),
        a_run("running", [a_task("0.1", "running"), a_task("0.2", **second)]),
        a_run("running", [a_task("0.1", "succeeded"), a_task("0.2", "running", **second)]),
        a_run("succeeded", [a_task("0.1", "succeeded"), a_task("0.2", "succeeded", **second)], result="The answer"),
    ) as service:
        assert run_goal("Find out", url=service.url) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run run-1  planning",
        "run run-1  running  2 tasks in 2 waves",
        "wave 1  0.1  running   Do 0.1",
        "0.1 succeeded in 2.0 s",
        "wave 2  0.2  running   Do 0.2",
        "0.2 succeeded in 2.0 s",
        "run run-1  succeeded",
        "",
        "The answer",
    ]


def test_changes_are_waited_for_by_the_service() -> None:
    with fake_service(a_run("planning"), a_run("succeeded", [], result="x")) as service:
        run_goal("Find out", url=service.url)
    assert "if-none-match" not in service.polls[0]
    assert service.polls[1]["if-none-match"] == '"0"'
    assert re.fullmatch(r"wait=\d+", service.polls[1]["prefer"])


def test_what_a_model_wrote_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    task = a_task("0.1", "running", description=EVIL)
    with fake_service(a_run("running", [task]), a_run("succeeded", [], result=f"{EVIL}\nsecond line")) as service:
        run_goal("Find out", url=service.url)
    printed = capsys.readouterr().out
    assert "wave 1  0.1  running   ␛[31mred␛[0m [bold red]loud[/] �2J␇�back" in printed
    assert "\n␛[31mred␛[0m [bold red]loud[/] �2J␇�back\nsecond line\n" in printed


def test_what_a_model_wrote_is_text_in_the_live_table_too() -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=120, height=40)
    with LiveTable(console) as table:
        table.show(a_run("running", [a_task("0.1", "running", description=EVIL)], goal=EVIL))
    assert "␛[31mred␛[0m [bold red]loud[/] �2J␇�back" in screen.getvalue()
    assert "\x1b[31m" not in screen.getvalue()
    assert "\x9b" not in screen.getvalue()


def test_waves_without_running_tasks_are_summed_up_when_the_table_does_not_fit() -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=120, height=30)
    done = [a_task(f"0.a{n}", "succeeded") for n in range(30)]
    with LiveTable(console) as table:
        table.show(a_run("running", [*done, a_task("0.b", "running", wave=2)]))
    assert "30 succeeded" in screen.getvalue()
    assert "Do 0.b" in screen.getvalue()
    assert "Do 0.a" not in screen.getvalue()


def test_a_run_that_stands_still_says_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    waits, done = a_task("0.1", "awaiting_review"), a_task("0.1", "succeeded")
    with fake_service(
        a_run("running", [a_task("0.1", "running")]),
        a_run("awaiting_review", [waits]),
        a_run("paused", [waits]),
        a_run("succeeded", [done], result="x"),
    ) as service:
        run_goal("Find out", url=service.url)
    assert capsys.readouterr().out.splitlines()[2:5] == [
        "run run-1  awaiting_review  waits for a person: answer at /runs/run-1/reviews",
        "0.1 awaiting_review",
        "run run-1  paused  goes on after POST /runs/run-1/resume",
    ]


@pytest.mark.parametrize(
    ("status", "said"),
    [("awaiting_review", "answer at /runs/run-1/reviews"), ("paused", "POST /runs/run-1/resume")],
)
def test_the_live_table_says_what_a_run_waits_for_even_when_all_its_tasks_are_done(status: str, said: str) -> None:
    screen = StringIO()
    with LiveTable(Console(file=screen, force_terminal=True, color_system=None, width=120, height=40)) as table:
        table.show(a_run(status, [a_task("0.1", "succeeded")]))
    assert said in screen.getvalue()
    assert "The answer is being written" not in screen.getvalue()


def test_a_failed_run_ends_with_1_and_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    error = {"code": "task_failed", "message": "The model refused \x1b[2J.", "task_key": "0.1"}
    with fake_service(a_run("planning"), a_run("failed", [a_task("0.1", "failed")], error=error)) as service:
        assert run_goal("Find out", url=service.url) == 1
    said = capsys.readouterr()
    assert said.err == "planwave: The run failed: task_failed: The model refused ␛[2J. (task 0.1)\n"
    assert "0.1 failed" in said.out


def test_json_is_the_finished_run_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    end = a_run("succeeded", [a_task("0.1", "succeeded")], result=EVIL)
    with fake_service(a_run("planning"), end) as service:
        assert run_goal("Find out", url=service.url, as_json=True) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == end
    assert "\x1b" not in printed


def test_a_result_that_is_json_is_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_service(a_run("succeeded", [], result={"0.1": "é"})) as service:
        run_goal("Find out", url=service.url)
    assert '{\n  "0.1": "é"\n}' in capsys.readouterr().out


def test_a_goal_that_is_not_utf_8_is_sent_readable() -> None:
    with fake_service(a_run("succeeded", [], result="x")) as service:
        run_goal("caf\udce9", url=service.url)
    assert service.goals == [{"goal": "caf�"}]


def test_a_refused_goal_is_explained() -> None:
    problem = {"detail": "The body is not valid.", "errors": [{"pointer": "/goal", "message": "too short"}]}
    with (
        fake_service(refusal=(422, problem)) as service,
        pytest.raises(RequestRefused, match=re.escape("The body is not valid.; /goal too short")),
    ):
        run_goal("", url=service.url)


def test_a_service_that_is_not_there_is_said_how_to_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ServiceUnreachable, match="make serve"):
        run_goal("Find out", url=f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["planwave", "ftp://127.0.0.1", "http://"])
def test_what_is_no_url_of_a_service_is_refused(url: str) -> None:
    with pytest.raises(ServiceUnreachable, match="is not the URL of a service"):
        run_goal("Find out", url=url)


@contextmanager
def a_run_process(url: str, directory: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "run", "Find out", "--url", url],
        env=environment(),
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_asks_to_cancel_and_waits_for_the_end(tmp_path: Path) -> None:
    with (
        fake_service(a_run("running", [a_task("0.1", "running")]), cancelled=a_run("cancelled")) as service,
        a_run_process(service.url, tmp_path) as process,
    ):
        assert service.waiting.wait(30)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Asking to cancel the run" in out
    assert "run run-1  cancelled" in out
    assert err == "planwave: The run was cancelled.\n"


def test_the_tools_that_are_named_go_with_the_goal_and_none_otherwise() -> None:
    for tools in ((), ("calculator", "http_get")):
        with fake_service(a_run("succeeded", [], result="x")) as service:
            run_goal("Find out", url=service.url, tools=tools)
        options = {"options": {"tools": list(tools)}} if tools else {}
        assert service.goals == [{"goal": "Find out", **options}]
