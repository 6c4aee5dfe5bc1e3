"""How long one waits for the GIL right now: an OS thread sleeps 5 ms and sees how much later it goes on.

    sleep 5 ms ──► ready ──(run queue: subtracted, Linux)──► core ──(the GIL)──► awake
                   └───────────────── overshoot ─────────────────┘

Beside OS threads that wait, or compute in C without the GIL, the overshoot is about 0.1 ms; beside one that computes in
Python it is a switch interval (5 ms) and more. It costs 200 wake-ups a second, so it runs only between `start` and
`stop`. Some time without the GIL goes by in any program: use `waited_s`, which only grows, for a metric.

Source: the method is gilknocker's (a Rust extension used by dask); this one is ours and needs no extension. Without
a GIL (`sys._is_gil_enabled()` is False) the figures are those of a timer.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Final, Self

from sennit.errors import SettingsError
from sennit.sync.forks import drop_after_fork

__all__ = ["GilProbe", "GilReading"]

INTERVAL_S: Final = 0.005
KEPT: Final = 4096  # readings: 20 s of them at 5 ms, about 0.5 MB


@dataclass(frozen=True, slots=True)
class GilReading:
    """What the probe saw.

    Attributes:
        p50_s, p99_s: how long it waited for the GIL, over the window; 0.0 while `readings` is 0.
        readings: in the window.
        waited_s: all waiting since the probe was made; a counter.
        watched_s: for how long it has looked since it was made, sleeps included; a counter.
    """

    p50_s: float
    p99_s: float
    readings: int
    waited_s: float
    watched_s: float


class _Series:
    """What the OS thread of one probe writes and others read; appends and snapshots are single calls, so no lock."""

    __slots__ = ("kept", "waited_s", "watched_s")

    def __init__(self) -> None:
        self.kept: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self.waited_s = 0.0
        self.watched_s = 0.0

    def note(self, now_s: float, waited_s: float, watched_s: float) -> None:
        self.kept.append((now_s, waited_s))
        self.waited_s += waited_s
        self.watched_s += watched_s


class GilProbe:
    """Measures between `start` and `stop`, or as a context manager. May be used from any OS thread.

    A probe that nobody holds any more stops by itself. In a forked child it is stopped.
    """

    def __init__(self, *, interval_s: float = INTERVAL_S) -> None:
        """Start nothing yet.

        Raises:
            SettingsError: `interval_s` is not positive.
        """
        if interval_s <= 0:
            raise SettingsError(f"a GIL probe cannot sleep for {interval_s} s", fix="use 0.005, or leave it out")
        self._interval_s = interval_s
        self._series = _Series()
        self._lock = threading.Lock()
        self._os_thread: threading.Thread | None = None
        self._end: weakref.finalize[[], GilProbe] | None = None
        drop_after_fork(self)

    @property
    def running(self) -> bool:
        """Whether it measures now."""
        return self._os_thread is not None

    def start(self) -> None:
        """Begin to measure; nothing happens if it does already.

        Raises:
            RuntimeError: the system refuses an OS thread.
        """
        with self._lock:
            if self._os_thread is not None:
                return
            gate = threading.Lock()
            gate.acquire()
            os_thread = threading.Thread(
                target=_watch, args=(self._series, gate, self._interval_s), name="sennit-gil-probe", daemon=True
            )
            os_thread.start()
            self._os_thread = os_thread
            self._end = weakref.finalize(self, gate.release)
            self._end.atexit = False

    def stop(self) -> None:
        """End the measuring and its OS thread; what was read stays readable."""
        with self._lock:
            os_thread, self._os_thread = self._os_thread, None
            end, self._end = self._end, None
        if end is not None:
            end()
        if os_thread is not None:
            os_thread.join()

    def reading(self, window_s: float = 1.0) -> GilReading:
        """Return the readings of the last `window_s` seconds, and the counters. 0.1 ms for a second's readings.

        A wait that is still going on is not in it: whoever holds the GIL for 100 ms shows 100 ms later.
        """
        since_s = perf_counter() - window_s
        waits = []
        for at_s, waited_s in reversed(self._series.kept.copy()):
            if at_s < since_s:
                break
            waits.append(waited_s)
        waits.sort()
        return GilReading(
            p50_s=_quantile(waits, 0.5),
            p99_s=_quantile(waits, 0.99),
            readings=len(waits),
            waited_s=self._series.waited_s,
            watched_s=self._series.watched_s,
        )

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def drop_after_fork(self) -> None:
        """In a forked child: the OS thread is not there, and the lock may have been held."""
        self._lock = threading.Lock()
        self._os_thread = None
        if self._end is not None:
            self._end.detach()
            self._end = None


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(int(len(ordered) * q), len(ordered) - 1)] if ordered else 0.0


def _watch(series: _Series, gate: threading.Lock, interval_s: float) -> None:
    """Sleep and measure until the gate opens; the life of the probe's OS thread."""
    schedstat = -1
    with suppress(OSError):  # Not Linux: then a wait for a core counts as one for the GIL.
        schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        runq_s = _run_queue_s(schedstat)
        began_s = perf_counter()
        while not gate.acquire(timeout=interval_s):
            ended_s, runq_before_s, runq_s = perf_counter(), runq_s, _run_queue_s(schedstat)
            waited_s = ended_s - began_s - interval_s - (runq_s - runq_before_s)
            series.note(ended_s, max(waited_s, 0.0), ended_s - began_s)
            began_s = perf_counter()
    finally:
        if schedstat >= 0:
            os.close(schedstat)


def _run_queue_s(schedstat: int) -> float:
    """Return how long this OS thread was ready without a core, ever. Source: kernel, scheduler/sched-stats, field 2."""
    if schedstat < 0:
        return 0.0
    try:
        return int(os.pread(schedstat, 64, 0).split()[1]) / 1e9
    except (OSError, IndexError, ValueError):  # The kernel keeps no such statistics.
        return 0.0
