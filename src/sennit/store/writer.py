"""The writer: one OS thread, one connection, group commit.

    put ─► queue ─► drain what is there ─► pen ─► BEGIN IMMEDIATE ─► each operation in a savepoint ─► COMMIT ─► acks

While one transaction commits, the next operations queue up and share the following commit, so the price of an fsync is
divided by the load; a lone operation waits for nobody. An operation that raises undoes only itself. Nothing is
acknowledged before the commit; if the commit fails, nothing of the batch happened and every ack of it says so.

The *pen* hands the write lock from process to process: a blocking `flock`, because SQLite's own busy handler sleeps
and retries (up to 100 ms between looks).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from sennit.errors import SennitError
from sennit.store.connect import closed, explain
from sennit.sync.ack import Ack, LoopCall, resolve_all

T = TypeVar("T")
E_co = TypeVar("E_co", covariant=True)
E = TypeVar("E")

Settled = tuple[Ack[Any], Any, BaseException | None]


class Batch(Protocol[E]):
    """What the store does around the operations of one transaction."""

    def begin(self, connection: sqlite3.Connection) -> E:
        """Open the effects of one operation, after BEGIN IMMEDIATE."""

    def before_commit(self, connection: sqlite3.Connection, effects: list[E]) -> None:
        """Do what the effects ask for, in the same transaction."""

    def after_commit(self, effects: list[E], settled: list[Settled]) -> list[LoopCall]:
        """The transaction is durable: ring others, add to the acks, and return what is to be called with them."""

    def after_rollback(self) -> None:
        """Forget what `before_commit` prepared."""

    def end(self) -> None:
        """The last transaction is over, nothing follows."""


class Writer(Generic[E]):
    """Runs operations `(connection, effects) -> result` in group commits."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        pen: AbstractContextManager[Any],
        batch: Batch[E],
        batch_max: int,
    ) -> None:
        self._connection = connection
        self._path = path
        self._pen = pen
        self._batch = batch
        self._batch_max = batch_max
        self._queue: SimpleQueue[tuple[Callable[[sqlite3.Connection, E], Any], Ack[Any]] | None] = SimpleQueue()
        self._gate = threading.Lock()  # orders `put` against `close`: nothing is queued behind the end mark
        self._closed = False
        self.commits = 0
        self.operations = 0
        self._thread = threading.Thread(target=self._run, name="sennit-writer", daemon=True)
        self._thread.start()

    def put(self, operation: Callable[[sqlite3.Connection, E], T]) -> Ack[T]:
        """Queue an operation; its ack resolves after the commit. From any OS thread, never blocks."""
        ack: Ack[T] = Ack()
        with self._gate:
            if not self._closed:
                self._queue.put((operation, ack))
                return ack
        return Ack.failed_with(closed(self._path))

    def close(self) -> None:
        """Commit what was queued, then end the OS thread. Idempotent."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            item = self._queue.get()
            todo = []
            while item is not None:
                todo.append(item)
                if len(todo) >= self._batch_max:
                    break
                try:
                    item = self._queue.get_nowait()
                except Empty:
                    break
            else:
                open_ = False
            if todo:
                resolve_all(*self._commit(todo))  # the last thing it does: those it wakes want the GIL
        self._connection.close()
        self._batch.end()

    def _commit(
        self, todo: list[tuple[Callable[[sqlite3.Connection, E], Any], Ack[Any]]]
    ) -> tuple[list[Settled], list[LoopCall]]:
        """Run a batch in one transaction; return how each ack is to be settled, and what to call beside."""
        connection, alone = self._connection, len(todo) == 1
        settled: list[Settled] = []
        effects: list[E] = []
        try:
            with self._pen:
                connection.execute("BEGIN IMMEDIATE")
                for operation, ack in todo:
                    effect = self._batch.begin(connection)
                    if not alone:
                        connection.execute("SAVEPOINT operation")
                    try:
                        value = operation(connection, effect)
                    except BaseException as error:
                        if not connection.in_transaction:
                            raise  # SQLite gave the whole transaction up (disk full, I/O error)
                        connection.execute("ROLLBACK" if alone else "ROLLBACK TO operation")
                        settled.append((ack, None, self._error(error)))
                        if alone:
                            connection.execute("BEGIN IMMEDIATE")
                    else:
                        settled.append((ack, value, None))
                        effects.append(effect)
                    if not alone:
                        connection.execute("RELEASE operation")
                self._batch.before_commit(connection, effects)
                connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - every waiter must hear of it; the writer lives on
            if connection.in_transaction:
                with suppress(sqlite3.Error):  # what failed before is the news, and the transaction is over either way
                    connection.execute("ROLLBACK")
            self._batch.after_rollback()
            failure = self._error(error)
            return [(ack, None, failure) for _, ack in todo], []
        self.commits += 1
        self.operations += len(todo)
        return settled, self._batch.after_commit(effects, settled)

    def _error(self, error: BaseException) -> BaseException:
        foreign = isinstance(error, (sqlite3.Error, OSError)) and not isinstance(error, SennitError)
        return explain(error, self._path) if foreign else error
