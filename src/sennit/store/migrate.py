"""Brings the schema forward, one numbered file at a time, all in one transaction.

Forward only. Two processes that migrate at once are ordered by SQLite's write lock: the second finds the work done.
`PRAGMA user_version` holds the version, so a newer file is recognised before any table is read.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sennit.errors import SchemaMismatch
from sennit.store.connect import explain
from sennit.store.database import Connection
from sennit.store.sql import migrations

LATEST = max(version for version, _, _ in migrations("sqlite"))


def version_of(connection: Connection) -> int:
    """Return the schema version in the file; 0 is an empty file."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def pending(connection: Connection) -> list[tuple[int, str, str]]:
    """Return the migrations that `migrate` would run: (version, name, script)."""
    now = version_of(connection)
    return [m for m in migrations("sqlite") if m[0] > now]


def migrate(connection: Connection, path: Path) -> int:
    """Bring the schema to `LATEST`; return how many migrations ran.

    Raises:
        SchemaMismatch: the file was written by a newer sennit.
        StoreError: the migration failed; the file is as it was.
    """
    try:
        refuse_newer(connection, path)
        if version_of(connection) == LATEST:
            return 0
        connection.execute("BEGIN IMMEDIATE")
        try:
            todo = pending(connection)  # again, under the lock: another process may have done it
            for version, _, script in todo:
                for statement in _split(script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk ends it without being asked
                connection.execute("ROLLBACK")
            raise
    except sqlite3.Error as error:
        raise explain(error, path) from error
    return len(todo)


def refuse_newer(connection: Connection, path: Path) -> None:
    """Raise SchemaMismatch when the file is newer than this program."""
    found = version_of(connection)
    if found > LATEST:
        raise SchemaMismatch(
            f"{path} has schema {found} and this sennit knows schemas up to {LATEST}",
            why="a newer sennit has used this file; an older one could damage it",
            fix="upgrade sennit, or choose another file with --db",
        )


def _split(script: str) -> list[str]:
    """Return the statements of a script; `executescript` would commit the transaction first."""
    found, start = [], 0
    for end, char in enumerate(script, 1):
        if char == ";" and sqlite3.complete_statement(script[start:end]):
            found.append(script[start:end])
            start = end
    return found
