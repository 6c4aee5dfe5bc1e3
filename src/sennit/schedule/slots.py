"""Slots: how many tasks of each queue run here. Pure arithmetic; decides how far to raise the standing order.

    free ──claim──► held ──end──► free
                     │  lend ▲                a body that waits for another task lends its slot, or parents
                     ▼       │ take back      would hold all slots while their children wait for one
                    lent ────┘

Taking back does not wait for a free slot: for a moment more bodies than slots may run, and the next ends are not
replaced until the count is right again. The same holds when there are fewer slots of a sudden (`scale`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sennit.limit.shedding import scaled


@dataclass(frozen=True, slots=True)
class SlotStatistics:
    """A snapshot of one queue: `slots` in all, `held` by running bodies, `lent` by bodies that wait, `owed` to regain.

    `allowed` is how many of the slots may be in use under load.
    """

    slots: int
    held: int
    lent: int
    owed: int
    allowed: int


class Slots:
    """The slots of one process, by queue."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = dict(sizes)
        self._held: Counter[str] = Counter()
        self._lent: Counter[str] = Counter()
        self._owed: Counter[str] = Counter()
        self._multiplier = 1.0

    def all_free(self) -> dict[str, int]:
        """Return queue → slots: the first standing order."""
        return {queue: self.allowed(queue) for queue in self._sizes}

    def allowed(self, queue: str) -> int:
        """Return how many slots of `queue` may be in use: all, or under load a part of them, but one at least."""
        return scaled(self._sizes[queue], self._multiplier)

    def scale(self, multiplier: float) -> bool:
        """Allow this part of all slots. True if the order must be cancelled, and made anew by `unordered`."""
        before = self.all_free()
        self._multiplier = multiplier
        return before != self.all_free()

    def extend(self, queue: str) -> bool:
        """An urgent task finds no slot: allow one more, once, if it is load that has taken it away."""
        if queue not in self._sizes or self.allowed(queue) + self._owed[queue] >= self._sizes[queue]:
            return False
        self._owed[queue] += 1
        return True

    def beyond(self) -> list[str]:
        """Return the queues of which more bodies run than are allowed."""
        return [queue for queue in self._sizes if self._held[queue] - self._lent[queue] > self.allowed(queue)]

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
        free = {queue: n - self._held[queue] + self._lent[queue] for queue, n in self.all_free().items()}
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
            queue: SlotStatistics(
                slots=n,
                held=self._held[queue],
                lent=self._lent[queue],
                owed=self._owed[queue],
                allowed=self.allowed(queue),
            )
            for queue, n in self._sizes.items()
        }
