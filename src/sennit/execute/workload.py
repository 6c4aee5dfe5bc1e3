"""Learns from a few figures per call whether a function waits or computes: `io | cpu | mixed | unknown`.

    wall time in the body = CPU time + run-queue time + blocked time          (the wait in a queue is not in it)
                              │                          └ waiting for I/O, or for the GIL?  ask the GIL probe
                              └ hardly moves under contention

    share = CPU / (CPU + blocked)      io below 0.1      mixed      cpu from 0.75      unknown below 20 samples

A design that timed submit-to-done called 3,000 calls of 30 µs of pure computing "I/O", since they had waited for each
other. Here only the body is timed. A few calls that were stopped half-way (the GIL, or the scheduler, gave their core
away) do not decide either: the longest-blocked sixteenth is left out, and `io` must also hold for the median call.

A wait for I/O beside OS threads that compute looks like a wait for the GIL: 2 ms of sleep, and a probe that reads 2 ms.
But computing of 0.1 ms is stopped by the GIL (one turn: 5 ms) in every fiftieth call, not in most. So a function whose
calls are short and mostly blocked is never `cpu`, whatever the probe says; where even the waiting may be the GIL's, it
is `mixed`.

Bodies of `async def` are not for this: their OS thread is the loop's, and runs others meanwhile.

Source: method and thresholds from our measurements with 1, 4 and 8 OS threads: sleeps share 0.00, sha256 and matmul
0.92-1.00 without run-queue time, 40 ms of sleep plus Python 0.38.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, median
from time import perf_counter, thread_time
from typing import Any, Final, ParamSpec, TypeVar

try:
    import resource
except ImportError:  # not POSIX
    resource = None  # type: ignore[assignment]

__all__ = ["FunctionReport", "Kind", "Meter", "Sample", "WorkloadDetector", "function_key", "measure"]

P = ParamSpec("P")
T = TypeVar("T")

SAMPLES_MIN: Final = 20
SAMPLES_KEPT: Final = 64  # per function: one that changes its ways is known anew after as many calls
EVIDENCE_MIN: Final = 5  # calls with a GIL reading before `holds_gil` says anything
FUNCTIONS_MAX: Final = 1024

IO_BELOW: Final = 0.1
CPU_FROM: Final = 0.75
MEDIAN_IO_BELOW: Final = 0.5
SHORT_TURNS: Final = 0.5  # Computing of less than half a turn of the GIL is mostly not stopped by it.

# Probe readings, measured: 0.08-0.6 ms beside sleeps, sha256 and matmul; 1.5-16 ms beside Python loops.
GIL_QUIET_S: Final = 0.001
GIL_LOUD_S: Final = 0.002
# The probe sleeps and so is served early; OS threads that compute wait about four times as long for each turn.
GIL_WAITS_PER_TURN: Final = 4.0

LONG_S: Final = 0.005  # from here on two readings of the run-queue time, 15-30 µs each, are well below 1 %

_THREAD = getattr(resource, "RUSAGE_THREAD", None)  # Linux
_SCHEDSTAT: Final = "/proc/thread-self/schedstat"


class Kind(StrEnum):
    """What a function mostly does."""

    IO = "io"
    CPU = "cpu"
    MIXED = "mixed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Sample:
    """One call, measured in the OS thread that ran it, in seconds.

    Attributes:
        wall_s: from the first to the last instruction of the body, without any queue.
        cpu_s: CPU time of the OS thread meanwhile.
        runq_s: how long it was ready to run and had no core; 0 where nobody measured it.
        switches: how often it gave its core up to wait; None if nobody counted, 0 proves that it never blocked.
    """

    wall_s: float
    cpu_s: float
    runq_s: float = 0.0
    switches: int | None = None

    @property
    def blocked_s(self) -> float:
        """The time it waited for something other than a core: I/O, a lock, the GIL."""
        return 0.0 if self.switches == 0 else max(self.wall_s - self.cpu_s - self.runq_s, 0.0)


@dataclass(frozen=True, slots=True)
class FunctionReport:
    """What is known of one function; the figures are means over the samples that are kept (at most 64).

    Attributes:
        key: `module:qualname`.
        samples: all that were ever noted, also those that were forgotten since.
        cpu_share: CPU / (CPU + blocked), the GIL's share of the waiting taken out; 0 to 1.
        holds_gil: None while nobody can tell.
    """

    key: str
    kind: Kind
    samples: int
    wall_s: float
    cpu_s: float
    runq_s: float
    cpu_share: float
    holds_gil: bool | None


class WorkloadDetector:
    """Takes samples, answers with kinds. May be used from several OS threads; reads no clock and starts nothing."""

    def __init__(
        self, *, functions_max: int = FUNCTIONS_MAX, gil: bool | None = None, switch_interval_s: float | None = None
    ) -> None:
        """Start with nothing learnt.

        Args:
            functions_max: how many functions are remembered; the one not heard of for longest is forgotten first.
            gil: whether this interpreter has a GIL; asked of `sys` by default.
            switch_interval_s: how long an OS thread may keep the GIL; `sys.getswitchinterval()` by default.
        """
        self._functions_max = max(functions_max, 1)
        self._gil = gil_enabled() if gil is None else gil
        self._switch_interval_s = sys.getswitchinterval() if switch_interval_s is None else switch_interval_s
        self._lock = threading.Lock()
        self._functions: OrderedDict[str, _Function] = OrderedDict()

    def note(self, key: str, sample: Sample, *, gil_wait_s: float | None = None) -> None:
        """Take one call into account.

        Args:
            gil_wait_s: `GilProbe.reading().p50_s` over about the time of the call, if a probe was running.
        """
        blocked_s = sample.blocked_s
        loud: bool | None = None
        if self._gil and gil_wait_s is not None:
            loud = _gil_evidence(sample, gil_wait_s)
            if gil_wait_s >= GIL_LOUD_S:
                # One wait to begin with, and one for each turn that the computing takes: that much was not I/O.
                turns = sample.cpu_s / self._switch_interval_s
                blocked_s = max(blocked_s - gil_wait_s * (1.0 + GIL_WAITS_PER_TURN * turns), 0.0)
        with self._lock:
            function = self._functions.get(key)
            if function is None:
                while len(self._functions) >= self._functions_max:
                    self._functions.popitem(last=False)
                function = self._functions[key] = _Function(short_s=SHORT_TURNS * self._switch_interval_s)
            else:
                self._functions.move_to_end(key)
            function.note(sample, blocked_s, loud=loud)

    def kind(self, key: str) -> Kind:
        """Return what the function does, `Kind.UNKNOWN` below 20 samples."""
        with self._lock:
            function = self._functions.get(key)
            return Kind.UNKNOWN if function is None else function.kind()

    def holds_gil(self, key: str) -> bool | None:
        """Return whether the function computes in Python; False: it leaves the GIL to others (or there is none).

        None while too few calls of at least 5 ms of CPU time came with a reading of the GIL probe, or they disagree.
        True is the weaker answer of the two: another function may have held the GIL whenever this one ran.
        """
        if not self._gil:
            return False
        with self._lock:
            function = self._functions.get(key)
            return None if function is None else function.holds_gil()

    def is_long(self, key: str) -> bool:
        """Return whether calls take 5 ms or more on average: then the run-queue time is worth reading (`Meter`)."""
        with self._lock:
            function = self._functions.get(key)
            return function is not None and function.mean_wall_s() >= LONG_S

    def report(self) -> list[FunctionReport]:
        """Return all that is known, the function with the most CPU time per call first."""
        with self._lock:
            rows = [function.report(key, gil=self._gil) for key, function in self._functions.items()]
        return sorted(rows, key=lambda row: (-row.cpu_s, row.key))


def _gil_evidence(sample: Sample, gil_wait_s: float) -> bool | None:
    """Was the GIL taken (True) or free (False) while this call computed? None: the call or the reading proves nothing."""
    if sample.cpu_s < LONG_S:
        return None
    if gil_wait_s >= GIL_LOUD_S:
        return True
    return False if gil_wait_s <= GIL_QUIET_S else None


class _Function:
    """The last samples of one function; the detector's lock guards it."""

    __slots__ = ("_kind", "_kind_at", "_short_s", "evidence", "kept", "samples")

    def __init__(self, *, short_s: float) -> None:
        self.kept: deque[tuple[Sample, float]] = deque(maxlen=SAMPLES_KEPT)
        self.evidence: deque[bool] = deque(maxlen=SAMPLES_KEPT)
        self.samples = 0
        self._kind = Kind.UNKNOWN
        self._kind_at = 0
        self._short_s = short_s

    def note(self, sample: Sample, blocked_s: float, *, loud: bool | None) -> None:
        self.kept.append((sample, blocked_s))
        self.samples += 1
        if loud is not None:
            self.evidence.append(loud)

    def kind(self) -> Kind:
        if self.samples >= SAMPLES_MIN and self._kind_at != self.samples:
            self._kind_at = self.samples
            share, typical = self.cpu_shares()
            if share >= CPU_FROM and not self._mostly_blocks():
                self._kind = Kind.CPU
            elif share < IO_BELOW and typical < MEDIAN_IO_BELOW:
                self._kind = Kind.IO
            else:
                self._kind = Kind.MIXED
        return self._kind

    def cpu_shares(self) -> tuple[float, float]:
        """Return CPU / (CPU + blocked) over all but the longest-blocked sixteenth, and of the median call."""
        calls = sorted(((blocked_s, sample.cpu_s) for sample, blocked_s in self.kept), key=lambda call: call[0])
        if len(calls) >= SAMPLES_MIN:
            del calls[len(calls) - (len(calls) + 15) // 16 :]
        computed_s, blocked_s = sum(call[1] for call in calls), sum(call[0] for call in calls)
        return _share(computed_s, blocked_s), median(_share(cpu, blocked) for blocked, cpu in calls)

    def _mostly_blocks(self) -> bool:
        """Is the median call blocked for longer than it computes, and computes too little for that to be the GIL?"""
        if median(sample.cpu_s for sample, _ in self.kept) >= self._short_s:
            return False
        return median(_share(sample.cpu_s, sample.blocked_s) for sample, _ in self.kept) < MEDIAN_IO_BELOW

    def holds_gil(self) -> bool | None:
        if len(self.evidence) < EVIDENCE_MIN:
            return None
        loud = fmean(self.evidence)
        if loud >= 0.75:
            return True
        return False if loud <= 0.25 else None

    def mean_wall_s(self) -> float:
        return fmean(sample.wall_s for sample, _ in self.kept)

    def report(self, key: str, *, gil: bool) -> FunctionReport:
        return FunctionReport(
            key=key,
            kind=self.kind(),
            samples=self.samples,
            wall_s=self.mean_wall_s(),
            cpu_s=fmean(sample.cpu_s for sample, _ in self.kept),
            runq_s=fmean(sample.runq_s for sample, _ in self.kept),
            cpu_share=self.cpu_shares()[0],
            holds_gil=self.holds_gil() if gil else False,
        )


def _share(cpu_s: float, blocked_s: float) -> float:
    return cpu_s / (cpu_s + blocked_s) if blocked_s > 0.0 else 1.0


# ---------------------------------------------------------------- measuring, in the OS thread that runs the body


class Meter:
    """Reads the clocks around one body; the same OS thread calls `start` and `stop`. About 3 µs, 30-60 with `runq`.

    try/finally around the body is enough for all that a body may raise:

        meter = Meter(runq=detector.is_long(key))
        meter.start()
        try:
            result = body()
        finally:
            detector.note(key, meter.stop())
    """

    __slots__ = ("_cpu_s", "_runq", "_runq_s", "_switches", "_wall_s")

    def __init__(self, *, runq: bool = False) -> None:
        """Args: runq: also read the run-queue time (Linux; elsewhere it stays 0). Worth it from 5 ms on."""
        self._runq = runq
        self._runq_s = self._cpu_s = self._wall_s = 0.0
        self._switches: int | None = None

    def start(self) -> None:
        """Begin. The wall clock is read last and first, so that it never counts the reading of the others."""
        if self._runq:
            self._runq_s = run_queue_s()
        self._switches = _voluntary_switches()
        self._cpu_s = thread_time()
        self._wall_s = perf_counter()

    def stop(self) -> Sample:
        """Return what the body took since `start`."""
        wall_s = perf_counter() - self._wall_s
        cpu_s = min(thread_time() - self._cpu_s, wall_s)
        before, after = self._switches, _voluntary_switches()
        switches = None if before is None or after is None else after - before
        runq_s = min(max(run_queue_s() - self._runq_s, 0.0), wall_s - cpu_s) if self._runq else 0.0
        return Sample(wall_s, cpu_s, runq_s, switches)


def measure(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> tuple[T, Sample]:
    """Call `fn` and return its result with the sample; what it raises goes through, and then there is no sample."""
    meter = Meter(runq=True)
    meter.start()
    result = fn(*args, **kwargs)
    return result, meter.stop()


def run_queue_s(os_thread: int | None = None) -> float:
    """Return how long an OS thread (a native id; None: this one) was ready and had no core, ever; 0.0 if unknown."""
    return _schedule_s(os_thread)[1]


def demand_s(os_thread: int) -> float:
    """Return how long an OS thread (a native id) had a core or was ready for one, ever; 0.0 if unknown."""
    return sum(_schedule_s(os_thread))


def _schedule_s(os_thread: int | None) -> tuple[float, float]:
    """Return time on a core and in its queue. Source: kernel documentation, scheduler/sched-stats, /proc/<pid>/schedstat."""
    path = _SCHEDSTAT if os_thread is None else f"/proc/self/task/{os_thread}/schedstat"
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  a third of the cost of Path.read_bytes
            on_core, queued = file.read(64).split()[:2]
            return int(on_core) / 1e9, int(queued) / 1e9
    except (OSError, ValueError):  # Not Linux, no such statistics, or the OS thread has ended.
        return 0.0, 0.0


def _voluntary_switches() -> int | None:
    return None if _THREAD is None else resource.getrusage(_THREAD).ru_nvcsw


def gil_enabled() -> bool:
    """Return whether OS threads of this interpreter take turns at Python code."""
    asked: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return asked()


def function_key(fn: Any) -> str:
    """Return `module:qualname` of what a callable runs in the end: partials and bound methods are looked through."""
    while True:
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif (inner := getattr(fn, "__func__", None)) is not None:
            fn = inner
        else:
            break
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{getattr(named, '__module__', None) or 'builtins'}:{named.__qualname__}"
