"""Simulated processes die, freeze and start anew as real ones do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from sennit.errors import Deadlock, UsageError
from sennit.testing.simloop import SimLoop


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    loop = SimLoop(seed=1)
    yield loop
    loop.close()


def test_a_killed_process_runs_nothing_any_more_and_no_finally(loop: SimLoop, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[str] = []

    async def worker() -> None:
        loop.call_later(5, ran.append, "timer")
        task = asyncio.ensure_future(helper())
        task.add_done_callback(lambda _: ran.append("callback"))
        try:
            await task
        except asyncio.CancelledError:
            ran.append("cancelled")
        finally:
            ran.append("finally")

    async def helper() -> None:
        async for _ in ticks():
            pass

    async def ticks() -> AsyncIterator[int]:
        try:
            while True:
                await asyncio.sleep(0.3)
                yield 1
        finally:
            ran.append("finally of a generator")

    async def main() -> None:
        with loop.process("worker"):
            loop.create_task(worker())
        await asyncio.sleep(1)
        assert loop.is_alive("worker")
        loop.kill("worker")
        assert not loop.is_alive("worker")
        await asyncio.sleep(3600)
        assert len(asyncio.all_tasks()) == 1

    loop.run_until_complete(main())

    assert ran == []
    assert caplog.text == ""


def test_the_dead_are_unwound_at_close_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    loop = SimLoop()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.shield(asyncio.sleep(1))

    async def failing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("dead already")

    async def too_late() -> None: ...

    async def wasteful() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            asyncio.TaskGroup().create_task(too_late())

    async def failed() -> None:
        raise ValueError("nobody asks the dead")

    async def main() -> None:
        with loop.process("worker"):
            keep.extend(loop.create_task(body()) for body in (stubborn, failing, wasteful, failed))
        await asyncio.sleep(1)
        loop.kill("worker")
        await asyncio.sleep(1)

    keep: list[asyncio.Task[None]] = []
    loop.run_until_complete(main())
    loop.close()
    keep.clear()

    assert caplog.text == ""


def test_time_does_not_move_for_the_timers_of_the_dead(loop: SimLoop) -> None:
    async def main() -> None:
        with loop.process("worker"):
            loop.create_task(asyncio.sleep(3600))
        await asyncio.sleep(1)
        loop.kill("worker")
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        loop.run_until_complete(main())

    assert loop.time() == 1


def test_an_error_for_the_dead_is_nobodys(loop: SimLoop) -> None:
    async def main() -> None:
        with loop.process("worker"):
            answer = loop.create_future()
        loop.kill("worker")
        answer.set_exception(ValueError("too late"))
        del answer
        await asyncio.sleep(1)

    loop.run_until_complete(main())


def test_a_process_that_kills_itself_ends_at_its_next_await(loop: SimLoop) -> None:
    ran: list[str] = []

    async def worker() -> None:
        loop.kill("worker")
        ran.append("to the next await")
        await asyncio.sleep(0)
        ran.append("beyond")

    async def main() -> None:
        with loop.process("worker"):
            loop.create_task(worker())
        await asyncio.sleep(1)

    loop.run_until_complete(main())

    assert ran == ["to the next await"]


def test_another_process_learns_of_the_death_at_once(loop: SimLoop) -> None:
    async def main() -> float:
        with loop.process("worker"):
            loop.create_task(asyncio.sleep(3600))
        loop.call_later(2, loop.kill, "worker")
        await loop.wait_killed("worker")
        return loop.time()

    assert loop.run_until_complete(main()) == 2


def test_a_killed_name_starts_anew(loop: SimLoop) -> None:
    ran: list[str] = []

    async def worker(generation: str) -> None:
        await asyncio.sleep(1)
        ran.append(generation)

    async def main() -> None:
        for generation in ("first", "second"):
            with loop.process("worker"):
                loop.create_task(worker(generation))
            await asyncio.sleep(0.5)
            if generation == "first":
                loop.kill("worker")
        await asyncio.sleep(10)

    loop.run_until_complete(main())

    assert ran == ["second"]


@pytest.mark.parametrize("order", ["wake, kill", "kill, wake"])
def test_what_a_process_has_made_dies_with_it_even_when_another_one_wakes_it(loop: SimLoop, order: str) -> None:
    ran: list[str] = []

    answer = loop.create_future()

    async def child(bell: asyncio.Event) -> None:
        answer.add_done_callback(lambda _: ran.append("callback"))
        await bell.wait()
        ran.append("child")

    async def worker(bell: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child(bell))

    async def main() -> None:
        bell = asyncio.Event()
        with loop.process("worker"):
            loop.create_task(worker(bell))
        await asyncio.sleep(1)
        for act in order.split(", "):
            if act == "kill":
                loop.kill("worker")
            else:
                bell.set()
                answer.set_result(None)
        await asyncio.sleep(1)

    loop.run_until_complete(main())

    assert ran == []


def test_the_hook_can_crash_a_process_between_any_two_awaits() -> None:
    async def main(loop: SimLoop, reached: list[int]) -> None:
        async def worker() -> None:
            for turn in range(5):
                reached.append(turn)
                await asyncio.sleep(0)

        with loop.process("worker"):
            loop.create_task(worker())
        await asyncio.sleep(1)

    for crash_at in range(5):
        reached: list[int] = []
        loop = SimLoop(seed=crash_at)
        loop.before_step = lambda process, step, crash_at=crash_at: step == crash_at
        loop.run_until_complete(main(loop, reached))
        loop.close()
        assert reached == list(range(crash_at))


def test_crash_points_spread_over_all_steps() -> None:
    async def main(loop: SimLoop) -> int:
        reached = 0

        async def worker() -> None:
            nonlocal reached
            for _ in range(20):
                reached += 1
                await asyncio.sleep(0.1)

        loop.crash_points("worker", 0.1)
        with loop.process("worker"):
            loop.create_task(worker())
        await asyncio.sleep(10)
        return reached

    ends = set()
    for seed in range(200):
        loop = SimLoop(seed)
        ends.add(loop.run_until_complete(main(loop)))
        loop.close()

    assert {0, 1, 2, 3, 4, 5, 20} <= ends


def test_a_frozen_process_stands_still_while_time_goes_on(loop: SimLoop) -> None:
    beats: list[float] = []

    async def worker() -> None:
        while True:
            await asyncio.sleep(1)
            beats.append(loop.time())

    async def main() -> None:
        with loop.process("worker"):
            loop.create_task(worker())
        await asyncio.sleep(2.5)
        loop.freeze("worker")
        await asyncio.sleep(100)
        assert beats == [1, 2]
        loop.thaw("worker")
        await asyncio.sleep(1.5)

    loop.run_until_complete(main())

    assert beats == [1, 2, 102.5, 103.5]


def test_a_frozen_process_can_be_killed(loop: SimLoop) -> None:
    ran: list[str] = []

    async def main() -> None:
        with loop.process("worker"):
            loop.call_soon(ran.append, "callback")
            loop.create_task(asyncio.sleep(0)).add_done_callback(lambda _: ran.append("done"))
        loop.freeze("worker")
        await asyncio.sleep(1)
        loop.kill("worker")
        await asyncio.sleep(1)

    loop.run_until_complete(main())

    assert ran == []


@pytest.mark.parametrize("act", [SimLoop.kill, SimLoop.freeze, SimLoop.thaw])
def test_a_process_that_does_not_live_is_refused(loop: SimLoop, act: Callable[[SimLoop, str], None]) -> None:
    with pytest.raises(UsageError, match="no process 'ghost'"):
        act(loop, "ghost")


def test_the_main_process_cannot_be_killed(loop: SimLoop) -> None:
    with pytest.raises(UsageError, match="main process"):
        loop.kill("main")
