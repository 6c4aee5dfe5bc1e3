"""CPU bodies as Ray tasks, and node agents as Ray actors, through a broker process that may die at any time.

    run(job) ─► link to a broker, opened by the first who needs it ─► Done ─► answer | BodyFailed
                  │ the cluster is away: waits in line, HOLD_S        └► Gone, or the broker has ended ─► WorkerCrashed
                  └► still away: ClusterUnavailable; the task is put aside and offered again

A body whose Ray task is lost has crashed: the store counts that and runs it again. One that never got a Ray task has
not: it waits, and uses nothing up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from sennit.errors import ClusterUnavailable, UsageError, WorkerCrashed
from sennit.execute import cluster_wire as wire
from sennit.execute.cluster_link import Link, ray_environment
from sennit.execute.process_child import Answer
from sennit.execute.processes import Job, to_error

__all__ = ["RayFleet", "RayPool"]

_log = logging.getLogger("sennit")

HOLD_S: Final = 10.0
"""How long a claimed body waits for a cluster that is away before its task is put aside."""

RETRY_S: Final = 2.0
"""Between two tries to join a cluster that is away."""


class RayPool:
    """Runs the CPU bodies of one process on a Ray cluster. All methods belong to one event loop.

    Args:
        address: as `checked_address` returns it.
        runner: `module:qualname` of `runner(function, payload) -> bytes`, called on the node.
        folder: where the arrays of results are kept.
        token_path: of the cluster's token; see `ray_environment`.
        hold_s: how long a body waits for a cluster that is away.
    """

    def __init__(
        self, address: str, *, runner: str, folder: Path, token_path: str = "", hold_s: float = HOLD_S
    ) -> None:
        self._hold_s = hold_s
        self._brief = wire.Brief(address, runner, str(folder), tuple(dict.fromkeys(filter(None, sys.path))))
        self._environment = ray_environment(token_path, os.environ)
        self._link: Link | None = None
        self._opening: asyncio.Task[Link] | None = None
        self._numbers: dict[Job, int] = {}
        self._waiting: dict[Job, asyncio.Event] = {}
        self._was_away = False
        self._closed = False

    async def run(self, job: Job) -> bytes:
        """Run `job` on some node and return what the runner returned. To cancel this coroutine is to `kill` the job.

        Raises:
            BodyFailed: the body raised; `original` is the exception if it can be made here.
            WorkerCrashed: its worker process, node or cluster died, or `kill` ended it.
            ClusterUnavailable: nothing was run, since the cluster cannot be reached.
            UsageError: the pool is closed.
        """
        if self._closed:
            raise UsageError("the pool is closed", why="its owner is stopping", fix="run before close()")
        link = await self._wait_for_link(job)
        handler_ref = _importable(job.handler_ref)
        try:
            reply = await link.ask(
                lambda n: wire.Run(n, handler_ref, job.payload), number=partial(self._numbers.__setitem__, job)
            )
        except ClusterUnavailable as error:
            raise WorkerCrashed(None, lost=error.reason, by_request=self._is_killed(job)) from None
        except asyncio.CancelledError:
            self.kill(job)
            raise
        finally:
            n = self._numbers.pop(job, 0)
        if isinstance(reply, wire.Gone):
            raise WorkerCrashed(None, lost=reply.what, by_request=n < 0)
        if isinstance(reply.reply, Answer):
            return bytes(reply.reply.payload)
        raise to_error(reply.reply)

    def kill(self, job: Job) -> bool:
        """Stop `job` now: its worker process on the node is killed; `run` raises `WorkerCrashed`.

        Returns:
            False if the job is neither running nor waiting.
        """
        if (n := self._numbers.get(job, 0)) > 0:
            self._numbers[job] = -n
            if self._link is not None:
                self._link.send(wire.Kill(n))
            return True
        if (killed := self._waiting.get(job)) is not None:
            killed.set()
            return True
        return False

    def _is_killed(self, job: Job) -> bool:
        return self._closed or self._numbers.get(job, 0) < 0

    def interrupt(self, job: Job) -> bool:
        """Return False: what runs on a cluster was declared, and is killed."""
        del job
        return False

    def kill_all(self) -> None:
        """Kill all jobs: Ray ends what runs for a driver that is gone. Any OS thread may call this."""
        link = self._link
        if link is not None:
            link.kill()

    def in_line(self, job: Job) -> bool:
        """Return whether `job` waits for a cluster that is away: time that passes there is not its own."""
        return job in self._waiting

    async def close(self, *, grace_s: float = 5.0) -> None:
        """Leave the cluster; what runs there is killed by Ray. Returns when the broker has ended."""
        self._closed = True
        for killed in self._waiting.values():
            killed.set()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening})
        if self._link is not None:
            await self._link.close(grace_s=grace_s)

    def pids(self) -> list[int]:
        """Return the processes of this pool on this machine: the broker, while there is one."""
        return [] if self._link is None or self._link.ended.done() else [self._link.pid]

    # ------------------------------------------------------------ the cluster comes and goes

    async def _wait_for_link(self, job: Job) -> Link:
        if self._link is not None and not self._link.ended.done():
            return self._link
        killed = self._waiting[job] = asyncio.Event()
        until = asyncio.create_task(killed.wait())
        try:
            opening = self._opening = self._opening or asyncio.create_task(self._open(), name="sennit-join-cluster")
            await asyncio.wait({opening, until}, return_when=asyncio.FIRST_COMPLETED)
            if killed.is_set():
                raise WorkerCrashed(None, by_request=True)
            return opening.result()
        finally:
            until.cancel()
            del self._waiting[job]

    async def _open(self) -> Link:
        """Join the cluster, trying again for `hold_s`."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._hold_s
        try:
            if self._link is not None:
                await self._link.close(grace_s=0.0)
                self._link = None
            while True:
                try:
                    self._link = await Link.open(self._brief, self._environment)
                except ClusterUnavailable as error:
                    if not self._was_away:
                        _log.warning("%s", error)
                    self._was_away = True
                    if loop.time() >= give_up_s:
                        raise
                    await asyncio.sleep(RETRY_S)
                else:
                    _log.info("joined the Ray cluster: %d nodes, %g cores", self._link.nodes, self._link.cpus)
                    self._was_away = False
                    return self._link
        finally:
            self._opening = None


class RayFleet:
    """Node agents on a cluster: started, looked at, scaled and stopped. What `sennit up --cluster` holds."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @classmethod
    async def join(cls, address: str, *, token_path: str = "") -> RayFleet:
        """Become a driver of the cluster.

        Raises:
            SettingsError: no token.
            ClusterUnavailable: it cannot be reached.
        """
        brief = wire.Brief(address, "", "", tuple(filter(None, sys.path)))
        return cls(await Link.open(brief, ray_environment(token_path, os.environ)))

    @property
    def cpus(self) -> float:
        """The cores of the cluster when it was joined."""
        return self._link.cpus

    @property
    def nodes(self) -> int:
        """The living nodes of the cluster when it was joined."""
        return self._link.nodes

    @property
    def lost(self) -> asyncio.Future[str]:
        """Done when the cluster is lost; says why. Its agents are gone, or go by themselves."""
        return self._link.ended

    def start(self, agents: int, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start `agents` agents, each on a node of its own; those without a node wait for one."""
        self._link.send(wire.Start(agents, tuple(argv), dict(environment), str(Path.cwd())))

    async def look(self) -> wire.Agents:
        """Return how agents and nodes are.

        Raises:
            ClusterUnavailable: it is lost.
        """
        return await self._ask(wire.Look)

    async def stop(self, grace_s: float) -> wire.Agents:
        """Have all agents drain and end; return how each ended.

        Raises:
            ClusterUnavailable: it is lost.
        """
        return await self._ask(lambda n: wire.Stop(n, grace_s))

    def scale(self, cpus: int) -> None:
        """Ask the autoscaler for at least so many cores; 0 takes the wish back."""
        self._link.send(wire.Scale(cpus))

    async def close(self) -> None:
        """Leave the cluster; agents that still run are ended by Ray."""
        await self._link.close()

    async def _ask(self, make: Callable[[int], wire.Request]) -> wire.Agents:
        answer = await self._link.ask(make)
        if not isinstance(answer, wire.Agents):
            raise TypeError(f"a broker answered {type(answer).__name__} instead of Agents")
        return answer


def _importable(handler_ref: str) -> str:
    """Return a reference that another machine can import: a script is known by its file name there."""
    module, _, qualname = handler_ref.partition(":")
    if module not in {"__main__", "__mp_main__"}:
        return handler_ref
    main = sys.modules[module]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name != "__main__":
        return f"{spec.name.removesuffix('.__main__')}:{qualname}"
    return handler_ref if file is None else f"{Path(file).stem}:{qualname}"
