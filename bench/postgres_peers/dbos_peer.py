"""DBOS on PostgreSQL, default settings: a worker process, and a DBOSClient that enqueues.

A worker looks at its queue once a second (the default) and takes all that is there. A hop is a step of one workflow,
and a join is a workflow that waits for others, as its users write it. It has no bulk call for enqueueing.
"""
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import harness
import psycopg
from dbos import DBOS, DBOSClient
from harness import NAP_MS_KILL, Figures, Side, Worker, wait_for_hits
from postgres_cases import URL, count, ready_workers, side, without_dependencies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cases import Case

QUEUE: Final = "q"
VERSION: Final = "1"  # client and worker must agree, or the worker leaves the tasks alone
OPEN: Final = "select count(*) from dbos.workflow_status where status in ('ENQUEUED', 'PENDING')"


@DBOS.workflow(name="noop")
async def noop(task_id: int) -> int:
    return harness.noop(task_id)


@DBOS.workflow(name="nap")
async def nap(task_id: int) -> int:
    return await harness.async_nap(task_id, NAP_MS_KILL)


@DBOS.step()
def hop(task_id: int) -> int:
    return harness.noop(task_id)


@DBOS.workflow(name="chain_of_steps")
def chain_of_steps(n: int) -> None:
    for i in range(n):
        hop(i)


@DBOS.workflow(name="leaf")
def leaf(task_id: int) -> int:
    return harness.noop(task_id)


@DBOS.workflow(name="start_and_join")
def start_and_join(n: int) -> None:
    hop(n + 1)
    handles = [DBOS.start_workflow(leaf, i) for i in range(n)]
    for handle in handles:
        handle.get_result()
    hop(n)


class Dbos:
    n_max = 2_000

    def __init__(self) -> None:
        self._executors = 0

    def install(self) -> None:
        migrate = [sys.executable, str(Path(sys.executable).with_name("dbos")), "migrate", "-s", URL]
        subprocess.run(migrate, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._client = DBOSClient(system_database_url=URL, application_name="bench")
        self._look = psycopg.connect(URL, autocommit=True)

    def enqueue(self, workflow: str, *args: object) -> None:
        self._client.enqueue({"workflow_name": workflow, "queue_name": QUEUE, "app_version": VERSION}, *args)

    def submit(self, task_id: int) -> None:
        self.enqueue("noop", task_id)

    def submit_many(self, n: int) -> None:
        for i in range(n):
            self.enqueue("noop", i)

    def submit_naps(self, task_ids: Sequence[int]) -> None:
        for i in task_ids:
            self.enqueue("nap", i)

    def submit_chain(self, n: int) -> None:
        self.enqueue("chain_of_steps", n)

    def start_worker(self, slots: int) -> Worker:
        """Start executor 0, 1, …; a third takes the name of the first, without which it would take nothing over."""
        executor = self._executors % 2
        self._executors += 1
        return Worker([sys.executable, "-m", "postgres_peers.dbos_peer", str(slots), str(executor)])

    def open_rows(self) -> int:
        return count(self._look, OPEN)


def children(case: Case) -> Figures:
    queue = Dbos()
    queue.install()
    with ready_workers(queue, 1):
        queue.enqueue("start_and_join", case.n)
        wait_for_hits(case.n + 2)
        return harness.join_figures(case.n, since_ns=harness.first_starts()[case.n + 1])


def work(slots: int, executor: str) -> None:
    """Be a worker process until killed."""
    DBOS(
        config={
            "name": "bench",
            "system_database_url": URL,
            "log_level": "ERROR",
            "application_version": VERSION,
            "executor_id": executor,
            "max_executor_threads": 2000,
        }
    )
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=slots or None, on_conflict="always_update")
    threading.Event().wait()


SIDE: Final[Side] = {**without_dependencies(side(Dbos())), "pg_children": children}

if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
