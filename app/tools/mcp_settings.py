"""The operator's MCP servers: how each is reached, what it is told, what its tools may do."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from app.domain.errors import ConfigurationError
from app.domain.status import SideEffects

_ServerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")


class McpServerSettings(BaseModel):
    """One server: `command` with `args` and `env` for one that we start, or `url` with `headers` for one that runs.

    `side_effects` is what the operator knows of the tools, for all of them or by name; it goes before what they say of
    themselves. `handshake: legacy` spares servers from before 2026 a question that they do not know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    type: Literal["stdio", "http", "streamable-http", "streamable_http"] | None = None
    command: str | None = Field(None, min_length=1)
    args: tuple[str, ...] = Field((), repr=False)
    env: Mapping[str, SecretStr] = {}
    cwd: str | None = None
    url: str | None = Field(None, repr=False)
    headers: Mapping[str, SecretStr] = {}
    timeout_seconds: FiniteFloat = Field(60, gt=0, le=1_000_000, description="Bound of one call")
    side_effects: SideEffects | Mapping[str, SideEffects] | None = None
    handshake: Literal["auto", "legacy"] = "auto"

    @field_validator("url")
    @classmethod
    def _web_address(cls, url: str | None) -> str | None:
        if url is not None:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must be an http:// or https:// address")
            if parts.username or parts.password:
                raise ValueError("must hold no name and password; use headers")
        return url

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value.get_secret_value()):
                raise ValueError("must be names and values that HTTP can send: printable ASCII in one line")
        return headers

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> "McpServerSettings":
        if (self.command is None) == (self.url is None):
            raise ValueError("needs either command or url")
        if self.type is not None and (self.type == "stdio") != (self.command is not None):
            raise ValueError("type stdio goes with command, every other with url")
        if self.command is None and (self.args or self.env or self.cwd):
            raise ValueError("args, env and cwd go with command")
        if self.url is None and self.headers:
            raise ValueError("headers go with url")
        return self

    @property
    def secrets(self) -> Sequence[str]:
        """What must never be shown: values of env and headers, tokens within them, values in the URL's query.

        Shorter ones are no secrets but words, such as `true`, which would be missed everywhere.
        """
        given = [value.get_secret_value() for value in (*self.env.values(), *self.headers.values())]
        tokens = [value.partition(" ")[2] for value in given[len(self.env) :]]  # `Bearer …`
        asked = [value for _, value in parse_qsl(urlsplit(self.url or "").query)]
        return tuple(dict.fromkeys(value for value in (*given, *tokens, *asked) if len(value) >= _SHORTEST_SECRET))

    def side_effects_of(self, tool: str) -> SideEffects | None:
        """What the operator has said of a tool, by the server's own name for it."""
        if self.side_effects is None or isinstance(self.side_effects, SideEffects):
            return self.side_effects
        return self.side_effects.get(tool)


_SHORTEST_SECRET = 8

_SERVERS = TypeAdapter(dict[_ServerName, McpServerSettings])


def servers_from_json(text: str) -> dict[str, McpServerSettings]:
    """The servers by name, from JSON in the shape of MCP clients' files, with or without `{"mcpServers": ...}` around.

    Raises `ConfigurationError`, which quotes no value.
    """
    try:
        given: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"The MCP servers are not JSON: {error}.") from None
    if isinstance(given, dict) and given.keys() == {"mcpServers"}:
        given = given["mcpServers"]
    try:
        return _SERVERS.validate_python(given)
    except ValidationError as error:
        wrong = (" ".join([*(f"{part}:" for part in each["loc"]), each["msg"]]) for each in error.errors())
        raise ConfigurationError(f"MCP servers: {'; '.join(wrong)}.") from None
