"""A lock between processes, OS threads and coroutines alike: a file that one of them holds.

    with FileLock("report.lock", timeout_s=5, purpose="writing the report"): ...
    async with FileLock("report.lock", shared=True): ...

In a process it is first come, first served; between processes nobody can be overtaken again and again. A waiter sleeps
until it is woken, and an event loop is not blocked. A holder that dies releases it at once, whatever killed it; a forked
child starts without it. `sync.lockline` is how, `sync.lockowner` is how a message can say who has it. The writer's own
lock is `sync.filelock.Pen`: faster, and for one OS thread per process.

`flock` works between the processes of one host. On a network file system it is what that system makes of it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sennit.errors import LockTimeout, UsageError
from sennit.sync.ack import call_in, in_event_loop
from sennit.sync.lockfiles import is_held
from sennit.sync.lockline import Line, Turn, line_at, line_if_any
from sennit.sync.lockowner import LockOwner, describe, read_owners

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["FileLock", "LockOwner"]


class FileLock:
    """The lock at one path. Any number of objects, OS threads and coroutines may use the same path, or one object.

    The holder is the OS thread, in async code the asyncio task, that acquired it: the same one must release it, and
    cannot acquire it twice.

    Args:
        path: is made if it is not there and stays; its folder must exist. Beside it, `path` + ".gate".
        timeout_s: how long to wait; None is for ever, 0 takes the lock only if it is free.
        shared: any number of shared holders, or one that is not shared.
        purpose: what a `LockTimeout` of others says it is held for; up to 200 bytes of it.
    """

    def __init__(
        self, path: Path | str, *, timeout_s: float | None = None, shared: bool = False, purpose: str = ""
    ) -> None:
        named = Path(path)
        self.path = Path(os.path.realpath(named.parent)) / named.name
        self.timeout_s = timeout_s
        self.shared = shared
        self.purpose = purpose

    # ------------------------------------------------------------ blocking

    def acquire(self) -> None:
        """Hold the lock, after sleeping until it is our turn.

        Raises:
            LockTimeout: it was not free within `timeout_s`; says who has it.
            UsageError: it is held here already, or it is not free and this is an event loop's OS thread.
            OSError: the file cannot be opened (a symlink is refused), or its file system has no `flock`.
        """
        gate = threading.Lock()
        gate.acquire()

        def wake() -> bool:
            gate.release()
            return True

        on_loop = in_event_loop()
        turn = Turn(_who(), shared=self.shared, purpose=self.purpose, wake=wake)
        line = self._enter(turn, waits=not on_loop)
        if not turn.holds and on_loop:
            raise UsageError(
                f"the lock {self.path} is not free, and waiting would block a running event loop",
                why="every other coroutine would stand still, perhaps the one that holds the lock",
                fix="write `async with lock:`",
            )
        if turn.holds:
            return
        try:
            gate.acquire(timeout=-1 if self.timeout_s is None else min(self.timeout_s, threading.TIMEOUT_MAX))
        except BaseException:  # a Ctrl-C
            _give_up(line, turn)
            raise
        self._check(line, turn)

    def release(self) -> None:
        """Let the next have the lock.

        Raises:
            UsageError: this OS thread or coroutine does not hold it.
        """
        line = line_if_any(self.path)
        if line is None or not line.release(_who()):
            raise UsageError(
                f"the lock {self.path} is not held here",
                why="only the OS thread or coroutine that acquired a lock can release it",
                fix="use `with lock:` or `async with lock:`",
            )

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    # ------------------------------------------------------------ in async code

    async def acquire_async(self) -> None:
        """Hold the lock, after waiting until it is our turn; `release()` it in the same task.

        A wait that is cancelled leaves the line.

        Raises:
            LockTimeout, UsageError, OSError: as `acquire`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> bool:
            if asyncio._get_running_loop() is loop:  # noqa: SLF001 - documented for this use; get_running_loop raises
                _set(future)
                return True
            return call_in(loop, _set, future)

        turn = Turn(_who(), shared=self.shared, purpose=self.purpose, wake=wake)
        line = self._enter(turn, waits=True)
        if turn.holds:
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                await future
        except TimeoutError:
            pass  # `_check` looks whether the lock came at the last moment
        except BaseException:
            _give_up(line, turn)
            raise
        self._check(line, turn)

    async def __aenter__(self) -> Self:
        await self.acquire_async()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    # ------------------------------------------------------------ looking

    def owners(self) -> tuple[LockOwner, ...]:
        """Return who holds the lock now, as far as they have written it down; more than one only if it is shared.

        Takes the lock for a moment to learn whether it is free.
        """
        return read_owners(self.path) if is_held(self.path) else ()

    def owner(self) -> LockOwner | None:
        """Return who holds the lock, the first one if it is shared; None if nobody does."""
        return next(iter(self.owners()), None)

    def delete_files(self) -> None:
        """Delete the lock's files, as the last thing before it is released: others go on with new ones at once.

        Raises:
            UsageError: it is not held here, or shared.
        """
        line = line_if_any(self.path)
        if line is None or not line.delete_files(_who()):
            raise UsageError(
                f"the lock {self.path} is not held exclusively here",
                why="its files can be deleted only while nobody else relies on them",
                fix="call this inside `with lock:`",
            )

    # ------------------------------------------------------------ inside

    def _enter(self, turn: Turn, *, waits: bool) -> Line:
        """Stand in line, or take the lock at once: then `turn.holds`."""
        once = self.timeout_s is not None and self.timeout_s <= 0
        while True:
            line = line_at(self.path)
            if line.enter(turn, waits=waits and not once) is not None:
                break
        if once and waits and not turn.holds:
            raise self._timeout()
        return line

    def _check(self, line: Line, turn: Turn) -> None:
        """After a wait: return if it was worth it."""
        if not turn.holds and line.leave(turn):
            raise turn.error or self._timeout()

    def _timeout(self) -> LockTimeout:
        owners = read_owners(self.path)
        pids = tuple(owner.pid for owner in owners)
        return LockTimeout(str(self.path), timeout_s=self.timeout_s or 0.0, owner=describe(owners), pids=pids)


def _who() -> object:
    """Return who is asking: the asyncio task, or else the OS thread."""
    task = asyncio.current_task() if in_event_loop() else None
    return threading.get_ident() if task is None else task


def _give_up(line: Line, turn: Turn) -> None:
    if not line.leave(turn):
        line.release(turn.who)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():  # the waiter may have been cancelled
        future.set_result(None)
