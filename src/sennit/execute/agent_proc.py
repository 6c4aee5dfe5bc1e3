"""Who is whose child: /proc, read in one pass.

A process is named by its pid *and* the moment it began (`ticks`, field 22 of stat(5)): a pid alone names somebody else a
while later. Descendants are found by their parents' pids in one pass over /proc/*/stat; /proc/*/task/*/children is missing on some
kernels and may skip processes on all (proc(5)). Standard library only: the warden and its keepers use it.
"""

# ruff: noqa: PTH208 - pathlib would take a third of the time of a pass
from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["ProcStat", "descendants", "everybody", "proportional_bytes", "resident_bytes", "stat_of"]

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class ProcStat(NamedTuple):
    """One process at one moment: its parent, its process group, and when it began, in clock ticks since boot."""

    pid: int
    parent: int
    group: int
    ticks: int
    is_dead: bool  # a zombie: nothing runs, its parent has not asked for its exit yet


def read(path: str) -> bytes:
    """Return a file of /proc, b"" if the process is gone or not ours to see."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        pieces = []
        while piece := os.read(descriptor, 65536):
            pieces.append(piece)
    except OSError:  # ESRCH: it ended while we read
        return b""
    finally:
        os.close(descriptor)
    return b"".join(pieces)


def stat_of(pid: int) -> ProcStat | None:
    """Return what stat(5) says of a process, None if there is none."""
    # The second field is the program's name in parentheses and may hold anything, also parentheses.
    words = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if len(words) < 20:
        return None
    return ProcStat(pid, int(words[1]), int(words[2]), int(words[19]), words[0] in (b"Z", b"X"))


def everybody() -> list[ProcStat]:
    """Return all processes that we may see. One that lives throughout the call is among them."""
    return [stat for name in os.listdir("/proc") if name.isdecimal() and (stat := stat_of(int(name))) is not None]


def descendants(root: int, processes: Iterable[ProcStat]) -> list[ProcStat]:
    """Return the children of `root`, their children and so on, parents first; without `root`."""
    children: dict[int, list[ProcStat]] = {}
    for stat in processes:
        children.setdefault(stat.parent, []).append(stat)
    found = list(children.get(root, ()))
    for stat in found:  # grows meanwhile
        found += children.get(stat.pid, ())
    return found


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process. Pages that it shares count in each process that has them."""
    words = read(f"/proc/{pid}/statm").split()
    return int(words[1]) * _PAGE_BYTES if len(words) > 1 else 0


def proportional_bytes(pid: int) -> int:
    """Return the same with shared pages divided among those that have them (Pss), as far as we may know. It costs more."""
    for line in read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return resident_bytes(pid)
