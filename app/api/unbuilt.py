"""What the contract names and is not built yet: one row each, with the values that are taken until it is.

The routes refuse other values, and the OpenAPI document shows only these; whoever builds a thing deletes its row.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from app.api.problems import Fault, refused_for
from app.api.reading import pointer
from app.api.schemas.requests import NewGoal


@dataclass(frozen=True, kw_only=True, slots=True)
class Unbuilt:
    """A field of a body that takes only these values as yet."""

    body: type[BaseModel]
    field: str
    accepted: tuple[Any, ...]

    @property
    def schema(self) -> dict[str, Any]:
        """The field as JSON Schema, as far as it is built."""
        default = self.accepted[0]
        return {
            "enum": list(self.accepted),
            "default": default,
            "description": "Other values are not built yet: 422 `not_supported`.",
        }


UNBUILT = (Unbuilt(body=NewGoal, field="webhook_url", accepted=(None,)),)

_BY_BODY: Mapping[type[BaseModel], list[Unbuilt]] = {
    body: [row for row in UNBUILT if row.body is body] for body in {row.body for row in UNBUILT}
}


def refuse_unbuilt(body: BaseModel) -> None:
    """Raises `Refused` (`not_supported`) with one entry per value whose feature is not built yet."""
    faults = list(_found(body, ()))
    if faults:
        raise refused_for(faults)


def _found(body: BaseModel, at: tuple[str | int, ...]) -> Iterator[Fault]:
    for row in _BY_BODY.get(type(body), ()):
        if getattr(body, row.field) not in row.accepted:
            takes = " or ".join(json.dumps(value) for value in row.accepted)
            message = f"`{row.field}` is not built yet: only {takes} is taken."
            yield Fault(code="not_supported", message=message, pointer=pointer(*at, row.field))
    for name in type(body).model_fields:
        inner = getattr(body, name)
        if isinstance(inner, BaseModel):
            yield from _found(inner, (*at, name))
        elif isinstance(inner, list) and inner and isinstance(inner[0], BaseModel):
            for index, one in enumerate(inner):
                yield from _found(one, (*at, name, index))
