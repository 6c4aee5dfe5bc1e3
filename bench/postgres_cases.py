"""What is asked of every queue on PostgreSQL, once: sennit and each peer is a `Queue` of nine short methods.

    run of a case ─► a fresh database ─► install ─► hot worker processes ─► the case ─► figures

A drain begins with workers that are hot and stopped (SIGSTOP): all tasks are submitted, then the workers go on, and the
clock runs until the queue's own tables say that everything has ended. So it contains no start-up and no submitting.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, LiteralString, Protocol

import harness
import psycopg
from harness import Figures, Side, Worker, wait_for_hits, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cases import Case

URL: Final = os.environ["BENCH_DATABASE_URL"]  # a database of its own for this side and this case
SERVER_URL: Final = os.environ["BENCH_SERVER_URL"]  # the same server, another database: to look without being counted
SERVER_PID: Final = int(os.environ["BENCH_SERVER_PID"])
IDLE_WINDOW_S: Final = 20.0
SETTLE_S: Final = 2.0
CHURNED_ROWS: Final = 600_000  # dead rows of ten minutes at 1,000 tasks a second
FINISHED_ROWS: Final = 1_000_000
DRAIN_TIMEOUT_S: Final = 120.0
CHAIN_TIMEOUT_S: Final = 20.0


class Queue(Protocol):
    """One side. Its worker processes write `harness.hit` from their bodies.

    Attributes:
        n_max: how many no-op tasks it drains in a few seconds.
    """

    n_max: int

    def install(self) -> None:
        """Make the tables, and be ready to submit."""

    def submit(self, task_id: int) -> object:
        """Submit one no-op task, durable on return."""

    def submit_many(self, n: int) -> object:
        """Submit no-op tasks 0 to n-1 by the best bulk call it has."""

    def submit_naps(self, task_ids: Sequence[int]) -> object:
        """Submit tasks that wait NAP_MS_KILL."""

    def submit_chain(self, n: int) -> object:
        """Submit task 0, after whose end task 1 runs, up to n-1."""

    def start_worker(self, slots: int) -> Worker:
        """Start a worker process at its best setting; 0 slots: as many as are best for no-ops."""

    def open_rows(self) -> int:
        """Return how many tasks are not recorded as ended; 0 is what `drained` means."""


class AgingQueue(Queue, Protocol):
    """A side that can be made old by SQL."""

    def add_finished(self, rows: int) -> None:
        """Write that many ended tasks by SQL, as if they had run; nothing where ended tasks leave no row."""

    def churn(self, rows: int) -> None:
        """Write and delete that many rows, by SQL, in the tables from which tasks are claimed."""


# ------------------------------------------------------------------------------------------------------- workers


@contextmanager
def ready_workers(queue: Queue, count: int, slots: int = 0) -> Iterator[list[Worker]]:
    """Run worker processes that have all worked; the log is empty and nothing is open."""
    with ExitStack() as stack:
        workers = [stack.enter_context(queue.start_worker(slots)) for _ in range(count)]
        if count == 1:
            queue.submit(-1)
            workers[0].wait_ready()
        else:
            harness.wait_until_both_work(lambda: queue.submit_naps([-1]))
        wait_until_drained(queue)
        harness.clear_hits()
        yield workers


def wait_until_drained(queue: Queue) -> None:
    """Wait until the queue's own tables say that everything has ended.

    Raises:
        TimeoutError: they do not within DRAIN_TIMEOUT_S.
    """
    if not wait_until(lambda: queue.open_rows() == 0, timeout_s=DRAIN_TIMEOUT_S, every_s=0.01):
        message = f"{queue.open_rows()} tasks are still open; the workers wrote:\n{harness.worker_log_tail()}"
        raise TimeoutError(message)


@contextmanager
def stopped(workers: Sequence[Worker]) -> Iterator[None]:
    """Stop the workers for the block: what is submitted meanwhile is taken from then on by all at once."""
    pids = [pid for worker in workers for pid in harness.process_tree(worker.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


# --------------------------------------------------------------------------------------------------------- cases


class Meter:
    """The CPU time that processes use from now on, in µs; children that start later count, those that end do not."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._before = self._now_s()

    def _now_s(self) -> dict[int, float]:
        return {pid: harness.cpu_s([pid]) for root in self._pids for pid in harness.process_tree(root)}

    def used_us(self) -> float:
        return 1e6 * sum(now_s - self._before.get(pid, 0.0) for pid, now_s in self._now_s().items())


def drained(queue: Queue, n: int, workers: Sequence[Worker], submit_many: Callable[[int], object]) -> Figures:
    """Return how many tasks a second these workers start and end, and what one costs; they write n records.

    The costs are CPU time of all workers, and of the server, per task: on a busy machine they say more than the rate.
    """
    harness.clear_hits()
    with stopped(workers):
        submit_many(n)
        meters = {"worker_cpu_us": Meter([worker.pid for worker in workers]), "server_cpu_us": Meter([SERVER_PID])}
        began_s = time.perf_counter()
    wait_for_hits(n, timeout_s=DRAIN_TIMEOUT_S)
    wait_until_drained(queue)
    took_s = time.perf_counter() - began_s
    return {"tasks_per_s": n / took_s, **{name: meter.used_us() / n for name, meter in meters.items()}}


def drain(queue: Queue, case: Case, *, workers: int, slots: int = 0) -> Figures:
    queue.install()
    n = min(case.n, queue.n_max)
    with ready_workers(queue, workers, slots) as running:
        return {"n": n, **drained(queue, n, running, queue.submit_many)}


def bulk(queue: Queue, case: Case) -> Figures:
    queue.install()
    n = min(case.n, queue.n_max * 5)
    began_s = time.perf_counter()
    queue.submit_many(n)
    took_s = time.perf_counter() - began_s
    return {"n": n, "tasks_per_s": n / took_s, "missing": n - queue.open_rows()}


def latency(queue: Queue, case: Case) -> Figures:
    queue.install()
    with ready_workers(queue, 1):
        return harness.latency_between_processes(case.n, queue.submit)


def chain(queue: Queue, case: Case) -> Figures:
    """Time the starts of tasks that follow each other; a side too slow for all of them is judged by what it did."""
    queue.install()
    with ready_workers(queue, 1):
        queue.submit_chain(case.n)
        wait_until(lambda: harness.hit_count() >= case.n, timeout_s=CHAIN_TIMEOUT_S)
        hops = harness.hit_count()
        return {"n": hops, **harness.hop_figures(hops)} if hops > 1 else {"n": hops}


def snapshot(queue: AgingQueue, case: Case) -> Figures:
    """Drain on young tables; then beside a million finished rows and a snapshot older than the last 600,000 rows.

    A snapshot slows a queue down by what has died since it was taken, not by its age on a clock: so that many rows are
    written and deleted behind its back, which is what ten minutes at 1,000 tasks a second leave.
    """
    queue.install()
    n = min(case.n, queue.n_max)
    scale = min(1.0, case.n / 20_000)
    with ready_workers(queue, 1) as running, psycopg.connect(URL) as reader:
        again = partial(drained, queue, n, running, queue.submit_many)
        young = again()
        queue.add_finished(int(FINISHED_ROWS * scale))
        many = again()
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select count(*) from pg_class")  # the snapshot is taken by the first query
        queue.churn(int(CHURNED_ROWS * scale))
        old = again()
    drains = {"young": young, "finished_rows": many, "old_snapshot": old}
    figures = {f"{when}_{name}": value for when, drain in drains.items() for name, value in drain.items()}
    return {"n": n, "fall_percent": max(0.0, 100 * (1 - old["tasks_per_s"] / young["tasks_per_s"])), **figures}


def count(connection: psycopg.Connection, query: LiteralString) -> int:
    """Return the one number that a query gives."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def statements(server: psycopg.Connection, database: str) -> int:
    """Return the statements so far that clients sent, by pg_stat_statements."""
    count = (
        "select coalesce(sum(calls), 0) from pg_stat_statements s join pg_database d on d.oid = s.dbid"
        " where d.datname = %s and s.toplevel"
    )
    row = server.execute(count, (database,)).fetchone()
    assert row is not None
    return int(row[0])


def idle(queue: Queue, _: Case, *, workers: int = 1) -> Figures:
    """Watch worker processes with nothing to do, and the statements that they and the submitting process send."""
    database = URL.rsplit("/", 1)[1]
    with psycopg.connect(SERVER_URL, autocommit=True) as server:
        server.execute(f"alter database {database} set pg_stat_statements.track = 'top'".encode())
        queue.install()
        with ready_workers(queue, workers) as running:
            return _watched(server, database, [worker.pid for worker in running])


def _watched(server: psycopg.Connection, database: str, pids: Sequence[int]) -> Figures:
    assert statements(server, database) > 0
    time.sleep(SETTLE_S)
    before = statements(server, database)
    figures = harness.idle_figures(*pids, window_s=IDLE_WINDOW_S, tracing=False)
    took = statements(server, database) - before
    return {"statements_in_20_s": took, **figures}


def kill(queue: Queue, case: Case) -> Figures:
    """Kill one of two workers of this host with SIGKILL amid naps."""
    queue.install()
    n = min(case.n, queue.n_max // 4)
    with ready_workers(queue, 2, case.slots) as (victim, _):
        queue.submit_naps(range(n))
        return {"n": n, **harness.kill_figures(n, victim, lambda: queue.start_worker(case.slots))}


def memory(queue: Queue, _: Case) -> Figures:
    queue.install()
    with ready_workers(queue, 1) as (worker,):
        return {f"idle_{name}": value for name, value in harness.memory_mb(worker.pid).items()}


def side(queue: Queue) -> Side:
    """Return the answers that every queue can give."""
    return {
        "pg_drain": partial(drain, queue, workers=1),
        "pg_drain_two": partial(drain, queue, workers=2),
        "pg_drain_100": partial(drain, queue, workers=1, slots=100),
        "pg_bulk": partial(bulk, queue),
        "pg_latency": partial(latency, queue),
        "pg_chain": partial(chain, queue),
        "pg_idle": partial(idle, queue),
        "pg_kill": partial(kill, queue),
        "pg_memory": partial(memory, queue),
    }


def aging_side(queue: AgingQueue) -> Side:
    """Return the answers of a queue that can be made old."""
    return {**side(queue), "pg_snapshot": partial(snapshot, queue)}


def without_dependencies(answers: Side) -> Side:
    """Let a side without dependencies answer for them with its plain drain, which is less work."""
    return {**answers, "pg_drain_graph": answers["pg_drain"], "pg_drain_graph_two": answers["pg_drain_two"]}
