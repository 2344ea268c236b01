"""A migration that is killed, at whichever statement, has done nothing; it is simply run again."""

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from alembic import command
from alembic.script import ScriptDirectory

from app.storage import migrate
from app.storage.engines import make_sync_engine, parse_url
from tests.databases import KINDS, Databases
from tests.service_process import environment
from tests.sizes import sizes
from tests.storage import migrating
from tests.storage.filled import checksums, columns_of, fill

_NEWEST_FIRST = [script.revision for script in ScriptDirectory.from_config(migrate.config()).walk_revisions()]
STARTS = [*_NEWEST_FIRST[1:], "base"]
"""From where there is something to do."""
RUNS = 20


@contextmanager
def killed_at(url: str, statement: int) -> Iterator[str]:
    """What a migration says that stands still at this statement; it is killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.storage.migrating", url, str(statement)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def statements(databases: Databases, kind: str, start: str) -> int:
    with databases.fresh(kind, migrated=False) as url:
        if start != "base":
            migrate.upgrade(url, start)
        return migrating.upgrade(url, lambda _: None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kills", sizes(3, 30))
def test_a_migration_that_is_killed_has_done_nothing_and_is_run_again(
    databases: Databases, kind: str, kills: int
) -> None:
    many = {start: statements(databases, kind, start) for start in STARTS}
    for seed in range(kills):
        start = STARTS[seed % len(STARTS)]
        statement = random.Random(f"{kind} {seed}").randint(1, many[start])
        case = f"seed {seed}: from {start}, killed at statement {statement} of {many[start]}"
        with databases.fresh(kind, migrated=False) as url:
            engine = make_sync_engine(parse_url(url))
            if start != "base":
                migrate.upgrade(url, start)
                fill(engine, runs=RUNS, seed=seed)
            columns = columns_of(engine)
            before = checksums(engine, columns)
            with killed_at(url, statement) as said:
                assert said == f"at {statement}", case
            assert (columns_of(engine), checksums(engine, columns)) == (columns, before), case
            migrate.upgrade(url)
            assert checksums(engine, columns) == before, case
            with engine.connect() as connection:
                config = migrate.config()
                config.attributes["connection"] = connection
                command.check(config)
            engine.dispose()
