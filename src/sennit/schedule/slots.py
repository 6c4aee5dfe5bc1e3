"""Slots: how many tasks of each queue run here. Pure arithmetic; decides how far to raise the standing order.

    free ──claim──► held ──end──► free
                     │  lend ▲                a body that waits for another task lends its slot, or parents
                     ▼       │ take back      would hold all slots while their children wait for one
                    lent ────┘

Taking back does not wait for a free slot: for a moment more bodies than slots may run, and the next ends are not
replaced until the count is right again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlotStatistics:
    """A snapshot of one queue: `slots` in all, `held` by running bodies, `lent` by bodies that wait, `owed` to regain."""

    slots: int
    held: int
    lent: int
    owed: int


class Slots:
    """The slots of one process, by queue."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = dict(sizes)
        self._held: Counter[str] = Counter()
        self._lent: Counter[str] = Counter()
        self._owed: Counter[str] = Counter()

    def all_free(self) -> dict[str, int]:
        """Return queue → slots: the first standing order."""
        return dict(self._sizes)

    def add(self, queue: str, slots: int) -> bool:
        """Add a queue; False if it is known."""
        known = queue in self._sizes
        self._sizes.setdefault(queue, slots)
        return not known

    def hold(self, queue: str) -> None:
        """A task of `queue` was claimed."""
        self._held[queue] += 1

    def free(self, queue: str) -> int:
        """A body has ended; return how far to raise the order for its queue: 1, or 0 while slots are owed."""
        self._held[queue] -= 1
        if self._owed[queue]:
            self._owed[queue] -= 1
            return 0
        return 1

    def lend(self, queue: str) -> int:
        """A body starts to wait for another task; return how far to raise the order."""
        self._lent[queue] += 1
        if self._owed[queue]:
            self._owed[queue] -= 1
            return 0
        return 1

    def take_back(self, queue: str) -> None:
        """A body goes on after waiting."""
        self._lent[queue] -= 1
        self._owed[queue] += 1

    def unordered(self) -> dict[str, int]:
        """Nothing is on order any more: return queue → how much to order now, and settle what is owed."""
        free = {queue: n - self._held[queue] + self._lent[queue] for queue, n in self._sizes.items()}
        self._owed = Counter({queue: -n for queue, n in free.items() if n < 0})
        return {queue: n for queue, n in free.items() if n > 0}

    def serves(self, queue: str) -> bool:
        """True when this process takes tasks of `queue`."""
        return queue in self._sizes

    @property
    def held(self) -> int:
        """How many attempts this process holds, waiting ones included."""
        return self._held.total()

    def statistics(self) -> dict[str, SlotStatistics]:
        """Return a snapshot per queue."""
        return {
            queue: SlotStatistics(slots=n, held=self._held[queue], lent=self._lent[queue], owed=self._owed[queue])
            for queue, n in self._sizes.items()
        }
