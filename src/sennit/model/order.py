"""Who is next among the ready: one number, computed once, when a task becomes ready.

    order_us = max(now, fair tag of its thread) + handicap of its priority          smallest first

*Priorities age by themselves*: a handicap is a head start in time, not a class. A `low` task that has waited ten
minutes goes before a `normal` one submitted now, so nothing starves and no row is ever repainted.

*Fairness between threads* is start-time fair queueing: each task of a `thread_id` moves that thread's tag forward by
one quantum, so a thread that hands in 10,000 tasks queues behind itself while others pass.
Source: Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996; the quantum stands for the unknown service time.
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

# One task of a thread counts as this much service. Small against the handicaps, so that a burst of one thread loses
# its place to other threads but never to a lower priority, below about 10,000 tasks.
THREAD_QUANTUM_US: Final = 50_000


def order_us(priority: int, *, now_us: int, tag_us: int = 0) -> int:
    """Return the place in the ready order of a task that becomes ready at `now_us`."""
    return max(now_us, tag_us) + HANDICAP_BY_NUMBER_US[priority]


def next_tag_us(tag_us: int, *, now_us: int) -> int:
    """Return the thread's fair tag after one more of its tasks has taken `tag_us`."""
    return max(tag_us, now_us) + THREAD_QUANTUM_US
