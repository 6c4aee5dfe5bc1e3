"""AsyncBatcher: what goes wrong reaches those it concerns: one item, or each caller of the batch, never nobody."""

from __future__ import annotations

import asyncio
import pickle
import traceback
from typing import Any

import pytest

from sennit.errors import BatcherFull, BatchFailed, SubscriberTooSlow
from sennit.sync.batch import AsyncBatcher


def test_one_item_fails_alone_when_an_exception_stands_in_its_place() -> None:
    async def some_fail(items: list[int]) -> list[int | Exception]:
        return [ValueError(f"no {item}") if item % 3 == 0 else item for item in items]

    async def main() -> None:
        batcher = AsyncBatcher(some_fail)
        found = await asyncio.gather(*(batcher(n) for n in range(7)), return_exceptions=True)

        assert [repr(each) for each in found] == [
            "ValueError('no 0')", "1", "2", "ValueError('no 3')", "4", "5", "ValueError('no 6')",
        ]  # fmt: skip
        assert batcher.statistics().failed == 3

    asyncio.run(main())


def test_an_error_of_the_whole_batch_reaches_every_caller_as_an_exception_of_its_own() -> None:
    """An earlier batch loop logged the error and dropped the batch: its callers waited for ever."""

    async def fails(items: list[int]) -> list[int]:
        raise ConnectionError(f"lost with {len(items)} items")

    async def main() -> list[BaseException]:
        batcher = AsyncBatcher(fails)
        found = await asyncio.gather(*(batcher(n) for n in range(4)), return_exceptions=True)
        assert batcher.statistics().failed == 4
        return [each for each in found if isinstance(each, ConnectionError)]

    errors = asyncio.run(main())

    assert [str(error) for error in errors] == ["lost with 4 items"] * 4
    assert len({id(error) for error in errors}) == 4
    depths = [len(traceback.extract_tb(error.__traceback__)) for error in errors]
    assert max(depths) - min(depths) <= 1
    assert all("fails" in {frame.name for frame in traceback.extract_tb(error.__traceback__)} for error in errors)


class OfItsOwn(Exception):
    """Cannot be copied by `copy.copy`: its arguments are not `args`."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} against {right}")
        self.left, self.right = left, right


def test_an_exception_with_arguments_of_its_own_is_told_to_each_all_the_same() -> None:
    async def fails(items: list[int]) -> list[int]:
        raise OfItsOwn(1, 2)

    async def main() -> list[int | BaseException]:
        batcher = AsyncBatcher(fails)
        return await asyncio.gather(*(batcher(n) for n in range(3)), return_exceptions=True)

    errors = asyncio.run(main())

    assert [(str(error), error.right) for error in errors if isinstance(error, OfItsOwn)] == [("1 against 2", 2)] * 3
    assert len({id(error) for error in errors}) == 3


def test_with_split_on_error_only_the_items_that_fail_fail() -> None:
    async def no_sevens(items: list[int]) -> list[int]:
        calls.append(items)
        if 7 in items:
            raise ValueError("a seven")
        return [2 * item for item in items]

    async def main() -> None:
        batcher = AsyncBatcher(no_sevens, items_max=16, split_on_error=True)
        found = await asyncio.gather(*(batcher(n) for n in range(16)), return_exceptions=True)

        assert [n for n, each in enumerate(found) if isinstance(each, ValueError)] == [7]
        assert [each for each in found if isinstance(each, int)] == [2 * n for n in range(16) if n != 7]
        assert batcher.statistics().splits == len(calls) - 1 == 8

    calls: list[list[int]] = []
    asyncio.run(main())


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1, 2], "returned 2 results for 3 items"),
        ([1, 2, 3, 4], "returned 4 results for 3 items"),
        ([], "returned 0 results for 3 items"),
        (None, "returned a NoneType for 3 items"),
        ("abc", "returned a str for 3 items"),
        ({1: 1, 2: 2, 3: 3}, "returned a dict for 3 items"),
        ({1, 2, 3}, "returned a set for 3 items"),
        ((n for n in range(3)), "returned a generator for 3 items"),
    ],
)
def test_a_wrong_number_of_results_is_an_error_for_all(returned: Any, said: str) -> None:
    async def main() -> list[int | BaseException]:
        batcher: AsyncBatcher[int, int] = AsyncBatcher(lambda _: returned)
        return await asyncio.gather(*(batcher(n) for n in range(3)), return_exceptions=True)

    found = asyncio.run(main())

    assert all(isinstance(each, BatchFailed) and said in str(each) for each in found), found


class Halt(BaseException):
    """Neither an error nor an exit."""


@pytest.mark.parametrize("stop", [Halt("enough"), asyncio.CancelledError(), StopIteration(3)])
def test_what_stops_the_function_without_being_an_error_is_the_cause_of_everybodys(stop: BaseException) -> None:
    async def stops(items: list[int]) -> list[int]:
        raise stop

    def stops_in_place(items: list[int]) -> Any:
        return [stop for _ in items]

    async def main() -> None:
        for fn in (stops, stops_in_place):
            batcher: AsyncBatcher[int, int] = AsyncBatcher(fn)
            found = await asyncio.gather(*(batcher(n) for n in range(3)), return_exceptions=True)
            assert [type(each) for each in found] == [BatchFailed] * 3 or fn is stops, found
            assert all(isinstance(each, BatchFailed | RuntimeError) and each.__cause__ for each in found)
            assert await batcher.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "error", [BatcherFull(3), SubscriberTooSlow(waiting_max=2, missed=4)], ids=lambda error: type(error).__name__
)
def test_an_error_is_the_same_after_pickling(error: BatcherFull | SubscriberTooSlow) -> None:
    twin = pickle.loads(pickle.dumps(error))

    assert type(twin) is type(error)
    assert (str(twin), vars(twin)) == (str(error), vars(error))


def test_an_exit_in_the_function_ends_the_loop_and_answers_the_callers() -> None:
    async def exits(items: list[int]) -> list[int]:
        raise SystemExit(3)

    async def main() -> None:
        with pytest.raises(BatchFailed, match="ended by SystemExit"):
            await AsyncBatcher(exits)(1)

    loop = asyncio.new_event_loop()
    task = loop.create_task(main())
    with pytest.raises(SystemExit):
        loop.run_until_complete(task)
    loop.run_until_complete(task)
    loop.close()
