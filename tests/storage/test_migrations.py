"""The migrations: up, down and up again, equal to the tables, and run by one process at a time."""

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.domain.errors import ConfigurationError, StorageUnavailable
from app.storage import migrate
from app.storage.engines import make_sync_engine, parse_url
from app.storage.tables import metadata
from tests.databases import KINDS, Databases
from tests.service_process import environment
from tests.sizes import sizes

MIGRATE_WHEN_TOLD = """
import sys
from app.storage import migrate
print("ready", flush=True)
for line in sys.stdin:
    migrate.upgrade(line.strip())
    print(migrate.is_current(line.strip()), flush=True)
"""


def tables_in(url: str) -> set[str]:
    engine = make_sync_engine(parse_url(url))
    with engine.connect() as connection:
        found = set(sa.inspect(connection).get_table_names())
    engine.dispose()
    return found - {"alembic_version"}


def differences(url: str) -> list[object]:
    engine = make_sync_engine(parse_url(url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        found: list[object] = list(compare_metadata(context, metadata))
    engine.dispose()
    return found


def indexes_in(url: str) -> dict[str, str]:
    """Their definitions: Alembic compares neither the condition of a partial index nor its order."""
    query = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        "postgresql": "SELECT indexname AS name, indexdef AS sql FROM pg_indexes WHERE schemaname = 'public'",
    }
    engine = make_sync_engine(parse_url(url))
    with engine.connect() as connection:
        found = {row.name: row.sql for row in connection.execute(sa.text(query[engine.dialect.name]))}
    engine.dispose()
    return {name: " ".join(sql.split()) for name, sql in found.items() if not name.startswith("alembic")}


def test_the_migrations_make_every_table_and_take_all_away_again(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url)
    assert tables_in(empty_database_url) == set(metadata.tables)
    migrate.downgrade(empty_database_url, "base")
    assert tables_in(empty_database_url) == set()
    migrate.upgrade(empty_database_url)
    assert tables_in(empty_database_url) == set(metadata.tables)


def test_what_the_migrations_make_equals_the_tables(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url)
    assert differences(empty_database_url) == []


def test_the_migrations_make_the_very_indexes_of_the_tables(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url)
    migrated = indexes_in(empty_database_url)
    migrate.downgrade(empty_database_url, "base")
    engine = make_sync_engine(parse_url(empty_database_url))
    metadata.create_all(engine)
    engine.dispose()
    assert migrated == indexes_in(empty_database_url)


def test_upgrading_twice_changes_nothing(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url)
    migrate.upgrade(empty_database_url)
    assert differences(empty_database_url) == []


def test_there_is_one_head() -> None:
    assert len(ScriptDirectory.from_config(migrate.config()).get_heads()) == 1


def test_a_database_is_current_only_at_the_newest_schema(empty_database_url: str) -> None:
    seen = [migrate.is_current(empty_database_url)]
    migrate.upgrade(empty_database_url)
    seen.append(migrate.is_current(empty_database_url))
    migrate.downgrade(empty_database_url, "base")
    seen.append(migrate.is_current(empty_database_url))
    assert seen == [False, True, False]


def test_a_database_of_a_newer_version_is_named_so(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url)
    engine = make_sync_engine(parse_url(empty_database_url))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    for do in (migrate.upgrade, migrate.is_current):
        with pytest.raises(ConfigurationError, match=r"newer Planwave .*9999"):
            do(empty_database_url)


def test_a_database_that_cannot_be_reached_is_named_so(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/missing/planwave.db", f"postgresql://nobody@/none?host={tmp_path}"):
        with pytest.raises(StorageUnavailable):
            migrate.upgrade(url)
        with pytest.raises(StorageUnavailable):
            migrate.is_current(url)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("databases_in_turn", sizes(3, 30))
def test_two_processes_that_migrate_at_once_both_succeed(
    databases: Databases, kind: str, databases_in_turn: int
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE_WHEN_TOLD],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for _ in range(2)
    ]
    said = []
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for _ in range(databases_in_turn):
        with databases.fresh(kind, migrated=False) as url:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{url}\n")
            for process in processes:
                assert process.stdout is not None
                said.append(process.stdout.readline())
            assert differences(url) == []
    ended = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [errors for _, errors in ended]
    assert said == ["True\n"] * 2 * databases_in_turn
