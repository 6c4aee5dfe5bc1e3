"""Sync bodies on virtual time: they block in the middle of their stack, and the seed decides when they go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from sennit.errors import AttemptCancelled, UsageError
from sennit.testing.seeds import play
from sennit.testing.simloop import SimLoop
from sennit.testing.simpool import SimAck, SimPool, pause, when_given_up

THREADS = 100


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    loop = SimLoop(seed=1)
    yield loop
    loop.close()


class Ends:
    """What `done` was called with, in order."""

    def __init__(self) -> None:
        self.results: list[Any] = []

    def done(self, result: Any, error: BaseException | None) -> None:
        self.results.append(result if error is None else type(error))


def test_a_body_that_pauses_lets_virtual_time_pass_and_others_run(loop: SimLoop) -> None:
    ends, seen = Ends(), []

    def body() -> str:
        pause(3600)
        return f"at {loop.time():g}"

    async def main() -> None:
        SimPool(loop=loop, threads_max=THREADS).submit(body, ends.done)
        await asyncio.sleep(1)
        seen.append(loop.time())
        await asyncio.sleep(7200)

    loop.run_until_complete(main())

    assert seen == [1]
    assert ends.results == ["at 3600"]


def test_a_body_waits_for_an_ack_and_gets_its_value_or_its_error(loop: SimLoop) -> None:
    ends = Ends()
    good: SimAck[int] = SimAck()
    bad: SimAck[int] = SimAck()

    async def main() -> None:
        pool = SimPool(loop=loop, threads_max=THREADS)
        pool.submit(good.result, ends.done)
        await asyncio.sleep(1)
        good.resolve(7)
        await asyncio.sleep(1)
        pool.submit(bad.result, ends.done)
        await asyncio.sleep(1)
        bad.reject(KeyError("x"))
        await asyncio.sleep(1)

    loop.run_until_complete(main())

    assert ends.results == [7, KeyError]


def test_an_ack_that_would_block_the_simulated_loop_itself_is_refused(loop: SimLoop) -> None:
    async def main() -> None:
        SimAck[int]().wait()

    with pytest.raises(UsageError, match="would block a simulated event loop"):
        loop.run_until_complete(main())


async def two_bodies_race(random: Random, loop: SimLoop) -> None:
    balance = 0

    def deposit() -> None:
        nonlocal balance
        seen = balance
        pause(0)
        balance = seen + 1

    pool = SimPool(loop=loop, threads_max=THREADS)
    for _ in range(2):
        pool.submit(deposit, lambda *_: None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.sleep(1)
    assert balance == 2


def test_the_seed_decides_which_body_goes_on_and_a_race_of_two_is_found() -> None:
    outcomes = [play(two_bodies_race, seed).error is None for seed in range(60)]

    assert set(outcomes) == {True, False}
    assert outcomes == [play(two_bodies_race, seed).error is None for seed in range(60)]


def test_an_interrupt_strikes_when_the_body_comes_back_and_only_once(loop: SimLoop) -> None:
    ends, came = Ends(), []

    def body() -> str:
        try:
            pause(10)
        except AttemptCancelled:
            came.append(loop.time())
        pause(10)
        return "went on"

    async def main() -> list[bool]:
        pool = SimPool(loop=loop, threads_max=THREADS)
        ticket = pool.submit(body, ends.done)
        await asyncio.sleep(1)
        answers = [pool.interrupt(ticket, AttemptCancelled) for _ in range(2)]
        await asyncio.sleep(30)
        return [*answers, pool.interrupt(ticket, AttemptCancelled)]

    assert loop.run_until_complete(main()) == [True, False, False]
    assert came == [10]
    assert ends.results == ["went on"]


def test_a_body_that_has_not_begun_is_interrupted_at_once(loop: SimLoop) -> None:
    ends = Ends()

    async def main() -> bool:
        pool = SimPool(loop=loop, threads_max=THREADS)
        answer = pool.interrupt(pool.submit(lambda: "ran", ends.done), AttemptCancelled)
        await asyncio.sleep(1)
        return answer

    assert loop.run_until_complete(main())
    assert ends.results == [AttemptCancelled]


def test_a_body_that_is_given_up_goes_on_and_nobody_hears_of_its_end(loop: SimLoop) -> None:
    ends, ran = Ends(), []

    def body() -> None:
        when_given_up(lambda: ran.append("given up"))
        pause(10)
        ran.append("to its end")

    async def main() -> list[bool]:
        pool = SimPool(loop=loop, threads_max=THREADS)
        ticket = pool.submit(body, ends.done)
        await asyncio.sleep(1)
        given_up = pool.abandon(ticket)
        await asyncio.sleep(20)
        return [given_up, pool.abandon(ticket)]

    assert loop.run_until_complete(main()) == [True, False]
    assert ran == ["given up", "to its end"]
    assert ends.results == []


@pytest.mark.parametrize("act", [SimLoop.kill, SimLoop.freeze])
def test_a_body_dies_and_freezes_with_its_process(act: Any) -> None:
    loop, ran = SimLoop(seed=1), []

    def body() -> None:
        try:
            pause(10)
            ran.append("came back")
        finally:
            ran.append("finally")

    async def main() -> None:
        with loop.process("worker"):
            SimPool(loop=loop, threads_max=THREADS).submit(body, lambda *_: None)
        await asyncio.sleep(1)
        act(loop, "worker")
        await asyncio.sleep(100)
        assert ran == []

    loop.run_until_complete(main())
    loop.close()

    assert ran == ["finally"]  # unwound, when the world has ended


def test_what_a_body_raises_goes_to_done_of_whatever_kind(loop: SimLoop) -> None:
    ends = Ends()

    def exits() -> None:
        raise SystemExit(3)

    async def main() -> None:
        SimPool(loop=loop, threads_max=THREADS).submit(exits, ends.done)
        await asyncio.sleep(1)

    loop.run_until_complete(main())

    assert ends.results == [SystemExit]


def test_a_closed_pool_refuses_bodies_and_ends_those_it_has(loop: SimLoop) -> None:
    ends = Ends()

    def body() -> str:
        pause(1)
        return "ended"

    async def main() -> None:
        pool = SimPool(loop=loop, threads_max=THREADS)
        pool.submit(body, ends.done)
        pool.close()
        with pytest.raises(UsageError, match="closed"):
            pool.submit(lambda: None, ends.done)
        await asyncio.sleep(2)

    loop.run_until_complete(main())

    assert ends.results == ["ended"]
