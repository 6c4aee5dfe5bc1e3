"""What `sennit bench ab` runs: small fleets as a user would write them, each on a temporary file of its own.

Each takes the settings under test and a scale, and returns one figure. An app is made, warmed up and closed per call, so
that nothing of one setting is left for the next.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, TypeAlias

from sennit.cli.pool_cases.bodies import spin, spin_rounds
from sennit.cli.pool_cases.measure import scaled
from sennit.runtime.app import App

Settings: TypeAlias = Mapping[str, Any]

PRODUCERS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One fleet.

    Attributes:
        unit: of its figure; `per s` more is better, else less.
    """

    what: str
    unit: str
    run: Callable[[Path, Settings, float], Coroutine[Any, Any, float]]


@asynccontextmanager
async def _working(folder: Path, settings: Settings) -> AsyncIterator[App]:
    app = App(f"sqlite:///{folder / 'ab.db'}", **{"log_capture": False, **settings})
    async with app:
        yield app


async def _noop(n: int) -> int:
    return n


def _noop_sync(n: int) -> int:
    return n


def compute(rounds: int) -> int:
    """Compute in Python, in a worker process: imported there by this name."""
    return spin(rounds)


async def _producers(folder: Path, settings: Settings, scale: float) -> float:
    """Many producers, each waits until its task is durable before it hands in the next."""
    each = scaled(20, scale)
    async with _working(folder, settings) as app:
        later = app.task(name="later", queue="nobody")(_noop)

        async def produce() -> None:
            for n in range(each):
                await later.submit(n).stored()

        await produce()
        began_s = perf_counter()
        await asyncio.gather(*(produce() for _ in range(PRODUCERS)))
        return PRODUCERS * each / (perf_counter() - began_s)


async def _throughput(folder: Path, settings: Settings, scale: float) -> float:
    return await _all_of(folder, settings, _noop, range(scaled(3_000, scale)))


async def _throughput_sync(folder: Path, settings: Settings, scale: float) -> float:
    return await _all_of(folder, settings, _noop_sync, range(scaled(3_000, scale)))


async def _cpu_short(folder: Path, settings: Settings, scale: float) -> float:
    jobs = [spin_rounds(0.0002)] * scaled(600, scale)
    return await _all_of(folder, settings, compute, jobs, cpu=True)


async def _cpu_long(folder: Path, settings: Settings, scale: float) -> float:
    jobs = [spin_rounds(0.02)] * scaled(60, scale)
    return await _all_of(folder, settings, compute, jobs, cpu=True)


async def _cpu_unhinted(folder: Path, settings: Settings, scale: float) -> float:
    """Bodies that compute and of which nobody has said so: once to learn it, once for processes to start, and then measured."""
    jobs = [spin_rounds(0.01)] * scaled(60, scale, least=40)  # it takes 20 calls to know a function
    return await _all_of(folder, settings, compute, jobs, before=2)


async def _all_of(
    folder: Path, settings: Settings, body: Callable[..., Any], jobs: Any, *, before: int = 1, **options: Any
) -> float:
    async with _working(folder, settings) as app:
        task = app.task(name="job", **options)(body)
        for _ in range(before):
            await task.map(jobs)
        began_s = perf_counter()
        await task.map(jobs)
        return len(jobs) / (perf_counter() - began_s)


async def _latency(folder: Path, settings: Settings, scale: float) -> float:
    """An idle process: submit to the first line of the body, median in ms."""
    started_s = 0.0

    async def body() -> None:
        nonlocal started_s
        started_s = perf_counter()

    async with _working(folder, settings) as app:
        task = app.task(name="start")(body)
        await task.submit()
        latencies_s = []
        for _ in range(scaled(60, scale)):
            submitted_s = perf_counter()
            await task.submit()
            latencies_s.append(started_s - submitted_s)
    return median(latencies_s) * 1e3


async def _chain(folder: Path, settings: Settings, scale: float) -> float:
    """Tasks that each take the result of the one before: ms per hop."""
    n = scaled(80, scale)
    async with _working(folder, settings) as app:
        task = app.task(name="hop")(_noop)
        await task.submit(0)
        began_s = perf_counter()
        last = task.submit(0)
        for _ in range(n - 1):
            last = task.submit(last.as_argument())
        await last
        return (perf_counter() - began_s) / n * 1e3


WORKLOADS: Final[Mapping[str, Workload]] = {
    "producers": Workload(
        what=f"{PRODUCERS} producers, each waits for its ack: submits recorded", unit="per s", run=_producers
    ),
    "throughput": Workload(what="no-op async tasks, submit to recorded", unit="per s", run=_throughput),
    "throughput_sync": Workload(what="the same with sync bodies", unit="per s", run=_throughput_sync),
    "latency": Workload(what="idle process, submit to first line", unit="ms", run=_latency),
    "chain": Workload(what="tasks that each wait for the one before, per hop", unit="ms", run=_chain),
    "cpu_short": Workload(what="cpu=True bodies of 0.2 ms", unit="per s", run=_cpu_short),
    "cpu_long": Workload(what="cpu=True bodies of 20 ms", unit="per s", run=_cpu_long),
    "cpu_unhinted": Workload(
        what="sync bodies that compute for 10 ms, without a hint", unit="per s", run=_cpu_unhinted
    ),
}


def figure(name: str, settings: Settings, *, scale: float = 1.0, folder: Path | None = None) -> float:
    """Run a workload once in a temporary folder; return its figure."""
    with tempfile.TemporaryDirectory(prefix="sennit-ab-", dir=folder) as place:
        return asyncio.run(WORKLOADS[name].run(Path(place), settings, scale))
