"""Deadlines: one heap says which is next, one loop timer waits for it, and with none of them nothing wakes up.

set / cancel ──► Timers (pure: no clock, no sleep) ──next_us──► Alarm (one `call_later`) ──due keys──► on_due
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Callable, Hashable

__all__ = ["Alarm", "Timers"]

Key = TypeVar("Key", bound="Hashable")

WAIT_US_MAX: Final = 24 * 3600 * 1_000_000
"""An alarm looks again after a day at the latest. asyncio's selectors cannot sleep longer in one go either."""

_GARBAGE_MIN = 64
"""Below so many outdated heap entries a compaction is not worth its pass."""


class Timers(Generic[Key]):
    """At most one deadline per key, the earliest first; equal deadlines come in the order they were set.

    `set` and `cancel` only touch the dictionary and push: an entry of the heap that the dictionary no longer knows is
    outdated and skipped when it surfaces. When outdated entries outnumber live ones the heap is rebuilt, so memory
    follows the live keys and every call costs amortised O(log n).
    """

    def __init__(self) -> None:
        """Start without any deadline."""
        self._heap: list[tuple[int, int, Key]] = []
        self._live: dict[Key, int] = {}
        self._serial = 0

    def __len__(self) -> int:
        """Return how many keys have a deadline."""
        return len(self._live)

    def __contains__(self, key: object) -> bool:
        """Return whether `key` has a deadline."""
        return key in self._live

    def set(self, key: Key, at_us: int) -> None:
        """Give `key` the deadline `at_us`, in place of the one it had."""
        self._serial += 1
        self._live[key] = self._serial
        heappush(self._heap, (at_us, self._serial, key))
        self._compact()

    def cancel(self, key: Key) -> bool:
        """Drop the deadline of `key`. False if it had none."""
        if self._live.pop(key, None) is None:
            return False
        self._compact()
        return True

    def next_us(self) -> int | None:
        """Return the earliest deadline, None when there is none."""
        heap = self._heap
        while heap:
            at_us, serial, key = heap[0]
            if self._live.get(key) == serial:
                return at_us
            heappop(heap)
        return None

    def pop_due(self, now_us: int) -> list[Key]:
        """Remove and return the keys whose deadline is `now_us` or earlier, the earliest first."""
        due: list[Key] = []
        while (at_us := self.next_us()) is not None and at_us <= now_us:
            _, _, key = heappop(self._heap)
            del self._live[key]
            due.append(key)
        return due

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._live) + _GARBAGE_MIN:
            self._heap = [entry for entry in self._heap if self._live.get(entry[2]) == entry[1]]
            heapify(self._heap)


class Alarm(Generic[Key]):
    """Keeps exactly one loop timer armed for the next deadline, and none when there is none.

    The clock of the deadlines may be another than the loop's, and may be stepped. If it went back, the loop timer fires
    early, finds nothing due and is armed for the rest. If it went forward, `rearm` makes up for it; without that call
    the deadline is late by the step, a day at most. All methods belong to the loop's own OS thread.
    """

    def __init__(
        self,
        timers: Timers[Key],
        *,
        now_us: Callable[[], int],
        on_due: Callable[[list[Key]], None],
        loop: AbstractEventLoop,
    ) -> None:
        """Arm for what `timers` holds already.

        Args:
            timers: from now on changed through this alarm only, or followed by `rearm`.
            now_us: the clock its deadlines are read on.
            on_due: gets the due keys, never an empty list; it may set new deadlines.
            loop: the event loop that waits.
        """
        self._timers = timers
        self._now_us = now_us
        self._on_due = on_due
        self._loop = loop
        self._armed_us: int | None = None
        self._handle: TimerHandle | None = None
        self.rearm()

    @property
    def armed_us(self) -> int | None:
        """The deadline the loop timer waits for, None when nothing is armed."""
        return self._armed_us

    def set(self, key: Key, at_us: int) -> None:
        """Give `key` the deadline `at_us`, in place of the one it had."""
        self._timers.set(key, at_us)
        self._follow()

    def cancel(self, key: Key) -> bool:
        """Drop the deadline of `key`. False if it had none."""
        known = self._timers.cancel(key)
        self._follow()
        return known

    def rearm(self) -> None:
        """Read the clock and the deadlines afresh: the clock was stepped, or `timers` was changed directly."""
        self._disarm()
        self._follow()

    def close(self) -> None:
        """Disarm, and forget all deadlines."""
        self._timers = Timers()
        self._disarm()

    def _follow(self) -> None:
        """Move the loop timer if the next deadline is another one."""
        next_us = self._timers.next_us()
        if next_us == self._armed_us:
            return
        self._disarm()
        if next_us is not None:
            wait_us = min(max(next_us - self._now_us(), 0), WAIT_US_MAX)
            self._handle = self._loop.call_later(wait_us / 1_000_000, self._ring)
            self._armed_us = next_us

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self._armed_us = None

    def _ring(self) -> None:
        self._disarm()
        due = self._timers.pop_due(self._now_us())
        try:
            if due:
                self._on_due(due)
        finally:
            self._follow()
