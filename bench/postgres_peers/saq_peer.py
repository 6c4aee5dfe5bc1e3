"""SAQ on PostgreSQL: asyncio, psycopg's async pool, LISTEN/NOTIFY.

It has no bulk call: many jobs are enqueued concurrently. A hop is a job that enqueues the next one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import harness
import psycopg
import saq
from harness import NAP_MS_KILL, Side, Worker
from postgres_cases import URL, count, side, without_dependencies

if TYPE_CHECKING:
    from collections.abc import Sequence

CONCURRENCY: Final = int(os.environ.get("BENCH_CONCURRENCY", "5"))
AT_ONCE: Final = 200
OPEN: Final = "select count(*) from saq_jobs where status in ('new', 'queued', 'active')"

logging.getLogger("saq").setLevel(logging.ERROR)


async def noop(_: dict[str, Any], *, task_id: int) -> int:
    return harness.noop(task_id)


async def nap(_: dict[str, Any], *, task_id: int) -> int:
    return await harness.async_nap(task_id, NAP_MS_KILL)


async def hop(context: dict[str, Any], *, task_id: int, n: int) -> None:
    harness.noop(task_id)
    if task_id + 1 < n:
        await context["worker"].queue.enqueue("hop", task_id=task_id + 1, n=n)


class Saq:
    n_max = 3_000

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def install(self) -> None:
        async def connect() -> None:
            self._queue = saq.Queue.from_url(URL)
            await self._queue.connect()

        self._loop.run_until_complete(connect())
        self._look = psycopg.connect(URL, autocommit=True)

    def _enqueue(self, function: str, task_ids: Sequence[int]) -> None:
        async def enqueue() -> None:
            for at in range(0, len(task_ids), AT_ONCE):
                some = task_ids[at : at + AT_ONCE]
                await asyncio.gather(*(self._queue.enqueue(function, task_id=i, timeout=60) for i in some))

        self._loop.run_until_complete(enqueue())

    def submit(self, task_id: int) -> None:
        self._enqueue("noop", [task_id])

    def submit_many(self, n: int) -> None:
        self._enqueue("noop", range(n))

    def submit_naps(self, task_ids: Sequence[int]) -> None:
        self._enqueue("nap", task_ids)

    def submit_chain(self, n: int) -> None:
        self._loop.run_until_complete(self._queue.enqueue("hop", task_id=0, n=n))

    def start_worker(self, slots: int) -> Worker:
        return Worker([sys.executable, "-m", "postgres_peers.saq_peer", str(slots or CONCURRENCY)])

    def open_rows(self) -> int:
        return count(self._look, OPEN)


async def work(slots: int) -> None:
    """Be a worker process until killed."""
    queue = saq.Queue.from_url(URL)
    await queue.connect()
    await saq.Worker(queue, functions=[noop, nap, hop], concurrency=slots).start()


SIDE: Final[Side] = without_dependencies(side(Saq()))

if __name__ == "__main__":
    asyncio.run(work(int(sys.argv[1])))
