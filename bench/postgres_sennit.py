"""The sennit side on PostgreSQL: the handlers of `workloads`, whose app opens the database of BENCH_DATABASE_URL.

Worker processes import this module for `app` (`python -m sennit worker postgres_sennit:app`). Another host is a process
with a UTS namespace, and so a host name, of its own: it is judged by its lease, since its pid means nothing here.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import harness
import locks
import psycopg
import workloads
from harness import Figures, Side, Worker, wait_for_hits
from postgres_cases import (
    DRAIN_TIMEOUT_S,
    SETTLE_S,
    URL,
    aging_side,
    count,
    drained,
    ready_workers,
    wait_until_drained,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cases import Case

app = workloads.app
PART: Final = 50_000  # tasks that are handed in at once where a million are
CLAIMED: Final = 20_000
LOCK_S: Final = 3.0
LOCK_TURNS: Final = 300
SCANNED: Final = (
    "select coalesce(sum(seq_tup_read), 0) from pg_stat_user_tables where relname in ('sennit_task', 'sennit_ready')"
)
ELSEWHERE_PATIENCE_S: Final = 40.0  # a lease of 15 s, and as long again
OTHER_HOST: Final = "import os, socket, sys; socket.sethostname('elsewhere'); os.execv(sys.argv[1], sys.argv[1:])"


@app.task
async def follow(_: int, task_id: int) -> int:
    """Run after the task whose result is the first argument."""
    return harness.noop(task_id)


class Sennit:
    n_max = 40_000

    def install(self) -> None:
        self._look = psycopg.connect(URL, autocommit=True)
        app.ledger().result()  # the first use makes the tables

    def submit(self, task_id: int) -> None:
        workloads.noop.submit(task_id)

    def submit_many(self, n: int) -> None:
        workloads.noop.map(range(n))

    def submit_pairs(self, n: int) -> None:
        """Submit n tasks, of which each second one waits for the result of the one before."""
        heads = workloads.noop.map(range(0, n, 2))
        follow.map([head.as_argument() for head in heads], range(1, n, 2))

    def submit_naps(self, task_ids: Sequence[int]) -> None:
        workloads.nap_kill.map(task_ids)

    def submit_chain(self, n: int) -> None:
        last = workloads.hop.options(delay_s=workloads.CHAIN_HEAD_DELAY_S).submit(0)
        for _ in range(n - 1):
            last = workloads.hop.submit(last.as_argument())

    def start_worker(self, slots: int, *, elsewhere: bool = False) -> Worker:
        argv = [sys.executable, "-m", "sennit", "worker", "postgres_sennit:app", "--db", URL]
        if slots:
            argv += ["--queue", f"default:{slots}"]
        if elsewhere:
            namespace = ["unshare", "--uts", *([] if os.geteuid() == 0 else ["--map-root-user"])]
            argv = [*namespace, sys.executable, "-c", OTHER_HOST, *argv]
        return Worker(argv)

    def open_rows(self) -> int:
        return app.ledger().result().live

    def add_finished(self, rows: int) -> None:
        """Write ended tasks, and count them in the ledger, so that it still balances."""
        now_us = time.time_ns() // 1000
        self._look.execute(
            "insert into sennit_task(id, handler, queue, priority, parents, on_parent_failed, payload, crashes_max,"
            " delay_us, created_us, state, attempt, started_us, done_us, result)"
            " select -i, 'workloads.noop', 'default', 1, 0, 'fail', '[[1],{}]', 3, 0,"
            " %(now)s, 1, 1, %(now)s, %(now)s, '1' from generate_series(1, %(rows)s) i",
            {"rows": rows, "now": now_us},
        )
        for name in ("submitted", "succeeded"):
            self._look.execute("update sennit_ledger set n = n + %s where name = %s and shard = 0", (rows, name))

    def churn(self, rows: int) -> None:
        """Write and delete rows of the last ten minutes in `ready` and `running`."""
        first_us = time.time_ns() // 1000 - 600_000_000
        self._look.execute(
            "insert into sennit_ready(queue, order_us, id, attempt, failures, crashes)"
            " select 'default', %s + i * 1000, -i, 0, 0, 0 from generate_series(1, %s) i",
            (first_us, rows),
        )
        self._look.execute("delete from sennit_ready where id < 0")
        self._look.execute(
            "insert into sennit_running(id, attempt, failures, crashes, worker_id, queue, order_us, started_us)"
            " select -i, 1, 0, 0, 1, 'default', 1, 1 from generate_series(1, %s) i",
            (rows,),
        )
        self._look.execute("delete from sennit_running where id < 0")


queue = Sennit()


def drain_graph(case: Case, *, workers: int) -> Figures:
    queue.install()
    with ready_workers(queue, workers) as running:
        return {"n": case.n, **drained(queue, case.n, running, queue.submit_pairs)}


def children(case: Case) -> Figures:
    """Let a worker process run a task that makes n children and their join; the second time counts."""
    queue.install()
    with ready_workers(queue, 1):
        for _ in range(2):
            harness.clear_hits()
            workloads.split.submit(case.n)
            wait_for_hits(case.n + 2)
            wait_until_drained(queue)
        return harness.join_figures(case.n, since_ns=harness.first_starts()[case.n + 1])


def waiting(case: Case) -> Figures:
    """Let one worker claim from a queue of n ready tasks; count the rows that were read without an index."""
    queue.install()
    for first in range(0, case.n, PART):
        workloads.noop.map(range(first, min(case.n, first + PART)))
    n = min(CLAIMED, case.n // 2)
    with psycopg.connect(URL, autocommit=True) as look:
        look.execute("analyze")
        time.sleep(SETTLE_S)  # a session reports its statistics once a second
        before = count(look, SCANNED)
        with queue.start_worker(0):
            wait_for_hits(n // 10, timeout_s=DRAIN_TIMEOUT_S)
            began_ns, begun = time.monotonic_ns(), harness.hit_count()
            wait_for_hits(n, timeout_s=DRAIN_TIMEOUT_S)
            took_s, hits = (time.monotonic_ns() - began_ns) / 1e9, harness.hit_count()
        time.sleep(SETTLE_S)
        scanned = count(look, SCANNED) - before
    return {"n": case.n, "tasks_per_s": (hits - begun) / took_s, "scanned_per_task": scanned / hits}


def lock(case: Case) -> Figures:
    """Two processes want one lock all the time: release in one to acquired in the other."""
    app.ledger().result()
    handed_ms, turns_per_s = locks.measure(URL, "", 2, LOCK_S if case.n >= LOCK_TURNS else LOCK_S / 10)
    return {
        "n": len(handed_ms),
        "wake_p50_ms": harness.percentile(handed_ms, 0.5),
        "wake_p99_ms": harness.percentile(handed_ms, 0.99),
        "turns_per_s": turns_per_s,
    }


def kill_elsewhere(case: Case) -> Figures:
    """Kill a worker of another host: only its lease can tell."""
    queue.install()
    with queue.start_worker(case.slots, elsewhere=True) as victim, queue.start_worker(case.slots):
        harness.wait_until_both_work(lambda: queue.submit_naps([-1]))
        wait_until_drained(queue)
        harness.clear_hits()
        queue.submit_naps(range(case.n))
        return harness.kill_figures(
            case.n, victim, lambda: queue.start_worker(case.slots), patience_s=ELSEWHERE_PATIENCE_S
        )


SIDE: Final[Side] = {
    **aging_side(queue),
    "pg_drain_graph": partial(drain_graph, workers=1),
    "pg_drain_graph_two": partial(drain_graph, workers=2),
    "pg_children": children,
    "pg_waiting": waiting,
    "pg_kill_elsewhere": kill_elsewhere,
    "pg_lock": lock,
}
