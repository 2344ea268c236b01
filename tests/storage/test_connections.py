"""How PostgreSQL is connected to: what notices a server that vanishes, on each kind of connection."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from app.storage.database import Database
from app.storage.engines import parse_url
from app.storage.listen import listen
from tests.databases import Databases

NOTICED = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}


def parameters(connection: Any) -> Mapping[str, str]:
    """What libpq goes by on this connection of psycopg's."""
    all_: dict[str, str] = connection.info.get_parameters()
    return {name: value for name, value in all_.items() if name in NOTICED}


async def of_pool(database: Database) -> Mapping[str, str]:
    async with database.read() as connection:
        return parameters((await connection.get_raw_connection()).driver_connection)


async def of_writer(database: Database) -> Mapping[str, str]:
    def of(connection: sa.Connection) -> Mapping[str, str]:
        return parameters(connection.connection.driver_connection)

    return await database.write_in_thread(of)


async def of_listener(database: Database) -> Mapping[str, str]:
    made: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    connect = psycopg.AsyncConnection.connect

    async def watched(*args: Any, **more: Any) -> Any:
        connection = await connect(*args, **more)
        if not made.done():
            made.set_result(parameters(connection))
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.AsyncConnection, "connect", watched)
        listening = asyncio.create_task(listen(database))
        async with asyncio.timeout(30):
            found: Mapping[str, str] = await made
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
    return found


@pytest.mark.parametrize("of", [of_pool, of_writer, of_listener])
async def test_a_server_that_vanishes_is_missed_on_every_connection(databases: Databases, of: Any) -> None:
    with databases.fresh("postgresql", migrated=False) as url:
        database = Database(url, pool_size=2)
        assert await of(database) == NOTICED
        await database.close()


@pytest.mark.parametrize("of", [of_pool, of_writer, of_listener])
async def test_what_the_url_says_of_it_is_heeded(databases: Databases, of: Any) -> None:
    own = {"connect_timeout": "77", "keepalives_count": "9"}
    with databases.fresh("postgresql", migrated=False) as url:
        database = Database(sa.make_url(url).update_query_dict(own).render_as_string(hide_password=False), pool_size=2)
        assert await of(database) == {**NOTICED, **own}
        await database.close()


def test_a_file_has_no_such_parameters() -> None:
    assert not parse_url("sqlite:///planwave.db").query
