"""The rules of the house that can be checked: where imports point, how files are named and kept."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[2]
APP = ROOT / "app"
MODULES = sorted(path for path in APP.rglob("*.py") if path.name != "__init__.py" or path.stat().st_size)
NAMES_OF_NOTHING = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "base",
    "misc",
    "manager",
    "handler",
    "data",
    "info",
}
MAX_LINES = 450

# Written in pieces, so that this file does not hold what it looks for.
_MACHINE_PATHS = "|".join(re.escape(f"/{top}/") + r"[\w.]" for top in ("root", "work", "home", "Users"))
_REGISTRIES = "|".join(
    (r"--(?:extra-)?index" + "-url", "python" + "hosted", r"pypi\." + "org/simple", "artifact" + "ory")
)
_NOT_OURS = re.compile(rf"(?<![\w.])(?:{_MACHINE_PATHS})|{_REGISTRIES}")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tracked() -> Iterator[Path]:
    """Every file that the repository keeps."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("no repository around this copy")
    return (ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file())


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, at any depth of it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{named(path)} imports relatively"
            yield node.module or ""


def test_imports_point_down_the_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("path", sorted((APP / "domain").glob("*.py")), ids=named)
def test_the_domain_imports_the_standard_library_and_itself_only(path: Path) -> None:
    for module in imported(path):
        top = module.split(".")[0]
        assert top in sys.stdlib_module_names or module.startswith("app.domain."), f"{named(path)} imports {module}"


def test_the_domain_reads_no_clock_and_draws_no_lots() -> None:
    for path in (APP / "domain").glob("*.py"):
        assert not {"time", "random", "datetime", "asyncio", "logging", "os"} & set(imported(path)), named(path)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_every_module_says_in_its_first_line_what_it_owns(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring
    assert re.search(r"[.:;]$", docstring.split("\n")[0]), "the first line is a sentence"


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_no_file_is_named_after_nothing(path: Path) -> None:
    assert not NAMES_OF_NOTHING & set(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_no_file_is_too_long_to_take_in(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_what_is_kept_names_no_registry_and_no_machine() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{named(path)}: {line.strip()[:100]}" for line in text.splitlines() if _NOT_OURS.search(line)]
    assert found == []


def test_tests_read_nothing_outside_the_repository() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert "/sha" + "red/" not in path.read_text(encoding="utf-8"), named(path)
