"""The rate budget of one process: a line in order, without polling, that neither loses a wake-up nor a token."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sennit.errors import SettingsError, UsageError
from sennit.limit.rate_live import RateBudget, RateReservation
from sennit.limit.rejected import Rejected
from sennit.model.provider import RateFeedback
from sennit.sync.clock import uptime_us
from sennit.sync.virtual import VirtualClock
from sennit.testing.seededloop import SeededLoop


async def passes(seconds: float) -> None:
    await asyncio.sleep(seconds)  # sleep: virtual time, all who call this run on a SeededLoop


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def held(budget: RateBudget, tokens: int = 0) -> RateReservation:
    reservation = budget.try_reserve(tokens)
    assert reservation
    return reservation


async def until_waiting(budget: RateBudget, n: int) -> None:
    while budget.statistics().waiting < n:  # noqa: ASYNC110 - the loop steps, no time passes
        await asyncio.sleep(0)


# ---------------------------------------------------------------- without waiting


def test_a_rejection_is_false_and_says_when_there_will_be_room(clock: VirtualClock) -> None:
    budget = RateBudget(rpm=60, tpm=6000, now_us=clock.now_us)
    held(budget, 1000)

    answer = budget.try_reserve(500)

    assert not answer
    assert answer == Rejected(5.0, "rate")


def test_requests_and_tokens_are_both_kept(clock: VirtualClock) -> None:
    budget = RateBudget(rpm=6, tpm=6000, now_us=clock.now_us)
    held(budget, 10)

    assert budget.try_reserve(10) == Rejected(10.0, "rate")
    assert budget.statistics() == (0, 990, 0)


def test_settling_gives_back_and_giving_back_also_the_request(clock: VirtualClock) -> None:
    budget = RateBudget(rpm=60, tpm=6000, now_us=clock.now_us)
    first, second = held(budget, 400), held(budget, 400)

    first.settle(100)
    second.give_back()

    assert budget.statistics() == (9, 900, 0)


def test_a_reservation_is_settled_once(clock: VirtualClock) -> None:
    reservation = held(RateBudget(tpm=6000, now_us=clock.now_us), 400)
    reservation.settle(100)

    with pytest.raises(UsageError, match="settled already"):
        reservation.settle(100)


def test_without_a_settle_the_reservation_counts_as_used(clock: VirtualClock) -> None:
    budget = RateBudget(tpm=6000, now_us=clock.now_us)

    with budget.reserve(400):
        pass

    assert budget.statistics().tokens == 600


def test_feedback_makes_it_less(clock: VirtualClock) -> None:
    budget = RateBudget(rpm=60, tpm=6000, now_us=clock.now_us)

    budget.feedback(requests=RateFeedback(remaining=3), tokens=RateFeedback(remaining=0, reset_s=30))

    assert budget.statistics() == (3, 0, 0)
    assert budget.try_reserve(1) == Rejected(30.0, "rate")


@pytest.mark.parametrize(("rpm", "tpm", "burst_s"), [(-1, 0, 10), (0, -1, 10), (1, 1, 0), (1, 1, 61)])
def test_bounds_that_make_no_sense_are_refused(rpm: int, tpm: int, burst_s: float) -> None:
    with pytest.raises(SettingsError, match="rate budget"):
        RateBudget(rpm=rpm, tpm=tpm, burst_s=burst_s)


def test_tokens_below_zero_are_refused() -> None:
    with pytest.raises(SettingsError, match="-1 tokens"):
        RateBudget().reserve(-1)


# ---------------------------------------------------------------- in virtual time


def test_the_line_is_served_in_order_whatever_the_size_and_nobody_polls() -> None:
    """6000 tokens a minute, so 100 a second; the burst is gone."""
    loop = SeededLoop(7)
    served: list[tuple[int, float]] = []

    async def main() -> None:
        budget = RateBudget(tpm=6000, now_us=loop.now_us)
        held(budget, 1000)
        began_s = loop.time()

        async def call(tokens: int) -> None:
            async with budget.reserve(tokens):
                served.append((tokens, round(loop.time() - began_s, 3)))

        tasks = []
        for tokens in (900, 1, 100, 5, 994):
            tasks.append(asyncio.create_task(call(tokens)))
            await until_waiting(budget, len(tasks))
        await asyncio.gather(*tasks)

    loop.run_until_complete(main())

    assert served == [(900, 9.0), (1, 9.01), (100, 10.01), (5, 10.06), (994, 20.0)]
    # A poll of 10 ms would have taken 2000 steps.
    assert len(loop.trace()) < 150
    loop.close()


def test_a_small_call_does_not_overtake_a_large_one_though_there_is_room_for_it() -> None:
    loop = SeededLoop(0)
    served: list[int] = []

    async def main() -> None:
        budget = RateBudget(tpm=6000, now_us=loop.now_us)
        held(budget, 1000)

        async def call(tokens: int) -> None:
            async with budget.reserve(tokens):
                served.append(tokens)

        large = asyncio.create_task(call(900))
        await passes(5)  # 500 are there
        assert budget.try_reserve(1) == Rejected(4.0, "rate")
        await call(1)
        await large

    loop.run_until_complete(main())

    assert served == [900, 1]
    loop.close()


def test_who_leaves_the_front_of_the_line_lets_the_next_one_time_itself() -> None:
    loop = SeededLoop(0)

    async def main() -> float:
        budget = RateBudget(tpm=6000, now_us=loop.now_us)
        held(budget, 1000)
        began_s = loop.time()

        async def call(tokens: int) -> float:
            async with budget.reserve(tokens):
                return loop.time() - began_s

        large = asyncio.create_task(call(900))
        await until_waiting(budget, 1)
        small = asyncio.create_task(call(300))
        await until_waiting(budget, 2)
        large.cancel()
        return await small

    assert loop.run_until_complete(main()) == pytest.approx(3, abs=0.001)
    loop.close()


@pytest.mark.parametrize("seed", range(40))
def test_cancelling_and_settling_at_random_loses_neither_a_waiter_nor_a_token(seed: int) -> None:
    loop = SeededLoop(seed)
    chance = random.Random(seed)
    budget = RateBudget(rpm=600, tpm=60_000, burst_s=1, now_us=loop.now_us)
    done: list[int] = []

    async def call(n: int) -> None:
        tokens = chance.randrange(1, 1500)
        async with budget.reserve(tokens) as reservation:
            await passes(chance.random())
            if chance.random() < 0.7:
                reservation.settle(chance.randrange(0, tokens + 1))
            done.append(n)

    async def main() -> int:
        tasks = [asyncio.create_task(call(n)) for n in range(60)]
        cancelled = 0
        while not all(task.done() for task in tasks):
            await passes(chance.random())
            cancelled += chance.choice(tasks).cancel()
        return cancelled

    assert loop.run_until_complete(main()) + len(done) >= 60
    assert budget.statistics().waiting == 0
    loop.run_until_complete(passes(120))
    assert budget.statistics() == (10, 1000, 0)  # full again: what the cancelled had taken is not lost
    loop.close()


def test_a_waiter_cancelled_just_as_it_is_served_gives_back_what_it_got() -> None:
    loop = SeededLoop(0)

    async def main() -> tuple[int | None, ...]:
        budget = RateBudget(tpm=6000, now_us=loop.now_us)
        first = held(budget, 1000)
        waiter = asyncio.create_task(budget.reserve(1000).__aenter__())
        await until_waiting(budget, 1)
        first.give_back()  # the waiter is served by this call, and has not run yet
        assert budget.statistics() == (None, 0, 0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        return budget.statistics()

    assert loop.run_until_complete(main()) == (None, 1000, 0)
    loop.close()


def test_what_comes_back_wakes_the_line_at_once() -> None:
    loop = SeededLoop(0)

    async def main() -> float:
        budget = RateBudget(tpm=6000, now_us=loop.now_us)
        first = held(budget, 1000)
        began_s = loop.time()

        async def wait() -> float:
            async with budget.reserve(1000):
                return loop.time() - began_s

        waiter = asyncio.create_task(wait())
        await passes(1)
        first.settle(50)
        return await waiter

    assert loop.run_until_complete(main()) == pytest.approx(1.0, abs=0.001)
    loop.close()


# ---------------------------------------------------------------- OS threads


def test_blocking_and_async_callers_share_one_line_and_the_bound_holds() -> None:
    """6000 requests a minute and a burst of one: 60 calls of 3 OS threads and a loop take 0.59 s, not less."""
    budget = RateBudget(rpm=6000, burst_s=0.01)
    began_us = uptime_us()

    def blocking() -> None:
        for _ in range(15):
            with budget.reserve():
                pass

    async def main() -> None:
        async def call() -> None:
            async with budget.reserve():
                pass

        await asyncio.gather(*(call() for _ in range(15)))

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(blocking) for _ in range(3)]
        asyncio.run(main())
        for future in futures:
            future.result()

    assert uptime_us() - began_us >= 590_000
    assert budget.statistics().waiting == 0


def test_a_blocking_waiter_sleeps_until_its_moment_and_burns_no_cpu() -> None:
    budget = RateBudget(rpm=120, burst_s=0.5)
    held(budget)
    used_s: list[float] = []

    def wait() -> None:
        before_s = time.thread_time()
        with budget.reserve():
            used_s.append(time.thread_time() - before_s)

    waiter = threading.Thread(target=wait)
    waiter.start()
    waiter.join()

    assert used_s[0] < 0.02  # of 0.5 s


def test_waiting_with_a_plain_with_on_an_event_loop_is_an_error() -> None:
    budget = RateBudget(rpm=1)

    async def main() -> None:
        with budget.reserve():
            pass
        with pytest.raises(UsageError, match="async with"), budget.reserve():
            pytest.fail("it would have waited a minute")

    asyncio.run(main())
    assert budget.statistics().waiting == 0
