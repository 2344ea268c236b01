"""PostgreSQL's NOTIFY as a wake-up, on a connection of its own that comes back when cut. A hint, never the truth."""

import asyncio
from contextlib import suppress
from uuid import UUID

from app.storage.database import CHANNEL, Database

_RECONNECT_SECONDS = 2.0


async def listen(database: Database) -> None:
    """Pass on what other processes announce, until cancelled. Returns at once on SQLite, which has no NOTIFY."""
    if database.is_sqlite:
        return
    import psycopg  # noqa: PLC0415 - an extra: only who runs on PostgreSQL has it

    dsn = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                async for notification in connection.notifies():
                    kind, _, run_id = notification.payload.partition(" ")
                    with suppress(ValueError):  # anybody may notify on our channel
                        database.tell(UUID(run_id), requested=kind == "request")
        except (psycopg.Error, OSError):
            await asyncio.sleep(_RECONNECT_SECONDS)  # polling goes on meanwhile
