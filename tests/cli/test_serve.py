import signal
import socket
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from tests.cli.processes import greeted, planwave, running
from tests.databases import Databases

GREETING = "Planwave is at "


def test_serve_migrates_a_new_sqlite_says_where_it_is_and_who_answers(tmp_path: Path) -> None:
    with running("serve", "--port", "0", directory=tmp_path) as process:
        said = greeted(process, GREETING)
        url = said.split()[0]
        assert "offline model (built in; no key set)" in said
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert httpx.get(f"{url}/docs").status_code == 200
    assert (tmp_path / "planwave.db").exists()


def test_serve_says_which_endpoint_answers_and_not_its_key(tmp_path: Path) -> None:
    settings = {"llm_base_url": "http://127.0.0.1:9/v1", "llm_api_key": "secret", "llm_model": "small"}
    with running("serve", "--port", "0", directory=tmp_path, **settings) as process:
        said = greeted(process, GREETING)
    assert "small at http://127.0.0.1:9/v1" in said
    assert "secret" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_with_0_when_told_to(number: signal.Signals, tmp_path: Path) -> None:
    with running("serve", "--port", "0", directory=tmp_path) as process:
        greeted(process, GREETING)
        process.send_signal(number)
        assert process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "stderr.log").read_text()


def test_a_client_that_waits_is_answered_when_serve_ends(tmp_path: Path) -> None:
    with running("serve", "--port", "0", "--no-worker", directory=tmp_path) as process:
        url = greeted(process, GREETING).split()[0]
        path = f"/runs/{httpx.post(f'{url}/goals', json={'goal': 'Find out'}).json()['id']}"
        etag = httpx.get(url + path).headers["ETag"]
        waiting = HTTPConnection(url.removeprefix("http://"), timeout=30)
        waiting.request("GET", path, headers={"If-None-Match": etag, "Prefer": "wait=60"})
        httpx.get(url + path)  # answered after the request before it was begun
        process.send_signal(signal.SIGTERM)
        assert waiting.getresponse().status == 304
        waiting.close()
        assert process.wait(30) == 0


def test_a_port_in_use_is_one_line_and_exit_4(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = planwave("serve", "--port", str(port), directory=tmp_path)
    assert done.returncode == 4
    assert done.stderr == f"planwave: Port {port} is in use on 127.0.0.1; choose another with --port.\n"
    assert not list(tmp_path.glob("planwave.db*"))


def test_a_postgresql_that_is_behind_is_left_alone_and_said(databases: Databases, tmp_path: Path) -> None:
    with databases.fresh("postgresql", migrated=False) as url:
        done = planwave("serve", "--port", "0", directory=tmp_path, database_url=url)
    assert done.returncode == 3
    assert done.stderr == (
        "planwave: The database's schema is not the one that this version needs. Run: planwave db upgrade\n"
    )
    assert done.stdout == ""


def test_the_offline_model_is_served_to_any_client(tmp_path: Path) -> None:
    with running("model", "--port", "0", "--delay", "0,0", directory=tmp_path) as process:
        url = greeted(process, "The offline model is at ").split(";")[0]
        body = {"model": "any", "messages": [{"role": "user", "content": "What is 6 * 7?"}]}
        answer = httpx.post(f"{url}/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_worker_drains_and_ends_with_0(tmp_path: Path) -> None:
    with running("worker", directory=tmp_path) as process:
        greeted(process, "The worker looks for runs.")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
