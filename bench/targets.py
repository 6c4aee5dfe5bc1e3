"""The numbers that Sennit has set itself, as data: the report says of each whether this run has met it.

They are goals for a machine of two cores with a local disk, not timed tests: a missed one is a finding, not a failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One number.

    Attributes:
        bound: in the unit of the figure, or a ratio when `times_as_good_as` names a side of the same run.
        fsyncs: how many fsyncs (median of the run) are allowed on top: each commit with FULL pays one.
    """

    what: str
    case: str
    figure: str
    bound: float
    at_least: bool = False
    fsyncs: int = 0
    times_as_good_as: str | None = None


def _throughput(case: str, what: str) -> tuple[Target, ...]:
    return (
        Target(what=f"{what}, FULL", case=case, figure="tasks_per_s", bound=5_000, at_least=True),
        Target(what=what, case=case, figure="tasks_per_s", bound=3, at_least=True, times_as_good_as="huey"),
        Target(what=what, case=case, figure="tasks_per_s", bound=40, at_least=True, times_as_good_as="dbos"),
    )


def _start(case: str, what: str, *, figure: str = "start", fsyncs: int = 0) -> tuple[Target, ...]:
    return (
        Target(what=f"{what}, p50", case=case, figure=f"{figure}_p50_ms", bound=0.5, fsyncs=fsyncs),
        Target(what=f"{what}, p99", case=case, figure=f"{figure}_p99_ms", bound=2.0, fsyncs=fsyncs),
    )


TARGETS: Final = (
    *_throughput("throughput_async", "no-op end to end, one process, async"),
    *_throughput("throughput_sync", "no-op end to end, one process, sync"),
    *_throughput("throughput_worker", "no-op end to end, a worker process"),
    Target(what="bulk submit", case="bulk", figure="tasks_per_s", bound=100_000, at_least=True),
    *_start("latency_normal", "idle submit to first line, NORMAL"),
    *_start("latency_full", "idle submit to first line, FULL", fsyncs=1),
    *_start("chain_normal", "chain hop, NORMAL", figure="hop"),
    *_start("chain", "chain hop, FULL", figure="hop", fsyncs=1),
    Target(
        what="two processes, idle: submit to first line, p50", case="latency_processes", figure="start_p50_ms", bound=5
    ),
    Target(what="no periodic wake-up: context switches", case="idle_pair", figure="switches_in_15_s", bound=3),
    Target(what="no periodic wake-up: system calls", case="idle_pair", figure="syscalls_in_3_s", bound=0),
    Target(what="kill -9 to running elsewhere, p50", case="kills", figure="resumed_p50_s", bound=0.5),
    Target(what="kill -9 to running elsewhere, worst", case="kills", figure="resumed_worst_s", bound=5),
    Target(what="kills per round", case="kills", figure="kills", bound=50, at_least=True),
    Target(what="tasks lost", case="kills", figure="lost", bound=0),
    Target(what="tasks accepted twice", case="kills", figure="accepted_twice", bound=0),
    Target(what="100 children and their join", case="children", figure="total_ms", bound=50),
    Target(what="step", case="step", figure="in_order_ms", bound=1),
    Target(
        what="state updates over 100 threads, FULL",
        case="state_threads",
        figure="updates_per_s",
        bound=10_000,
        at_least=True,
    ),
    Target(
        what="state updates of one hot thread, 8 writers",
        case="state_hot",
        figure="updates_per_s",
        bound=1_000,
        at_least=True,
    ),
    Target(
        what="the same from four processes",
        case="state_hot_processes",
        figure="updates_per_s",
        bound=1_000,
        at_least=True,
    ),
    Target(what="state updates lost", case="state_hot_processes", figure="lost", bound=0),
    Target(what="100 threads × 20 tasks: lost", case="threads_busy", figure="lost", bound=0),
    Target(what="100 threads × 20 tasks: out of order", case="threads_busy", figure="out_of_order", bound=0),
    Target(what="100 threads × 20 tasks: cross-talk", case="threads_busy", figure="cross_talk", bound=0),
    Target(what="1,000 threads × 10 rounds: lost", case="threads_many", figure="lost", bound=0),
    Target(
        what="1,000 threads × 10 rounds: memory per round", case="threads_many", figure="slope_per_round_mb", bound=1
    ),
    Target(what="answer to resumed line, p50", case="ask", figure="start_p50_ms", bound=5),
    Target(what="10,000 suspended tasks: memory on top", case="suspended", figure="added_rss_mb", bound=50),
    Target(what="10,000 suspended tasks: slots held", case="suspended", figure="slots_held", bound=0),
    Target(what="10,000 suspended, restarted, answered: lost", case="suspended", figure="lost", bound=0),
    Target(what="limiter, acquire and release", case="limit_cost", figure="limiter_us", bound=3),
    Target(what="breaker, a call that succeeds", case="limit_cost", figure="breaker_us", bound=3),
    Target(
        what="unknown cap of 40: % of the oracle",
        case="limit_unknown_cap",
        figure="aimd_of_oracle",
        bound=80,
        at_least=True,
    ),
    Target(what="unknown cap of 40: % of 429s", case="limit_unknown_cap", figure="aimd_throttled", bound=2),
    Target(what="3 processes, limit of 5: most calls at once", case="limit_fleet", figure="at_once", bound=5),
    Target(what="window used up: requests during the pause", case="limit_window", figure="sent_in_pause", bound=1),
    Target(what="reset to the first success", case="limit_window", figure="first_ok_ms", bound=1_000),
    Target(what="window used up: attempts used up", case="limit_window", figure="attempts_used_up", bound=0),
    Target(what="released permit to waiter, NORMAL, p50", case="permit_wake_normal", figure="wake_p50_ms", bound=1),
    Target(what="released permit to waiter, FULL, p50", case="permit_wake", figure="wake_p50_ms", bound=1, fsyncs=1),
    Target(what="the same in another process, p50", case="permit_wake_processes", figure="wake_p50_ms", bound=10),
    Target(what="the wrong waiter, in one process", case="permit_wake", figure="wrong_waiter", bound=0),
    Target(what="the wrong waiter, two processes", case="permit_wake_processes", figure="wrong_waiter", bound=0),
    Target(what="idle CPU of a worker", case="idle", figure="cpu_percent", bound=0.2),
    Target(what="10,000 waiting tasks", case="memory", figure="waiting_rss_mb", bound=80),
    Target(what="`sennit --version`", case="version", figure="wall_p50_ms", bound=100),
)

# For postgres.py: PostgreSQL with fsync on, on this machine, the peers in the same run.
POSTGRES_TARGETS: Final = (
    *(
        Target(
            what=f"drain with results and dependencies, {processes}",
            case=case,
            figure="tasks_per_s",
            bound=bound,
            at_least=True,
            times_as_good_as=peer,
        )
        for case, processes in (("pg_drain_graph", "one process"), ("pg_drain_graph_two", "two processes"))
        for peer, bound in (("pgqueuer", 1), ("procrastinate", 20), ("dbos", 20))
    ),
    Target(what="bulk submit", case="pg_bulk", figure="tasks_per_s", bound=100_000, at_least=True),
    Target(what="submit to start in another process, p50", case="pg_latency", figure="start_p50_ms", bound=5),
    Target(what="100 children and their join", case="pg_children", figure="total_ms", bound=150),
    Target(what="chain hop, p50", case="pg_chain", figure="hop_p50_ms", bound=5),
    Target(what="beside 1 M finished rows and an old snapshot", case="pg_snapshot", figure="fall_percent", bound=30),
    Target(what="1 M waiting: rows read without an index", case="pg_waiting", figure="scanned_per_task", bound=0.01),
    Target(what="idle worker and submitter: statements", case="pg_idle", figure="statements_in_20_s", bound=40),
    Target(what="lock hand-over to another process, p50", case="pg_lock", figure="wake_p50_ms", bound=5),
    Target(what="kill -9 to running on the same host, worst", case="pg_kill", figure="resumed_worst_s", bound=1),
    Target(what="tasks lost by it", case="pg_kill", figure="lost", bound=0),
    Target(
        what="kill -9 to running on another host, worst", case="pg_kill_elsewhere", figure="resumed_worst_s", bound=15
    ),
    Target(what="tasks lost by it", case="pg_kill_elsewhere", figure="lost", bound=0),
)
