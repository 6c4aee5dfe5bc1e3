"""The queue of one adaptive pool: first in, first out per priority, and priorities that age.

    place = now + head start of the priority        the smallest place is next

So an urgent item passes normal ones of the last minute, and a low one that has waited ten minutes goes before a normal
one of now: nothing starves. Source of the head starts: `model/order.py`, the same as for tasks.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import Final

from sennit.execute.executor_parts import WorkItem
from sennit.model.order import HANDICAP_US, Priority

__all__ = ["ItemQueue"]

HANDICAP_S: Final = {priority: HANDICAP_US[priority] / 1e6 for priority in Priority}
NORMAL_S: Final = HANDICAP_S[Priority.NORMAL]


class ItemQueue:
    """Not locked: its pool does that. `count` is how many items wait."""

    __slots__ = ("_normal", "_others", "count")

    def __init__(self) -> None:
        self.count = 0
        self._normal: deque[tuple[float, WorkItem]] = deque()
        self._others: dict[Priority, deque[tuple[float, WorkItem]]] = {}

    def put(self, item: WorkItem, priority: Priority) -> None:
        """Queue an item."""
        self.count += 1
        if priority is Priority.NORMAL:
            self._normal.append((perf_counter() + NORMAL_S, item))
        else:
            self._others.setdefault(priority, deque()).append((perf_counter() + HANDICAP_S[priority], item))

    def pop(self) -> WorkItem:
        """Take the next item; there must be one."""
        self.count -= 1
        if not self._others:
            return self._normal.popleft()[1]
        queues = [(queue[0][0], priority) for priority, queue in self._others.items()]
        place_s, first = min(queues)
        if self._normal and self._normal[0][0] <= place_s:
            return self._normal.popleft()[1]
        queue = self._others[first]
        item = queue.popleft()[1]
        if not queue:
            del self._others[first]
        return item

    def withdraw(self, item: WorkItem) -> bool:
        """Remove an item that was just put. False if somebody has taken it."""
        for priority, queue in [(Priority.NORMAL, self._normal), *self._others.items()]:
            if queue and queue[-1][1] is item:
                queue.pop()
                self.count -= 1
                if not queue and priority is not Priority.NORMAL:
                    del self._others[priority]
                return True
        return False

    def drain(self) -> list[WorkItem]:
        """Take everything, the next item first."""
        items = []
        while self.count:
            items.append(self.pop())
        return items
