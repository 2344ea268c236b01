"""Requests with conditions: `If-None-Match` against a run's version, and how long `Prefer: wait` waits."""

import re
from typing import Annotated

from fastapi import Header
from pydantic import BeforeValidator, WithJsonSchema

MAX_WAIT_SECONDS = 60
RETRY_AFTER_SECONDS = "1"
_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:[,;]|$)', re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?("[^"]*")')

OptionalText = Annotated[str | None, WithJsonSchema({"type": "string"})]
"""A header or query parameter that may be absent: nobody can send a null in one."""
OptionalId = Annotated[str | None, WithJsonSchema({"type": "string", "format": "uuid"})]
OptionalTime = Annotated[str | None, WithJsonSchema({"type": "string", "format": "date-time"})]

IfNoneMatch = Annotated[
    OptionalText,
    Header(alias="If-None-Match", description="ETags that you have; 304 when one is still right.", examples=['"7"']),
]


def _wait_seconds(prefer: str) -> int | None:
    found = _WAIT.search(prefer)
    return None if found is None else min(int(found[1]), MAX_WAIT_SECONDS)


Wait = Annotated[
    int | None,
    BeforeValidator(_wait_seconds),
    WithJsonSchema({"type": "string"}),
    Header(
        alias="Prefer",
        description=f"`wait=N` waits up to N seconds, at most {MAX_WAIT_SECONDS} (RFC 7240).",
        examples=["wait=20"],
    ),
]
"""The seconds to wait, or None without such a preference; one that makes no sense is ignored, as RFC 7240 says."""


def etag_of(version: int, *, with_tasks: bool) -> str:
    """The strong ETag of a run's representation."""
    return f'"{version}.tasks"' if with_tasks else f'"{version}"'


def matches(if_none_match: str, etag: str) -> bool:
    """Whether the client has what this ETag stands for, by weak comparison (RFC 9110, 13.1.2)."""
    return if_none_match.strip() == "*" or etag in _TAG.findall(if_none_match)
