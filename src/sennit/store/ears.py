"""How processes hear each other: an ear of one's own, and a way to ring those of others.

    ring([address, …], hints) ──► Ear ──► on_rung(hints) ──► look at the rows

Rows are the truth, hints only say where to look first, so a ring may be lost (`wakeup`). `SocketEars` reach the processes
of one host; what reaches other hosts belongs to the database (`postgres_ears`).
"""

# ruff: noqa: D102 - the promises stand in the protocols, once

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

from sennit.store.wakeup import Bell, ring

LOOK_AGAIN_S: Final = 1.0

OnRung = Callable[[int], None]
Missed = Callable[[], bool]


class Ear(Protocol):
    """An OS thread that sleeps until somebody rings.

    Attributes:
        address: what others ring; it stands in this process's row.
    """

    address: str

    def wake(self) -> None:
        """Look whether something was missed."""

    def close(self) -> None:
        """Give it up."""


class Ears(Protocol):
    """What a store is given."""

    def listen(self, name: str, on_rung: OnRung, missed: Missed) -> Ear:
        """Open this process's ear.

        Args:
            name: of the process, for people.
            on_rung: called with the hints, on the ear's OS thread; with 0, to look whether something was missed.
            missed: whether something may be stored that nobody will ring for again: the store cannot be written (full,
                locked, gone). Then, and only then, the ear looks by itself.
        """

    def ring(self, addresses: Iterable[str], hints: int) -> None:
        """Ring others; never blocks, never fails. From any OS thread."""

    def close(self) -> None:
        """After the last ring."""


class SocketEars:
    """Processes of one host, by datagrams.

    Args:
        folder: for socket files, where the system has no other addresses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def listen(self, name: str, on_rung: OnRung, missed: Missed) -> Ear:
        return SocketEar(Bell.open(self._folder, name), on_rung, missed)

    def ring(self, addresses: Iterable[str], hints: int) -> None:
        ring(addresses, hints)

    def close(self) -> None:
        pass


class SocketEar:
    """Sleeps on one bell."""

    def __init__(self, bell: Bell, on_rung: OnRung, missed: Missed) -> None:
        self.address = bell.address
        self._bell = bell
        self._on_rung = on_rung
        self._missed = missed
        self._closed = False
        threading.Thread(target=self._listen, name="sennit-ear", daemon=True).start()

    def wake(self) -> None:
        ring([self.address], 0)

    def close(self) -> None:
        self._closed = True
        self.wake()  # it sees that it is over

    def _listen(self) -> None:
        waiter = select.poll()
        waiter.register(self._bell.fileno(), select.POLLIN)
        while True:
            if not waiter.poll(LOOK_AGAIN_S * 1000 if self._missed() else None):
                self._on_rung(0)
                continue
            hints = self._bell.drain()
            if self._closed:
                break
            if hints:
                self._on_rung(hints)
        self._bell.close()
