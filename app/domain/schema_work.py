"""How much work a JSON Schema makes, in itself and against a value: validators take exponential time on some."""

import graphlib
import heapq
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

_HERE_ONE = ("not", "if", "then", "else")
_HERE_MANY = ("allOf", "anyOf", "oneOf")
_HERE_NAMED = ("dependentSchemas", "dependencies")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_OTHER_MEMBERS = ("additionalProperties", "unevaluatedProperties")
_OTHER_ITEMS = ("items", "additionalItems", "unevaluatedItems")
_LISTED_ITEMS = ("prefixItems", "items")
_ANCHORS = ("$anchor", "$dynamicAnchor")
_ELSEWHERE = ("$id", "$schema")

MAX_PATTERNS = 64
_MAX_EXPANSIONS = 1_000
# Work is counted in characters looked at; to apply a schema at all counts as so many, to run a pattern as so many times
# the text.
_PER_PLACE = 200
_PER_PATTERN = 100


class Unusable(Exception):
    """The schema cannot be followed, or makes too much work; the message says why."""


class _Inner:
    """The schemas for what an object or a list holds: by name or index, for whatever has none there, and for all."""

    __slots__ = ("by_key", "every", "other")

    def __init__(self) -> None:
        self.by_key: dict[str | int, _Place] = {}
        self.other: list[_Place] = []
        self.every: list[_Place] = []

    def of(self, key: str | int) -> list["_Place"]:
        """Those for one member or item."""
        return [*self.every, self.by_key[key]] if key in self.by_key else [*self.every, *self.other]

    def all(self) -> list["_Place"]:
        """Those for any."""
        return [*self.by_key.values(), *self.other, *self.every]


class _Place:
    """One schema within the schema, and which others it applies: to the same value, to what it holds, to its names."""

    __slots__ = ("here", "items", "members", "names", "patterns", "rank", "recurs", "weight")

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.here: list[_Place] = []
        self.members = _Inner()
        self.items = _Inner()
        self.names: list[_Place] = []
        named = schema.get("patternProperties")
        self.patterns = ("pattern" in schema) + (len(named) if isinstance(named, dict) else 0)
        # What is said of a fault quotes the schema.
        self.weight = _PER_PLACE + len(json.dumps(schema))
        self.rank = 0
        self.recurs = False

    def all(self) -> list["_Place"]:
        """Every schema that this one applies, anywhere."""
        return [*self.here, *self.members.all(), *self.items.all(), *self.names]


class Work:
    """Of one schema. Raises `Unusable`."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._anchors: dict[str, Mapping[str, Any]] = {}
        self._find_anchors()
        self._places: dict[int, _Place] = {}
        self._targets: set[_Place] = set()
        self._to_open: list[tuple[_Place, Mapping[str, Any]]] = []
        self._start = self._place(schema)
        while self._to_open:
            self._open(*self._to_open.pop())
        self._rank()
        for target in self._targets:
            target.recurs = self._comes_back(target)

    def exceeds(self, limit: int, value: Any, *, every_branch: bool) -> bool:
        """Whether a look at the value, of depth 32 at most, comes to more than `limit` characters.

        Validity is decided once for each value and place that refers to itself; to list what is wrong, `every_branch`
        is taken each time it is met.
        """
        work = 0
        sizes: dict[int, int] = {}
        _measure(value, sizes)
        left = [(value, {self._start: 1})]
        while left:
            value, applied = left.pop()
            size = len(value) if isinstance(value, str) else sizes.get(id(value), 1)
            names: Iterable[str | int] = ()
            matched = len(value) if isinstance(value, str) else 0
            if isinstance(value, dict):
                names, matched = value, sum(map(len, value))
            elif isinstance(value, list):
                names = range(len(value))
            inside: dict[Any, dict[_Place, int]] = defaultdict(lambda: defaultdict(int))
            for place, times in self._expanded(applied, every_branch=every_branch):
                work += times * (place.weight + size + _PER_PATTERN * place.patterns * matched)
                if work > limit:
                    return True
                for name in names:
                    for inner in (place.members if isinstance(name, str) else place.items).of(name):
                        inside[name][inner] += times
                    if isinstance(name, str):
                        left += [(name, {inner: times}) for inner in place.names]
            left += [(value[name], places) for name, places in inside.items()]
        return False

    def _expanded(self, applied: Mapping[_Place, int], *, every_branch: bool) -> Iterator[tuple[_Place, int]]:
        """The places that are applied to a value, with those that they apply to the same value in turn."""
        times = dict(applied)
        ranks = [(place.rank, id(place), place) for place in times]
        heapq.heapify(ranks)
        while ranks:
            _, _, place = heapq.heappop(ranks)
            count = 1 if place.recurs and not every_branch else times[place]
            yield place, count
            for other in place.here:
                if other not in times:
                    times[other] = 0
                    heapq.heappush(ranks, (other.rank, id(other), other))
                times[other] += count

    def _find_anchors(self) -> None:
        left: list[Any] = [self._root]
        while left:
            found = left.pop()
            if isinstance(found, list):
                left += found
            elif isinstance(found, dict):
                left += found.values()
                self._anchors |= {found[name]: found for name in _ANCHORS if isinstance(found.get(name), str)}
                if found is not self._root and any(isinstance(found.get(name), str) for name in _ELSEWHERE):
                    raise Unusable("`$id` and `$schema` may stand at the top of the schema only.")

    def _place(self, schema: Mapping[str, Any]) -> _Place:
        place = self._places.get(id(schema))
        if place is None:
            place = self._places[id(schema)] = _Place(schema)
            self._to_open.append((place, schema))
        return place

    def _open(self, place: _Place, schema: Mapping[str, Any]) -> None:
        """Find what the place applies; false and true apply nothing."""
        place.here += [self._place(s) for name in _HERE_ONE for s in _one(schema, name)]
        place.here += [self._place(s) for name in _HERE_MANY for s in _numbered(schema, name).values()]
        place.here += [self._place(s) for name in _HERE_NAMED for s in _named(schema, name).values()]
        place.members.by_key |= {name: self._place(s) for name, s in _named(schema, "properties").items()}
        place.members.other += [self._place(s) for name in _OTHER_MEMBERS for s in _one(schema, name)]
        place.members.every += [self._place(s) for s in _named(schema, "patternProperties").values()]
        place.items.by_key |= {n: self._place(s) for name in _LISTED_ITEMS for n, s in _numbered(schema, name).items()}
        place.items.other += [self._place(s) for name in _OTHER_ITEMS for s in _one(schema, name)]
        place.items.every += [self._place(s) for s in _one(schema, "contains")]
        place.names += [self._place(s) for s in _one(schema, "propertyNames")]
        for name in _REFERENCES:
            if isinstance(reference := schema.get(name), str):
                target = self._followed(reference)
                if isinstance(target, dict):
                    place.here.append(self._place(target))
                    self._targets.add(self._place(target))

    def _followed(self, reference: str) -> Any:
        if not reference.startswith("#"):
            raise Unusable(f"It refers to '{reference[:80]}'; only references within the schema are followed.")
        fragment = unquote(reference[1:])
        if fragment and not fragment.startswith("/"):
            return self._anchors.get(fragment)
        found: Any = self._root
        with suppress(LookupError, ValueError, TypeError):  # what is never applied may refer to nothing
            for step in fragment.split("/")[1:]:
                name = step.replace("~1", "/").replace("~0", "~")
                found = found[int(name)] if isinstance(found, list) else found[name]
            return found
        return None

    def _rank(self) -> None:
        """Order the places so that each comes before those that it applies to the same value."""
        here = {place: place.here for place in self._places.values()}
        try:
            order = list(graphlib.TopologicalSorter(here).static_order())
        except graphlib.CycleError:
            raise Unusable("A part of it refers to itself for the same value, without end.") from None
        expansions: dict[_Place, int] = {}
        for n, place in enumerate(order):
            place.rank = -n
            expansions[place] = 1 + sum(expansions[other] for other in place.here)
            if expansions[place] > _MAX_EXPANSIONS:
                raise Unusable(f"It looks at one value in more than {_MAX_EXPANSIONS:,} ways.")
        self.patterns = sum(place.patterns for place in order)
        if self.patterns > MAX_PATTERNS:
            raise Unusable(f"It has more than {MAX_PATTERNS} patterns.")

    def _comes_back(self, target: _Place) -> bool:
        seen: set[_Place] = set()
        left = list(target.all())
        while left:
            place = left.pop()
            if place is target:
                return True
            if place not in seen:
                seen.add(place)
                left += place.all()
        return False


def _measure(value: Any, sizes: dict[int, int]) -> int:
    """About how many characters the value takes; `sizes` gets those of each object and list within it."""
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, dict):
        sizes[id(value)] = 2 + sum(len(name) + 4 + _measure(inner, sizes) for name, inner in value.items())
    elif isinstance(value, list):
        sizes[id(value)] = 2 + sum(1 + _measure(inner, sizes) for inner in value)
    else:
        return 8
    return sizes[id(value)]


def _one(schema: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = schema.get(name)
    return [found] if isinstance(found, dict) else []


def _numbered(schema: Mapping[str, Any], name: str) -> dict[int, Mapping[str, Any]]:
    found = schema.get(name)
    return {n: s for n, s in enumerate(found) if isinstance(s, dict)} if isinstance(found, list) else {}


def _named(schema: Mapping[str, Any], name: str) -> dict[str, Mapping[str, Any]]:
    found = schema.get(name)
    return {key: s for key, s in found.items() if isinstance(s, dict)} if isinstance(found, dict) else {}
