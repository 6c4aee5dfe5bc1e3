"""The rules of a readers-writer lock, as a state machine without locks, clocks or waiting; both faces use this one.

    in:     readers {A, B}  or  writer C  or  nobody
    queue:  writers D ► E              first come, first served
            readers F, G               wait while a writer is in or in the queue

    somebody leaves, or gives up waiting ──► `_admit`: the next writer if nobody is in; readers once no writer waits

Writers go first: a new reader waits behind a waiting writer, so readers cannot starve writers. A steady stream of writers
does starve readers; with `fair` the readers that wait are let in after each writer (phase-fair: Brandenburg and Anderson,
Reader-Writer Synchronization for Shared-Memory Multiprocessor Real-Time Systems, ECRTS 2009).

Nesting, decided so that nothing can hang:
    read in read      allowed, at once, even with a writer waiting: it would otherwise wait for the writer and that for it
    write in read     error: two readers that both asked to be the writer would wait for each other
    read in write     error: release order would decide whether others get in; use the write lock you have
    write in write    error, as a Mutex
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sennit.errors import UsageError
from sennit.sync.lockwaits import Blocked, Holder, holder_name
from sennit.sync.wait_histogram import WaitHistogram

__all__ = ["RWLockStatistics", "RWQueue", "Waiter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RWLockStatistics:
    """What a readers-writer lock has seen since it was made.

    Attributes:
        readers, writer: who is in now; how many, and who.
        readers_waiting, writers_waiting: the queue now.
        reads, writes: how many got in; nested reads not counted again.
        contended: how many of them had to wait.
        timeouts: how many gave up, cancelled ones among them.
        read_wait_p50_s … write_wait_p99_s: of those that waited and got in, in seconds, at most 25 % too high.
    """

    name: str
    readers: int
    writer: str | None
    readers_waiting: int
    writers_waiting: int
    reads: int
    writes: int
    contended: int
    timeouts: int
    read_wait_p50_s: float
    read_wait_p99_s: float
    write_wait_p50_s: float
    write_wait_p99_s: float


class Waiter:
    """One that waits. `admitted` turns True when it is in; then `wake` is to be called, once. `left`: it gave up.

    `ends`: whether it ends by itself: it has a time-out, or is cancelled and has not heard of it yet.
    """

    __slots__ = ("admitted", "ends", "holder", "left", "since_s", "wake", "write")

    def __init__(
        self, holder: Holder, wake: Callable[[], object], *, write: bool, since_s: float, ends: Callable[[], bool]
    ) -> None:
        self.holder = holder
        self.wake = wake
        self.ends = ends
        self.write = write
        self.since_s = since_s
        self.admitted = False
        self.left = False


class RWQueue:
    """Who is in and who waits. The caller keeps others out during each call, and wakes those that a call returns."""

    __slots__ = ("contended", "fair", "name", "read_waits", "readers", "readers_waiting", "reads", "timeouts", "write_waits",
                 "writer", "writers_waiting", "writes")  # fmt: skip

    def __init__(self, name: str, *, fair: bool) -> None:
        self.name = name
        self.fair = fair
        self.readers: dict[Holder, int] = {}  # and how often each is in
        self.writer: Holder | None = None
        self.writers_waiting: deque[Waiter] = deque()
        self.readers_waiting: dict[Waiter, None] = {}  # in the order they came
        self.reads = self.writes = self.contended = self.timeouts = 0
        self.read_waits = WaitHistogram()
        self.write_waits = WaitHistogram()

    def enter(self, holder: Holder, *, write: bool) -> bool:
        """Let it in if that needs no waiting; False otherwise.

        Raises:
            UsageError: it is in already, and this nests in a way that is not allowed.
        """
        if holder == self.writer or (write and holder in self.readers):
            raise self._nested(holder, write=write)
        if write:
            if self.readers or self.writer is not None or self.writers_waiting:
                return False
            self.writer = holder
            self.writes += 1
            return True
        if holder in self.readers:
            self.readers[holder] += 1
            return True
        if self.writer is not None or self.writers_waiting:
            return False
        self.readers[holder] = 1
        self.reads += 1
        return True

    def line_up(self, waiter: Waiter) -> None:
        """Let it wait; `enter` has just refused it."""
        if waiter.write:
            self.writers_waiting.append(waiter)
        else:
            self.readers_waiting[waiter] = None

    def leave(self, holder: Holder, *, write: bool) -> list[Waiter]:
        """Let it out and return whom to wake.

        Raises:
            UsageError: it is not in.
        """
        if write:
            if self.writer != holder or holder is None:
                raise self._not_in(holder, "writing")
            self.writer = None
            return self._admit(after_write=True)
        if holder not in self.readers:
            raise self._not_in(holder, "reading")
        self.readers[holder] -= 1
        if not self.readers[holder]:
            del self.readers[holder]
        return self._admit()

    def give_up(self, waiter: Waiter) -> list[Waiter]:
        """Take it out of the queue as if it had never come, and return whom to wake: those that waited for it."""
        waiter.left = True
        self.timeouts += 1
        if waiter.write:
            self.writers_waiting.remove(waiter)
        else:
            del self.readers_waiting[waiter]
        return self._admit()

    def note_wait(self, waiter: Waiter, now_s: float) -> None:
        """Count the wait of one that got in."""
        self.contended += 1
        (self.write_waits if waiter.write else self.read_waits).note(now_s - waiter.since_s)

    def blockers(self, blocked: Blocked) -> Iterable[Holder]:
        """Return who must leave before this wait can end; nobody, if it has ended and does not know yet.

        A writer that waits with a time-out stands in nobody's way for ever; so readers who are in do not keep another
        reader out, unless a writer that waits without one is between them.
        """
        waiter = blocked.token
        if not isinstance(waiter, Waiter) or waiter.admitted or waiter.left or waiter.ends():
            return
        if self.writer is not None:
            yield self.writer
        ahead = itertools.takewhile(lambda one: one is not waiter, tuple(self.writers_waiting))
        lasting = [one.holder for one in ahead if not one.ends()]
        if waiter.write or lasting:
            yield from tuple(self.readers)
        yield from lasting

    def _admit(self, *, after_write: bool = False) -> list[Waiter]:
        if self.writer is not None:
            return []
        readers_first = not self.writers_waiting or (after_write and self.fair)
        if readers_first and self.readers_waiting:
            admitted = list(self.readers_waiting)
            self.readers_waiting.clear()
            for waiter in admitted:
                self.readers[waiter.holder] = 1
                waiter.admitted = True
            self.reads += len(admitted)
            return admitted
        if self.writers_waiting and not self.readers:
            waiter = self.writers_waiting.popleft()
            self.writer = waiter.holder
            self.writes += 1
            waiter.admitted = True
            return [waiter]
        return []

    def statistics(self) -> RWLockStatistics:
        """Return the figures so far."""
        return RWLockStatistics(
            name=self.name,
            readers=len(self.readers),
            writer=None if self.writer is None else holder_name(self.writer),
            readers_waiting=len(self.readers_waiting),
            writers_waiting=len(self.writers_waiting),
            reads=self.reads,
            writes=self.writes,
            contended=self.contended,
            timeouts=self.timeouts,
            read_wait_p50_s=self.read_waits.quantile_s(0.5),
            read_wait_p99_s=self.read_waits.quantile_s(0.99),
            write_wait_p50_s=self.write_waits.quantile_s(0.5),
            write_wait_p99_s=self.write_waits.quantile_s(0.99),
        )

    def held_by(self) -> str:
        """Return who is in, and how many writers wait, for a message."""
        who = [holder_name(self.writer)] if self.writer is not None else [holder_name(one) for one in self.readers]
        text = ", ".join(who[:3]) + (f" and {len(who) - 3} more" if len(who) > 3 else "")
        doing = "writing" if self.writer is not None else "reading"
        waiting = f"; {len(self.writers_waiting)} writers wait" if self.writers_waiting else ""
        return (f"{text}, {doing}" if who else "nobody") + waiting

    def _nested(self, holder: Holder, *, write: bool) -> UsageError:
        has = "write" if holder == self.writer else "read"
        wants = "write" if write else "read"
        return UsageError(
            f"{holder_name(holder)} asks to {wants} under {self.name!r} while it holds it to {has}",
            why="it would wait for itself: two readers that both want to be the writer wait for each other for ever"
            if has == "read"
            else "a write lock does not nest: who has it may read and write already",
            fix="release the read lock, take the write lock, and look again at what was read"
            if has == "read"
            else "call this without the lock, or leave out the inner one",
        )

    def _not_in(self, holder: Holder, doing: str) -> UsageError:
        return UsageError(
            f"{holder_name(holder)} releases {self.name!r} and is not {doing} under it",
            why="only who acquired it may release it, and only as what it was acquired",
            fix="use `with lock.read():` and `with lock.write():`",
        )
