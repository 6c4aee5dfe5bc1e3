"""Who is ready in the memory store: per queue, provider and route a heap, and the first of those that may go.

    queue ─┬─ "", ""           ─► (order_us, id) …   tasks without a provider may always go
           ├─ "anthropic", ""  ─► (order_us, id) …   those with one while it has room; or their budget is spent
           └─ "", "gpu"        ─► (order_us, id) …   those of a route only to a worker that has what they need

Entries whose task has moved on are dropped when they come to the top.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from heapq import heappop, heappush
from typing import TypeVar

from sennit.model.lifecycle import State
from sennit.store.memory_row import Row

T = TypeVar("T")
Heap = list[tuple[int, int]]


class Ready:
    """The heaps.

    Args:
        tasks: all tasks by id.
    """

    def __init__(self, tasks: Mapping[int, Row]) -> None:
        self._tasks = tasks
        self._heaps: dict[str, dict[tuple[str, str], Heap]] = {}

    def push(self, row: Row) -> None:
        """Note that a task is ready."""
        heaps = self._heaps.setdefault(row.spec.queue, {})
        heappush(heaps.setdefault((row.spec.provider, row.spec.route), []), (row.order_us, row.id))

    @property
    def queues(self) -> Collection[str]:
        """The queues in which a task ever was ready."""
        return self._heaps.keys()

    def providers(self) -> Iterator[str]:
        """Yield whom ready tasks ask for a permit, as they name it."""
        for heaps in self._heaps.values():
            yield from (provider for (provider, _), heap in heaps.items() if provider and self._top(heap) is not None)

    def has_lanes(self, queue: str) -> bool:
        """Return whether tasks of a queue are ready that have a provider or a route."""
        heaps = self._heaps.get(queue, {})
        return any(lane != ("", "") and self._top(heap) is not None for lane, heap in heaps.items())

    def first_plain(self, queue: str) -> Row | None:
        """Return the first of the others."""
        return self._top(self._heaps.get(queue, {}).get(("", ""), []))

    def rows(self, queue: str) -> list[Row]:
        """Return the ready tasks of a queue, in order."""
        entries = {entry for heap in self._heaps.get(queue, {}).values() for entry in heap}
        return [row for order_us, task_id in sorted(entries) if (row := self._live(order_us, task_id)) is not None]

    def first(
        self,
        queue: str,
        *,
        takes: Callable[[str], bool],
        may: Callable[[Row], T | None],
        also: Callable[[Row], T | None] | None,
    ) -> tuple[Row, T] | None:
        """Return the first task of a queue that may go, and what `may` says of it.

        Args:
            takes: whether tasks of this route are looked at.
            may: None for a task that may not; then no other of its queue and provider may, either,
            also: but those of which this is not None.
        """
        found: list[tuple[int, int, Row, T]] = []
        for (_, route), heap in self._heaps.get(queue, {}).items():
            top = self._top(heap) if takes(route) else None
            if top is None:
                continue
            answer = may(top)
            if answer is not None:
                found.append((top.order_us, top.id, top, answer))
            elif also is not None:
                found += self._first_of(heap, also)
        if not found:
            return None
        *_, row, answer = min(found, key=lambda entry: entry[:2])
        return row, answer

    def _first_of(self, heap: Heap, also: Callable[[Row], T | None]) -> list[tuple[int, int, Row, T]]:
        for order_us, task_id in sorted(heap):
            row = self._live(order_us, task_id)
            if row is not None and (answer := also(row)) is not None:
                return [(order_us, task_id, row, answer)]
        return []

    def _top(self, heap: Heap) -> Row | None:
        while heap:
            row = self._live(*heap[0])
            if row is not None:
                return row
            heappop(heap)
        return None

    def _live(self, order_us: int, task_id: int) -> Row | None:
        row = self._tasks.get(task_id)
        return row if row is not None and row.state is State.READY and row.order_us == order_us else None
