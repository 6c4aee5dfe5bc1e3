"""PgQueuer at its best setting on two cores: uvloop, a pool of asyncpg connections, 1,000 jobs per dequeue.

Found by trial, one worker process, 20,000 to 40,000 no-op jobs, jobs a second in the best of three:
batch 100: 12,400; 500: 14,300; 1,000: 14,100; 1,000 with uvloop and a pool: 17,100; 2,000: 14,500; psycopg: 3,100.

Its jobs have no results and no dependencies: of a job that has ended a line in a log table is left. A hop is a job that
enqueues the next one. Where slots are asked for, it gets so many, and the largest batch that it allows beside them.
"""
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import harness
import psycopg
import uvloop
from harness import NAP_MS_KILL, Side, Worker
from pgqueuer import AsyncpgDriver, AsyncpgPoolDriver, PgQueuer, Queries
from postgres_cases import URL, aging_side, count, without_dependencies

if TYPE_CHECKING:
    from collections.abc import Sequence

POOL: Final = 4
BATCH: Final = 1000


class Pgqueuer:
    n_max = 40_000

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def install(self) -> None:
        connection = self._loop.run_until_complete(asyncpg.connect(URL))
        self._queries = Queries(AsyncpgDriver(connection))
        self._loop.run_until_complete(self._queries.install())
        self._look = psycopg.connect(URL, autocommit=True)

    def _enqueue(self, entrypoint: str, payloads: list[bytes]) -> None:
        n = len(payloads)
        self._loop.run_until_complete(self._queries.enqueue([entrypoint] * n, payloads, [0] * n))

    def submit(self, task_id: int) -> None:
        self._enqueue("noop", [b"%d" % task_id])

    def submit_many(self, n: int) -> None:
        self._enqueue("noop", [b"%d" % i for i in range(n)])

    def submit_naps(self, task_ids: Sequence[int]) -> None:
        self._enqueue("nap", [b"%d" % i for i in task_ids])

    def submit_chain(self, n: int) -> None:
        self._enqueue("hop", [b"0 %d" % n])

    def start_worker(self, slots: int) -> Worker:
        return Worker([sys.executable, "-m", "postgres_peers.pgqueuer_peer", str(slots)])

    def open_rows(self) -> int:
        return count(self._look, "select count(*) from pgqueuer")

    def add_finished(self, rows: int) -> None:
        self._look.execute(
            "insert into pgqueuer_log(job_id, status, priority, entrypoint, aggregated)"
            " select -i, 'successful', 0, 'noop', true from generate_series(1, %s) i",
            (rows,),
        )

    def churn(self, rows: int) -> None:
        self._look.execute(
            "insert into pgqueuer(priority, status, entrypoint, payload)"
            " select 0, 'queued', 'dead', 'x' from generate_series(1, %s)",
            (rows,),
        )
        self._look.execute("delete from pgqueuer where entrypoint = 'dead'")


async def work(slots: int) -> None:
    """Be a worker process until killed."""
    pool = await asyncpg.create_pool(URL, min_size=POOL, max_size=POOL)
    queue = PgQueuer(AsyncpgPoolDriver(pool))
    sender = Queries(AsyncpgDriver(await asyncpg.connect(URL)))

    @queue.entrypoint("noop")
    async def noop(job: Any) -> None:
        harness.noop(int(job.payload))

    @queue.entrypoint("nap")
    async def nap(job: Any) -> None:
        await harness.async_nap(int(job.payload), NAP_MS_KILL)

    @queue.entrypoint("hop")
    async def hop(job: Any) -> None:
        task_id, n = map(int, job.payload.split())
        harness.noop(task_id)
        if task_id + 1 < n:
            await sender.enqueue("hop", b"%d %d" % (task_id + 1, n))

    await queue.run(batch_size=slots // 2 or BATCH, max_concurrent_tasks=slots or None)


SIDE: Final[Side] = without_dependencies(aging_side(Pgqueuer()))

if __name__ == "__main__":
    uvloop.run(work(int(sys.argv[1])))
