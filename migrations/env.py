"""Runs the migrations over a connection that is handed in, or over PLANWAVE_DATABASE_URL."""

import sqlalchemy as sa
from alembic import context

from app.settings import Settings
from app.storage.engines import make_sync_engine, parse_url
from app.storage.migrate import locked, use_wal
from app.storage.tables import metadata


def migrate(connection: sa.Connection) -> None:
    """Run what the command asks for over this connection."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        compare_type=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if isinstance(given, sa.Connection):
    migrate(given)
else:
    engine = make_sync_engine(parse_url(Settings().database_url))
    with engine.connect() as own:
        use_wal(own)
        with locked(own):
            migrate(own)
    engine.dispose()
