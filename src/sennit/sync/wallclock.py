"""Learns at once when somebody sets the wall clock, without looking at it again and again.

A Linux timer descriptor on the real-time clock can be told to report when that clock is set (`TFD_TIMER_CANCEL_ON_SET`,
timerfd_create(2)). Elsewhere, and where the descriptor cannot be made, nothing is reported: `watches` says so.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

# Source: linux/timerfd.h and linux/time.h; the standard library has these from Python 3.13.
_CLOCK_REALTIME: Final = 0
_NONBLOCK: Final = 0o4000
_CLOEXEC: Final = 0o2000000
_ABSTIME: Final = 1
_CANCEL_ON_SET: Final = 2
_FAR_AWAY_S: Final = 2**40  # an expiry that never comes; only the cancellation is of interest


class _TimeSpec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("it_interval", _TimeSpec), ("it_value", _TimeSpec))


class WallClockWatch:
    """Calls `on_set()` on the loop whenever the wall clock was set. All methods belong to the loop's OS thread."""

    def __init__(self, loop: AbstractEventLoop, on_set: Callable[[], None]) -> None:
        self._loop = loop
        self._on_set = on_set
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = _create(self._libc)
        if self._descriptor != -1:
            self._arm()
            loop.add_reader(self._descriptor, self._readable)

    @property
    def watches(self) -> bool:
        """True where the system reports a change of the clock."""
        return self._descriptor != -1

    def close(self) -> None:
        """Stop watching. Harmless when closed."""
        if self._descriptor != -1:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _arm(self) -> None:
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(_FAR_AWAY_S, 0))
        self._libc.timerfd_settime(self._descriptor, _ABSTIME | _CANCEL_ON_SET, ctypes.byref(spec), None)

    def _readable(self) -> None:
        with suppress(OSError):  # ECANCELED is the news itself
            os.read(self._descriptor, 8)
        self._arm()
        self._on_set()


def _create(libc: ctypes.CDLL) -> int:
    """Return a timer descriptor, or -1 where there is none."""
    try:
        descriptor: int = libc.timerfd_create(_CLOCK_REALTIME, _NONBLOCK | _CLOEXEC)
    except AttributeError:
        return -1
    return descriptor
