"""The SQLite store: one file, any number of processes on one host.

    calls ─► writer (own OS thread, group commit) ─► moves/*.py ─► commit ─► acks, claims, watches, bells

What lives here is what happens *around* the moves: the standing order is served inside the transaction that made a
task ready, and after the commit others are told. State that only the writer's OS thread touches (`Desk`) needs no
lock. Reads have a connection and an OS thread of their own, so a long listing holds nobody up.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from sennit.errors import LeaseLost, SennitError, StoreUnavailable, UsageError
from sennit.model.admission import Bounds
from sennit.model.lifecycle import State
from sennit.model.task import (
    AttemptView,
    Claim,
    Claimed,
    Ending,
    Ledger,
    LogLine,
    Outcome,
    TaskSpec,
    TaskView,
    WorkerInfo,
)
from sennit.store.clock import file_clock
from sennit.store.connect import closed, connect, explain, refuse_network_filesystem
from sennit.store.desk import Desk
from sennit.store.effects import Effects
from sennit.store.ids import IdBlocks, reserve
from sennit.store.migrate import migrate
from sennit.store.moves import claim as claims
from sennit.store.moves import finish as finishes
from sennit.store.moves import look, outside, time, turn
from sennit.store.moves.entry import known_bounds
from sennit.store.moves.provider import Pools
from sennit.store.moves.submit import submit
from sennit.store.protocol import Listener
from sennit.store.reader import Reader
from sennit.store.sqlite_providers import SqliteProviders
from sennit.store.sqlite_threads import SqliteThreads
from sennit.store.writer import Writer
from sennit.sync.ack import Ack
from sennit.sync.clock import NowUs
from sennit.sync.filelock import Pen

T = TypeVar("T")


class SqliteStore(SqliteThreads, SqliteProviders):
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
    ) -> None:
        self.path = Path(path)
        self.url = f"sqlite:///{self.path}"
        self._make_folder()
        self._pen = Pen(self.path.with_name(self.path.name + "-pen"))
        connection = self._open(durability=durability, lock_timeout_s=lock_timeout_s, now_us=now_us)
        self.bounds = known_bounds(connection) if bounds is None else bounds
        self._closing = threading.Lock()
        self._desk = Desk(self)
        self._writer: Writer[Effects] = Writer(
            connection, self.path, pen=self._pen, batch=self._desk, batch_max=batch_max
        )
        self._reader = Reader(self.path, lock_timeout_s=lock_timeout_s)
        self._ids = IdBlocks(self._writer)

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

    def _open(self, *, durability: str, lock_timeout_s: float, now_us: NowUs | None) -> sqlite3.Connection:
        """Open the file, bring its schema up to date, read its clock.

        One process at a time: a new file changes its journal mode, and SQLite does not queue for that.
        """
        refuse_network_filesystem(self.path)
        with ExitStack() as undo:
            undo.callback(self._pen.close)
            try:
                with self._pen:
                    connection = connect(self.path, durability=durability, lock_timeout_s=lock_timeout_s)
                    undo.callback(connection.close)
                    migrate(connection, self.path)
                    self._now_us = now_us or file_clock(connection)
            except (sqlite3.Error, OSError) as error:
                if isinstance(error, SennitError):
                    raise
                raise explain(error, self.path) from error
            undo.pop_all()
        return connection

    def now_us(self) -> int:
        return self._now_us()

    def close(self) -> None:
        with self._closing:
            self._ids.give_back()
            self._desk.caretaker.close()
            self._desk.permits.close(closed(self.path))
            self._desk.leave(for_good=True)
            self._writer.close()
            self._reader.close()
            self._pen.close()

    # ------------------------------------------------------------ handing in

    def take_ids(self, n: int) -> Sequence[int]:
        return self._ids.take(n)

    def submit(self, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        return self._writer.put(lambda connection, effects: self._desk.submit(connection, effects, specs))

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

    def add_children(self, claim: Claim, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        def operation(connection: sqlite3.Connection, effects: Effects) -> list[int]:
            if not finishes.still_held(connection, claim):
                self._desk.refused += 1
                raise LeaseLost(*claim)
            return submit(connection, effects, specs)

        return self._writer.put(operation)

    # ------------------------------------------------------------ claiming

    def join(
        self, worker: WorkerInfo, listener: Listener, loop: asyncio.AbstractEventLoop, *, lease_us: int
    ) -> Ack[None]:
        return self._desk.join(worker, listener, loop, lease_us)

    def leave(self) -> Ack[None]:
        return self._desk.leave()

    def want(self, queue: str, n: int) -> None:
        self._desk.raise_order({queue: n})
        self._writer.put(_nothing)  # a transaction serves what was raised

    def unwant(self) -> Ack[None]:
        return self._writer.put(lambda _connection, _effects: self._desk.order.clear())

    def claim(self, worker_id: int, queue: str, n: int) -> Ack[list[Claimed]]:
        def operation(connection: sqlite3.Connection, effects: Effects) -> list[Claimed]:
            if not time.registered(connection, worker_id):
                return []  # nobody would rescue what it held
            time.renew_if_half_used(connection, effects, worker_id)
            return claims.claim(connection, effects, worker_id=worker_id, queue=queue, n=n).tasks

        return self._writer.put(operation)

    def look(self) -> None:
        self._writer.put(self._desk.look)

    # ------------------------------------------------------------ ending

    def finish(self, endings: Sequence[Ending], *, want: Mapping[str, int] | None = None) -> Ack[list[bool | None]]:
        if want:
            try:
                self._desk.raise_order(want)
            except UsageError as error:
                return Ack.failed_with(error)
        return self._desk.finish(endings)

    def save_step(self, claim: Claim, key: str, result: bytes) -> Ack[bool]:
        def operation(connection: sqlite3.Connection, effects: Effects) -> bool:
            if not self._desk.still_held(connection, claim):
                effects.counts["refused"] += 1
                return False
            connection.execute("INSERT OR IGNORE INTO sennit_step VALUES (?, ?, ?)", (claim.task_id, key, result))
            return True

        return self._writer.put(operation)

    def resume(self, task_ids: Sequence[int]) -> Ack[list[bool]]:
        return self._writer.put(lambda c, fx: [outside.resume(c, fx, i) for i in task_ids])

    def cancel(self, task_ids: Sequence[int], *, reason: str = "") -> Ack[list[bool]]:
        return self._writer.put(lambda c, fx: outside.cancel(c, fx, task_ids, reason))

    def revive(self, task_ids: Sequence[int]) -> Ack[list[bool]]:
        return self._writer.put(lambda c, fx: outside.revive(c, fx, task_ids))

    # ------------------------------------------------------------ time and death

    def heartbeat(self, worker_id: int, lease_us: int) -> Ack[list[Claim]]:
        def operation(connection: sqlite3.Connection, effects: Effects) -> list[Claim]:
            return self._desk.heartbeat(connection, effects, worker_id, lease_us)

        return self._writer.put(operation)

    def rescue(self, worker_id: int) -> Ack[int]:
        message = "the process of its worker died"
        return self._writer.put(lambda c, fx: len(finishes.rescue(c, fx, worker_id, message)))

    def fire(self) -> Ack[int | None]:
        return self._writer.put(lambda c, fx: time.fire(c, fx, worker_id=self._desk.members.id))

    # ------------------------------------------------------------ schedules

    def put_schedule(self, name: str, next_us: int) -> Ack[int]:
        def operation(connection: sqlite3.Connection, _: Effects) -> int:
            connection.execute("INSERT OR IGNORE INTO sennit_schedule VALUES (?, ?)", (name, next_us))
            held: int = connection.execute("SELECT next_us FROM sennit_schedule WHERE name = ?", (name,)).fetchone()[0]
            return held

        return self._writer.put(operation)

    def run_schedule(self, name: str, *, due_us: int, next_us: int, specs: Sequence[TaskSpec]) -> Ack[bool]:
        def operation(connection: sqlite3.Connection, effects: Effects) -> bool:
            moved = connection.execute(
                "UPDATE sennit_schedule SET next_us = ? WHERE name = ? AND next_us = ?", (next_us, name, due_us)
            )
            if moved.rowcount:
                submit(connection, effects, specs)
            return bool(moved.rowcount)

        return self._writer.put(operation)

    # ------------------------------------------------------------ looking

    def watch(self, task_id: int) -> Ack[Outcome]:
        return self._desk.watch(task_id)

    def task(self, task_id: int) -> Ack[TaskView]:
        return self._reader.put(lambda c: look.task(c, task_id, self._pools(c)))

    def tasks(
        self,
        *,
        states: Sequence[State] = (),
        queue: str | None = None,
        handler: str | None = None,
        thread_id: str | None = None,
        limit: int = 100,
    ) -> Ack[list[TaskView]]:
        def query(connection: sqlite3.Connection) -> list[TaskView]:
            return look.tasks(
                connection, self._pools(connection),
                states=states, queue=queue, handler=handler, thread_id=thread_id, limit=limit,
            )  # fmt: skip

        return self._reader.put(query)

    def _pools(self, connection: sqlite3.Connection) -> Pools:
        """Return the providers, to look at."""
        return Pools(connection, self.now_us(), self.bounds)

    def counts(self) -> Ack[dict[str, dict[State, int]]]:
        return self._reader.put(look.counts)

    def attempts(self, task_id: int) -> Ack[list[AttemptView]]:
        return self._reader.put(lambda c: look.attempts(c, task_id))

    def log(self, lines: Sequence[LogLine]) -> Ack[None]:
        rows = [(line.task_id, line.attempt, line.at_us, line.level, line.text) for line in lines]

        def operation(connection: sqlite3.Connection, _: Effects) -> None:
            connection.executemany(
                "INSERT INTO sennit_log (task_id, attempt, at_us, level, text) VALUES (?, ?, ?, ?, ?)", rows
            )

        return self._writer.put(operation)

    def logs(self, task_id: int, *, after_seq: int = 0, limit: int = 1000) -> Ack[list[LogLine]]:
        return self._reader.put(lambda c: look.logs(c, task_id, after_seq=after_seq, limit=limit))

    def workers(self) -> Ack[list[WorkerInfo]]:
        return self._reader.put(self._desk.members.peers.living)

    def ledger(self) -> Ack[Ledger]:
        return self._reader.put(look.ledger)

    def verify(self) -> Ack[list[str]]:
        return self._reader.put(look.verify)

    def prune(self, *, before_us: int, limit: int) -> Ack[int]:
        return self._writer.put(lambda c, fx: time.prune(c, fx, before_us=before_us, limit=limit))

    # ------------------------------------------------------------ for the Desk

    def put(self, operation: Callable[[sqlite3.Connection, Effects], T]) -> Ack[T]:
        """Queue any operation on the writer."""
        return self._writer.put(operation)


def _nothing(_connection: sqlite3.Connection, _effects: Effects) -> None:
    pass
