"""Segments of other processes that this process has open, and its holds on their blocks.

    form ─► /proc/PID/fd/N: same inode? same token? ─► slot with our pid ─► read lock on the block ─► same generation? ─► Lease

The order is what makes it safe. The slot comes before the lock, so that an owner that waits knows whose death to look
for; the generation is read under the lock, so that the owner cannot have given the block to somebody else in between.

A segment stays mapped between two tasks only where the owner is the parent of this process, with which it ends:
elsewhere what was mapped for nothing would keep the memory of an owner that has died.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Generic, TypeVar

from sennit.errors import ArrayGone, SharedMemoryFull
from sennit.sync.array_forms import Place, this_boot
from sennit.sync.array_segments import (
    BELL_FD,
    BELL_INODE,
    CLOSED,
    PAGE_BYTES,
    SLOTS,
    WAITING,
    Lease,
    Mapping,
    generation_of,
    same_token,
    slot_word,
    try_lock,
    unlock,
)
from sennit.sync.forks import drop_after_fork

__all__ = ["Section", "gone", "hold", "is_open"]

T = TypeVar("T")

_IDLE_MAX: Final = 64
"""Segments that stay mapped without a hold; each costs three descriptors."""

_FIX: Final = (
    "keep the array until the result is there (`with pool.acquire(...) as a: task.submit(a).result()`); what must "
    "survive is passed as a plain numpy array, which is stored in a file"
)


class Section(Generic[T]):
    """A lock for what finalizers change, too. They run at any moment, also while this OS thread has it: they never wait.

    Whoever has the lock when something is left does the work after giving it back.
    """

    __slots__ = ("_left", "_settle", "lock")

    def __init__(self, settle: Callable[[T], None]) -> None:
        self.lock = threading.Lock()
        self._left: deque[T] = deque()
        self._settle = settle

    def leave(self, item: T) -> None:
        """Have `settle(item)` called with the lock held, now or by who has it."""
        self._left.append(item)
        self.settle()

    def settle(self) -> None:
        """Do what was left. To be called after every release of the lock."""
        while self._left and self.lock.acquire(blocking=False):
            try:
                while self._left:
                    self._settle(self._left.popleft())
            finally:
                self.lock.release()


def gone(what: str, why: str) -> ArrayGone:
    """Return the error for an array that cannot be opened any more."""
    return ArrayGone(what, why=why, fix=_FIX)


class _Attached:
    """One segment of another process."""

    def __init__(self, place: Place, holds: _Holds) -> None:
        self.place = place
        self._holds = holds
        self._maps: dict[bool, Mapping] = {}
        self.counts: dict[int, int] = {}
        descriptor = _opened(place)
        try:
            self._header = Mapping(descriptor, PAGE_BYTES)
            self.words = self._header.words()
            if not same_token(self.words, place.token):
                raise _not_there(place)
            # A description of its own: mmap keeps a copy of the other one, which a forked child would keep, too.
            self.locks = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(descriptor)
        try:
            self._slot = self._register()
        except BaseException:
            os.close(self.locks)
            raise

    def _register(self) -> int:
        for slot in range(SLOTS):
            word, byte = slot_word(slot)
            if not self.words[word] and try_lock(self.locks, byte, shared=False):
                self.words[word] = os.getpid()
                self._ring()  # a waiting owner looks again and finds us, before we hold anything
                return slot
        raise SharedMemoryFull(PAGE_BYTES, f"{SLOTS} processes have it open already")

    def lease(self, place: Place, *, writable: bool) -> Lease:
        """With the lock held: take a hold."""
        is_first = not self.counts.get(place.block)
        if is_first and not try_lock(self.locks, place.block, shared=True):
            raise _released(place)  # only an owner that found it free locks it
        try:
            return self._lease(place, writable=writable)
        except BaseException:
            if is_first:
                self._let_go(place.block)
            raise

    def _lease(self, place: Place, *, writable: bool) -> Lease:
        if generation_of(self.words, place.block) != place.generation:
            raise _released(place)
        mapping = self._mapped(writable=writable)
        return Lease(self, place.block, mapping, place.offset, place.size, writable=writable)

    def _mapped(self, *, writable: bool) -> Mapping:
        if writable not in self._maps:
            descriptor = os.open(f"/proc/self/fd/{self.locks}", os.O_RDWR if writable else os.O_RDONLY)
            try:
                size_bytes = os.fstat(descriptor).st_size
                self._maps[writable] = Mapping(descriptor, size_bytes, writable=writable)
            finally:
                os.close(descriptor)
        return self._maps[writable]

    def lent(self, lease: Lease) -> None:
        """A lease was made."""
        count = self.counts.get(lease.block, 0) + 1
        self.counts[lease.block] = count
        lease.is_lent = True  # nothing is called between these two: no interrupt comes there

    def come_back(self, block: int) -> None:
        """A lease is gone; from a finalizer."""
        self._holds.section.leave((self, block))

    def came_back(self, block: int) -> None:
        """With the lock held."""
        self.counts[block] -= 1
        if not self.counts[block]:
            del self.counts[block]
            self._let_go(block)

    def _let_go(self, block: int) -> None:
        unlock(self.locks, block)
        self._ring()

    def _ring(self) -> None:
        """Tell the owner, if it waits. It has said so before it looked at the locks, and we look after we let go."""
        if not self.words[WAITING]:
            return
        path = Path(f"/proc/{self.place.pid}/fd/{self.words[BELL_FD]}")
        with suppress(OSError):  # the owner is gone, or its bell is full of such news
            if _is_bell(path.stat(), self.words[BELL_INODE]):
                bell = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    if _is_bell(os.fstat(bell), self.words[BELL_INODE]):
                        os.write(bell, b".")
                finally:
                    os.close(bell)

    def close(self) -> None:
        """Let go of the whole segment; nothing of it is held."""
        word, _ = slot_word(self._slot)
        self.words[word] = 0
        self.forget()

    def forget(self) -> None:
        """Close the descriptor of the locks, and with it all holds."""
        descriptor, self.locks = self.locks, -1
        if descriptor >= 0:
            os.close(descriptor)


class _Holds:
    """All of this process. The set of forked children drops it: a hold is of one process."""

    def __init__(self) -> None:
        self._open: dict[str, _Attached] = {}
        self.section: Section[tuple[_Attached, int]] = Section(self._came_back)
        drop_after_fork(self)

    def hold(self, place: Place, *, writable: bool) -> Lease:
        if place.boot != this_boot():
            raise gone(
                "a shared array is in the memory of another machine, or of this one before it was started again",
                "memory is shared by the processes of one host, for as long as the process that acquired it lives",
            )
        try:
            with self.section.lock:
                attached = self._open.get(place.token)
                if attached is None:
                    self._tidy()
                    attached = _Attached(place, self)
                    self._open[place.token] = attached
                try:
                    return attached.lease(place, writable=writable)
                finally:
                    self._close_idle(attached)
        finally:
            self.section.settle()

    def count(self) -> int:
        return len(self._open)

    def _came_back(self, what: tuple[_Attached, int]) -> None:
        attached, block = what
        attached.came_back(block)
        self._close_idle(attached)

    def _close_idle(self, attached: _Attached) -> None:
        if not attached.counts and not (_is_parent(attached.place.pid) and not attached.words[CLOSED]):
            self._close(attached)

    def _tidy(self) -> None:
        """Before one more is opened: close what its owner has closed, and the oldest when there are many."""
        idle = [attached for attached in self._open.values() if not attached.counts]
        many = max(0, len(idle) - _IDLE_MAX + 1)
        for n, attached in enumerate(idle):
            if n < many or attached.words[CLOSED]:
                self._close(attached)

    def _close(self, attached: _Attached) -> None:
        if self._open.get(attached.place.token) is attached:
            del self._open[attached.place.token]
        attached.close()

    def drop_after_fork(self) -> None:
        """In a forked child: the holds stay its parent's."""
        for attached in self._open.values():
            attached.forget()
        self._open.clear()
        self.section = Section(self._came_back)


def _opened(place: Place) -> int:
    """Return a descriptor of the segment."""
    path = Path(f"/proc/{place.pid}/fd/{place.fd}")
    try:
        if path.stat().st_ino != place.ino:  # nothing else is ever opened: a device may do something then
            raise _not_there(place)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise gone(
            f"the memory of a shared array of process {place.pid} cannot be opened: {error.strerror}",
            "shared arrays are handed between processes of one user",
        ) from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise SharedMemoryFull(place.size, str(error.strerror)) from error
        raise _not_there(place) from error
    found = os.fstat(descriptor)
    if found.st_ino != place.ino or found.st_size < place.offset + place.size or found.st_size < PAGE_BYTES:
        os.close(descriptor)
        raise _not_there(place)
    return descriptor


def _not_there(place: Place) -> ArrayGone:
    return gone(
        f"a shared array of process {place.pid} cannot be opened: its memory is gone",
        "the process that acquired it has ended or released it, or it is in another container",
    )


def _released(place: Place) -> ArrayGone:
    return gone(
        f"a shared array of process {place.pid} cannot be opened: it was released",
        "its memory may hold somebody else's array by now",
    )


def _is_bell(found: os.stat_result, inode: int) -> bool:
    """Return whether this is the pipe that the owner listens to, and not another file with its number."""
    return stat.S_ISFIFO(found.st_mode) and found.st_ino == inode


def _is_parent(pid: int) -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and parent.pid == pid


_holds: Final = _Holds()


def hold(place: Place, *, writable: bool) -> Lease:
    """Return a lease on a block of another process.

    Raises:
        ArrayGone: its memory is gone, was released, or is on another machine.
        SharedMemoryFull: it cannot be mapped.
    """
    return _holds.hold(place, writable=writable)


def is_open() -> int:
    """Return how many segments of other processes are mapped here, held or not."""
    return _holds.count()
