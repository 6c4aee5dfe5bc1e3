"""huey on SQLite: this process enqueues, `huey_consumer` with OS threads works. The durability is SQLite's own FULL.

In `throughput_async` and `throughput_sync` the consumer runs in this process, as sennit's worker does there.

huey deletes a task's row when a worker takes it, so a killed worker loses what it held: the `kill` case counts that.
"""
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import harness
from harness import NAP_MS_KILL, NAP_MS_WAITING, RUN_DIR, Figures, Side, Worker, wait_for_hits, wait_until
from huey import SqliteHuey, chord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cases import Case

N_MAX: Final = 3_000  # enough for 2 s; huey enqueues one task per commit

DATABASE: Final = RUN_DIR / "huey.db"
queue = SqliteHuey("bench", filename=str(DATABASE), timeout=30)


# A body returns a value that is not None and not 0: huey stores no result for None, and `then` passes it on.
@queue.task(name="noop")
def noop(task_id: int) -> int:
    return harness.noop(task_id) + 1


@queue.task(name="nap")
def nap(task_id: int, ms: float) -> int:
    return harness.nap(task_id, ms) + 1


@queue.task(name="join")
def join(_: list[int], task_id: int) -> int:
    return harness.noop(task_id) + 1


@queue.task(name="split")
def split(n: int) -> int:
    harness.noop(n + 1)
    queue.enqueue(chord([noop.s(i) for i in range(n)], join.s(task_id=n)))
    return 1


def start_consumer(slots: int) -> Worker:
    consumer = Path(sys.executable).with_name("huey_consumer")
    argv = [str(consumer), "peers.huey_peer.queue", "-k", "thread", "-w", str(slots), "-n", "-q"]
    return Worker([sys.executable, *argv])


@contextmanager
def ready_consumer(slots: int = 2) -> Iterator[Worker]:
    """Run a consumer that has done its first task; two OS threads were its fastest on two cores."""
    with start_consumer(slots) as worker:
        noop(-1)
        worker.wait_ready()
        wait_for_results(1)
        harness.clear_hits()
        yield worker


def wait_for_results(n: int) -> None:
    """Wait until n results are stored: huey's `recorded`."""
    with closing(sqlite3.connect(DATABASE, timeout=30)) as connection:

        def stored() -> int:
            return int(connection.execute("select count(*) from kv").fetchone()[0])

        if not wait_until(lambda: stored() >= n, timeout_s=harness.DRAIN_TIMEOUT_S):
            message = f"huey stored {stored()} of {n} results"
            raise TimeoutError(message)


@contextmanager
def consumer_here() -> Iterator[None]:
    """Run a consumer with two OS threads in this process; it has done its first task."""
    consumer = queue.create_consumer(workers=2)
    consumer.start()
    try:
        noop(-1)
        wait_for_results(1)
        harness.clear_hits()
        yield
    finally:
        consumer.stop(graceful=True)


@contextmanager
def two_ready_consumers(slots: int = 1) -> Iterator[tuple[Worker, Worker]]:
    """Run two consumer processes that have both worked; no result is stored."""
    with start_consumer(slots) as one, start_consumer(slots) as other:
        harness.wait_until_both_work(lambda: nap(-1, NAP_MS_KILL))
        time.sleep(0.1)  # the last results are stored after their bodies' last line
        queue.storage.flush_results()
        yield one, other


def drained(case: Case, stored_before: int = 0) -> Figures:
    """Submit no-ops to the consumers that are running and wait until all results are stored."""
    n = min(case.n, N_MAX)
    began_s = time.perf_counter()
    noop.map([(i,) for i in range(n)])
    wait_for_hits(n)
    wait_for_results(stored_before + n)
    return {"n": n, "tasks_per_s": n / (time.perf_counter() - began_s)}


def throughput_in_process(case: Case) -> Figures:
    with consumer_here():
        return drained(case, stored_before=1)


def throughput_worker(case: Case) -> Figures:
    with ready_consumer():
        return drained(case, stored_before=1)


def throughput_workers(case: Case) -> Figures:
    with two_ready_consumers():
        return drained(case)


def bulk(case: Case) -> Figures:
    n = min(case.n, N_MAX)
    began_s = time.perf_counter()
    noop.map([(i,) for i in range(n)])
    return {"n": n, "tasks_per_s": n / (time.perf_counter() - began_s)}


def latency(case: Case) -> Figures:
    with ready_consumer():
        return harness.latency_between_processes(case.n, lambda i: noop(i).get(blocking=True, timeout=30))


def chain(case: Case) -> Figures:
    pipeline: Any = noop.s(0)
    for _ in range(case.n - 1):
        pipeline = pipeline.then(noop)
    with ready_consumer():
        queue.enqueue(pipeline)
        wait_for_hits(case.n)
        return harness.hop_figures(case.n)


def fan(case: Case) -> Figures:
    with ready_consumer():
        since_ns = time.monotonic_ns()
        split(case.n)
        wait_for_hits(case.n + 2)
        return harness.join_figures(case.n, since_ns=since_ns)


def children(case: Case) -> Figures:
    with ready_consumer():
        split(case.n)
        wait_for_hits(case.n + 2)
        return harness.join_figures(case.n, since_ns=harness.first_starts()[case.n + 1])


def waiting(case: Case) -> Figures:
    nap.map([(i, NAP_MS_WAITING) for i in range(case.n)])
    with start_consumer(case.slots):
        wait_for_hits(2 * case.n)
        return harness.nap_figures(case.n, slots=case.slots, ms=NAP_MS_WAITING)


def kill(case: Case) -> Figures:
    with two_ready_consumers(case.slots) as (victim, _):
        nap.map([(i, NAP_MS_KILL) for i in range(case.n)])
        return harness.kill_figures(case.n, victim, lambda: start_consumer(case.slots))


def idle(case: Case) -> Figures:
    with ready_consumer(case.slots) as worker:
        time.sleep(1)
        return harness.idle_figures(worker.pid)


def memory(case: Case) -> Figures:
    with ready_consumer(case.slots) as worker:
        before = harness.memory_mb(worker.pid)
        for i in range(case.n):
            noop.schedule(args=(i,), delay=3600)
        moved = wait_until(lambda: len(queue.storage.enqueued_items(limit=1)) == 0, timeout_s=60, every_s=0.1)
        after = harness.memory_mb(worker.pid)
    if not moved:
        message = "huey's consumer did not take the delayed tasks within 60 s"
        raise TimeoutError(message)
    return harness.memory_figures(case.n, before, after)


SIDE: Final[Side] = {
    "throughput_async": throughput_in_process,  # huey has no async bodies; its OS threads are the comparison
    "throughput_sync": throughput_in_process,
    "throughput_worker": throughput_worker,
    "throughput_workers": throughput_workers,
    "bulk": bulk,
    "latency_processes": latency,
    "chain": chain,
    "fan": fan,
    "children": children,
    "waiting": waiting,
    "kill": kill,
    "idle": idle,
    "memory": memory,
}
