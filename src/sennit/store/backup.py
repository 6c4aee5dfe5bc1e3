"""A copy of the database while others write to it: one read transaction, so the copy is of one moment.

FILE ──SQLite's backup API──► TARGET.partial ──fsync──► TARGET            a crash leaves no half backup by that name
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sennit.errors import StoreUnavailable
from sennit.store.connect import connect, explain


def backup(path: Path, target: Path) -> int:
    """Copy the database `path` to the new file `target`; return its pages. Writers are not held up.

    Raises:
        StoreUnavailable: `target` exists, or cannot be made.
        StoreError: the database cannot be read, or the disk is full; `target` is not there then.
    """
    with new_file(target) as partial:
        return _copy(path, partial)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Reserve the name of a file that must not be there; what the block writes to the path it gets is there afterwards, whole.

    Raises:
        StoreUnavailable: `target` exists, or cannot be made.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        # Made empty to reserve the name: whoever comes second is refused, and a rename would not ask.
        target.touch(exist_ok=False)
    except FileExistsError:
        raise StoreUnavailable(
            f"{target} exists already", why="a backup never overwrites", fix="name a new file, or move that one away"
        ) from None
    except OSError as error:
        raise StoreUnavailable(
            f"cannot make {target}: {error.strerror}", fix="name a file in a folder that is there"
        ) from error
    try:
        partial.unlink(missing_ok=True)
        yield partial
        _fsync(partial)
        partial.replace(target)
        _fsync(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        raise


def make_lone(path: Path) -> None:
    """Make a database that nobody uses one file: without log and lock files beside it.

    Raises:
        StoreError: somebody uses it, or the disk is full.
    """
    try:
        with closing(sqlite3.connect(path)) as connection:
            # WAL is the mode of a database in use; as a lone file it also opens where its folder is read-only.
            connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise explain(error, path) from error
    for beside in ("-pen", "-pen.gate"):
        path.with_name(path.name + beside).unlink(missing_ok=True)


def _copy(path: Path, partial: Path) -> int:
    """Copy all pages in one step: a copy in several would begin again after each commit of another process."""
    try:
        with closing(connect(path, read_only=True)) as source, closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
            # WAL is the mode of a database in use; as a lone file it also opens where its folder is read-only.
            copy.execute("PRAGMA journal_mode = DELETE")
            pages: int = copy.execute("PRAGMA page_count").fetchone()[0]
    except sqlite3.Error as error:
        raise explain(error, path) from error
    return pages


def _fsync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
