"""What is no deadlock is not called one, and looking for one stays cheap: beside the locks' own tests, which name real ones."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import pytest

from sennit.errors import LockDeadlock, LockOrderError, LockTimeout, SeedFailed
from sennit.sync import lockorder, lockwaits, rwlock, rwqueue
from sennit.sync.locks import AsyncRWLock, Mutex, RWLock
from sennit.sync.lockwaits import Blocked, Holder
from sennit.sync.rwqueue import RWQueue
from sennit.sync.shards import ShardedMap
from sennit.testing.preempt import Case, explore, point


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """The lock-order check would raise before the waits that are wanted here."""
    with lockorder.checking(on=False):
        yield


def until(fact: Callable[[], object]) -> None:
    while not fact():
        point()


def reader_behind_an_impatient_writer() -> Case:
    """`holder` ► guard ► `second` ► books, behind a writer that will give up: nobody waits for ever."""
    books, guard = RWLock("books"), Mutex("guard")

    def holder() -> None:
        with books.read():
            until(lambda: books.statistics().readers_waiting)
            with guard:
                pass

    def impatient() -> None:
        until(lambda: books.statistics().readers)
        with suppress(LockTimeout), books.write(timeout_s=5):
            pass

    def second() -> None:
        with guard:
            until(lambda: books.statistics().writers_waiting)
            with books.read():
                pass

    return Case([holder, impatient, second], lambda: not guard.locked())


def test_a_reader_behind_a_writer_that_will_give_up_is_in_no_deadlock() -> None:
    explore(reader_behind_an_impatient_writer, range(30), watch=[rwlock, rwqueue])


def test_a_lock_that_names_every_reader_to_a_reader_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of_them(queue: RWQueue, blocked: Blocked) -> Iterable[Holder]:
        del blocked
        return queue.readers

    monkeypatch.setattr(RWQueue, "blockers", all_of_them)

    with pytest.raises(SeedFailed, match="LockDeadlock"):
        explore(reader_behind_an_impatient_writer, range(30), watch=[rwlock, rwqueue])


def test_what_a_body_makes_of_its_own_end_does_not_hide_the_failure() -> None:
    def make_case() -> Case:
        guard = threading.Lock()
        guard.acquire()

        def waits() -> None:
            try:
                guard.acquire()
            finally:
                raise ValueError("the end")

        def fails() -> None:
            raise KeyError("the failure")

        return Case([waits, waits, fails])

    with pytest.raises(SeedFailed, match="KeyError"):
        explore(make_case, range(10))


def test_a_writer_that_stays_between_two_readers_makes_it_one() -> None:
    books, guard = RWLock("books"), Mutex("guard")
    caught: list[LockDeadlock] = []

    def make_case() -> Case:
        def holder() -> None:
            with books.read():
                until(lambda: books.statistics().readers_waiting)
                with guard:
                    pass

        def writer() -> None:
            until(lambda: books.statistics().readers)
            with books.write():
                pass

        def second() -> None:
            with guard:
                until(lambda: books.statistics().writers_waiting)
                with books.read():
                    pass

        def naming(body: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                try:
                    body()
                except LockDeadlock as error:
                    caught.append(error)

            return run

        nonlocal books, guard
        books, guard = RWLock("books"), Mutex("guard")
        return Case([naming(holder), naming(writer), naming(second)], lambda: not guard.locked())

    explore(make_case, range(20))

    assert len(caught) >= 20


def test_a_task_that_is_cancelled_and_has_not_heard_of_it_is_in_no_deadlock() -> None:
    async def main() -> None:
        left, right = AsyncRWLock("left"), AsyncRWLock("right")

        async def leaves() -> None:
            async with left.write(), right.write():
                pass

        async with right.write():
            task = asyncio.create_task(leaves())
            await asyncio.sleep(0)
            assert right.statistics().writers_waiting
            task.cancel()
            async with left.write():
                assert task.cancelled()

    asyncio.run(main())


def test_the_search_looks_at_each_lock_once_however_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a look at the queue for each one in it a thousand agents at one lock would take minutes."""
    looks = 0
    real = AsyncRWLock.blockers

    def counted(lock: AsyncRWLock, blocked: Blocked) -> Iterable[Holder]:
        nonlocal looks
        looks += 1
        return real(lock, blocked)

    monkeypatch.setattr(AsyncRWLock, "blockers", counted)

    async def main() -> None:
        lock = AsyncRWLock("books")

        async def write() -> None:
            async with lock.write():
                await asyncio.sleep(0)

        await asyncio.gather(*(write() for _ in range(200)))

    asyncio.run(main())

    assert looks == 199


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_waits_for_nobody() -> None:
    """Its parent's OS threads are not in it, and new ones may get their identifiers."""
    guard = Mutex("guard")

    def wait() -> None:
        with guard:
            pass

    waiter = threading.Thread(target=wait)
    with guard:
        waiter.start()
        while waiter.ident not in lockwaits._blocked:
            waiter.join(0.001)
        child = os.fork()
        if not child:
            os._exit(len(lockwaits._blocked))
        _, status = os.waitpid(child, 0)
    waiter.join()

    assert os.waitstatus_to_exitcode(status) == 0


def test_values_that_write_to_the_map_while_they_are_compared_hang_nobody() -> None:
    class Nosy:
        def __eq__(self, other: object) -> bool:
            shared.set("key", here)
            return True

        def __hash__(self) -> int:
            return 1

    here = Nosy()
    shared: ShardedMap[str, object] = ShardedMap(shards=1)
    shared.set("key", Nosy())
    writes = shared.statistics().writes

    assert shared.compare_and_set(
        "key", Nosy(), "new"
    )  # the second look finds `here`, the third has no need to compare

    assert shared.get("key") == "new"
    assert shared.statistics().writes > writes


def test_orders_between_locks_of_one_name_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockorder, "TWINS_MAX", 10)
    with lockorder.checking() as order:
        book = Mutex("book")
        for _ in range(40):
            first, second = Mutex("account"), Mutex("account")
            with first, second, book:
                pass

        assert len(order.edges()) == 11
        with second, pytest.raises(LockOrderError):
            first.acquire()
        with book, pytest.raises(LockOrderError):  # between names nothing is forgotten
            first.acquire()
