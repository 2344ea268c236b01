"""Every guard of the statements that hold it all together is missed by some test when it is gone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.mutants import mutants_of

SOURCE = """
def fence(held: int | None) -> Any:
    return update(runs).where(runs.c.id == run, runs.c.token <= token).values(a=1 + b, c=coalesce(x, y))
"""


def test_every_guard_and_every_column_of_a_statement_has_its_mutants() -> None:
    names = {mutant.name.removeprefix("fence: ") for mutant in mutants_of(SOURCE)}
    assert names == {
        "where without runs.c.id == run",
        "where without runs.c.token <= token",
        "runs.c.id == run -> runs.c.id != run",
        "runs.c.token <= token -> runs.c.token < token",
        "runs.c.token <= token -> runs.c.token > token",
        "values without a=1 + b",
        "values without c=coalesce(x, y)",
        "1 + b -> 1",
        "1 -> 2",
        "coalesce(x, y) -> x",
        "coalesce(x, y) -> y",
        "coalesce(x, y) -> coalesce(y, x)",
    }


def test_a_mutant_differs_from_its_module_in_one_place() -> None:
    (mutant,) = [mutant for mutant in mutants_of(SOURCE) if "without runs.c.id" in mutant.name]
    statement = "update(runs).where(runs.c.token <= token)"
    assert mutant.source == SOURCE.replace(
        "update(runs).where(runs.c.id == run, runs.c.token <= token)", f"({statement})"
    )
    assert mutant.line == 3


@pytest.mark.soak
@pytest.mark.parametrize("module", ["dispatch", "writing", "steering", "resume"])
def test_no_mutant_goes_unnoticed(module: str) -> None:
    command = [sys.executable, "-m", "tests.mutation", module]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
