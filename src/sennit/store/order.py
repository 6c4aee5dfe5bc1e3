"""The standing order: how many tasks of each queue this process can take.

Anybody raises it; the writer serves it inside a transaction, and what it took counts only once that is committed.

    add ─► wanted ──take──► (transaction) ──┬─ committed: put_back what is left
                                            ├─ rolled back: put_back all of it
                                            └─ run again: restore, so that the second run finds it as the first did
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping


class Order:
    """Raised from any OS thread, taken by the writer's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: Counter[str] = Counter()
        self._fresh: set[str] = set()  # raised since it was last served
        self._was_fresh: frozenset[str] = frozenset()  # when it was last taken
        self._ahead: dict[str, int] = {}  # how many are to be held beyond it
        self._ever_ahead: set[str] = set()

    def add(self, wants: Mapping[str, int]) -> None:
        """Raise the order."""
        with self._lock:
            self._wanted.update(wants)
            self._fresh.update(wants)

    def clear(self) -> None:
        """Cancel it."""
        with self._lock:
            self._wanted.clear()
            self._fresh.clear()
            self._ahead.clear()

    def set_ahead(self, queue: str, n: int) -> None:
        """Say how many tasks of `queue` are to be held beyond the order whenever it is served."""
        with self._lock:
            self._ahead[queue] = n
            self._ever_ahead.add(queue)

    def ahead(self, queue: str) -> int:
        """Return how many tasks of `queue` are to be held beyond the order."""
        with self._lock:
            return self._ahead.get(queue, 0)

    @property
    def ever_ahead(self) -> list[str]:
        """The queues of which tasks may ever have been held beyond the order."""
        with self._lock:
            return sorted(self._ever_ahead)

    def take(self, queues: Iterable[str] | None) -> dict[str, int]:
        """Return and remove what is wanted of `queues` and of those raised since; None is all queues."""
        with self._lock:
            candidates = set(self._wanted) if queues is None else self._fresh.union(queues)
            self._was_fresh = frozenset(self._fresh)
            self._fresh.clear()
            return {q: n for q in candidates if (n := self._wanted.pop(q, 0)) > 0}

    @property
    def fresh(self) -> set[str]:
        """The queues of which more is wanted since it was last served."""
        with self._lock:
            return set(self._fresh)

    @property
    def was_fresh(self) -> frozenset[str]:
        """The queues of which more was wanted, when it was last taken, than when it was served before."""
        with self._lock:
            return self._was_fresh

    @property
    def wanting(self) -> set[str]:
        """The queues of which something is wanted."""
        with self._lock:
            return {q for q, n in self._wanted.items() if n > 0}

    def take_one(self, queue: str) -> bool:
        """Take one of what is wanted of `queue`; False if nothing is."""
        with self._lock:
            wanted = self._wanted.get(queue, 0)
            if wanted > 0:
                self._wanted[queue] = wanted - 1
            return wanted > 0

    def used_up(self, queue: str) -> bool:
        """True when nothing more is wanted of `queue`."""
        with self._lock:
            return self._wanted[queue] <= 0

    def put_back(self, left: Mapping[str, int]) -> None:
        """Return what was taken and not served."""
        with self._lock:
            self._wanted.update(left)

    def restore(self, *taken: Mapping[str, int]) -> None:
        """Have it as it was before it was last taken: what was fresh is so again, or the second run would pass it over."""
        with self._lock:
            for part in taken:
                self._wanted.update(part)
            self._fresh |= self._was_fresh
