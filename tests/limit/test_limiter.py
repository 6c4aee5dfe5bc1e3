"""AdaptiveLimiter by itself: permits, lines, resizing, bad use, and statistics."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from sennit.errors import SettingsError, UsageError
from sennit.limit.limiter import AdaptiveLimiter, Permit
from sennit.limit.rejected import Rejected
from sennit.model.order import Priority


class Clock:
    def __init__(self) -> None:
        self.now_us = 10**12

    def __call__(self) -> int:
        return self.now_us

    def go(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)


def full(limiter: AdaptiveLimiter) -> list[Permit]:
    """Take all the permits there are."""
    permits = []
    while permit := limiter.try_acquire():
        permits.append(permit)
    return permits


async def idle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


# ---------------------------------------------------------------- permits


def test_so_many_permits_are_out_and_no_more() -> None:
    limiter = AdaptiveLimiter(3, strategy="fixed")

    permits = full(limiter)

    assert len(permits) == limiter.in_flight == 3
    limiter.release(permits[0])
    assert isinstance(limiter.try_acquire(), Permit)


def test_a_rejection_is_false_and_says_when_a_permit_should_be_free() -> None:
    clock = Clock()
    limiter = AdaptiveLimiter(2, strategy="fixed", now_us=clock)
    first, _second = full(limiter)

    unknown = limiter.try_acquire()
    clock.go(8.0)
    limiter.release(first)
    full(limiter)
    known = limiter.try_acquire()

    assert isinstance(unknown, Rejected)
    assert not unknown
    assert unknown.retry_after_s == 1.0
    assert isinstance(known, Rejected)
    assert known.retry_after_s == pytest.approx(4.0)  # one of two that take 8 s each
    assert known.reason == "limit"


def test_a_block_gives_its_permit_back() -> None:
    limiter = AdaptiveLimiter(1)

    with limiter.slot() as permit:
        assert limiter.in_flight == 1

    assert limiter.in_flight == 0
    assert not permit.is_held


def test_a_permit_given_back_within_its_block_is_not_given_back_twice() -> None:
    limiter = AdaptiveLimiter(2)

    with limiter.slot() as permit:
        limiter.release(permit, outcome="ok", tokens=5)

    assert limiter.in_flight == 0
    assert limiter.statistics().outcomes == {"ok": 1}


def test_a_permit_is_released_once() -> None:
    limiter = AdaptiveLimiter(2)
    permit = limiter.acquire().result()
    limiter.release(permit)

    with pytest.raises(UsageError, match="given back already"):
        limiter.release(permit)

    assert limiter.in_flight == 0


def test_a_permit_is_released_where_it_was_granted() -> None:
    ours, theirs = AdaptiveLimiter(2), AdaptiveLimiter(2)
    permit = theirs.acquire().result()

    with pytest.raises(UsageError, match="another limiter"):
        ours.release(permit)

    assert theirs.in_flight == 1
    permit.limiter.release(permit)
    assert theirs.in_flight == 0


# ---------------------------------------------------------------- lines


def test_first_come_first_served_within_a_priority() -> None:
    async def run() -> list[str]:
        clock = Clock()
        limiter = AdaptiveLimiter(1, strategy="fixed", now_us=clock)
        order: list[str] = []

        async def call(name: str, priority: str) -> None:
            async with limiter.slot(priority=priority):
                order.append(name)

        async with limiter.slot(), asyncio.TaskGroup() as group:
            for name, priority in [("n1", "normal"), ("l1", "low"), ("h1", "high"), ("n2", "normal"), ("u1", "urgent"), ("h2", "high")]:  # fmt: skip
                clock.go(1.0)
                group.create_task(call(name, priority))
                await idle()
            # The group is left when the calls are done: give the permit to them now.
            await hand_over(limiter)
        return order

    async def hand_over(limiter: AdaptiveLimiter) -> None:
        limiter.resize(2)
        await idle()

    assert asyncio.run(run()) == ["u1", "h1", "h2", "n1", "n2", "l1"]


def test_a_low_one_that_has_waited_for_ten_minutes_goes_before_a_normal_one_of_now() -> None:
    async def run() -> list[str]:
        clock = Clock()
        limiter = AdaptiveLimiter(1, strategy="fixed", now_us=clock)
        (permit,) = full(limiter)
        order: list[str] = []

        async def call(priority: Priority) -> None:
            async with limiter.slot(priority=priority):
                order.append(priority.name)

        async with asyncio.TaskGroup() as group:
            group.create_task(call(Priority.LOW))
            await idle()
            clock.go(600.0)
            group.create_task(call(Priority.NORMAL))
            await idle()
            limiter.release(permit)
        return order

    assert asyncio.run(run()) == ["LOW", "NORMAL"]


def test_a_waiter_cancelled_as_it_is_granted_passes_its_permit_on() -> None:
    async def run() -> None:
        limiter = AdaptiveLimiter(1, strategy="fixed")
        (permit,) = full(limiter)
        first = asyncio.ensure_future(limiter.acquire())
        second = asyncio.ensure_future(limiter.acquire())
        await idle()

        limiter.release(permit)  # granted to the first …
        first.cancel()  # … that has not run since

        assert isinstance(await second, Permit)
        assert first.cancelled()
        assert limiter.in_flight == 1

    asyncio.run(run())


def test_who_waits_too_long_leaves_the_line() -> None:
    async def run() -> None:
        limiter = AdaptiveLimiter(1, strategy="fixed")
        (permit,) = full(limiter)

        with pytest.raises(TimeoutError):
            await limiter.acquire(timeout_s=0.001)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001), limiter.slot():
                raise AssertionError("there was no permit")

        assert sum(limiter.statistics().waiting.values()) == 0
        limiter.release(permit)
        assert limiter.in_flight == 0

    asyncio.run(run())


def test_in_an_os_thread_a_wait_has_an_end_too() -> None:
    limiter = AdaptiveLimiter(1, strategy="fixed")
    (permit,) = full(limiter)

    with pytest.raises(TimeoutError, match=r"0\.001 s"), limiter.slot(timeout_s=0.001):
        raise AssertionError("there was no permit")

    assert sum(limiter.statistics().waiting.values()) == 0
    limiter.release(permit)
    assert limiter.acquire(timeout_s=0).result()


def test_thousands_who_wait_on_a_loop_that_is_gone_are_passed_over() -> None:
    """A loop closed with tasks that were never cancelled: their permits go to those who still listen."""
    limiter = AdaptiveLimiter(1, strategy="fixed")
    (permit,) = full(limiter)
    dead = asyncio.new_event_loop()
    seen: list[str] = []
    dead.set_exception_handler(lambda _loop, context: seen.append(context["message"]))

    async def wait() -> Permit:
        return await limiter.acquire()

    tasks = [dead.create_task(wait()) for _ in range(3000)]
    dead.run_until_complete(idle())
    assert sum(limiter.statistics().waiting.values()) == 3000
    dead.close()

    async def alive() -> Permit:
        waiter = asyncio.ensure_future(limiter.acquire())
        await idle()
        limiter.release(permit)
        return await waiter

    last = asyncio.run(alive())

    assert limiter.in_flight == 1
    limiter.release(last)
    del tasks
    gc.collect()  # closes the coroutines that never went on; they must not give anything back again
    assert limiter.in_flight == 0
    assert set(seen) == {"Task was destroyed but it is pending!"}


# ---------------------------------------------------------------- resize


def test_below_what_is_in_flight_nothing_is_granted_until_it_is_back_under() -> None:
    limiter = AdaptiveLimiter(10, strategy="fixed")
    permits = full(limiter)
    limiter.resize(2)

    for permit in permits[:8]:
        limiter.release(permit)
        assert not limiter.try_acquire()

    limiter.release(permits[8])
    assert limiter.try_acquire()
    assert limiter.in_flight == 2


def test_growing_wakes_as_many_as_there_is_room_for() -> None:
    async def run() -> None:
        limiter = AdaptiveLimiter(1, strategy="fixed")
        full(limiter)
        waiters = [asyncio.ensure_future(limiter.acquire()) for _ in range(10)]
        await idle()

        limiter.resize(5)
        await idle()

        assert [waiter.done() for waiter in waiters] == [True] * 4 + [False] * 6
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters)

    asyncio.run(run())


# ---------------------------------------------------------------- bad use


def test_waiting_without_await_on_an_event_loop_is_an_error_even_when_there_is_room() -> None:
    async def run() -> None:
        limiter = AdaptiveLimiter(1)
        with pytest.raises(UsageError, match="without `await`"), limiter.slot():
            raise AssertionError("it would have blocked the loop once the limit is reached")
        assert limiter.in_flight == 0

    asyncio.run(run())


@pytest.mark.parametrize("ceiling", [0, -1, 2.5, True, "3", None])
def test_a_ceiling_is_a_whole_number_from_one(ceiling: Any) -> None:
    with pytest.raises(SettingsError, match="ceiling is"):
        AdaptiveLimiter(ceiling)
    limiter = AdaptiveLimiter(3)
    with pytest.raises(SettingsError, match="ceiling is"):
        limiter.resize(ceiling)
    assert limiter.statistics().ceiling == 3


def test_other_arguments_are_checked_too() -> None:
    with pytest.raises(SettingsError, match="no strategy 'tcp'"):
        AdaptiveLimiter(3, strategy="tcp")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="floor is 4"):
        AdaptiveLimiter(3, floor=4)
    with pytest.raises(ValueError, match="priority must be one of"):
        AdaptiveLimiter(3).slot(priority="soon")


# ---------------------------------------------------------------- statistics


def test_statistics_add_up() -> None:
    async def run() -> None:
        clock = Clock()
        limiter = AdaptiveLimiter(2, strategy="fixed", now_us=clock)
        permits = full(limiter)
        waiting = [asyncio.ensure_future(limiter.acquire(priority=p)) for p in ("low", "low", "urgent")]
        await idle()
        assert limiter.statistics().waiting == {"urgent": 1, "high": 0, "normal": 0, "low": 2}

        clock.go(2.0)
        for permit in permits:
            limiter.release(permit, outcome="throttled")
        await idle()
        now = limiter.statistics()

        assert (now.limit, now.ceiling, now.in_flight, now.granted) == (2, 2, 2, 4)
        assert (now.waited, now.waited_s, now.rejected) == (2, 4.0, 1)
        assert now.waited_p50_s == 0.0
        assert 2.0 <= now.waited_p99_s <= 4.0
        assert now.outcomes == {"throttled": 2}
        waiting[1].cancel()
        await asyncio.wait(waiting)

    asyncio.run(run())
