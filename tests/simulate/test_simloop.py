"""The simulated loop keeps asyncio's promises, time costs nothing, and faults get a name."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from sennit.errors import Deadlock, StepLimit, UnhandledError, UsageError
from sennit.testing.clock import EPOCH_US, VirtualClock
from sennit.testing.simloop import SimLoop


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    loop = SimLoop(seed=1)
    yield loop
    loop.close()


def run_once(body: Callable[[], Coroutine[Any, Any, Any]], *, seed: int, **options: Any) -> Any:
    loop = SimLoop(seed, **options)
    try:
        return loop.run_until_complete(body())
    finally:
        loop.close()


# ---------------------------------------------------------------- time


def test_an_hour_passes_without_waiting(loop: SimLoop) -> None:
    started = time.monotonic()

    loop.run_until_complete(asyncio.sleep(3600))

    assert loop.time() == 3600
    assert loop.now_us() == EPOCH_US + 3_600_000_000
    assert time.monotonic() - started < 5


def test_timers_fire_in_the_order_of_their_deadlines(loop: SimLoop) -> None:
    fired: list[float] = []
    for delay_s in (3.0, 1.0, 2.0, 1.5):
        loop.call_later(delay_s, fired.append, delay_s)

    loop.run_until_complete(asyncio.sleep(4))

    assert fired == [1.0, 1.5, 2.0, 3.0]


def test_a_timer_that_is_due_fires_although_others_never_pause(loop: SimLoop) -> None:
    async def spin() -> None:
        fired: list[str] = []
        loop.call_later(0, fired.append, "now")
        while not fired:  # noqa: ASYNC110  # never lets time go on
            await asyncio.sleep(0)

    loop.run_until_complete(spin())

    assert loop.time() == 0


def test_equal_deadlines_are_a_tie_that_either_may_win() -> None:
    async def first_of_two() -> str:
        order: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_later(1, order.append, "a")
        loop.call_later(1, order.append, "b")
        await asyncio.sleep(2)
        return order[0]

    winners = {run_once(first_of_two, seed=seed) for seed in range(50)}

    assert winners == {"a", "b"}


def test_a_cancelled_timer_does_not_move_time(loop: SimLoop) -> None:
    async def finish_early() -> None:
        async with asyncio.timeout(3600):
            await asyncio.sleep(1)
        await asyncio.sleep(1)

    loop.run_until_complete(finish_early())

    assert loop.time() == 2


def test_the_wall_clock_can_be_set_back_and_timers_do_not_notice(loop: SimLoop) -> None:
    async def set_back_during_a_sleep() -> None:
        loop.call_later(1, loop.step_clock, -3_600_000_000)
        await asyncio.sleep(10)

    loop.run_until_complete(set_back_during_a_sleep())

    assert loop.time() == 10
    assert loop.now_us() == EPOCH_US + 10_000_000 - 3_600_000_000


def test_a_stall_lets_a_deadline_pass_that_a_fast_machine_would_keep() -> None:
    async def ten_turns_in_a_second() -> bool:
        try:
            async with asyncio.timeout(1):
                for _ in range(10):
                    await asyncio.sleep(0)
        except TimeoutError:
            return False
        return True

    assert all(run_once(ten_turns_in_a_second, seed=seed) for seed in range(50))
    stalled = [run_once(ten_turns_in_a_second, seed=seed, stall_probability=0.05) for seed in range(50)]
    assert {True, False} == set(stalled)


def test_a_virtual_clock_jumps_to_the_next_deadline_that_its_sources_know() -> None:
    clock = VirtualClock(start_us=1_000)
    deadlines: list[int | None] = [5_000, None, 3_000]
    for due_us in deadlines:
        clock.watch(lambda due_us=due_us: due_us)  # type: ignore[misc]

    assert clock.jump() == 3_000
    assert clock.now_us() == 3_000
    assert clock.advance(0.5) == 503_000
    assert clock.jump() == 3_000, "a deadline in the past is due, and time does not go back to it"
    assert clock.now_us() == 503_000
    clock.step_clock(-3_000)
    assert clock.now_us() == 500_000
    assert VirtualClock().jump() is None
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


# ---------------------------------------------------------------- asyncio's promises


def test_plain_callbacks_keep_their_order_under_every_seed() -> None:
    async def collect() -> list[int]:
        loop, seen = asyncio.get_running_loop(), list[int]()
        for number in range(5):
            loop.call_soon(seen.append, number)
            loop.call_soon_threadsafe(seen.append, number + 100)
        await asyncio.sleep(1)
        return seen

    for seed in range(30):
        assert run_once(collect, seed=seed) == [0, 100, 1, 101, 2, 102, 3, 103, 4, 104]


def test_a_lock_stays_fair_and_exclusive_under_every_seed() -> None:
    async def compete() -> None:
        lock, inside, order = asyncio.Lock(), 0, list[int]()

        async def enter(number: int) -> None:
            nonlocal inside
            async with lock:
                inside += 1
                assert inside == 1
                order.append(number)
                await asyncio.sleep(0)
                inside -= 1

        await lock.acquire()
        waiters = []
        for number in range(4):
            waiters.append(asyncio.create_task(enter(number)))
            await asyncio.sleep(1)
        lock.release()
        await asyncio.gather(*waiters)
        assert order == [0, 1, 2, 3]

    for seed in range(100):
        run_once(compete, seed=seed)


def test_asyncio_works_as_usual_under_every_seed() -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0.1)
            yield number

    async def fail() -> None:
        raise ValueError

    async def a_group_that_fails() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(3600))
            group.create_task(fail())

    async def everything() -> None:
        task = asyncio.current_task()
        assert task is not None
        assert isinstance(asyncio.get_running_loop(), SimLoop)
        assert list(await asyncio.gather(asyncio.sleep(2, "a"), asyncio.sleep(1, "b"))) == ["a", "b"]
        done, pending = await asyncio.wait(
            [asyncio.create_task(asyncio.sleep(n, n)) for n in (1, 9)], return_when=asyncio.FIRST_COMPLETED
        )
        assert [t.result() for t in done] == [1]
        assert len(pending) == 1
        for left in pending:
            left.cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 1)
        with pytest.raises(ExceptionGroup):
            await a_group_that_fails()
        assert [number async for number in numbers()] == [0, 1, 2]
        assert await asyncio.to_thread(sum, [1, 2]) == 3
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)

    for seed in range(50):
        run_once(everything, seed=seed)


def test_the_standard_runner_takes_it_and_ends_what_is_left(loop: SimLoop) -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("task")

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            ended.append("generator")

    async def main() -> AsyncIterator[int]:
        keep.append(asyncio.create_task(background()))
        generator = numbers()
        await anext(generator)
        await asyncio.sleep(1)
        return generator

    keep: list[asyncio.Task[None]] = []
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        generator = runner.run(main())

    assert ended == ["task", "generator"]
    assert loop.is_closed()
    assert loop.time() == 1
    del generator


def test_an_error_that_nobody_awaits_ends_the_run(loop: SimLoop) -> None:
    async def fail() -> None:
        raise ValueError("unseen")

    async def main() -> None:
        task = loop.create_task(fail(), name="forgotten")
        await asyncio.sleep(1)
        del task

    with pytest.raises(UnhandledError, match="forgotten raised ValueError"):
        loop.run_until_complete(main())


def test_a_callback_that_raises_ends_the_run_at_once(loop: SimLoop) -> None:
    loop.call_later(1, lambda: 1 // 0)

    with pytest.raises(UnhandledError, match="ZeroDivisionError"):
        loop.run_until_complete(asyncio.sleep(3600))

    assert loop.time() == 1


def test_no_garbage_collection_falls_into_a_run(loop: SimLoop) -> None:
    async def collects() -> bool:
        return gc.isenabled()

    assert not loop.run_until_complete(collects())
    assert gc.isenabled()


def test_another_os_thread_is_refused(loop: SimLoop) -> None:
    async def main() -> None:
        import threading

        def ring() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except UsageError as error:
                refused.append(error)

        thread = threading.Thread(target=ring)
        thread.start()
        thread.join()

    refused: list[UsageError] = []
    loop.run_until_complete(main())

    assert len(refused) == 1


def test_a_set_of_tasks_and_futures_has_the_same_order_in_every_run() -> None:
    async def order_of_a_set() -> list[str]:
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(20)]
        tasks = [asyncio.ensure_future(asyncio.sleep(0)) for _ in range(20)]
        done, _ = await asyncio.wait(tasks)
        return [t.get_name() for t in done] + [str(futures.index(f)) for f in set(futures)]

    ballast, orders = [], []
    for size in range(1, 6):  # other addresses each time
        ballast.append([object() for _ in range(size * 37)])
        orders.append(run_once(order_of_a_set, seed=3))

    assert all(order == orders[0] for order in orders)


# ---------------------------------------------------------------- what it finds


async def hold_and_want(mine: asyncio.Lock, other: asyncio.Lock) -> None:
    async with mine:
        await asyncio.sleep(1)
        async with other:
            pass


def test_a_deadlock_is_reported_with_who_waits_where(loop: SimLoop) -> None:
    async def main() -> None:
        a, b = asyncio.Lock(), asyncio.Lock()
        with loop.process("left"):
            one = loop.create_task(hold_and_want(a, b), name="transfer")
        with loop.process("right"):
            other = loop.create_task(hold_and_want(b, a), name="refund")
        await asyncio.gather(one, other)

    with pytest.raises(Deadlock) as deadlock:
        loop.run_until_complete(main())

    waiting = deadlock.value.waiting
    assert len(waiting) == 3
    assert any(line.startswith("left transfer: hold_and_want (test_simloop.py:") for line in waiting)
    assert any(line.startswith("right refund: hold_and_want (test_simloop.py:") for line in waiting)
    assert "Lock.acquire (locks.py:" in str(deadlock.value)


def test_a_frozen_process_is_named_in_a_deadlock(loop: SimLoop) -> None:
    async def main() -> None:
        with loop.process("worker"):
            task = loop.create_task(asyncio.sleep(1), name="work")
        loop.freeze("worker")
        await task

    with pytest.raises(Deadlock, match=r"worker \(frozen\) work"):
        loop.run_until_complete(main())


def test_a_failed_task_that_left_others_waiting_is_reported_instead_of_the_deadlock(loop: SimLoop) -> None:
    async def main() -> None:
        bell = asyncio.Event()

        async def ring() -> None:
            raise ValueError("before it rang")

        task = loop.create_task(ring(), name="ring")
        await bell.wait()
        await task

    with pytest.raises(UnhandledError, match="before it rang"):
        loop.run_until_complete(main())


def test_a_poll_hits_the_step_limit() -> None:
    async def poll() -> None:
        while True:  # noqa: ASYNC110  # the fault that is planted here
            await asyncio.sleep(0)

    with pytest.raises(StepLimit):
        run_once(poll, seed=0, step_limit=1_000)
