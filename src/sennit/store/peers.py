"""The other processes at the file: who of them lives, and the news when one of this host dies."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

from sennit.model.task import WorkerInfo
from sennit.store.liveness import DeathWatch, is_alive
from sennit.store.moves import look


class Peers:
    """Watches the processes that hold a life lock in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._host = socket.gethostname()
        self._deaths: DeathWatch | None = None

    def living(self, connection: sqlite3.Connection) -> list[WorkerInfo]:
        """Return those that have joined and not left, without those of this host that are dead."""
        joined = [w for w in look.workers(connection) if w.bell]
        return [w for w in joined if w.host != self._host or is_alive(self._folder, str(w.id))]

    def dead(self, workers: Iterable[WorkerInfo]) -> list[WorkerInfo]:
        """Return those of this host that are."""
        return [w for w in workers if w.host == self._host and not is_alive(self._folder, str(w.id))]

    def watch(
        self, workers: Iterable[WorkerInfo], on_death: Callable[[int], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Call `on_death` at once when one of `workers` dies. On the loop; watching twice is watching once."""
        if self._deaths is None:
            self._deaths = DeathWatch(self._folder, lambda i: on_death(int(i)), loop=loop)
        for worker in workers:
            if worker.host == self._host:
                self._deaths.watch(str(worker.id), worker.pid)

    def close(self) -> None:
        """Stop watching. On the loop."""
        if self._deaths is not None:
            self._deaths.close()
            self._deaths = None
