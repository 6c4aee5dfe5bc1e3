"""The writer: one OS thread, one connection, group commit.

    put ─► queue ─► drain what is there ─► pen ─► BEGIN IMMEDIATE ─► each operation in a savepoint ─► COMMIT ─► acks

While one transaction commits, the next operations queue up and share the following commit, so the price of an fsync is
divided by the load; a lone operation waits for nobody. An operation that raises undoes only itself. Nothing is
acknowledged before the commit; if the commit fails, nothing of the batch happened and every ack of it says so.

The *pen* hands the write lock from process to process: a blocking `flock`, because SQLite's own busy handler sleeps
and retries (up to 100 ms between looks).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from sennit.store.database import Backend, Connection
from sennit.sync.ack import Ack, LoopCall, resolve_all

T = TypeVar("T")
E_co = TypeVar("E_co", covariant=True)
E = TypeVar("E")

Settled = tuple[Ack[Any], Any, BaseException | None]
Item = tuple[Callable[[Connection, Any], Any], Ack[Any]]


class Batch(Protocol[E]):
    """What the store does around the operations of one transaction."""

    def begin(self, connection: Connection) -> E:
        """Open the effects of one operation, after BEGIN IMMEDIATE."""

    def before_commit(self, connection: Connection, effects: list[E]) -> None:
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
        connection: Connection,
        backend: Backend,
        *,
        pen: AbstractContextManager[Any],
        batch: Batch[E],
        batch_max: int,
    ) -> None:
        self._connection = connection
        self._backend = backend
        self._pen = pen
        self._batch = batch
        self._batch_max = batch_max
        self._queue: SimpleQueue[tuple[Callable[[Connection, E], Any], Ack[Any]] | None] = SimpleQueue()
        self._gate = threading.Lock()  # orders `put` against `close`: nothing is queued behind the end mark
        self._closed = False
        self.commits = 0
        self.operations = 0
        self._thread = threading.Thread(target=self._run, name="sennit-writer", daemon=True)
        self._thread.start()

    def put(self, operation: Callable[[Connection, E], T]) -> Ack[T]:
        """Queue an operation; its ack resolves after the commit. From any OS thread, never blocks."""
        ack: Ack[T] = Ack()
        with self._gate:
            if not self._closed:
                self._queue.put((operation, ack))
                return ack
        return Ack.failed_with(self._backend.closed())

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

    def _commit(self, todo: list[Item]) -> tuple[list[Settled], list[LoopCall]]:
        """Run a batch in one transaction; return how each ack is to be settled, and what to call beside."""
        tries = 0
        while True:
            try:
                with self._pen:
                    settled, effects = self._transact(todo)
            except BaseException as error:  # noqa: BLE001 - every waiter must hear of it; the writer lives on
                self._backend.roll_back(self._connection)
                self._batch.after_rollback()
                tries += 1
                if not self._backend.may_try_again(self._connection, error, tries):
                    failure = self._backend.explain(error)
                    return [(ack, None, failure) for _, ack in todo], []
            else:
                self.commits += 1
                self.operations += len(todo)
                return settled, self._batch.after_commit(effects, settled)

    def _transact(self, todo: list[Item]) -> tuple[list[Settled], list[E]]:
        connection, backend, alone = self._connection, self._backend, len(todo) == 1
        settled: list[Settled] = []
        effects: list[E] = []
        connection.execute(backend.begin)
        for operation, ack in todo:
            effect = self._batch.begin(connection)
            if not alone:
                connection.execute("SAVEPOINT operation")
            try:
                value = operation(connection, effect)
            except BaseException as error:
                if not connection.in_transaction or backend.is_passing(error):
                    raise  # the whole transaction is given up (disk full, connection lost, deadlock)
                connection.execute("ROLLBACK" if alone else "ROLLBACK TO SAVEPOINT operation")
                settled.append((ack, None, backend.explain(error)))
                if alone:
                    connection.execute(backend.begin)
            else:
                settled.append((ack, value, None))
                effects.append(effect)
            if not alone:
                connection.execute("RELEASE SAVEPOINT operation")
        self._batch.before_commit(connection, effects)
        connection.execute("COMMIT")
        return settled, effects
