"""Statements of the hottest writer: written in Core, compiled once, run on the driver's own cursor.

SQLAlchemy's way through a compiled statement costs several times what the driver's does, and waits for each answer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.compiler import SQLCompiler

from app.storage.faults import is_read_only

Row = Mapping[str, Any]


class Statement:
    """An INSERT or UPDATE whose parameters are those of its rows; all rows of a call have the same ones."""

    def __init__(self, statement: sa.sql.dml.UpdateBase) -> None:
        self._statement = statement
        self._compiled: dict[tuple[str, frozenset[str]], _Compiled] = {}

    def write(self, connection: sa.Connection, rows: Sequence[Row]) -> None:
        """Run it once for each row."""
        compiled = self._for(connection, rows[0])
        with errors_named(connection), closing(connection.connection.cursor()) as cursor:
            # A single row needs no executemany, which costs the drivers more.
            if len(rows) == 1:
                cursor.execute(compiled.sql, compiled.parameters(rows[0]))
            else:
                cursor.executemany(compiled.sql, [compiled.parameters(row) for row in rows])

    def ask(self, connection: sa.Connection, row: Row) -> Callable[[], Sequence[Any] | None]:
        """Run it for a row; the function gives the row that it returns, or None. Several may be asked before one is."""
        compiled = self._for(connection, row)
        with errors_named(connection):
            cursor = connection.connection.cursor()
            cursor.execute(compiled.sql, compiled.parameters(row))

        def answer() -> Sequence[Any] | None:
            with errors_named(connection), closing(cursor):
                found: Sequence[Any] | None = cursor.fetchone()
            return found

        return answer

    def _for(self, connection: sa.Connection, row: Row) -> "_Compiled":
        key = (connection.dialect.name, frozenset(row))
        if key not in self._compiled:
            self._compiled[key] = _Compiled(self._statement, connection.dialect, row)
        return self._compiled[key]


class _Compiled:
    """For one dialect and one set of parameters."""

    def __init__(self, statement: sa.sql.dml.UpdateBase, dialect: sa.Dialect, row: Row) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=sorted(row))
        self.sql = str(compiled)
        self._order = compiled.positiontup
        self._fixed = {name: value for name, value in compiled.params.items() if name not in row}
        processors = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in _binds(compiled)}
        self._processors = {name: process for name, process in processors.items() if process is not None}
        for name in self._fixed.keys() & self._processors.keys():
            self._fixed[name] = self._processors.pop(name)(self._fixed[name])

    def parameters(self, row: Row) -> Any:
        """As the driver takes them."""
        named = {**self._fixed, **row}
        for name, process in self._processors.items():
            named[name] = process(named[name])
        return named if self._order is None else [named[name] for name in self._order]


@contextmanager
def in_one_go(connection: sa.Connection) -> Iterator[None]:
    """Have a blocking connection to PostgreSQL send statements without waiting for the answers to those before."""
    if connection.dialect.name != "postgresql" or connection.dialect.is_async:
        yield
        return
    driver: Any = connection.connection.driver_connection
    with errors_named(connection), driver.pipeline():
        yield


@contextmanager
def errors_named(connection: sa.Connection) -> Iterator[None]:
    """Raise the driver's errors as SQLAlchemy does; a connection that is lost goes back to no pool."""
    dialect = connection.dialect
    drivers = dialect.loaded_dbapi.Error
    try:
        yield
    except drivers as error:
        lost = is_read_only(error) or dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
        if lost:
            connection.invalidate(error)
        raise sa.exc.DBAPIError.instance(
            None, None, error, drivers, hide_parameters=True, connection_invalidated=lost, dialect=dialect
        ) from error


def _binds(compiled: SQLCompiler) -> Iterator[tuple[str, sa.BindParameter[Any]]]:
    for bind, name in compiled.bind_names.items():
        yield name, bind
