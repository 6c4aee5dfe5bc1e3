"""What was measured in a program: plain values that travel as JSON from the program to whoever judges them.

Times are seconds, sizes bytes. What is counted from samples says how many there were.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = [
    "BLOCK_S_MIN",
    "COPY_BYTES_MIN",
    "BlockFacts",
    "CopyFacts",
    "Facts",
    "FunctionFacts",
    "GilFacts",
    "LockFacts",
    "PickleFacts",
    "PoolFacts",
]

BLOCK_S_MIN: Final = 0.05
"""A step of an event loop from this length on counts as blocking: half of what asyncio's debug mode complains of."""

COPY_BYTES_MIN: Final = 65_536
"""Smaller objects are not compared: it is the large ones that fill a machine."""


class GilFacts(msgspec.Struct, frozen=True):
    """How long an OS thread that wants to run waits for the interpreter's lock; 5 ms is one switch interval."""

    samples: int
    wait_s_p50: float
    wait_s_p99: float


class BlockFacts(msgspec.Struct, frozen=True):
    """Steps that kept an event loop, told apart by the callback and where it stood when it was looked at.

    `is_sennit`: none of the frames is of the program; it is sennit that starts, imports or stores something.
    """

    what: str
    stack: list[str]
    count: int
    blocked_s: float
    blocked_s_max: float
    is_sennit: bool = False


class LockFacts(msgspec.Struct, frozen=True):
    """All locks made at one place of the program. Contended: the lock was held when it was asked for."""

    where: str
    locks: int
    acquisitions: int
    contended: int
    waited_s: float
    waited_s_max: float
    waiters: int = 1
    """OS threads that have waited."""


class FunctionFacts(msgspec.Struct, frozen=True):
    """One function that ran in a pool of OS threads.

    Attributes:
        ran_s: in the body, all calls together; without the time in the queue.
        cpu_s: of the OS threads that ran it.
        runq_s: it could have run and had no core.
        queued_s: between submit and start.
        locked_s: waiting for locks, and for what is made of them (events, semaphores, queues); part of `ran_s`.
        holds_gil: None when it could not be told.
        importable: another process finds it by its name.
    """

    name: str
    kind: str
    holds_gil: bool | None
    calls: int
    ran_s: float
    cpu_s: float
    runq_s: float
    queued_s: float
    locked_s: float
    importable: bool

    @property
    def blocked_s(self) -> float:
        """Seconds of one call in which it needed no core and waited for no lock, on average."""
        return max(0.0, self.ran_s - self.cpu_s - self.runq_s - self.locked_s) / max(1, self.calls)


class PoolFacts(msgspec.Struct, frozen=True):
    """One pool of OS threads.

    Attributes:
        cpu_s, blocked_s, locked_s: of all calls; blocked is neither computing nor waiting for a core or a lock.
        holding_s: of `cpu_s`, what holds the GIL.
        busy_s: per OS thread that ran something.
        active_s: from the first start to the last end.
        backlog_s: in which at least one call stood in the queue.
    """

    name: str
    made_at: str
    workers_max: int
    calls: int
    queued_s: float
    cpu_s: float
    blocked_s: float
    locked_s: float
    holding_s: float
    busy_s: list[float]
    active_s: float
    backlog_s: float = 0.0


class PickleFacts(msgspec.Struct, frozen=True):
    """What was pickled for other processes at one place."""

    where: str
    messages: int
    sent_bytes: int
    spent_s: float


class CopyFacts(msgspec.Struct, frozen=True):
    """One content that was in memory several times at once; `kind` is the type."""

    kind: str
    size_bytes: int
    copies: int

    @property
    def wasted_bytes(self) -> int:
        """What one copy would have saved."""
        return self.size_bytes * (self.copies - 1)


class Facts(msgspec.Struct, frozen=True):
    """One run of a program.

    Attributes:
        watched_s: what the watchers themselves took, as far as they can tell.
        memory_bytes_max: peak resident memory.
        foreign_s: that OS threads which are not Python's had a core or waited for one: those of a C library, as BLAS has.
        copies_at_s: when memory was looked through, since the start; empty: never.
        exit_code: of the program, as a shell would say it.
    """

    command: list[str]
    cores: int
    has_gil: bool
    elapsed_s: float
    cpu_s: float
    watched_s: float
    memory_bytes_max: int
    gil: GilFacts
    blocks: list[BlockFacts] = []
    locks: list[LockFacts] = []
    functions: list[FunctionFacts] = []
    pools: list[PoolFacts] = []
    pickles: list[PickleFacts] = []
    copies: list[CopyFacts] = []
    copies_at_s: list[float] = []
    foreign_s: float = 0.0
    exit_code: int = 0
    hot: str = ""
    """Where the main OS thread spent its time, as pyinstrument draws it."""
