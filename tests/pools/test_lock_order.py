"""The lock-order check finds a deadlock that has not happened, in one OS thread, and says where both orders come from."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from sennit.errors import LockOrderError, SeedFailed
from sennit.sync import lockorder
from sennit.sync.locks import AsyncRWLock, LockOrder, Mutex, RWLock
from sennit.testing.preempt import Case, explore


@pytest.fixture(autouse=True)
def order() -> Iterator[LockOrder]:
    with lockorder.checking() as order:
        yield order


def test_two_orders_are_an_error_before_anybody_hangs() -> None:
    left, right = Mutex("left"), Mutex("right")

    def forwards() -> None:
        with left, right:
            pass

    def backwards() -> None:
        with right, left:
            pass

    forwards()
    with pytest.raises(LockOrderError) as caught:
        backwards()

    error = caught.value
    assert error.names == ("right", "left")
    assert "'left' after 'right'" in error.edges[0]
    assert "backwards (test_lock_order.py" in error.edges[0]
    assert "'right' after 'left'" in error.edges[1]
    assert "forwards (test_lock_order.py" in error.edges[1]
    assert not left.locked()
    assert not right.locked()
    forwards()  # the right order still is


def test_an_order_is_known_across_os_threads() -> None:
    left, right = Mutex("left"), Mutex("right")

    def forwards() -> None:
        with left, right:
            pass

    other = threading.Thread(target=forwards, name="other")
    other.start()
    other.join()

    with right, pytest.raises(LockOrderError, match="OS thread"):
        left.acquire()


def test_a_cycle_of_three_is_found() -> None:
    a, b, c = Mutex("a"), Mutex("b"), Mutex("c")
    for first, second in [(a, b), (b, c)]:
        with first, second:
            pass

    with c, pytest.raises(LockOrderError) as caught:
        a.acquire()

    assert set(caught.value.names) == {"a", "b", "c"}
    assert len(caught.value.edges) == 3


def test_locks_of_one_name_are_one_class_and_two_of_them_are_told_apart(order: LockOrder) -> None:
    accounts = [Mutex("account") for _ in range(3)]
    book = Mutex("book")
    with accounts[0], book:
        pass
    with book, pytest.raises(LockOrderError):
        accounts[1].acquire()  # another account, the same rule

    with accounts[0], accounts[1], accounts[2]:
        pass
    with accounts[2], pytest.raises(LockOrderError, match="account#"):
        accounts[0].acquire()
    assert any("account#" in edge for edge in order.edges())


def test_an_acquisition_that_does_not_wait_sets_no_rule() -> None:
    left, right = Mutex("left"), Mutex("right")
    with left:
        assert right.acquire(blocking=False)
        right.release()

    with right, left:
        pass
    with left, pytest.raises(LockOrderError):
        right.acquire()


def test_what_is_held_without_having_waited_counts() -> None:
    left, right = Mutex("left"), Mutex("right")
    with left, right:
        pass

    assert right.acquire(blocking=False)
    with pytest.raises(LockOrderError):
        left.acquire()
    right.release()


def test_readers_and_writers_count_alike_and_nested_reads_do_not() -> None:
    books, guard = RWLock("books"), Mutex("guard")
    with books.read(), guard, books.read():  # the inner one never waits
        pass
    with books.read():
        pass

    with guard, pytest.raises(LockOrderError), books.write():
        pass
    with books.read(), books.read():
        pass
    with guard, pytest.raises(LockOrderError), books.read():
        pass


def test_tasks_have_orders_of_their_own() -> None:
    async def main() -> None:
        books, shelves = AsyncRWLock("books"), AsyncRWLock("shelves")
        async with books.read(), shelves.write():
            pass

        async def innocent() -> None:
            async with shelves.read():  # `main` holds books here: that is another task
                pass

        async with books.read():
            await asyncio.create_task(innocent())
        async with shelves.read():
            with pytest.raises(LockOrderError, match=r"task 'Task-\d+'"):
                async with books.read():
                    pass

    asyncio.run(main())


def test_the_check_finds_under_any_schedule_what_only_some_schedules_make_a_deadlock() -> None:
    failed = 0
    for seed in range(20):

        def make_case() -> Case:
            left, right = Mutex("left"), Mutex("right")

            def forwards() -> None:
                with left, right:
                    pass

            def backwards() -> None:
                with right, left:
                    pass

            return Case([forwards, backwards])

        with lockorder.checking(), pytest.raises(SeedFailed, match="LockOrderError"):
            explore(make_case, [seed])
        failed += 1

    assert failed == 20


def test_it_is_off_by_default_and_on_by_the_environment() -> None:
    program = "from sennit.sync import lockorder; print(lockorder.current() is not None)"
    environment = {name: value for name, value in os.environ.items() if name != "SENNIT_LOCK_ORDER"}

    def ask(**more: str) -> str:
        argv = [sys.executable, "-c", program]
        return subprocess.run(argv, env=environment | more, capture_output=True, text=True, check=True).stdout.strip()

    assert ask() == "False"
    assert ask(SENNIT_LOCK_ORDER="1") == "True"
    assert ask(SENNIT_LOCK_ORDER="0") == "False"


def test_locks_made_while_it_is_off_are_not_checked() -> None:
    before = lockorder.current()
    with lockorder.checking(on=False):
        left, right = Mutex("left"), Mutex("right")
    assert lockorder.current() is before

    with left, right:
        pass
    with right, left:
        pass
    lockorder.disable()
    assert lockorder.current() is None
    assert lockorder.enable() is lockorder.enable()
