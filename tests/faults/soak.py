"""Random faults for as long as you like: workers killed and frozen, the server killed, connections cut, reset and half-dead.

    waves of small graphs ──► 4 workers ──► a proxy for each ──► PostgreSQL (fsync on)
                                  ▲              ▲                   ▲
    faults, one after the other: kill, freeze   partition, reset …   kill, freeze

    python3 -m tests.faults.soak --minutes 10 [--faults 50] [--seed N]

At the end every result must be right, and the histories of all processes are looked through (`tools.check_history`).
Two workers think that they share a host, the others have none in common with anybody.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from statistics import median

from sennit.errors import ResultTimeout
from sennit.testing.faultproxy import FaultProxy
from sennit.testing.servers import PostgresServer
from tests.crash import test_kill as kills
from tests.crash.fleet import Fleet, client, fleet
from tests.crash.nursery import Forked, Nursery
from tests.faults.tools import check_history, proxy_of, through
from tests.servers import postgres_programs

WORKERS = 4
LEASE_S = 2.0
LAST_S = 120.0  # for what is under way when the last fault is over


LEFT = (
    (
        "processes",
        "SELECT id, bell <> '', hears, (expire_us - sennit_now_us()) / 1000 AS left_ms, pid, info FROM sennit_worker",
    ),
    ("running", "SELECT * FROM sennit_running"),
    ("ready", "SELECT * FROM sennit_ready"),
    ("waiting", "SELECT * FROM sennit_waiting"),
    ("timers", "SELECT * FROM sennit_timer"),
    ("live", "SELECT id, handler, attempt, parents FROM sennit_task WHERE state = 0"),
    ("stops", "SELECT * FROM sennit_stop"),
    (
        "sessions",
        "SELECT pid, state, wait_event, now() - state_change, left(query, 80) FROM pg_stat_activity WHERE datname = 'soak'",
    ),
)


@dataclass
class Place:
    """One worker process, its way to the server, and its host."""

    proxy: FaultProxy
    environ: dict[str, str]
    process: Forked


@dataclass
class Figures:
    """What came of it."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    lasted_s: float = 0.0
    tasks: int = 0
    crashed: int = 0
    refused: int = 0
    again_s: list[float] = field(default_factory=list)  # from the start of an attempt that was cut to the next one's

    def __str__(self) -> str:
        faults = ", ".join(f"{n} {name}" for name, n in sorted(self.faults.items()))
        times = f"median {median(self.again_s):.2f} s, worst {max(self.again_s):.2f} s" if self.again_s else "none"
        return (
            f"seed {self.seed}: {self.faults.total()} faults in {self.lasted_s:.0f} s ({faults}); {self.tasks} tasks, "
            f"{self.crashed} attempts cut, {self.refused} late writes refused; 0 lost, 0 accepted twice; "
            f"from the start of a cut attempt to that of the next: {times}"
        )


class Soak:
    """A fleet and what happens to it.

    Args:
        pace_s: between the beginnings of two faults, on the average.
    """

    def __init__(self, stack: ExitStack, nursery: Nursery, *, seed: int, pace_s: float) -> None:
        self.random = Random(seed)
        self.figures = Figures(seed)
        self.pace_s = pace_s
        self.nursery = nursery
        self.server = stack.enter_context(PostgresServer(fsync=True, programs=postgres_programs()))
        self.url = self.server.create_database("soak")
        self.workers: Fleet = stack.enter_context(
            fleet(self.url, SENNIT_DURABILITY="full", SENNIT_LEASE_S=str(LEASE_S))
        )
        shared = stack.enter_context(tempfile.TemporaryDirectory())
        self.places = []
        for n in range(WORKERS):
            host = shared if n < 2 else stack.enter_context(tempfile.TemporaryDirectory())
            proxy = stack.enter_context(proxy_of(self.url))
            environ = {"SENNIT_DB": through(proxy, self.url), "TMPDIR": host}
            self.places.append(Place(proxy, environ, self.workers.fork(nursery, **environ)))
        self.workers.journal.wait_ready(*[place.process for place in self.places])
        self.faults: list[Callable[[], None]] = [
            self.kill_worker, self.freeze_worker, self.kill_server, self.freeze_server, self.partition, self.reset,
            self.half_open, self.slow,
        ]  # fmt: skip

    def run(self, n: int) -> Figures:
        """Let `n` faults happen while waves of tasks go through, and check what came of it."""
        begun_s = time.monotonic()
        at = client(self.url, durability="full")
        waves = kills.Waves(at)
        for fault in self.choose(n):
            time.sleep(self.random.uniform(0.2, 1.8) * self.pace_s)
            self.figures.faults[fault.__name__.replace("_", " ")] += 1
            fault()
        waves.stop()
        try:
            results = [handle.result(LAST_S) for handle in waves.handles]
        except ResultTimeout as error:
            error.add_note(self.describe())
            raise
        assert results == waves.expected
        check_history(at.app, self.workers)
        ledger = at.app.ledger().result()
        at.app.close()
        self.figures.tasks, self.figures.crashed, self.figures.refused = (
            ledger.submitted,
            ledger.crashed,
            ledger.refused,
        )
        self.figures.again_s = again_s(self.workers)
        self.figures.lasted_s = time.monotonic() - begun_s
        return self.figures

    def describe(self) -> str:
        """Return what the server knows of what has not ended, for whoever looks for the cause."""
        return "\n".join(
            f"{title}\n  " + "\n  ".join(map(str, self.server.query(sql, database="soak"))) for title, sql in LEFT
        )

    def choose(self, n: int) -> Sequence[Callable[[], None]]:
        """Return faults in random order, each about as often as the others."""
        rounds = [self.random.sample(self.faults, len(self.faults)) for _ in range(-(-n // len(self.faults)))]
        return [fault for some in rounds for fault in some][:n]

    def somebody(self) -> Place:
        return self.random.choice(self.places)

    def for_a_while(self) -> None:
        """Shorter than a lease, or longer."""
        time.sleep(self.random.uniform(0.1, 2.0) * LEASE_S)

    # ------------------------------------------------------------ faults

    def kill_worker(self) -> None:
        place = self.somebody()
        place.process.kill()
        place.process = self.workers.fork(self.nursery, **place.environ)

    def freeze_worker(self) -> None:
        pid = self.somebody().process.pid
        os.kill(pid, signal.SIGSTOP)
        self.for_a_while()
        os.kill(pid, signal.SIGCONT)

    def kill_server(self) -> None:
        self.server.kill()
        self.server.start()

    def freeze_server(self) -> None:
        self.server.freeze()
        time.sleep(self.random.uniform(0.1, 0.6) * LEASE_S)
        self.server.thaw()

    def partition(self) -> None:
        proxy = self.somebody().proxy
        proxy.drop("both")
        self.for_a_while()
        proxy.heal()

    def half_open(self) -> None:
        """One direction is dead; then the connections break with all that was held back."""
        proxy = self.somebody().proxy
        proxy.drop(self.random.choice(["to_server", "to_client"]))
        self.for_a_while()
        proxy.refuse()
        proxy.reset()
        proxy.heal()

    def reset(self) -> None:
        self.somebody().proxy.reset()

    def slow(self) -> None:
        proxy = self.somebody().proxy
        proxy.delay(self.random.uniform(0.01, 0.1))
        self.for_a_while()
        proxy.heal()


def again_s(workers: Fleet) -> list[float]:
    """Return how long after the start of an attempt that did not end here the next one started."""
    starts: dict[int, list[float]] = {}
    for record in workers.journal.of("start"):
        starts.setdefault(record.task_id, []).append(record.at_s)
    return [later - sooner for times in starts.values() for sooner, later in pairwise(sorted(times))]


@contextmanager
def soak(nursery: Nursery, *, seed: int, pace_s: float) -> Iterator[Soak]:
    """Yield a fleet that works."""
    with ExitStack() as stack:
        yield Soak(stack, nursery, seed=seed, pace_s=pace_s)


def main(argv: Sequence[str]) -> None:
    """Run the long form."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.faults.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args(argv)
    nursery = Nursery()
    try:
        with soak(nursery, seed=asked.seed, pace_s=max(0.0, asked.minutes * 60 / asked.faults - 1.5)) as some:
            sys.stdout.write(f"seed {asked.seed}\n")
            sys.stdout.flush()
            sys.stdout.write(f"{some.run(asked.faults)}\n")
    finally:
        nursery.close()


if __name__ == "__main__":
    main(sys.argv[1:])
