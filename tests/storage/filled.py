"""Rows in every table of a schema of any revision, drawn from a seed, and a checksum over them."""

import hashlib
import json
import random
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from app.storage.tables import metadata

Row = dict[str, Any]
_ROWS_AT_ONCE = 2_000
_PER_RUN = 2
"""Rows of each table that belongs to runs, for each run."""


def fill(engine: sa.Engine, *, runs: int, seed: int) -> None:
    """Put `runs` runs, with rows of every other table, into the tables. Every column has values, some NULL.

    A column that today's schema has no more is filled by its type in the database.
    """
    draw = random.Random(seed)
    keys: dict[str, list[Row]] = {}
    with engine.begin() as connection:
        for table in _tables(connection):
            of_runs = table.name not in ("goals", "runs")
            rows = list(_rows(table, runs * (_PER_RUN if of_runs else 1), keys, draw))
            keys[table.name] = [{column.name: row[column.name] for column in table.primary_key} for row in rows]
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                connection.execute(sa.insert(table), rows[start : start + _ROWS_AT_ONCE])


def checksums(engine: sa.Engine, columns: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """By table: how many rows it has, and a digest of these columns of all of them."""
    found = {}
    with engine.connect() as connection:
        for table in _tables(connection):
            if table.name not in columns:
                continue
            digest, count = hashlib.sha256(), 0
            wanted = [table.c[name] for name in sorted(columns[table.name])]
            query = sa.select(*wanted).order_by(*table.primary_key.columns)
            for row in connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(query):
                digest.update(json.dumps(list(row), default=str, sort_keys=True).encode())
                count += 1
            found[table.name] = f"{count} rows, {digest.hexdigest()}"
    return found


def columns_of(engine: sa.Engine) -> dict[str, list[str]]:
    """The columns of every table but Alembic's own."""
    with engine.connect() as connection:
        return {table.name: [column.name for column in table.c] for table in _tables(connection)}


def _tables(connection: sa.Connection) -> list[sa.Table]:
    """As they are in the database, those that others refer to first; with our types where we know the column."""
    found = sa.MetaData()
    found.reflect(connection)
    tables = [table for table in found.sorted_tables if table.name != "alembic_version"]
    for table in tables:
        ours = metadata.tables.get(table.name)
        for column in table.c:
            if ours is not None and column.name in ours.c:
                column.type = ours.c[column.name].type
    return tables


def _rows(table: sa.Table, count: int, keys: Mapping[str, list[Row]], draw: random.Random) -> Iterator[Row]:
    for number in range(count):
        row = {column.name: _value(column, number, draw) for column in table.c}
        for constraint in table.foreign_key_constraints:
            parents = keys[constraint.referred_table.name]
            parent = parents[number % len(parents)]
            row.update({part.parent.name: parent[part.column.name] for part in constraint.elements})
        yield row


def _value(column: sa.Column[Any], number: int, draw: random.Random) -> Any:
    if column.nullable and draw.random() < 0.3:
        return None
    text = "".join(draw.choices("abc ÄÖ'\"\\{}[]🙂\n", k=draw.randint(0, 12)))
    match column.type:
        case sa.Uuid():
            return uuid.UUID(int=draw.getrandbits(128), version=4)
        case sa.Boolean():
            return draw.random() < 0.5
        case sa.BigInteger():
            return draw.getrandbits(53)
        case sa.Integer():  # keys and positions are among these: each its own
            return number
        case sa.JSON():
            return {"text": text, "number": draw.getrandbits(40), "list": [None, True, 0.5]}
        case sa.String(length=int(length)):
            return f"{number} {draw.getrandbits(20)} {text}"[:length]
        case sa.String():
            return f"{number} {text}"
        case other:
            raise NotImplementedError(f"{column} is of a type that is never drawn: {other!r}")
