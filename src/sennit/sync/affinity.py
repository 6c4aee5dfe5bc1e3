"""Which cores belong together: the NUMA nodes of this machine, as far as this process may use them.

    /sys/devices/system/node/online          0-1
                            /node0/cpulist   0-15,32-47      ∩ sched_getaffinity(0)  ─►  Node(0, {0, 1, …})
                            /node0/distance  10 21
                            /has_memory      0-1             a node without memory lends its cores to the nearest with

Memory of another node costs half as much time again or more, and a process that the scheduler moves between nodes leaves
its memory behind. So where there is more than one node, a worker process is pinned to one before it allocates anything.

Source: kernel documentation, ABI/stable/sysfs-devices-node and admin-guide/mm/numaperf.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Node", "affinity", "cpus_of_nodes", "numa_nodes", "parse_list"]

ROOT: Final = Path("/sys/devices/system/node")

# What the kernel says where firmware gives no distances (REMOTE_DISTANCE, include/linux/topology.h).
_REMOTE: Final = 20

# A list that names more than this is damaged: the kernel is built for 8,192 cores at most.
_ID_MAX: Final = 65_535


@dataclass(frozen=True, slots=True)
class Node:
    """One NUMA node with memory, and the cores of it that this process may use.

    Attributes:
        cpus: at least one; cores of nodes without memory are with the nearest that has some.
    """

    id: int
    cpus: frozenset[int]


def numa_nodes(root: Path = ROOT, *, allowed: Iterable[int] | None = None) -> tuple[Node, ...]:
    """Return the nodes that have memory and cores for us, in the order of their ids; () where the system does not say.

    Args:
        root: the folder of the nodes in sysfs.
        allowed: the cores this process may be scheduled on; by default it is asked.
    """
    cpus_allowed = affinity() if allowed is None else frozenset(allowed)
    ids = _node_ids(root)
    cpus = {node: parse_list(_text(root / f"node{node}" / "cpulist")) & cpus_allowed for node in ids}
    with_memory = [node for node in ids if _has_memory(root, node)] or ids
    for node in ids:
        if cpus[node] and node not in with_memory:
            nearest = _nearest(_distances(root, node), ids, with_memory)
            cpus[nearest] |= cpus[node]
    return tuple(Node(node, cpus[node]) for node in with_memory if cpus[node])


def cpus_of_nodes(mode: str, *, root: Path = ROOT, allowed: Iterable[int] | None = None) -> tuple[frozenset[int], ...]:
    """Return the cores of each node to pin processes to; () when there is nothing to choose.

    Args:
        mode: `auto`, or `off`.
    """
    if mode == "off" or not hasattr(os, "sched_setaffinity"):
        return ()
    nodes = numa_nodes(root, allowed=allowed)
    return tuple(node.cpus for node in nodes) if len(nodes) > 1 else ()


def affinity() -> frozenset[int]:
    """Return the cores this process may be scheduled on; all of them where nobody can say."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return frozenset(range(os.cpu_count() or 1))


def parse_list(text: str) -> frozenset[int]:
    """Return the numbers of a list as the kernel writes it: `0-3,8,10-11`; what makes no sense in it is left out.

    A stride (`0-7:2/4`: of every four the first two) is read, too.
    """
    found: set[int] = set()
    for part in text.replace("\0", "").strip().split(","):
        span, _, stride = part.strip().partition(":")
        first, _, last = span.partition("-")
        used, _, of = stride.partition("/")
        words = (first, last or first, used or "1", of or "1")
        if all(word.strip().isdecimal() for word in words):
            low, high, n_used, n_of = (int(word) for word in words)
            if high <= _ID_MAX and n_of:
                found.update(number for number in range(low, high + 1) if (number - low) % n_of < n_used)
    return frozenset(found)


def _node_ids(root: Path) -> list[int]:
    """Return the nodes that are online; where no file says so, those that there are."""
    there = sorted(
        int(folder.name[4:]) for folder in root.glob("node[0-9]*") if folder.name[4:].isdecimal() and folder.is_dir()
    )
    online = parse_list(_text(root / "online"))
    return [node for node in there if node in online] if online else there


def _has_memory(root: Path, node: int) -> bool:
    """Return whether a node has memory, as its machine says, else its own figures; True where nobody says."""
    listed = _text(root / "has_memory")
    if listed.strip():
        return node in parse_list(listed)
    for line in _text(root / f"node{node}" / "meminfo").splitlines():
        words = line.split()  # Node 0 MemTotal:  131891392 kB
        if len(words) >= 4 and words[2] == "MemTotal:":
            return words[3] != "0"
    return True


def _distances(root: Path, node: int) -> list[int]:
    words = _text(root / f"node{node}" / "distance").split()
    return [int(word) for word in words] if all(word.isdecimal() for word in words) else []


def _nearest(distances: list[int], ids: list[int], candidates: list[int]) -> int:
    """Return the candidate with the smallest distance. A row has one figure for each node that is online, by id."""
    known = dict(zip(ids, distances, strict=False)) if len(distances) == len(ids) else {}
    return min(candidates, key=lambda other: (known.get(other, _REMOTE), other))


def _text(path: Path) -> str:
    """Return what a file says, "" when it is not there or not ours to read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
