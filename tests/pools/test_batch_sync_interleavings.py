"""Batcher: each item is answered once, in any order of the OS threads that call, cancel and close."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from random import Random

import pytest

from sennit.errors import BatcherClosed
from sennit.sync import batch, batch_answers, batch_calls, batch_line
from sennit.sync.batch import Batcher
from sennit.testing.preempt import Case, explore, point

WATCH = [batch, batch_calls, batch_line, batch_answers]

CALLERS = 4
FAILS, CROWDED = 5, 3  # this item fails alone; a batch in which that one is not alone fails as a whole


def doubled(items: list[int]) -> list[int]:
    return [2 * item for item in items]


class Crowd:
    """Four OS threads with two items each, some of which submit or cancel, and perhaps one that closes meanwhile."""

    def __init__(self, plan: Random) -> None:
        self.items_max = plan.randint(1, 3)
        self.split = plan.random() < 0.3
        self.does = [plan.choice(["call", "call", "submit", "cancel"]) for _ in range(CALLERS)]
        self.closes = plan.random() < 0.3
        self.close_s = plan.choice([None, 0.0001])
        self.gives_up = self.closes and self.close_s is not None
        self.given: list[int] = []
        self.found: dict[int, object] = {}
        self.batcher: Batcher[int, int] = Batcher(
            self.fn,
            items_max=self.items_max,
            in_flight_max=plan.randint(1, 2),
            gather=plan.random() < 0.4,
            split_on_error=self.split,
            waiting_max=plan.choice([None, 2]),
        )

    def fn(self, items: list[int]) -> Sequence[int | Exception]:
        assert 1 <= len(items) <= self.items_max
        self.given.extend(items)
        point()
        if CROWDED in items and len(items) > 1:
            raise ConnectionError
        return [KeyError(item) if item == FAILS else 2 * item for item in items]

    def caller(self, number: int) -> Callable[[], None]:
        def body() -> None:
            for item in (2 * number, 2 * number + 1):
                assert item not in self.found
                try:
                    self.found[item] = self.ask(item, self.does[number])
                except (ConnectionError, KeyError, BatcherClosed, CancelledError) as error:
                    self.found[item] = error

        return body

    def ask(self, item: int, does: str) -> int:
        if does == "call":
            return self.batcher(item)
        future = self.batcher.submit(item)
        if does == "cancel":
            future.cancel()
        return future.result()

    def case(self) -> Case:
        bodies: list[Callable[[], object]] = [self.caller(number) for number in range(CALLERS)]
        if self.closes:
            bodies.append(lambda: self.batcher.close(self.close_s))
        return Case(bodies, self.check)

    def check(self) -> None:
        assert self.batcher.close(), "all have come back: nothing is under way, also after giving up"
        assert sorted(self.found) == list(range(2 * CALLERS))
        for item, found in self.found.items():
            self.check_one(item, found)
        assert self.split or len(self.given) == len(set(self.given))
        assert not self.batcher._under_way

    def check_one(self, item: int, found: object) -> None:
        match found:
            case int():
                assert found == 2 * item
                assert item != FAILS
            case KeyError():
                assert item == FAILS
            case BatcherClosed():
                assert self.closes
                assert self.gives_up or item not in self.given
            case CancelledError():
                assert self.does[item // 2] == "cancel"
                assert item not in self.given
            case _:
                assert isinstance(found, ConnectionError)


@pytest.mark.parametrize("start", range(0, 200, 40))
def test_each_item_is_answered_once_in_any_order_of_os_threads(start: int) -> None:
    for seed in range(start, start + 40):
        explore(lambda seed=seed: Crowd(Random(seed)).case(), seeds=[seed], watch=WATCH)  # type: ignore[misc]


def test_no_timer_is_lost_between_the_end_of_one_and_the_next_item() -> None:
    def make_case() -> Case:
        batcher = Batcher(doubled, gather=True, items_max=2, age_s_max=0.001)

        def calls() -> None:
            assert [batcher(1), batcher(2), batcher(3)] == [2, 4, 6]

        return Case([calls], batcher.close)

    explore(make_case, range(150))  # points at locks only: between two of them much happens at once
