"""What is measured: one row per case, the same for every side (sennit, raw SQLite, each peer).

A side answers a case with figures. Figures of the same name are compared; the suffix of the name is the unit and says
which way is better: `_per_s` up, `_us`, `_ms`, `_s`, `_mb`, `_percent` down. A name without such a suffix is a count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

QUICK_DIVISOR: Final = 25
QUICK_MIN: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One workload and its size.

    `n` is the size that sennit runs. A slower peer may run fewer and says so in its figure `n`; rates stay comparable.
    """

    name: str
    what: str
    n: int
    slots: int = 100
    durability: Literal["full", "normal"] = "full"

    def quick(self) -> Case:
        """Return the case in the smallest size that still does everything once; its figures mean nothing."""
        return replace(self, n=min(self.n, max(QUICK_MIN, self.n // QUICK_DIVISOR)))


CASES: Final = (
    Case(name="fsync", what="append 4 KiB and fsync; runs in every round, whatever is chosen", n=0),
    Case(name="limits", what="raw SQLite, one and many rows per commit, with and without fsync", n=0),
    Case(name="throughput_async", what="no-op async tasks, submit to recorded, all in one process", n=20_000),
    Case(name="throughput_sync", what="the same with sync bodies", n=20_000),
    Case(name="throughput_worker", what="no-op tasks from one process to a worker process", n=20_000),
    Case(name="throughput_workers", what="the same to two worker processes", n=20_000),
    Case(name="bulk", what="submit only, nobody works", n=100_000),
    Case(name="latency_full", what="idle, in process: submit to first line of the body", n=200),
    Case(name="latency_sync", what="the same from sync code to a sync body", n=200),
    Case(name="latency_normal", what="as latency_full, without an fsync per commit", n=200, durability="normal"),
    Case(name="latency_processes", what="idle, submit here to first line in a worker process", n=200),
    Case(name="chain", what="tasks that each wait for the previous one", n=100),
    Case(name="chain_normal", what="the same without an fsync per commit", n=100, durability="normal"),
    Case(name="fan", what="1 -> n -> 1, submit to start of the join", n=1000),
    Case(name="children", what="a task makes n children and their join: its start to start of the join", n=100),
    Case(name="step", what="memoised calls inside one task", n=500),
    Case(name="waiting", what="tasks that wait 50 ms, 100 at once", n=2000),
    Case(name="kill", what="kill -9 of one of two workers amid tasks of 20 ms, 10 at once each", n=500, slots=10),
    Case(name="kills", what="n kills -9 at random moments among three workers under load", n=50, slots=10),
    Case(name="state_threads", what="state updates, one writer in each of 100 threads", n=20_000),
    Case(name="state_hot", what="state updates of one thread, 8 writers in one process", n=10_000),
    Case(name="state_hot_processes", what="the same, two writers in each of four processes", n=4_000),
    Case(
        name="threads_busy",
        what="tasks of 100 threads at once, each thread in order, each task writes its state",
        n=2_000,
    ),
    Case(name="threads_many", what="ten rounds of n new threads with one task each", n=1_000),
    Case(name="ask", what="idle: answer to the resumed line of the body", n=200),
    Case(
        name="suspended",
        what="tasks that wait for people; the worker is killed, another starts, all are answered",
        n=10_000,
    ),
    Case(name="limit_cost", what="one call, uncontended: a limit and a breaker of this process", n=0),
    Case(name="limit_unknown_cap", what="the governor for 30 simulated minutes, a cap of 40 that it is not told", n=0),
    Case(name="limit_fleet", what="calls of three processes to one server, with a limit of 5", n=60),
    Case(name="limit_window", what="calls of two workers to a server whose quota is used up for 10 s", n=100),
    Case(name="permit_wake", what="a permit is released: to the first in line, in one process", n=300),
    Case(name="permit_wake_normal", what="the same without an fsync per commit", n=300, durability="normal"),
    Case(name="permit_wake_processes", what="the same in another process", n=300),
    Case(name="permits", what="permits taken and returned", n=0),
    Case(name="permits_normal", what="the same without an fsync per commit", n=0, durability="normal"),
    Case(name="throughput_provider", what="no-op async tasks of a provider that has room", n=20_000),
    Case(name="idle", what="a worker process with nothing to do", n=0),
    Case(name="idle_pair", what="two processes on one file, a worker and a submitter, with nothing to do", n=0),
    Case(name="memory", what="a worker process beside tasks due in an hour", n=10_000),
    Case(name="version", what="wall time of `--version`", n=10),
)

# On PostgreSQL: postgres.py runs them, with peers of its own.
POSTGRES_CASES: Final = (
    Case(name="fsync", what="append 4 KiB and fsync; runs in every round, whatever is chosen", n=0),
    Case(name="pg_limits", what="raw PostgreSQL: a round trip, a commit, claims of one row and of 100", n=0),
    Case(
        name="pg_drain",
        what="no-op tasks that wait, one worker process goes on, until all are recorded",
        n=20_000,
        slots=1000,
    ),
    Case(name="pg_drain_two", what="the same with two worker processes", n=40_000, slots=1000),
    Case(name="pg_drain_graph", what="the same, half of the tasks take the result of another", n=20_000, slots=1000),
    Case(name="pg_drain_graph_two", what="the same with two worker processes", n=40_000, slots=1000),
    Case(name="pg_drain_100", what="pg_drain with 100 tasks at once per process", n=20_000, slots=100),
    Case(name="pg_bulk", what="submit only, nobody works", n=100_000),
    Case(name="pg_latency", what="idle, submit here to first line in a worker process", n=200),
    Case(name="pg_chain", what="tasks that each wait for the previous one", n=100),
    Case(name="pg_children", what="a task makes n children and their join: its start to start of the join", n=100),
    Case(name="pg_snapshot", what="drain beside 1,000,000 finished rows and an old snapshot", n=20_000, slots=1000),
    Case(name="pg_waiting", what="claims while n tasks wait in the queue", n=1_000_000, slots=1000),
    Case(name="pg_idle", what="a worker process with nothing to do", n=1),
    Case(name="pg_kill", what="kill -9 of one of two workers amid tasks of 20 ms, 10 at once each", n=500, slots=10),
    Case(name="pg_kill_elsewhere", what="the same, and the other worker is another host", n=500, slots=10),
    Case(name="pg_lock", what="a lock is released: to the waiter in another process", n=300),
    Case(name="pg_memory", what="an idle worker process", n=0),
)

# They have a module of their own, which is imported by nobody else: it would show in the memory of the others.
PROVIDER_CASES: Final = tuple(
    case.name for case in CASES if case.name.startswith(("limit_", "permit")) or case.name == "throughput_provider"
)


def case_named(name: str) -> Case:
    """Return the case of that name.

    Raises:
        LookupError: there is no such case.
    """
    for case in (*CASES, *POSTGRES_CASES):
        if case.name == name:
            return case
    known = " ".join(case.name for case in (*CASES, *POSTGRES_CASES))
    message = f"no case is named {name!r}; the cases are: {known}"
    raise LookupError(message)
