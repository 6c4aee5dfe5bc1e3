"""PostgreSQL and Redis for the tests: which server a run uses, and a clean database for every test.

    SENNIT_TEST_POSTGRES, SENNIT_TEST_REDIS   a URL: that server is used, databases of ours are made and dropped in it
    otherwise                                 a server of our own per test process (sennit.testing.servers)
    neither can be had                        with CI=true the tests fail, elsewhere they are skipped and say why

A database per test is either *recycled* (its rows are put back as they were, 3 ms, one database for a whole run) or
*fresh* (copied from a template, 30 ms, for tests whose processes outlive a surprise).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from sennit.errors import StoreUnavailable
from sennit.testing.servers import find_postgres, find_redis

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")  # workers may share a server that was given to us
TEMPLATE = f"sennit_test_{WORKER}_template"
RECYCLED = f"sennit_test_{WORKER}_recycled"

# Everything that is reset, with the schemas that are not.
OURS = "nspname NOT IN ('pg_catalog', 'information_schema', 'sennit_test') AND nspname NOT LIKE 'pg\\_%'"

OTHERS = """SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""

# Remembers the rows and sequences of the database as it is now, and how to get back there. A table without a page is
# passed over and one without rows only looked at, so that a reset costs what the test has written. Other sessions are
# ended: a test's left-overs must neither hold a lock now nor be told of the next test's rows.
REMEMBER = f"""
CREATE SCHEMA sennit_test;
CREATE TABLE sennit_test.sequence (name text, last_value bigint, is_called boolean);
CREATE TABLE sennit_test.seeded (name text, copy text);
DO $do$
DECLARE
  found record;
BEGIN
  FOR found IN SELECT c.oid, c.oid::regclass AS name, relkind FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
               WHERE relkind IN ('r', 'S') AND {OURS}
  LOOP
    IF found.relkind = 'r' AND pg_relation_size(found.oid) > 0 THEN
      EXECUTE format('CREATE TABLE sennit_test.%I AS TABLE %s', 'seed_' || found.oid, found.name);
      INSERT INTO sennit_test.seeded VALUES (found.name, format('sennit_test.%I', 'seed_' || found.oid));
    ELSIF found.relkind = 'S' THEN
      EXECUTE format('INSERT INTO sennit_test.sequence SELECT %L, last_value, is_called FROM %s', found.name, found.name);
    END IF;
  END LOOP;
END $do$;
CREATE FUNCTION sennit_test.reset() RETURNS void LANGUAGE plpgsql AS $function$
DECLARE
  found record;
  filled boolean;
BEGIN
  PERFORM pg_terminate_backend(pid) FROM ({OTHERS}) AS others;
  SET LOCAL session_replication_role = replica;
  FOR found IN SELECT c.oid, c.oid::regclass AS name FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
               WHERE relkind = 'r' AND {OURS} AND pg_relation_size(c.oid) > 0
  LOOP
    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', found.name) INTO filled;
    IF filled THEN
      EXECUTE format('DELETE FROM %s', found.name);
    END IF;
  END LOOP;
  FOR found IN SELECT name, copy FROM sennit_test.seeded
  LOOP
    EXECUTE format('INSERT INTO %s OVERRIDING SYSTEM VALUE TABLE %s', found.name, found.copy);
  END LOOP;
  PERFORM setval(name::regclass, last_value, is_called) FROM sennit_test.sequence;
END $function$;
"""


class Postgres(Protocol):
    """What tests need of a PostgreSQL server, whoever has started it."""

    @property
    def url(self) -> str:
        """Of a database to connect to; not to write in."""

    def create_database(self, name: str, *, template: str = "template1") -> str:
        """Make a database and return its URL."""

    def drop_database(self, name: str) -> None:
        """Remove a database if there is one."""


class GivenPostgres:
    """A server that runs anyway; its databases whose names start with `sennit_test_` are ours."""

    def __init__(self, url: str) -> None:
        self.url = url

    def create_database(self, name: str, *, template: str = "template1") -> str:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def drop_database(self, name: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())


class Databases:
    """Databases with the store's schema: one that is recycled, and fresh ones.

    Args:
        prepare: makes the schema in the database of a URL.
    """

    def __init__(self, postgres: Postgres, prepare: Callable[[str], None]) -> None:
        self._postgres = postgres
        self._n = 0
        self._recycled: tuple[str, psycopg.Connection] | None = None
        self._drop(TEMPLATE)
        url = postgres.create_database(TEMPLATE)
        prepare(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(REMEMBER.encode())
            # A database with sessions cannot be copied; one that `prepare` has just closed may take its time.
            connection.execute(f"SELECT pg_terminate_backend(pid) FROM ({OTHERS}) AS others".encode())

    def recycled(self) -> str:
        """Return the URL of the one database that tests use after each other, as if it were new."""
        if self._recycled is None:
            self._drop(RECYCLED)
            url = self._postgres.create_database(RECYCLED, template=TEMPLATE)
            self._recycled = url, psycopg.connect(url, autocommit=True)
        url, connection = self._recycled
        connection.execute("SELECT sennit_test.reset()")
        return url

    def fresh(self, *, template: str = TEMPLATE) -> str:
        """Return the URL of a database that nobody has used; `template1` makes it empty. It lasts until `drop_fresh`."""
        self._n += 1
        name = f"sennit_test_{WORKER}_{self._n}"
        self._drop(name)
        return self._postgres.create_database(name, template=template)

    def drop_fresh(self) -> None:
        """Remove the fresh ones, whoever still uses them."""
        for n in range(self._n, 0, -1):
            self._drop(f"sennit_test_{WORKER}_{n}")
        self._n = 0

    def close(self) -> None:
        """Remove all."""
        self.drop_fresh()
        if self._recycled is not None:
            self._recycled[1].close()
            self._drop(RECYCLED)
        self._drop(TEMPLATE)

    def _drop(self, name: str) -> None:
        self._postgres.drop_database(name)


def postgres_programs() -> Path:
    """Return where PostgreSQL is, or end the test because it is missing."""
    try:
        return find_postgres()
    except StoreUnavailable as error:
        _missing(error)


def redis_program() -> Path:
    """Return where Redis is, or end the test because it is missing."""
    try:
        return find_redis()
    except StoreUnavailable as error:
        _missing(error)


def _missing(error: StoreUnavailable) -> NoReturn:
    """In CI a missing server is a failure, on a laptop a reason to skip."""
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(f"{error}\n  CI=true: what cannot be tested must not pass", pytrace=False)
    pytest.skip(str(error).splitlines()[0])
