"""Brings a PostgreSQL schema forward, one numbered file at a time, all in one transaction.

Forward only. Two processes that migrate at once are ordered by an advisory lock: the second finds the work done.
`sennit_meta` holds the version, so a newer schema is recognised before any other table is read.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from sennit.errors import SchemaMismatch, StoreUnavailable
from sennit.store.postgres_server import PEN
from sennit.store.sql import migrations

LATEST: Final = max(version for version, _, _ in migrations("postgres"))
SERVER_MIN: Final = 130000
_THERE: Final = "SELECT to_regclass('sennit_meta') IS NOT NULL"
_VERSION: Final = "SELECT value FROM sennit_meta WHERE name = 'schema'"
_NOTE: Final = """
INSERT INTO sennit_meta (name, value) VALUES ('schema', %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""


def version_of(connection: psycopg.Connection[Any]) -> int:
    """Return the schema version; 0 without our tables."""
    row = connection.execute(_THERE).fetchone()
    if row is None or not row[0]:
        return 0
    found = connection.execute(_VERSION).fetchone()
    return 0 if found is None else int(found[0])


def pending(connection: psycopg.Connection[Any]) -> list[tuple[int, str, str]]:
    """Return the migrations that `migrate` would run: (version, name, script)."""
    now = version_of(connection)
    return [m for m in migrations("postgres") if m[0] > now]


def migrate(connection: psycopg.Connection[Any], name: str) -> int:
    """Bring the schema to `LATEST`; return how many migrations ran.

    Args:
        name: of the database, for messages.

    Raises:
        SchemaMismatch: the tables were written by a newer sennit.
        StoreUnavailable: the server is too old, or the database does not keep UTF-8.
        psycopg.Error: the migration failed; the schema is as it was.
    """
    check_server(connection, name)
    refuse_newer(connection, name)
    if version_of(connection) == LATEST:
        return 0
    with connection.transaction():
        # By the name of the schema: the table that the pen is named by may not be there yet.
        connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(current_schema()))", (PEN + 1,))
        todo = pending(connection)  # again, under the lock: another process may have done it
        for version, _, script in todo:
            connection.execute(script.encode())
            connection.execute(_NOTE, (version,))
    return len(todo)


def check_server(connection: psycopg.Connection[Any], name: str) -> None:
    """Raise StoreUnavailable when the server is too old, or the database cannot keep every text."""
    if connection.info.server_version < SERVER_MIN:
        raise StoreUnavailable(
            f"{name} is a server of version {connection.info.server_version // 10000}",
            why="older servers get no fixes any more, and sennit was never tried on them",
            fix="use PostgreSQL 13 or newer",
        )
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise StoreUnavailable(
            f"{name} keeps text as {encoding}",
            why="texts of tasks may have any character",
            fix="make one that can: createdb --encoding UTF8 --template template0 NAME",
        )


def refuse_newer(connection: psycopg.Connection[Any], name: str) -> None:
    """Raise SchemaMismatch when the schema is newer than this program."""
    found = version_of(connection)
    if found > LATEST:
        raise SchemaMismatch(
            f"{name} has schema {found} and this sennit knows schemas up to {LATEST}",
            why="a newer sennit has used this database; an older one could damage it",
            fix="upgrade sennit, or choose another database with --db",
        )
