"""The databases that tests get."""

import psycopg

from tests.postgres import Postgres


def test_fresh_databases_do_not_share_tables(postgres: Postgres) -> None:
    with postgres.fresh_database() as one, postgres.fresh_database() as other:
        with psycopg.connect(one) as connection:
            connection.execute("CREATE TABLE here (id int)")
        with psycopg.connect(other) as connection:
            row = connection.execute("SELECT to_regclass('here')").fetchone()
    assert row == (None,)


def test_a_copy_of_a_template_holds_what_the_template_holds(postgres: Postgres) -> None:
    with postgres.fresh_database() as template:
        with psycopg.connect(template) as connection:
            connection.execute("CREATE TABLE here AS SELECT 7 AS id")
        with postgres.fresh_database(template=template) as copy, psycopg.connect(copy) as connection:
            assert connection.execute("SELECT id FROM here").fetchone() == (7,)


def test_a_fresh_database_is_gone_afterwards(postgres: Postgres) -> None:
    with postgres.fresh_database() as url, psycopg.connect(url) as connection:
        (name,) = connection.execute("SELECT current_database()").fetchone() or (None,)
    with postgres.fresh_database() as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None
