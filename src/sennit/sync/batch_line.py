"""What waits for a batch, and when it is one: the part of a `Batcher` without a clock, locks or a loop.

    add ─► ▪▪▪▪▪▪▪ ─► due(now)? ─► take ─► one batch under way ─► over ─► due(now)? …
              │         "count"   items_max wait
            remove      "bytes"   bytes_max wait
          (cancelled)   "age"     the oldest has waited age_s_max
                        "idle"    no batch is under way (not with `gather`)
                        "close"   nothing more will come

The faces (`batch`, `batch_async`) bring time and waiting to it. Whoever uses a `Line` from several OS threads holds a lock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar

from sennit.errors import SettingsError

__all__ = ["WAITS_KEPT", "BatchStatistics", "Call", "Limits", "Line", "WhenFull", "Why", "raises_when_full"]

T = TypeVar("T")

Why = Literal["count", "bytes", "age", "idle", "close"]
WhenFull = Literal["wait", "error"]

WAITS_KEPT: Final = 1024
"""Waits of the latest calls, from which p50 and p99 are read."""


def raises_when_full(when_full: WhenFull) -> bool:
    """Return whether a call that finds no room is refused.

    Raises:
        SettingsError: there is no such `when_full`.
    """
    if when_full not in ("wait", "error"):
        raise SettingsError(f"when_full={when_full!r} is neither 'wait' nor 'error'")
    return when_full == "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(Generic[T]):
    """When what waits becomes a batch; the fields are described at `Batcher`."""

    items_max: int = 10
    age_s_max: float = 0.05
    bytes_max: int | None = None
    size_of: Callable[[T], int] | None = None
    gather: bool = False
    in_flight_max: int = 1
    waiting_max: int | None = None

    def __post_init__(self) -> None:
        for name in ("items_max", "in_flight_max", "bytes_max", "waiting_max"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}, and a batch needs at least 1")
        if not 0 <= self.age_s_max <= 3600:
            raise SettingsError(f"age_s_max is {self.age_s_max}, not between 0 and 3600 seconds")
        if (self.bytes_max is None) != (self.size_of is None):
            raise SettingsError(
                "bytes_max and size_of belong together",
                why="the one is a bound, the other says how much of it an item takes",
                fix="give both, such as bytes_max=8_000, size_of=len",
            )

    def size(self, item: T) -> int:
        """Return what an item takes of `bytes_max`.

        Raises:
            ValueError: `size_of` says less than 0. Else what `size_of` raises.
        """
        size = 0 if self.size_of is None else self.size_of(item)
        if size < 0:
            raise ValueError(f"size_of says {size} for an item, which is less than nothing")
        return size


class Call(Generic[T]):
    """One item that waits, or is in a batch."""

    __slots__ = ("added_s", "item", "size_bytes")

    def __init__(self, item: T, size_bytes: int, added_s: float) -> None:
        self.item = item
        self.size_bytes = size_bytes
        self.added_s = added_s


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatistics:
    """What a batcher has done so far; of all its time, but for the waits, which are of the latest `WAITS_KEPT` calls.

    Attributes:
        items: taken into a batch.
        failed: of these, ended by an error.
        left: cancelled before their batch began.
        wait_s_p50, wait_s_p99: from the call to the start of its batch.
        why: what made how many batches.
        splits: calls of the function beyond one per batch (`split_on_error`).
    """

    batches: int
    items: int
    failed: int
    left: int
    size_mean: float
    wait_s_p50: float
    wait_s_p99: float
    why: dict[Why, int]
    splits: int
    waiting: int
    under_way: int


C = TypeVar("C", bound=Call[Any])


@dataclass(slots=True)
class Line(Generic[C]):
    """The calls that wait, in order, and how many batches are under way."""

    limits: Limits[Any]
    closing: bool = False
    under_way: int = 0
    waiting: deque[C] = field(default_factory=deque)
    waiting_bytes: int = 0
    batches: int = 0
    items: int = 0
    failed: int = 0
    left: int = 0
    splits: int = 0
    why: dict[Why, int] = field(default_factory=dict)
    waits_s: deque[float] = field(default_factory=lambda: deque(maxlen=WAITS_KEPT))

    @property
    def full(self) -> bool:
        """Whether `waiting_max` calls wait."""
        return self.limits.waiting_max is not None and len(self.waiting) >= self.limits.waiting_max

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self.waiting and not self.under_way

    def add(self, call: C) -> None:
        """Let a call wait; ask `due` next."""
        self.waiting.append(call)
        self.waiting_bytes += call.size_bytes

    def remove(self, call: C) -> bool:
        """Let a call go that was cancelled; False if it is in a batch already."""
        try:
            self.waiting.remove(call)
        except ValueError:
            return False
        self.waiting_bytes -= call.size_bytes
        self.left += 1
        return True

    def due(self, now_s: float) -> Why | None:
        """Return why a batch is to begin now, or None."""
        limits = self.limits
        if not self.waiting or self.under_way >= limits.in_flight_max:
            return None
        if len(self.waiting) >= limits.items_max:
            return "count"
        if limits.bytes_max is not None and self.waiting_bytes >= limits.bytes_max:
            return "bytes"
        if self.closing:
            return "close"
        if not self.under_way and not limits.gather:
            return "idle"
        return "age" if now_s >= self.waiting[0].added_s + limits.age_s_max else None

    def next_s(self) -> float | None:
        """Return when the oldest has waited `age_s_max`; None if that would change nothing.

        Nothing waits, or all batches that may are under way: then the end of one is the time to ask `due` again.
        """
        if not self.waiting or self.under_way >= self.limits.in_flight_max:
            return None
        return self.waiting[0].added_s + self.limits.age_s_max

    def take(self, why: Why, now_s: float) -> list[C]:
        """Begin a batch: return its calls, the oldest first. At least one, even if that one is over `bytes_max`."""
        batch, size = [], 0
        for call in self._fitting():
            batch.append(call)
            size += call.size_bytes
            self.waits_s.append(max(0.0, now_s - call.added_s))
        for _ in batch:
            self.waiting.popleft()
        self.waiting_bytes -= size
        self.under_way += 1
        self.batches += 1
        self.items += len(batch)
        self.why[why] = self.why.get(why, 0) + 1
        return batch

    def begun_without(self, why: Why, gone: int, *, nobody_left: bool) -> None:
        """Correct what `take` noted by calls that were cancelled at that very moment."""
        self.items -= gone
        self.left += gone
        if nobody_left:
            self.under_way -= 1
            self.batches -= 1
            self.why[why] -= 1

    def _fitting(self) -> Iterator[C]:
        size, bytes_max = 0, self.limits.bytes_max
        for place, call in enumerate(self.waiting):
            size += call.size_bytes
            if place == self.limits.items_max or (place and bytes_max is not None and size > bytes_max):
                return
            yield call

    def statistics(self) -> BatchStatistics:
        """Return the figures up to now."""
        waits_s = sorted(self.waits_s)
        return BatchStatistics(
            batches=self.batches,
            items=self.items,
            failed=self.failed,
            left=self.left,
            size_mean=self.items / self.batches if self.batches else 0.0,
            wait_s_p50=_quantile(waits_s, 0.5),
            wait_s_p99=_quantile(waits_s, 0.99),
            why=dict(self.why),
            splits=self.splits,
            waiting=len(self.waiting),
            under_way=self.under_way,
        )


def _quantile(ordered: list[float], q: float) -> float:
    """Return the smallest value that at least the share `q` does not exceed (nearest rank); 0.0 of nothing."""
    return ordered[max(1, math.ceil(q * len(ordered))) - 1] if ordered else 0.0
