"""A recycled database is as new: rows, sequences and sessions of the test before are gone, what the schema began with is back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from sennit.testing.servers import PostgresServer
from tests.servers import Databases, GivenPostgres

SCHEMA = """
CREATE TABLE meta (name text PRIMARY KEY, value int);
CREATE TABLE task (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text);
CREATE TABLE child (id bigint REFERENCES task);
INSERT INTO meta VALUES ('version', 3);
INSERT INTO task (note) VALUES ('the first');
"""


@pytest.fixture
def small(start_postgres: Callable[..., PostgresServer]) -> Iterator[Databases]:
    def prepare(url: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(SCHEMA.encode())

    small = Databases(GivenPostgres(start_postgres().url), prepare)
    yield small
    small.close()


def rows(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(sql.encode()).fetchall()


def test_rows_and_sequences_are_as_after_the_schema_was_made(small: Databases) -> None:
    with psycopg.connect(small.recycled(), autocommit=True) as connection:
        connection.execute("INSERT INTO task (note) VALUES ('mine'), ('too')")
        connection.execute("INSERT INTO child VALUES (1)")
        connection.execute("UPDATE meta SET value = 4")

    url = small.recycled()

    assert rows(url, "SELECT id, note FROM task") == [(1, "the first")]
    assert rows(url, "SELECT * FROM meta") == [("version", 3)]
    assert rows(url, "SELECT * FROM child") == []
    assert rows(url, "INSERT INTO task (note) VALUES ('next') RETURNING id") == [(2,)]


def test_a_session_left_over_is_ended_with_its_locks(small: Databases) -> None:
    with psycopg.connect(small.recycled()) as left_over:
        left_over.execute("LOCK TABLE task")

        url = small.recycled()

        assert rows(url, "SELECT count(*) FROM task") == [(1,)]
        with pytest.raises(psycopg.OperationalError):
            left_over.execute("SELECT 1")


def test_fresh_databases_are_apart_and_dropped_while_in_use(small: Databases) -> None:
    first, second = small.fresh(), small.fresh()
    empty = small.fresh(template="template1")
    rows(first, "INSERT INTO task (note) VALUES ('mine') RETURNING id")

    assert rows(second, "SELECT count(*) FROM task") == [(1,)]
    assert rows(empty, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    with psycopg.connect(first):
        small.drop_fresh()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(first)


def test_a_given_server_is_left_as_it_was(small: Databases) -> None:
    url = small.recycled()
    small.fresh()
    server = small._postgres

    small.close()

    assert rows(server.url, "SELECT datname FROM pg_database WHERE datname LIKE 'sennit\\_test%'") == []
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)
