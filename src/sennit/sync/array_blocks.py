"""The books of a pool of shared arrays: which blocks there are, who has them, and how much memory is behind them.

    new ─take─► taken ─last reference gone─► free ─take─► taken …           memory behind: kept, the next one is warm
                  └─ another process holds it ─► away ─it lets go─► free
    free ─room is needed─► new                                              memory behind: given back to the system

Everything here is called with the lock of the pool held, and nothing here waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sennit.sync.array_segments import (
    BLOCKS_MAX,
    SEGMENT_BYTES,
    Lease,
    Segment,
    page_round,
    stride_bytes,
)

__all__ = ["Block", "Blocks", "SharedArrayStatistics"]


class Home(Protocol):
    """What leases come back to."""

    def lent(self, lease: Lease) -> None:
        """A lease was made: count it, and say so on it."""

    def come_back(self, block: Block) -> None:
        """A lease is gone."""


@dataclass(slots=True, eq=False)
class Block:
    """A block, for as long as its pool knows it.

    `handles` are the references that were not released, `leases` those and what numpy still refers to. `memory_bytes` is
    what counts against the bound, `backed_bytes` what the system has given of it.
    """

    segment: Segment
    index: int
    memory_bytes: int = 0
    backed_bytes: int = 0
    handles: int = 0
    leases: int = 0
    is_told: bool = False  # other processes may know where it is
    is_used: bool = False  # it may hold an older array
    is_lost: bool = False  # the system did not give its memory
    site: str = ""


@dataclass(frozen=True, slots=True)
class SharedArrayStatistics:
    """A snapshot of a pool.

    Attributes:
        bytes_max: the bound.  bytes_memory: memory behind all blocks, free ones too.
        bytes_held: of arrays in use in this process.  bytes_away: released here, and still held by other processes.
        arrays_held, arrays_away: how many those are.  waiting: callers that wait for room.
        acquired: since the pool was made.  segments: open segments, one file descriptor each (two with mmap's own).
    """

    bytes_max: int
    bytes_memory: int
    bytes_held: int
    bytes_away: int
    arrays_held: int
    arrays_away: int
    waiting: int
    acquired: int
    segments: int


class Blocks:
    """See above. `memory_bytes` of all blocks together never is over `bytes_max`; `owners` learns which segments there are."""

    def __init__(self, name: str, bytes_max: int, home: Home, owners: MutableMapping[str, Any]) -> None:
        self.name = name
        self.bytes_max = bytes_max
        self.home = home
        self.owners = owners
        self.memory_bytes = 0
        self._acquired = 0
        self.segments: dict[str, Segment] = {}
        self.taken: dict[tuple[str, int], Block] = {}
        self.away: dict[Block, None] = {}
        self._new: dict[int, list[Block]] = {}
        self._free: dict[int, list[Block]] = {}

    # ------------------------------------------------------------ taking

    def take(self, nbytes: int, site: str) -> Lease | None:
        """Return a lease on a block for so many bytes, None when there is no room.

        Raises:
            SharedMemoryFull: there is room in the pool, and the system gives no segment.
        """
        need_bytes = page_round(nbytes)
        stride = stride_bytes(nbytes)
        block = self._found(stride, need_bytes)
        if block is None:
            return None
        block.site = site
        self.memory_bytes += max(0, need_bytes - block.memory_bytes)
        block.memory_bytes = max(need_bytes, block.memory_bytes)
        segment = block.segment
        try:
            return Lease(self.home, block, segment.mapping, segment.offset(block.index), nbytes, writable=True)
        except BaseException:
            if not block.leases:
                self.came_back(block)
            raise

    def _found(self, stride: int, need_bytes: int) -> Block | None:
        free = self._free.get(stride)
        if not free and self.away:
            self.sweep()
            free = self._free.get(stride)
        if free:
            for n in range(len(free) - 1, -1, -1):  # the one used last is warm
                if free[n].memory_bytes >= need_bytes:
                    return free.pop(n)
            block = free.pop()
            if self._make_room(need_bytes - block.memory_bytes):
                return block
            free.append(block)
        if not self._make_room(need_bytes):
            return None
        new = self._new.get(stride)
        if not new:
            count = min(BLOCKS_MAX, max(1, SEGMENT_BYTES // stride))
            segment = Segment(stride, count, self.name)
            self.segments[segment.token] = segment
            self.owners[segment.token] = self.home
            new = self._new.setdefault(stride, [])
            new += [Block(segment, index) for index in range(count - 1, -1, -1)]
        return new.pop()

    def _make_room(self, more_bytes: int) -> bool:
        """Give the memory of free blocks back until there is room for so much more; nothing is given back in vain."""
        excess_bytes = self.memory_bytes + more_bytes - self.bytes_max
        if excess_bytes <= 0:
            return True
        if self.away:
            self.sweep()
        spare = [block for blocks in self._free.values() for block in blocks]
        if sum(block.memory_bytes for block in spare) < excess_bytes:
            return False
        for block in spare:
            if excess_bytes <= 0:
                break
            excess_bytes -= block.memory_bytes
            self._free[block.segment.stride].remove(block)
            self._empty(block)
        return True

    def _empty(self, block: Block) -> None:
        """Make a free block a new one, and close its segment when that was the last."""
        segment = block.segment
        segment.decommit(block.index)
        self.memory_bytes -= block.memory_bytes
        block.memory_bytes, block.backed_bytes, block.is_used, block.is_lost = 0, 0, False, False
        new = self._new.setdefault(segment.stride, [])
        new.append(block)
        if sum(other.segment is segment for other in new) == segment.blocks:
            self._new[segment.stride] = [other for other in new if other.segment is not segment]
            self._close(segment)

    def _close(self, segment: Segment) -> None:
        del self.segments[segment.token]
        self.owners.pop(segment.token, None)
        segment.close()

    # ------------------------------------------------------------ giving back

    def lent(self, lease: Lease) -> None:
        """A lease was made."""
        block: Block = lease.block
        self._acquired += not block.leases
        block.leases += 1
        lease.is_lent = True  # nothing is called between these two: no interrupt comes there
        self.taken[block.segment.token, block.index] = block

    def handle_gone(self, block: Block, generation: int) -> None:
        """A reference was released. After the last one nobody who was told of the block gets in any more."""
        if generation != block.segment.generation(block.index):
            return  # `came_back` was first
        block.handles -= 1
        if not block.handles:
            block.segment.end_generation(block.index)

    def lease_gone(self, block: Block) -> None:
        """A lease is gone."""
        block.leases -= 1
        if not block.leases:
            self.came_back(block)

    def came_back(self, block: Block) -> None:
        """Nobody in this process refers to a block any more."""
        self.taken.pop((block.segment.token, block.index), None)
        if block.handles:  # in a cycle the garbage collector may end the lease before the reference
            block.handles = 0
            block.segment.end_generation(block.index)
        block.is_used = True
        if block.is_told and block.segment.is_held_elsewhere(block.index):
            self.away[block] = None
        else:
            self._is_free(block)

    def _is_free(self, block: Block) -> None:
        block.is_told = False
        if block.is_lost:
            self._empty(block)
        else:
            self._free.setdefault(block.segment.stride, []).append(block)

    def sweep(self) -> bool:
        """Take back what other processes have let go of; return whether there was any."""
        back = [block for block in self.away if not block.segment.is_held_elsewhere(block.index)]
        for block in back:
            del self.away[block]
            self._is_free(block)
        return bool(back)

    def close_free(self) -> None:
        """Give back all that is not in use here, for good; what others hold is theirs alone from now on."""
        self.sweep()
        for block in self.away:
            self.memory_bytes -= block.memory_bytes
        self.away.clear()
        for blocks in self._free.values():
            while blocks:
                self._empty(blocks.pop())
        used = {block.segment for block in self.taken.values()}
        self._new.clear()
        for segment in set(self.segments.values()) - used:
            self._close(segment)

    # ------------------------------------------------------------ telling

    def statistics(self, *, waiting: int) -> SharedArrayStatistics:
        """Return the figures of this moment."""
        self.sweep()
        return SharedArrayStatistics(
            bytes_max=self.bytes_max,
            bytes_memory=self.memory_bytes,
            bytes_held=sum(block.memory_bytes for block in self.taken.values()),
            bytes_away=sum(block.memory_bytes for block in self.away),
            arrays_held=len(self.taken),
            arrays_away=len(self.away),
            waiting=waiting,
            acquired=self._acquired,
            segments=len(self.segments),
        )

    def holders(self) -> tuple[str, ...]:
        """Return a line for each that holds arrays, the largest first."""
        sizes: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for block in self.taken.values():
            who = f"this process, acquired at {block.site}"
            if not block.handles:
                who = f"this process: released, but numpy views of it are still there; acquired at {block.site}"
            sizes[who] += block.memory_bytes
            counts[who] += 1
        for block in self.away:
            who = f"{_who_holds(block)}; released here, acquired at {block.site}"
            sizes[who] += block.memory_bytes
            counts[who] += 1
        return tuple(
            f"{size} bytes in {counts[who]} array{'s' * (counts[who] > 1)}: {who}" for who, size in sizes.most_common()
        )


def _who_holds(block: Block) -> str:
    """Return the processes that have the lock of a block, as the kernel tells it in /proc/PID/fdinfo."""
    pids = [pid for pid in sorted(block.segment.pids()) if _has_lock(pid, block)]
    return "held by " + " and ".join(f"process {pid} ({_name(pid)})" for pid in pids) if pids else "held elsewhere"


def _has_lock(pid: int, block: Block) -> bool:
    mark = f":{block.segment.inode} {block.index} {block.index}\n"
    return any("OFDLCK" in text and mark in text for text in _fdinfo(pid))


def _fdinfo(pid: int) -> Iterable[str]:
    with suppress(OSError):  # it has ended
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            with suppress(OSError):  # it has closed this one
                yield path.read_text(errors="replace")


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "ended"
