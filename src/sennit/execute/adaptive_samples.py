"""Measures some of a pool's bodies for its `WorkloadDetector`: a body is wrapped before it runs, never its queue wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any, Final

from sennit.execute.executor_parts import WorkItem
from sennit.execute.workload import Kind, Meter, Sample, WorkloadDetector, function_key
from sennit.sync.gilprobe import GilProbe

__all__ = ["Sampler"]

KIND_EVERY: Final = 8  # Telling the kind of a function costs 15 µs.
KINDS_KEPT: Final = 4
EVERY_S: Final = 0.001  # A sample costs 6 µs, and 50-60 with the run-queue time: 1 % of one core at most.
LONG_EVERY_S: Final = 0.005
WAITS_KEPT: Final = 3  # of the watch: one in 50 ms
WAITS_HOLD_S: Final = 1.0
PROBE_EVERY_S: Final = 0.1  # Reading the GIL probe costs 0.1 ms.


class Sampler:
    """Notes samples in one detector, with the reading of a GIL probe: one that is running, or the pool's own watch."""

    def __init__(self, detector: WorkloadDetector, gil_probe: GilProbe | None) -> None:
        self.detector = detector
        self.due_at_s = 0.0  # Workers compare it without a lock: one sample more does no harm.
        self._probe = gil_probe
        self._wait_s: float | None = None
        self._read_at_s = 0.0
        self._waits: deque[float] = deque(maxlen=WAITS_KEPT)
        self._waited_at_s = 0.0
        self._samples = 0
        self._kinds: deque[Kind] = deque(maxlen=KINDS_KEPT)

    @property
    def kind(self) -> Kind:
        """What the functions do that ran last; unknown if they do not agree."""
        kinds = set(self._kinds.copy())
        return kinds.pop() if len(kinds) == 1 else Kind.UNKNOWN

    def note(self, key: str, sample: Sample) -> None:
        """Take one call into account."""
        self.detector.note(key, sample, gil_wait_s=self.gil_wait_s())
        self._samples += 1
        if self._samples % KIND_EVERY == 0:
            self._kinds.append(self.detector.kind(key))

    def measure(self, item: WorkItem, now_s: float) -> None:
        """Have the item's body measured when it runs."""
        measured = _Measured(self, item.fn)
        self.due_at_s = now_s + (LONG_EVERY_S if measured.is_long else EVERY_S)
        item.fn = measured

    def note_wait(self, wait_s: float) -> None:
        """Take a wait for the GIL into account, seen by whoever keeps watch."""
        self._waits.append(wait_s)
        self._waited_at_s = perf_counter()

    def gil_wait_s(self) -> float | None:
        """Return the probe's p50, at most 0.1 s old; without a probe, of the last waits of the watch, at most 1 s old."""
        now_s = perf_counter()
        probe = self._probe
        if probe is None or not probe.running:
            waits = self._waits.copy()
            return median(waits) if len(waits) == WAITS_KEPT and now_s < self._waited_at_s + WAITS_HOLD_S else None
        if now_s >= self._read_at_s:
            self._read_at_s = now_s + PROBE_EVERY_S
            reading = probe.reading(2 * PROBE_EVERY_S)
            self._wait_s = reading.p50_s if reading.readings else None
        return self._wait_s


class _Measured:
    """A body with a meter around it."""

    __slots__ = ("_fn", "_key", "_sampler", "is_long")

    def __init__(self, sampler: Sampler, fn: Callable[..., Any]) -> None:
        self._sampler = sampler
        self._fn = fn
        self._key = function_key(fn)
        self.is_long = sampler.detector.is_long(self._key)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        meter = Meter(runq=self.is_long)
        meter.start()
        try:
            return self._fn(*args, **kwargs)
        finally:
            self._sampler.note(self._key, meter.stop())
