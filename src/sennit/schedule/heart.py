"""The heart: renews this process's lease from an OS thread of its own, so that a blocked event loop is not taken for dead.

It beats only while something is held. An idle process has nothing to lose, so it does not beat, and its lease is renewed
with the next claim. A body that holds the GIL in C code for longer than a lease does stop the heart: then its tasks run
elsewhere and what it writes is refused, which is the safe side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from sennit.errors import StoreError
from sennit.model.task import Claim
from sennit.store.protocol import Store


class Pulse(Protocol):
    """A heart as the rest of the process sees it; a simulation has one without an OS thread."""

    def start(self) -> None:
        """Begin."""

    def held(self, n: int) -> None:
        """Say how many attempts are held now; it beats while there are any."""

    def stop(self) -> None:
        """Beat no more. May block for one beat; called from another OS thread than the loop's."""


class Heart:
    """Beats every third of a lease.

    Args:
        on_beat: told what the store says this process holds; called on the heart's OS thread.
        on_trouble: told when the store could not be written.
    """

    def __init__(
        self,
        store: Store,
        worker_id: int,
        *,
        lease_s: float,
        on_beat: Callable[[list[Claim]], None],
        on_trouble: Callable[[StoreError], None],
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._on_beat = on_beat
        self._on_trouble = on_trouble
        self._holding = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sennit-heart", daemon=True)

    def start(self) -> None:
        """Start the OS thread; it sleeps until something is held."""
        self._thread.start()

    def held(self, n: int) -> None:
        """Say how many attempts are held now."""
        if n:
            self._holding.set()
        else:
            self._holding.clear()

    def stop(self) -> None:
        """End the OS thread. Idempotent."""
        self._stop.set()
        self._holding.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._holding.wait()
            if self._stop.wait(self._lease_s / 3):
                return
            if not self._holding.is_set():
                continue
            try:
                held = self._store.heartbeat(self._worker_id, int(self._lease_s * 1_000_000)).wait()
            except StoreError as error:
                self._on_trouble(error)
            else:
                self._on_beat(held)
