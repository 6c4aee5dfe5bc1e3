"""Reads: one OS thread with a connection of its own, so that a long listing holds neither loop nor writer up.

Each is a transaction: what it sees is of one moment, however many statements it takes.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from sennit.store.connect import closed, connect, explain
from sennit.sync.ack import Ack

T = TypeVar("T")


class Reader:
    """Runs `(connection) -> result` in order; starts its OS thread with the first call."""

    def __init__(self, path: Path, *, lock_timeout_s: float) -> None:
        self._path = path
        self._lock_timeout_s = lock_timeout_s
        self._queue: SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], Ack[Any]] | None] = SimpleQueue()
        self._gate = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, query: Callable[[sqlite3.Connection], T]) -> Ack[T]:
        """Queue a read; from any OS thread, never blocks."""
        ack: Ack[T] = Ack()
        with self._gate:
            if self._closed:
                return Ack.failed_with(closed(self._path))
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
        connection: sqlite3.Connection | None = None
        while (item := self._queue.get()) is not None:
            query, ack = item
            try:
                if connection is None:
                    connection = connect(self._path, lock_timeout_s=self._lock_timeout_s, read_only=True)
                connection.execute("BEGIN")
                try:
                    value = query(connection)
                finally:
                    if connection.in_transaction:  # a disk that cannot be read ends it without being asked
                        connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                ack.reject(explain(error, self._path))
            except BaseException as error:  # noqa: BLE001 - delivered to whoever asked
                ack.reject(error)
            else:
                ack.resolve(value)
        if connection is not None:
            connection.close()
