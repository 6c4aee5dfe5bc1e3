"""Opening a store that must be there: looking at a database never makes one, nor changes its schema."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sennit.errors import SchemaMismatch, StoreUnavailable, UsageError
from sennit.model.settings import Settings
from sennit.runtime.config import load
from sennit.runtime.stores import is_postgres, open_store, sqlite_path
from sennit.store.connect import SqliteFile
from sennit.store.migrate import LATEST, pending, refuse_newer, version_of
from sennit.store.protocol import Store
from sennit.store.reader import Reader
from sennit.store.urls import without_password


def settings_here() -> Settings:
    """Return the settings of a command that has no app.

    Raises:
        SettingsError: a file or variable is wrong.
    """
    return load({}, environ=os.environ, folder=Path.cwd()).settings


@contextmanager
def existing(url: str) -> Iterator[Store]:
    """Open the store of `url`, which must exist and be of this version.

    Raises:
        StoreError: it is missing, empty, of another version, or cannot be reached or read; each says what to do.
    """
    schema, shown = schema_of(url), without_password(url)
    if schema.found == 0:
        raise StoreUnavailable(
            f"{schema.name} has no tables of sennit", why="it is empty or belongs to another program", fix=_begin(shown)
        )
    if schema.found < schema.latest:
        raise SchemaMismatch(
            f"{schema.name} has schema {schema.found} and this sennit needs {schema.latest}",
            why="an older sennit made it, and a command that only looks changes nothing",
            fix=f"sennit db migrate --db {shown}",
        )
    with closing(open_store(url, settings_here(), works=False)) as store:
        yield store


def existing_path(url: str) -> Path:
    """Return the file of `url`.

    Raises:
        StoreUnavailable: there is no such file.
        UsageError: a store in memory cannot be looked at from here.
    """
    if url == "memory://":
        raise UsageError(
            "a store in memory cannot be looked at from another process",
            fix="use a file: --db sqlite:///fleet.db",
        )
    path = sqlite_path(url)
    if not path.is_file():
        raise StoreUnavailable(
            f"there is no database {path}",
            why="it is made by the first submit or worker, or this is another working directory",
            fix=_begin(url),
        )
    return path


@dataclass(frozen=True, slots=True)
class Schema:
    """How new the tables of a database are.

    Attributes:
        name: of the database, for people.
        found: the version; 0 is a database without our tables.
        latest: what this sennit needs.
    """

    name: str
    found: int
    latest: int


def schema_of(url: str) -> Schema:
    """Return how new a database is, which must be there.

    Raises:
        StoreError: it cannot be reached or read, or is newer than this sennit.
    """
    if is_postgres(url):
        from sennit.cli.opening_postgres import schema_of_server

        return schema_of_server(url)
    path = existing_path(url)
    with reading(url) as reader:
        reader.put(lambda connection: refuse_newer(connection, path)).result()
        return Schema(str(path), reader.put(version_of).result(), LATEST)


def pending_of(url: str) -> list[tuple[int, str, str]]:
    """Return the migrations that a database lacks: (version, name, script)."""
    if is_postgres(url):
        from sennit.cli.opening_postgres import pending_of_server

        return pending_of_server(url)
    with reading(url) as reader:
        return reader.put(pending).result()


def reading(url: str) -> closing[Reader]:
    """Open a database for reading only; what its driver says comes out as store errors."""
    if is_postgres(url):
        from sennit.cli.opening_postgres import server_of

        return closing(Reader(server_of(url)))
    return closing(Reader(SqliteFile(existing_path(url), lock_timeout_s=settings_here().lock_timeout_s)))


def _begin(url: str) -> str:
    return f"name another with --db, or make it: sennit db init --db {url}"
