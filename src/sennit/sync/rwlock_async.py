"""Many readers or one writer, for the tasks of one event loop. The rules are in `rwqueue`; here is the waiting.

    async with lock.read(timeout_s=1): …        async with lock.write(): …

Whoever makes room lets the next ones in before anybody else can ask, so the order is that of the queue. A task that is
cancelled while it waits leaves no trace: if it was let in at that moment, it leaves again, and the next one enters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType

from sennit.errors import LockTimeout, UsageError
from sennit.sync import lockorder
from sennit.sync.lockwaits import OUR_FILES, Blocked, Holder, end_wait, enter_wait
from sennit.sync.rwqueue import RWLockStatistics, RWQueue, Waiter

__all__ = ["AsyncRWLock"]

OUR_FILES.add(__file__)


class AsyncRWLock:
    """See the module. It belongs to the event loop that uses it first, until nobody holds it or waits for it.

    Args:
        name, fair: as of `RWLock`.
    """

    __slots__ = ("__weakref__", "_loop", "_order", "_queue", "_read", "_serial", "_write")

    def __init__(self, name: str, *, fair: bool = False) -> None:
        self._queue = RWQueue(name, fair=fair)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._order = lockorder.current()
        self._serial = lockorder.serial()
        self._read = _AsyncHold(self, None, write=False)
        self._write = _AsyncHold(self, None, write=True)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self._queue.name

    def read(self, timeout_s: float | None = None) -> _AsyncHold:
        """Return `async with` this to read. A task that reads may do so again inside.

        Args:
            timeout_s: how long to wait, in seconds; None for ever, 0 not at all.

        Raises (on entering):
            LockTimeout: not within `timeout_s`; says who has it.
            UsageError: this task is writing under it, or the lock is in use on another event loop.
            LockDeadlock: it would wait for ever. LockOrderError: the check is on, and this closes a cycle.
        """
        return self._read if timeout_s is None else _AsyncHold(self, timeout_s, write=False)

    def write(self, timeout_s: float | None = None) -> _AsyncHold:
        """Return `async with` this to be alone. Arguments and errors as `read`.

        Raises (on entering):
            UsageError: this task is reading or writing under it; there is no upgrade.
        """
        return self._write if timeout_s is None else _AsyncHold(self, timeout_s, write=True)

    def statistics(self) -> RWLockStatistics:
        """Return the figures so far."""
        return self._queue.statistics()

    def blockers(self, blocked: Blocked) -> Iterable[Holder]:
        """Return who stands before this wait; see `lockwaits`."""
        return tuple(self._queue.blockers(blocked))

    def _enter(self, me: asyncio.Task[object], *, write: bool) -> bool:
        """Get in if that needs no waiting and no check of the order."""
        self._check_loop()
        return self._order is None and self._queue.enter(me, write=write)

    async def _acquire(self, me: asyncio.Task[object], timeout_s: float | None, *, write: bool) -> None:
        order = None if me in self._queue.readers or me == self._queue.writer else self._order  # nested ones wait not
        if order is not None and (timeout_s is None or timeout_s > 0):
            order.acquiring(me, self.name, self._serial)
        if not self._queue.enter(me, write=write):
            if timeout_s is not None and timeout_s <= 0:
                self._queue.timeouts += 1
                raise self._timeout(0.0)
            await self._wait(me, timeout_s, write=write)
        if order is not None:
            order.acquired(me, self.name, self._serial)

    async def _wait(self, me: asyncio.Task[object], timeout_s: float | None, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not future.done():  # else its task was cancelled, and leaves when it runs next
                future.set_result(None)

        waiter = Waiter(me, wake, write=write, since_s=loop.time(), ends=lambda: timeout_s is not None or future.done())
        self._queue.line_up(waiter)
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._time_out, waiter)
        blocked = Blocked(me, self, waiter) if timeout_s is None else None
        try:
            if blocked is not None:
                enter_wait(blocked)
            await future
        except BaseException:
            self._give_up(waiter)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if blocked is not None:
                end_wait(blocked)
        if waiter.left:
            raise self._timeout(timeout_s or 0.0)
        self._queue.note_wait(waiter, loop.time())

    def _time_out(self, waiter: Waiter) -> None:
        """End a wait on its timer; nothing to do if it was let in, or cancelled, just before."""
        if not waiter.admitted and not waiter.left:
            self._wake(self._queue.give_up(waiter))
            waiter.wake()

    def _give_up(self, waiter: Waiter) -> None:
        """Leave no trace of a wait that was cancelled."""
        if waiter.admitted:
            self._wake(self._queue.leave(waiter.holder, write=waiter.write))
        elif not waiter.left:
            self._wake(self._queue.give_up(waiter))

    def _release(self, *, write: bool) -> None:
        me = _current_task()
        woken = self._queue.leave(me, write=write)
        if self._order is not None and me not in self._queue.readers:
            self._order.released(me, self._serial)
        self._wake(woken)

    @staticmethod
    def _wake(waiters: list[Waiter]) -> None:
        for waiter in waiters:
            waiter.wake()

    def _timeout(self, timeout_s: float) -> LockTimeout:
        return LockTimeout(self.name, timeout_s=timeout_s, owner=self._queue.held_by())

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            queue = self._queue
            if queue.readers or queue.writer is not None or queue.writers_waiting or queue.readers_waiting:
                raise UsageError(
                    f"the lock {self.name!r} is in use on another event loop",
                    why="tasks of two loops run in two OS threads, and it keeps no OS thread out",
                    fix="give each loop a lock of its own, or use RWLock in OS threads",
                )
            self._loop = loop

    def __repr__(self) -> str:
        return f"<AsyncRWLock {self.name!r} held by {self._queue.held_by()}>"


def _current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    if task is None:
        raise UsageError("a lock for tasks is used outside of a task", fix="use it in a coroutine that a task runs")
    return task


class _AsyncHold:
    """One way of being in; the two without a time-out are made once per lock."""

    __slots__ = ("_lock", "_timeout_s", "_write")

    def __init__(self, lock: AsyncRWLock, timeout_s: float | None, *, write: bool) -> None:
        self._lock = lock
        self._timeout_s = timeout_s
        self._write = write

    async def __aenter__(self) -> None:
        lock, me = self._lock, _current_task()
        if not lock._enter(me, write=self._write):  # noqa: SLF001 - two halves of one thing
            await lock._acquire(me, self._timeout_s, write=self._write)  # noqa: SLF001

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._lock._release(write=self._write)  # noqa: SLF001
