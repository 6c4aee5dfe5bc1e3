"""The tables that sennit's pools and registries began from, made again: the old design, what Python has, and ours.

Each table is measured by turns as in `sennit bench pools`, and ends with one sentence that is worked out from its figures,
also where it says that the idea wins nothing. The old designs are in bench/seeds/.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter, sleep
from typing import Any, Final

import numpy as np
from seeds.arrays import SeedArrayPool
from seeds.pools import SeedAdaptivePool, SeedScalingPool, SeedStealingPool
from seeds.tables import SeedRegistry

from sennit.cli.pool_cases.arrays import READERS, Reader, give_back_memory, pss_bytes
from sennit.cli.pool_cases.bodies import heavy_tail, nap, nothing, spin, spin_rounds
from sennit.cli.pool_cases.measure import Case, Outcome, Side, Sides, measure, scaled, shown, timed_s
from sennit.cli.pool_cases.rivals import (
    LockedDict,
    SharedQueueExecutor,
    ended,
    fixed_pool,
    in_static_parts,
    one_by_one,
)
from sennit.cli.pool_cases.tables import filled, ops_per_s
from sennit.cli.pool_cases.threads import adaptive, ends_of, os_thread_ids, rate_per_s, switches
from sennit.execute.stealing_pool import WorkStealingExecutor
from sennit.execute.workload import function_key
from sennit.sync.arrays import SharedArrayPool
from sennit.sync.registry import Registry
from sennit.sync.shards import ShardedMap

SIZES: Final = (1, 2, 4, 8, 16, 32)
AGENTS: Final = 100
FOR_S: Final = 0.5
STEAL_SIZE: Final = 16
QUEUED: Final = 400
BELIEFS: Final = 1_000
BELIEF: Final = (64, 64)
BELIEF_BYTES: Final = 64 * 64 * 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedTable:
    """One table of the page: a row per side, a column per case.

    Attributes:
        claim: what was said of the old design.
        verdict: makes the sentence from the outcomes, by the name of their case.
    """

    name: str
    title: str
    claim: str
    cases: tuple[Case, ...]
    verdict: Callable[[dict[str, Outcome]], str]

    def run(self, *, scale: float, rounds: int | None) -> list[Outcome]:
        """Measure all columns."""
        return [measure(case, scale=scale, rounds=rounds) for case in self.cases]


def best_of(outcome: Outcome, sides: Sequence[str]) -> tuple[str, float]:
    """Return the best of these sides by its median."""
    known = {side: value for side in sides if (value := outcome.middle(side)) is not None}
    pick = (max if outcome.unit.startswith("per ") else min)(known, key=lambda side: known[side])
    return pick, known[pick]


def times(outcome: Outcome, side: str, other: str) -> float:
    """Return the median, over the rounds, of one side's figure over another's."""
    pairs = zip(outcome.figures[side], outcome.figures[other], strict=True)
    return median(our / their if their else float("inf") for our, their in pairs)


def much(ratio: float) -> str:
    """Return a ratio in words; within 5 % nothing is said to differ."""
    word = "no difference" if 0.95 <= ratio <= 1.05 else "less" if ratio < 1 else "more"
    return f"{ratio:.2f} × ({word})"


# ---------------------------------------------------------------- OS threads 1 … 32


def _mixed(rounds: int) -> None:
    nap(0.004)
    spin(rounds)


def _curve(stack: ExitStack, scale: float, *, body_of: Callable[[], Callable[[], Any]]) -> Sides:
    """Closed loop of 100 calls: operations per second in the second half of half a second."""
    del stack
    body, for_s = body_of(), FOR_S * scale

    def side(make: Callable[[], Executor], seconds: float) -> Side:
        def per_s() -> float:
            with ended(make()) as pool:
                ends_s = ends_of(pool, at_once=AGENTS, body=body, for_s=seconds)
            return rate_per_s(ends_s, after_s=seconds - for_s * 0.6, before_s=seconds)

        return per_s

    sides: dict[str, Side] = {f"fixed, {size}": side(partial(fixed_pool, size), for_s) for size in SIZES}
    return sides | {
        "old: adaptive": side(SeedAdaptivePool, for_s),
        "ours: AdaptiveThreadPoolExecutor": side(adaptive, 4 * for_s),
    }


def _curve_verdict(outcomes: dict[str, Outcome]) -> str:
    old, ours = "old: adaptive", "ours: AdaptiveThreadPoolExecutor"
    words = []
    for kind, outcome in outcomes.items():
        best, _ = best_of(outcome, [f"fixed, {size}" for size in SIZES])
        words.append(
            f"{kind.removeprefix('curve_')}: the best fixed size is {best.removeprefix('fixed, ')}, and does "
            f"{times(outcome, best, 'fixed, 1'):.2f} × what one OS thread does; the old pool does "
            f"{times(outcome, old, 'fixed, 32'):.2f} × what the fixed 32 do, ours {times(outcome, ours, best):.2f} × the best"
        )
    return f"{'; '.join(words)}. All the old pool resizes is a number: it is a fixed pool of 32."


# ---------------------------------------------------------------- what kind of work it is


def detected(*, scale: float) -> list[tuple[str, str, str]]:
    """Return (work, what the old detector says, what ours says) after 3,000 quick computations and after 200 waits."""
    rounds = spin_rounds(0.000_03)
    rows = []
    for words, job, n in (
        ("3,000 × 30 µs of Python", partial(spin, rounds), scaled(3_000, scale, least=100)),
        ("200 × 5 ms of waiting", partial(nap, 0.005), scaled(200, scale, least=40)),
    ):
        with ended(SeedAdaptivePool()) as pool:
            one_by_one(pool, [job] * n)
            old = pool.kind if isinstance(pool, SeedAdaptivePool) else ""
        with ended(adaptive()) as ours:
            one_by_one(ours, [job] * n)
            new = adaptive_kind(ours, job)
        rows.append((words, old, new))
    return rows


def adaptive_kind(pool: Any, job: Callable[[], object]) -> str:
    """Return what our pool takes a function for."""
    kinds = {report.key: report.kind for report in pool.statistics().functions}
    return str(kinds[function_key(job)])


# ---------------------------------------------------------------- maps


def _maps(stack: ExitStack, scale: float, *, os_threads: int) -> Sides:
    del stack
    groups = scaled(2_000, scale)
    plain: dict[str, int] = {}
    locked: LockedDict[str, int] = LockedDict()
    old = SeedRegistry()
    shards: ShardedMap[str, int] = ShardedMap()
    registry: Registry[str, int] = Registry()
    kinds: dict[str, tuple[Any, Any]] = {
        "a dict, no lock": (plain.get, plain.__setitem__),
        "a dict, one lock": (locked.get, locked.set),
        "old: 16 dicts, 16 RLocks": (old.get, old.register),
        "ours: ShardedMap": (shards.get, shards.set),
        "ours: Registry": (registry.get, partial(registry.register, replace=True)),
    }
    for _, write in kinds.values():
        filled(write)

    def side(read: Any, write: Any) -> Side:
        return lambda: 1e9 / ops_per_s(read, write, groups=groups, os_threads=os_threads)

    return {name: side(read, write) for name, (read, write) in kinds.items()}


def _maps_verdict(outcomes: dict[str, Outcome]) -> str:
    one, eight = outcomes["maps_1"], outcomes["maps_8"]
    lock, old = "a dict, one lock", "old: 16 dicts, 16 RLocks"
    best, _ = best_of(eight, [side for side in eight.figures if "no lock" not in side])
    sides = {"the old shards take": old, "ShardedMap": "ours: ShardedMap", "Registry": "ours: Registry"}
    words = [
        f"{name} {much(times(one, side, lock))} alone and {much(times(eight, side, lock))} among eight"
        for name, side in sides.items()
    ]
    return f"Time for each operation against one lock: {'; '.join(words)}. Among eight OS threads the best is: {best}."


# ---------------------------------------------------------------- memory per agent


def _agents_memory(stack: ExitStack, scale: float) -> Sides:
    """Belief matrices of 1,000 agents, read by four worker processes: KiB for each agent, in all five processes."""
    n, readers = scaled(BELIEFS, scale, least=20), [Reader(stack) for _ in range(READERS)]
    everybody: list[int | str] = ["self", *(reader.pid for reader in readers)]

    def side(make: Callable[[ExitStack], Any]) -> Side:
        def kib_per_agent() -> float:
            give_back_memory()
            before = pss_bytes(everybody)
            with ExitStack() as inner:
                beliefs = make(inner)
                for reader in readers:
                    inner.callback(reader.ask, "drop")
                    reader.ask("sum", beliefs)
                return (pss_bytes(everybody) - before) / n / 1024

        kib_per_agent()
        return kib_per_agent

    def own(_: ExitStack) -> list[Any]:
        return [np.ones(BELIEF) for _ in range(n)]

    def old(_: ExitStack) -> list[Any]:
        pool = SeedArrayPool(BELIEF)
        beliefs = [pool.acquire() for _ in range(n)]
        for belief in beliefs:
            belief[...] = 1
        return beliefs

    def rows(inner: ExitStack) -> Any:
        pool = inner.enter_context(SharedArrayPool(bytes_max=2 * n * BELIEF_BYTES + 65_536))
        shared = inner.enter_context(pool.acquire((n, *BELIEF)))
        shared.array[...] = 1
        return shared

    return {
        "an array for each agent, pickled to the processes": side(own),
        "old: shared memory pool of 100": side(old),
        "ours: SharedArray, a row for each agent": side(rows),
    }


def _agents_memory_verdict(outcomes: dict[str, Outcome]) -> str:
    outcome = outcomes["agents_memory"]
    own, old, ours = outcome.figures
    return (
        f"Memory against an array for each agent in every process: the old pool {much(times(outcome, old, own))}, "
        f"ours {much(times(outcome, ours, own))}."
    )


# ---------------------------------------------------------------- stealing


def _stealing_pools() -> dict[str, Callable[[], Executor]]:
    return {
        "a shared SimpleQueue": partial(SharedQueueExecutor, STEAL_SIZE),
        "ThreadPoolExecutor": partial(fixed_pool, STEAL_SIZE),
        "old: polling, steals one": partial(SeedStealingPool, STEAL_SIZE),
        "ours: WorkStealingExecutor": partial(WorkStealingExecutor, STEAL_SIZE),
    }


def _stealing_time(stack: ExitStack, scale: float) -> Sides:
    n = scaled(400, scale)
    seeds: dict[str, int] = {}

    def side(name: str, run: Callable[[list[Callable[[], object]]], None]) -> Side:
        def seconds() -> float:
            seeds[name] = first = seeds.get(name, 0) + 4
            lists = [heavy_tail(n, mean=0.003, seed=first + part) for part in range(4)]
            return sum(timed_s(partial(run, [partial(nap, length) for length in lengths])) for lengths in lists)

        return seconds

    sides: dict[str, Side] = {}
    for name, make in _stealing_pools().items():
        pool = stack.enter_context(ended(make()))
        one_by_one(pool, [nothing] * STEAL_SIZE)
        sides[name] = side(name, partial(one_by_one, pool))
    spare = stack.enter_context(ended(fixed_pool(STEAL_SIZE)))
    return sides | {"static split": side("static", lambda jobs: in_static_parts(spare, jobs, STEAL_SIZE))}


def _stealing_idle(stack: ExitStack, scale: float) -> Sides:
    del stack

    def side(make: Callable[[], Executor]) -> Side:
        def switches_per_s() -> float:
            before = os_thread_ids()
            with ended(make()) as pool:
                one_by_one(pool, [partial(nap, 0.001)] * (2 * STEAL_SIZE))
                mine = os_thread_ids() - before
                _rest(0.1)
                began, count = perf_counter(), switches(mine)
                _rest(scale)
                return (switches(mine & os_thread_ids()) - count) / (perf_counter() - began)

        return switches_per_s

    return {name: side(make) for name, make in _stealing_pools().items()}


def _rest(seconds: float) -> None:
    sleep(seconds)  # sleep: what a pool does meanwhile is measured


def _stealing_lost(stack: ExitStack, scale: float) -> Sides:
    del stack
    n = scaled(QUEUED, scale, least=40)

    def side(make: Callable[[], Executor]) -> Side:
        def never_ended() -> float:
            pool = make()
            go_on = threading.Event()
            first = [pool.submit(go_on.wait) for _ in range(STEAL_SIZE)]
            rest: list[Future[Any]] = [pool.submit(nothing) for _ in range(n)]
            # `shutdown` is under way before anything can end, as when a program stops amid work.
            stop = threading.Thread(target=pool.shutdown)
            stop.start()
            go_on.set()
            stop.join()
            return sum(not future.done() for future in first + rest)

        return never_ended

    return {name: side(make) for name, make in _stealing_pools().items()}


def _stealing_verdict(outcomes: dict[str, Outcome]) -> str:
    time, idle, lost = outcomes["steal_time"], outcomes["steal_idle"], outcomes["steal_lost"]
    old, ours, queue = "old: polling, steals one", "ours: WorkStealingExecutor", "a shared SimpleQueue"
    return (
        f"Time of our stealing against a static split: {much(times(time, ours, 'static split'))}; against one shared queue: "
        f"{much(times(time, ours, queue))}, the old pool {much(times(time, old, queue))}. At rest the old pool woke "
        f"{shown(idle.middle(old))} times a second and ours {shown(idle.middle(ours))}; at shutdown the old pool forgot "
        f"{shown(lost.middle(old))} of its jobs and ours {shown(lost.middle(ours))}."
    )


# ---------------------------------------------------------------- sizes under load


def sizes_under_load(*, scale: float, steps: int = 6) -> list[tuple[str, list[int]]]:
    """Return how big each pool is after each step in which 100 agents wait 10 ms."""
    call = partial(nap, 0.01 * min(1.0, scale * 4))
    old, old_sizes = SeedScalingPool(), []
    for _ in range(steps):
        old.step_all([call] * AGENTS)
        old_sizes.append(old.size)
    old.shutdown()
    new_sizes = []
    with ended(adaptive(initial=16)) as ours:
        for _ in range(steps):
            one_by_one(ours, [call] * AGENTS)
            new_sizes.append(adaptive_size(ours))
    return [("old: optimized thread pool manager", old_sizes), ("ours: AdaptiveThreadPoolExecutor", new_sizes)]


def adaptive_size(pool: Any) -> int:
    """Return how many OS threads our pool works with now."""
    return int(pool.statistics().size)


TABLES: Final = (
    SeedTable(
        name="curve",
        title="OS threads 1 … 32, and who finds the best number",
        claim="An adaptive pool does 3 times as much as a fixed one, by 32 OS threads for I/O, 4 for CPU, 16 for both.",
        cases=tuple(
            Case(
                name=f"curve_{kind}",
                what=what,
                unit="per s",
                sides=partial(_curve, body_of=body_of),
                rounds=3,
            )
            for kind, what, body_of in (
                ("io", "waits of 10 ms", lambda: partial(nap, 0.01)),
                ("cpu", "1 ms of Python", lambda: partial(spin, spin_rounds(0.001))),
                ("mixed", "waits of 4 ms and 0.5 ms of Python", lambda: partial(_mixed, spin_rounds(0.0005))),
            )
        ),
        verdict=_curve_verdict,
    ),
    SeedTable(
        name="maps",
        title="Sharded against one lock",
        claim="A lock-free registry of 16 shards scales where one lock does not.",
        cases=tuple(
            Case(
                name=f"maps_{os_threads}",
                what=f"{os_threads} OS thread{'s' if os_threads > 1 else ''}, 9 reads to 1 write",
                unit="ns",
                sides=partial(_maps, os_threads=os_threads),
                rounds=5,
            )
            for os_threads in (1, 8)
        ),
        verdict=_maps_verdict,
    ),
    SeedTable(
        name="agents_memory",
        title="Shared memory for each agent",
        claim="34.5 MB for each agent become 11.5 with a pool of shared arrays.",
        cases=(
            Case(
                name="agents_memory",
                what=f"{BELIEFS:,} agents, a matrix of 32 KiB each, read by {READERS} processes: for each agent",
                unit="KiB",
                sides=_agents_memory,
                rounds=3,
            ),
        ),
        verdict=_agents_memory_verdict,
    ),
    SeedTable(
        name="stealing",
        title="Stealing against a shared queue and a static split",
        claim="Work stealing balances load 30 to 40 % better.",
        cases=(
            Case(name="steal_time", what="heavy-tailed waits, 16 OS threads", unit="s", sides=_stealing_time),
            Case(name="steal_idle", what="wake-ups at rest", unit="a second", sides=_stealing_idle, rounds=2),
            Case(
                name="steal_lost",
                what="of 416 jobs never ended by shutdown",
                unit="jobs",
                sides=_stealing_lost,
                rounds=2,
            ),
        ),
        verdict=_stealing_verdict,
    ),
)
