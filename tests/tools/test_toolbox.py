"""The toolbox: which tools there are, who may have which secret, and what is never shown."""

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import ConfigurationError
from app.tools.functions import tool
from app.tools.tool import Tool, ToolContext, ToolSpec
from app.tools.toolbox import Toolbox


class Plain:
    """A tool that does nothing."""

    def __init__(self, name: str, schema: Mapping[str, Any] | None = None) -> None:
        self.spec = ToolSpec(name=name, description="d", input_schema=schema or {"type": "object"})

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        return self.spec.name


class Holding(Plain):
    def __init__(self, name: str, log: list[str], trouble: Exception | None = None) -> None:
        super().__init__(name)
        self._log = log
        self._trouble = trouble

    async def close(self) -> None:
        self._log.append(f"closed {self.spec.name}")
        if self._trouble:
            raise self._trouble


class Source:
    """Lists what it is told to, once it is open."""

    def __init__(self, name: str, tools: Sequence[Tool], log: list[str], trouble: Exception | None = None) -> None:
        self.name = name
        self.listed = tools
        self.log = log
        self.trouble = trouble
        self.tools: Sequence[Tool] = ()

    async def open(self) -> None:
        if self.trouble:
            raise self.trouble
        self.log.append(f"opened {self.name}")
        self.tools = self.listed

    async def close(self) -> None:
        self.log.append(f"closed {self.name}")


def names(toolbox: Toolbox) -> list[str]:
    return [spec.name for spec in toolbox.specs]


@tool(secrets=("API_KEY",))
def keyed() -> str:
    """Needs a key."""
    return ""


# Which tools there are.


def test_tools_are_listed_by_name_and_found() -> None:
    b, a = Plain("b"), Plain("a")
    toolbox = Toolbox([b, a])
    assert names(toolbox) == ["a", "b"]
    assert toolbox.get("b") is b
    assert toolbox.get("c") is None


def test_only_what_a_pattern_allows_is_there() -> None:
    toolbox = Toolbox([Plain("http_get"), Plain("http_post"), Plain("shell")], allowed=("http_*", "calc"))
    assert names(toolbox) == ["http_get", "http_post"]
    assert toolbox.get("shell") is None
    assert names(Toolbox([Plain("a")], allowed=())) == []
    assert names(Toolbox([Plain("Http")], allowed=("http",))) == []


@pytest.mark.parametrize("name", ["", "a b", "a.b", "x" * 65, "é", "a\n", "a/b"])
def test_a_name_outside_the_alphabet_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="tool name"):
        Toolbox([Plain(name)])


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="two tools named a"):
        Toolbox([Plain("a"), Plain("a")])


def test_a_schema_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="input schema of the tool a"):
        Toolbox([Plain("a", {"type": "nothing"})])


# Sources.


async def test_a_source_lists_its_tools_once_open() -> None:
    log: list[str] = []
    toolbox = Toolbox([Plain("m")], [Source("s", [Plain("z"), Plain("a")], log)])
    assert names(toolbox) == ["m"]
    await toolbox.open()
    assert names(toolbox) == ["a", "m", "z"]
    assert toolbox.get("z") is not None
    await toolbox.close()
    assert log == ["opened s", "closed s"]


async def test_a_name_stays_with_the_source_that_had_it_first_and_the_other_is_told_of() -> None:
    early, late = Plain("docs_x_send"), Plain("docs_x_send")
    docs, docs_x = Source("docs", [], []), Source("docs_x", [early], [])
    toolbox = Toolbox([], [docs, docs_x])
    await toolbox.open()
    assert toolbox.get("docs_x_send") is early
    with structlog.testing.capture_logs() as logged:
        docs.tools = [late]
        assert toolbox.get("docs_x_send") is early
        docs_x.tools = []
        assert toolbox.get("docs_x_send") is None
    assert [(entry["event"], entry["tool"]) for entry in logged] == [("tool left out", "docs_x_send")]


async def test_what_a_source_lists_is_bounded_by_the_patterns() -> None:
    toolbox = Toolbox([], [Source("s", [Plain("ok"), Plain("evil"), Plain("no.name")], [])], allowed=("ok",))
    await toolbox.open()
    assert names(toolbox) == ["ok"]
    assert toolbox.get("evil") is None


async def test_a_source_that_lists_anew_changes_what_there_is() -> None:
    source = Source("s", [Plain("a")], [])
    toolbox = Toolbox([], [source])
    await toolbox.open()
    source.tools = [Plain("b")]
    assert names(toolbox) == ["b"]
    assert toolbox.get("a") is None


@pytest.mark.parametrize(
    "listed",
    [Plain("mine"), Plain("a.b"), Plain("bad", schema={"type": "object", "properties": {"x": {"type": "wrong"}}})],
    ids=["taken", "name", "schema"],
)
async def test_what_a_source_lists_and_nobody_can_call_is_left_out_and_the_others_work(listed: Plain) -> None:
    mine = Plain("mine")
    toolbox = Toolbox([mine], [Source("s", [listed, Plain("good")], [])])
    with structlog.testing.capture_logs() as logs:
        await toolbox.open()
        assert [names(toolbox), names(toolbox)] == [["good", "mine"]] * 2
    assert toolbox.get("mine") is mine
    assert [line["event"] for line in logs] == ["tool left out"]


async def test_a_source_takes_no_name_that_is_taken_later() -> None:
    mine, first = Plain("mine"), Plain("first")
    one, two = Source("1", [first], []), Source("2", [], [])
    toolbox = Toolbox([mine], [one, two])
    await toolbox.open()
    two.tools = [Plain("mine"), Plain("first"), Plain("a.b"), Plain("new")]
    assert names(toolbox) == ["first", "mine", "new"]
    assert toolbox.get("mine") is mine
    assert toolbox.get("first") is first
    assert toolbox.get("a.b") is None


async def test_where_one_source_cannot_be_opened_all_are_closed() -> None:
    log: list[str] = []
    sources = [Source("1", [], log), Source("2", [], log, ConfigurationError("no such command"))]
    with pytest.raises(ConfigurationError, match="no such command"):
        await Toolbox([Holding("h", log)], sources).open()
    assert {"closed 1", "closed 2", "closed h"} <= set(log)


async def test_closing_goes_on_where_one_breaks() -> None:
    log: list[str] = []
    await Toolbox([Holding("a", log, RuntimeError("x")), Holding("b", log), Plain("c")]).close()
    assert log == ["closed a", "closed b"]


async def test_sources_are_opened_side_by_side() -> None:
    both = asyncio.Barrier(2)

    class Waiting(Source):
        async def open(self) -> None:
            async with asyncio.timeout(60):
                await both.wait()
            await super().open()

    toolbox = Toolbox([], [Waiting("1", [Plain("a")], []), Waiting("2", [Plain("b")], [])])
    await toolbox.open()
    assert names(toolbox) == ["a", "b"]


# Secrets.


def test_a_tool_gets_the_secrets_that_it_names() -> None:
    toolbox = Toolbox([keyed, Plain("a")], secrets={"API_KEY": "k-123456", "OTHER": "o-123456"})
    assert toolbox.secrets_for("keyed") == {"API_KEY": "k-123456"}
    assert toolbox.secrets_for("a") == {}
    assert toolbox.secrets_for("unknown") == {}


@pytest.mark.parametrize("secrets", [None, {"OTHER": "x"}, {"API_KEY": ""}])
def test_a_missing_secret_is_named_with_its_tool(secrets: dict[str, str] | None) -> None:
    with pytest.raises(ConfigurationError, match="keyed needs the secret API_KEY"):
        Toolbox([keyed], secrets=secrets)


def test_a_tool_that_is_not_allowed_needs_no_secret() -> None:
    assert names(Toolbox([keyed], allowed=("a*",))) == []


SECRETS = ["s3cr3t-value", 'a"b\\c/d', "päss wörd+&?", "p@ss:w0rd/=", "line\nbreak", "\U0001f600key", "tokentoken\n"]


def forms(secret: str) -> list[str]:
    octets = secret.encode()
    around = [base64.b64encode(b"x" * n + b":" + octets + b"::").decode() for n in range(3)] if len(octets) > 9 else []
    return [
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        base64.b64encode(octets).decode(),
        base64.b64encode(octets).decode().rstrip("="),
        base64.urlsafe_b64encode(octets).decode(),
        *around,
    ]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_redacted_in_every_form_that_it_takes(secret: str) -> None:
    toolbox = Toolbox([], secrets={"S": secret})
    for form in forms(secret):
        shown = toolbox.redacted(f"before {form} after")
        assert shown.startswith("before ")
        assert shown.endswith(" after")
        assert "[redacted]" in shown
        assert form not in shown


def test_percent_escapes_are_redacted_in_small_letters_too() -> None:
    assert Toolbox([], secrets={"S": "a/b:c?"}).redacted("a%2fb%3ac%3f") == "[redacted]"


def test_further_texts_are_redacted() -> None:
    assert Toolbox([], redact=["Bearer abc"]).redacted("x Bearer abc y") == "x [redacted] y"


def test_what_is_shorter_than_four_characters_is_left() -> None:
    assert Toolbox([], secrets={"S": "abc", "T": ""}).redacted("abcabc") == "abcabc"
    assert Toolbox([]).redacted("text") == "text"


def test_the_longer_of_two_secrets_goes_first() -> None:
    assert Toolbox([], secrets={"S": "abcd", "T": "abcdefgh"}).redacted("abcdefgh") == "[redacted]"


@given(
    secret=st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=30),
    before=st.text(max_size=10),
    after=st.text(max_size=10),
)
def test_no_secret_survives(secret: str, before: str, after: str) -> None:
    shown = Toolbox([], secrets={"S": secret}).redacted(before + secret + after)
    assert secret not in shown.replace("[redacted]", "\x00\x00")
