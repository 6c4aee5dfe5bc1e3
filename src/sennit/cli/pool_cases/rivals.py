"""What our parts are measured beside: written plainly, so that a lead over them is one over what anybody would write.

SharedQueueExecutor   OS threads around one SimpleQueue: the least a pool can be
in_static_parts       as many equal parts as OS threads, decided before it begins: nobody helps anybody
LockedDict            a dict and one lock
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib import import_module
from queue import SimpleQueue
from typing import Any, Final, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

Call = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]
_END: Final = None


class SharedQueueExecutor(Executor):
    """`size` OS threads take calls from one `SimpleQueue`, all started at once."""

    def __init__(self, size: int) -> None:
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"shared-queue-{n}", daemon=True) for n in range(size)
        ]
        for os_thread in self._threads:
            os_thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call."""
        future: Future[T] = Future()
        self._queue.put((future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - Executor's
        """End after what was queued."""
        del cancel_futures
        for _ in self._threads:
            self._queue.put(_END)
        if wait:
            for os_thread in self._threads:
                os_thread.join()

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            future, fn, args, kwargs = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)
            else:
                future.set_result(result)


def in_static_parts(executor: Executor, jobs: Sequence[Callable[[], object]], parts: int) -> None:
    """Run jobs in `parts` equal parts, each in one OS thread, and wait for all."""
    size = -(-len(jobs) // parts)
    pieces = [jobs[first : first + size] for first in range(0, len(jobs), size)]
    _all_done([executor.submit(_in_order, piece) for piece in pieces])


def one_by_one(executor: Executor, jobs: Sequence[Callable[[], object]]) -> None:
    """Submit every job by itself, and wait for all."""
    _all_done([executor.submit(job) for job in jobs])


def _in_order(jobs: Sequence[Callable[[], object]]) -> None:
    for job in jobs:
        job()


def _all_done(futures: Sequence[Future[Any]]) -> None:
    wait(futures)
    for future in futures:
        future.result()


class LockedDict(Generic[K, V]):
    """A dict behind one lock, as every program has one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """Return the value."""
        with self._lock:
            return self._data.get(key)

    def set(self, key: K, value: V) -> None:
        """Set the value."""
        with self._lock:
            self._data[key] = value


def fixed_pool(size: int) -> ThreadPoolExecutor:
    """Return a ThreadPoolExecutor whose OS threads have all started."""
    pool = ThreadPoolExecutor(size)
    gate = threading.Barrier(size)
    _all_done([pool.submit(gate.wait) for _ in range(size)])
    return pool


@contextmanager
def ended(executor: Executor) -> Iterator[Executor]:
    """Shut an executor down afterwards, and wait for it."""
    try:
        yield executor
    finally:
        executor.shutdown(wait=True)


def part(module: str, name: str) -> Any:
    """Return a part of sennit or of a peer; a text that says why there is none, if it cannot be imported."""
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        return f"not here: {error}"
