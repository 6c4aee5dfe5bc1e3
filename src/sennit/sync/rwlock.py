"""Many readers or one writer, for OS threads. The rules are in `rwqueue`; here is the waiting.

    with lock.read(timeout_s=1): …        with lock.write(): …

Each waiter has a lock of its own to wait at, and is let in by the one that makes room: nobody wakes up in vain, and a
place in the queue cannot be overtaken. It costs about as much as eight plain locks. It pays when readers hold it across
I/O or long C calls; for reads of a dict take a `Lock`, a `Registry`, or nothing.
"""

from __future__ import annotations

import threading
import time
from _thread import get_ident
from collections.abc import Iterable
from types import TracebackType

from sennit.errors import LockTimeout
from sennit.sync import lockorder
from sennit.sync.lockwaits import GRACE_S, OUR_FILES, Blocked, Holder, end_wait, enter_wait
from sennit.sync.rwqueue import RWLockStatistics, RWQueue, Waiter

__all__ = ["RWLock"]

OUR_FILES.add(__file__)


class RWLock:
    """See the module.

    Args:
        name: in figures and messages; locks of one name are one class to the lock-order check.
        fair: let the readers that wait in after each writer; without it a steady stream of writers starves them.
    """

    __slots__ = ("__weakref__", "_guard", "_order", "_queue", "_read", "_serial", "_write")

    def __init__(self, name: str, *, fair: bool = False) -> None:
        self._queue = RWQueue(name, fair=fair)
        self._guard = threading.Lock()  # held for a few lines, never while waiting
        self._order = lockorder.current()
        self._serial = lockorder.serial()
        self._read = _Hold(self, None, write=False)
        self._write = _Hold(self, None, write=True)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self._queue.name

    def read(self, timeout_s: float | None = None) -> _Hold:
        """Return `with` this to read. An OS thread that reads may do so again inside.

        Args:
            timeout_s: how long to wait, in seconds; None for ever, 0 not at all.

        Raises (on entering):
            LockTimeout: not within `timeout_s`; says who has it.
            UsageError: this OS thread is writing under it.
            LockDeadlock: it would wait for ever. LockOrderError: the check is on, and this closes a cycle.
        """
        return self._read if timeout_s is None else _Hold(self, timeout_s, write=False)

    def write(self, timeout_s: float | None = None) -> _Hold:
        """Return `with` this to be alone. Arguments and errors as `read`.

        Raises (on entering):
            UsageError: this OS thread is reading or writing under it; there is no upgrade.
        """
        return self._write if timeout_s is None else _Hold(self, timeout_s, write=True)

    def statistics(self) -> RWLockStatistics:
        """Return the figures so far."""
        with self._guard:
            return self._queue.statistics()

    def blockers(self, blocked: Blocked) -> Iterable[Holder]:
        """Return who stands before this wait; see `lockwaits`."""
        with self._guard:
            return tuple(self._queue.blockers(blocked))

    def _acquire(self, timeout_s: float | None, *, write: bool) -> None:
        me = get_ident()
        order = self._order
        if order is None:
            with self._guard:
                if self._queue.enter(me, write=write):
                    return
            self._wait(me, timeout_s, write=write)
            return
        nested = self._is_in(me)
        if not nested and (timeout_s is None or timeout_s > 0):
            order.acquiring(me, self.name, self._serial)
        with self._guard:
            entered = self._queue.enter(me, write=write)
        if not entered:
            self._wait(me, timeout_s, write=write)
        if not nested:
            order.acquired(me, self.name, self._serial)

    def _is_in(self, me: Holder) -> bool:
        """Nobody but `me` can change the answer, so it needs no lock."""
        return me in self._queue.readers or me == self._queue.writer

    def _wait(self, me: Holder, timeout_s: float | None, *, write: bool) -> None:
        gate = threading.Lock()
        gate.acquire()
        waiter = Waiter(me, gate.release, write=write, since_s=time.monotonic(), ends=lambda: timeout_s is not None)
        blocked: Blocked | None = None
        with self._guard:
            if self._queue.enter(me, write=write):  # it has become free meanwhile
                return
            self._queue.line_up(waiter)
        try:
            admitted = gate.acquire(timeout=GRACE_S if timeout_s is None else max(timeout_s, 0.0))
            if not admitted and timeout_s is None:
                blocked = Blocked(me, self, waiter)
                enter_wait(blocked)
                admitted = gate.acquire()
        except BaseException:  # a deadlock, or Ctrl-C
            self._give_up(waiter)
            raise
        finally:
            if blocked is not None:
                end_wait(blocked)
        with self._guard:
            if admitted or waiter.admitted:  # it may have come in between the time-out and here
                self._queue.note_wait(waiter, time.monotonic())
                return
            who = self._queue.held_by()
            woken = self._queue.give_up(waiter)
        for other in woken:
            other.wake()
        raise LockTimeout(self.name, timeout_s=timeout_s or 0.0, owner=who)

    def _give_up(self, waiter: Waiter) -> None:
        """Leave no trace of a wait that an exception has ended."""
        with self._guard:
            if waiter.admitted:
                woken = self._queue.leave(waiter.holder, write=waiter.write)
            else:
                woken = self._queue.give_up(waiter)
        for other in woken:
            other.wake()

    def _release(self, *, write: bool) -> None:
        me = get_ident()
        with self._guard:
            woken = self._queue.leave(me, write=write)
        if self._order is not None and not self._is_in(me):
            self._order.released(me, self._serial)
        for waiter in woken:
            waiter.wake()

    def __repr__(self) -> str:
        return f"<RWLock {self.name!r} held by {self._queue.held_by()}>"


class _Hold:
    """One way of being in; the two without a time-out are made once per lock."""

    __slots__ = ("_lock", "_timeout_s", "_write")

    def __init__(self, lock: RWLock, timeout_s: float | None, *, write: bool) -> None:
        self._lock = lock
        self._timeout_s = timeout_s
        self._write = write

    def __enter__(self) -> None:
        self._lock._acquire(self._timeout_s, write=self._write)  # noqa: SLF001 - two halves of one thing

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._lock._release(write=self._write)  # noqa: SLF001
