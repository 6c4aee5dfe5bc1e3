"""The cases about limits of providers: the sennit side, and the same with bare semaphores where that is possible.

Worker processes import this module for `app` (`python -m sennit worker providers:app`), as they do `workloads`. The model
server is the fake provider: real HTTP, in a process of its own, whose own counts say what it has seen.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, cast

import breaker
import harness
import httpx2
import limiter
import permits
from harness import RUN_DIR, Figures, Side, Worker, wait_until

from sennit import App
from sennit.integrations.http import AsyncLimitedTransport
from sennit.limit.breaker_live import Breaker
from sennit.limit.limiter import AdaptiveLimiter
from sennit.testing.governorsim import UNKNOWN_CAP, govern, oracle
from sennit.testing.provider import FakeProvider, Lognormal

if TYPE_CHECKING:
    from collections.abc import Callable

    from cases import Case

URL: Final = f"sqlite:///{RUN_DIR}/sennit.db"
SERVER: Final = os.environ.get("BENCH_SERVER", "")  # of the fake provider, for the processes that call it
CHAT: Final = "/v1/chat/completions"
BODY: Final = {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}]}
LIMIT: Final = 5
PROCESSES: Final = 3
CALL_S: Final = 0.05
LATENCY: Final = Lognormal(0.2)  # so that calls do not end in waves: what is sent together cannot be called back
SEEDS: Final = (1, 2, 3)
SIMULATED_S: Final = 1800.0
RESET_S: Final = 10.0
CALLS_BEFORE: Final = 20  # answered before the quota is used up
KNOWN_S: Final = 0.1  # the first refusal has reached its sender, and the sender has told the others
PERMIT_S: Final = 2.0

durability = cast("Any", os.environ["BENCH_DURABILITY"])
app = App(URL, durability=durability, slots=int(os.environ["BENCH_SLOTS"]))


def client() -> httpx2.AsyncClient:
    """Make the client that the calls of a process share; its transport sees to the permits."""
    return httpx2.AsyncClient(base_url=SERVER, transport=AsyncLimitedTransport(app.limits, "model"))


model = app.provider("model", parallel=LIMIT, strategy="fixed", client=client)
roomy = app.provider("roomy", parallel=1_000, strategy="fixed")


@app.task(provider=model)
async def call_model(n: int) -> int:
    async with model.client() as shared:
        (await shared.post(CHAT, json=BODY)).raise_for_status()
    return n


@app.task
async def noop(task_id: int) -> int:
    return harness.noop(task_id)


@app.task(provider=roomy)
async def noop_of_provider(task_id: int) -> int:
    return harness.noop(task_id)


# ------------------------------------------------------------------------------------------------- without a store


def best_async_us(slot: permits.Slot) -> float:
    """Return µs per `async with`, of the best round."""

    async def rounds() -> float:
        best_s = math.inf
        for _ in range(limiter.ROUNDS):
            began_s = time.perf_counter()
            for _ in range(limiter.CALLS):
                async with slot():
                    pass
            best_s = min(best_s, time.perf_counter() - began_s)
        return best_s / limiter.CALLS * 1e6

    return asyncio.run(rounds())


def costs(_: Case) -> Figures:
    """What one call pays for a limit and for a breaker in this process, uncontended."""
    limit = AdaptiveLimiter(10)

    def calls() -> None:
        for _ in range(limiter.CALLS):
            permit = limit.try_acquire()
            if permit:
                limit.release(permit)

    return {
        "limiter_us": limiter.best_us(calls),
        "limiter_with_us": best_async_us(limit.slot),
        "breaker_us": breaker.per_call_us(breaker.success(Breaker())) - breaker.per_call_us(breaker.nothing),
    }


def unknown_cap(_: Case) -> Figures:
    """A cap of 40 that nobody has told us, lognormal calls of 8 s: the governor for 30 simulated minutes."""
    best = [oracle(UNKNOWN_CAP, seed=seed, seconds=SIMULATED_S).done for seed in SEEDS]
    figures: Figures = {"seeds": len(SEEDS)}
    for strategy in ("aimd", "gradient", "vegas"):
        runs = [govern(UNKNOWN_CAP, cast("Any", strategy), seed=seed, seconds=SIMULATED_S) for seed in SEEDS]
        figures[f"{strategy}_of_oracle"] = 100 * sum(run.done for run in runs) / sum(best)
        figures[f"{strategy}_throttled"] = 100 * fmean(run.throttled_share for run in runs)
    return figures


# ----------------------------------------------------------------------------------------------------- real processes


async def call_all(slot: permits.Slot, n: int) -> None:
    """Make n calls at once, each in a slot."""
    async with httpx2.AsyncClient(base_url=SERVER) as plain:

        async def one() -> None:
            async with slot():
                (await plain.post(CHAT, json=BODY)).raise_for_status()

        await asyncio.gather(*(one() for _ in range(n)))


def wait_for_start() -> None:
    """Say that this process is ready, and wait for the others."""
    harness.hit(os.getpid())
    wait_until((RUN_DIR / "go").exists, timeout_s=harness.READY_TIMEOUT_S)


def calls_of_store(n: int) -> None:
    """Be a process that calls within the limit of the store."""
    app.store.ledger().result()
    wait_for_start()
    asyncio.run(call_all(model.slot, n))
    app.close()


def calls_of_semaphore(n: int) -> None:
    """Be a process that calls within a limit of its own."""
    wait_for_start()
    asyncio.run(call_all(permits.semaphore_slots(LIMIT), n))


def fleet(who: str) -> Callable[[Case], Figures]:
    """Return the case of three processes that call one server: how many calls did it ever see at once?"""

    def run(case: Case) -> Figures:
        each = case.n // PROCESSES
        with FakeProvider(process=True, latency=CALL_S) as server:
            os.environ["BENCH_SERVER"] = server.url
            argv = [sys.executable, "-c", f"import providers; providers.{who}({each})"]
            workers = [Worker(argv) for _ in range(PROCESSES)]
            try:
                harness.wait_for_hits(PROCESSES, timeout_s=harness.READY_TIMEOUT_S)
                (RUN_DIR / "go").touch()
                server.wait_for(ended=each * PROCESSES, timeout_s=harness.DRAIN_TIMEOUT_S)
            except TimeoutError as error:
                message = f"{error}; the processes wrote:\n{harness.worker_log_tail()}"
                raise TimeoutError(message) from error
            finally:
                for worker in workers:
                    worker.kill()
            seen = server.statistics(log=False)
        return {"n": seen.ok, "at_once": seen.max_concurrency}

    return run


def window(case: Case) -> Figures:
    """A quota that is used up in the middle of a run, with a reset in ten seconds: what do two workers send meanwhile?"""
    n = max(case.n, 2 * CALLS_BEFORE)  # some must be left when the quota is used up
    with FakeProvider(process=True, latency=LATENCY) as server:
        os.environ["BENCH_SERVER"] = server.url
        argv = [sys.executable, "-m", "sennit", "worker", "providers:app", "--db", URL]
        with Worker(argv), Worker(argv):
            handles = call_model.map(range(n))
            server.wait_for(ok=CALLS_BEFORE, timeout_s=harness.READY_TIMEOUT_S)
            server.exhaust(RESET_S)
            if not wait_until(
                lambda: app.ledger().result().succeeded == n, timeout_s=harness.DRAIN_TIMEOUT_S, every_s=0.02
            ):
                message = f"{app.ledger().result()}; the workers wrote:\n{harness.worker_log_tail()}"
                raise TimeoutError(message)
            views = [handle.view().result() for handle in handles]
        seen = server.statistics()
    first = seen.pauses[0]
    assert first.first_ok_s is not None
    known_s = first.announced_s + KNOWN_S
    late = [at for at, _ in seen.log if known_s < at < first.until_s]
    assert first.first_arrival_s is not None
    return {
        "n": n,
        "sent_in_pause": first.requests,
        "sent_later_in_pause": len(late),
        "first_call_ms": (first.first_arrival_s - first.until_s) * 1e3,
        "first_ok_ms": (first.first_ok_s - first.until_s) * 1e3,
        "refused": sum(seen.refused.values()),
        "attempts_used_up": sum(view.failures + view.crashes for view in views),
    }


# ------------------------------------------------------------------------------------------------ permits of the store


def wake_figures(found: permits.Wakes) -> Figures:
    return {**harness.spread_ms("wake", found.times_ns), "wrong_waiter": found.wrong}


def permit_wake(case: Case) -> Figures:
    return wake_figures(asyncio.run(permits.wakes_of_store(URL, case.durability, case.n)))


def permit_wake_processes(case: Case) -> Figures:
    return wake_figures(permits.wakes_across(URL, case.durability, RUN_DIR, case.n))


def permit_rate(case: Case) -> Figures:
    return {
        f"callers_{n}_per_s": asyncio.run(permits.permits_per_s(URL, case.durability, n, PERMIT_S))
        for n in permits.CALLERS
    }


def throughput(case: Case) -> Figures:
    """No-op tasks with a provider that has room, against those without one; by turns, in one process."""

    async def rate(task: Any) -> float:
        began_s = time.perf_counter()
        await task.map(range(case.n))
        return case.n / (time.perf_counter() - began_s)

    async def main() -> Figures:
        async with app:
            await noop.submit(-1)
            await noop_of_provider.submit(-1)
            plain, with_provider = await rate(noop), await rate(noop_of_provider)
        return {
            "n": case.n,
            "tasks_per_s": with_provider,
            "plain_tasks_per_s": plain,
            "of_plain": 100 * with_provider / plain,
        }

    return asyncio.run(main())


PROVIDERS: Final[Side] = {
    "limit_cost": costs,
    "limit_unknown_cap": unknown_cap,
    "limit_fleet": fleet("calls_of_store"),
    "limit_window": window,
    "permit_wake": permit_wake,
    "permit_wake_normal": permit_wake,
    "permit_wake_processes": permit_wake_processes,
    "permits": permit_rate,
    "permits_normal": permit_rate,
    "throughput_provider": throughput,
}


# ------------------------------------------------------------------------------------------------------ the raw side


def raw_costs(_: Case) -> Figures:
    return {"limiter_with_us": best_async_us(permits.semaphore_slots(10))}


def raw_wake(case: Case) -> Figures:
    return wake_figures(asyncio.run(permits.wakes_of_semaphore(case.n)))


def raw_rate(_: Case) -> Figures:
    return {
        f"callers_{n}_per_s": asyncio.run(permits.slots_per_s(permits.semaphore_slots(n), n, PERMIT_S))
        for n in permits.CALLERS
    }


SEMAPHORES: Final[Side] = {
    "limit_cost": raw_costs,
    "limit_fleet": fleet("calls_of_semaphore"),
    "permit_wake": raw_wake,
    "permit_wake_normal": raw_wake,
    "permits": raw_rate,
    "permits_normal": raw_rate,
}
SIDE: Final = PROVIDERS
