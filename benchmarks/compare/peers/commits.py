"""A floor: the raw commits, one row updated per task, no model called. What it is told as a plan is how many.

Variants: "psycopg" and "asyncpg" commit each row by itself, 16 at once; "grouped" (psycopg) 50 rows at a time.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import asyncpg  # type: ignore[import-not-found]
from psycopg_pool import AsyncConnectionPool

from benchmarks.compare.peers.peer import Setup, Walk, serve

_RESULT = "result: done. " * 17
_ROWS = 1_000
_GROUP = 50

Commit = Callable[[Sequence[int]], Awaitable[object]]
"""Writes these numbers, each into the row that it falls on."""


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Walk]:
    at_once, group = (1, _GROUP) if setup.variant == "grouped" else (16, 1)
    async with (
        AsyncConnectionPool(
            setup.database_url, min_size=16, kwargs={"autocommit": True, "prepare_threshold": 0}
        ) as pool,
        asyncpg.create_pool(setup.database_url, min_size=16, max_size=16) as asyncpg_pool,
    ):
        async with pool.connection() as connection:
            await connection.execute("create table rows (id int primary key, number int, status text, result text)")
            await connection.execute(
                "insert into rows select n, -1, 'new', '' from generate_series(0, %s) n", [_ROWS - 1]
            )

        async def psycopg_commit(numbers: Sequence[int]) -> None:
            async with pool.connection() as connection:
                await connection.execute(
                    "update rows set number = %s, status = 'done', result = %s where id = %s",
                    (numbers[0], f"{_RESULT}{numbers[0]}", numbers[0] % _ROWS),
                )

        async def asyncpg_commit(numbers: Sequence[int]) -> None:
            async with asyncpg_pool.acquire() as connection:
                await connection.execute(
                    "update rows set number = $1, status = 'done', result = $2 where id = $3",
                    *(numbers[0], f"{_RESULT}{numbers[0]}", numbers[0] % _ROWS),
                )

        async def grouped_commit(numbers: Sequence[int]) -> None:
            async with pool.connection() as connection:
                await connection.execute(
                    "update rows set number = new.number, status = 'done', result = new.result "
                    "from unnest(%s::int[], %s::int[], %s::text[]) new (id, number, result) where rows.id = new.id",
                    ([n % _ROWS for n in numbers], list(numbers), [f"{_RESULT}{n}" for n in numbers]),
                )

        commit: Commit = {"psycopg": psycopg_commit, "asyncpg": asyncpg_commit, "grouped": grouped_commit}[
            setup.variant
        ]
        written = 0  # numbers are never used again: a row set to what it holds could cost less

        async def some(groups: Iterator[Sequence[int]]) -> None:
            for numbers in groups:
                await commit(numbers)

        async def walk(plan: str) -> None:
            nonlocal written
            first, written = written, written + int(plan)
            groups = (range(at, min(at + group, written)) for at in range(first, written, group))
            await asyncio.gather(*(some(groups) for _ in range(at_once)))
            async with pool.connection() as connection:
                found = await (
                    await connection.execute("select count(*) from rows where number >= %s", [first])
                ).fetchone()
            if found != (min(int(plan), _ROWS),):
                raise RuntimeError(f"{found} rows were written")

        yield walk


if __name__ == "__main__":
    serve(opened, "psycopg", "asyncpg")
