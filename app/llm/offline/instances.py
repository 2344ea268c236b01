"""Making the smallest JSON that a schema accepts, its words drawn from a text."""

import re
from collections.abc import Mapping
from typing import Any

from app.domain.errors import CallRefused
from app.domain.text import shortened

_FULL_DEPTH = 6  # below it only what is required, so that schemas that hold themselves come to an end
_MAX_DEPTH = 40
_MAX_LENGTH = 10_000
_FORMATS = {
    "date": "2000-01-01",
    "time": "00:00:00Z",
    "date-time": "2000-01-01T00:00:00Z",
    "duration": "P1D",
    "email": "nobody@example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
}
_SAMPLES = (
    "a",
    "A",
    "abc",
    "ABC",
    "0",
    "1",
    "12",
    "123",
    "1234",
    "12345",
    "a-1",
    "a_1",
    "2000-01-01",
    "a@example.com",
    "#000000",
    "+10000000000",
)

Schema = Mapping[str, Any] | bool


def instance(schema: Mapping[str, Any], *, asked: str, text: str) -> Any:
    """An instance in which strings hold `text`, or what `asked` says of the field. Raises `CallRefused`."""
    return _made(_Maker(root=schema, asked=asked[:20_000], text=text), schema, bare=False)


def empty(schema: Schema, root: Mapping[str, Any]) -> Any:
    """The barest instance: defaults, nulls and empty lists wherever the schema allows them."""
    return _made(_Maker(root=root, asked="", text=""), schema, bare=True)


def _made(maker: "_Maker", schema: Schema, *, bare: bool) -> Any:
    try:
        return maker.make(schema, "", 0, bare=bare)
    except (TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RecursionError) as error:
        raise CallRefused("The schema is no JSON Schema that can be followed.", kind="bad_schema") from error


def resolved(schema: Schema, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema itself behind `$ref` and `allOf`; `{}` where it says nothing that can be followed."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        merged = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        inner = [*schema.get("allOf", ()), *([_pointed(schema["$ref"], root)] if "$ref" in schema else [])]
        if not inner:
            return merged
        for part in inner:
            if isinstance(part, Mapping):
                joint = {**merged.get("properties", {}), **part.get("properties", {})}
                required = [*merged.get("required", ()), *part.get("required", ())]
                merged = {**part, **merged} | ({"properties": joint} if joint else {})
                merged |= {"required": required} if required else {}
        schema = merged
    return {}


def _pointed(reference: Any, root: Mapping[str, Any]) -> Any:
    at: Any = root
    for step in str(reference).removeprefix("#").split("/")[1:]:
        at = at.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(at, Mapping) else None
    return at


class _Maker:
    def __init__(self, *, root: Mapping[str, Any], asked: str, text: str) -> None:
        self._root = root
        self._asked = asked
        self._text = text
        self._numbers = re.findall(r"-?\d{1,15}(?:\.\d{1,10})?", asked)

    def make(self, schema: Schema, name: str, depth: int, *, bare: bool) -> Any:
        schema = resolved(schema, self._root)
        if depth > _MAX_DEPTH:
            return None
        bare = bare or depth > _FULL_DEPTH
        if "const" in schema:
            return schema["const"]
        if bare and "default" in schema:
            return schema["default"]
        if schema.get("enum"):
            # A choice that the text names is better than the first.
            named = (v for v in schema["enum"] if isinstance(v, str) and v and v.lower() in self._asked.lower())
            return next(named, schema["enum"][0])
        for several in ("anyOf", "oneOf"):
            if schema.get(several):
                options = [
                    {**{k: v for k, v in schema.items() if k != several}, **resolved(o, self._root)}
                    for o in schema[several]
                ]
                nulls = [option for option in options if option.get("type") == "null"]
                others = [option for option in options if option.get("type") != "null"]
                return self.make((nulls + others if bare else others + nulls)[0], name, depth + 1, bare=bare)
        return self._typed(schema, _kind(schema, bare=bare), name, depth, bare=bare)

    def _typed(self, schema: Mapping[str, Any], kind: str, name: str, depth: int, *, bare: bool) -> Any:
        match kind:
            case "object":
                return self._object(schema, depth, bare=bare)
            case "array":
                first = schema.get("prefixItems", [])
                least, most = schema.get("minItems", 0), schema.get("maxItems", 1_000)
                count = min(max(least, len(first), 0 if bare else 1), most, 1_000)
                kinds = [*first[:count], *[schema.get("items", {})] * (count - len(first))]
                made = [self.make(kind, name, depth + 1, bare=bare) for kind in kinds]
                return _told_apart(made) if schema.get("uniqueItems") else made
            case "integer" | "number":
                return self._number(schema, name, whole=kind == "integer", bare=bare)
            case "boolean":
                return True
            case "null":
                return None
            case _:
                return self._string(schema, name, bare=bare)

    def _object(self, schema: Mapping[str, Any], depth: int, *, bare: bool) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = list(dict.fromkeys(schema.get("required", [])))
        names = required if bare else [*properties, *(name for name in required if name not in properties)]
        if not names and "properties" not in schema and not bare:
            names = ["answer"]  # any object will do: one that says something
        return {name: self.make(properties.get(name, {}), name, depth + 1, bare=bare) for name in names}

    def _string(self, schema: Mapping[str, Any], name: str, *, bare: bool) -> str:
        text = "" if bare else self._said_of(name) or self._text
        least = min(schema.get("minLength", 0), _MAX_LENGTH)
        most = schema.get("maxLength", max(len(text), _MAX_LENGTH))
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        if "pattern" in schema:
            return _matching(schema["pattern"], text, least, most)
        if len(text) < least:
            text = ((text or "-") * least)[:least]
        return shortened(text, most) if most > 0 else ""

    def _number(self, schema: Mapping[str, Any], name: str, *, whole: bool, bare: bool) -> Any:
        step = schema.get("multipleOf") or (1 if whole else 0)
        low = schema.get("minimum", float("-inf"))
        high = schema.get("maximum", float("inf"))
        above, below = schema.get("exclusiveMinimum", float("-inf")), schema.get("exclusiveMaximum", float("inf"))
        said = self._said_of(name)
        wanted = [] if bare else [*re.findall(r"-?\d{1,15}(?:\.\d{1,10})?", said), *self._numbers]
        between = [(max(low, above) + min(high, below)) / 2] if max(low, above) > float("-inf") else []
        edges = [edge for edge in (low, high, above + (step or 1), below - (step or 1)) if abs(edge) < float("inf")]
        stepped = [-(-edge // step) * step for edge in edges if step]
        for value in (*map(float, wanted), 0, *edges, *stepped, *(b for b in between if abs(b) < float("inf"))):
            fits = low <= value <= high and above < value < below and (not step or value % step == 0)
            if fits and value == int(value):
                return int(value)
            if fits and not whole:
                return value
        return 0

    def _said_of(self, name: str) -> str:
        """What the request says of the field: `city: Rome`, `the city is Rome`."""
        if not name:
            return ""
        label = re.escape(name).replace("_", "[ _-]")
        said = re.search(
            rf"\b{label}\b\s*(?:is|was|=|:)\s*[\"'“]?([^\s\"'”,;.\n][^\"'”,;\n]{{0,200}})", self._asked, re.I
        )
        return said[1].strip().rstrip(".!?") if said else ""


def _kind(schema: Mapping[str, Any], *, bare: bool) -> str:
    kinds = schema.get("type", "object" if "properties" in schema else "array" if "items" in schema else "string")
    if isinstance(kinds, str):
        return kinds
    if bare and "null" in kinds:
        return "null"
    return next((kind for kind in kinds if kind != "null"), "null")


def _matching(pattern: str, text: str, least: int, most: int) -> str:
    """A string that the pattern finds itself in, out of the text's words and a few samples; else the text."""
    for candidate in (text[:200], *text.split()[:50], *_SAMPLES, "a" * least, "A" * least, "0" * least):
        try:
            if least <= len(candidate) <= max(most, least) and re.search(pattern, candidate[:200]):
                return candidate
        except re.error:
            break
    return text[: max(most, least)]


def _told_apart(values: list[Any]) -> list[Any]:
    apart: list[Any] = []
    for n, value in enumerate(values):
        if value not in apart:
            apart.append(value)
        elif isinstance(value, str):
            apart.append(f"{value} {n + 1}")
        elif isinstance(value, int | float):
            apart.append(value + n)
    return apart
