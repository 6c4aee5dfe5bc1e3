"""Claiming ahead, measured: work of very uneven length over two processes, and a plain drain, with and without it.

    python bench/stealing.py                      SQLite
    python bench/stealing.py --postgres           the drains on PostgreSQL, too (a server of our own, fsync on)

Rounds are interleaved: each goes through all variants before the next begins; the table has medians. `no stealing` is
the same store with the one move taken out (`moves.ahead.steal`), in that process only: it shows what holding costs alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple

from sennit import App
from sennit.store.moves import ahead
from sennit.testing.servers import PostgresServer

VARIANTS_UNEVEN: Final = ((0, True), (8, True), (32, True), (128, True), (8, False), (32, False), (128, False))
VARIANTS_DRAIN: Final = (0, 8, 32, 200)
HEAP: Final = 320
SLOTS: Final = 4
SLOTS_DRAIN: Final = 100
MS: Final = (4.0, 40.0, 400.0)  # of 85, 10 and 5 in a hundred
FULL_MS: Final = 500.0


class Figures(NamedTuple):
    """What one run took, and the CPU of all its worker processes."""

    seconds: float
    cpu_s: float


def handlers(app: App) -> tuple[Any, Any]:
    """Register the bodies."""

    @app.task(name="nap")
    async def nap(ms: float) -> None:
        await asyncio.sleep(ms / 1000)

    @app.task(name="noop")
    async def noop(n: int) -> int:
        return n

    return nap, noop


def worker() -> None:
    """Work until stdin ends; then say how much CPU it took."""
    if os.environ.get("BENCH_NO_STEALING"):
        setattr(ahead, "steal", lambda *_args, **_options: [])  # noqa: B010 - a broken store, on purpose

    async def main() -> None:
        app = App()
        handlers(app)
        async with app:
            print("ready", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        print(json.dumps(sum(os.times()[:2])), flush=True)

    asyncio.run(main())


@contextmanager
def working(url: str, *, slots: int, claim_ahead: int, steals: bool) -> Iterator[subprocess.Popen[str]]:
    """Start a worker process; `ready` has been read."""
    environ = {
        "SENNIT_DB": url, "SENNIT_SLOTS": str(slots), "SENNIT_CLAIM_AHEAD": str(claim_ahead),
        "BENCH_NO_STEALING": "" if steals else "1",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, __file__, "--worker"], env=os.environ | environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.communicate()


def stopped(process: subprocess.Popen[str]) -> float:
    """Stop a worker; return its CPU seconds."""
    return float(process.communicate()[0].splitlines()[-1])


def uneven(url: str, *, claim_ahead: int, steals: bool, seed: int) -> Figures:
    """Let two processes be full; hand in a heap of uneven naps, which they share as they become free."""
    draw = random.Random(seed)
    app = App(url)
    nap, _ = handlers(app)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(working(url, slots=SLOTS, claim_ahead=claim_ahead, steals=steals)) for _ in range(2)
        ]
        nap.map([FULL_MS] * (2 * SLOTS))
        handles = nap.map(draw.choices(MS, (85, 10, 5), k=HEAP))
        app.store.log([]).result()
        for watch in [app.store.watch(handle.id) for handle in handles]:
            watch.result(60)
        cpu_s = sum(stopped(process) for process in workers)
    views = app.store.tasks(limit=HEAP).result()
    took_us = max(view.done_us or 0 for view in views) - min(view.started_us or 0 for view in views)
    app.close()
    return Figures(took_us / 1_000_000, cpu_s)


def drain(url: str, *, n: int, claim_ahead: int) -> Figures:
    """Hand in n no-ops, then start one process; from the first start to the last end, as the store has it."""
    app = App(url)
    _, noop = handlers(app)
    last = noop.map(range(n))[-1]
    app.store.log([]).result()
    with working(url, slots=SLOTS_DRAIN, claim_ahead=claim_ahead, steals=True) as process:
        last.result(120)
        cpu_s = stopped(process)
    views = app.store.tasks(limit=n).result()
    took_us = max(view.done_us or 0 for view in views) - min(view.started_us or 0 for view in views)
    app.close()
    return Figures(took_us / 1_000_000, cpu_s)


def median(runs: list[Figures]) -> Figures:
    """Return the median of each."""
    return Figures(*(statistics.median(column) for column in zip(*runs, strict=True)))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n", type=int, default=20_000)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder, ExitStack() as stack:
        fresh = (f"sqlite:///{folder}/{k}.db" for k in range(10_000))
        runs: dict[str, list[Figures]] = {}
        for k in range(options.rounds):
            for n_ahead, steals in VARIANTS_UNEVEN:
                name = f"uneven, two processes, claim_ahead {n_ahead}" + ("" if steals else ", no stealing")
                runs.setdefault(name, []).append(uneven(next(fresh), claim_ahead=n_ahead, steals=steals, seed=k))
            for n_ahead in VARIANTS_DRAIN:
                name = f"drain, SQLite, claim_ahead {n_ahead}"
                runs.setdefault(name, []).append(drain(next(fresh), n=options.n, claim_ahead=n_ahead))
        if options.postgres:
            server = stack.enter_context(PostgresServer(fsync=True))
            for k in range(options.rounds):
                for n_ahead in VARIANTS_DRAIN:
                    url = server.create_database(f"bench_{k}_{n_ahead}")
                    name = f"drain, PostgreSQL, claim_ahead {n_ahead}"
                    runs.setdefault(name, []).append(drain(url, n=options.n, claim_ahead=n_ahead))
        for name, found in runs.items():
            figures = median(found)
            rate = f"{options.n / figures.seconds:8.0f}/s" if name.startswith("drain") else ""
            print(f"{name:60} {figures.seconds:7.3f} s {rate:>12} {figures.cpu_s:7.2f} CPU s")


if __name__ == "__main__":
    main()
