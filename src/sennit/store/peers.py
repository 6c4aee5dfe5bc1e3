"""The other processes at the file: who of them lives, and the news when one of this host dies."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from sennit.model.task import WorkerInfo
from sennit.store.database import Connection
from sennit.store.liveness import DeathWatch, is_alive
from sennit.store.moves import look
from sennit.sync.clock import NowUs, boot_id


def home_of(folder: Path) -> str:
    """Return what tells this folder, on this boot of this machine, from any other: who shares it can see who lives."""
    there = folder.stat()
    return f"{boot_id()}:{there.st_dev:x}:{there.st_ino:x}"


class Peers:
    """Watches the processes that hold a life lock in `folder`.

    Args:
        now_us: the store's clock, if the lease of an idle worker of another machine says whether it lives, too.
    """

    def __init__(self, folder: Path, *, now_us: NowUs | None = None) -> None:
        self._folder = folder
        self._now_us = now_us
        self._host = socket.gethostname()
        self._deaths: DeathWatch | None = None

    def living(self, connection: Connection) -> list[WorkerInfo]:
        """Return those that have joined and not left, without those that are dead, as far as can be seen from here."""
        return [w for w in look.workers(connection) if w.bell and self._lives(w)]

    def _lives(self, worker: WorkerInfo) -> bool:
        if self._is_near(worker):
            return is_alive(self._folder, str(worker.id))
        return self._now_us is None or worker.role == "client" or worker.expire_us > self._now_us()

    def working(self, connection: Connection) -> list[WorkerInfo]:
        """Return those of them that take tasks."""
        return [w for w in self.living(connection) if w.role == "worker" and not w.drains]

    def dead(self, workers: Iterable[WorkerInfo]) -> list[WorkerInfo]:
        """Return those of this host that are."""
        return [w for w in workers if self._is_near(w) and not is_alive(self._folder, str(w.id))]

    def _is_near(self, worker: WorkerInfo) -> bool:
        """True when the life lock of a process would be in our folder; of others only their lease says something."""
        if worker.host != self._host:
            return False
        return not worker.home or (self._folder.is_dir() and worker.home == home_of(self._folder))

    def watch(
        self, workers: Iterable[WorkerInfo], on_death: Callable[[int], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Call `on_death` at once when one of `workers` dies. On the loop; watching twice is watching once."""
        if self._deaths is None:
            self._deaths = DeathWatch(self._folder, lambda i: on_death(int(i)), loop=loop)
        for worker in workers:
            if self._is_near(worker):
                self._deaths.watch(str(worker.id), worker.pid)

    def close(self) -> None:
        """Stop watching. On the loop."""
        if self._deaths is not None:
            self._deaths.close()
            self._deaths = None
