"""What this machine, its disk and raw SQLite do at most: the ceiling that every figure of a queue is divided by.

A plain table with a state column and a partial index, one connection, WAL, nothing else in the process. A queue that
does more per task (results, dependencies, retries, leases) cannot pass these figures; how near it comes is its quality.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from cases import PROVIDER_CASES
from harness import RUN_DIR, Figures, Side, Worker, memory_mb, percentile, spread_ms, wall_ms

if TYPE_CHECKING:
    from collections.abc import Callable

    from cases import Case

Durability = Literal["full", "normal"]

BATCH: Final = 100
BULK: Final = 10_000
SECONDS: Final = 0.4  # per figure; enough for 150 fsyncs of 2.5 ms on the slowest disk seen
ROWS_AHEAD: Final = 100_000  # loaded before a claim is measured, more than any machine seen claims in SECONDS

SCHEMA: Final = """
create table task(id integer primary key, state int not null, payload text, owner text, done_at real);
create index ready on task(id) where state = 0;
"""
INSERT: Final = "insert into task(state, payload) values (0, 'p')"
CLAIM: Final = """
update task set state = 1, owner = 'w' where id in (select id from task where state = 0 order by id limit ?)
returning id
"""
FINISH: Final = "update task set state = 2, done_at = 1.0 where id = ?"


@dataclass(slots=True)
class RawQueue:
    """The smallest queue in SQLite. Each method commits once, and returns how many tasks it moved."""

    connection: sqlite3.Connection
    claimed: list[tuple[int]] = field(default_factory=list)

    def _commit(self, work: Callable[[], object]) -> None:
        self.connection.execute("begin immediate")
        work()
        self.connection.execute("commit")

    def insert(self, n: int) -> int:
        self._commit(lambda: self.connection.executemany(INSERT, [()] * n))
        return n

    def claim(self, n: int) -> int:
        self.claimed = self.connection.execute(CLAIM, (n,)).fetchall()
        return len(self.claimed)

    def finish(self) -> int:
        self._commit(lambda: self.connection.executemany(FINISH, self.claimed))
        return len(self.claimed)

    def claim_and_finish(self, n: int) -> int:
        self.claim(n)
        return self.finish()

    def finish_and_claim_next(self) -> int:
        """Hop: finish one task and claim its successor in one transaction."""
        self._commit(lambda: (self.connection.executemany(FINISH, self.claimed), self.claim(1)))
        return 1

    def whole_life(self, n: int) -> int:
        """Insert, claim and finish n tasks: three commits."""
        self.insert(n)
        return self.claim_and_finish(n)


Operation = tuple["Callable[[RawQueue], int]", int]  # what is timed, and the rows to load before

OPERATIONS: Final[dict[str, Operation]] = {
    "insert_single": (lambda queue: queue.insert(1), 0),
    f"insert_batch{BATCH}": (lambda queue: queue.insert(BATCH), 0),
    f"insert_batch{BULK}": (lambda queue: queue.insert(BULK), 0),
    "claim_complete_single": (lambda queue: queue.claim_and_finish(1), ROWS_AHEAD // 5),
    f"claim_complete_batch{BATCH}": (lambda queue: queue.claim_and_finish(BATCH), ROWS_AHEAD),
    f"whole_life_batch{BATCH}": (lambda queue: queue.whole_life(BATCH), 0),
    "hop": (RawQueue.finish_and_claim_next, ROWS_AHEAD // 5),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One operation, repeated for SECONDS on a fresh file."""

    tasks_per_s: float
    calls_ns: list[int]


def measure(name: str, durability: Durability) -> Measured:
    """Time one of OPERATIONS on a fresh file, so that no earlier write-back is paid for here."""
    operate, rows = OPERATIONS[name]
    with (
        tempfile.TemporaryDirectory(dir=RUN_DIR) as folder,
        closing(sqlite3.connect(f"{folder}/raw.db", isolation_level=None)) as connection,
    ):
        connection.execute("pragma journal_mode = wal")
        connection.execute(f"pragma synchronous = {durability}")
        connection.executescript(SCHEMA)
        queue = RawQueue(connection)
        queue.insert(rows)
        connection.execute("pragma wal_checkpoint(truncate)")
        moved, calls_ns = 0, []
        began_ns = now_ns = time.perf_counter_ns()
        while now_ns - began_ns < SECONDS * 1e9:
            before_ns = now_ns
            moved += operate(queue)
            now_ns = time.perf_counter_ns()
            calls_ns.append(now_ns - before_ns)
    return Measured(moved * 1e9 / (now_ns - began_ns), calls_ns)


def fsync(_: Case) -> Figures:
    calls_ns = []
    with tempfile.TemporaryFile(dir=RUN_DIR, buffering=0) as file:
        until_s = time.perf_counter() + SECONDS
        while time.perf_counter() < until_s:
            file.write(b"x" * 4096)
            before_ns = time.perf_counter_ns()
            os.fsync(file.fileno())
            calls_ns.append(time.perf_counter_ns() - before_ns)
    return spread_ms("fsync", calls_ns)


def limits(_: Case) -> Figures:
    figures: Figures = {}
    durabilities: tuple[Durability, ...] = ("normal", "full")
    for durability in durabilities:
        for name in OPERATIONS:
            figures[f"{name}_{durability}_per_s"] = measure(name, durability).tasks_per_s
    return figures


def throughput(case: Case) -> Figures:
    return {"tasks_per_s": measure(f"whole_life_batch{BATCH}", case.durability).tasks_per_s}


def bulk(case: Case) -> Figures:
    return {"tasks_per_s": measure(f"insert_batch{BULK}", case.durability).tasks_per_s}


def latency(case: Case) -> Figures:
    """One commit: what a durable submit pays at least before its task may start."""
    return spread_ms("start", measure("insert_single", case.durability).calls_ns)


def chain(case: Case) -> Figures:
    return spread_ms("hop", measure("hop", case.durability).calls_ns)


def step(case: Case) -> Figures:
    """One commit for each result, against as many results as there are in one commit."""
    return {
        "in_order_ms": percentile(measure("insert_single", case.durability).calls_ns, 0.5) / 1e6,
        "gathered_ms": 1e3 / measure(f"insert_batch{BATCH}", case.durability).tasks_per_s,
    }


def memory(_: Case) -> Figures:
    """Measure an interpreter that imports asyncio and sqlite3 and waits."""
    script = "import asyncio, signal, sqlite3; signal.pause()"
    with Worker([sys.executable, "-c", script]) as worker:
        time.sleep(0.5)
        return {f"waiting_{name}": value for name, value in memory_mb(worker.pid).items()}


def version(case: Case) -> Figures:
    """Start the interpreter and do nothing."""
    return wall_ms([sys.executable, "-c", "pass"], times=case.n)


def semaphores(case: Case) -> Figures:
    """Return what a bare semaphore does, where it can."""
    import providers  # noqa: PLC0415 - see cases.PROVIDER_CASES

    return providers.SEMAPHORES[case.name](case) if case.name in providers.SEMAPHORES else {}


SIDE: Final[Side] = {
    "fsync": fsync,
    "limits": limits,
    "throughput_async": throughput,
    "throughput_sync": throughput,
    "throughput_worker": throughput,
    "throughput_workers": throughput,
    "bulk": bulk,
    "latency_full": latency,
    "latency_sync": latency,
    "latency_normal": latency,
    "latency_processes": latency,
    "chain": chain,
    "chain_normal": chain,
    "step": step,
    "memory": memory,
    "version": version,
    **dict.fromkeys(PROVIDER_CASES, semaphores),
    "throughput_provider": throughput,
}
