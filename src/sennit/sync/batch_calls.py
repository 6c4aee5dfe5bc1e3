"""The calls of OS threads that a `Batcher` holds: who waits for each, how it learns its answer, and who runs the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from sennit.sync.batch_answers import Answer
from sennit.sync.batch_line import Call
from sennit.sync.clock import monotonic_s

__all__ = ["Batch", "Begun", "OsThreadCall", "OwnThreads", "hand", "starts"]

T = TypeVar("T")
R = TypeVar("R")


class OsThreadCall(Call[T], Generic[T, R]):
    """One item and who waits for it: an OS thread at `gate`, or a `future`.

    `batch` is what this caller is to run; `gone` says that it does not wait any more.
    """

    __slots__ = ("answer", "batch", "future", "gate", "gone")

    def __init__(self, item: T, size_bytes: int) -> None:
        super().__init__(item, size_bytes, monotonic_s())
        self.answer: Answer[R] | None = None
        self.batch: list[OsThreadCall[T, R]] | None = None
        self.future: Future[R] | None = None
        self.gate: threading.Lock | None = None
        self.gone = False


Batch: TypeAlias = list[OsThreadCall[T, R]]


class Begun(NamedTuple, Generic[T, R]):
    """What to do once the lock is free: run the batches that no caller runs, and keep the time."""

    unled: list[list[OsThreadCall[T, R]]]
    keep_time: bool


class OwnThreads:
    """OS threads of a batcher, made when the first is needed. Python lets them end what they have before it exits."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def start(self, work: Callable[..., object], *args: object) -> None:
        """Call it in one of them; here, if the interpreter is ending and lets none begin."""
        untouched = threading.Lock()

        def once() -> None:
            if untouched.acquire(blocking=False):
                work(*args)

        try:
            with self._lock:
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(self._count_max, thread_name_prefix="sennit-batch")
                self._executor.submit(once)
        except RuntimeError:  # or the system gives no OS thread: then it may stand in the queue of another all the same
            once()

    def let_end(self) -> None:
        """End them when they have done what they were given; another `start` makes new ones."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)


def starts(call: OsThreadCall[T, R]) -> bool:
    """Return False for a future that was cancelled this very moment."""
    return call.future is None or call.future.set_running_or_notify_cancel()


def hand(future: Future[R], answer: Answer[R]) -> None:
    """Settle a future."""
    if answer.error is not None:
        future.set_exception(answer.error)
    else:
        future.set_result(answer.get())
