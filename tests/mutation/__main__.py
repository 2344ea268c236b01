"""Change a module of storage in every small way and see that its tests notice: `python -m tests.mutation dispatch`.

Each mutant runs its module's tests in a fork of this process, on SQLite and, if they all pass there, on PostgreSQL.
Whatever survives both is either named in `equivalents` or a missing test, and then the exit code is 1.
"""

import argparse
import importlib.util
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite.aiosqlite  # noqa: F401 - imported once here instead of in every fork

import tests.databases
import tests.scripted_model  # like the dialects, imported once here instead of in every fork
from tests.databases import KINDS, Databases
from tests.mutation.equivalents import EQUIVALENTS, HAND_MADE
from tests.mutation.mutants import Mutant, mutants_of

STORAGE = Path(__file__).parents[2] / "app" / "storage"
HERE = Path(__file__).parents[1] / "storage"
TESTS = {
    "dispatch": ("test_dispatch_fence.py", "test_dispatch.py", "test_dispatch_races.py"),
    "writing": (
        "test_changes_rows.py",
        "test_changes_run.py",
        "test_tool_calls.py",
        "test_changes.py",
        "test_reviews.py",
        "test_dispatch_races.py",
    ),
    "steering": ("test_steering_rows.py", "test_steering.py", "test_retry.py"),
    "resume": ("test_resume.py", "test_tool_calls.py"),
}
TEST_HANGS_AFTER_SECONDS = 60
"""A mutant under which a test takes so long is noticed, too."""
HANGS_AFTER_SECONDS = 900
"""The same of all tests together, whatever else is going on."""
SKIPPED = "processes"
"""Tests with this in their names start processes, which import the module as it is."""
Verdict = str
"""The name of the first test that failed; empty for a survivor."""


class Prepared(Databases):
    """Copies of what was made before the fork, in a directory of its own."""

    made: Databases

    def __init__(self, directory: Path, **options: bool) -> None:
        super().__init__(directory, lambda: self.made.postgres, **options)
        self._templates = self.made._templates


class FirstFailure:
    """Notes the first test that fails, as a plugin of pytest."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Once for each phase of a test."""
        if report.failed and not self.name:
            self.name = Path(report.nodeid).name


def judge(module: str, mutant: Mutant, first: str, databases: Databases, verdict: Connection) -> None:
    """In the fork: send the verdict; the file `first` comes first."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    logging.disable()
    Prepared.made = databases
    setattr(tests.databases, "Databases", Prepared)  # noqa: B010 - for conftest, which imports it later
    try:
        put_in_place(f"app.storage.{module}", mutant.source)
    except Exception as error:  # noqa: BLE001 - a mutant may fail in every way
        verdict.send(f"import: {type(error).__name__}")
        return
    with tempfile.TemporaryDirectory() as directory:
        for kind in KINDS:
            failure = FirstFailure()
            others = " or ".join({SKIPPED, *KINDS} - {kind})
            options = ["-x", "-q", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider"]
            chosen = [
                "-m",
                "not soak",
                "-k",
                f"not ({others})",
                f"--basetemp={directory}/{kind}",
                f"--timeout={TEST_HANGS_AFTER_SECONDS}",
            ]
            files = [str(HERE / name) for name in sorted(TESTS[module], key=lambda name: name != first)]
            code = pytest.main([*options, *chosen, *files], plugins=[failure])
            if code is not pytest.ExitCode.OK:
                verdict.send(failure.name or f"pytest's exit code {code}")
                return
    verdict.send("")


def put_in_place(name: str, source: str) -> None:
    """Import the module `name` with this source."""
    assert name not in sys.modules
    spec = importlib.util.find_spec(name)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(source, str(spec.origin), "exec"), module.__dict__)


def judged(module: str, mutants: Sequence[Mutant], databases: Databases, jobs: int) -> Iterator[tuple[Mutant, Verdict]]:
    """The mutants with their verdicts as they come."""
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(mutants))
    noticed_last: dict[str, str] = {}  # file of tests by function: where the next mutant is likely noticed, too
    running: dict[int, tuple[Mutant, ForkProcess, Connection, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=judge, args=(module, mutant, noticed_last.get(mutant.place, ""), databases, sender), daemon=True
            )
            process.start()
            sender.close()
            running[process.sentinel] = (mutant, process, receiver, time.monotonic() + HANGS_AFTER_SECONDS)
        wait(list(running), timeout=1)
        for sentinel, (mutant, process, receiver, ends) in list(running.items()):
            if process.is_alive() and time.monotonic() < ends:
                continue
            hangs = process.is_alive()
            process.kill()
            process.join()
            del running[sentinel]
            verdict = receiver.recv() if receiver.poll() and not hangs else f"hanging or dying ({process.exitcode})"
            noticed_last[mutant.place] = verdict.partition("::")[0]
            yield mutant, verdict


def say(line: str) -> None:
    """At once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """How many of the module's mutants the tests notice; 1 when one is neither noticed nor explained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", choices=sorted(TESTS))
    parser.add_argument("--only", default="", help="mutants with this in their names")
    parser.add_argument("--first", type=int, default=1, help="the number of the first of them, to go on where one was")
    parser.add_argument("--jobs", type=int, default=2, help="forks at a time")
    given = parser.parse_args()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    source = (STORAGE / f"{given.module}.py").read_text()
    every = [*mutants_of(source), *hand_made(given.module, source)]
    mutants = [mutant for mutant in every if given.only in mutant.name][given.first - 1 :]
    reasons = EQUIVALENTS[given.module]
    unexplained = []
    wrongly_explained = set(reasons) - {mutant.name for mutant in every}
    with tempfile.TemporaryDirectory() as directory, closing(Databases(Path(directory), fsync=False)) as databases:
        for kind in KINDS:
            with databases.fresh(kind):  # which makes what the forks copy
                pass
        original = Mutant(name="the module as it is", line=0, source=source)
        ((_, verdict),) = judged(given.module, [original], databases, 1)
        if verdict:
            sys.exit(f"The tests fail without a mutant, too: {verdict}")
        for count, (mutant, verdict) in enumerate(
            judged(given.module, mutants, databases, given.jobs), start=given.first
        ):
            ending = f"noticed by {verdict}" if verdict else f"SURVIVES {reasons.get(mutant.name, '')}".strip()
            say(f"{count} line {mutant.line}, {mutant.name}: {ending}")
            if not verdict and mutant.name not in reasons:
                unexplained.append(mutant.name)
            if verdict and mutant.name in reasons:
                wrongly_explained.add(mutant.name)
    say(f"{len(mutants)} mutants of app/storage/{given.module}.py; {len(reasons)} are explained as harmless")
    for name in unexplained:
        say(f"no test notices: {name}")
    for name in sorted(wrongly_explained):
        say(f"explained, but noticed or not made any more: {name}")
    return 1 if unexplained or wrongly_explained else 0


def hand_made(module: str, source: str) -> Iterator[Mutant]:
    """Mutants that take more than one change."""
    for name, replacements in HAND_MADE[module].items():
        changed = source
        for old, new in replacements:
            assert changed.count(old) == 1, f"{old!r} is not in {module} once"
            changed = changed.replace(old, new)
        yield Mutant(name=name, line=source[: source.index(replacements[0][0])].count("\n") + 1, source=changed)


if __name__ == "__main__":
    sys.exit(main())
