"""The tools that the operator allows: looked up by name, opened and closed, with the secrets that they are given."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

import structlog

from app.domain.errors import ConfigurationError
from app.tools.arguments import schema_problem
from app.tools.functions import NAME, FunctionTool
from app.tools.redaction import Redaction
from app.tools.tool import Tool, ToolSpec

_log = structlog.get_logger(__name__)


class ToolSource(Protocol):
    """What lists its tools while it runs, such as an MCP server."""

    @property
    def tools(self) -> Sequence[Tool]:
        """Those that it has now; none before it was opened."""
        ...

    async def open(self) -> None:
        """Begin; it returns when the first list is there, or when it is clear that there will be none for a while."""
        ...

    async def close(self) -> None:
        """End; nothing that it began is left."""
        ...


@runtime_checkable
class _Held(Protocol):
    """A tool that holds something."""

    async def close(self) -> None: ...


class Toolbox:
    """Tools by name, as far as `allowed` has a pattern (`fnmatch`, with case) for the name.

    `secrets` are the operator's, by name; a tool gets those that it names. `redact` are further texts that must not be
    shown, such as what MCP servers are given. Raises `ConfigurationError` for a name that is unusable or stands twice,
    an unusable schema, and a secret that is missing.
    """

    def __init__(
        self,
        tools: Iterable[Tool] = (),
        sources: Iterable[ToolSource] = (),
        *,
        allowed: Sequence[str] = ("*",),
        secrets: Mapping[str, str] | None = None,
        redact: Iterable[str] = (),
    ) -> None:
        self._allowed = tuple(allowed)
        self._given = list(tools)
        self._sources = list(sources)
        self._static: dict[str, Tool] = {}
        self._secrets: dict[str, dict[str, str]] = {}
        self._judged: dict[str, tuple[ToolSpec, bool]] = {}
        self._owners: dict[str, ToolSource] = {}
        self._shadowed: set[tuple[str, int]] = set()
        secrets = dict(secrets or {})
        self._redaction = Redaction([*secrets.values(), *redact])
        for tool in self._given:
            spec = tool.spec
            if self._allows(spec.name):
                _check(spec, self._static)
                self._static[spec.name] = tool
                self._secrets[spec.name] = _secrets_of(tool, secrets)

    @property
    def specs(self) -> list[ToolSpec]:
        """What there is now, by name."""
        return [tool.spec for _, tool in sorted(self._now().items())]

    def get(self, name: str) -> Tool | None:
        """The tool of this name, if there is one now."""
        return self._static.get(name) or self._now().get(name)

    def secrets_for(self, name: str) -> Mapping[str, str]:
        """The operator's secrets for this tool, by name; for its context only."""
        return self._secrets.get(name, {})

    def redacted(self, text: str) -> str:
        """The text with `[redacted]` in place of every secret, of whichever tool (see `Redaction`)."""
        return self._redaction(text)

    async def open(self) -> None:
        """Open the sources, side by side. Where one cannot be opened, all are closed again."""
        try:
            async with asyncio.TaskGroup() as group:
                for source in self._sources:
                    group.create_task(source.open())
        except BaseException as error:
            await self.close()
            if isinstance(error, ExceptionGroup):
                raise error.exceptions[0] from None  # the others say the same, or were cancelled by it
            raise

    async def close(self) -> None:
        """Close the sources and the tools that hold something: all of them, whatever one says."""
        for held in (*reversed(self._sources), *(tool for tool in self._given if isinstance(tool, _Held))):
            try:
                await held.close()
            except Exception:  # noqa: BLE001 - the others are closed all the same; it is logged
                _log.exception("tool not closed", source=type(held).__name__)

    def _allows(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._allowed)

    def _now(self) -> dict[str, Tool]:
        """All tools; what a source lists takes no name that is taken, so it stands in for no other.

        A name stays with the source that had it first, also while that one does not list it.
        """
        found = dict(self._static)
        for source in self._sources:
            for tool in source.tools:
                name = tool.spec.name
                if not self._allows(name):
                    continue
                if self._owners.get(name, source) is source:
                    if self._is_usable(tool.spec):
                        self._owners[name] = source
                        found.setdefault(name, tool)
                elif (name, id(source)) not in self._shadowed:
                    self._shadowed.add((name, id(source)))
                    _log.warning("tool left out", tool=name, reason="Another server's tool has this name.")
        return found

    def _is_usable(self, spec: ToolSpec) -> bool:
        """Whether a tool that a source lists can be offered; others may be, and the operator reads why not this one."""
        judged = self._judged.get(spec.name)
        if judged is None or judged[0] != spec:
            try:
                _check(spec, self._static)
            except ConfigurationError as error:
                _log.warning("tool left out", tool=spec.name[:100], reason=str(error))
                judged = (spec, False)
            else:
                judged = (spec, True)
            self._judged[spec.name] = judged
        return judged[1]


def _check(spec: ToolSpec, found: Mapping[str, Tool]) -> None:
    if not NAME.fullmatch(spec.name):
        raise ConfigurationError(f"The tool name {spec.name[:100]!r} is not 1 to 64 letters, digits, _ and -.")
    if spec.name in found:
        raise ConfigurationError(f"There are two tools named {spec.name}; rename one, or leave one out.")
    problem = schema_problem(spec.input_schema)
    if problem is not None:
        raise ConfigurationError(f"The input schema of the tool {spec.name} cannot be used. {problem}")


def _secrets_of(tool: Tool, secrets: Mapping[str, str]) -> dict[str, str]:
    names = tool.secrets if isinstance(tool, FunctionTool) else ()
    for name in names:
        if not secrets.get(name):
            raise ConfigurationError(f"The tool {tool.spec.name} needs the secret {name}, which is not set.")
    return {name: secrets[name] for name in names}
