"""Who is next among the ready: one number, computed once, when a task becomes ready.

    order_us = now + handicap of its priority          smallest first

*Priorities age by themselves*: a handicap is a head start in time, not a class. A `low` task that has waited ten
minutes goes before a `normal` one submitted now, so nothing starves and no row is ever repainted.

*Threads share* without any arithmetic: of each `thread_id` at most one task is ready, so a thread that hands in 10,000
tasks takes turns with the others.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Priority(IntEnum):
    """Smaller is more urgent; stored as this number."""

    URGENT = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3

    @classmethod
    def parse(cls, value: Priority | str) -> Priority:
        """Accept `"high"` as well as `Priority.HIGH`.

        Raises:
            ValueError: no such priority.
        """
        if isinstance(value, cls):
            return value
        try:
            return cls[str(value).upper()]
        except KeyError:
            names = ", ".join(p.name.lower() for p in cls)
            raise ValueError(f"priority must be one of {names}, not {value!r}") from None


# Head starts: an urgent task passes normal ones of the last minute and low ones of the last ten minutes.
HANDICAP_US: Final = {
    Priority.URGENT: 0,
    Priority.HIGH: 15_000_000,
    Priority.NORMAL: 60_000_000,
    Priority.LOW: 600_000_000,
}
HANDICAP_BY_NUMBER_US: Final = tuple(HANDICAP_US[p] for p in sorted(Priority))


def order_us(priority: int, *, now_us: int) -> int:
    """Return the place in the ready order of a task that becomes ready at `now_us`."""
    return now_us + HANDICAP_BY_NUMBER_US[priority]


def ready_us(priority: int, *, order_us: int) -> int:
    """Return since when a task is ready that has this place; one that was given back keeps the place it had before."""
    return order_us - HANDICAP_BY_NUMBER_US[priority]
