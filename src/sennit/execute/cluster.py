"""Where CPU bodies run: one interface, two engines. And how large a cluster should be, from what waits.

    cluster = ""  ─► ProcessPool   worker processes of this machine
    cluster = "ray" | "ray://…" ─► RayPool   Ray tasks on whichever node has a free core

Neither holds any truth. What either loses is a crash of an attempt: the store has the task, and hands it out again.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from sennit.execute.cluster_link import checked_address
from sennit.execute.processes import Job, ProcessPool
from sennit.model.settings import Settings
from sennit.sync import array_files
from sennit.sync.affinity import cpus_of_nodes

__all__ = ["CpuPool", "Demand", "open_cpu_pool", "wanted_cpus"]

_log = logging.getLogger("sennit")

_RUNNER: Final = "sennit.submit.codec:run_in_process"

# What nearly every module with a handler imports: the fork server does it once, and each worker process begins with it.
_PRELOAD: Final = ("sennit.runtime.app", "sennit.submit.codec")


class CpuPool(Protocol):
    """Runs CPU bodies somewhere. All methods but `kill_all` belong to one event loop."""

    async def run(self, job: Job) -> bytes:
        """Run `job` and return what the runner returned.

        Raises:
            BodyFailed: the body raised.
            WorkerCrashed: it ended without an answer, wherever it ran.
            ClusterUnavailable: nothing was run, the cluster cannot be reached.
        """

    def kill(self, job: Job) -> bool:
        """Stop `job` now; False if it neither runs nor waits."""

    def interrupt(self, job: Job) -> bool:
        """Have the body of `job` unwind by itself; False if that cannot be: then `kill` it."""

    def kill_all(self) -> None:
        """Stop every job now. Any OS thread may call this."""

    def in_line(self, job: Job) -> bool:
        """Return whether `job` waits for a place to run at all; that time is not its own."""

    async def close(self, *, grace_s: float = 2.0) -> None:
        """Kill what runs; return when nothing of it is left in this process."""

    def pids(self) -> list[int]:
        """Return the processes of this pool on this machine."""


def open_cpu_pool(settings: Settings, *, processes_max: int) -> CpuPool:
    """Return the pool that the setting `cluster` names; neither starts anything yet.

    Raises:
        SettingsError: no such cluster, Ray is not installed, or its token is not there.
    """
    address = checked_address(settings.cluster)
    if not address:
        return ProcessPool(
            processes_max=processes_max,
            runner=_RUNNER,
            memory_bytes_max=settings.cpu_memory_bytes_max or None,
            array_folder=array_files.folder(),
            prefetch=settings.cpu_prefetch,
            recycle_tasks=settings.cpu_recycle_tasks,
            recycle_bytes=settings.cpu_recycle_bytes,
            nodes=cpus_of_nodes(settings.cpu_affinity),
            preload=_PRELOAD,
        )
    from sennit.execute.cluster_ray import RayPool  # noqa: PLC0415 - only with a cluster

    if settings.cpu_memory_bytes_max:
        _log.warning(
            "cpu_memory_bytes_max bounds processes of this machine; on a Ray cluster, Ray's memory monitor does"
        )
    folder = array_files.folder() or Path(".sennit/arrays").absolute()
    return RayPool(address, runner=_RUNNER, folder=folder, token_path=settings.cluster_token_path)


# ------------------------------------------------------------ how large


@dataclass(frozen=True, slots=True)
class Demand:
    """What there is to run, at one moment.

    Attributes:
        running: CPU tasks that are claimed.  ready: that wait for a slot.
        oldest_s: how long the oldest of the ready ones has waited.
    """

    running: int
    ready: int
    oldest_s: float


def wanted_cpus(demand: Demand, *, cpus_max: int, patience_s: float) -> int:
    """Return how many cores the cluster should have at least, for `request_resources`.

    While nothing has waited for `patience_s` it is what runs: a burst that the present cluster gets through at once starts
    no machine. After that it grows with the wait: by a share of what is ready as large as the wait is to the patience,
    up to all of it at four times the patience. A machine takes a minute or more to come, so what is asked for early
    should be what is still needed then. 0 with nothing to do: Ray removes nodes that idle.
    """
    if demand.ready == 0 or demand.oldest_s < patience_s:
        return min(demand.running, cpus_max)
    share = min(1.0, demand.oldest_s / (4 * patience_s))
    return min(demand.running + math.ceil(demand.ready * share), cpus_max)
