"""The SQLite store: one file, any number of processes on one host.

    open ─► pen ─► schema brought up to date, clock read ─► `RowStore`, which does the rest

One process writes at a time: the pen is handed on by a file lock beside the database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from sennit.errors import SennitError, StoreUnavailable, UsageError
from sennit.model.admission import Bounds
from sennit.model.task import TaskSpec
from sennit.store.clock import file_clock
from sennit.store.connect import SqliteFile, explain, refuse_network_filesystem
from sennit.store.ears import SocketEars
from sennit.store.ids import reserve
from sennit.store.migrate import migrate
from sennit.store.moved import refuse_closed
from sennit.store.moves import time, turn
from sennit.store.moves.submit import submit
from sennit.store.row_store import RowStore
from sennit.sync.clock import NowUs
from sennit.sync.filelock import Pen


class SqliteStore(RowStore):
    """`sennit.store.protocol.Store` on a SQLite file; its promises are the docstrings there.

    Args:
        path: the file; made, with its folder, when missing.
        durability: `full` (fsync per group commit) or `normal`.
        bounds: what this process enforces in the store; None is what the worker enforces that joined last.
        now_us: another clock, for tests.

    Raises:
        StoreUnavailable, StoreCorrupt, StoreLocked, SchemaMismatch: it cannot be opened; each says what to do.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        durability: str = "full",
        lock_timeout_s: float = 30.0,
        batch_max: int = 512,
        bounds: Bounds | None = None,
        now_us: NowUs | None = None,
        hand_over: bool = True,
    ) -> None:
        self.path = Path(path)
        self.url = f"sqlite:///{self.path}"
        self._make_folder()
        self._pen = Pen(self.path.with_name(self.path.name + "-pen"))
        file = SqliteFile(self.path, durability=durability, lock_timeout_s=lock_timeout_s)
        connection, clock = self._open(file, now_us)
        live = self.path.with_name(self.path.name + "-live")
        super().__init__(
            connection,
            file,
            live=live,
            ears=SocketEars(live),
            pen=self._pen,
            bounds=bounds,
            now_us=clock,
            batch_max=batch_max,
            hand_over=hand_over,
        )

    # ------------------------------------------------------------ opening and closing

    def _make_folder(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot make the folder {self.path.parent}",
                why=str(error.strerror),
                fix="choose another place with --db sqlite:///path/to/fleet.db",
            ) from error

    def _open(self, file: SqliteFile, now_us: NowUs | None) -> tuple[sqlite3.Connection, NowUs]:
        """Open the file, bring its schema up to date, read its clock.

        One process at a time: a new file changes its journal mode, and SQLite does not queue for that.
        """
        refuse_network_filesystem(self.path)
        with ExitStack() as undo:
            undo.callback(self._pen.close)
            try:
                with self._pen:
                    connection = file.connect()
                    undo.callback(connection.close)
                    migrate(connection, self.path)
                    refuse_closed(connection, self.url)
                    clock = now_us or file_clock(connection)
            except (sqlite3.Error, OSError) as error:
                if isinstance(error, SennitError):
                    raise
                raise explain(error, self.path) from error
            undo.pop_all()
        return connection, clock

    def close(self) -> None:
        super().close()
        self._pen.close()

    # ------------------------------------------------------------ handing in

    def submit_in(self, connection: sqlite3.Connection, specs: Sequence[TaskSpec]) -> list[int]:
        """Store `specs` in the caller's own transaction on this file: they exist when it commits.

        Gives them ids of that transaction; after a rollback other tasks may get these ids.

        Raises:
            UsageError: the connection is of another database.
        """
        name = connection.execute("PRAGMA database_list").fetchone()[2]
        if not name or not Path(name).samefile(self.path):
            raise UsageError(
                f"this connection is open on {name or 'a database in memory'}, and the store is {self.path}",
                why="one transaction cannot span two databases",
                fix=f"connect to {self.path} and keep your tables there (sennit's begin with sennit_)",
            )
        factory, connection.row_factory = connection.row_factory, None
        try:
            for spec, task_id in zip(specs, reserve(connection, len(specs)), strict=True):
                spec.ref.id = task_id
            ids = submit(connection, effects := self._desk.effects(), specs)
            if effects.room:
                turn.admit(connection, effects)
            self._desk.count(connection, effects.counts)
            time.post_stops(connection, effects.stops)
        except sqlite3.Error as error:
            raise explain(error, self.path) from error
        finally:
            connection.row_factory = factory
        # The writer cannot begin before the caller's transaction has ended: this look comes right after it.
        self._writer.put(lambda c, later: self._desk.announce(c, later, effects))
        return ids
