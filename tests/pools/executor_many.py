"""The part of the executor contract that is about many futures: `wait`, `as_completed` and `map`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, Future, as_completed, wait
from functools import partial
from typing import Any

import pytest

from tests.pools.executor_contract import LONG_S, ExecutorContract, Hold, Make, fail, identity


class ExecutorOfMany(ExecutorContract):
    # ------------------------------------------------------------ wait and as_completed

    def test_wait_for_all_counts_results_errors_and_cancelled_ones(self, make: Make, hold: Hold) -> None:
        pool = make(1)
        held = pool.submit(hold)
        assert hold.begun.wait(LONG_S)
        futures: list[Future[Any]] = [held, pool.submit(fail, OSError()), pool.submit(identity, 1)]
        futures[2].cancel()

        assert wait(futures, timeout=0).not_done >= set(futures[:2])
        hold.let_go.set()

        done, not_done = wait(futures, timeout=LONG_S, return_when=ALL_COMPLETED)
        assert done == set(futures)
        assert not_done == set()

    @pytest.mark.parametrize("until", [FIRST_COMPLETED, FIRST_EXCEPTION])
    def test_wait_can_end_with_the_first(self, make: Make, hold: Hold, until: str) -> None:
        pool = make(2)
        futures: list[Future[Any]] = [pool.submit(hold), pool.submit(fail, OSError())]

        done, not_done = wait(futures, timeout=LONG_S, return_when=until)

        assert (done, not_done) == ({futures[1]}, {futures[0]})

    def test_as_completed_yields_what_is_done_first(self, make: Make, hold: Hold) -> None:
        pool = make(2)
        held: Future[Any] = pool.submit(hold)
        quick: Future[Any] = pool.submit(identity, 1)
        finished = as_completed([held, quick], timeout=LONG_S)

        assert next(finished) is quick
        hold.let_go.set()
        assert list(finished) == [held]

    # ------------------------------------------------------------ map

    def test_map_yields_in_the_order_of_its_arguments_whatever_ends_first(self, make: Make, hold: Hold) -> None:
        def body(number: int) -> int:
            if number == 0:
                hold()
            if number == 5:
                hold.let_go.set()
            return number

        assert list(make(2).map(body, range(10))) == list(range(10))

    def test_map_takes_several_iterables_and_ends_with_the_shortest(self, make: Make) -> None:
        assert list(make().map(pow, [2, 3, 4], [5, 2], chunksize=2)) == [32, 9]

    def test_map_submits_at_once_and_yields_as_it_is_asked(self, make: Make, hold: Hold) -> None:
        taken: list[int] = []

        def take() -> Iterator[int]:
            for n in range(3):
                taken.append(n)
                yield n

        results = make(2).map(lambda n: hold() if n == 2 else n, take())

        assert taken == [0, 1, 2]
        assert [next(results), next(results)] == [0, 1]
        hold.let_go.set()
        assert list(results) == ["held"]

    def test_map_raises_a_body_error_where_its_value_is_asked_for(self, make: Make) -> None:
        results = make().map(lambda n: 1 // n, [1, 0, 1])

        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_map_has_a_time_limit_from_its_call_on(self, make: Make, hold: Hold) -> None:
        results = make(1).map(partial(Hold.__call__), [hold], timeout=0)

        with pytest.raises(TimeoutError):
            next(results)

    def test_map_cancels_the_rest_when_nobody_asks_any_more(self, make: Make, hold: Hold) -> None:
        pool, ran = make(1), threading.Event()
        results = pool.map(lambda n: hold() if n == 1 else ran.set() if n == 2 else n, range(3))
        assert next(results) == 0
        assert hold.begun.wait(LONG_S)

        results.close()  # type: ignore[attr-defined]
        hold.let_go.set()
        pool.shutdown()

        assert not ran.is_set()
