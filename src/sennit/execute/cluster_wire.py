"""What a sennit process and its Ray broker say to each other: whole messages, a length before each.

    sennit process ══ Run Kill Start Look Stop Scale ══► broker, a Ray driver ──► Ray
                   ◄══ Joined Refused Done Gone Agents ══

The broker is a process of its own because a Ray driver does not outlive its cluster: when the head is lost, Ray ends
the driver from C++, with whatever else that process was doing.
"""

from __future__ import annotations

import msgspec

from sennit.execute.process_child import HEADER, Answer, Failure

__all__ = [
    "HEADER",
    "Agent",
    "Agents",
    "Brief",
    "Done",
    "Gone",
    "Joined",
    "Kill",
    "Look",
    "Node",
    "Refused",
    "Reply",
    "Request",
    "Run",
    "Scale",
    "Start",
    "Stop",
    "frame",
]


class Brief(msgspec.Struct, frozen=True):
    """What a broker is told first: which cluster, and how bodies are run there.

    Attributes:
        address: `auto` or `ray://HOST:PORT`.
        runner: `module:qualname` of `runner(function, payload) -> bytes`.
        folder: where the arrays of results are kept.
        sys_path: where this process finds modules; a Ray worker looks there after its own places.
    """

    address: str
    runner: str
    folder: str
    sys_path: tuple[str, ...]


# ------------------------------------------------------------ to the broker


class Run(msgspec.Struct, tag=True, frozen=True):
    """Run a body as a Ray task."""

    n: int
    handler_ref: str
    payload: bytes


class Kill(msgspec.Struct, tag=True, frozen=True):
    """Kill the worker process of a body."""

    n: int


class Start(msgspec.Struct, tag=True, frozen=True):
    """Start `agents` node agents, each on a node of its own, each of which keeps `python *argv` running."""

    agents: int
    argv: tuple[str, ...]
    environment: dict[str, str]
    folder: str


class Look(msgspec.Struct, tag=True, frozen=True):
    """Tell how the agents and nodes are."""

    n: int


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Stop all agents: each ends its worker with SIGTERM, which drains, and by force after `grace_s`."""

    n: int
    grace_s: float


class Scale(msgspec.Struct, tag=True, frozen=True):
    """Ask Ray's autoscaler for a cluster of at least `cpus` cores; 0 takes an earlier wish back."""

    cpus: int


# ------------------------------------------------------------ from the broker


class Joined(msgspec.Struct, tag=True, frozen=True):
    """The broker is a driver of the cluster."""

    cpus: float
    nodes: int


class Refused(msgspec.Struct, tag=True, frozen=True):
    """It cannot become one."""

    what: str


class Done(msgspec.Struct, tag=True, frozen=True):
    """A body returned or raised."""

    n: int
    reply: Answer | Failure


class Gone(msgspec.Struct, tag=True, frozen=True):
    """A body, its worker process or its node is gone without an answer."""

    n: int
    what: str


class Agent(msgspec.Struct, frozen=True):
    """One node agent.

    Attributes:
        state: `running`, `restarting` (its node is lost, or Ray has no room for it) or `waiting` (its worker ended by
            itself and is started again in a moment).
        pid: of the sennit worker, on its node; 0 when none runs.
        starts: of a worker, by this actor.
        exit_code, words: of the last worker: how it ended, and the last lines of its stderr.
    """

    rank: int
    state: str
    node: str = ""
    pid: int = 0
    starts: int = 0
    exit_code: int | None = None
    words: str = ""


class Node(msgspec.Struct, frozen=True):
    """One node of the cluster."""

    id: str
    address: str
    cpus: float
    is_alive: bool


class Agents(msgspec.Struct, tag=True, frozen=True):
    """How the agents and nodes are; the answer to `Look` and `Stop`."""

    n: int
    agents: tuple[Agent, ...]
    nodes: tuple[Node, ...]


Request = Run | Kill | Start | Look | Stop | Scale
Reply = Joined | Refused | Done | Gone | Agents


def frame(message: Request | Reply | Brief) -> bytes:
    """Return a message as it goes over the pipe."""
    body = msgspec.msgpack.encode(message)
    return HEADER.pack(len(body)) + body
