"""One way to open the SQLite file, and one way to say what is wrong with it.

`sqlite3` raises the same two exceptions for a dozen causes; `explain` turns them into the store's own errors, with
what, why and fix, by SQLite's result code.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from contextlib import suppress
from pathlib import Path

from sennit.errors import SennitError, StoreCorrupt, StoreError, StoreFull, StoreLocked, StoreUnavailable
from sennit.store.database import Connection
from sennit.store.moved import said_closed

# SQLite's file locks do not hold there. Source: sqlite.org/wal.html, "does not work over a network filesystem".
NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "fuse.sshfs", "9p", "lustre", "beegfs"}
)

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_UNAVAILABLE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}


class SqliteFile:
    """One file, as `database.Backend`."""

    begin = "BEGIN IMMEDIATE"
    begin_read = "BEGIN"

    def __init__(self, path: Path, *, durability: str = "full", lock_timeout_s: float = 30.0) -> None:
        self.path = path
        self._durability = durability
        self._lock_timeout_s = lock_timeout_s

    def connect(self, *, read_only: bool = False) -> sqlite3.Connection:
        """Open one more connection.

        Raises:
            StoreError: it cannot be opened.
        """
        return connect(self.path, durability=self._durability, lock_timeout_s=self._lock_timeout_s, read_only=read_only)

    def closed(self) -> StoreUnavailable:
        """Return the error of a call that came after `close`."""
        return closed(self.path)

    def explain(self, error: BaseException) -> BaseException:
        """Return the store's own error for one of SQLite or the operating system; any other as it is."""
        foreign = isinstance(error, (sqlite3.Error, OSError)) and not isinstance(error, SennitError)
        return explain(error, self.path) if foreign else error

    def is_passing(self, error: BaseException) -> bool:
        """Return False: what fails here fails again, until somebody does something."""
        del error
        return False

    def roll_back(self, connection: Connection) -> None:
        """End a transaction that failed, if it is still open: a full disk, or one that cannot be read, ends it."""
        if connection.in_transaction:
            with suppress(sqlite3.Error):  # what failed before is the news, and the transaction is over either way
                connection.execute("ROLLBACK")

    def may_try_again(self, connection: Connection, error: BaseException, tries: int) -> bool:
        """Return False: see `is_passing`."""
        del connection, error, tries
        return False


def connect(
    path: Path, *, durability: str = "full", lock_timeout_s: float = 30.0, read_only: bool = False
) -> sqlite3.Connection:
    """Open `path` in WAL mode, in autocommit (transactions are written out), usable from any OS thread.

    Raises:
        StoreUnavailable: it cannot be opened, or lies on a network file system.
        StoreCorrupt: it is not a SQLite database.
    """
    refuse_network_filesystem(path)
    try:
        if read_only:
            uri = f"{path.absolute().as_uri()}?mode=ro"
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        else:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    except sqlite3.Error as error:
        raise explain(error, path) from error
    try:
        connection.execute(f"PRAGMA busy_timeout = {int(lock_timeout_s * 1000)}")
        if not read_only:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise StoreUnavailable(
                    f"cannot use {path}: SQLite refused WAL mode and answered {mode!r}",
                    why="several processes share this file, which needs write-ahead logging with shared memory",
                    fix="put the database on a local disk",
                )
            _refuse_read_only(connection)
            connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
            # One checkpoint per 4 MB of log instead of per 4 KB page * 1000 would be the default; the same, written out.
            connection.execute("PRAGMA wal_autocheckpoint = 1000")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA cache_size = -16384")  # 16 MiB: the hot tables stay in memory
    except sqlite3.Error as error:
        connection.close()
        raise explain(error, path) from error
    except StoreError:
        connection.close()
        raise
    return connection


def _refuse_read_only(connection: sqlite3.Connection) -> None:
    """Try to write. SQLite opens what it may not write without a word, and even begins a transaction on it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("PRAGMA application_id = 1")
    finally:
        if connection.in_transaction:  # a full disk ends it without being asked
            connection.execute("ROLLBACK")


def explain(error: BaseException, path: Path) -> StoreError:
    """Return the store error for what `sqlite3`, or the operating system under the files beside it, raised."""
    if isinstance(error, OSError):
        return _explain_os(error, path)
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    text = str(error)
    if primary == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
        return _full(text, path)
    if primary in _CORRUPT:
        return StoreCorrupt(
            f"{path} is not a sound SQLite database: {text}",
            why="the file is of another kind, or was damaged",
            fix="look at it with `sennit db check`, or restore a backup made with `sennit db backup`",
        )
    if primary in _LOCKED:
        return StoreLocked(
            f"cannot write to {path}: {text}",
            why="another program keeps a write transaction open for longer than lock_timeout_s",
            fix="close what holds it (a database browser?), or raise lock_timeout_s",
        )
    if primary in _UNAVAILABLE:
        return _unavailable(text, path)
    if primary == sqlite3.SQLITE_CONSTRAINT and (moved := said_closed(text, f"sqlite:///{path}")) is not None:
        return moved
    if primary == sqlite3.SQLITE_IOERR:
        return StoreError(
            f"reading or writing {path} failed: {text}",
            why="the operating system reported an input/output error",
            fix="check the disk; then `sennit db check`",
        )
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in text:
        return closed(path)
    return StoreError(f"SQLite refused an operation on {path}: {text}")


def _explain_os(error: OSError, path: Path) -> StoreError:
    text = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return _full(text, path)
    if error.errno in _NO_ACCESS:
        return _unavailable(text, path)
    return StoreError(f"a file beside {path} failed: {text}", fix="check the disk; then `sennit db check`")


def _full(text: str, path: Path) -> StoreFull:
    return StoreFull(
        f"cannot write to {path}: {text}",
        why="the disk or the database's size limit is full; the transaction was rolled back",
        fix="free space; what was not acknowledged can be submitted again",
    )


def _unavailable(text: str, path: Path) -> StoreUnavailable:
    return StoreUnavailable(
        f"cannot open {path} for writing: {text}",
        why=_why_unavailable(path),
        fix="give this user write access to the file and its folder, or choose another with --db",
    )


def closed(path: object) -> StoreUnavailable:
    """Return the error of a call that came after `close`."""
    return StoreUnavailable(f"the store {path} is closed", fix="use it inside `with app`, or open a new App")


def _why_unavailable(path: Path) -> str:
    folder = path.parent
    if not folder.exists():
        return f"the folder {folder} does not exist"
    if path.is_dir():
        return "it is a folder"
    if path.exists() and not os.access(path, os.W_OK):
        return "the file is read-only for this user"
    if not os.access(folder, os.W_OK):
        return f"the folder {folder} is read-only for this user, and SQLite must create files beside the database"
    return "the file system refuses it"


def filesystem_of(path: Path, mounts: str | None = None) -> str:
    """Return the type of the file system that holds `path`, or "" where /proc does not say.

    Args:
        mounts: the text of /proc/mounts; an argument, so that a test can give one.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    where = path.resolve()  # a link may lead from a local disk to a network one
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:  # device, mount point, type
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1]))
        if where.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def refuse_network_filesystem(path: Path, mounts: str | None = None) -> None:
    """Raise StoreUnavailable when `path` is on a file system whose locks SQLite cannot trust."""
    kind = filesystem_of(path, mounts)
    if kind in NETWORK_FILESYSTEMS:
        raise StoreUnavailable(
            f"{path} is on a network file system ({kind})",
            why="SQLite's locks are unreliable there, and two machines would corrupt the file",
            fix="use a path on a local disk, for example --db sqlite:////var/tmp/fleet.db",
        )
