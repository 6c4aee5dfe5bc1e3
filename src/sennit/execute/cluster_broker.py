"""The inside of a broker: a Ray driver that runs bodies as Ray tasks and node agents as Ray actors, for one sennit process.

    Run ─► arrays of the payload: in Ray already, or file ─► ray.put ─► task on some node ─► arrays of the result ─► files
        └► Done (returned, raised) | Gone (worker process, node or object lost; the store decides what follows)

Ray's own retries are off: the store counts attempts. What Ray keeps of arrays is a cache of files, and may vanish. The
broker ends with its pipe, and with the cluster; whoever talks to it sees the end of the pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections import OrderedDict
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import ObjectLostError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sennit.execute import cluster_wire as wire
from sennit.execute.cluster_node import NodeAgent, Outcome, run_body
from sennit.execute.process_child import Answer, Failure
from sennit.sync import array_files

CACHE_BYTES_MAX: Final = 1 << 30
"""Arrays that are kept in Ray for the next body that reads them; Ray spills to disk what does not fit its own store."""

LOOK_S: Final = 5.0
"""An agent that does not answer in this time is on a node that is lost or frozen: it counts as restarting."""

# A bundle must ask for something, and a share of a core would keep whole-core bodies off that core.
_AGENT_BUNDLE: Final = {"memory": 1 << 20}

_REQUESTS: Final = msgspec.msgpack.Decoder(wire.Request)
_REPLIES: Final = msgspec.msgpack.Decoder(Answer | Failure)


class _Cache:
    """Path of an array → the Ray object that holds it, the least recently used one dropped first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    def get(self, path: str) -> Any:
        if path not in self._kept:
            return None
        self._kept.move_to_end(path)
        return self._kept[path][0]

    def keep(self, path: str, ref: Any, n_bytes: int) -> None:
        self.drop(path)
        self._kept[path] = (ref, n_bytes)
        self._bytes += n_bytes
        while self._bytes > CACHE_BYTES_MAX and len(self._kept) > 1:
            self.drop(next(iter(self._kept)))

    def drop(self, path: str) -> None:
        _, n_bytes = self._kept.pop(path, (None, 0))
        self._bytes -= n_bytes


class Broker:
    """Serves one pipe until it ends."""

    def __init__(self, brief: wire.Brief, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._body = ray.remote(num_cpus=1, max_retries=0)(run_body)
        self._agent = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=4)(RayAgent)
        self._brief_ref = ray.put(brief)  # once, not with every body
        self._cache = _Cache()
        self._bodies: dict[int, Any] = {}  # number → its Ray object, None before it has one
        self._killed: set[int] = set()
        self._agents: list[Any] = []
        self._group: Any = None
        self._at_work: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Do what the pipe says."""
        cluster = ray.cluster_resources()
        self._send(wire.Joined(cpus=cluster.get("CPU", 0.0), nodes=len(_nodes())))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (size,) = wire.HEADER.unpack(await self._reader.readexactly(wire.HEADER.size))
                self._take(_REQUESTS.decode(await self._reader.readexactly(size)))

    def _take(self, message: wire.Request) -> None:
        match message:
            case wire.Run(n=n):
                self._bodies[n] = None
                self._begin(self._run(message))
            case wire.Kill(n=n):
                if n in self._bodies:  # else it has ended meanwhile
                    self._killed.add(n)
                    if (ref := self._bodies[n]) is not None:
                        ray.cancel(ref, force=True)
            case wire.Start():
                self._start(message)
            case wire.Look(n=n):
                self._begin(self._look(n))
            case wire.Stop(n=n, grace_s=grace_s):
                self._begin(self._stop(n, grace_s))
            case wire.Scale(cpus=cpus):
                self._begin(asyncio.to_thread(request_resources, num_cpus=cpus))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    def _send(self, message: wire.Reply) -> None:
        self._writer.write(wire.frame(message))

    # ------------------------------------------------------------ bodies

    async def _run(self, message: wire.Run) -> None:
        paths: list[str] = []
        try:
            paths = array_files.files_in(message.payload)
            given = [await self._array(path) for path in paths]
            if message.n in self._killed:
                self._send(wire.Gone(message.n, "killed by request"))
                return
            reply = await self._at_node(message, paths, given)
        except RayTaskError as error:  # our own frame failed there: sennit or the runner cannot be imported
            self._send(wire.Done(message.n, _not_ours(error)))
        except (RayError, ConnectionError) as error:
            if isinstance(error, ObjectLostError):
                for path in paths:
                    self._cache.drop(path)  # the next attempt puts it anew, from its file
            self._send(wire.Gone(message.n, f"{type(error).__name__}: {_first_line(error)}"))
        except Exception as error:  # noqa: BLE001 - an array that is not there, a full disk: it belongs to this body
            self._send(wire.Done(message.n, Failure(type(error).__name__, str(error), "", None)))
        else:
            self._send(wire.Done(message.n, reply))
        finally:
            self._bodies.pop(message.n, None)
            self._killed.discard(message.n)

    async def _at_node(self, message: wire.Run, paths: list[str], given: list[Any]) -> Answer | Failure:
        ref = self._body.remote(self._brief_ref, message, paths, *given)
        self._bodies[message.n] = ref
        encoded, made = cast("Outcome", await ref)
        for path, array in made.items():
            await asyncio.to_thread(array_files.write, Path(path), array)
            self._cache.keep(path, ref, array.nbytes)
        return cast("Answer | Failure", _REPLIES.decode(encoded))

    async def _array(self, path: str) -> Any:
        """Return the Ray object with the array of a file."""
        ref = self._cache.get(path)
        if ref is None:
            array = await asyncio.to_thread(array_files.read, Path(path))
            ref = await asyncio.to_thread(ray.put, (b"", {path: array}))
            self._cache.keep(path, ref, array.nbytes)
        return ref

    # ------------------------------------------------------------ agents

    def _start(self, message: wire.Start) -> None:
        """Ask Ray for agents, each on another node. They come when there is a node for them."""
        self._group = placement_group([_AGENT_BUNDLE] * message.agents, strategy="STRICT_SPREAD")
        for rank in range(message.agents):
            place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)
            agent = self._agent.options(scheduling_strategy=place, name=f"sennit-agent-{rank}-{os.getpid()}")
            self._agents.append(agent.remote(message.argv, message.environment, message.folder))

    async def _look(self, n: int) -> None:
        looks = [_asked(agent.look.remote(), LOOK_S) for agent in self._agents]
        found = await asyncio.gather(*looks)
        self._tell(n, [_agent(rank, seen) for rank, seen in enumerate(found)])

    async def _stop(self, n: int, grace_s: float) -> None:
        """All at once, since each drains by itself; then their actors, then the places they had."""
        agents, group = list(self._agents), self._group
        ended = await asyncio.gather(*(_asked(agent.stop.remote(grace_s), grace_s + LOOK_S) for agent in agents))
        self._agents, self._group = [], None
        for agent in agents:
            ray.kill(agent, no_restart=True)
        if group is not None:
            remove_placement_group(group)
        self._tell(
            n,
            [
                wire.Agent(rank, "restarting" if isinstance(code, _Silent) else "stopped", exit_code=_whole(code))
                for rank, code in enumerate(ended)
            ],
        )

    def _tell(self, n: int, agents: list[wire.Agent]) -> None:
        self._send(wire.Agents(n, tuple(agents), tuple(_nodes())))


class RayAgent(NodeAgent):
    """A node agent that tells its worker and its driver where it is."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
        where = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        super().__init__(argv, {**environment, **where}, folder)

    def look(self) -> dict[str, Any]:
        """Return how the worker is, and on which node."""
        return {**super().look(), "node": ray.get_runtime_context().get_node_id()}


class _Silent:
    """An actor has not answered."""


async def _asked(ref: Any, within_s: float) -> Any:
    """Return what an actor answers, or a `_Silent`."""
    try:
        return await asyncio.wait_for(_value(ref), within_s)
    except (TimeoutError, RayError):
        return _Silent()


async def _value(ref: Any) -> Any:
    return await ref


def _agent(rank: int, seen: Mapping[str, Any] | _Silent) -> wire.Agent:
    if isinstance(seen, _Silent):
        return wire.Agent(rank, "restarting")
    return wire.Agent(rank, **seen)


def _whole(code: object) -> int | None:
    return code if isinstance(code, int) else None


def _nodes() -> list[wire.Node]:
    return [
        wire.Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0), node["Alive"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _not_ours(error: RayTaskError) -> Failure:
    cause = getattr(error, "cause", None) or error
    why = f"{_first_line(cause)}; every node needs the same Python, sennit and handlers as this machine"
    return Failure(type(cause).__name__, why, str(error), None)


# ------------------------------------------------------------ the process


def main(pipe: socket.socket, life: int) -> None:
    """Join the cluster that the first message names, and serve until the pipe ends."""
    threading.Thread(target=_die_with_parent, args=(life,), name="sennit-life", daemon=True).start()
    brief = msgspec.msgpack.decode(_first(pipe), type=wire.Brief)
    try:
        ray.init(brief.address, namespace="sennit", logging_level="ERROR", log_to_driver=False)
    except Exception as error:  # noqa: BLE001 - whatever Ray raises here: its parent says it, and tries again
        pipe.sendall(wire.frame(wire.Refused(f"{type(error).__name__}: {_first_line(error)}")))
        return
    asyncio.run(_serve(brief, pipe))
    ray.shutdown()


async def _serve(brief: wire.Brief, pipe: socket.socket) -> None:
    pipe.setblocking(False)
    await Broker(brief, *await asyncio.open_connection(sock=pipe)).serve()


def _first(pipe: socket.socket) -> bytes:
    """Return the first message: nothing of the second is read."""
    (size,) = wire.HEADER.unpack(pipe.recv(wire.HEADER.size, socket.MSG_WAITALL))
    return pipe.recv(size, socket.MSG_WAITALL)


def _die_with_parent(life: int) -> None:
    """Sleep until the parent is gone, then end, whatever Ray is doing: its agents and bodies end with their driver."""
    os.read(life, 1)
    os.kill(os.getpid(), signal.SIGKILL)
