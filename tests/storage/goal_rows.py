"""Rows of goals, without all that belongs to a goal."""

from typing import Any

import sqlalchemy as sa

from app.storage import tables
from app.storage.database import Database, new_id
from tests.stored import T


def insert_goal(**columns: Any) -> sa.Insert:
    """A statement that writes one."""
    row = {"tenant_id": T, "id": new_id(), "goal": "Find out", "metadata": {}, "created_at": 0, **columns}
    return sa.insert(tables.goals).values(**row)


async def count_goals(database: Database) -> int:
    """How many there are."""
    async with database.read() as connection:
        return (await connection.execute(sa.select(sa.func.count()).select_from(tables.goals))).scalar_one()
