"""Procrastinate with psycopg's async pool and LISTEN/NOTIFY.

Jobs have no results and no dependencies; a job that has ended keeps its row. A hop is a job that defers the next one.
"""
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, Final

import harness
import procrastinate
import psycopg
from harness import NAP_MS_KILL, Side, Worker
from postgres_cases import URL, count, side, without_dependencies

if TYPE_CHECKING:
    from collections.abc import Sequence

CONCURRENCY: Final = int(os.environ.get("BENCH_CONCURRENCY", "20"))
OPEN: Final = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"

logging.getLogger("procrastinate").setLevel(logging.ERROR)
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=URL, min_size=2, max_size=20))


@app.task(name="noop")
async def noop(task_id: int) -> int:
    return harness.noop(task_id)


@app.task(name="nap")
async def nap(task_id: int) -> int:
    return await harness.async_nap(task_id, NAP_MS_KILL)


@app.task(name="hop")
async def hop(task_id: int, n: int) -> None:
    harness.noop(task_id)
    if task_id + 1 < n:
        await hop.defer_async(task_id=task_id + 1, n=n)


class Procrastinate:
    n_max = 1_000

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def install(self) -> None:
        self._loop.run_until_complete(app.open_async())
        self._loop.run_until_complete(app.schema_manager.apply_schema_async())
        self._look = psycopg.connect(URL, autocommit=True)

    def submit(self, task_id: int) -> None:
        self._loop.run_until_complete(noop.defer_async(task_id=task_id))

    def submit_many(self, n: int) -> None:
        self._loop.run_until_complete(noop.batch_defer_async(*({"task_id": i} for i in range(n))))

    def submit_naps(self, task_ids: Sequence[int]) -> None:
        self._loop.run_until_complete(nap.batch_defer_async(*({"task_id": i} for i in task_ids)))

    def submit_chain(self, n: int) -> None:
        self._loop.run_until_complete(hop.defer_async(task_id=0, n=n))

    def start_worker(self, slots: int) -> Worker:
        return Worker([sys.executable, "-m", "postgres_peers.procrastinate_peer", str(slots or CONCURRENCY)])

    def open_rows(self) -> int:
        return count(self._look, OPEN)


async def work(slots: int) -> None:
    """Be a worker process until killed."""
    async with app.open_async():
        await app.run_worker_async(concurrency=slots, wait=True)


SIDE: Final[Side] = without_dependencies(side(Procrastinate()))

if __name__ == "__main__":
    asyncio.run(work(int(sys.argv[1])))
