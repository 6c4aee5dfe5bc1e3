"""Python that computes, in as many processes as there are cores: how much of it is left of jobs of 0.1, 1 and 10 ms.

All pools start their processes by the fork server, keep them, and have run jobs before anything is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sennit.cli.pool_cases.bodies import spin, spin_rounds
from sennit.cli.pool_cases.measure import Bound, Case, Side, Sides, scaled
from sennit.cli.pool_cases.rivals import ended, one_by_one, part
from sennit.execute.processes import Job, ProcessPool
from sennit.limit.cgroups import effective_cpus
from sennit.model.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

OURS: Final = "ProcessPool"
STANDARD: Final = "ProcessPoolExecutor"
CHUNK: Final = 16
AHEAD: Final = 8
SPIN: Final = f"{spin.__module__}:{spin.__qualname__}"


class _Ours:
    """Our pool on an event loop of its own, which runs only while it is measured."""

    def __init__(self, stack: ExitStack, *, processes: int, prefetch: int) -> None:
        self._runner = stack.enter_context(asyncio.Runner())
        self._pool: ProcessPool = self._runner.run(self._open(processes, prefetch))
        stack.callback(lambda: self._runner.run(self._pool.close()))

    @staticmethod
    async def _open(processes: int, prefetch: int) -> ProcessPool:
        return ProcessPool(processes_max=processes, prefetch=prefetch)

    def run(self, payloads: list[bytes]) -> None:
        """Run a job for each payload, and wait for all."""
        self._runner.run(self._run(payloads))

    async def _run(self, payloads: list[bytes]) -> None:
        await asyncio.gather(*(self._pool.run(Job(SPIN, payload)) for payload in payloads))


def start_context() -> ForkServerContext | SpawnContext:
    """Return how worker processes are started here."""
    return get_context("forkserver") if "forkserver" in get_all_start_methods() else get_context("spawn")


def _sides(stack: ExitStack, scale: float, *, job_s: float, n: int) -> Sides:
    n, cores = scaled(n, scale), effective_cpus()
    rounds = spin_rounds(job_s)
    payloads = [msgspec.json.encode([[rounds], {}])] * n
    ours, ahead = (_Ours(stack, processes=cores, prefetch=n) for n in (Settings().cpu_prefetch, AHEAD))
    standard = stack.enter_context(ended(ProcessPoolExecutor(cores, mp_context=start_context())))

    def side(work: Callable[[], object]) -> Side:
        def jobs_per_s() -> float:
            began_s = perf_counter()
            work()
            return n / (perf_counter() - began_s)

        jobs_per_s()  # processes start
        return jobs_per_s

    sides: dict[str, Side | str] = {
        OURS: side(partial(ours.run, payloads)),
        f"{OURS}, {AHEAD} ahead": side(partial(ahead.run, payloads)),
        STANDARD: side(lambda: one_by_one(standard, [partial(spin, rounds)] * n)),
        f"{STANDARD}.map, chunks of {CHUNK}": side(lambda: list(standard.map(spin, [rounds] * n, chunksize=CHUNK))),
    }
    parallel = part("joblib", "Parallel")
    if isinstance(parallel, str):
        return sides | {"joblib (loky)": parallel}
    pool: Any = stack.enter_context(parallel(n_jobs=cores))
    delayed = part("joblib", "delayed")
    return sides | {"joblib (loky)": side(lambda: pool(delayed(spin)(rounds) for _ in range(n)))}


_BESIDE: Final = Bound(what="against ProcessPoolExecutor", side=OURS, against=(STANDARD,), at_least=0.95)

_CASES: Final = tuple(
    Case(
        name=name,
        what=f"{n:,} jobs of {words} of Python, a process per core",
        unit="per s",
        sides=partial(_sides, job_s=job_s, n=n),
        bounds=bounds,
        rounds=4,
        remark="Ours answers on an event loop, job by job; it can kill one job, and a crash takes no other with it.",
    )
    for name, words, job_s, n, bounds in (
        ("process_100us", "0.1 ms", 0.0001, 1_500, ()),
        ("process_1ms", "1 ms", 0.001, 400, ()),
        ("process_10ms", "10 ms", 0.01, 60, (_BESIDE,)),
    )
)
CASES: Final = {case.name: case for case in _CASES}
