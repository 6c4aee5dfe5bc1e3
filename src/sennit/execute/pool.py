"""Sync bodies run here: OS threads that come when there is work, and results that reach the loop in bursts.

    submit ──► pending ──► parked or new OS thread ──► body ──► finished ──(one loop wake-up per burst)──► done()

Waking the loop costs tens of microseconds, so an OS thread that finishes a body only wakes it when no wake-up is under
way; whatever else finishes until the loop comes round travels along. A thread that starts, or takes work while more is
waiting, starts the next one: threads appear as fast as bodies block, and a burst of quick bodies is not paid for by the
loop. An idle thread sleeps once, for `idle_s`, and ends. The one parked last is woken first, so the others do get idle.

The state of a ticket only moves under the pool's lock, and the lock is what makes `interrupt` exact: an exception can be
raised in an OS thread only while the ticket is RUNNING, and a body has not ended until its thread has taken the lock.
"""

from __future__ import annotations

import enum
import os
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from sennit.errors import SettingsError, UsageError
from sennit.sync.forks import end_forked_child
from sennit.sync.strikes import strike, withdraw

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

__all__ = ["BodyPool", "PoolStatistics", "PoolTicket"]

T = TypeVar("T")


_NO_RESULT: Final = object()


class _State(enum.Enum):
    QUEUED = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()
    ABANDONED = enum.auto()


class PoolTicket(Generic[T]):
    """One submitted body; the handle for `interrupt` and `abandon`. Its attributes are the pool's."""

    __slots__ = ("done", "error", "fn", "interrupted", "os_thread_id", "result", "state")

    def __init__(self, fn: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        self.fn = fn
        self.done = done
        self.state = _State.QUEUED
        self.result: Any = _NO_RESULT
        self.error: BaseException | None = None
        self.os_thread_id = 0
        self.interrupted = False


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot. `threads` counts those that can still take work; `threads_abandoned` are stuck in a body."""

    threads: int
    threads_idle: int
    threads_abandoned: int
    threads_max: int
    queued: int
    running: int
    finished: int
    deliveries: int


class BodyPool:
    """An elastic pool of OS threads, bound to one event loop.

    `submit`, `interrupt` and `abandon` may be called from any OS thread. `done` callbacks run on the loop, in the order
    the bodies finished. The threads are daemons: a body that never returns does not keep the process alive.

    A body that forks: the child belongs to the body, not to the pool. If it comes back from the body it ends there.
    """

    def __init__(
        self,
        *,
        loop: AbstractEventLoop,
        threads_max: int,
        idle_s: float = 30.0,
        name: str = "sennit-body",
        result_bursts: bool = True,
    ) -> None:
        """Start with no thread.

        Args:
            loop: where `done` callbacks run.
            threads_max: how many bodies run at once, not counting abandoned ones.
            idle_s: how long a thread without work stays.
            name: of the OS threads, with a number.
            result_bursts: False wakes the loop for every result, to measure what that costs.

        Raises:
            SettingsError: a bound is not positive.
        """
        if threads_max < 1 or idle_s <= 0:
            raise SettingsError(
                f"a pool of threads_max={threads_max}, idle_s={idle_s} cannot run anything",
                fix="use at least one thread and a positive idle_s",
            )
        self.threads_max = threads_max
        self._loop = loop
        self._idle_s = idle_s
        self._name = name
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._pending: deque[PoolTicket[Any]] = deque()
        self._parked: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._threads = 0
        self._is_starting = False
        self._is_waking = False
        self._abandoned = 0
        self._running = 0
        self._serial = 0
        self._closed = False
        self._finished: deque[PoolTicket[Any]] = deque()
        self._is_delivering = False
        self._result_bursts = result_bursts
        self._finished_count = 0
        self._deliveries = 0

    def submit(self, fn: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> PoolTicket[T]:
        """Run `fn()` in an OS thread, then `done(result, error)` on the loop; one of the two is None.

        Every exception of the body goes to `done`, also `SystemExit` and `KeyboardInterrupt`. Context variables are not
        copied: pass `contextvars.copy_context().run` bound to the body if it should see them.

        Raises:
            UsageError: the pool is closed.
            RuntimeError: the system refuses the very first thread.
        """
        ticket = PoolTicket(fn, done)
        with self._lock:
            if self._closed:
                raise UsageError("the pool is closed", why="its owner is stopping", fix="submit before close()")
            self._pending.append(ticket)
            worker, start = self._next_thread()
        if worker is not None:
            worker.wake.release()
        elif start and not self._start_thread():
            self._give_up(ticket)
        return ticket

    def interrupt(self, ticket: PoolTicket[Any], exc_type: type[BaseException]) -> bool:
        """Raise `exc_type()` inside the body, at its next Python instruction.

        Once per ticket: a body that swallowed it can only be abandoned. A body that is blocked outside Python (a socket,
        a C library) gets it when it comes back. One that has not started never will, and `done` gets the exception.

        Returns:
            False if the body has ended, was abandoned or was interrupted before. It is certain that nothing is raised
            in this OS thread after the body has ended.
        """
        with self._lock:
            if ticket.state is _State.RUNNING and not ticket.interrupted:
                ticket.interrupted = True
                strike(ticket.os_thread_id, exc_type)
                return True
            if ticket.state is not _State.QUEUED:
                return False
            self._pending.remove(ticket)
            ticket.error = exc_type()
            wake = self._finish(ticket)
        if wake:
            self._wake_loop()
        return True

    def abandon(self, ticket: PoolTicket[Any]) -> bool:
        """Give a body up: `done` will not be called, and its thread no longer counts and ends when the body returns.

        Returns:
            False if the body has ended; its `done` is called as usual.
        """
        with self._lock:
            if ticket.state is _State.QUEUED:
                self._pending.remove(ticket)
                ticket.state = _State.ABANDONED
                return True
            if ticket.state is not _State.RUNNING:
                return False
            ticket.state = _State.ABANDONED
            self._running -= 1
            self._threads -= 1
            self._abandoned += 1
            worker, start = self._next_thread()
        self._call(worker, start=start)
        return True

    def close(self) -> None:
        """Refuse new bodies and send idle threads home. Bodies that were submitted still run and are delivered."""
        with self._lock:
            self._closed = True
            parked, self._parked = self._parked, []
        for worker in parked:
            worker.wake.release()

    def join(self, timeout_s: float | None = None) -> bool:
        """Block until every thread has ended, each up to `timeout_s`; after `close`, not on the loop's OS thread.

        Returns:
            False if some thread is still in its body.
        """
        with self._lock:
            workers = tuple(self._workers)
        for worker in workers:
            worker.os_thread.join(timeout_s)
        return not any(worker.os_thread.is_alive() for worker in workers)

    def statistics(self) -> PoolStatistics:
        """Return the counts of this moment; `finished` and `deliveries` since the pool was made."""
        with self._lock:
            return PoolStatistics(
                threads=self._threads,
                threads_idle=len(self._parked),
                threads_abandoned=self._abandoned,
                threads_max=self.threads_max,
                queued=len(self._pending),
                running=self._running,
                finished=self._finished_count,
                deliveries=self._deliveries,
            )

    # ------------------------------------------------------------ threads come and go

    def _next_thread(self) -> tuple[_Worker | None, bool]:
        """With the lock held: who is called for pending work: a parked thread, a new one (True), or nobody yet.

        One at a time, and whoever comes calls the next before its body: so bodies that block get their threads as fast
        as they come, while a burst of quick ones is done by the few that are awake and does not wake a hundred.
        Source: the Go scheduler wakes one more worker at a time for the same reason (runtime/proc.go, "spinning").
        """
        if not self._pending or self._is_waking or self._is_starting:
            return None, False
        if self._parked:
            self._is_waking = True
            return self._parked.pop(), False
        return None, self._reserve_thread()

    def _call(self, worker: _Worker | None, *, start: bool) -> None:
        if worker is not None:
            worker.wake.release()
        elif start:
            self._start_thread()

    def _reserve_thread(self) -> bool:
        """With the lock held: may one more thread start? One at a time, it starts the next itself."""
        if self._is_starting or self._threads >= self.threads_max:
            return False
        self._is_starting = True
        self._threads += 1
        self._serial += 1
        return True

    def _start_thread(self) -> bool:
        """Start the reserved thread. False if the system refuses and no other thread is left to do the work."""
        worker = _Worker(self._work, f"{self._name}-{self._serial}")
        with self._lock:
            self._workers.add(worker)
        try:
            worker.os_thread.start()
        except RuntimeError:
            with self._lock:
                self._workers.discard(worker)
                self._is_starting = False
                self._threads -= 1
                return self._threads > 0
        return True

    def _give_up(self, ticket: PoolTicket[Any]) -> None:
        with self._lock:
            self._pending.remove(ticket)
        raise RuntimeError("the system cannot start an OS thread, and the pool has none")

    def _work(self, worker: _Worker) -> None:
        """Run one body after the other; the life of an OS thread of the pool."""
        with self._lock:
            self._is_starting = False
        while (ticket := self._take(worker)) is not None:
            if not self._run(ticket):
                with self._lock:
                    self._abandoned -= 1
                break
        with self._lock:
            self._workers.discard(worker)

    def _take(self, worker: _Worker) -> PoolTicket[Any] | None:
        """Return the next body, sleeping up to `idle_s` for it; None when this thread is to end."""
        called = False
        while True:
            with self._lock:
                if called:
                    self._is_waking = False
                if self._pending:
                    ticket = self._pending.popleft()
                    ticket.state = _State.RUNNING
                    ticket.os_thread_id = worker.os_thread_id
                    self._running += 1
                    next_worker, start = self._next_thread()
                    break
                if self._closed:
                    self._threads -= 1
                    return None
                self._parked.append(worker)
            called = True
            if worker.wake.acquire(timeout=self._idle_s):
                continue
            with self._lock:
                if worker in self._parked:
                    self._parked.remove(worker)
                    self._threads -= 1
                    return None
            worker.wake.acquire()  # Unparked in the very moment the time ran out: the release is on its way.
        self._call(next_worker, start=start)
        return ticket

    # ------------------------------------------------------------ one body

    def _run(self, ticket: PoolTicket[Any]) -> bool:
        """Run the body to its end. False if it was abandoned meanwhile.

        The interrupt may strike after the body has ended and before `_end` has the lock. It strikes only once, so one
        more `except` around it is enough, and what the body did stands.
        """
        try:
            try:
                ticket.result = ticket.fn()
            except BaseException as error:  # noqa: BLE001  the caller gets it, whatever it is
                ticket.error = error
            return self._end(ticket)
        except BaseException as error:  # noqa: BLE001
            if ticket.error is None and ticket.result is _NO_RESULT:
                ticket.error = error
            return self._end(ticket)

    def _end(self, ticket: PoolTicket[Any]) -> bool:
        if os.getpid() != self._pid:
            end_forked_child(ticket.error)
        with self._lock:
            if ticket.interrupted:
                # First thing: from here on nothing can strike, the lock keeps `interrupt` out until the state says so.
                withdraw(ticket.os_thread_id)
            if ticket.state is _State.ABANDONED:
                return False
            self._running -= 1
            wake = self._finish(ticket)
        if wake:
            self._wake_loop()
        return True

    # ------------------------------------------------------------ results go to the loop

    def _finish(self, ticket: PoolTicket[Any]) -> bool:
        """With the lock held: hand the ticket to the loop. True if the loop must be woken."""
        ticket.state = _State.ENDED
        self._finished.append(ticket)
        wake = not (self._is_delivering and self._result_bursts)
        self._is_delivering = True
        return wake

    def _wake_loop(self) -> None:
        with suppress(RuntimeError):  # The loop is closed: nobody is left to tell.
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        """On the loop: call `done` for everything that has finished so far."""
        with self._lock:
            batch, self._finished = self._finished, deque()
            self._is_delivering = False
            self._deliveries += 1
            self._finished_count += len(batch)
        try:
            while batch:
                self._call_done(batch.popleft())
        finally:
            if batch:  # A `done` was left by KeyboardInterrupt or SystemExit: the others still get theirs.
                with self._lock:
                    self._finished.extendleft(reversed(batch))
                    self._finished_count -= len(batch)
                    self._is_delivering = True
                self._wake_loop()

    def _call_done(self, ticket: PoolTicket[Any]) -> None:
        # Forgotten by the ticket: an error, its traceback, the frame and the ticket would otherwise form a cycle.
        result, error = ticket.result, ticket.error
        ticket.result = ticket.error = None
        try:
            ticket.done(None if error is not None else result, error)
        except Exception as failure:  # noqa: BLE001  one caller's mistake must not cost the next one its result
            self._loop.call_exception_handler(
                {"message": f"the done callback of a body raised {type(failure).__name__}", "exception": failure}
            )


class _Worker:
    """One OS thread of the pool and the lock it sleeps on."""

    __slots__ = ("os_thread", "os_thread_id", "wake")

    def __init__(self, work: Callable[[_Worker], None], name: str) -> None:
        self.wake = threading.Lock()
        self.wake.acquire()
        self.os_thread_id = 0
        self.os_thread = threading.Thread(target=self._main, args=(work,), name=name, daemon=True)

    def _main(self, work: Callable[[_Worker], None]) -> None:
        self.os_thread_id = threading.get_ident()
        work(self)
