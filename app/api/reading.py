"""Bodies read strictly: bounded, JSON without anything that a database or another reader could stumble over."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, RootModel, ValidationError
from pydantic_core import ErrorDetails

from app.agents.output import SchemasTogether
from app.api.problems import Fault, Refused, refused_for
from app.api.schemas.requests import MAX_INTEGER
from app.domain.text import is_storable

MAX_BODY_BYTES = 256 * 1024
MAX_BODY_BYTES_WITH_PLAN = 4 * 1024 * 1024
MAX_DEPTH = 32
_MAX_INTEGER_DIGITS = len(str(MAX_INTEGER))
_SUSPECT_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")

Model = TypeVar("Model", bound=BaseModel)

_CODES = {
    "missing": "missing",
    "extra_forbidden": "unknown_field",
    "literal_error": "not_allowed",
    "union_tag_not_found": "missing",
    "union_tag_invalid": "not_allowed",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "string_too_short": "too_short",
    "string_too_long": "too_long",
    "too_short": "too_few",
    "too_long": "too_many",
    "blank": "blank",
    "context_too_large": "context_too_large",
    "invalid_schema": "invalid_schema",
}
"""Our codes for pydantic's and our own error types; of the rest, what ends in `_type` is a `wrong_type`."""


async def read_object(request: Request, *, optional: bool = False) -> dict[str, Any]:
    """The body as a JSON object; an empty one is `{}` where it is `optional`.

    Raises `Refused`: 413, 415, 400 for what is no JSON or nested too deep, 422 for values that cannot be kept.
    """
    body = await _bounded(request)
    if not body and optional:
        return {}
    _check_content_type(request)
    value, has_big_integer = _parsed(body)
    if len(body) > MAX_BODY_BYTES and not (isinstance(value, dict) and value.get("plan") is not None):
        raise _too_large(MAX_BODY_BYTES, "without a `plan`")
    if has_big_integer or _SUSPECT_ESCAPE.search(body.decode()):
        faults = list(_unstorable(value, ""))
        if faults:
            raise refused_for(faults)
    if not isinstance(value, dict):
        raise refused_for([Fault(code="wrong_type", message="The body must be a JSON object.", pointer="")])
    return value


def parse(model: type[Model], value: Mapping[str, Any]) -> Model:
    """The value as the model; raises `Refused` with one entry per thing that is wrong."""
    try:
        return model.model_validate(value, strict=True, context=SchemasTogether())
    except ValidationError as error:
        # What is wrong in one of several bodies begins with the name of that body, which is no place in what was sent.
        inner = int(issubclass(model, RootModel))
        raise refused_for([_fault(found, found["loc"][inner:]) for found in error.errors(include_url=False)]) from None


def pointer(*path: str | int) -> str:
    """The JSON pointer (RFC 6901) to this place."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


async def _bounded(request: Request) -> bytes:
    """The body's bytes; refused as soon as there are too many, whether their number was announced or not."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > MAX_BODY_BYTES_WITH_PLAN:
        raise _too_large(MAX_BODY_BYTES_WITH_PLAN, "with a `plan`")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES_WITH_PLAN:
            raise _too_large(MAX_BODY_BYTES_WITH_PLAN, "with a `plan`")
    return bytes(body)


def _too_large(limit: int, when: str) -> Refused:
    return Refused("body_too_large", f"A body {when} may have {limit // 1024} KiB.")


def _check_content_type(request: Request) -> None:
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.partition("charset=")[2].strip(' "').lower()
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise Refused("unsupported_media_type", "Send the body as Content-Type: application/json, in UTF-8.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused("unsupported_media_type", "Send the body without a Content-Encoding.")


def _parsed(body: bytes) -> tuple[Any, bool]:
    """The value, and whether an integer in it is too big; such a one is cut, since only its size matters."""
    big = False

    def integer(text: str) -> int:
        nonlocal big
        value = int(text[: _MAX_INTEGER_DIGITS + 2])
        big = big or abs(value) > MAX_INTEGER
        return value

    try:
        value = json.loads(
            body.decode(),
            parse_int=integer,
            parse_float=_finite,
            parse_constant=_no_constant,
            object_pairs_hook=_without_duplicates,
        )
    except UnicodeDecodeError:
        raise Refused("invalid_json", "The body is not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise Refused("invalid_json", f"{error.msg} at line {error.lineno}, column {error.colno}.") from None
    except RecursionError:
        raise _too_deep() from None
    if is_too_deep(value):
        raise _too_deep()
    return value, big


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Refused("invalid_json", "A number is too large to be kept.")
    return number


def _no_constant(name: str) -> None:
    raise Refused("invalid_json", f"{name} is no JSON.")


def _without_duplicates(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) != len(members):
        raise Refused("invalid_json", "An object names a member twice.")
    return found


def is_too_deep(value: Any) -> bool:
    """Whether JSON is nested deeper than bodies may be."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]
        if not level:
            return False
    return any(isinstance(inner, dict | list) for inner in level)


def _inside(outer: dict[str, Any] | list[Any]) -> Any:
    return outer.values() if isinstance(outer, dict) else outer


def _too_deep() -> Refused:
    return Refused("invalid_json", f"The body is nested more than {MAX_DEPTH} levels deep.")


def _unstorable(value: Any, at: str) -> Iterator[Fault]:
    """What no database keeps, wherever it is; the recursion is bounded by the depth that was checked before."""
    match value:
        case dict():
            for name, inner in value.items():
                if not is_storable(name):
                    message = "A member's name holds NUL or half of a surrogate pair."
                    yield Fault(code="invalid_text", message=message, pointer=at + pointer(name))
                yield from _unstorable(inner, at + pointer(name))
        case list():
            for index, inner in enumerate(value):
                yield from _unstorable(inner, f"{at}/{index}")
        case str() if not is_storable(value):
            message = "The text holds NUL or half of a surrogate pair."
            yield Fault(code="invalid_text", message=message, pointer=at)
        case int() if abs(value) > MAX_INTEGER:
            message = "Integers go from -(2^53) to 2^53; send a larger one as a string."
            yield Fault(code="out_of_range", message=message, pointer=at)
        case _:
            pass


def _fault(found: ErrorDetails, at: tuple[int | str, ...]) -> Fault:
    kind = found["type"]
    path = [step for step in at if step != "[key]"]
    code = _CODES.get(kind) or ("wrong_type" if kind.endswith("_type") else "invalid_value")
    message = found["msg"]
    if code == "unknown_field":
        message = "There is no such field here."
    elif kind.startswith("union_tag"):
        # Of the field that tells several bodies apart; the library's words would repeat whatever was sent in it.
        context = found["ctx"]
        path.append(context["discriminator"].strip("'"))
        message = f"Input should be one of {context['expected_tags']}" if code == "not_allowed" else "Field required"
    return Fault(code=code, message=message, pointer=pointer(*path))
