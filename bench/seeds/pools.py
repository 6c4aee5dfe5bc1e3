"""Three pools of OS threads as they were: "adaptive", "work stealing" and "optimized". Not for use.

What is wrong with each stands at the line that does it; bench/pools_seeds.py shows what it costs.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

IO_ABOVE_S: Final = 0.010
CPU_BELOW_S: Final = 0.002
WANTED: Final = {"io": 32, "cpu": 4, "mixed": 16}
POLL_S: Final = 0.001


class SeedAdaptivePool(Executor):
    """Detects the kind of work by how long a call took from submit to done, and "resizes" a pool of 32."""

    def __init__(self, size_max: int = 32) -> None:
        self._pool = ThreadPoolExecutor(size_max)  # the size, for good: nothing below changes it
        self.size = size_max
        self._took_s: deque[float] = deque(maxlen=100)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        began_s = time.perf_counter()
        future = self._pool.submit(fn, *args, **kwargs)
        future.add_done_callback(lambda _: self._note(time.perf_counter() - began_s))  # with the wait in the queue
        return future

    def _note(self, took_s: float) -> None:
        self._took_s.append(took_s)
        self.size = WANTED[self.kind]  # the resize: a number that nobody reads

    @property
    def kind(self) -> str:
        """What it takes the work for."""
        if not self._took_s:
            return "mixed"
        mean_s = sum(self._took_s) / len(self._took_s)
        return "io" if mean_s > IO_ABOVE_S else "cpu" if mean_s < CPU_BELOW_S else "mixed"

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - Executor's
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


class _Queue:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.items: deque[tuple[Future[Any], Callable[[], Any]]] = deque()


class SeedStealingPool(Executor):
    """A queue per OS thread, oldest first for its owner; others take from the back; looks for work 1,000 times a second."""

    def __init__(self, size: int) -> None:
        self._queues = [_Queue() for _ in range(size)]
        self._running = True
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(size)]
        for os_thread in self._threads:
            os_thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        lengths = []
        for queue in self._queues:  # every submit takes every lock, to find the shortest
            with queue.lock:
                lengths.append(len(queue.items))
        shortest = self._queues[lengths.index(min(lengths))]
        with shortest.lock:
            shortest.items.append((future, lambda: fn(*args, **kwargs)))
        return future

    def _work(self, me: int) -> None:
        while self._running:
            job = self._take(me)
            if job is None:
                time.sleep(POLL_S)  # idle is not free
                continue
            future, call = job
            try:
                future.set_result(call())
            except Exception as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)

    def _take(self, me: int) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._queues[me].lock:
            if self._queues[me].items:
                return self._queues[me].items.popleft()
        others = [queue for n, queue in enumerate(self._queues) if n != me]
        random.shuffle(others)
        for queue in others:
            with queue.lock:
                if len(queue.items) > 1:  # the last item is never stolen, however long its owner is busy
                    return queue.items.pop()
        return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - Executor's
        del cancel_futures
        self._running = False  # what is queued is never run, and its futures never end
        if wait:
            for os_thread in self._threads:
                os_thread.join()


class SeedScalingPool:
    """Scales between 2 and 32 by its load, which it works out after what has just ended was taken off."""

    def __init__(self, initial: int = 16, *, size_min: int = 2, size_max: int = 32) -> None:
        self.size = initial
        self._size_min, self._size_max = size_min, size_max
        self._pool = ThreadPoolExecutor(initial)
        self._active: list[Future[Any]] = []

    def step_all(self, calls: list[Callable[[], Any]]) -> None:
        """Run one call for every agent, wait for all, then look at the load."""
        self._active = [self._pool.submit(call) for call in calls]
        for future in self._active:
            future.result()
        self._active = [future for future in self._active if not future.done()]  # none is left by now
        load = len(self._active) / self.size
        if load > 0.7:
            self._resize(min(self.size * 2, self._size_max))
        elif load < 0.2:
            self._resize(max(self.size // 2, self._size_min))

    def _resize(self, size: int) -> None:
        if size == self.size:
            return
        before, self._pool, self.size = self._pool, ThreadPoolExecutor(size), size
        before.shutdown(wait=False)  # a submit that holds the old pool fails

    def shutdown(self) -> None:
        """End."""
        self._pool.shutdown()
