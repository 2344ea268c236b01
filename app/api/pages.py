"""Lists in pages: the cursor names the last entry that was shown, so that what is added meanwhile shifts nothing."""

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import Depends, Query
from pydantic import Field, WithJsonSchema

from app.api.conditions import OptionalText
from app.api.problems import Fault, Refused
from app.domain.ids import parse_uuid

MAX_INTEGER_POSITION = 2**31 - 1
"""The largest generation, `seq` or position: what an INTEGER column holds."""

OptionalNumber = Annotated[
    Annotated[int, Field(ge=0, le=MAX_INTEGER_POSITION)] | None,
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_INTEGER_POSITION}),
]
Shown = TypeVar("Shown")
Position = int | str | UUID


@dataclass(frozen=True, kw_only=True, slots=True)
class PageQuery:
    """Which part of a list is asked for."""

    limit: int
    cursor: str | None

    @property
    def fetch(self) -> int:
        """One more than is shown: it tells whether there is more."""
        return self.limit + 1

    def uuid(self, kind: str) -> UUID | None:
        """The id behind which the page starts; `kind` says which list a cursor must belong to."""
        position = self.text(kind)
        parsed = None if position is None else parse_uuid(position)
        if position is not None and parsed is None:
            raise _invalid()
        return parsed

    def text(self, kind: str) -> str | None:
        """The name behind which the page starts."""
        position = self._position(kind)
        if isinstance(position, int):
            raise _invalid()
        return position

    def integer(self, kind: str) -> int | None:
        """The number behind which the page starts."""
        position = self._position(kind)
        if isinstance(position, str) or not -1 <= (position or 0) <= MAX_INTEGER_POSITION:
            raise _invalid()
        return position

    def page(
        self, kind: str, found: Sequence[Any], position: Callable[[Any], Position], shown: Callable[[Any], Shown]
    ) -> dict[str, Any]:
        """The fields of the page's body, of up to `fetch` entries found."""
        some = found[: self.limit]
        more = len(found) > self.limit
        return {
            "data": [shown(one) for one in some],
            "has_more": more,
            "next_cursor": _cursor(kind, position(some[-1])) if more else None,
        }

    def _position(self, kind: str) -> int | str | None:
        if self.cursor is None:
            return None
        try:
            sealed = base64.b64decode(
                self.cursor.encode() + b"=" * (-len(self.cursor) % 4), altchars=b"-_", validate=True
            )
            of, position = json.loads(sealed[4:])
        except (ValueError, TypeError, RecursionError):
            raise _invalid() from None
        if of != kind or type(position) is bool or not isinstance(position, int | str):
            raise _invalid()
        # Written anew it must be the same: what was altered anywhere, or made for another list, is not.
        if _cursor(kind, position) != self.cursor:
            raise _invalid()
        return position


async def _page_query(
    limit: Annotated[int, Query(ge=1, le=200, description="Entries per page.")] = 50,
    cursor: Annotated[OptionalText, Query(description="`next_cursor` of the page before.")] = None,
) -> PageQuery:
    return PageQuery(limit=limit, cursor=cursor)


Paging = Annotated[PageQuery, Depends(_page_query)]


def _cursor(kind: str, position: Position) -> str:
    text = json.dumps([kind, position if isinstance(position, int) else str(position)]).encode()
    sealed = zlib.crc32(text).to_bytes(4, "big") + text
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()


def _invalid() -> Refused:
    message = "Use `next_cursor` of this very list, unchanged."
    fault = Fault(code="invalid_cursor", message=message, query="cursor")
    return Refused("invalid_cursor", message, errors=[fault])
