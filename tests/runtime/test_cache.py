"""Cached results: an equal call is not run again within its time, in whatever process, until somebody drops it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sennit import App, TaskFailed
from sennit.model.lifecycle import State

WAIT_S = 30.0


class Shop:
    """An app whose handler counts how often it runs."""

    def __init__(self, url: str) -> None:
        self.app = App(url, durability="normal")
        self.ran: list[str] = []
        self.task = self.app.task(name="price", cache_s=3600, cache_tags=["prices"])(self._price)

    def _price(self, item: str, n: int = 1) -> int:
        self.ran.append(item)
        return len(item) * n


@pytest.fixture(params=["memory", "sqlite"])
def shop(request: pytest.FixtureRequest, url: str) -> Iterator[Shop]:
    shop = Shop("memory://" if request.param == "memory" else url)
    yield shop
    shop.app.close()


def test_an_equal_call_gets_the_result_that_is_there(shop: Shop) -> None:
    with shop.app:
        first = shop.task.submit("tea", 2)
        assert first.result(WAIT_S) == 6
        again = [shop.task.submit("tea", n=2), shop.task.submit(n=2, item="tea")]

        assert [handle.result(WAIT_S) for handle in again] == [6, 6]
        assert {handle.id for handle in again} == {first.id}
        assert shop.app.ledger().result().submitted == 1

    assert shop.ran == ["tea"]


def test_another_call_is_run(shop: Shop) -> None:
    with shop.app:
        handles = [shop.task.submit("tea"), shop.task.submit("tea", 2), shop.task.submit("coffee")]

        assert [handle.result(WAIT_S) for handle in handles] == [3, 6, 6]

    assert sorted(shop.ran) == ["coffee", "tea", "tea"]


def test_a_call_that_is_under_way_stands_for_an_equal_one(shop: Shop) -> None:
    begun, may_end, ran = threading.Event(), threading.Event(), []

    @shop.app.task(cache_s=60)
    def slow(n: int) -> int:
        ran.append(n)
        begun.set()
        assert may_end.wait(WAIT_S)
        return n

    with shop.app:
        first = slow.submit(1)
        assert begun.wait(WAIT_S)
        second = slow.submit(1)
        may_end.set()

        assert (first.result(WAIT_S), second.result(WAIT_S)) == (1, 1)

    assert first.id == second.id
    assert ran == [1]


def test_equal_calls_of_one_batch_run_once(shop: Shop) -> None:
    with shop.app:
        assert shop.task.map(["tea", "rum", "tea", "tea"]).result(WAIT_S) == [3, 3, 3, 3]

    assert sorted(shop.ran) == ["rum", "tea"]


def test_in_async_code_the_id_is_final_when_stored(shop: Shop) -> None:
    async def main() -> None:
        async with shop.app:
            first = shop.task.submit("tea")
            assert await first == 3
            second = await shop.task.submit("tea").stored()
            assert second.id == first.id
            assert await second == 3

    asyncio.run(main())
    assert shop.ran == ["tea"]


def test_what_failed_is_run_again(shop: Shop) -> None:
    ran: list[int] = []

    @shop.app.task(cache_s=3600)
    def bad(n: int) -> None:
        ran.append(n)
        raise OSError("no")

    with shop.app:
        for _ in range(2):
            with pytest.raises(TaskFailed):
                bad.submit(1).result(WAIT_S)

    assert ran == [1, 1]


def test_a_result_is_too_old_after_cache_s() -> None:
    shop = Shop("memory://")
    with shop.app.testing() as t:
        for wait_s, runs in ((0, 1), (3599, 1), (2, 2)):
            t.advance(wait_s)
            handle = shop.task.submit("tea")
            t.drain(until_s=0)
            assert handle.view().result().state is State.SUCCEEDED
            assert len(shop.ran) == runs


def test_how_old_a_result_may_be_is_for_each_call_to_say() -> None:
    shop = Shop("memory://")
    with shop.app.testing() as t:
        shop.task.submit("tea")
        t.drain()
        t.advance(100)

        shop.task.options(cache_s=200).submit("tea")
        t.drain()
        assert len(shop.ran) == 1
        shop.task.options(cache_s=50).submit("tea")
        t.drain()
        assert len(shop.ran) == 2


def test_without_cache_s_a_call_is_always_run(shop: Shop) -> None:
    with shop.app:
        for _ in range(2):
            shop.task.options(cache_s=0).submit("tea").result(WAIT_S)

    assert shop.ran == ["tea", "tea"]


def test_invalidate_drops_the_result_of_one_call(shop: Shop) -> None:
    with shop.app:
        for item in ("tea", "rum"):
            shop.task.submit(item).result(WAIT_S)

        assert shop.task.invalidate(item="tea").result() == 1
        assert shop.task.invalidate("tea").result() == 0
        assert shop.task.invalidate("never asked for").result() == 0
        for item in ("tea", "rum"):
            shop.task.submit(item).result(WAIT_S)

    assert shop.ran == ["tea", "rum", "tea"]


def test_invalidate_drops_all_results_with_a_tag(shop: Shop) -> None:
    tags: dict[str, list[str]] = {"tea": ["hot"], "rum": ["cold", "strong"], "gin": ["strong"]}

    def order_all() -> None:
        for item, names in tags.items():
            shop.task.options(cache_tags=names).submit(item).result(WAIT_S)

    with shop.app:
        order_all()
        assert shop.app.invalidate("strong", "cold").result() == 2
        assert shop.app.invalidate("strong").result() == 0
        order_all()

    assert shop.ran == ["tea", "rum", "gin", "rum", "gin"]


def test_a_task_that_runs_when_its_result_is_dropped_goes_on(shop: Shop) -> None:
    begun, may_end = threading.Semaphore(0), threading.Event()

    @shop.app.task(cache_s=3600, cache_tags=["slow"])
    def slow(n: int) -> int:
        begun.release()
        assert may_end.wait(WAIT_S)
        return n

    with shop.app:
        first = slow.submit(1)
        assert begun.acquire(timeout=WAIT_S)
        assert shop.app.invalidate("slow").result() == 1
        second = slow.submit(1)
        assert begun.acquire(timeout=WAIT_S)
        may_end.set()

        assert (first.result(WAIT_S), second.result(WAIT_S)) == (1, 1)

    assert first.id != second.id


def test_a_child_may_be_a_cached_result(shop: Shop) -> None:
    @shop.app.task
    async def parent() -> int:
        return await shop.task.submit("tea")

    @shop.app.task
    def parent_sync() -> Any:
        return shop.task.submit("tea").result()

    with shop.app:
        assert [parent.submit().result(WAIT_S), parent_sync.submit().result(WAIT_S)] == [3, 3]
        assert parent.submit().result(WAIT_S) == 3

    assert shop.ran == ["tea"]


def test_a_result_that_came_from_the_cache_is_an_argument_like_any_other(shop: Shop) -> None:
    @shop.app.task
    def double(n: int) -> int:
        return 2 * n

    with shop.app:
        shop.task.submit("tea").result(WAIT_S)

        assert double.submit(shop.task.submit("tea").as_argument()).result(WAIT_S) == 6

    assert shop.ran == ["tea"]


def test_another_process_finds_the_result(url: str) -> None:
    one, other = Shop(url), Shop(url)
    with one.app:
        one.task.submit("tea").result(WAIT_S)

    handle = other.task.submit("tea")

    assert handle.result(WAIT_S) == 3
    assert (one.ran, other.ran) == (["tea"], [])
    assert other.task.invalidate("tea").result() == 1
    other.app.close()
