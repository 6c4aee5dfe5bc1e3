"""One git of ours at a time in a repository, over all processes of the host, and nobody polls.

    async task ─► sennit/lock in the common git dir ─► OS thread: git … git … ─► the next
                                                          └── sennit/git: shared by each git that runs

git guards each file by itself, and fails when two want the same one: `worktree add` beside `worktree add`, a merge beside a
commit. Those who wait here need no OS thread; the one that works has its own. When we die while git works, the first lock is
free at once, and git goes on: so it inherits the second, and the next waits for that too.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from sennit.errors import LockTimeout, WorktreeError
from sennit.sync.ack import call_in
from sennit.sync.filelocks import FileLock
from sennit.sync.forks import drop_after_fork

__all__ = ["alone", "in_os_thread"]

T = TypeVar("T")

_LEFT_BEHIND_S: Final = 300.0  # as long as a git may take whose starter lives
_FIXES: Final = {
    errno.ENOSPC: "make room; nothing that was committed is affected",
    errno.EACCES: "worktrees are written down in the repository's git folder: it must be writable",
    errno.EROFS: "worktrees are written down in the repository's git folder: it must be writable",
}


async def alone(lock: Path, work: Callable[[int], T], *, purpose: str) -> T:
    """Run `work(descriptor)` in an OS thread while nobody else does on this lock; each git inherits the descriptor.

    A cancellation is heeded when `work` has ended: half a merge helps nobody.

    Raises:
        WorktreeError: a git whose starter has died does not end, or files cannot be written; `purpose` says which work.
    """
    left_behind = lock.with_name("git")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        async with FileLock(lock, purpose=purpose):
            async with FileLock(left_behind, timeout_s=_LEFT_BEHIND_S):
                pass
            return await in_os_thread(partial(_hold, left_behind, work))
    except LockTimeout as error:
        raise WorktreeError(
            f"a git that was started before still works in {lock.parent}",
            why="the process that started it has died, and nobody ends it",
            fix=f"see what it does, and end it: fuser {left_behind}",
        ) from error
    except OSError as error:
        raise WorktreeError(f"{purpose} failed", why=str(error), fix=_FIXES.get(error.errno or 0, "")) from error


async def in_os_thread(work: Callable[[], T]) -> T:
    """Run `work()` in an OS thread of its own, and return when it has ended, also when cancelled meanwhile."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def body() -> None:
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            call_in(loop, done.set_exception, error)
        else:
            call_in(loop, done.set_result, value)

    threading.Thread(target=body, name="sennit-git").start()
    cancelled: asyncio.CancelledError | None = None
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        done.exception()  # nobody else will look
        raise cancelled
    return done.result()


def _hold(path: Path, work: Callable[[int], T]) -> T:
    holder = _Held(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    try:
        fcntl.flock(holder.descriptor, fcntl.LOCK_SH)  # only who has the first lock wants it otherwise
        return work(holder.descriptor)
    finally:
        holder.drop_after_fork()


class _Held:
    """An open lock file that a forked Python does not keep."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        drop_after_fork(self)

    def drop_after_fork(self) -> None:
        """Close it, once."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
