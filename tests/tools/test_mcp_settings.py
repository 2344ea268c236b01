import json
from typing import Any

import pytest

from app.domain.errors import ConfigurationError
from app.domain.status import SideEffects
from app.tools.mcp_settings import McpServerSettings, servers_from_json

DOCS = {"command": "docs-server", "args": ["--all"], "env": {"DOCS_KEY": "s3cret-docs"}}
SEARCH = {
    "url": "https://search.test/mcp?key=s3cret-query",
    "headers": {"Authorization": "Bearer s3cret-search"},
    "timeout_seconds": 5,
    "side_effects": {"send_mail": "once", "look": "none"},
}


def servers(**given: Any) -> dict[str, McpServerSettings]:
    return servers_from_json(json.dumps(given))


def refused(**given: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        servers(**given)
    return str(caught.value)


def test_the_usual_shape_of_clients_files_is_read() -> None:
    read = servers(docs=DOCS, search=SEARCH)
    assert (read["docs"].command, read["docs"].args, read["docs"].timeout_seconds) == ("docs-server", ("--all",), 60)
    assert (read["search"].url, read["search"].timeout_seconds) == (SEARCH["url"], 5)


def test_a_whole_clients_file_is_read() -> None:
    assert servers(mcpServers={"docs": DOCS}) == servers(docs=DOCS)


def test_values_of_env_and_headers_and_of_a_query_are_secrets() -> None:
    read = servers(docs=DOCS, search=SEARCH)
    assert read["docs"].secrets == ("s3cret-docs",)
    assert read["search"].secrets == ("Bearer s3cret-search", "s3cret-search", "s3cret-query")


def test_no_secret_is_in_a_settings_representation() -> None:
    read = servers(docs={**DOCS, "args": ["--key", "s3cret-argument"]}, search=SEARCH)
    assert "s3cret" not in f"{read!r} {read['search']}"


def test_side_effects_are_known_for_all_tools_or_by_name() -> None:
    read = servers(docs={**DOCS, "side_effects": "none"}, search=SEARCH)
    assert read["docs"].side_effects_of("anything") is SideEffects.NONE
    assert read["search"].side_effects_of("send_mail") is SideEffects.ONCE
    assert read["search"].side_effects_of("anything") is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "needs either command or url"),
        ({**DOCS, **SEARCH}, "needs either command or url"),
        ({**DOCS, "headers": {"A": "b"}}, "headers go with url"),
        ({**SEARCH, "args": ["x"]}, "args, env and cwd go with command"),
        ({**DOCS, "comand": "x"}, "docs: comand: Extra inputs are not permitted"),
        ({"url": "ftp://search.test"}, "must be an http:// or https:// address"),
        ({"url": "https://me:s3cret@search.test"}, "must hold no name and password"),
        ({"url": "https://search.test", "headers": {"A": "s3cret\r\nB: c"}}, "printable ASCII in one line"),
        ({**DOCS, "type": "sse"}, "docs: type:"),
        ({**DOCS, "type": "http"}, "type stdio goes with command"),
        ({**DOCS, "env": {"KEY": 7}}, "docs: env: KEY:"),
        ({**DOCS, "side_effects": "s3cret"}, "docs: side_effects:"),
        ({**DOCS, "timeout_seconds": 0}, "greater than 0"),
    ],
)
def test_what_cannot_work_is_refused_by_name_without_a_value(wrong: dict[str, Any], says: str) -> None:
    message = refused(docs=wrong)
    assert says in message
    assert "s3cret" not in message


def test_a_servers_name_must_fit_into_its_tools_names() -> None:
    assert "my docs" in refused(**{"my docs": DOCS})


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not JSON"):
        servers_from_json("{")
