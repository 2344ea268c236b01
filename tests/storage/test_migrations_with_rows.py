"""Each migration up, down and up again, with rows: what both schemas can hold is the same afterwards."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

from app.storage import migrate
from app.storage.engines import make_sync_engine, parse_url
from tests.sizes import sizes
from tests.storage.filled import checksums, columns_of, fill

REVISIONS = [script.revision for script in ScriptDirectory.from_config(migrate.config()).walk_revisions()][::-1]
SEED = 20_261


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[sa.Engine]:
    made = make_sync_engine(parse_url(empty_database_url))
    yield made
    made.dispose()


@pytest.mark.parametrize("runs", sizes(200, 10_000))
@pytest.mark.parametrize(("older", "newer"), list(pairwise(REVISIONS)))
def test_rows_outlast_a_migration_up_down_and_up_again(
    empty_database_url: str, engine: sa.Engine, older: str, newer: str, runs: int
) -> None:
    """Half of them are from before the migration, half from after it. What only the newer schema holds is lost."""
    migrate.upgrade(empty_database_url, older)
    of_both = columns_of(engine)
    fill(engine, runs=runs // 2, seed=SEED)
    before = checksums(engine, of_both)
    migrate.upgrade(empty_database_url, newer)
    assert checksums(engine, of_both) == before, f"seed {SEED}"

    fill(engine, runs=runs - runs // 2, seed=SEED + 1)
    before = checksums(engine, of_both)
    assert before["runs"].startswith(f"{runs} rows")
    migrate.downgrade(empty_database_url, older)
    assert columns_of(engine) == of_both
    assert checksums(engine, of_both) == before, f"seed {SEED}"
    migrate.upgrade(empty_database_url, newer)
    assert checksums(engine, of_both) == before, f"seed {SEED}"


def test_alembic_finds_nothing_to_generate(empty_database_url: str, engine: sa.Engine) -> None:
    migrate.upgrade(empty_database_url)
    with engine.connect() as connection:
        config = migrate.config()
        config.attributes["connection"] = connection
        command.check(config)
