"""Cached results in the memory store: which task stands for a call, and under which tags that can be forgotten."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

Call = tuple[str, str]  # handler, cache key


class Cached(NamedTuple):
    """The task that stands for a call."""

    task_id: int
    tags: tuple[str, ...]


class Cache:
    """All calls whose result is cached."""

    def __init__(self) -> None:
        self.calls: dict[Call, Cached] = {}

    def find(self, call: Call) -> int | None:
        """Return the task that stands for a call."""
        found = self.calls.get(call)
        return None if found is None else found.task_id

    def invalidate(self, *, tags: Collection[str], keys: Collection[Call]) -> int:
        """Forget calls by tag or by name; return how many."""
        gone = {call for call, cached in self.calls.items() if not set(cached.tags).isdisjoint(tags)}
        gone |= {call for call in keys if call in self.calls}
        for call in gone:
            del self.calls[call]
        return len(gone)

    def drop_task(self, task_id: int) -> None:
        """Forget the calls for which a task stands."""
        for call in [call for call, cached in self.calls.items() if cached.task_id == task_id]:
            del self.calls[call]
