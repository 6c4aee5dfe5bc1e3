"""How fast a lock goes from one process to the next: SQLite, PostgreSQL (fsync on) and Redis, with 2, 8 and 32 who want it.

    python bench/locks.py [--seconds 3] [--only sqlite postgres redis]

Everybody takes the lock, lets go and takes it again, so that somebody always waits. A hand-over is from the moment in which
the holder calls `release` to the moment in which the next one's `acquire` has returned, in another process; all clocks are
that of this machine. Who wants it is spread over at most eight processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Final

from sennit.store.leases import Locks
from sennit.store.postgres import PostgresStore
from sennit.store.protocol import Store
from sennit.store.sqlite import SqliteStore
from sennit.sync.clock import uptime_us
from sennit.testing.servers import PostgresServer, RedisServer

PROCESSES_MAX: Final = 8
WANTED: Final = (2, 8, 32)
Turn = tuple[int, int, int, int]  # token, acquired, released (µs of uptime), pid


def open_store(url: str) -> Store:
    return PostgresStore(url) if url.startswith("postgresql://") else SqliteStore(url)


async def take_turns(url: str, redis: str, n: int, seconds: float) -> list[Turn]:
    """Be `n` of those who want it."""
    store = open_store(url)
    locks = Locks(lambda: store, lambda: redis)
    lock = locks.lock("bench", ttl_s=60, backend=None, purpose="")
    turns: list[Turn] = []
    await (await lock.acquire()).release()  # connections are open
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    end_us = uptime_us() + round(seconds * 1e6)

    async def want() -> None:
        while uptime_us() < end_us:
            lease = await lock.acquire()
            acquired_us = uptime_us()
            turns.append((lease.token, acquired_us, uptime_us(), os.getpid()))
            await lease.release()

    await asyncio.gather(*(want() for _ in range(n)))
    await asyncio.to_thread(locks.close)
    await asyncio.to_thread(store.close)
    return turns


def measure(url: str, redis: str, n: int, seconds: float) -> tuple[list[float], float]:
    """Return how long hand-overs between processes took, in ms, and turns per second."""
    processes = min(n, PROCESSES_MAX)
    argv = [sys.executable, __file__, "--take", url, redis, str(n // processes), "--seconds", str(seconds)]
    running = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    turns: list[Turn] = sorted(tuple(turn) for process in running for turn in json.loads(process.communicate()[0]))
    if any(a[2] > b[1] for a, b in pairwise(turns)):
        raise AssertionError("two held it at once")
    handed_ms = [(b[1] - a[2]) / 1e3 for a, b in pairwise(turns) if a[3] != b[3]]
    span_s = (turns[-1][2] - turns[0][1]) / 1e6
    return handed_ms, len(turns) / span_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", nargs="*", default=["sqlite", "postgres", "redis"])
    parser.add_argument("--take", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.take:
        url, redis, n = given.take
        print(json.dumps(asyncio.run(take_turns(url, redis, int(n), given.seconds))))
        return
    print(f"{'backend':<10}{'want it':>8}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'turns/s':>9}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for kind in given.only:
            url, redis = str(folder / "locks.db"), ""
            if kind == "postgres":
                url = stack.enter_context(PostgresServer(fsync=True)).create_database("locks")
            elif kind == "redis":
                redis = stack.enter_context(RedisServer(durable=True, settings={"appendfsync": "everysec"})).url
            open_store(url).close()
            for n in WANTED:
                handed_ms, rate = measure(url, redis, n, given.seconds)
                cuts = statistics.quantiles(handed_ms, n=100, method="inclusive")
                p50, p99 = cuts[49], cuts[98]
                print(f"{kind:<10}{n:>8}{p50:>9.2f}{p99:>9.2f}{max(handed_ms):>9.2f}{rate:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
