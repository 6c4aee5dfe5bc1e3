"""An executor whose OS threads each have a queue of their own, and take half of another's when theirs is empty.

    submit from outside ──► an idle worker, else the next in turn: its queue     owner ◄── oldest [ q q q q ] newest ──► thief
    submit inside a task ─► its own worker: its children                         owner ◄── newest [ c c c c ] oldest ──► thief

Use it where work makes work (a task submits tasks) or where tasks differ much in length and would otherwise be divided
beforehand. Against one queue that all share it gains nothing on a build with a GIL: such a queue balances perfectly
(docs/reference/benchmarks-pools.md has both figures). Idle, it costs nothing: a worker without work sleeps on a lock.
How stealing and sleeping are done without losing a wake-up: stealing_queues.py.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, ParamSpec, TypeVar

from sennit.errors import SettingsError
from sennit.execute.executor_parts import WorkItem
from sennit.execute.stealing_queues import StealingQueues

__all__ = ["StealingStatistics", "WorkStealingExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

_names = count()


@dataclass(frozen=True, slots=True)
class StealingStatistics:
    """Counts since the pool was made; a reading while it works may be off by what is under way.

    Attributes:
        workers: OS threads started.  workers_idle: of these, asleep now.
        queued: items that nobody has taken.
        executed: items run, per worker; a cancelled item is not run.
        steals: how often a worker came back with something.  stolen: items it came back with.
        parks: how often a worker went to sleep.  wakes: how often one was called by another OS thread to look for work.
        imbalance: items of the busiest worker over the mean, 1.0 is even, 0.0 if none ran. It counts items, not
            seconds: with items of unequal length an uneven count is what a good balance looks like.
    """

    workers: int
    workers_idle: int
    queued: int
    executed: tuple[int, ...]
    steals: int
    stolen: int
    parks: int
    wakes: int
    imbalance: float


class WorkStealingExecutor(Executor):
    """A `concurrent.futures.Executor` of a fixed number of OS threads with a queue each.

    Contract: that of `concurrent.futures.ThreadPoolExecutor`. OS threads start when there is work for them and live until
    `shutdown`, the end of the executor object, or the end of the interpreter; each of the three runs what is queued.

    Order: a worker begins what came from outside oldest first, and with `max_workers=1` that is the order of submission.
    What a task submits begins before that, newest first; across workers there is no order.

    On a free-threaded build nothing is different in the code; CPU-bound items then run side by side.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        seed: int | None = None,
    ) -> None:
        """Make a pool; no OS thread starts yet.

        Args:
            max_workers: OS threads at most; None is 4 more than the CPUs this process may use, 32 at most.
            thread_name_prefix: names the OS threads `prefix_0`, `prefix_1` and so on.
            initializer: called with `initargs` in each OS thread before its first item. If it raises, the pool is broken.
            seed: of the order in which victims are asked; None is a new one for every pool.

        Raises:
            SettingsError: (a ValueError) `max_workers` is below 1.
            TypeError: the initializer cannot be called.
        """
        if max_workers is None:
            max_workers = min(32, _cpus() + 4)  # Source: the default of ThreadPoolExecutor.
        if max_workers < 1:
            raise SettingsError(f"a pool of max_workers={max_workers} cannot run anything", fix="use at least one")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._pool = StealingQueues(
            workers_max=max_workers,
            name=thread_name_prefix or f"sennit-stealing-{next(_names)}",
            initializer=initializer,
            initargs=initargs,
            seed=Random().getrandbits(64) if seed is None else seed,
        )
        # Its OS threads hold the pool, not the executor: when nobody holds that any more, they finish and end.
        self._pool.owner = weakref.ref(self, self._pool.abandon)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule `fn(*args, **kwargs)`; from a task of this pool, to the task's own worker.

        Raises:
            PoolBroken: (a BrokenExecutor) an initializer has failed.
            UsageError: (a RuntimeError) after `shutdown`, while the interpreter exits, or in a forked child.
            RuntimeError: the system refuses the very first OS thread.
        """
        future: Future[T] = Future()
        self._pool.put(WorkItem(future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  the contract
        """Take no more work. What is queued still runs, or with `cancel_futures` is cancelled: nothing stays pending.

        Does nothing in a forked child, where the pool has no OS threads.

        Args:
            wait: come back when all has run and the OS threads have ended; otherwise they end on their own.

        Raises:
            RuntimeError: `wait` from inside a task, which would wait for itself.
        """
        pool = self._pool
        if pool.door.wrong_process:
            return
        pool.close()
        if cancel_futures:
            pool.discard(WorkItem.cancel)
        pool.wake_all()
        if wait:
            for worker in pool.workers:  # The list may grow meanwhile, by workers that one in it has started.
                worker.os_thread.join()

    def statistics(self) -> StealingStatistics:
        """Return the counts of this moment; takes no lock."""
        pool = self._pool
        workers = tuple(pool.workers)
        executed = tuple(worker.executed for worker in workers)
        return StealingStatistics(
            workers=len(workers),
            workers_idle=len(pool.idle),
            queued=sum(len(worker.queue) + len(worker.children) for worker in workers),
            executed=executed,
            steals=sum(worker.steals for worker in workers),
            stolen=sum(worker.stolen for worker in workers),
            parks=sum(worker.parks for worker in workers),
            wakes=sum(worker.wakes for worker in workers),
            imbalance=max(executed) * len(executed) / sum(executed) if any(executed) else 0.0,
        )


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
