"""`sennit up --cluster`: node agents on a Ray cluster, one sennit worker each, until told to stop.

    join ─► agents started, one per node ─► looked at, the cluster asked to grow ─► SIGTERM: agents drain, then leave
      ▲                                          │
      └──────── the cluster is lost: nothing is, its tasks come back by their leases; join the next one

This process runs no tasks. It holds nothing either: killed with -9, Ray ends the agents, and their workers drain.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sennit.cli.output import span
from sennit.errors import ClusterUnavailable, SettingsError, UsageError
from sennit.execute.cluster import Demand, wanted_cpus
from sennit.execute.cluster_link import checked_address
from sennit.model.lifecycle import State
from sennit.runtime.app import App

if TYPE_CHECKING:
    from sennit.execute.cluster_ray import RayFleet
    from sennit.execute.cluster_wire import Agent, Agents

# Ray tells nobody that an agent was restarted or a node has come, so this one process of a fleet looks.
LOOK_S: Final = 5.0
# After the cluster was lost: until the next try to join one.
REJOIN_S: Final = 5.0
# A node that is lost keeps nobody waiting longer than this beyond the drain limit.
STOP_S: Final = 10.0
# A CPU task that has waited as long as this makes the cluster grow; see `wanted_cpus`.
PATIENCE_S: Final = 10.0
OLDEST_LOOKED_AT: Final = 1000
# A worker that ends again and again is not news every time, only when it has lasted from one look to the next.
ENDS_SAID_MAX: Final = 3

LABEL: Final = "ray"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to run on the cluster.

    Attributes:
        cluster: as the setting; `address` is Ray's name for it.
        nodes: how many agents; None is one for each node there is at the start.
        cpus_max: up to which the autoscaler is asked to grow; 0 is not at all.
        options: of `sennit worker`, for each agent.
    """

    cluster: str
    target: str
    nodes: int | None
    cpus_max: int
    options: Sequence[str]
    drain_s: float

    @property
    def address(self) -> str:
        """`auto` or `ray://HOST:PORT`.

        Raises:
            SettingsError: it names no cluster, or Ray is not installed.
        """
        address = checked_address(self.cluster)
        if not address:
            raise SettingsError(
                f"--cluster {self.cluster} names no cluster", fix="for example --cluster ray://head:10001, or auto"
            )
        return address


def agent_argv(plan: Plan, url: str, labels: str) -> list[str]:
    """Return the command line of an agent's worker, after `python`.

    Raises:
        UsageError: no other process can work on that store.
    """
    if url == "memory://":
        raise UsageError("agents cannot work on a store in memory", fix="use postgresql://… or a file: --db URL")
    if url.startswith("sqlite:///"):
        url = f"sqlite:///{os.path.abspath(url.removeprefix('sqlite:///'))}"  # noqa: PTH100 - links stay
    labels = ",".join(filter(None, [labels, LABEL]))
    return ["-m", "sennit", "worker", plan.target, "--db", url, "--labels", labels, *plan.options]


def agent_environment(plan: Plan, agents: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what an agent's worker finds in its environment: the settings of this process, and its own cluster."""
    ours = {name: value for name, value in environ.items() if name.startswith("SENNIT_")}
    ours.pop("SENNIT_CLUSTER_TOKEN_PATH", None)  # a path of this machine; on a node Ray knows it
    if plan.cpus_max and "SENNIT_CPU_SLOTS" not in ours:
        ours["SENNIT_CPU_SLOTS"] = str(math.ceil(plan.cpus_max / agents))
    return ours | {"SENNIT_CLUSTER": "ray"}


class ClusterSession:
    """One run of `sennit up --cluster`, from start to exit."""

    def __init__(self, app: App, plan: Plan, say: Callable[[str], None]) -> None:
        self._app = app
        self._plan = plan
        self._say = say
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._seen: dict[int, tuple[str, str, int]] = {}  # agent → state, node and pid at the last look
        self._said: dict[int, tuple[str, str, int]] = {}
        self._wish: int | None = None
        self._cpu_queues = {h.options.queue for h in app.registry.all() if h.kind == "cpu"}

    async def serve(self) -> signal.Signals:
        """Keep agents running until told to stop; return the last signal that said so."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        stopped = asyncio.create_task(self._signals.get())
        try:
            while True:
                fleet = await self._join(stopped)
                if fleet is None:
                    return stopped.result()
                try:
                    await self._run(fleet, stopped)
                    if stopped.done():
                        return await self._stop(fleet, stopped.result())
                finally:
                    await fleet.close()
                self._say(
                    f"the cluster is lost: {fleet.lost.result()}; nothing else is, what its agents held comes back by its lease"
                )
                await asyncio.wait({stopped}, timeout=REJOIN_S)
        finally:
            stopped.cancel()
            await loop.run_in_executor(None, self._app.close)

    async def _join(self, stopped: asyncio.Task[signal.Signals]) -> RayFleet | None:
        """Become a driver of the cluster, however long that takes; None when told to stop meanwhile."""
        from sennit.execute.cluster_ray import RayFleet

        before = ""
        while not stopped.done():
            joining = asyncio.create_task(
                RayFleet.join(self._plan.address, token_path=self._app.settings.cluster_token_path)
            )
            await asyncio.wait({joining, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not joining.done():
                joining.cancel()
                await asyncio.wait({joining})
                return None
            try:
                return joining.result()
            except ClusterUnavailable as error:
                if error.reason != before:
                    self._say(f"{error.what}; trying again every {span(REJOIN_S)}")
                before = error.reason
                await asyncio.wait({stopped}, timeout=REJOIN_S)
        return None

    async def _run(self, fleet: RayFleet, stopped: asyncio.Task[signal.Signals]) -> None:
        """Start the agents and look after them until told to stop, or the cluster is lost."""
        agents = self._plan.nodes or max(1, fleet.nodes)
        argv = agent_argv(self._plan, self._app.url, self._app.settings.labels)
        fleet.start(agents, argv, agent_environment(self._plan, agents, os.environ))
        self._say(
            f"joined {self._plan.cluster}: {fleet.nodes} nodes, {fleet.cpus:g} cores; "
            f"{agents} agents of {self._plan.target} on {self._app.url}"
        )
        self._seen.clear()
        self._said.clear()
        self._wish = None
        while not stopped.done() and not fleet.lost.done():
            with suppress(ClusterUnavailable):
                self._tell(await fleet.look())
                if self._plan.cpus_max:
                    self._scale(fleet, await self._demand())
            either: set[asyncio.Future[Any]] = {stopped, fleet.lost}
            await asyncio.wait(either, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)

    # ------------------------------------------------------------ looking

    def _tell(self, seen: Agents) -> None:
        """Say what is new of the agents."""
        places = {node.id: node.address for node in seen.nodes}
        for agent in seen.agents:
            now = (agent.state, agent.node, agent.pid)
            has_lasted = self._seen.get(agent.rank) == now
            self._seen[agent.rank] = now
            if self._said.get(agent.rank) != now and (agent.starts <= ENDS_SAID_MAX or has_lasted):
                self._said[agent.rank] = now
                self._say(_words(agent, places.get(agent.node, "")))

    async def _demand(self) -> Demand:
        store, running, ready, oldest_s = self._app.store, 0, 0, 0.0
        counts = await store.counts()
        now_us = store.now_us()
        for queue in self._cpu_queues:
            states = counts.get(queue, {})
            running += states.get(State.RUNNING, 0)
            if n := states.get(State.READY, 0):
                ready += n
                waiting = await store.tasks(states=[State.READY], queue=queue, limit=OLDEST_LOOKED_AT)
                oldest_s = max([oldest_s, *((now_us - (task.due_us or task.created_us)) / 1e6 for task in waiting)])
        return Demand(running=running, ready=ready, oldest_s=oldest_s)

    def _scale(self, fleet: RayFleet, demand: Demand) -> None:
        wish = wanted_cpus(demand, cpus_max=self._plan.cpus_max, patience_s=PATIENCE_S)
        if wish != (self._wish or 0):
            fleet.scale(wish)
            self._say(
                f"asked the autoscaler for {wish} cores: {demand.running} CPU tasks run, {demand.ready} wait, "
                f"the oldest for {span(demand.oldest_s)}"
            )
        self._wish = wish

    # ------------------------------------------------------------ stopping

    async def _stop(self, fleet: RayFleet, first: signal.Signals) -> signal.Signals:
        """Drain all agents, or have them hand back at a second signal."""
        drain_s = self._plan.drain_s
        self._say(f"{first.name}: agents get up to {span(drain_s)} to drain, Ctrl-C again has them hand back at once")
        if self._wish:
            fleet.scale(0)
        drained = asyncio.create_task(fleet.stop(drain_s + STOP_S))
        again = asyncio.create_task(self._signals.get())
        await asyncio.wait({drained, again}, return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():
            with suppress(ClusterUnavailable):
                await fleet.stop(STOP_S)
        last = again.result() if again.done() else first
        again.cancel()
        try:
            ended = await drained
        except ClusterUnavailable as error:
            self._say(f"{error.what}; what its agents held comes back by its lease")
            return last
        silent = sum(agent.state != "stopped" for agent in ended.agents)
        self._say("stopped" + (f"; {silent} agents did not answer, Ray ends them" if silent else ""))
        return last


def _words(agent: Agent, place: str) -> str:
    match agent.state:
        case "running":
            again = f", start {agent.starts}" if agent.starts > 1 else ""
            return f"agent {agent.rank}  pid {agent.pid} on {place or 'a node'}{again}"
        case "waiting":
            what = f"agent {agent.rank}  its worker on {place or 'a node'} ended with exit code {agent.exit_code}"
            said = "".join(f"\n  {line}" for line in agent.words.splitlines())
            return f"{what}; it is started again. Its last words:{said}" if said else f"{what}; it is started again"
        case _:
            return f"agent {agent.rank}  waits for a node: its own is lost, or none has room"
