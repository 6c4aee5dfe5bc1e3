"""Executors of OS threads, ours beside the standard library's and a shared queue.

overhead_single, overhead_burst   what a pool costs when the work costs nothing
cold_start                        from 2 OS threads to the throughput of the best fixed size
cpu                               Python that computes: more OS threads cannot help and must not hurt
heavy_waits, heavy_cpu            few long jobs among many short ones
idle                              wake-ups of pools that have nothing to do
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any, Final

from sennit.cli.pool_cases.bodies import heavy_tail, nap, nothing, spin, spin_rounds
from sennit.cli.pool_cases.measure import Bound, Case, Side, Sides, scaled, timed_s
from sennit.cli.pool_cases.rivals import SharedQueueExecutor, ended, fixed_pool, in_static_parts, one_by_one
from sennit.execute.adaptive_pool import AdaptiveThreadPoolExecutor
from sennit.execute.stealing_pool import WorkStealingExecutor

ADAPTIVE: Final = "AdaptiveThreadPoolExecutor"
STEALING: Final = "WorkStealingExecutor"
STANDARD: Final = "ThreadPoolExecutor"
QUEUE: Final = "shared SimpleQueue"
STATIC: Final = "static split"

SIZE: Final = 4
WAITERS: Final = 16
CALLS: Final = 100
CALL_S: Final = 0.01
FIXED_SIZES: Final = (8, 16, 32, 64)
WINDOW_S: Final = 0.2
IDLE_S: Final = 2.0


def adaptive(*, initial: int | None = None) -> AdaptiveThreadPoolExecutor:
    """Return our adaptive pool as it comes, or with another size to begin with."""
    return AdaptiveThreadPoolExecutor(workers_initial=initial)


def _four(stack: ExitStack, size: int) -> dict[str, Executor]:
    """Return one of each kind, the fixed ones of one size."""
    pools: dict[str, Executor] = {
        ADAPTIVE: adaptive(),
        STEALING: WorkStealingExecutor(size),
        STANDARD: fixed_pool(size),
        QUEUE: SharedQueueExecutor(size),
    }
    for pool in pools.values():
        stack.enter_context(ended(pool))
    return pools


# ---------------------------------------------------------------- overhead


def _single(stack: ExitStack, scale: float) -> Sides:
    n = scaled(2_000, scale)

    def side(pool: Executor) -> Side:
        def us_each() -> float:
            began_s = perf_counter()
            for _ in range(n):
                pool.submit(nothing).result()
            return (perf_counter() - began_s) / n * 1e6

        us_each()  # OS threads start, the pool learns the function
        return us_each

    return {name: side(pool) for name, pool in _four(stack, SIZE).items()}


def _burst(stack: ExitStack, scale: float) -> Sides:
    jobs = [nothing] * scaled(5_000, scale)

    def side(pool: Executor) -> Side:
        def us_each() -> float:
            return timed_s(partial(one_by_one, pool, jobs)) / len(jobs) * 1e6

        us_each()
        return us_each

    return {name: side(pool) for name, pool in _four(stack, SIZE).items()}


def _overhead_bounds() -> tuple[Bound, ...]:
    return tuple(
        Bound(what=f"{name}: submit to result", side=name, against=(STANDARD,), at_most=1.2)
        for name in (ADAPTIVE, STEALING)
    )


# ---------------------------------------------------------------- from a cold start


def ends_of(pool: Executor, *, at_once: int, body: Callable[[], Any], for_s: float) -> list[float]:
    """Keep `at_once` calls under way for so long; return when each ended, in s since the first was submitted."""
    ends_s: list[float] = []
    all_over = threading.Event()
    left = count(at_once - 1, -1)
    began_s = perf_counter()

    def ended_one(future: Future[Any]) -> None:
        future.result()
        now_s = perf_counter() - began_s
        ends_s.append(now_s)
        if now_s < for_s:
            pool.submit(body).add_done_callback(ended_one)
        elif next(left) == 0:
            all_over.set()

    for _ in range(at_once):
        pool.submit(body).add_done_callback(ended_one)
    if not all_over.wait(for_s + 60):
        raise TimeoutError(f"{at_once} calls did not all end within a minute after the {for_s:g} s they were asked for")
    return sorted(ends_s)


def rate_per_s(ends_s: list[float], *, after_s: float, before_s: float) -> float:
    """Return ends per second between two moments."""
    return sum(after_s <= end_s < before_s for end_s in ends_s) / (before_s - after_s)


def reached_s(ends_s: list[float], *, per_s: float, window_s: float, until_s: float) -> float:
    """Return when a window of `window_s` first had this rate: the moment of its end; `until_s` if none had."""
    window: deque[float] = deque()
    for end_s in ends_s:
        window.append(end_s)
        while window[0] <= end_s - window_s:
            window.popleft()
        if end_s >= window_s and len(window) / window_s >= per_s:
            return end_s
    return until_s


def _cold_start(stack: ExitStack, scale: float) -> Sides:
    del stack
    for_s, fixed_for_s, window_s = 2.5 * scale, 0.6 * scale, WINDOW_S * scale
    body = partial(nap, CALL_S)
    fixed: dict[int, list[float]] = {size: [] for size in FIXED_SIZES}
    last_ends: list[float] = []

    def fixed_rate(size: int) -> float:
        with ended(fixed_pool(size)) as pool:
            ends_s = ends_of(pool, at_once=CALLS, body=body, for_s=fixed_for_s)
        fixed[size].append(rate_per_s(ends_s, after_s=fixed_for_s / 4, before_s=fixed_for_s))
        return fixed[size][-1]

    def seconds_to_95_percent() -> float:
        with ended(adaptive(initial=2)) as pool:
            last_ends[:] = ends_of(pool, at_once=CALLS, body=body, for_s=for_s)
        best = max(median(rates) for rates in fixed.values() if rates)
        return reached_s(last_ends, per_s=0.95 * best, window_s=window_s, until_s=for_s + 1.0)

    def rate_at_the_end() -> float:
        return rate_per_s(last_ends, after_s=for_s * 2 / 3, before_s=for_s)

    sides: dict[str, Side] = {f"fixed, {size} OS threads": partial(fixed_rate, size) for size in FIXED_SIZES}
    return sides | {f"{ADAPTIVE}, cold, until 95 %": seconds_to_95_percent, f"{ADAPTIVE}, then": rate_at_the_end}


# ---------------------------------------------------------------- Python that computes


def _cpu(stack: ExitStack, scale: float) -> Sides:
    jobs = [partial(spin, spin_rounds(0.002))] * scaled(100, scale)

    def fixed(size: int) -> Side:
        pool = stack.enter_context(ended(fixed_pool(size)))
        return lambda: timed_s(partial(one_by_one, pool, jobs))

    def cold() -> float:
        with ended(adaptive()) as pool:
            return timed_s(partial(one_by_one, pool, jobs))

    warm = stack.enter_context(ended(adaptive()))
    one_by_one(warm, jobs)
    return {f"fixed, {size} OS thread{'s' if size > 1 else ''}": fixed(size) for size in (1, 2, 4, 8)} | {
        f"{ADAPTIVE}, cold": cold,
        f"{ADAPTIVE}, warm": lambda: timed_s(partial(one_by_one, warm, jobs)),
    }


# ---------------------------------------------------------------- heavy tails


def _heavy(stack: ExitStack, *, size: int, jobs_of: Callable[[int], list[Callable[[], object]]], lists: int) -> Sides:
    """Each side gets the same lists of jobs in one round, and others in the next.

    Several lists, one after the other: with few long jobs much depends on when they come, and it comes out in the sum.
    """
    pools = _four(stack, size)
    spare = stack.enter_context(ended(fixed_pool(size)))

    def side(run: Callable[[list[Callable[[], object]]], None]) -> Side:
        seeds = count(1)
        return lambda: sum(timed_s(partial(run, jobs_of(next(seeds)))) for _ in range(lists))

    for pool in pools.values():
        one_by_one(pool, jobs_of(0))
    return {name: side(partial(one_by_one, pool)) for name, pool in pools.items()} | {
        STATIC: side(lambda jobs: in_static_parts(spare, jobs, size))
    }


def _heavy_waits(stack: ExitStack, scale: float) -> Sides:
    n = scaled(400, scale)
    return _heavy(
        stack,
        size=WAITERS,
        jobs_of=lambda seed: [partial(nap, seconds) for seconds in heavy_tail(n, mean=0.003, seed=seed)],
        lists=4,
    )


def _heavy_cpu(stack: ExitStack, scale: float) -> Sides:
    n, rounds = scaled(200, scale), spin_rounds(0.0005)
    return _heavy(
        stack,
        size=SIZE,
        jobs_of=lambda seed: [partial(spin, round(part)) for part in heavy_tail(n, mean=rounds, seed=seed)],
        lists=1,
    )


def _heavy_bounds(*, against_static: bool) -> Iterator[Bound]:
    yield Bound(what="stealing: time against one shared queue", side=STEALING, against=(QUEUE,), at_most=1.05)
    if against_static:
        yield Bound(
            what="a static split: time against stealing (25 % faster)", side=STATIC, against=(STEALING,), at_least=1.25
        )


# ---------------------------------------------------------------- nothing to do


def os_thread_ids() -> set[int]:
    """Return the OS threads of this process."""
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def switches(os_threads: set[int]) -> int:
    """Return the context switches of these OS threads so far, voluntary and not (proc_pid_status(5))."""
    total = 0
    for os_thread in os_threads:
        lines = Path(f"/proc/self/task/{os_thread}/status").read_text(encoding="ascii").splitlines()
        total += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return total


def _idle(stack: ExitStack, scale: float) -> Sides:
    kinds: dict[str, Callable[[], Executor]] = {
        ADAPTIVE: adaptive,
        STEALING: partial(WorkStealingExecutor, SIZE),
        STANDARD: partial(ThreadPoolExecutor, SIZE),
        QUEUE: partial(SharedQueueExecutor, SIZE),
    }
    theirs: dict[str, set[int]] = {}
    for name, make in kinds.items():
        before = os_thread_ids()
        pool = stack.enter_context(ended(make()))
        one_by_one(pool, [partial(nap, 0.001)] * (8 * SIZE))
        theirs[name] = os_thread_ids() - before
    _pause(0.3)  # the last of them goes to sleep
    found: dict[str, float] = {}

    def look() -> None:
        """Watch all pools at once: nothing of one can hide behind another."""
        before = {name: switches(os_threads & os_thread_ids()) for name, os_threads in theirs.items()}
        _pause(IDLE_S * scale)
        for name, os_threads in theirs.items():
            found[name] = switches(os_threads & os_thread_ids()) - before[name]

    def side(name: str) -> Side:
        def counted() -> float:
            if name not in found:
                found.clear()
                look()
            return found.pop(name)

        return counted

    return {name: side(name) for name in kinds}


def _pause(seconds: float) -> None:
    # sleep: this is what is measured, pools while nothing happens
    sleep(seconds)


_CASES: Final = (
    Case(
        name="overhead_single",
        what="submit nothing, wait for its result, one after the other",
        unit="us",
        sides=_single,
        bounds=_overhead_bounds(),
    ),
    Case(
        name="overhead_burst",
        what="submit 5,000 times nothing, then wait for all; per call",
        unit="us",
        sides=_burst,
        bounds=_overhead_bounds(),
    ),
    Case(
        name="cold_start",
        what="100 blocking calls of 10 ms under way at any time",
        unit="per s",
        units={f"{ADAPTIVE}, cold, until 95 %": "s"},
        sides=_cold_start,
        rounds=2,
        bounds=(
            Bound(
                what="from 2 OS threads to 95 % of the best fixed size, s",
                side=f"{ADAPTIVE}, cold, until 95 %",
                at_most=2.0,
            ),
            Bound(what="and stays there", side=f"{ADAPTIVE}, then", against=("fixed*",), at_least=0.95),
        ),
    ),
    Case(
        name="cpu",
        what="100 bodies of about 2 ms of Python",
        unit="s",
        sides=_cpu,
        bounds=tuple(
            Bound(
                what=f"{how}: time against the best fixed size",
                side=f"{ADAPTIVE}, {how}",
                against=("fixed*",),
                at_most=1.1,
            )
            for how in ("cold", "warm")
        ),
    ),
    Case(
        name="heavy_waits",
        what="4 lists of 400 waits of 3 ms on average, heavy-tailed, 16 OS threads",
        unit="s",
        sides=_heavy_waits,
        bounds=tuple(_heavy_bounds(against_static=True)),
        remark="The adaptive pool chooses its own size.",
    ),
    Case(
        name="heavy_cpu",
        what="200 computations of 0.5 ms on average, heavy-tailed, 4 OS threads",
        unit="s",
        sides=_heavy_cpu,
        bounds=tuple(_heavy_bounds(against_static=False)),
        remark="With the GIL one OS thread computes at a time: there is nothing that a better balance could gain.",
    ),
    Case(
        name="idle",
        what="context switches of all OS threads of a pool that has nothing to do, in 2 s",
        unit="switches",
        sides=_idle,
        rounds=2,
        bounds=tuple(Bound(what=f"{name}: wake-ups in 2 s", side=name, at_most=0) for name in (ADAPTIVE, STEALING)),
    ),
)
CASES: Final = {case.name: case for case in _CASES}
