"""A clock that stands still until somebody moves it.

For code whose time comes in as an argument (`now_us`): tests of pure parts, and `app.testing()`. The simulator's loop
has its own.

    clock = VirtualClock()
    clock.watch(lambda: timers.next_due_us())
    clock.jump()              # an hour or a millisecond: straight to what is due next
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["EPOCH_US", "VirtualClock"]

EPOCH_US: Final = 1_735_689_600_000_000
"""Where virtual wall clocks start: 2025-01-01T00:00:00Z, in microseconds, so that no test meets a date before 1970."""


class VirtualClock:
    """Microseconds since the Unix epoch, moved by hand.

    Not locked: a test moves it from one OS thread, others may read.
    """

    __slots__ = ("_now_us", "_sources")

    def __init__(self, *, start_us: int = EPOCH_US) -> None:
        self._now_us = start_us
        self._sources: list[Callable[[], int | None]] = []

    def now_us(self) -> int:
        """Return the virtual time; pass this method wherever a clock is asked for."""
        return self._now_us

    def advance(self, seconds: float) -> int:
        """Let `seconds` pass and return the new `now_us()`.

        Raises:
            ValueError: `seconds` is negative; time that passes never does, `step_clock` is for that.
        """
        if seconds < 0:
            raise ValueError(f"time cannot pass backwards ({seconds} s); use step_clock to set the clock back")
        self._now_us += round(seconds * 1_000_000)
        return self._now_us

    def step_clock(self, delta_us: int) -> None:
        """Set the wall clock forward or back, as an administrator or NTP would."""
        self._now_us += delta_us

    def watch(self, next_due_us: Callable[[], int | None]) -> None:
        """Let `jump` ask this source for its next deadline; it answers None when it has none."""
        self._sources.append(next_due_us)

    def jump(self) -> int | None:
        """Go to the earliest deadline of all watched sources and return it, or None if there is none.

        A deadline that has passed already is returned too, and the clock stays.
        """
        due_us = min((due for source in self._sources if (due := source()) is not None), default=None)
        if due_us is not None:
            self._now_us = max(self._now_us, due_us)
        return due_us
