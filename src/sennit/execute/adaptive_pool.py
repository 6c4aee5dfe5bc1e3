"""`AdaptiveThreadPoolExecutor`: `concurrent.futures.ThreadPoolExecutor` that finds its own size.

    with AdaptiveThreadPoolExecutor() as pool:
        pages = list(pool.map(fetch, urls))          waiting: grows until more workers gain nothing
        totals = list(pool.map(count_words, pages))  pure Python: goes down to one, two complete no more

It is usable alone, without an App and without a store. The sizing is in `knee.py`, the OS threads in `adaptive_core.py`.

As in the standard pool: what was accepted still runs when the interpreter exits, so a body that never returns keeps the
process from ending; `shutdown(wait=False)` comes back at once. A body that waits for another body of the same pool gets
one more worker while there may be more (0.1 s later, and 0.05 s for each doubling); when `max_workers` bodies wait for
each other, they wait for ever.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, Literal, ParamSpec, TypeVar

from sennit.errors import PoolQueueFull, SettingsError, UsageError
from sennit.execute.adaptive_core import Core
from sennit.execute.adaptive_samples import Sampler
from sennit.execute.executor_parts import WorkItem, settle
from sennit.execute.knee import KneeFinder
from sennit.execute.workload import FunctionReport, WorkloadDetector
from sennit.limit.cgroups import effective_cpus
from sennit.model.order import Priority
from sennit.sync.gilprobe import GilProbe

__all__ = ["AdaptiveStatistics", "AdaptiveThreadPoolExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

WORKERS_MAX: Final = 64
IDLE_S: Final = 10.0

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class AdaptiveStatistics:
    """A snapshot of one pool.

    Attributes:
        workers: OS threads it has.
        workers_busy: those that run an item or are on their way to one.
        workers_peak: the most OS threads it ever had.
        size: how many workers it wants to be busy when there is enough work; this is what adapts.
        size_min, size_max: its bounds.
        queued: items that wait.
        finished: items that ran, or were cancelled before; ever.
        busy_s: seconds of work of all workers together, ever; over a period, divided by it and `size`, the utilisation.
        steps_up, steps_down: changes of `size`, trials that were undone included; ever.
        functions: what is known of each function, most CPU time per call first.
    """

    workers: int
    workers_busy: int
    workers_peak: int
    size: int
    size_min: int
    size_max: int
    queued: int
    finished: int
    busy_s: float
    steps_up: int
    steps_down: int
    functions: tuple[FunctionReport, ...]


class AdaptiveThreadPoolExecutor(Executor):
    """An executor over OS threads whose number follows measured throughput. May be used from any OS thread.

    It grows only while work is queued, never ends an OS thread while work is queued, and uses no CPU while idle.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        workers_min: int = 1,
        workers_initial: int | None = None,
        agents: int | None = None,
        up_at: float = 0.7,
        down_at: float = 0.2,
        idle_s: float = IDLE_S,
        queue_max: int | None = None,
        on_full: Literal["block", "raise"] = "block",
        detector: WorkloadDetector | None = None,
        gil_probe: GilProbe | None = None,
    ) -> None:
        """Start no OS thread yet.

        Args:
            max_workers: never more; 64 by default. The first four arguments are those of ThreadPoolExecutor.
            workers_min: so many OS threads stay once they were needed, and sleep without using the CPU.
            workers_initial: where the search starts; `max(cpus, min(16, 2 * cpus, agents))` by default. Initializers
                that wait for each other need this to be as many.
            agents: how many callers are expected, for that default.
            up_at: more workers are tried only while this share of them has work.
            down_at: OS threads end only while less than this share of the pool was used, after `idle_s` of idleness.
            queue_max: how many items may wait; None is no bound.
            on_full: what `submit` does then: wait for room, or raise `PoolQueueFull`. The pool's own workers never wait.
            detector: to share one; a new one by default.
            gil_probe: one that somebody starts and stops, to tell waiting for the GIL from other waiting; without it the
                pool has the lateness of its own watch, only while work is queued.

        Raises:
            SettingsError: (a ValueError) a bound makes no sense.
            TypeError: `initializer` is not callable.
        """
        cpus = effective_cpus()
        maximum = WORKERS_MAX if max_workers is None else max_workers
        initial = workers_initial
        if initial is None:
            initial = min(max(cpus, min(16, 2 * cpus, 16 if agents is None else agents)), max(maximum, 1))
            initial = max(initial, workers_min)
        _check_bounds(workers_min, initial, maximum, up_at, down_at, idle_s, queue_max)
        if on_full not in {"block", "raise"}:
            raise SettingsError(f"on_full is {on_full!r}", fix='use "block" or "raise"')
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._queue_max = queue_max
        self._on_full = on_full
        self._core = Core(
            name=thread_name_prefix or f"AdaptiveThreadPoolExecutor-{next(_numbers)}",
            # The search may go below workers_min, which is about OS threads that stay: one of them is the knee
            # of pure Python.
            knee=KneeFinder(size=initial, size_min=1, size_max=maximum, cores=cpus, up_at=up_at),
            sampler=Sampler(detector or WorkloadDetector(), gil_probe),
            initializer=initializer,
            initargs=initargs,
            idle_s=idle_s,
            down_at=down_at,
            threads_min=workers_min,
        )
        weakref.finalize(self, self._core.let_go).atexit = False

    # ------------------------------------------------------------ the Executor contract

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args, **kwargs)` in an OS thread of the pool and return its future.

        Raises:
            UsageError: (a RuntimeError) after `shutdown`, while the interpreter exits, or in a forked child.
            PoolBroken: (a BrokenExecutor) an initializer has failed.
            PoolQueueFull: the queue is bounded and full, and `on_full` is "raise".
            RuntimeError: the system refuses the very first OS thread.
        """
        future: Future[T] = Future()
        self._submit(WorkItem(future, fn, args, kwargs), Priority.NORMAL)
        return future

    def submit_with(
        self, priority: Priority | str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Like `submit`, with a place in the queue: "urgent", "high", "normal" or "low".

        Priorities age: an urgent item passes normal ones of the last minute, a low one waits ten minutes at most behind
        normal ones that came later.

        Raises:
            ValueError: no such priority. And what `submit` raises.
        """
        future: Future[T] = Future()
        self._submit(WorkItem(future, fn, args, kwargs), Priority.parse(priority))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - inherited
        """Refuse new work; what is queued still runs. May be called again.

        Args:
            wait: come back when all has run and every OS thread has ended.
            cancel_futures: cancel what has not started.

        Raises:
            UsageError: with `wait`, by a body of this pool: it would wait for itself.
        """
        core = self._core
        if core.door.wrong_process:
            return
        with core.lock:
            core.door.closed = True
            items = core.queue.drain() if cancel_futures else []
            core.room.notify_all()
        core.wake_all()
        settle(items, WorkItem.cancel)
        if wait:
            self._join()

    # ------------------------------------------------------------ size and figures

    def resize(self, size: int) -> None:
        """Want `size` busy workers from now on; the search for the knee goes on from there.

        Surplus workers finish their item first. Nothing that is queued is lost.

        Raises:
            SettingsError: not from 1 to `max_workers`.
        """
        core = self._core
        if not 1 <= size <= core.knee.size_max:
            raise SettingsError(
                f"a pool cannot be resized to {size} workers",
                fix=f"use 1 to max_workers, which is {core.knee.size_max}",
            )
        with core.lock:
            core.knee.resize(size)
            call = core.next_call_locked()
        if call is not None:
            core.call(call)

    def statistics(self) -> AdaptiveStatistics:
        """Return the figures of this moment."""
        core = self._core
        with core.lock:
            return AdaptiveStatistics(
                workers=core.threads,
                workers_busy=core.running,
                workers_peak=core.threads_peak,
                size=core.knee.size,
                size_min=core.threads_min,
                size_max=core.knee.size_max,
                queued=core.queue.count,
                finished=core.finished,
                busy_s=core.busy_s_locked(perf_counter()),
                steps_up=core.knee.steps_up,
                steps_down=core.knee.steps_down,
                functions=tuple(core.sampler.detector.report()),
            )

    # ------------------------------------------------------------ within

    def _submit(self, item: WorkItem, priority: Priority) -> None:
        core = self._core
        with core.lock:
            core.door.check()
            if self._queue_max is not None and core.queue.count >= self._queue_max:
                self._wait_for_room_locked(self._queue_max)
            core.queue.put(item, priority)
            call = core.next_call_locked()
        if call is not None:
            try:
                core.call(call)
            except RuntimeError:
                if core.withdraw(item):
                    raise
            except BaseException:  # of a signal's handler, likeliest while an OS thread starts
                core.call_again(call)
                core.withdraw(item)
                raise

    def _wait_for_room_locked(self, queue_max: int) -> None:
        core = self._core
        me = threading.get_native_id()
        if any(worker.native_id == me for worker in core.workers):
            return  # If all workers waited for room, nobody would make any.
        if self._on_full == "raise":
            raise PoolQueueFull(queue_max)
        core.submitters += 1
        try:
            while core.queue.count >= queue_max:
                core.room.wait()
                core.door.check()
        except BaseException:
            core.room.notify()  # What woke this one, if anything did, was room for somebody.
            raise
        finally:
            core.submitters -= 1

    def _join(self) -> None:
        core = self._core
        me = threading.current_thread()
        with core.lock:
            os_threads = [worker.os_thread for worker in core.workers if worker.os_thread is not None]
            if me in os_threads:
                raise UsageError(
                    "a body cannot wait for the shutdown of its own pool",
                    why="it would wait for itself",
                    fix="call shutdown(wait=False) in a body",
                )
            core.ended.wait_for(lambda: not core.threads)
        for os_thread in os_threads:
            os_thread.join()


def _check_bounds(  # noqa: PLR0917 - the arguments of the one call
    workers_min: int, initial: int, maximum: int, up_at: float, down_at: float, idle_s: float, queue_max: int | None
) -> None:
    if not 0 <= workers_min <= initial <= maximum or initial < 1:
        raise SettingsError(
            f"workers_min={workers_min}, workers_initial={initial}, max_workers={maximum} are no bounds of a pool",
            fix="use 0 <= workers_min <= workers_initial <= max_workers, and at least one worker to begin with",
        )
    if not 0 <= down_at < up_at <= 1 or idle_s <= 0:
        raise SettingsError(
            f"down_at={down_at}, up_at={up_at}, idle_s={idle_s} cannot steer a pool",
            fix="use 0 <= down_at < up_at <= 1 and a positive idle_s",
        )
    if queue_max is not None and queue_max < 1:
        raise SettingsError(f"queue_max={queue_max} lets nothing in", fix="use at least 1, or None for no bound")
