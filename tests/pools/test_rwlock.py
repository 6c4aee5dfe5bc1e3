"""RWLock under schedules drawn from a seed; each of its rules also with a mutant that breaks it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import pytest

from sennit.errors import LockDeadlock, LockTimeout, OsThreadDeadlock, SeedFailed, UsageError
from sennit.sync import lockorder, rwlock, rwqueue
from sennit.sync.locks import Mutex, RWLock
from sennit.sync.lockwaits import Blocked, Holder
from sennit.sync.rwqueue import RWQueue, Waiter
from sennit.testing.preempt import Case, Schedule, explore, point

WATCHED = [rwlock, rwqueue]
SEEDS = range(60)


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """The lock-order check would raise before the deadlocks that are wanted here."""
    with lockorder.checking(on=False):
        yield


# ---------------------------------------------------------------- cases, for the lock and for its mutants

Make = Callable[[], RWLock]


def make_lock() -> RWLock:
    return RWLock("books")


def until(fact: Callable[[], bool]) -> None:
    while not fact():
        point()


def exclusion(make: Make) -> Case:
    lock, readers, writers = make(), [0], [0]

    def read() -> None:
        with lock.read():
            readers[0] += 1
            point()
            assert writers == [0]
            readers[0] -= 1

    def write() -> None:
        with lock.write():
            writers[0] += 1
            point()
            assert writers == [1]
            assert readers == [0]
            writers[0] -= 1

    def check() -> bool:
        figures = lock.statistics()
        return (figures.readers, figures.writer, figures.reads, figures.writes) == (0, None, 2, 2)

    return Case([read, write, read, write], check)


def writer_preference(make: Make) -> Case:
    """A reader that comes after a waiting writer gets in after it."""
    lock, order = make(), []

    def first_reader() -> None:
        with lock.read():
            until(lambda: lock.statistics().readers_waiting == 1 or "reader" in order)

    def writer() -> None:
        until(lambda: lock.statistics().readers == 1)
        with lock.write():
            order.append("writer")

    def late_reader() -> None:
        until(lambda: lock.statistics().writers_waiting == 1)
        with lock.read():
            order.append("reader")

    return Case([first_reader, writer, late_reader], lambda: order == ["writer", "reader"])


def writers_in_order(make: Make) -> Case:
    lock, order = make(), []

    def reader() -> None:
        with lock.read():
            until(lambda: lock.statistics().writers_waiting == 3)

    def writer(number: int) -> None:
        until(lambda: lock.statistics().readers == 1 and lock.statistics().writers_waiting == number)
        with lock.write():
            order.append(number)

    return Case([reader, *(partial(writer, number) for number in range(3))], lambda: order == [0, 1, 2])


def timed_out_writer(make: Make) -> Case:
    """A writer gives up; the reader behind it has to get in while the first reader still is."""
    lock, second_in = make(), threading.Event()

    def first_reader() -> None:
        with lock.read():
            second_in.wait()

    def writer() -> None:
        until(lambda: lock.statistics().readers == 1)
        try:
            with lock.write(timeout_s=0.5):
                pass
        except LockTimeout as error:
            assert "reading" in error.owner  # noqa: PT017 - the other way out is as good

    def second_reader() -> None:
        until(lambda: lock.statistics().writers_waiting == 1 or lock.statistics().timeouts == 1)
        with lock.read():
            second_in.set()

    return Case([first_reader, writer, second_reader])


def impatient_crowd(make: Make) -> Case:
    """Everybody may time out at any moment, also while being let in; afterwards the lock is as new."""
    lock = make()

    def body(*, write: bool, timeout_s: float) -> None:
        try:
            with lock.write(timeout_s) if write else lock.read(timeout_s):
                time.sleep(0.001)  # sleep: virtual seconds
        except LockTimeout:
            pass

    def check() -> bool:
        with lock.write(timeout_s=0):
            figures = lock.statistics()
        return (figures.readers, figures.readers_waiting, figures.writers_waiting) == (0, 0, 0)

    bodies = [(True, 0.001), (False, 0.001), (True, 0.002), (False, 0.002), (True, 0.001)]
    return Case([partial(body, write=write, timeout_s=timeout_s) for write, timeout_s in bodies], check)


def patient_crowd(make: Make) -> Case:
    """Nobody waits in a cycle: somebody who was let in, and has not run since, does not wait any more."""
    lock = make()

    def body() -> None:
        with lock.read():
            pass
        with lock.write():
            pass

    return Case([body] * 4, lambda: lock.statistics().writes == 4)


CASES = [exclusion, writer_preference, writers_in_order, timed_out_writer, impatient_crowd, patient_crowd]


@pytest.mark.parametrize("case", CASES)
def test_the_readers_writer_lock_keeps_its_rules_under_all_schedules(case: Callable[[Make], Case]) -> None:
    explore(lambda: case(make_lock), SEEDS, watch=WATCHED)


class DeafGiveUp(RWQueue):
    """Leaves out the wake of those behind a writer that gave up."""

    def give_up(self, waiter: Waiter) -> list[Waiter]:
        self.timeouts += 1
        (self.writers_waiting.remove if waiter.write else self.readers_waiting.pop)(waiter)
        return []


class NoPreference(RWQueue):
    """Lets a reader in although a writer waits."""

    def enter(self, holder: object, *, write: bool) -> bool:
        if not write and self.writer is None:
            self.readers[holder] = 1
            return True
        return super().enter(holder, write=write)


class LastComeFirstServed(RWQueue):
    def line_up(self, waiter: Waiter) -> None:
        self.writers_waiting.appendleft(waiter) if waiter.write else super().line_up(waiter)


class BlindWriter(RWQueue):
    """Does not look at the readers."""

    def enter(self, holder: object, *, write: bool) -> bool:
        if write and self.writer is None:
            self.writer = holder
            return True
        return super().enter(holder, write=write)


class StaleBlockers(RWQueue):
    """Takes one that was let in for one that waits: a deadlock that is none."""

    def blockers(self, blocked: Blocked) -> Iterable[Holder]:
        return (*filter(None, [self.writer]), *self.readers, *(one.holder for one in self.writers_waiting))


class ForgetsWhoCameIn(RWQueue):
    """Lets one in that times out at that moment, and does not tell it."""

    def _admit(self, *, after_write: bool = False) -> list[Waiter]:
        admitted = super()._admit(after_write=after_write)
        for waiter in admitted:
            waiter.admitted = False
        return admitted


class DeafLeave(RWQueue):
    """Wakes nobody when a reader leaves."""

    def leave(self, holder: object, *, write: bool) -> list[Waiter]:
        return super().leave(holder, write=write) if write else (super().leave(holder, write=write), [])[1]


@pytest.mark.parametrize(
    ("mutant", "case"),
    [
        (DeafGiveUp, timed_out_writer),
        (NoPreference, writer_preference),
        (LastComeFirstServed, writers_in_order),
        (BlindWriter, exclusion),
        (DeafLeave, exclusion),
        (StaleBlockers, patient_crowd),
        (ForgetsWhoCameIn, impatient_crowd),
    ],
)
def test_a_lock_that_breaks_a_rule_is_found(mutant: type[RWQueue], case: Callable[[Make], Case]) -> None:
    def make_mutant() -> RWLock:
        lock = RWLock("books")
        lock._queue = mutant("books", fair=False)
        return lock

    with pytest.raises(SeedFailed):
        explore(lambda: case(make_mutant), SEEDS, watch=WATCHED)


def test_the_reader_that_nobody_wakes_is_named() -> None:
    def make_mutant() -> RWLock:
        lock = RWLock("books")
        lock._queue = DeafGiveUp("books", fair=False)
        return lock

    with pytest.raises(SeedFailed) as caught:
        explore(lambda: timed_out_writer(make_mutant), SEEDS, watch=WATCHED)

    assert isinstance(caught.value.__cause__, OsThreadDeadlock)
    assert any(line.startswith("2:second_reader waits") for line in caught.value.__cause__.waiting)


# ---------------------------------------------------------------- nesting, fairness, figures


def test_reading_nests_even_when_a_writer_waits() -> None:
    def make_case() -> Case:
        lock = RWLock("books")

        def reader() -> None:
            with lock.read():
                until(lambda: lock.statistics().writers_waiting == 1)
                with lock.read():
                    pass

        def writer() -> None:
            until(lambda: lock.statistics().readers == 1)
            with lock.write():
                pass

        return Case([reader, writer], lambda: lock.statistics().reads == 1)

    explore(make_case, range(20), watch=WATCHED)


def test_what_would_wait_for_itself_is_refused_at_once() -> None:
    lock = RWLock("books")

    with lock.read(), pytest.raises(UsageError, match=r"asks to write .* holds it to read"), lock.write():
        pass
    with lock.write(), pytest.raises(UsageError, match=r"asks to read .* holds it to write"), lock.read():
        pass
    with lock.write(), pytest.raises(UsageError, match=r"asks to write .* holds it to write"), lock.write():
        pass
    with pytest.raises(UsageError, match="is not reading"):
        lock.read().__exit__(None, None, None)

    assert lock.statistics().writer is None
    assert lock.statistics().readers == 0


def test_readers_that_wait_come_between_two_writers_if_the_lock_is_fair() -> None:
    def run(*, fair: bool) -> list[str]:
        order: list[str] = []
        with Schedule(5) as schedule:
            lock = RWLock("books", fair=fair)

            def first() -> None:
                with lock.write():
                    until(lambda: lock.statistics().readers_waiting == 1 and lock.statistics().writers_waiting == 1)

            def second() -> None:
                until(lambda: lock.statistics().writer is not None)
                with lock.write():
                    order.append("writer")

            def reader() -> None:
                until(lambda: lock.statistics().writer is not None)
                with lock.read():
                    order.append("reader")

            schedule.run([first, second, reader])
        return order

    assert run(fair=False) == ["writer", "reader"]
    assert run(fair=True) == ["reader", "writer"]


def test_a_deadlock_of_a_readers_writer_lock_and_a_mutex_is_named() -> None:
    named: list[LockDeadlock] = []

    def make_case() -> Case:
        books, guard = RWLock("books"), Mutex("guard")

        def read_then_guard() -> None:
            with books.read(), guard:
                pass

        def guard_then_write() -> None:
            try:
                with guard, books.write():
                    pass
            except LockDeadlock as error:
                named.append(error)

        def safely() -> None:
            try:
                read_then_guard()
            except LockDeadlock as error:
                named.append(error)

        return Case([safely, guard_then_write], lambda: not guard.locked() and books.statistics().readers == 0)

    explore(make_case, SEEDS, watch=WATCHED)

    assert named
    assert all(len(error.cycle) == 2 for error in named)
    assert {error.name for error in named} <= {"books", "guard"}


def test_a_time_out_of_zero_only_looks() -> None:
    lock = RWLock("books")
    refused: list[LockTimeout] = []

    def look() -> None:
        try:
            with lock.read(timeout_s=0):
                pass
        except LockTimeout as error:
            refused.append(error)

    with lock.write():
        other = threading.Thread(target=look)
        other.start()
        other.join()

    assert refused[0].path == "books"
    assert "writing" in refused[0].owner
    assert lock.statistics().timeouts == 1


def test_free_os_threads_keep_the_rules_too() -> None:
    """The control without a schedule: eight OS threads on real locks."""
    lock, inside, writes = RWLock("books"), {"readers": 0}, []
    guard = threading.Lock()

    def body(number: int) -> None:
        for turn in range(100):
            if (turn + number) % 4:
                with lock.read():
                    with guard:
                        inside["readers"] += 1
                    with guard:
                        inside["readers"] -= 1
            else:
                with lock.write():
                    assert inside["readers"] == 0
                    writes.append(number)

    workers = [threading.Thread(target=body, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    figures = lock.statistics()
    assert (figures.reads, figures.writes) == (600, 200)
    assert len(writes) == 200
    assert (figures.readers, figures.writer, figures.readers_waiting, figures.writers_waiting) == (0, None, 0, 0)
