"""What a permit costs, how soon a released one is heard of, and what the strategies make of five providers.

    python bench/limiter.py             all of it, about a minute
    python bench/limiter.py --quick     costs and wake-ups only

Costs are the best of many rounds: what is slower was somebody else's work on this machine. Waits are p50 and p99.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from sennit.limit.limiter import AdaptiveLimiter, Permit
from sennit.testing.limitsim import PROVIDERS, oracle, simulate

if TYPE_CHECKING:
    from collections.abc import Callable

    from sennit.model.provider import Strategy

ROUNDS: Final = 30
CALLS: Final = 5_000
WAKES: Final = 2_000
SEEDS: Final = (1, 2, 3)
SIMULATED_S: Final = 2400.0
COST_MAX_US: Final = 3.0  # promised, uncontended
WAKE_MAX_MS: Final = 1.0  # promised, in process

STRATEGIES: Final[tuple[Strategy, ...]] = ("fixed", "aimd", "gradient", "vegas")


def best_us(calls: Callable[[], None]) -> float:
    """Return µs per call, of the best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        calls()
        best = min(best, time.perf_counter() - begun)
    return best / CALLS * 1e6


def costs() -> None:
    print(f"{'µs per acquire and release':34}{'try':>8}{'sync':>8}{'with':>8}{'await':>8}{'async with':>12}")
    for strategy in STRATEGIES:
        limiter = AdaptiveLimiter(10, strategy=strategy)

        def trying(limiter: AdaptiveLimiter = limiter) -> None:
            for _ in range(CALLS):
                permit = limiter.try_acquire()
                if permit:
                    limiter.release(permit)

        def waiting(limiter: AdaptiveLimiter = limiter) -> None:
            for _ in range(CALLS):
                limiter.release(limiter.acquire().result())

        def blocks(limiter: AdaptiveLimiter = limiter) -> None:
            for _ in range(CALLS):
                with limiter.slot():
                    pass

        figures = [best_us(trying), best_us(waiting), best_us(blocks), *asyncio.run(async_costs(limiter))]
        print(f"  {strategy:32}" + "".join(f"{us:>{w}.2f}" for us, w in zip(figures, (8, 8, 8, 8, 12), strict=True)))
    print(f"  promised: below {COST_MAX_US} uncontended\n")


async def async_costs(limiter: AdaptiveLimiter) -> list[float]:
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(CALLS):
            limiter.release(await limiter.acquire())
        between = time.perf_counter()
        for _ in range(CALLS):
            async with limiter.slot():
                pass
        best = [min(best[0], between - begun), min(best[1], time.perf_counter() - between)]
    return [seconds / CALLS * 1e6 for seconds in best]


def show_waits(what: str, waits_s: list[float]) -> None:
    waits_s.sort()
    p50, p99 = waits_s[len(waits_s) // 2] * 1e3, waits_s[len(waits_s) * 99 // 100] * 1e3
    print(f"  {what:40}{p50:>8.3f}{p99:>8.3f}")


def wakes() -> None:
    print(f"{'ms from release to the waiter':42}{'p50':>8}{'p99':>8}")
    show_waits("a coroutine, released on its loop", asyncio.run(wakes_on_one_loop()))
    show_waits("a coroutine, released in an OS thread", wakes_across(in_async=True))
    show_waits("an OS thread, released in another", wakes_across(in_async=False))
    print(f"  promised: below {WAKE_MAX_MS} in process\n")


async def wakes_on_one_loop() -> list[float]:
    limiter = AdaptiveLimiter(1, strategy="fixed")
    waits = []
    permit = await limiter.acquire()
    for _ in range(WAKES):
        waiter = asyncio.ensure_future(timed(limiter))
        await asyncio.sleep(0)
        begun = time.perf_counter()
        limiter.release(permit)
        permit, at = await waiter
        waits.append(at - begun)
    return waits


async def timed(limiter: AdaptiveLimiter) -> tuple[Permit, float]:
    permit = await limiter.acquire()
    return permit, time.perf_counter()


def wakes_across(*, in_async: bool) -> list[float]:
    """One OS thread releases, the other has waited; then the next round."""
    limiter = AdaptiveLimiter(1, strategy="fixed")
    held = [limiter.acquire().result()]
    waits: list[float] = []
    begun: list[float] = []
    again = threading.Semaphore(0)

    def note() -> None:
        waits.append(time.perf_counter() - begun.pop())
        again.release()

    def sync_waiter() -> None:
        for _ in range(WAKES):
            held.append(limiter.acquire().result())
            note()

    async def async_waiter() -> None:
        for _ in range(WAKES):
            held.append(await limiter.acquire())
            note()

    target = (lambda: asyncio.run(async_waiter())) if in_async else sync_waiter
    thread = threading.Thread(target=target)
    thread.start()
    for _ in range(WAKES):
        while not limiter.statistics().waiting["normal"]:
            time.sleep(0.0001)  # until the other one sleeps
        time.sleep(0.0002)
        begun.append(time.perf_counter())
        limiter.release(held.pop())
        again.acquire()
    thread.join()
    return waits


def simulated() -> None:
    seeds = len(SEEDS)
    print(
        f"simulated: {SIMULATED_S / 60:.0f} min without the first 5, mean of {seeds} seeds, ceiling 200, no pause after a 429"
    )
    print(
        f"  {'provider':34}{'strategy':10}{'done':>8}{'of best':>9}{'429s':>8}{'time-outs':>11}{'limit':>7}{'p50 s':>8}"
    )
    for provider in PROVIDERS:
        is_capped = provider.cap(0.0) or provider.cores
        best = [
            (oracle(provider, seed=seed, seconds=SIMULATED_S) if is_capped
             else simulate(provider, "fixed", seed=seed, seconds=SIMULATED_S)).done
            for seed in SEEDS
        ]  # fmt: skip
        for strategy in STRATEGIES[1:]:
            runs = [simulate(provider, strategy, seed=seed, seconds=SIMULATED_S) for seed in SEEDS]
            latencies = sorted(latency for run in runs for latency in run.latencies_s)
            print(
                f"  {provider.name:34}{strategy:10}{sum(r.done for r in runs) / seeds:>8.0f}"
                f"{sum(r.done for r in runs) / sum(best):>9.0%}{sum(r.throttled_share for r in runs) / seeds:>8.2%}"
                f"{sum(r.timeouts for r in runs) / seeds:>11.0f}{sum(r.mean_limit(300.0) for r in runs) / seeds:>7.1f}"
                f"{latencies[len(latencies) // 2]:>8.1f}"
            )


if __name__ == "__main__":
    costs()
    wakes()
    if "--quick" not in sys.argv:
        simulated()
