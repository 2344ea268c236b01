import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from app import __version__
from app.cli import main, signals
from app.settings import Settings
from tests.service_process import ROOT, environment

HEAVY = ("openai", "sqlalchemy", "uvicorn", "fastapi", "httpx", "pydantic_settings")


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(Settings.model_fields):
        monkeypatch.delenv(f"PLANWAVE_{name.upper()}", raising=False)
    # They would be blocked in this process, which is not `planwave`'s, and in all that later tests start.
    monkeypatch.setattr(signals.Signals, "__init__", lambda _: None)


def ended(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `planwave ARGUMENTS`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["planwave", *arguments])
    with pytest.raises(SystemExit) as ending:
        main()
    code = ending.value.code
    return code if isinstance(code, int) else 0


def test_help_lists_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--help", monkeypatch=monkeypatch) == 0
    listed = re.findall(r"^  ([a-z]+)  ", capsys.readouterr().out.split("Commands:")[1], re.MULTILINE)
    assert listed == ["demo", "serve", "worker", "run", "model", "doctor", "db"]


def test_help_loads_none_of_the_heavy_libraries() -> None:
    look = f"import sys, app.cli.commands; print([name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", look], env=environment(), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_version_is_the_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--version", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == f"planwave {__version__}\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_serve_refuses_to_listen_beyond_loopback(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("serve", "--host", host, "--port", "0", monkeypatch=monkeypatch) == 2
    assert "--allow-unauthenticated" in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


def test_serve_refuses_a_host_that_nobody_knows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("serve", "--host", "nowhere.invalid", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == "planwave: --host nowhere.invalid: there is no such address.\n"


def test_a_setting_that_cannot_work_is_named_without_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLANWAVE_LEASE_SECONDS", "secret")
    assert ended("serve", monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("planwave: PLANWAVE_LEASE_SECONDS: ")
    assert said.count("\n") == 1
    assert "secret" not in said


def test_a_service_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("run", "Find out", "--url", "http://127.0.0.1:1", monkeypatch=monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.startswith("planwave: No service answers at http://127.0.0.1:1")
    assert said.count("\n") == 1


@pytest.mark.parametrize("delay", ["1", "2,1", "-1,1", "a,b", "0,inf", "nan,nan"])
def test_a_range_of_delays_that_makes_no_sense_is_wrong_usage(
    delay: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("model", f"--delay={delay}", monkeypatch=monkeypatch) == 2
    assert "--delay" in capsys.readouterr().err


def test_the_example_of_settings_names_each_with_its_default() -> None:
    written = dict(re.findall(r"^# PLANWAVE_([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    plain = {name: field.default for name, field in Settings.model_fields.items()}
    as_text = {name.upper(): _as_written(value) for name, value in plain.items()}
    as_text["OFFLINE_SEED"] = str(plain["offline_seed"])
    assert {**written} == as_text


def _as_written(default: object) -> str:
    """A setting's default as a line of the example has it."""
    match default:
        case SecretStr():
            return default.get_secret_value()
        case tuple() | list():
            return ",".join(part if isinstance(part, str) else f"{part:g}" for part in default)
        case _:
            return f"{default or ''}"


# -- the schema


def test_the_schema_goes_up_is_current_and_goes_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("db", "check", monkeypatch=monkeypatch) == 1
    assert "planwave db upgrade" in capsys.readouterr().err
    assert ended("db", "upgrade", monkeypatch=monkeypatch) == 0
    assert ended("db", "check", monkeypatch=monkeypatch) == 0
    assert ended("db", "downgrade", "base", monkeypatch=monkeypatch) == 0
    assert ended("db", "check", monkeypatch=monkeypatch) == 1


def test_a_revision_that_nobody_knows_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("db", "upgrade", "--revision", "nowhere", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err.startswith("planwave: The migration cannot be done: ")


def test_a_database_that_is_away_is_one_line_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLANWAVE_DATABASE_URL", "postgresql://planwave:secret@127.0.0.1:1/planwave")
    assert ended("db", "upgrade", monkeypatch=monkeypatch) == 3
    said = capsys.readouterr().err
    assert said.startswith("planwave: The database cannot be reached.")
    assert said.count("\n") == 1
    assert "secret" not in said


def test_a_file_that_is_no_database_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("planwave.db").write_text("This is a letter and no database, however long one looks at it.")
    assert ended("db", "check", monkeypatch=monkeypatch) == 1
    assert capsys.readouterr().err == "planwave: The database cannot be used. file is not a database\n"
