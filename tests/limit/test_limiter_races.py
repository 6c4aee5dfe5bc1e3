"""The limiter under OS threads and event loops that all run at once: never too many, nobody forgotten, nothing kept.

OS threads change places every few µs here, and each window that must not be entered twice has a call inside it: CPython
changes places at calls only.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from random import Random

import pytest

from sennit.errors import UsageError
from sennit.limit.limiter import AdaptiveLimiter, Permit

JOIN_S = 30.0  # a test that takes longer has lost a wake-up
THREADS = 8
CALLS = 150


@pytest.fixture(autouse=True)
def changing_places_all_the_time() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-6)
    yield
    sys.setswitchinterval(before)


class Server:
    """Counts who is in, with a call between reading and writing."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.peak = 0
        self.served = 0

    def enter(self) -> None:
        with self.lock:
            self.inside += 1
            self.peak = max(self.peak, self.inside)

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            self.served += 1

    def call(self) -> None:
        self.enter()
        look_about()
        self.leave()

    async def acall(self) -> None:
        self.enter()
        try:
            await asyncio.sleep(0)
        finally:  # also when it is cancelled
            self.leave()


def look_about() -> int:
    return sum(range(20))


def run_all(*targets: Callable[[], object]) -> None:
    """Run each in an OS thread of its own, from one start signal; re-raise what fails."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(targets))

    def guarded(target: Callable[[], object]) -> None:
        try:
            start.wait()
            target()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_S)
    if errors:
        raise errors[0]
    assert not [thread for thread in threads if thread.is_alive()], "somebody waits for ever"


def assert_at_rest(limiter: AdaptiveLimiter) -> None:
    now = limiter.statistics()
    assert now.in_flight == 0
    assert sum(now.waiting.values()) == 0
    assert now.granted == sum(now.outcomes.values())


@pytest.mark.parametrize("limit", [1, 3])
def test_os_threads_and_loops_together_are_never_more_than_the_limit(limit: int) -> None:
    limiter = AdaptiveLimiter(limit, strategy="fixed")
    server = Server()

    def in_sync() -> None:
        for _ in range(CALLS):
            with limiter.slot():
                server.call()

    def in_async() -> None:
        async def call() -> None:
            async with limiter.slot():
                await server.acall()

        async def run() -> None:
            await asyncio.gather(*(call() for _ in range(CALLS)))

        asyncio.run(run())

    run_all(*[in_sync] * (THREADS // 2), *[in_async] * (THREADS // 2))

    assert server.peak <= limit
    assert server.served == THREADS * CALLS
    assert_at_rest(limiter)


def test_the_limit_is_reached_and_not_only_kept() -> None:
    """Three permits serve three at once: they meet at a barrier, or this hangs."""
    limiter = AdaptiveLimiter(3, strategy="fixed")
    meeting = threading.Barrier(3)

    def call() -> None:
        with limiter.slot():
            meeting.wait(JOIN_S)

    run_all(*[call] * 9)

    assert_at_rest(limiter)


def test_a_permit_that_two_release_at_once_is_released_once() -> None:
    limiter = AdaptiveLimiter(5, strategy="fixed")
    refused: list[UsageError] = []
    permits = [limiter.acquire().result() for _ in range(5)]

    def release_all() -> None:
        for permit in permits:
            try:
                limiter.release(permit)
            except UsageError as error:
                refused.append(error)

    run_all(*[release_all] * 4)

    assert len(refused) == 3 * 5
    assert_at_rest(limiter)


def call_impatiently(limiter: AdaptiveLimiter, server: Server, random: Random) -> None:
    for _ in range(CALLS):
        try:
            with limiter.slot(timeout_s=random.choice([0.0, 0.0001, None])):
                server.call()
        except TimeoutError:
            continue


def cancel_half_of_the_calls(limiter: AdaptiveLimiter, server: Server, random: Random) -> None:
    async def call() -> None:
        async with limiter.slot(priority=random.choice(["low", "normal", "urgent"])):
            await server.acall()

    async def main() -> None:
        for _ in range(CALLS // 5):
            tasks = [asyncio.ensure_future(call()) for _ in range(10)]
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
            for task in random.sample(tasks, 5):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_resize_storms_and_impatient_callers_leave_nothing_behind(seed: int) -> None:
    limiter = AdaptiveLimiter(10, strategy="fixed")
    server = Server()
    left = threading.Semaphore(0)

    def storm() -> None:
        while not all_left.is_set():
            for ceiling in (10, 2, 5, 2, 5):
                limiter.resize(ceiling)
                look_about()

    def count() -> None:
        for _ in range(6):
            left.acquire()
        all_left.set()

    def caller(number: int) -> Callable[[], None]:
        calls = call_impatiently if number % 2 else cancel_half_of_the_calls

        def run() -> None:
            try:
                calls(limiter, server, Random(seed * 100 + number))
            finally:
                left.release()

        return run

    all_left = threading.Event()
    run_all(storm, count, *(caller(number) for number in range(6)))

    assert server.peak <= 10
    assert_at_rest(limiter)
    limiter.resize(4)
    assert len([permit for permit in (limiter.try_acquire() for _ in range(9)) if permit]) == 4


def test_each_release_from_another_os_thread_wakes_a_loop_that_sleeps() -> None:
    """The loop has nothing else to do: without a wake-up call it would sleep on."""
    limiter = AdaptiveLimiter(1, strategy="fixed")
    held: list[Permit] = [limiter.acquire().result()]
    handed = threading.Semaphore(0)

    def releaser() -> None:
        for _ in range(CALLS):
            handed.acquire()
            limiter.release(held.pop())

    def loop() -> None:
        async def main() -> None:
            for _ in range(CALLS):
                waiter = asyncio.ensure_future(limiter.acquire())
                await asyncio.sleep(0)
                handed.release()
                held.append(await waiter)

        asyncio.run(main())

    run_all(releaser, loop)

    limiter.release(held.pop())
    assert_at_rest(limiter)


def test_an_adaptive_limit_is_kept_while_it_moves() -> None:
    """What was granted and not given back is never more than the limit has ever been."""
    limiter = AdaptiveLimiter(20, strategy="aimd")
    server = Server()
    highest = [limiter.limit]

    def call(number: int) -> Callable[[], None]:
        def run() -> None:
            random = Random(number)
            for _ in range(CALLS):
                with limiter.slot() as permit:
                    highest.append(limiter.limit)
                    server.call()
                    permit.outcome = "throttled" if random.random() < 0.05 else "ok"

        return run

    run_all(*(call(n) for n in range(THREADS)))

    assert server.peak <= max(highest) <= 20
    assert_at_rest(limiter)
