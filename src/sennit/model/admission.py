"""May this enter? What a submit says about it, and the bounds it is held against. Pure.

    submit ─► cached result? ─► thread busy? (on_busy) ─► queue full? (on_full) ─► stored

All of it is decided in the transaction that stores the task, so it holds across processes.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from sennit.model.thread import OnBusy

OnFull = Literal["block", "reject", "shed"]

# How many of the latest ends tell how fast room comes free.
RECENT_ENDS: Final = 100
RETRY_AFTER_MIN_S: Final = 0.05
RETRY_AFTER_MAX_S: Final = 60.0


class Entry(msgspec.Struct, kw_only=True, frozen=True):
    """How a task may enter. A spec without one enters always, behind the open tasks of its thread.

    Attributes:
        on_busy: its thread has open tasks: wait behind them, refuse, or cancel them (`rollback` also takes back what
            they wrote to the thread's state).
        queue_max: the most tasks of its queue that may wait for a slot, their thread's turn or room; 0 is no bound.
        on_full: the bound is reached: refuse (`block` waits in the submitter and asks again), or cancel waiting tasks of
            lower priority, the last in the order first.
        cache_us: a task of the same (handler, cache_key) that is open, or succeeded no longer ago than this, stands for it.
        cache_tags: names under which the cached result can be dropped.
    """

    on_busy: OnBusy = "enqueue"
    queue_max: int = 0
    on_full: OnFull = "block"
    cache_us: int = 0
    cache_key: str = ""
    cache_tags: tuple[str, ...] = ()


class Bounds(msgspec.Struct, kw_only=True, frozen=True):
    """What a store object enforces for its process.

    Attributes:
        threads_max: the most threads whose task is ready or running; 0 is no bound. Others wait, by their place in the order.
        state_versions: how many versions of a thread's state are kept.
        provider_parallel: the ceiling of a provider that nobody has declared.
    """

    threads_max: int = 0
    state_versions: int = 20
    provider_parallel: int = 10


def retry_after_s(ends: int, span_us: int) -> float:
    """Return when room is likely, from how many tasks ended in the last `span_us`; the middle of the road if none did."""
    if not ends or span_us <= 0:
        return 1.0
    return min(max(span_us / ends / 1_000_000, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)
