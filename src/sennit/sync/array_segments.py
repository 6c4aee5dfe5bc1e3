"""A segment: shared memory without a name, cut into blocks of one size, with a page that says what is in it.

    memfd   ┌──────────── one page ────────────┬─ block 0 ─┬─ block 1 ─┬ …       only blocks in use have memory
            │ token │ generations │ who has it │           │           │
            └──────────────────────────────────┴───────────┴───────────┴ …
    locks   byte i: block i is held            byte 4096 + j: slot j of "who has it" is taken

There is no name in the file system: the kernel frees a segment when the last process that has it mapped has closed it or
has died, whatever killed it. Another process opens `/proc/PID/fd/N` of the owner (the same user, the same host) and
compares inode and token, so that a process or descriptor number used again is never taken for the segment.

A hold is a read lock on the block's byte (`F_OFD_SETLK`), one description per process: the kernel drops it with the
process. The owner uses a block again only when it gets the write lock. A block's generation goes up when its last reference is released:
who comes late holds the lock, compares, and learns that what it was told of is gone.

Linux only: `memfd_create`, open file description locks, `/proc`, pidfds.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import struct
from contextlib import suppress
from typing import Any, Final

from sennit.errors import SharedMemoryFull, UsageError

__all__ = [
    "BELL_FD",
    "BELL_INODE",
    "BLOCKS_MAX",
    "CLOSED",
    "PAGE_BYTES",
    "SEGMENT_BYTES",
    "SLOTS",
    "WAITING",
    "Lease",
    "Mapping",
    "Segment",
    "generation_of",
    "is_supported",
    "need_linux",
    "page_round",
    "same_token",
    "slot_word",
    "stride_bytes",
    "try_lock",
    "unlock",
]

PAGE_BYTES: Final = mmap.PAGESIZE
SEGMENT_BYTES: Final = 16 << 20
"""Address space of a segment of small blocks; large enough that a thousand small arrays need few descriptors."""

# Words of 64 bits on the first page. A store of an aligned word is one instruction, never half seen.
_MAGIC: Final = 0x53454E4E_49540001
_TOKEN: Final = 1  # two words
WAITING: Final = 3
BELL_FD: Final = 4
BELL_INODE: Final = 5
CLOSED: Final = 6
_GENERATIONS: Final = 16
BLOCKS_MAX: Final = 240
_SLOTS: Final = _GENERATIONS + BLOCKS_MAX
SLOTS: Final = 256
_SLOT_LOCKS: Final = 4096

_FLOCK: Final = struct.Struct(
    "hhqqi4x"
)  # struct flock of 64-bit Linux: type, whence, start, len, pid (0 for OFD locks)


def is_supported() -> bool:
    """Return whether this system has what segments are made of."""
    return hasattr(os, "memfd_create") and hasattr(fcntl, "F_OFD_SETLK") and hasattr(os, "pidfd_open")


def need_linux() -> None:
    """Raise UsageError on a system without shared arrays."""
    if not is_supported():
        raise UsageError(
            "shared arrays need Linux",
            why="they are memfds with open file description locks; elsewhere nothing frees them after a kill -9",
            fix="pass a numpy array: from 64 KiB on it travels as a file that is mapped read-only",
        )


# ------------------------------------------------------------ locks


def try_lock(descriptor: int, byte: int, *, shared: bool) -> bool:
    """Lock a byte on this open file description; False if another description has it."""
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(descriptor: int, byte: int) -> None:
    """Give a lock back."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))


# ------------------------------------------------------------ sizes


def page_round(size_bytes: int) -> int:
    """Return the size in whole pages."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


def stride_bytes(size_bytes: int) -> int:
    """Return the distance of blocks for arrays of this size: eight steps per doubling, in whole pages.

    It is address space and not memory. Source of the steps: jemalloc has four per doubling (its size classes); eight
    keep more sizes apart, and still let a slightly larger array use a block again.
    """
    step = max(PAGE_BYTES, 1 << max(0, (size_bytes - 1).bit_length() - 4))
    return -(-size_bytes // step) * step


# ------------------------------------------------------------ memory


class Mapping:
    """Mapped memory and its address; unmapped when the last reference is gone, and arrays hold one."""

    __slots__ = ("_whole", "address", "memory")

    def __init__(self, descriptor: int, size_bytes: int, *, writable: bool = True) -> None:
        import numpy as np  # noqa: PLC0415 - an extra

        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            self.memory = mmap.mmap(descriptor, size_bytes, flags=mmap.MAP_SHARED, prot=prot)
        except OSError as error:
            raise SharedMemoryFull(size_bytes, f"mmap: {error.strerror}") from error
        self._whole = np.frombuffer(self.memory, np.uint8)
        self.address: int = self._whole.__array_interface__["data"][0]

    def words(self) -> memoryview[int]:
        """Return the first page as words."""
        return memoryview(self.memory)[:4096].cast("Q")


class Lease:
    """The right to use a block: every numpy array on it refers to this, and the block comes back when this is gone.

    Arrays are made by `__array_interface__`, whose result and all views of it keep the object they came from.
    """

    __slots__ = ("__array_interface__", "_mapping", "_pid", "block", "home", "is_lent", "nbytes")

    def __init__(self, home: Any, block: Any, mapping: Mapping, offset: int, nbytes: int, *, writable: bool) -> None:
        self.is_lent = False
        self._pid = os.getpid()
        self._mapping = mapping
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (nbytes,),
            "data": (mapping.address + offset, not writable),
        }
        self.nbytes = nbytes
        self.block = block
        self.home = home
        home.lent(self)  # last: what fails before has lent nothing

    def __del__(self) -> None:
        # Only what was counted: one interrupted before that must not be taken off. And a forked child has copies of
        # what its parent counts.
        if self.is_lent and self._pid == os.getpid():
            self.home.come_back(self.block)


class Segment:
    """A segment that this process has made.

    Raises:
        SharedMemoryFull: the system does not give it.
    """

    def __init__(self, stride: int, blocks: int, name: str) -> None:
        self.stride = stride
        self.blocks = blocks
        self.size_bytes = PAGE_BYTES + stride * blocks
        self.descriptor = -1
        self._pid = os.getpid()
        try:
            self.descriptor = nameless_memory(name, self.size_bytes)
            os.posix_fallocate(self.descriptor, 0, PAGE_BYTES)
            self.inode = os.fstat(self.descriptor).st_ino
            self.mapping = Mapping(self.descriptor, self.size_bytes)
        except OSError as error:
            self.close()
            raise SharedMemoryFull(self.size_bytes, str(error.strerror)) from error
        except BaseException:
            self.close()
            raise
        token = secrets.token_bytes(16)
        self.token = token.hex()
        self.words = self.mapping.words()
        self.words[_TOKEN], self.words[_TOKEN + 1] = struct.unpack("QQ", token)
        self.words[_GENERATIONS : _GENERATIONS + BLOCKS_MAX] = memoryview(struct.pack("Q", 1) * BLOCKS_MAX).cast("Q")
        self.words[0] = _MAGIC

    def offset(self, index: int) -> int:
        """Return where a block begins."""
        return PAGE_BYTES + index * self.stride

    def generation(self, index: int) -> int:
        """Return what tells one use of a block from the next."""
        return self.words[_GENERATIONS + index]

    def end_generation(self, index: int) -> None:
        """What was told of this block so far leads to nothing from now on."""
        self.words[_GENERATIONS + index] += 1

    def is_held_elsewhere(self, index: int) -> bool:
        """Return whether another process holds a block."""
        if try_lock(self.descriptor, index, shared=False):
            unlock(self.descriptor, index)
            return False
        return True

    def commit(self, index: int, size_bytes: int) -> None:
        """Have memory behind a block, now, and not at first touch with a signal when there is none.

        Raises:
            SharedMemoryFull: there is none.
        """
        try:
            os.posix_fallocate(self.descriptor, self.offset(index), size_bytes)
        except OSError as error:
            raise SharedMemoryFull(size_bytes, str(error.strerror)) from error

    def decommit(self, index: int) -> None:
        """Give the memory behind a block back to the system; what comes there next is zero."""
        self.mapping.memory.madvise(mmap.MADV_REMOVE, self.offset(index), self.stride)

    def pids(self) -> set[int]:
        """Return the processes that have this segment open; slots of dead ones are emptied."""
        found: set[int] = set()
        for slot in range(SLOTS):
            pid = self.words[_SLOTS + slot]
            if not pid:
                continue
            if try_lock(self.descriptor, _SLOT_LOCKS + slot, shared=False):
                self.words[_SLOTS + slot] = 0
                unlock(self.descriptor, _SLOT_LOCKS + slot)
            else:
                found.add(pid)
        return found

    def close(self) -> None:
        """Let go of it, when no block is in use here. Who holds a block elsewhere keeps the memory of that block."""
        if self._pid != os.getpid():  # a forked child: the blocks are its parent's
            self.forget()
        if self.descriptor < 0:
            return
        with suppress(AttributeError):  # half made
            self.words[CLOSED] = 1
            for index in range(self.blocks):
                self.end_generation(index)  # who has it mapped and was told of a block gets no zeros for it
                if not self.is_held_elsewhere(index):
                    self.decommit(index)  # who has it mapped and does not use it must not keep the memory
        self.forget()

    def forget(self) -> None:
        """Close the descriptor, in a forked child or when there is nothing to clear away."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # half made, or at the end of the interpreter
            self.close()


def nameless_memory(name: str, size_bytes: int) -> int:
    """Return a descriptor of memory that nobody can shrink. `name` shows in /proc/PID/maps and nowhere else."""
    descriptor = os.memfd_create(f"sennit-{name}"[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def same_token(words: memoryview[int], token: str) -> bool:
    """Return whether this first page belongs to the segment of that token."""
    return words[0] == _MAGIC and struct.pack("QQ", words[_TOKEN], words[_TOKEN + 1]).hex() == token


def generation_of(words: memoryview[int], index: int) -> int:
    """Return the generation of a block by its first page."""
    return words[_GENERATIONS + index]


def slot_word(slot: int) -> tuple[int, int]:
    """Return the word and the lock byte of a slot."""
    return _SLOTS + slot, _SLOT_LOCKS + slot
