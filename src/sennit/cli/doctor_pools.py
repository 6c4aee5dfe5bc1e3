"""`sennit doctor`, where bodies run: what these settings make of this machine.

What a running app has learnt about its handlers is known there only, and in its log.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sennit.cli.doctor import Check
from sennit.execute.placement import cpu_home
from sennit.execute.workload import gil_enabled
from sennit.model.settings import Settings
from sennit.runtime.engine import usable_cores
from sennit.sync.affinity import ROOT, cpus_of_nodes, numa_nodes

__all__ = ["pool_checks"]

# What `cluster_link.checked_address` takes for this machine; it also asks whether Ray is installed, which is not our question.
NO_CLUSTER: Final = {"", "local"}


def pool_checks(settings: Settings, *, has_gil: bool | None = None, root: Path = ROOT) -> Iterator[Check]:
    """Yield where CPU bodies go, what the memory of this machine has to do with it, and who decides.

    Args:
        has_gil: of this interpreter; asked by default.  root: the NUMA nodes in sysfs.
    """
    home = cpu_home(
        has_cluster=settings.cluster not in NO_CLUSTER, has_gil=gil_enabled() if has_gil is None else has_gil
    )
    processes = settings.cpu_slots or usable_cores()
    where = {
        "processes": f"worker processes, up to {processes}",
        "os_threads": f"OS threads, up to {processes}: this Python runs without a GIL",
        "cluster": f"the cluster {settings.cluster}",
    }
    yield Check("cpu=True bodies", "ok", where[home])
    yield Check("numa", "ok", _numa(settings.cpu_affinity, root, has_processes=home == "processes"))
    if settings.placement == "declared":
        learns = "declared: only cpu=True leaves this process"
    elif home == "processes":
        learns = "auto: a plain def that turns out to compute in Python moves to worker processes; the log says which"
    else:
        learns = "auto, with nothing to decide: a plain def stays in OS threads"
    yield Check("placement", "ok", learns)


def _numa(mode: str, root: Path, *, has_processes: bool) -> str:
    nodes = numa_nodes(root)
    if len(nodes) < 2:
        return "one node: nothing is pinned" if nodes else "the system does not say: nothing is pinned"
    cores = "+".join(str(len(node.cpus)) for node in nodes)
    is_pinned = has_processes and bool(cpus_of_nodes(mode, root=root))
    what = "each worker process is pinned to one" if is_pinned else "nothing is pinned"
    return f"{len(nodes)} nodes of {cores} cores: {what}"
