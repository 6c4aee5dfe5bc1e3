"""How much of this machine is ours: cores and memory, as the control groups of the kernel bound them.

    SENNIT_CPUS ─► the quota of our group and of every group above it ─► affinity        the tightest one holds

A container with 2 cores on a host with 64 sees 64 in `os.cpu_count()`; a process that may use 512 MB sees all memory
in `psutil`. Both layouts are read: v2 (one tree), v1 (a tree per controller), and v1 beside v2. A group that cannot be
read bounds nothing: what is hidden from us is also how most containers look from inside.

Sources: kernel documentation, admin-guide/cgroup-v2 (cpu.max, memory.*) and cgroup-v1 (cpu.cfs_*, memory.*).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Final, Literal

import psutil

from sennit.errors import SettingsError

CPUS_VARIABLE: Final = "SENNIT_CPUS"
CPUS_MAX: Final = 65_536

# v1 writes "no limit" as the largest whole number of pages: 2^63 - 4096 with the usual page. Nobody has 2^62 bytes.
NO_LIMIT_BYTES: Final = 2**62

MemorySource = Literal["cgroup-v2", "cgroup-v1", "host"]


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory under one bound.

    Attributes:
        used_bytes: the working set: without the file cache that the kernel drops first.
        limit_bytes: what there is: of the machine, or of a group.
    """

    used_bytes: int
    limit_bytes: int
    source: MemorySource

    @property
    def free(self) -> float:
        """The share that is left, from 0 to 1."""
        return min(max(1.0 - self.used_bytes / self.limit_bytes, 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The control groups of this process.

    Args:
        root: where they are mounted.
        membership: the file that names ours.
    """

    root: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")

    # ------------------------------------------------------------ cores

    def cpu_quota(self) -> float | None:
        """Return how many cores' time our groups grant, as the tightest of them says; None is no bound."""
        quotas = [_quota_v2(_words(folder / "cpu.max")) for folder in self._chain_v2()]
        for folder in self._chain_v1("cpu"):
            quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            quotas.append(_share(quota, period))
        return min((quota for quota in quotas if quota is not None), default=None)

    # ------------------------------------------------------------ memory

    def memory(self) -> list[MemoryUse]:
        """Return use and bound of each of our groups that has a bound, ours first."""
        uses = []
        for folder in self._chain_v2():
            bounds = (_limit(folder / "memory.max"), _limit(folder / "memory.high"))
            limit = min((bound for bound in bounds if bound is not None), default=None)
            uses.append(_memory_use(folder, "memory.current", ("inactive_file",), limit, "cgroup-v2"))
        for folder in self._chain_v1("memory"):
            limit = _limit(folder / "memory.limit_in_bytes")
            names = ("total_inactive_file", "inactive_file")
            uses.append(_memory_use(folder, "memory.usage_in_bytes", names, limit, "cgroup-v1"))
        return [use for use in uses if use is not None]

    # ------------------------------------------------------------ where they are

    def own_v2(self) -> Path | None:
        """Return the folder of our own v2 group; None when it is the root group, which is the whole machine."""
        chain = list(self._chain_v2())
        return chain[0] if len(chain) > 1 else None

    def _chain_v2(self) -> Iterator[Path]:
        """Yield the folder of our v2 group and of every group above it."""
        for mount in (self.root, self.root / "unified"):
            if (mount / "cgroup.controllers").is_file():
                paths = [path for number, controllers, path in self._groups() if number == "0" and not controllers]
                yield from _upwards(mount, paths[0] if paths else "/")
                return

    def _chain_v1(self, controller: str) -> Iterator[Path]:
        for _, controllers, path in self._groups():
            if controller in controllers.split(","):
                for mount in (self.root / controllers, self.root / controller):
                    if mount.is_dir():
                        yield from _upwards(mount, path)
                        return

    def _groups(self) -> list[tuple[str, str, str]]:
        """Return (number, controllers, path) of each line `4:cpu,cpuacct:/docker/1f…`."""
        lines = _text(self.membership).splitlines()
        parts = [line.split(":", 2) for line in lines]
        return [(part[0], part[1], part[2]) for part in parts if len(part) == 3]


def effective_cpus(
    groups: Cgroups | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    affinity: Callable[[], int] | None = None,
) -> int:
    """Return how many cores this process may use, at least 1: `min(affinity, ceil(quota / period))`.

    The environment variable SENNIT_CPUS goes before both.

    Args:
        affinity: how many cores the process may be scheduled on; a container's cpuset shows in it.

    Raises:
        SettingsError: SENNIT_CPUS is no whole number from 1 to 65,536.
    """
    text = (os.environ if environ is None else environ).get(CPUS_VARIABLE, "").strip()
    if text:
        if not text.isdecimal() or not 1 <= int(text) <= CPUS_MAX:
            raise SettingsError(
                f"{CPUS_VARIABLE} is {text!r}, and no whole number from 1 to {CPUS_MAX:,}",
                fix=f"for example {CPUS_VARIABLE}=2, or leave it out: then affinity and the container's quota decide",
            )
        return int(text)
    cpus = (affinity or affinity_cpus)()
    quota = (groups or Cgroups()).cpu_quota()
    return max(1, cpus if quota is None else min(cpus, ceil(quota)))


def affinity_cpus() -> int:
    """Return how many cores this process may be scheduled on."""
    try:
        return max(1, len(psutil.Process().cpu_affinity() or ()))
    except (AttributeError, psutil.Error):  # macOS has none
        return os.cpu_count() or 1


def host_memory() -> MemoryUse:
    """Return what the whole machine has, and what of it cannot be had without swapping."""
    memory = psutil.virtual_memory()
    return MemoryUse(memory.total - memory.available, memory.total, "host")


def tightest_memory(groups: Cgroups | None = None, *, host: Callable[[], MemoryUse] = host_memory) -> MemoryUse:
    """Return the bound with the smallest share left: one of our groups, or the machine."""
    return min([*(groups or Cgroups()).memory(), host()], key=lambda use: use.free)


# ---------------------------------------------------------------- reading


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield the group and those above it, up to the mount point.

    Inside a container the path may be the host's, and not there: then the mount point itself is our group.
    """
    folder = mount / path.strip("/")
    if ".." in folder.parts or not folder.is_dir():  # a group outside our namespace is shown as /../other
        folder = mount
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _quota_v2(words: list[str]) -> float | None:
    """Read `cpu.max`: `max 100000` or `150000 100000`."""
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return None
    return _share(int(words[0]), int(words[1]))


def _share(quota: int | None, period: int | None) -> float | None:
    """Return quota / period; None when there is none (-1), or what is said makes no sense."""
    return quota / period if quota is not None and period is not None and quota > 0 and period > 0 else None


def _memory_use(
    folder: Path, usage: str, cache: tuple[str, ...], limit: int | None, source: MemorySource
) -> MemoryUse | None:
    used = _number(folder / usage)
    if limit is None or used is None:
        return None
    stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    inactive = next((int(stat[name]) for name in cache if stat.get(name, "").isdecimal()), 0)
    return MemoryUse(max(used - inactive, 0), limit, source)


def _limit(path: Path) -> int | None:
    """Read a bound in bytes; None for `max`, for v1's 2^63, and where there is no such file. 0 bytes bounds nothing."""
    number = _number(path)
    return number if number is not None and 0 < number < NO_LIMIT_BYTES else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.removeprefix("-").isdecimal() else None


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    """Return what a file says, "" when it is not there, not ours to read, or its group is being removed (ENODEV)."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
