"""Task ids in blocks: a process reserves 1024 at a time, so a whole graph has its ids before it is stored.

Ids grow in the order they are taken within a process, and never repeat. What a process did not use of its block is
lost with it; at a block per start, 63 bits last.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sennit.errors import StoreError
from sennit.store.database import Connection
from sennit.store.operations import Beside
from sennit.store.sql import Statement
from sennit.sync.ack import Ack

if TYPE_CHECKING:
    from sennit.store.effects import Effects
    from sennit.store.writer import Writer

BLOCK: Final = 1024
_REFILL_BELOW: Final = 256

_RESERVE: Final = Statement(
    "UPDATE sennit_meta SET value = value + ? WHERE name = 'next_id' RETURNING value",
    "SELECT sennit_reserve(?)",  # a failover may have lost what was reserved last
)

_RETURN: Final = "UPDATE sennit_meta SET value = ? WHERE name = 'next_id' AND value = ?"


def reserve(connection: Connection, n: int) -> range:
    """Reserve `n` ids inside a transaction."""
    end: int = connection.execute(_RESERVE, (n,)).fetchall()[0][0]
    return range(end - n, end)


class IdBlocks:
    """Hands out ids from the current block; fetches the next before it runs out."""

    def __init__(self, writer: Writer[Effects]) -> None:
        self._writer = writer
        self._lock = threading.Lock()
        self._block = range(0)
        self._next: Ack[range] | None = None

    def take(self, n: int) -> range:
        """Return `n` consecutive ids. Waits for one commit when the block is used up."""
        with self._lock:
            if len(self._block) < n:
                self._block = self._refill(n)
            taken, self._block = self._block[:n], self._block[n:]
            if len(self._block) < _REFILL_BELOW and self._next is None:
                self._next = self._writer.put(Beside(lambda connection, _: reserve(connection, BLOCK)))
        return taken

    def give_back(self) -> None:
        """Return what is left to the file, if nobody has reserved since: ids of short runs then stay small."""
        with self._lock:
            left: list[range | Ack[range]] = [self._block] if self._next is None else [self._next, self._block]
            self._block, self._next = range(0), None

        def operation(connection: Connection, _: Effects) -> None:
            for block in left:  # the newest first, each puts the next at the end
                ids = block if isinstance(block, range) else block.wait() if block.done else range(0)
                connection.execute(_RETURN, (ids.start, ids.stop))

        self._writer.put(operation)

    def _refill(self, n: int) -> range:
        """Return a block of at least `n`: the one under way if it is large enough, else one made to measure."""
        if self._next is not None and n <= BLOCK:
            waiting, self._next = self._next, None
            with suppress(StoreError):  # it may have failed long ago, and the disk has room again: ask now
                return waiting.wait()
        size = max(n, BLOCK)
        return self._writer.put(Beside(lambda connection, _: reserve(connection, size))).wait()
