"""The store's clock: microseconds since the epoch that never step while the machine is up.

    now_us = offset_us + CLOCK_BOOTTIME            offset_us is fixed once per boot and shared through the store

Leases, retries and delays are decided on this clock. Somebody setting the wall clock back an hour, or NTP stepping
it, moves nothing: no lease lapses early, no retry sleeps an hour longer. `time.time` is read once per boot (and by
cron, which means the wall clock). This file holds the only calls of `time.*` in sennit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # BOOTTIME also counts suspend; Linux only

NowUs = Callable[[], int]


def wall_us() -> int:
    """Return the wall clock, µs since the epoch. It may step."""
    return time.time_ns() // 1000


def uptime_us() -> int:
    """Return µs since boot, the same number in every process of this machine. It never steps."""
    return time.clock_gettime_ns(_BOOT_CLOCK) // 1000


def monotonic_s() -> float:
    """Return seconds on the interpreter's monotonic clock, for measuring durations."""
    return time.monotonic()


def boot_id() -> str:
    """Return what tells this boot from others, or "" where the system does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def steady_clock(offset_us: int) -> NowUs:
    """Return the store clock for the offset that the store holds for this boot."""

    def now_us() -> int:
        return offset_us + uptime_us()

    return now_us
