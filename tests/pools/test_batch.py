"""AsyncBatcher: every item is answered once, whatever fails, is cancelled, or comes at which moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from random import Random
from typing import Any, TypeVar

import pytest

from sennit.errors import BatcherClosed, BatcherFull, SettingsError, UsageError
from sennit.sync.batch import AsyncBatcher, Batcher
from sennit.testing.seededloop import SeededLoop

R = TypeVar("R")


def virtually(main: Callable[[], Coroutine[Any, Any, R]], *, seed: int = 0) -> R:
    """Run on virtual time: a wait for ever is a Deadlock, a timer costs nothing."""
    loop = SeededLoop(seed)
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


class Doubler:
    """A batch function that doubles its items when it is let; remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.doors: list[asyncio.Future[None]] = []

    async def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        door = asyncio.get_running_loop().create_future()
        self.doors.append(door)
        await door
        return [2 * item for item in items]

    def let(self, batch: int) -> None:
        self.doors[batch].set_result(None)


async def doubled(items: list[int]) -> list[int]:
    return [2 * item for item in items]


async def settled() -> None:
    """Wait until nothing is left to do but to wait for time: virtual time goes on only then."""
    await asyncio.sleep(0.000_001)  # sleep: virtual; nothing else can run at that time


def called(batcher: AsyncBatcher[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.ensure_future(batcher(item)) for item in items]


# ---------------------------------------------------------------- when a batch begins


def test_a_lone_caller_waits_for_nobody() -> None:
    async def main() -> None:
        loop, batcher = asyncio.get_running_loop(), AsyncBatcher(doubled)

        assert await batcher(21) == 42
        assert loop.time() == 0.0
        assert batcher.statistics().why == {"idle": 1}

    virtually(main)


def test_callers_that_are_ready_together_make_one_batch() -> None:
    async def main() -> None:
        batcher = AsyncBatcher(doubled)

        assert await asyncio.gather(*(batcher(n) for n in range(7))) == [0, 2, 4, 6, 8, 10, 12]
        assert batcher.statistics().batches == 1

    asyncio.run(main())


def test_what_is_called_while_a_batch_is_under_way_makes_up_the_next() -> None:
    async def main() -> None:
        batcher = AsyncBatcher(fn := Doubler())
        first = called(batcher, 1)
        await settled()
        rest = called(batcher, 2, 3, 4)
        await settled()

        assert fn.batches == [[1]]
        fn.let(0)
        await settled()
        assert sorted(fn.batches[1]) == [2, 3, 4]
        fn.let(1)
        assert [await task for task in first + rest] == [2, 4, 6, 8]

    virtually(main)


def test_with_gather_a_batch_begins_by_count_or_when_the_oldest_is_old_enough() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        batcher = AsyncBatcher(doubled, gather=True, items_max=3, age_s_max=0.05)
        lone = called(batcher, 1)
        await asyncio.sleep(0.04)  # sleep: virtual; the age of the oldest is what is tested
        late = called(batcher, 2)
        await asyncio.gather(*lone, *late)
        assert loop.time() == 0.05
        assert batcher.statistics().why == {"age": 1}

        await asyncio.gather(*called(batcher, 3, 4, 5))
        assert loop.time() == 0.05
        assert batcher.statistics().why == {"age": 1, "count": 1}

    virtually(main)


def test_what_has_waited_long_enough_starts_a_batch_beside_those_under_way() -> None:
    async def main() -> None:
        batcher = AsyncBatcher(fn := Doubler(), in_flight_max=2)
        tasks = called(batcher, 1)
        await settled()
        tasks += called(batcher, 2)
        await asyncio.sleep(0.049)  # sleep: virtual; nearly as old as age_s_max
        assert len(fn.batches) == 1
        await asyncio.sleep(0.002)  # sleep: virtual; older
        assert len(fn.batches) == 2
        tasks += called(batcher, 3)
        await asyncio.sleep(1)  # sleep: virtual; no third one, however old
        assert len(fn.batches) == 2
        fn.let(0)
        await settled()
        assert fn.batches == [[1], [2], [3]]
        fn.let(1)
        fn.let(2)
        assert [await task for task in tasks] == [2, 4, 6]

    virtually(main)


def test_a_batch_is_as_large_as_its_bytes_allow_and_a_larger_item_goes_alone() -> None:
    async def lengths(texts: list[str]) -> list[int]:
        batches.append(texts)
        return [len(text) for text in texts]

    async def main() -> None:
        batcher = AsyncBatcher(lengths, bytes_max=10, size_of=len, gather=True)
        texts = ["x" * 4, "x" * 6, "x" * 3, "x" * 30, "x"]
        assert await asyncio.gather(*(batcher(text) for text in texts)) == [4, 6, 3, 30, 1]

    batches: list[list[str]] = []
    asyncio.run(main())

    assert [[len(text) for text in batch] for batch in batches] == [[4, 6], [3], [30], [1]]


def test_nothing_wakes_the_loop_when_nothing_waits() -> None:
    async def main() -> None:
        batcher = AsyncBatcher(doubled, gather=True, items_max=2)
        await asyncio.gather(*called(batcher, 1, 2))
        await settled()

    loop = SeededLoop()
    loop.run_until_complete(main())

    assert not [timer for *_, timer in loop._timers if not timer.cancelled()]
    loop.close()


# ---------------------------------------------------------------- cancellation


def test_cancelling_one_caller_cancels_no_other() -> None:
    async def main() -> None:
        batcher = AsyncBatcher(fn := Doubler())
        tasks = called(batcher, 1, 2, 3)
        await settled()
        tasks[1].cancel()
        await settled()
        fn.let(0)

        assert [await tasks[0], await tasks[2]] == [2, 6]
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        assert sorted(fn.batches[0]) == [1, 2, 3]

    virtually(main)


@pytest.mark.parametrize("at_that_moment", [True, False])
def test_who_is_cancelled_before_its_batch_begins_is_not_in_it(*, at_that_moment: bool) -> None:
    async def main() -> None:
        batcher = AsyncBatcher(fn := Doubler())
        tasks = called(batcher, 1)
        await settled()
        tasks += called(batcher, 2, 3)
        await settled()
        tasks[1].cancel()
        if not at_that_moment:
            await settled()
        fn.let(0)
        await settled()
        fn.let(1)

        assert [await tasks[0], await tasks[2]] == [2, 6]
        assert fn.batches == [[1], [3]]
        figures = batcher.statistics()
        assert (figures.items, figures.left) == (2, 1)

    for seed in range(20):
        virtually(main, seed=seed)


# ---------------------------------------------------------------- bounds, loops, contexts


def test_a_full_batcher_says_so_when_asked_to() -> None:
    async def main() -> None:
        batcher = AsyncBatcher(fn := Doubler(), waiting_max=2, when_full="error")
        tasks = called(batcher, 1)
        await settled()
        tasks += called(batcher, 2, 3)
        await settled()
        with pytest.raises(BatcherFull, match="2 items wait"):
            await batcher(4)
        fn.let(0)
        await settled()
        fn.let(1)
        assert [await task for task in tasks] == [2, 4, 6]

    virtually(main)


def test_submit_waits_for_room_and_passes_its_turn_on_when_cancelled() -> None:
    async def main() -> None:
        batcher = AsyncBatcher(fn := Doubler(), items_max=1, waiting_max=1)
        futures = [await batcher.submit(1)]
        await settled()
        futures.append(await batcher.submit(2))
        third, fourth = (asyncio.ensure_future(batcher.submit(n)) for n in (3, 4))
        await settled()
        assert not third.done()
        assert len(batcher._door) == 2
        fn.let(0)  # 2 begins: there is room for one
        while len(batcher._door) == 2:  # noqa: ASYNC110 - the moment at which one of them has its turn
            await asyncio.sleep(0)
        third.cancel()
        fourth.cancel() if random.random() < 0.3 else None
        await settled()
        turns.add(third.cancelled())
        assert fourth.done() or not third.cancelled()
        for batch in range(1, 5):
            if batch < len(fn.doors):
                fn.let(batch)
                await settled()
        futures += [await task for task in (third, fourth) if not task.cancelled()]
        assert [await future for future in futures[:2]] == [2, 4]
        assert {await future for future in futures[2:]} <= {6, 8}
        assert batcher.statistics().waiting == 0

    turns: set[bool] = set()
    for seed in range(40):
        random = Random(seed)
        virtually(main, seed=seed)
    assert turns == {True, False}


def test_a_batcher_belongs_to_one_loop() -> None:
    batcher = AsyncBatcher(doubled)

    async def main() -> int:
        return await batcher(1)

    assert asyncio.run(main()) == 2
    with pytest.raises(UsageError, match="second event loop"):
        asyncio.run(main())


def test_a_batch_function_that_calls_its_own_batcher_is_told_so() -> None:
    async def again(items: list[int]) -> list[int]:
        return [await batcher(item) for item in items]

    batcher = AsyncBatcher(again)

    async def main() -> None:
        with pytest.raises(UsageError, match="called its own"):
            await batcher(1)

    asyncio.run(main())


def test_the_function_runs_in_the_context_the_batcher_was_made_in() -> None:
    caller: ContextVar[str] = ContextVar("caller", default="nobody")

    def who(items: list[int]) -> list[str]:
        seen, _ = caller.get(), caller.set("a batch before")
        return [seen for _ in items]

    async def main() -> None:
        caller.set("the maker")
        batcher = AsyncBatcher(who)
        with ThreadPoolExecutor(1) as executor:
            elsewhere = AsyncBatcher(who, executor=executor)
            caller.set("a caller")
            assert [await batcher(1), await batcher(2), await elsewhere(3)] == ["the maker"] * 3

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"items_max": 0}, "items_max is 0"),
        ({"in_flight_max": 0}, "in_flight_max"),
        ({"age_s_max": -1}, "age_s_max"),
        ({"age_s_max": float("nan")}, "age_s_max"),
        ({"bytes_max": 10}, "belong together"),
        ({"waiting_max": 0}, "waiting_max"),
        ({"when_full": "eror"}, "neither 'wait' nor 'error'"),
    ],
)
def test_a_bound_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        AsyncBatcher(doubled, **options)
    with pytest.raises(SettingsError, match=said):
        Batcher(list, **options)


# ---------------------------------------------------------------- the end


def test_closing_runs_what_waits_and_takes_nothing_more() -> None:
    async def main() -> None:
        async with AsyncBatcher(doubled, gather=True, age_s_max=60) as batcher:
            tasks = called(batcher, 1, 2)
            await settled()
        assert [await task for task in tasks] == [2, 4]
        assert batcher.statistics().why == {"close": 1}
        assert asyncio.get_running_loop().time() < 1
        with pytest.raises(BatcherClosed):
            await batcher(3)

    virtually(main)


def test_closing_does_not_wait_for_a_function_that_never_returns() -> None:
    async def main() -> None:
        batcher = AsyncBatcher(fn := Doubler(), items_max=1)
        tasks = called(batcher, 1, 2)
        await settled()

        assert not await batcher.close(timeout_s=5)

        assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.01)
        for task in tasks:
            with pytest.raises(BatcherClosed, match="before this item had an answer"):
                await task
        assert len(fn.batches) == 1

    virtually(main)
