"""Reads: one OS thread with a connection of its own, so that a long listing holds neither loop nor writer up.

Each is a transaction: what it sees is of one moment, however many statements it takes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from sennit.store.database import Backend, Connection
from sennit.sync.ack import Ack

T = TypeVar("T")


class Reader:
    """Runs `(connection) -> result` in order; starts its OS thread with the first call."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._queue: SimpleQueue[tuple[Callable[[Connection], Any], Ack[Any]] | None] = SimpleQueue()
        self._gate = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, query: Callable[[Connection], T]) -> Ack[T]:
        """Queue a read; from any OS thread, never blocks."""
        ack: Ack[T] = Ack()
        with self._gate:
            if self._closed:
                return Ack.failed_with(self._backend.closed())
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sennit-reader", daemon=True)
                self._thread.start()
            self._queue.put((query, ack))
        return ack

    def close(self) -> None:
        """Answer what was queued, then end. Idempotent."""
        with self._gate:
            self._closed = True
            thread = self._thread
            if thread is not None:
                self._queue.put(None)
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        connection: Connection | None = None
        while (item := self._queue.get()) is not None:
            query, ack = item
            try:
                if connection is None:
                    connection = self._backend.connect(read_only=True)
                value = self._read(connection, query)
            except BaseException as error:  # noqa: BLE001 - delivered to whoever asked
                ack.reject(self._backend.explain(error))
            else:
                ack.resolve(value)
        if connection is not None:
            connection.close()

    def _read(self, connection: Connection, query: Callable[[Connection], T]) -> T:
        tries = 0
        while True:
            try:
                connection.execute(self._backend.begin_read)
                return query(connection)
            except Exception as error:
                tries += 1
                if not self._backend.is_passing(error) or not self._backend.may_try_again(connection, error, tries):
                    raise
            finally:
                self._backend.roll_back(connection)
