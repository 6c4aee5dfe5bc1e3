"""Who is alive on this host, without asking anybody twice.

A worker process holds an exclusive `flock` on `<worker_id>.alive` for as long as it lives. The kernel releases it with
the process, whatever ended it, so the lock *is* the fact: held = alive, free or missing = dead. A pid alone proves
nothing, it may belong to somebody else by now or to another pid namespace.

    LifeLock.hold ──► flock held ────────────── death ──► flock free
    DeathWatch.watch ──► pidfd readable, or a blocked flock returns ──► on_death(worker_id), once

A pidfd costs one descriptor and tells the loop at once. Where it cannot be trusted or made (another pid namespace, no
`pidfd_open`), one OS thread per watched process sleeps in `flock` instead. Neither ever wakes up to look.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from sennit.errors import SettingsError, UsageError
from sennit.sync.forks import drop_after_fork

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

__all__ = ["DeathWatch", "DeathWatchStatistics", "LifeLock", "bury", "is_alive"]

PIDFD: Final = hasattr(os, "pidfd_open")
"""Whether this Python and kernel can wait for any process by descriptor (Linux 5.3)."""

_WORKER_ID = re.compile(r"[A-Za-z0-9._-]{1,120}")


class LifeLock:
    """Held from the start of a worker process to its end; its release is how others learn of the end."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Take over a descriptor that holds the lock on `path`."""
        self.path = path
        self._descriptor = descriptor
        drop_after_fork(self)

    @classmethod
    def hold(cls, directory: Path, worker_id: str) -> Self:
        """Declare this process alive as `worker_id`, an id that no process had before.

        The file is locked under a temporary name and then renamed: nobody can see it unlocked and bury the living.

        Raises:
            SettingsError: the id has other characters than letters, digits, `.`, `_`, `-`.
            UsageError: a living process holds this id.
            OSError: the file cannot be made, or its file system has no `flock`.
        """
        path = _path(directory, worker_id)
        if is_alive(directory, worker_id):
            raise UsageError(
                f"worker {worker_id} is already alive on this host",
                why="two processes under one id could not be told apart when one of them dies",
                fix="give every process an id of its own",
            )
        newborn = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(newborn, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, f"{os.getpid()}\n{_pid_namespace()}\n".encode())
            newborn.rename(path)
        except BaseException:
            os.close(descriptor)
            newborn.unlink(missing_ok=True)
            raise
        return cls(path, descriptor)

    def release(self) -> None:
        """Declare this process gone, on purpose. Harmless when released."""
        if self._descriptor == -1:
            return
        # Unlinked while still locked: nobody can meet a free lock that is about to vanish.
        with suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), os.fstat(self._descriptor)):
                self.path.unlink()
        self.drop_after_fork()

    def drop_after_fork(self) -> None:
        """In a forked child: close the copy, or the child would keep its dead parent alive."""
        if self._descriptor != -1:
            os.close(self._descriptor)
            self._descriptor = -1


def is_alive(directory: Path, worker_id: str) -> bool:
    """Return whether the process that holds `worker_id` lives; a missing file means it does not. Never blocks."""
    descriptor = _open(directory, worker_id)
    if descriptor is None:
        return False
    try:
        return _is_held(descriptor)
    finally:
        os.close(descriptor)


def bury(directory: Path, worker_id: str) -> bool:
    """Remove what a dead worker left behind. False, and nothing removed, if it is alive."""
    if is_alive(directory, worker_id):
        return False
    _path(directory, worker_id).unlink(missing_ok=True)
    return True


@dataclass(frozen=True, slots=True)
class DeathWatchStatistics:
    """How the watched processes are watched."""

    by_pidfd: int
    by_os_thread: int


class DeathWatch:
    """Calls `on_death(worker_id)` on the loop as soon as a watched process is gone, exactly once each.

    All methods belong to the loop's own OS thread. A worker that releases its lock on purpose counts as gone too, at the
    latest when its process ends.
    """

    def __init__(
        self, directory: Path, on_death: Callable[[str], None], *, loop: AbstractEventLoop, pidfd: bool = PIDFD
    ) -> None:
        """Watch nobody yet.

        Args:
            directory: where the workers hold their locks.
            on_death: called on `loop`, never from inside `watch`.
            loop: the running event loop.
            pidfd: False to wait by OS threads only.
        """
        self._directory = directory
        self._on_death = on_death
        self._loop = loop
        self._pidfd = pidfd
        self._watches: dict[str, _Watch] = {}

    def watch(self, worker_id: str, pid: int) -> None:
        """Wait for the end of `worker_id`, whose row says `pid`. Watching twice is watching once."""
        if worker_id in self._watches:
            return
        lock = _open(self._directory, worker_id)
        # The lock is tested after this: once the descriptor is open the pid cannot change hands, so a lock that is held
        # by a process of this pid belongs to the process behind the descriptor.
        pidfd = self._open_pidfd(pid)
        self._watches[worker_id] = watch = _Watch(worker_id, pidfd=pidfd)
        if lock is None or not _is_held(lock):
            _close(lock)
            self._loop.call_soon(self._report, watch)
        elif pidfd is not None and _is_owner(lock, pid):
            os.close(lock)
            self._loop.add_reader(pidfd, self._on_exit, watch)
        else:
            self._wait_by_os_thread(watch, lock)

    def unwatch(self, worker_id: str) -> None:
        """Stop waiting; `on_death` is not called for this id any more. Harmless when it is not watched.

        An OS thread that waits for it stays asleep until that process ends, and then says nothing.
        """
        watch = self._watches.pop(worker_id, None)
        if watch is not None:
            self._release_pidfd(watch)

    def close(self) -> None:
        """Stop waiting for everybody."""
        for worker_id in tuple(self._watches):
            self.unwatch(worker_id)

    def statistics(self) -> DeathWatchStatistics:
        """Return how many are watched, and how."""
        by_pidfd = sum(watch.pidfd is not None for watch in self._watches.values())
        return DeathWatchStatistics(by_pidfd=by_pidfd, by_os_thread=len(self._watches) - by_pidfd)

    def _open_pidfd(self, pid: int) -> int | None:
        """Return a descriptor for `pid`, or None when the kernel, a sandbox or the pid namespace does not give one."""
        if not self._pidfd:
            return None
        try:
            return os.pidfd_open(pid)
        except (OSError, OverflowError):
            return None

    def _on_exit(self, watch: _Watch) -> None:
        """The process behind the pidfd has ended.

        Its lock went first, unless a child has a copy: one forked in the last moment, until it has dropped it, or one
        forked by C code, until it ends.
        """
        lock = _open(self._directory, watch.worker_id)
        if lock is None or not _is_held(lock):
            _close(lock)
            self._report(watch)
        else:
            self._wait_by_os_thread(watch, lock)

    def _wait_by_os_thread(self, watch: _Watch, lock: int) -> None:
        self._release_pidfd(watch)
        threading.Thread(
            target=self._sleep_in_flock, args=(watch, lock), name=f"sennit-watch-{watch.worker_id}", daemon=True
        ).start()

    def _sleep_in_flock(self, watch: _Watch, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)
        with suppress(RuntimeError):  # The loop is closed: nobody is left to tell.
            self._loop.call_soon_threadsafe(self._report, watch)

    def _report(self, watch: _Watch) -> None:
        # By identity: the id may have been unwatched, and watched again, since this news was sent.
        if self._watches.get(watch.worker_id) is watch:
            self.unwatch(watch.worker_id)
            self._on_death(watch.worker_id)

    def _release_pidfd(self, watch: _Watch) -> None:
        if watch.pidfd is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(watch.pidfd)
            os.close(watch.pidfd)
            watch.pidfd = None


@dataclass(slots=True, eq=False)
class _Watch:
    worker_id: str
    pidfd: int | None


def _path(directory: Path, worker_id: str) -> Path:
    if not _WORKER_ID.fullmatch(worker_id):
        raise SettingsError(
            f"{worker_id!r} cannot be a worker id",
            why="it becomes a file name",
            fix="use 1 to 120 letters, digits, dots, underscores or dashes",
        )
    return directory / f"{worker_id}.alive"


def _open(directory: Path, worker_id: str) -> int | None:
    try:
        return os.open(_path(directory, worker_id), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _is_held(descriptor: int) -> bool:
    """Return whether the exclusive lock is held. The probe is shared: two that look at once do not see each other."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _is_owner(descriptor: int, pid: int) -> bool:
    """Return whether the holder of this lock is the process that *we* know as `pid`."""
    lines = os.pread(descriptor, 200, 0).decode(errors="replace").splitlines()
    namespace = _pid_namespace()
    return bool(namespace) and lines == [str(pid), namespace]


def _pid_namespace() -> str:
    """Return the name of this process's pid namespace, "" where it cannot be read."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
