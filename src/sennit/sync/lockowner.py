"""Who holds a file lock: a line per holder in the lock file, for messages. The kernel's lock alone decides.

    4711 <tab> host <tab> boot <tab> started <tab> since_us <tab> shared <tab> what for          one slot of 512 bytes

Written by the holder when it has the lock and blanked before it lets go. A holder that is killed leaves its line, so a
line counts only while its process is alive: same boot, same start time (a process id may be used again). Of another
host nothing can be known, its lines are believed. Nothing is synced, nothing waits for this, and where it cannot be
written (a full disk) the lock works all the same.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Final

from sennit.sync.clock import boot_id, wall_us

__all__ = ["LockOwner", "blank_owner", "describe", "read_owners", "write_owner"]

_SLOT_BYTES: Final = 512
_FREE: Final = b"-"
_GONE: Final = "gone"
_STATES_DEAD: Final = "ZX"  # proc(5): a zombie has let go of its locks


@dataclass(frozen=True, slots=True)
class LockOwner:
    """One holder. `since_us` is its wall clock; `purpose` is what it said, or ""."""

    pid: int
    host: str
    since_us: int
    purpose: str
    shared: bool

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since_us / 1e6, UTC).isoformat(timespec="seconds")
        held_s = max(0.0, (wall_us() - self.since_us) / 1e6)
        who = f"process {self.pid}" + (" (this one)" if self.pid == os.getpid() and self.host == _host() else "")
        what = f", {self.purpose}" if self.purpose else ""
        return f"{who} on {self.host} since {since} ({held_s:.1f} s{what})"


def describe(owners: tuple[LockOwner, ...]) -> str:
    """Return what a message says about the holders, also when none has a line."""
    return " and ".join(map(str, owners)) or "a process that has not written its name into the lock file"


def write_owner(descriptor: int, *, shared: bool, purpose: str) -> int:
    """Write a line for this process into a free slot and return its offset.

    Exclusive holders use the first slot and cut off the others, which nobody holds. Shared holders are kept apart by the
    gate of the lock.
    """
    pid = os.getpid()
    what = " ".join(purpose.split()).encode(errors="replace")[:200]
    line = f"{pid}\t{_host()}\t{_boot()}\t{_started_here(pid)}\t{wall_us()}\t{int(shared)}\t".encode() + what
    with suppress(OSError):  # a full disk must not stop who has the lock
        size_bytes = os.fstat(descriptor).st_size
        slots = range(0, size_bytes, _SLOT_BYTES)
        if shared:
            free = (o for o in slots if _parse(os.pread(descriptor, _SLOT_BYTES, o)) is None)
            offset = next(free, len(slots) * _SLOT_BYTES)
        else:
            offset = 0
            if size_bytes > _SLOT_BYTES:
                # Not to nothing: ext4 takes that for a file about to be replaced, and writes it out when it is closed.
                os.ftruncate(descriptor, _SLOT_BYTES)
        os.pwrite(descriptor, line.ljust(_SLOT_BYTES - 1) + b"\n", offset)
        return offset
    return -1


def blank_owner(descriptor: int, offset: int) -> None:
    """Take the line at `offset` back."""
    if offset >= 0:
        with suppress(OSError):  # what stays there is found out by `read_owners`
            os.pwrite(descriptor, _FREE, offset)


def read_owners(path: Path) -> tuple[LockOwner, ...]:
    """Return the holders that have a line and can be alive; ask the kernel first whether the lock is held at all."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ()
    slots = (content[o : o + _SLOT_BYTES] for o in range(0, len(content), _SLOT_BYTES))
    return tuple(owner for slot in slots if (owner := _parse(slot)) is not None)


def _parse(slot: bytes) -> LockOwner | None:
    """Return the holder of a slot; None if it is free, torn, or of a process that is gone."""
    fields = slot.decode(errors="replace").rstrip(" \n\0").split("\t", 6)
    if slot.startswith(_FREE) or len(fields) != 7:
        return None
    pid, host, boot, started, since_us, shared, purpose = fields
    if not (pid.isdecimal() and since_us.isdecimal()):
        return None
    if host == _host():
        now = _started(int(pid)) if boot == _boot() else _GONE
        if now == _GONE or (now and started and now != started):
            return None
    return LockOwner(int(pid), host, int(since_us), purpose, shared=shared == "1")


@lru_cache(maxsize=1)
def _host() -> str:
    return socket.gethostname()[:64] or "localhost"


@lru_cache(maxsize=1)
def _boot() -> str:
    return boot_id()


@lru_cache(maxsize=1)
def _started_here(pid: int) -> str:
    """Return `_started` of this process; the argument notices a fork."""
    return _started(pid)


def _started(pid: int) -> str:
    """Return when a process was started, in ticks since boot: `_GONE` if it has ended, "" where nothing tells."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return _started_unknown(pid)
    state, *rest = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return _GONE if state in _STATES_DEAD else rest[18]


def _started_unknown(pid: int) -> str:
    """Answer for a system without /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return _GONE
    except PermissionError:
        pass
    return ""
