"""AsyncBatcher: each item is answered once, in any order of calls, failures, cancellations and time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sennit.errors import BatchFailed
from sennit.sync.batch import AsyncBatcher
from sennit.testing.seededloop import SeededLoop
from sennit.testing.seeds import run_seeds
from sennit.testing.simloop import SimLoop


async def settled() -> None:
    """Wait until nothing is left to do but to wait for time: virtual time goes on only then."""
    await asyncio.sleep(0.000_001)  # sleep: virtual; nothing else can run at that time


async def crowd(random: Random, loop: SimLoop) -> None:
    """Callers come, fail and are cancelled at random; afterwards each item has been answered once, and rightly."""
    items_max, in_flight_max = random.randint(1, 5), random.randint(1, 3)
    split = random.random() < 0.3
    given: list[int] = []
    under_way = 0

    async def fn(items: list[int]) -> Sequence[int | Exception]:
        nonlocal under_way
        under_way += 1
        assert under_way <= in_flight_max
        assert 1 <= len(items) <= items_max
        given.extend(items)
        await asyncio.sleep(random.choice([0, 0.001, 0.1]))  # sleep: virtual
        under_way -= 1
        match random.random():
            case x if x < 0.1:
                raise ConnectionError
            case x if x < 0.2 and not split:
                return [0] * (len(items) + 1)
            case _:
                return [KeyError(item) if item % 10 == 7 else 2 * item for item in items]

    batcher = AsyncBatcher(
        fn,
        items_max=items_max,
        in_flight_max=in_flight_max,
        gather=random.random() < 0.5,
        split_on_error=split,
    )
    joined: list[int] = []

    async def caller(item: int) -> int:
        await asyncio.sleep(random.choice([0, 0, 0.01, 0.05, 0.2]))  # sleep: virtual
        joined.append(item)
        return await batcher(item)

    tasks = [asyncio.ensure_future(caller(item)) for item in range(25)]
    for task in random.sample(tasks, 6):
        loop.call_later(random.choice([0, 0.01, 0.05, 0.1]), task.cancel)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert await batcher.close()

    for item, each in enumerate(found):
        if isinstance(each, asyncio.CancelledError | BatchFailed):
            continue
        if isinstance(each, KeyError):
            assert each.args == (item,)
            assert item % 10 == 7
        elif not isinstance(each, ConnectionError):
            assert each == 2 * item
            assert item % 10 != 7
    answered = {item for item, each in enumerate(found) if not isinstance(each, asyncio.CancelledError)}
    assert answered <= set(given)
    first_times = list(dict.fromkeys(given))
    assert split or given == first_times
    assert first_times == [item for item in joined if item in first_times] or in_flight_max > 1
    figures = batcher.statistics()
    assert (figures.waiting, figures.under_way) == (0, 0)
    assert figures.items + figures.left == len(joined)


def test_each_item_is_answered_once_in_any_interleaving() -> None:
    explored = run_seeds(crowd, range(150))

    assert explored.steps > 10_000


class Machine(RuleBasedStateMachine):
    """Calls, cancellations, ends and time in any order, against a list of who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = SeededLoop(1)
        self.under_way: list[tuple[list[int], asyncio.Future[object]]] = []
        self.tasks: dict[int, asyncio.Task[object]] = {}
        self.waiting: list[int] = []
        self.expected: dict[int, object] = {}
        self.batcher: AsyncBatcher[int, int] = AsyncBatcher(self.fn, items_max=3, in_flight_max=2, age_s_max=1.0)

    async def fn(self, items: list[int]) -> Any:
        assert items == self.waiting[: len(items)], "the oldest come first"
        del self.waiting[: len(items)]
        end: asyncio.Future[object] = self.loop.create_future()
        self.under_way.append((items, end))
        return await end

    def settle(self) -> None:
        self.loop.run_until_complete(settled())

    async def one(self, item: int) -> object:
        self.waiting.append(item)  # nothing comes between this and its place in the line
        try:
            return await self.batcher(item)
        except Exception as error:  # noqa: BLE001 - what it raises is its answer
            return error

    @rule(count=st.integers(1, 4))
    def call(self, count: int) -> None:
        for item in range(len(self.tasks), len(self.tasks) + count):
            self.tasks[item] = self.loop.create_task(self.one(item))
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel_one_that_waits(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(item)
        self.expected[item] = asyncio.CancelledError
        self.tasks[item].cancel()
        self.settle()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), how=st.sampled_from(["right", "raises", "short", "places"]))
    def end_a_batch(self, data: st.DataObject, how: str) -> None:
        place = data.draw(st.integers(0, len(self.under_way) - 1))
        items, end = self.under_way.pop(place)
        match how:
            case "right":
                self.expected |= {item: 2 * item for item in items}
                end.set_result([2 * item for item in items])
            case "raises":
                self.expected |= dict.fromkeys(items, OSError)
                end.set_exception(OSError())
            case "short":
                self.expected |= dict.fromkeys(items, BatchFailed)
                end.set_result(items[1:])
            case _:
                self.expected |= {item: KeyError if item % 2 else item for item in items}
                end.set_result([KeyError() if item % 2 else item for item in items])
        self.settle()

    @rule(seconds=st.sampled_from([0.3, 0.7, 2.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))  # sleep: virtual

    @invariant()
    def who_has_an_answer_has_the_right_one(self) -> None:
        self.settle()
        for item, task in self.tasks.items():
            if item not in self.expected:
                assert not task.done()
                continue
            expected = self.expected[item]
            if isinstance(expected, type):
                assert isinstance(asyncio.CancelledError() if task.cancelled() else task.result(), expected)
            else:
                assert task.result() == expected

    @invariant()
    def nothing_waits_that_need_not(self) -> None:
        figures = self.batcher.statistics()
        assert figures.waiting == len(self.waiting)
        assert figures.under_way == len(self.under_way) <= 2
        if figures.waiting and figures.under_way < 2:
            assert figures.under_way == 1
            assert figures.waiting < 3
            assert self.loop.time() < self.batcher._line.waiting[0].added_s + 1.0

    def teardown(self) -> None:
        while self.under_way:
            items, end = self.under_way.pop()
            self.expected |= dict.fromkeys(items, 0)
            end.set_result([0] * len(items))
            self.settle()
        assert self.expected.keys() == self.tasks.keys()
        self.loop.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
