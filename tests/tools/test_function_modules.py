"""Where tools are found: in modules that the operator names, and in installed packages."""

from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import ConfigurationError
from app.tools.functions import FunctionTool, installed_tools, tools_of

MODULE = '''
from app.tools.functions import tool

@tool
def second() -> str:
    """Do."""
    return "2"

@tool
def first() -> str:
    """Do."""
    return "1"

same = first
nothing = 3
'''
UNTYPED = '''
from app.tools.functions import tool

@tool
def bad(a) -> str:
    """Do."""
'''


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "offered_tools.py").write_text(MODULE)
    (tmp_path / "untyped_tools.py").write_text(UNTYPED)
    (tmp_path / "empty_tools.py").write_text("")
    (tmp_path / "broken_tools.py").write_text("1 / 0")
    return tmp_path


def offered(packages: Path, **points: str) -> None:
    """Install a package with these entry points."""
    folder = packages / "offered-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (folder / "entry_points.txt").write_text("\n".join(["[planwave.tools]", *lines, ""]))


def found(tools: list[FunctionTool[..., Any]]) -> list[str]:
    return [one.spec.name for one in tools]


def test_a_modules_tools_are_found_once_each_in_order(packages: Path) -> None:
    assert found(tools_of("offered_tools")) == ["second", "first"]


def test_one_tool_of_a_module_is_found(packages: Path) -> None:
    assert found(tools_of("offered_tools:first")) == ["first"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("offered_tools:nothing", "is no tool"),
        ("offered_tools:missing", "AttributeError"),
        ("missing_tools", "ModuleNotFoundError"),
        ("empty_tools", "has no tools"),
        ("broken_tools", "ZeroDivisionError"),
        ("untyped_tools", "a has no type"),
        ("", "neither"),
        ("../tools", "neither"),
        ("offered_tools:", "neither"),
        (".tools", "neither"),
    ],
)
def test_a_module_without_usable_tools_is_named_with_the_reason(packages: Path, path: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        tools_of(path)
    assert path in str(caught.value)


def test_installed_packages_offer_tools(packages: Path) -> None:
    offered(packages, one="offered_tools:first", two="offered_tools:second")
    assert found(installed_tools()) == ["first", "second"]


@pytest.mark.parametrize("value", ["offered_tools:nothing", "missing_tools:x", "broken_tools:x", "offered_tools"])
def test_an_entry_point_that_is_no_tool_is_named(packages: Path, value: str) -> None:
    offered(packages, odd=value)
    with pytest.raises(ConfigurationError, match="odd = " + value):
        installed_tools()


def test_nothing_is_installed_by_default() -> None:
    assert installed_tools() == []


@pytest.mark.parametrize(
    ("code", "said"), [("'no config'", "it ended the program: no config"), ("3", "it ended the program"), ("", "ended")]
)
def test_a_module_that_ends_the_program_is_named(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ending_tools.py").write_text(f"raise SystemExit({code})")
    for path in ("ending_tools", "ending_tools:first"):
        with pytest.raises(ConfigurationError, match=f"The tool module {path} cannot be imported: .*{said}"):
            tools_of(path)
