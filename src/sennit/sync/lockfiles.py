"""The two files of a lock, open and locked by `flock`; closing them releases both, and so does death.

Who has the lock has the body. The waiter in front has the gate, so that a process that lets go and wants the lock again
does not overtake it (`sync.filelock` has the figures). A lock file may be deleted by who holds it exclusively: whoever
then gets a lock on the deleted file sees that it is not the one at the path, and opens the new one.

A forked child must not share an open file with its parent, or it would hold the lock as long as it lives. Every
descriptor is noted here, and a fork waits until no descriptor is on its way into the notes.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import Final

from sennit.sync.lockowner import blank_owner, write_owner

__all__ = ["LockFiles", "is_held"]

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_CLOSED: Final = -1


class LockFiles:
    """An open gate and body; closing them releases both."""

    __slots__ = ("_body", "_gate", "_has_gate", "_offset", "_path")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._gate = self._body = self._offset = _CLOSED
        self._has_gate = False
        self._open()

    def take_nowait(self, *, shared: bool) -> bool:
        """Take both if they are free. Otherwise what was got is kept: a helper goes on from there."""
        while self.take_gate_nowait():
            try:
                fcntl.flock(self._body, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self.are_current():
                return True
            self.reopen()
        return False

    def take_gate_nowait(self) -> bool:
        """Stand in front of the other processes, if nobody else does."""
        try:
            fcntl.flock(self._gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._has_gate = True
        return True

    def take_gate(self) -> None:
        """Sleep until nobody of another process is in front."""
        if not self._has_gate:
            fcntl.flock(self._gate, fcntl.LOCK_EX)
            self._has_gate = True

    def take_body(self, *, shared: bool) -> None:
        """Sleep until the lock is ours; it may be on a file that was deleted meanwhile."""
        fcntl.flock(self._body, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)

    def free_gate(self) -> None:
        """Let others stand in front."""
        fcntl.flock(self._gate, fcntl.LOCK_UN)
        self._has_gate = False

    def are_current(self) -> bool:
        """True if the locked file is the one at the path."""
        ours = os.fstat(self._body)
        try:
            there = self._path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (ours.st_ino, ours.st_dev) == (there.st_ino, there.st_dev)

    def sign(self, *, shared: bool, purpose: str) -> None:
        """Write who holds the lock, then let the next come to the gate."""
        self._offset = write_owner(self._body, shared=shared, purpose=purpose)
        _close(self._gate)
        self._gate = _CLOSED

    def delete(self) -> None:
        """Delete both files; only who holds the lock exclusively may."""
        self._path.unlink(missing_ok=True)
        _gate_of(self._path).unlink(missing_ok=True)

    def reopen(self) -> None:
        """Release what is held and open what is at the path now."""
        self.close()
        self._open()

    def close(self) -> None:
        """Release whatever is held."""
        if self._offset != _CLOSED:
            blank_owner(self._body, self._offset)
        for descriptor in (self._gate, self._body):
            if descriptor != _CLOSED:
                _close(descriptor)
        self._gate = self._body = self._offset = _CLOSED
        self._has_gate = False

    def _open(self) -> None:
        try:
            self._gate = _open(_gate_of(self._path))
            self._body = _open(self._path)
        except OSError:
            self.close()
            raise


def _gate_of(path: Path) -> Path:
    return path.with_name(path.name + ".gate")


def is_held(path: Path) -> bool:
    """Ask the kernel, by taking the lock for a moment, whether anybody holds it."""
    try:
        descriptor = _open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        _close(descriptor)
    return False


# ---------------------------------------------------------------- forks

_descriptors: set[int] = set()
_opening = threading.RLock()


def _open(path: Path, flags: int = _FLAGS) -> int:
    with _opening:
        descriptor = os.open(path, flags, 0o600)
        _descriptors.add(descriptor)
        return descriptor


def _close(descriptor: int) -> None:
    with _opening:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _forget_in_child() -> None:
    """Close the copies of the parent's descriptors: it keeps its locks, the child has none."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()
    _opening.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_forget_in_child)
