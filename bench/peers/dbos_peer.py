"""DBOS on SQLite, default settings: workflows in this process, or enqueued by a DBOSClient for a worker process.

A worker looks at its queue once a second (the default), and takes at most its `worker_concurrency` each time. A task
is a workflow; where DBOS has two ways (start in process, or enqueue), a case uses the one that compares like with like.
"""
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import harness
from dbos import DBOS, DBOSClient
from harness import END, NAP_MS_KILL, NAP_MS_WAITING, RUN_DIR, START, Figures, Side, Worker, wait_for_hits, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cases import Case

N_MAX: Final = 500  # it runs 60 to 500 workflows a second
DATABASE: Final = RUN_DIR / "dbos.sqlite"
URL: Final = f"sqlite:///{DATABASE}"
QUEUE: Final = "q"
VERSION: Final = "1"  # client and worker must agree, or the worker leaves the tasks alone


@DBOS.workflow(name="noop")
def noop(task_id: int) -> int:
    return harness.noop(task_id)


@DBOS.workflow(name="async_nap")
async def async_nap(task_id: int, ms: float) -> int:
    return await harness.async_nap(task_id, ms)


@DBOS.step()
def hop(task_id: int) -> int:
    return harness.noop(task_id)


@DBOS.step()
def echo(value: int) -> int:
    return value


@DBOS.workflow(name="chain_of_steps")
def chain_of_steps(n: int) -> None:
    for i in range(n):
        hop(i)


@DBOS.workflow(name="fan_out_and_in")
def fan_out_and_in(n: int) -> None:
    hop(n + 1)
    handles = [DBOS.enqueue_workflow(QUEUE, noop, i) for i in range(n)]
    for handle in handles:
        handle.get_result()
    hop(n)


@DBOS.workflow(name="start_and_join")
def start_and_join(n: int) -> None:
    hop(n + 1)
    handles = [DBOS.start_workflow(noop, i) for i in range(n)]
    for handle in handles:
        handle.get_result()
    hop(n)


@DBOS.workflow(name="many_steps")
def many_steps(n: int) -> None:
    harness.hit(0, START)
    for i in range(n):
        echo(i)
    harness.hit(0, END)


def launch(worker_concurrency: int | None = None, executor: str = "local") -> None:
    """Start DBOS in this process; at its start an executor takes up what an earlier one of its name has left."""
    DBOS(
        config={
            "name": "bench",
            "system_database_url": URL,
            "log_level": "WARNING",
            "application_version": VERSION,
            "executor_id": executor,
            "max_executor_threads": 2000,
        }
    )
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=worker_concurrency, on_conflict="always_update")


def work(worker_concurrency: int | None, executor: str) -> None:
    """Be a worker process until killed."""
    launch(worker_concurrency, executor)
    threading.Event().wait()


@contextmanager
def launched() -> Iterator[None]:
    """Run DBOS in this process, warm."""
    launch()
    try:
        DBOS.start_workflow(noop, -1).get_result()
        harness.clear_hits()
        yield
    finally:
        DBOS.destroy()


class Client:
    """Another process's view: enqueues, and counts what is not finished."""

    def __init__(self) -> None:
        migrate = [sys.executable, str(Path(sys.executable).with_name("dbos")), "migrate", "-s", URL]
        subprocess.run(migrate, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._client = DBOSClient(system_database_url=URL, application_name="bench", use_listen_notify=False)

    def enqueue(self, workflow: str, *args: object, **options: object) -> Any:
        fields = {"workflow_name": workflow, "queue_name": QUEUE, "app_version": VERSION, **options}
        return self._client.enqueue(fields, *args)

    def wait_until_finished(self) -> None:
        """Wait until nothing is queued or pending: DBOS's `recorded`."""
        count = "select count(*) from workflow_status where status in ('ENQUEUED', 'PENDING')"
        with closing(sqlite3.connect(DATABASE, timeout=30)) as connection:
            if not wait_until(lambda: connection.execute(count).fetchone() == (0,), timeout_s=harness.DRAIN_TIMEOUT_S):
                message = "DBOS did not finish its workflows"
                raise TimeoutError(message)


def start_worker(worker_concurrency: int | None = None, executor: str = "local") -> Worker:
    script = f"from peers import dbos_peer; dbos_peer.work({worker_concurrency}, {executor!r})"
    return Worker([sys.executable, "-c", script])


@contextmanager
def ready_worker(client: Client) -> Iterator[Worker]:
    """Run a worker that has done its first task, without a limit of its own: one look takes all that is queued."""
    with start_worker() as worker:
        client.enqueue("noop", -1)
        worker.wait_ready()
        client.wait_until_finished()
        harness.clear_hits()
        yield worker


def throughput_in_process(case: Case) -> Figures:
    n = min(case.n, N_MAX)
    with launched():
        began_s = time.perf_counter()
        handles = [DBOS.start_workflow(noop, i) for i in range(n)]
        for handle in handles:
            handle.get_result()
        return {"n": n, "tasks_per_s": n / (time.perf_counter() - began_s)}


@contextmanager
def two_ready_workers(client: Client, worker_concurrency: int | None = None) -> Iterator[tuple[Worker, Worker]]:
    """Run two workers, executors `one` and `two`, that have both worked."""
    with start_worker(worker_concurrency, "one") as one, start_worker(worker_concurrency, "two") as two:
        harness.wait_until_both_work(lambda: client.enqueue("async_nap", -1, NAP_MS_KILL))
        client.wait_until_finished()
        yield one, two


def drained(case: Case, client: Client) -> Figures:
    """Enqueue no-ops for the workers that are running and wait until all have finished."""
    n = min(case.n, N_MAX)
    began_s = time.perf_counter()
    for i in range(n):
        client.enqueue("noop", i)
    wait_for_hits(n)
    client.wait_until_finished()
    return {"n": n, "tasks_per_s": n / (time.perf_counter() - began_s)}


def throughput_worker(case: Case) -> Figures:
    client = Client()
    with ready_worker(client):
        return drained(case, client)


def throughput_workers(case: Case) -> Figures:
    client = Client()
    with two_ready_workers(client):
        return drained(case, client)


def bulk(case: Case) -> Figures:
    n = min(case.n, N_MAX)
    client = Client()
    began_s = time.perf_counter()
    for i in range(n):
        client.enqueue("noop", i)
    return {"n": n, "tasks_per_s": n / (time.perf_counter() - began_s)}


def latency_in_process(case: Case) -> Figures:
    with launched():
        sent_ns: list[int] = []
        done_ns: list[int] = []
        for i, pause_s in enumerate(harness.pauses_s(case.n)):
            time.sleep(pause_s)
            sent_ns.append(time.monotonic_ns())
            DBOS.start_workflow(noop, i).get_result()
            done_ns.append(time.monotonic_ns())
        return harness.start_figures(sent_ns, done_ns)


def latency_between_processes(case: Case) -> Figures:
    client = Client()
    with ready_worker(client):
        return harness.latency_between_processes(case.n, lambda i: client.enqueue("noop", i))


def chain(case: Case) -> Figures:
    """Run the steps of one workflow: DBOS has no dependencies between workflows."""
    with launched():
        DBOS.start_workflow(chain_of_steps, case.n).get_result()
        return harness.hop_figures(case.n)


def fan(case: Case) -> Figures:
    client = Client()
    with ready_worker(client):
        since_ns = time.monotonic_ns()
        client.enqueue("fan_out_and_in", case.n)
        wait_for_hits(case.n + 2)
        return harness.join_figures(case.n, since_ns=since_ns)


def children(case: Case) -> Figures:
    with launched():
        DBOS.start_workflow(start_and_join, case.n).get_result()
        return harness.join_figures(case.n, since_ns=harness.first_starts()[case.n + 1])


def step(case: Case) -> Figures:
    with launched():
        DBOS.start_workflow(many_steps, case.n).get_result()
        start, end = harness.hits()
        return {"in_order_ms": (end.at_ns - start.at_ns) / 1e6 / case.n}


def waiting(case: Case) -> Figures:
    n = min(case.n, N_MAX)
    client = Client()
    for i in range(n):
        client.enqueue("async_nap", i, NAP_MS_WAITING)
    with start_worker(case.slots):
        wait_for_hits(2 * n)
        return harness.nap_figures(n, slots=case.slots, ms=NAP_MS_WAITING)


def kill(case: Case) -> Figures:
    """Ten at once means ten a second here: fewer tasks, so that half of them are done before the kill.

    The third worker bears the victim's name: only so does it take up what the victim held.
    """
    n = min(case.n, 120)
    client = Client()
    with two_ready_workers(client, case.slots) as (victim, _):
        for i in range(n):
            client.enqueue("async_nap", i, NAP_MS_KILL)
        return {"n": n, **harness.kill_figures(n, victim, lambda: start_worker(case.slots, "one"))}


def idle(_: Case) -> Figures:
    with ready_worker(Client()) as worker:
        time.sleep(1)
        return harness.idle_figures(worker.pid)


def memory(case: Case) -> Figures:
    n = min(case.n, 4 * N_MAX)
    client = Client()
    with ready_worker(client) as worker:
        before = harness.memory_mb(worker.pid)
        for i in range(n):
            client.enqueue("noop", i, delay_seconds=3600)
        time.sleep(1.5)  # one more look at the queue
        return harness.memory_figures(n, before, harness.memory_mb(worker.pid))


SIDE: Final[Side] = {
    "throughput_async": throughput_in_process,
    "throughput_sync": throughput_in_process,
    "throughput_worker": throughput_worker,
    "throughput_workers": throughput_workers,
    "bulk": bulk,
    "latency_full": latency_in_process,
    "latency_processes": latency_between_processes,
    "chain": chain,
    "fan": fan,
    "children": children,
    "step": step,
    "waiting": waiting,
    "kill": kill,
    "idle": idle,
    "memory": memory,
}
