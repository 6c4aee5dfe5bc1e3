"""A narrow way for bodies that compute in OS threads: a few at once, the others in line.

    enter ──► place free: begins      else in line ──► a place is left ──► begins
                 │ ends, waits for other tasks, or has held the place for `lapse_s`
                 └──► leaves it

Fifty OS threads that compute in Python are no faster than one, and the event loop waits for its turn behind all of them:
measured on two cores, 50 bodies of 10 ms each, 85 a second with 1, 2, 4 or 50 at once, while the loop was late by 11 ms
(99th percentile) with 1 and by 160 ms with 50.

A place is not a lock. A body that blocks on something else than another task, as far as anybody can see a queue that the
next in line would fill, loses it after `lapse_s` and goes on without: so the lane delays, and never stops.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

__all__ = ["LAPSE_S", "Lane"]

LAPSE_S: Final = 1.0


class Lane:
    """Belongs to one event loop. A member is whoever enters; it is told to begin once.

    Args:
        width: how many are inside.
        lapse_s: how long one may keep its place.
        on_lapse: called when one has lost it.
    """

    def __init__(self, width: int, *, lapse_s: float = LAPSE_S, on_lapse: Callable[[], None] | None = None) -> None:
        self._width = width
        self._lapse_s = lapse_s
        self._on_lapse = on_lapse
        self._loop = asyncio.get_running_loop()
        self._inside: dict[Hashable, asyncio.TimerHandle] = {}
        self._line: OrderedDict[Hashable, Callable[[], None]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return len(self._line)

    def enter(self, member: Hashable, begin: Callable[[], None]) -> None:
        """Call `begin` when there is a place, which may be now."""
        self._line[member] = begin
        self._next()

    def withdraw(self, member: Hashable) -> bool:
        """Leave the line; False if it does not stand there (any more)."""
        return self._line.pop(member, None) is not None

    def leave(self, member: Hashable) -> None:
        """Give the place up; harmless without one."""
        timer = self._inside.pop(member, None)
        if timer is not None:
            timer.cancel()
            self._next()

    def open(self) -> None:
        """Let everybody in: the lane is not needed any more."""
        self._width = len(self._inside) + len(self._line)
        self._next()

    def _lapse(self, member: Hashable) -> None:
        if self._on_lapse is not None:
            self._on_lapse()
        self.leave(member)

    def _next(self) -> None:
        while self._line and len(self._inside) < self._width:
            member, begin = self._line.popitem(last=False)
            self._inside[member] = self._loop.call_later(self._lapse_s, self._lapse, member)
            begin()
