"""May this process take more? Memory decides: over a bound it takes no further tasks until there is room again.

    attempt starts or ends ─► note ─► (at most every 0.25 s) sample ─► over the bound ─► closed ──┐
                                                                                  ▲ each second   │
    open again, below 95 % of it ◄────────────────────────────────────────────────┴───────────────┘

While it is open nothing is timed: a process in which nothing starts or ends is never woken for this. What runs goes on;
it is the only one that can give memory back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, Protocol

import psutil

from sennit.errors import StateTooLarge

_log = logging.getLogger("sennit")

SAMPLE_EVERY_S: Final = 0.25
LOOK_AGAIN_S: Final = 1.0
# How far below the bound it opens again: at the very bound it would open and close with every task.
OPEN_BELOW: Final = 0.95


class Timer(Protocol):
    """What `later` returns; an event loop's TimerHandle."""

    def cancel(self) -> None:
        """Do not call."""


class MemoryGate:
    """Says when this process is to take no further tasks. All methods belong to one OS thread.

    Args:
        bytes_max: the bound; 0 is none, and then nothing is ever sampled.
        sample: returns how many bytes are in use.
        on_change: told True when the gate closes, and False when it opens again.
        now_s: a clock that never steps.
        later: calls a function after so many seconds, as `loop.call_later`.
    """

    def __init__(
        self,
        bytes_max: int,
        *,
        sample: Callable[[], int],
        on_change: Callable[[bool], None],
        now_s: Callable[[], float],
        later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._bytes_max = bytes_max
        self._sample = sample
        self._on_change = on_change
        self._now_s = now_s
        self._later = later
        self._sampled_s = float("-inf")
        self._timer: Timer | None = None
        self.is_closed = False

    def note(self) -> None:
        """An attempt has started or ended: this may have changed how much memory is in use."""
        if self._bytes_max and self._now_s() - self._sampled_s >= SAMPLE_EVERY_S:
            self._look()

    def close(self) -> None:
        """Time nothing any more."""
        self._bytes_max = 0
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._sampled_s = self._now_s()
        used = self._sample()
        if not self.is_closed and used > self._bytes_max:
            _log.warning(
                "%s of memory are in use and memory_bytes_max is %s: no further tasks until it is below %s",
                _megabytes(used), _megabytes(self._bytes_max), _megabytes(self._bytes_max * OPEN_BELOW),
            )  # fmt: skip
            self._change(is_closed=True)
        elif self.is_closed and used < self._bytes_max * OPEN_BELOW:
            _log.warning("%s of memory are in use: taking tasks again", _megabytes(used))
            self._change(is_closed=False)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._later(LOOK_AGAIN_S, self._look) if self.is_closed else None

    def _change(self, *, is_closed: bool) -> None:
        self.is_closed = is_closed
        self._on_change(is_closed)


def resident_bytes(pids: Callable[[], Iterable[int]]) -> int:
    """Return the resident memory of this process and of those that `pids` names; what they share counts for each."""
    used: int = psutil.Process().memory_info().rss
    for pid in pids():
        with suppress(psutil.NoSuchProcess):  # it has ended: it uses none
            used += psutil.Process(pid).memory_info().rss
    return used


def check_thread_bytes(thread_id: str, size_bytes: int, size_bytes_max: int) -> None:
    """Check the size of what a thread keeps against `thread_memory_bytes_max`; 0 is no bound.

    Raises:
        StateTooLarge: it is over the bound.
    """
    if size_bytes_max and size_bytes > size_bytes_max:
        raise StateTooLarge(thread_id, size_bytes=size_bytes, size_bytes_max=size_bytes_max)


def _megabytes(n: float) -> str:
    return f"{n / 1e6:,.0f} MB"
