"""Opening a store that must be there: looking at a database never makes one, nor changes its schema."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sennit.errors import SchemaMismatch, StoreUnavailable, UsageError
from sennit.model.settings import Settings
from sennit.runtime.config import load
from sennit.runtime.stores import open_store, sqlite_path
from sennit.store.migrate import LATEST, refuse_newer, version_of
from sennit.store.protocol import Store
from sennit.store.reader import Reader


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
        StoreError: it is missing, empty, of another version, or cannot be read; each says what to do.
    """
    path = existing_path(url)
    version = schema_of(path)
    if version == 0:
        raise StoreUnavailable(
            f"{path} has no tables of sennit", why="it is empty or belongs to another program", fix=_begin(url)
        )
    if version < LATEST:
        raise SchemaMismatch(
            f"{path} has schema {version} and this sennit needs {LATEST}",
            why="an older sennit made it, and a command that only looks changes nothing",
            fix=f"sennit db migrate --db {url}",
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


def schema_of(path: Path) -> int:
    """Return the schema version in the file; 0 is a file without our tables.

    Raises:
        StoreError: it cannot be read, or is newer than this sennit.
    """
    with reading(path) as reader:
        reader.put(lambda connection: refuse_newer(connection, path)).result()
        return reader.put(version_of).result()


def reading(path: Path) -> closing[Reader]:
    """Open a file for reading only; SQLite's own errors come out as store errors."""
    return closing(Reader(path, lock_timeout_s=settings_here().lock_timeout_s))


def _begin(url: str) -> str:
    return f"name another with --db, or make it: sennit db init --db {url}"
