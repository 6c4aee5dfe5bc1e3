"""A lock that says how contended it is, who has it, and that names a deadlock instead of joining it.

    free:      one C call, two stores, a count                  about twice a `threading.Lock`
    not free:  clock, wait, clock, histogram                    only here, where somebody waits anyway
    for 10 ms: the wait-for graph                               a wait that would never end is named

It is a `threading.Lock` in all but this: only the OS thread that acquired it may release it, and acquiring it twice is an
error at once, not a hang. Not fair: who comes while it is free gets it, as with `threading.Lock`.

It is written in Python, so an exception from a signal handler (Ctrl-C in the main OS thread) that comes between taking it
and noting so, a few instructions, leaves it taken by nobody. Waiting is safe from that. A program that goes on after
Ctrl-C should let its handler set a flag; the same holds for `RWLock` and for `threading.Condition`.
"""

from __future__ import annotations

import sys
import threading
import time
from _thread import get_ident
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sennit.errors import LockDeadlock, UsageError
from sennit.sync import lockorder
from sennit.sync.lockwaits import GRACE_S, OUR_FILES, Blocked, Holder, calling_place, end_wait, enter_wait, holder_name
from sennit.sync.wait_histogram import WaitHistogram

__all__ = ["Mutex", "MutexStatistics"]

OUR_FILES.add(__file__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MutexStatistics:
    """What a mutex has seen since it was made.

    Attributes:
        acquisitions: how often it was had.
        contended: how many of them had to wait.
        timeouts: how many gave up waiting.
        wait_p50_s, wait_p99_s: of those that waited and got it, in seconds, at most 25 % too high.
        wait_total_s: their sum.
        holder: who has it now, or None.
        held_s: for how long somebody has been waiting for this holder, in seconds; it has had it for at least so long.
            0.0 while nobody has waited 10 ms: a lock that nobody waits for reads no clock.
    """

    name: str
    acquisitions: int
    contended: int
    timeouts: int
    wait_p50_s: float
    wait_p99_s: float
    wait_total_s: float
    holder: str | None
    held_s: float


class Mutex:
    """Mutual exclusion between OS threads; see the module. Also good for `threading.Condition(mutex)`.

    Args:
        name: in figures and messages; locks of one name are one class to the lock-order check.
    """

    __slots__ = (
        "__weakref__", "_acquisitions", "_figures", "_lock", "_order", "_owner", "_seen_acquisition", "_seen_s", "_serial",
        "_timeouts", "_waits", "name",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._owner = 0  # set and cleared by the holder only
        self._acquisitions = 0  # changed under the lock
        self._order = lockorder.current()
        self._serial = lockorder.serial()
        self._figures = threading.Lock()  # for what is below; taken only by those that have waited
        self._waits = WaitHistogram()
        self._timeouts = 0
        self._seen_acquisition = -1  # the first waiter for this acquisition came …
        self._seen_s = 0.0  # … then

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as threading.Lock
        """Take it. False if it was not free and `blocking` is False, or not within `timeout` seconds (-1: for ever).

        Raises:
            LockDeadlock: it would wait for ever, for itself or in a cycle with others. Nothing was acquired.
            LockOrderError: the lock-order check is on and this closes a cycle.
            ValueError: as `threading.Lock.acquire`.
        """
        order = self._order
        if order is not None and blocking and self._owner != get_ident():
            order.acquiring(get_ident(), self.name, self._serial)
        if not self._lock.acquire(False) and not self._wait(blocking, timeout):
            return False
        self._owner = get_ident()
        self._acquisitions += 1
        if order is not None:
            order.acquired(self._owner, self.name, self._serial)
        return True

    def release(self) -> None:
        """Give it back.

        Raises:
            UsageError: this OS thread does not have it.
        """
        if self._owner != get_ident():
            raise self._not_ours()
        if self._order is not None:
            self._order.released(self._owner, self._serial)
        self._owner = 0
        self._lock.release()

    # The next two are the two above once more: a call less is a third of what they cost.

    def __enter__(self) -> Self:
        if self._order is not None:
            self.acquire()
            return self
        if not self._lock.acquire(False):
            self._wait(True, -1)
        self._owner = get_ident()
        self._acquisitions += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._owner != get_ident() or self._order is not None:
            self.release()
            return
        self._owner = 0
        self._lock.release()

    def locked(self) -> bool:
        """Return whether somebody has it."""
        return self._lock.locked()

    def statistics(self) -> MutexStatistics:
        """Return the figures so far. Waits for nobody who holds the lock."""
        with self._figures:
            owner = self._owner
            known = owner != 0 and self._seen_acquisition == self._acquisitions
            return MutexStatistics(
                name=self.name,
                acquisitions=self._acquisitions,
                contended=self._waits.samples,
                timeouts=self._timeouts,
                wait_p50_s=self._waits.quantile_s(0.5),
                wait_p99_s=self._waits.quantile_s(0.99),
                wait_total_s=self._waits.total_s,
                holder=holder_name(owner) if owner else None,
                held_s=time.monotonic() - self._seen_s if known else 0.0,
            )

    def blockers(self, blocked: Blocked) -> Iterable[Holder]:  # noqa: ARG002 - whoever waits waits for the holder
        """Return who must release it; see `lockwaits`."""
        owner = self._owner
        return (owner,) if owner else ()

    def _wait(self, blocking: bool, timeout: float) -> bool:  # noqa: FBT001
        """Wait until it is ours; the lock was not free a moment ago."""
        me = get_ident()
        if not blocking:
            return self._lock.acquire(False, timeout)
        if self._owner == me:
            if timeout < 0:
                here = f"{holder_name(me)} has {self.name!r} already and waits for it at {calling_place()}"
                raise LockDeadlock((here,), name=self.name)
            return self._lock.acquire(True, timeout)
        begun_s = time.monotonic()
        if not self._lock.acquire(True, GRACE_S if timeout < 0 else min(timeout, GRACE_S)) and not self._wait_long(
            me, begun_s, timeout
        ):
            return False
        wait_s = time.monotonic() - begun_s
        with self._figures:
            self._waits.note(wait_s)
        return True

    def _wait_long(self, me: Holder, begun_s: float, timeout: float) -> bool:
        """Wait on, where somebody may look for who waits; `timeout` is from `begun_s`."""
        with self._figures:
            if self._seen_acquisition != self._acquisitions:
                self._seen_acquisition, self._seen_s = self._acquisitions, begun_s
        if timeout < 0:
            self._refuse_ended_holder(me)
            blocked = Blocked(me, self)
            try:
                enter_wait(blocked)
                return self._lock.acquire()
            finally:
                end_wait(blocked)
        left_s = begun_s + timeout - time.monotonic()
        if left_s > 0 and self._lock.acquire(True, left_s):
            return True
        with self._figures:
            self._timeouts += 1
        return False

    def _refuse_ended_holder(self, me: Holder) -> None:
        """Nobody will release it: its holder has ended. One whose identifier another OS thread has got is not noticed."""
        owner = self._owner
        if owner and owner not in sys._current_frames() and owner == self._owner:  # noqa: SLF001 - also those threading does not know
            here = f"{holder_name(me)} waits for {self.name!r} at {calling_place()}, and {holder_name(owner)} never gave it back"
            raise LockDeadlock((here,), name=self.name)

    def _not_ours(self) -> UsageError:
        owner = self._owner
        return UsageError(
            f"the mutex {self.name!r} is released by {holder_name(get_ident())}, and "
            + (f"{holder_name(owner)} has it" if owner else "nobody has it"),
            why="only the OS thread that acquired a mutex may release it",
            fix="use `with mutex:`; to signal another OS thread use threading.Event",
        )

    def __repr__(self) -> str:
        owner = self._owner
        return f"<Mutex {self.name!r} {f'held by {holder_name(owner)}' if owner else 'free'}>"
