"""The two ends of a copy: a store as tables, columns and rows, whatever the database; here the one in a SQLite file.

    tables()  what there is, asked of the database itself: a table that comes later cannot be forgotten
    rows()    streams a table out        fill()  streams one in        meta, floors  what a table does not show

`copying_postgres` is the other. An end belongs to one OS thread.
"""

# ruff: noqa: D102 - the promises stand in the protocol, once

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec

from sennit.errors import SchemaMismatch, StoreError, StoreUnavailable
from sennit.model.task import WorkerInfo
from sennit.store.connect import SqliteFile, connect, explain
from sennit.store.database import Connection
from sennit.store.migrate import LATEST, migrate, refuse_newer, version_of
from sennit.store.moved import NAME, Closing
from sennit.store.peers import Peers, home_of
from sennit.sync.clock import boot_id, uptime_us, wall_us
from sennit.sync.filelock import Pen

Use = Literal["read", "write", "make"]
"""What an end is opened for: `make` also makes its tables, or brings them up to date."""
Row = tuple[Any, ...]
Tables = Mapping[str, Sequence[str]]
"""Table → its columns; those that are computed from others are not among them."""

META: Final = "sennit_meta"
LEDGER: Final = "sennit_ledger"
_HASH_BYTES: Final = 16


class Tally:
    """Count and digest of a table, whatever the order of its rows: the sum of a 128-bit hash of each."""

    def __init__(self) -> None:
        self.n = 0
        self._sum = 0

    def add(self, row: Row) -> None:
        """Count one row."""
        hashed = hashlib.blake2b(msgspec.msgpack.encode(row), digest_size=_HASH_BYTES).digest()
        self._sum += int.from_bytes(hashed)
        self.n += 1

    def of(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass rows on, and count them."""
        for row in rows:
            self.add(row)
            yield row

    @property
    def digest(self) -> str:
        """The digest so far, in hex."""
        return f"{self._sum % 2 ** (8 * _HASH_BYTES):032x}"


class Side(Protocol):
    """One end of a copy.

    Attributes:
        name: its URL without a password.
        identity: what no other store has.
    """

    name: str
    identity: str

    @property
    def connection(self) -> Connection:
        """Return the connection, with the face that the moves know."""

    @property
    def plain_text(self) -> bool:
        """True when this database cannot keep the character NUL in a text: a copy into it replaces them."""

    def tables(self) -> Tables:
        """Return all tables of ours but `sennit_meta`."""

    def begin(self, *, alone: bool) -> None:
        """Begin a transaction: with the pen, so that nobody else writes until its end, or one that only reads."""

    def commit(self) -> None:
        """Make it last."""

    def roll_back(self) -> None:
        """Undo it. Harmless without one."""

    def rows(self, table: str, columns: Sequence[str]) -> Generator[Row, None, None]:
        """Stream a table out. The ledger comes without its shards."""

    def fill(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """Stream rows into a table."""

    def clear(self) -> None:
        """Remove the rows of all tables but `sennit_meta`."""

    def meta(self) -> dict[str, int | bytes]:
        """Return what is known of the store that is not of this place only."""

    def put_meta(self, facts: Mapping[str, int | bytes]) -> None:
        """Replace that."""

    def floors(self, tables: Tables) -> dict[str, int]:
        """Return table → the highest number it has ever given to a row."""

    def end_filling(self, floors: Mapping[str, int]) -> None:
        """All rows are there: let numbers that are given from now on be higher than these."""

    def shut(self, closing: Closing) -> None:
        """Refuse everybody: those who come, and those who are there."""

    def open_again(self) -> None:
        """Undo `shut`. Harmless when it is open."""

    def living(self) -> list[WorkerInfo]:
        """Return the processes that use it."""

    def now_us(self) -> int:
        """Return its clock."""

    def explain(self, error: BaseException) -> StoreError | None:
        """Return the store's own error for one of this database's driver, None for any other."""

    def close(self) -> None:
        """Give the connection up; a transaction that is open is rolled back."""


def is_local(name: str) -> bool:
    """Return whether a fact in `sennit_meta` is of this place only: schema, identity, clock, followers."""
    return name in {"schema", "store", NAME} or name.startswith(("clock:", "follow:"))


class SqliteSide:
    """A file.

    Raises:
        StoreUnavailable: it has no tables of ours.
        SchemaMismatch: they are older or newer than this sennit needs.
    """

    plain_text = False

    def __init__(self, path: Path, use: Use, *, lock_timeout_s: float = 30.0) -> None:
        self.path = path
        self.name = f"sqlite:///{path.absolute()}"
        self.identity = f"file {path.resolve()}"
        if use == "make":
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.is_file():
            raise StoreUnavailable(f"there is no database {path}", fix="name another file")
        self._pen = Pen(path.with_name(path.name + "-pen"))
        self._has_pen = False
        self.connection: sqlite3.Connection = connect(path, lock_timeout_s=lock_timeout_s, read_only=use == "read")
        try:
            refuse_newer(self.connection, path)
            if use == "make":
                with self._pen:
                    migrate(self.connection, path)
            self._check_schema()
        except BaseException:
            self.close()
            raise

    def _check_schema(self) -> None:
        found = version_of(self.connection)
        if found == 0:
            raise StoreUnavailable(f"{self.path} has no tables of sennit", why="it is empty, or of another program")
        if found < LATEST:
            raise SchemaMismatch(
                f"{self.path} has schema {found} and this sennit needs {LATEST}",
                why="an older sennit made it", fix=f"sennit db migrate --db {self.name}",
            )  # fmt: skip

    def tables(self) -> Tables:
        names = self.connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'sennit\\_%' ESCAPE '\\' ORDER BY name"
        ).fetchall()
        return {name: self._columns(name) for (name,) in names if name != META}

    def _columns(self, table: str) -> list[str]:
        columns = self.connection.execute(f"SELECT name, hidden FROM pragma_table_xinfo('{table}')").fetchall()  # noqa: S608
        return [name for name, hidden in columns if not hidden]

    # ------------------------------------------------------------ transactions

    def begin(self, *, alone: bool) -> None:
        if alone:
            self._pen.acquire()
            self._has_pen = True
        try:
            self.connection.execute(SqliteFile.begin if alone else SqliteFile.begin_read)
        except sqlite3.Error as error:
            self.roll_back()
            raise explain(error, self.path) from error

    def commit(self) -> None:
        self.connection.execute("COMMIT")
        self._drop_pen()

    def roll_back(self) -> None:
        if self.connection.in_transaction:
            with suppress(sqlite3.Error):  # what failed before is the news
                self.connection.execute("ROLLBACK")
        self._drop_pen()

    def _drop_pen(self) -> None:
        if self._has_pen:
            self._has_pen = False
            self._pen.release()

    def close(self) -> None:
        self.roll_back()
        self.connection.close()
        self._pen.close()

    # ------------------------------------------------------------ rows

    def rows(self, table: str, columns: Sequence[str]) -> Generator[Row, None, None]:
        yield from self.connection.execute(f"SELECT {', '.join(columns)} FROM {table}")  # noqa: S608 - names of ours

    def fill(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        marks = ", ".join("?" * len(columns))
        self.connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)  # noqa: S608

    def clear(self) -> None:
        for table in self.tables():
            self.connection.execute(f"DELETE FROM {table}")  # noqa: S608

    def meta(self) -> dict[str, int | bytes]:
        found: dict[str, int | bytes] = dict(self.connection.execute(f"SELECT name, value FROM {META}"))  # noqa: S608
        return {name: value for name, value in found.items() if not is_local(name)}

    def put_meta(self, facts: Mapping[str, int | bytes]) -> None:
        for name in self.meta():
            self.connection.execute(f"DELETE FROM {META} WHERE name = ?", (name,))  # noqa: S608
        self.connection.executemany(f"INSERT INTO {META} (name, value) VALUES (?, ?)", facts.items())  # noqa: S608
        # Whoever opens it next fixes the clock anew: never behind what is in the rows now.
        self.connection.execute(f"DELETE FROM {META} WHERE name LIKE 'clock:%'")  # noqa: S608

    def floors(self, tables: Tables) -> dict[str, int]:
        found = self.connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall()
        return {name: seq for name, seq in found if name in tables}

    def end_filling(self, floors: Mapping[str, int]) -> None:
        for table, floor in floors.items():
            (script,) = self.connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
            if "AUTOINCREMENT" not in script.upper():
                continue  # it goes on from its highest row
            self.connection.execute("DELETE FROM sqlite_sequence WHERE name = ? AND seq < ?", (table, floor))
            self.connection.execute(
                "INSERT INTO sqlite_sequence (name, seq) SELECT ?1, ?2"
                " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ?1)",
                (table, floor),
            )

    # ------------------------------------------------------------ open and shut

    def shut(self, closing: Closing) -> None:
        self.open_again()
        self.connection.execute(f"INSERT INTO {META} (name, value) VALUES ('{NAME}', ?)", (closing.encode(),))  # noqa: S608
        said = closing.said().replace("'", "''")
        for table in (*self.tables(), META):
            for verb in ("INSERT", "UPDATE", "DELETE"):
                self.connection.execute(
                    f"CREATE TRIGGER {_trigger(table, verb)} BEFORE {verb} ON {table} BEGIN SELECT RAISE(ABORT, '{said}'); END"
                )

    def open_again(self) -> None:
        for table in (*self.tables(), META):
            for verb in ("INSERT", "UPDATE", "DELETE"):
                self.connection.execute(f"DROP TRIGGER IF EXISTS {_trigger(table, verb)}")
        self.connection.execute(f"DELETE FROM {META} WHERE name = '{NAME}'")  # noqa: S608

    def living(self) -> list[WorkerInfo]:
        return living_at(self.connection, self.path.with_name(self.path.name + "-live"), self.now_us())

    def now_us(self) -> int:
        row = self.connection.execute(f"SELECT value FROM {META} WHERE name = 'clock:' || ?", (boot_id(),)).fetchone()  # noqa: S608
        return wall_us() if row is None else uptime_us() + int(row[0])

    def explain(self, error: BaseException) -> StoreError | None:
        return explain(error, self.path) if isinstance(error, (sqlite3.Error, OSError)) else None


def living_at(connection: Connection, folder: Path, now_us: int) -> list[WorkerInfo]:
    """Return neighbours that live, and workers elsewhere whose lease has not lapsed.

    Of a client elsewhere nobody knows whether it lives: it is refused when it writes.

    Args:
        folder: of the life locks.
    """
    home = home_of(folder) if folder.is_dir() else None
    return [w for w in Peers(folder).living(connection) if w.home == home or w.expire_us > now_us]


def _trigger(table: str, verb: str) -> str:
    return f"{table}_closed_{verb.lower()}"
