"""Statements whose one row is wanted often: written in Core, compiled once, read from the driver's own cursor.

A run is polled, and most of what a poll costs in the database is SQLAlchemy's way through a result.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningInsert

from app.storage.statements import Statement


class Query:
    """A SELECT, or an INSERT with RETURNING, that gives one row or none."""

    def __init__(self, statement: sa.Select[Any] | ReturningInsert[Any]) -> None:
        self._statement = Statement(statement)  # type: ignore[arg-type]  # it runs a SELECT as it runs the others
        self._types = {column.name: column.type for column in statement.exported_columns}
        self._processors: dict[str, Mapping[str, Callable[[Any], Any]]] = {}

    async def one(self, connection: AsyncConnection, **values: Any) -> dict[str, Any]:
        """The row for these parameters, by the names of its columns; raises `NoResultFound`."""
        row = await self.one_or_none(connection, **values)
        if row is None:
            raise sa.exc.NoResultFound
        return row

    async def one_or_none(self, connection: AsyncConnection, **values: Any) -> dict[str, Any] | None:
        """The same, or None."""
        found = await connection.run_sync(self._fetch, values)
        if found is None:
            return None
        row = dict(zip(self._types, found, strict=True))
        for name, process in self._processors_for(connection.dialect).items():
            row[name] = process(row[name])
        return row

    def _fetch(self, connection: sa.Connection, values: Mapping[str, Any]) -> Sequence[Any] | None:
        return self._statement.ask(connection, values)()

    def _processors_for(self, dialect: sa.Dialect) -> Mapping[str, Callable[[Any], Any]]:
        if dialect.name not in self._processors:
            found = {
                name: type_.dialect_impl(dialect).result_processor(dialect, None) for name, type_ in self._types.items()
            }
            self._processors[dialect.name] = {name: process for name, process in found.items() if process is not None}
        return self._processors[dialect.name]
