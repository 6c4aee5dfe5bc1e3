"""Finds how many workers give the most completed work per second, by small measured steps. Pure: figures in, size out.

    quiet   workers hardly compute, and all together less than half a core:  double
    busy    cores or the GIL may be the limit:  fewer? (as good is better)   some more? (must gain, twice compared)

    window at a size ──► rate ──► a trial at another size ──► rate ──► keep it, or step back and hold for a while
                                                                              0.25 s, doubled up to 16 s

Work that waits and computes has a prior: workers who together want `load` cores (a core, or waiting for one) can be
about 1 / load times as many before one core, or the GIL, is full. So below 0.8 the next trial goes there at once, and
no trial of fewer workers is kept that leaves the load below 0.6: rates scatter on a busy machine, the load hardly does.

Only time in which work was queued counts: a window ends when the queue runs dry. There is no table of sizes for kinds
of work. Pure Python ends at one worker because two complete no more; what leaves the GIL alone at the usable cores;
waiting where the next doubling gains nothing, or at the maximum.

Workers that all wait for a lock of their own look quiet too: there a doubling is undone by what it did not gain. Calls
that take longer than 50 ms show no rate soon enough; while nothing uses a core and nobody waits for one, sizes double
without it, so that long waits, and tasks that wait for tasks of their own pool, get their workers. What the rest of
the process does meanwhile does not count there. Behind long computing one more comes every half second, up to a few.

Source: hill climbing on throughput as in the .NET thread pool (Hellerstein et al., "Optimizing concurrency levels in
the .NET ThreadPool", 2009), without its signal processing; doubling from TCP slow start; the prior is the utilisation law (Denning and Buzen, "The Operational
Analysis of Queueing Network Models", 1978). Constants: our measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import Final

from sennit.execute.workload import Kind

__all__ = ["Figures", "KneeFinder"]

QUIET_CORES: Final = 0.5
# Of a worker's time. One that computes gets a core for more than this even among ten others that want it.
QUIET_PER_WORKER: Final = 0.05
BUSY_PER_WORKER: Final = 0.8  # Workers that compute this much of their time: more than there are cores gain nothing.
BLIND_S: Final = 0.05  # How long nothing may complete before sizes double without a rate.
STALL_S: Final = 0.5  # Long computing: so much later one more may run, for what is queued behind it may be short.
STALL_WORKERS: Final = 4  # at least; up to twice the cores
BUSY_CPU_S: Final = 0.05  # Ten switch intervals of the GIL; shorter windows measured who happened to hold it.
BUSY_WINDOW_S: Final = 0.5  # for a process that gets no such share of a busy machine
BUSY_DONE: Final = 10
QUIET_DONE: Final = 8
GAIN_MIN: Final = 0.2  # of what the added workers would give if nothing limited them
LOSS_MAX: Final = 0.03  # a smaller size may lose this much: fewer OS threads are cheaper for everybody else
CHANGED: Final = 2.0  # A rate that moved by this factor: other work, what was learnt does not hold.
HOLD_S_MIN: Final = 0.25
HOLD_S_MAX: Final = 16.0
HOLD_WINDOWS: Final = 8.0  # A hold is so much longer than what the trial took, so trials cost a few per cent at most.
GIL_FULL_CORES: Final = 0.8  # Below that the GIL is not what limits, so more workers are tried before fewer.
LOAD_S: Final = 0.04  # The load is taken over at least this.
LOAD_WAIT_S: Final = 0.2  # A busy window waits so long for it; without one the rate decides alone.
LOAD_LOW: Final = 0.6  # Fewer workers that together want less than this were too few.
CHECK_S_MIN: Final = 0.0005
CHECK_S_MAX: Final = 0.05


@dataclass(frozen=True, slots=True)
class Figures:
    """What the pool counts at one moment.

    Attributes:
        now_s: a monotonic clock.
        completed: items done, ever.
        cpu_s: CPU time of the process, ever.
        busy: workers that have work now.
        kind: what the functions do that ran last, if they agree.
        demand_s: how long the pool's OS threads had a core or were ready for one, ever; None if it was not read.
    """

    now_s: float
    completed: int
    cpu_s: float
    busy: int
    demand_s: float | None = None
    kind: Kind = Kind.UNKNOWN


class Way(Enum):
    """Where a trial goes."""

    UP = "up"
    DOWN = "down"


@dataclass(slots=True)
class _Trial:
    """A size that must prove itself against the one before it."""

    way: Way
    from_size: int
    from_rate: float | None  # None: nothing completed there in time, so whatever completes now is better.
    quiet: bool
    from_load: float | None = None
    rate: float | None = None  # It has gained; now the old size is measured once more: or only the machine was freer.
    size: int = 0


@dataclass(slots=True)
class _Window:
    """Figures at its begin, and what went before it was interrupted by an empty queue."""

    since: Figures
    done: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0


class KneeFinder:
    """The size of one pool. Not locked: the pool calls it under its own lock.

    Attributes:
        size: how many workers should work.
        quiet: workers hardly computed when it last looked, so all that there is work for may be called at once.
        steps_up, steps_down: steps that were kept, or undone.
    """

    def __init__(self, *, size: int, size_min: int, size_max: int, cores: int, up_at: float = 0.7) -> None:
        """Start at `size`.

        Args:
            size_min: never below; `size` may be.
            size_max: never above.
            cores: how many this process may use.
            up_at: the share of `size` that must have work before a larger one is tried.
        """
        self.size = size
        self.size_min = size_min
        self.size_max = size_max
        self.cores = cores
        self.up_at = up_at
        self.steps_up = 0
        self.steps_down = 0
        self.quiet = False
        self._window: _Window | None = None
        self._paused: _Window | None = None
        self._trial: _Trial | None = None
        self._untried: list[int] = []
        self._hold_s = HOLD_S_MIN
        self._held_until_s = 0.0
        self._held_rate: float | None = None
        self._held_quiet = False
        self._window_s = 0.0
        self._kind = Kind.UNKNOWN
        self._load: float | None = None  # cores that all workers together want, at this size
        self._load_since: Figures | None = None

    @property
    def watching(self) -> bool:
        """Whether a window is open, so that an empty queue must be told."""
        return self._window is not None

    # ------------------------------------------------------------ what the pool tells

    def tick(self, figures: Figures) -> float:
        """Take figures while work is queued; may change `size`. Return in how many seconds the next ones are due."""
        self._take_load(figures)
        window = self._window
        if window is None:
            self._open(figures, self._paused)
            return CHECK_S_MIN
        since = window.since
        elapsed_s = figures.now_s - since.now_s
        wall_s, done = window.wall_s + elapsed_s, window.done + figures.completed - since.completed
        cpu_s = window.cpu_s + figures.cpu_s - since.cpu_s
        if wall_s <= 0.0:
            return CHECK_S_MIN
        cores = cpu_s / wall_s
        quiet = self.quiet = cores < min(QUIET_CORES, QUIET_PER_WORKER * self.size)
        if figures.busy < self.up_at * self.size and elapsed_s < BLIND_S:
            return CHECK_S_MIN  # Workers are still on their way; the window goes on, their absence is part of it.
        if not self._complete(done=done, wall_s=wall_s, cpu_s=cpu_s, quiet=quiet):
            if elapsed_s >= BLIND_S:
                self._step_blind(figures, done=done, wall_s=wall_s)
            return min(max(wall_s / 16, CHECK_S_MIN), CHECK_S_MAX)
        self._window_s = wall_s
        self._kind = figures.kind
        self._measured(figures.now_s, rate=done / wall_s, cores=cores, quiet=quiet)
        self._open(figures, None)
        return CHECK_S_MIN

    def dry(self, figures: Figures) -> None:
        """The queue is empty: the window ends here, and goes on later if enough of it was measured."""
        window, self._window = self._window, None
        self._load_since = None
        if window is None:
            return
        done = figures.completed - window.since.completed
        cpu_s = figures.cpu_s - window.since.cpu_s
        wall_s = figures.now_s - window.since.now_s
        if cpu_s >= QUIET_CORES * wall_s and done >= 2 * self.size:
            window.done += done
            window.wall_s += wall_s
            window.cpu_s += cpu_s
            self._paused = window
            return
        self._paused = None
        trial = self._trial
        if trial is not None and not trial.quiet:
            # Nothing proves this size. A doubling while all wait may stay: it costs nothing until it is proved wrong.
            self._trial, self._untried = None, []
            self._set(trial.from_size)

    def resize(self, size: int) -> None:
        """Go on from another size, which somebody has chosen."""
        self._forget()
        self.size = size
        self._load = self._load_since = None

    def refused(self, workers: int, *, now_s: float) -> None:
        """The system gives no more OS threads than `workers`: try again later."""
        self.resize(max(workers, 1))
        self._hold_s = HOLD_S_MAX
        self._hold(now_s, None, quiet=True)

    # ------------------------------------------------------------ windows and steps

    def _open(self, figures: Figures, paused: _Window | None) -> None:
        self._paused = None
        if paused is None:
            self._window = _Window(figures)
        else:
            paused.since = figures
            self._window = paused

    def _take_load(self, figures: Figures) -> None:
        """Take the load from two readings at one size while work was queued."""
        since = self._load_since
        if figures.demand_s is None:
            return
        if since is None or since.demand_s is None:
            self._load_since = figures
        elif (elapsed_s := figures.now_s - since.now_s) >= LOAD_S:
            # Others in this process may hold the GIL, so what all of it computes is the least.
            self._load = max(figures.demand_s - since.demand_s, figures.cpu_s - since.cpu_s) / elapsed_s
            self._load_since = figures

    def _complete(self, *, done: int, wall_s: float, cpu_s: float, quiet: bool) -> bool:
        """Are there enough figures for a rate? One round of all workers while they wait, more where noise is larger."""
        if quiet:
            return done >= max(self.size, QUIET_DONE)
        if self._load is None and wall_s < LOAD_WAIT_S:
            return False
        return (cpu_s >= BUSY_CPU_S or wall_s >= BUSY_WINDOW_S) and done >= max(self.size, BUSY_DONE)

    def _step_blind(self, figures: Figures, *, done: int, wall_s: float) -> None:
        """Nothing completes and nobody computes: double, unless it is known to be of no use."""
        window = self._window
        if window is None or self.size >= self.size_max:
            return
        before_s, now_s = window.since.demand_s, figures.demand_s
        if before_s is None or now_s is None:
            if now_s is not None:
                self._open(figures, None)
            return  # Waiting for a core looks like waiting, until somebody reads the run-queue times.
        elapsed_s = figures.now_s - window.since.now_s
        if now_s - before_s >= QUIET_CORES * elapsed_s:
            if elapsed_s >= STALL_S and not done and self.size < max(2 * self.cores, STALL_WORKERS):
                self._trial, self._untried = None, []
                self._set(min(self.size + 1, self.size_max))
                self._open(figures, None)
            return
        if self._held(figures.now_s, done / wall_s, quiet=True):
            return
        self._trial = _Trial(Way.UP, self.size, None, quiet=True)
        self._untried = []
        self._set(min(self.size * 2, self.size_max))
        self._open(figures, None)

    def _measured(self, now_s: float, *, rate: float, cores: float, quiet: bool) -> None:
        trial, self._trial = self._trial, None
        if trial is None:
            if not self._held(now_s, rate, quiet=quiet):
                self._untried = self._untried or self._candidates(cores=cores, quiet=quiet, after=None)
                self._try_next(now_s, rate, quiet=quiet)
            return
        if self._proved(trial, rate):
            sure = trial.quiet or (trial.from_load is not None and trial.from_load < GIL_FULL_CORES)
            if trial.way is Way.UP and not sure and trial.rate is None:
                trial.rate, trial.size, self._trial = rate, self.size, trial
                self._set(trial.from_size)
                return
            if trial.rate is not None:
                self._set(trial.size)
                rate = trial.rate
            self._hold_s = HOLD_S_MIN
            self._untried = self._candidates(cores=cores, quiet=quiet, after=trial.way)
            self._try_next(now_s, rate, quiet=quiet)
            return
        self._set(trial.from_size)
        if not self._untried:  # Else the old size is measured afresh before the next trial: load changes.
            self._hold(now_s, trial.from_rate, quiet=trial.quiet)

    def _proved(self, trial: _Trial, rate: float) -> bool:
        if trial.from_rate is None:
            return True
        if trial.rate is not None:
            return trial.rate >= rate * (1.0 + GAIN_MIN * (trial.size / trial.from_size - 1.0))
        if trial.way is Way.DOWN:
            if not trial.quiet and self._load is not None and self._load < LOAD_LOW:
                return False
            return rate >= trial.from_rate * (1.0 - LOSS_MAX)
        return rate >= trial.from_rate * (1.0 + GAIN_MIN * (self.size / trial.from_size - 1.0))

    def _candidates(self, *, cores: float, quiet: bool, after: Way | None) -> list[int]:
        """Return the sizes worth a trial, in their order; `after` a step that was kept only further that way."""
        size = self.size
        up, down = [size * 2, size + max(size // 4, 1)], []
        if not quiet or self._kind is Kind.CPU:  # What computes and looks quiet does not get the cores it wants.
            waits = self._kind in {Kind.IO, Kind.MIXED} and cores < GIL_FULL_CORES
            up = [size * 2, size + max(size // 2, 1)] if waits else [size + max(size // 2, 1)]
            if size >= self.cores and (self._kind is Kind.CPU or cores / size >= BUSY_PER_WORKER):
                up = []  # They hardly wait, and there are no more cores.
            if size > ceil(cores - 0.3):  # More use of cores than one proves that the GIL leaves room for these.
                down = [size // 2, size * 3 // 4]
            if self._load is not None and self._load < GIL_FULL_CORES:
                up = [min(ceil(size / self._load), size * 8), size + max(size // 2, 1)]
                down = down if after is Way.DOWN or self._load >= LOAD_LOW else []
        first, second = (down, up) if cores >= GIL_FULL_CORES else (up, down)
        if after is not None:
            first, second = (up, []) if after is Way.UP else (down, [])
        fitting = [min(max(other, self.size_min), self.size_max) for other in (*first, *second)]
        return list(dict.fromkeys(other for other in fitting if other != size))

    def _try_next(self, now_s: float, rate: float, *, quiet: bool) -> None:
        if not self._untried:
            self._hold(now_s, rate, quiet=quiet)
            return
        size = self._untried.pop(0)
        self._trial = _Trial(Way.UP if size > self.size else Way.DOWN, self.size, rate, quiet, self._load)
        self._set(size)

    def _set(self, size: int) -> None:
        if size > self.size:
            self.steps_up += 1
        elif size < self.size:
            self.steps_down += 1
        if size != self.size:
            self._load = self._load_since = None
        self.size = size

    # ------------------------------------------------------------ holding on to what was learnt

    def _hold(self, now_s: float, rate: float | None, *, quiet: bool) -> None:
        self._held_until_s = now_s + max(self._hold_s, HOLD_WINDOWS * self._window_s)
        self._held_rate = rate
        self._held_quiet = quiet
        self._hold_s = min(self._hold_s * 2.0, HOLD_S_MAX)

    def _held(self, now_s: float, rate: float, *, quiet: bool) -> bool:
        """Is the size to stay? Not when the work has become another."""
        if now_s >= self._held_until_s:
            return False
        held = self._held_rate
        changed = held is not None and not held / CHANGED <= rate <= held * CHANGED
        if changed or quiet != self._held_quiet:
            self._hold_s, self._held_until_s = HOLD_S_MIN, 0.0
            return False
        return True

    def _forget(self) -> None:
        self._window = self._paused = self._trial = None
        self._untried = []
        self._hold_s, self._held_until_s, self._held_rate = HOLD_S_MIN, 0.0, None
