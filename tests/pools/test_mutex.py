"""Mutex under schedules drawn from a seed: one at a time, figures that are right, and deadlocks that are named."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.errors import LockDeadlock, SeedFailed, UsageError
from sennit.sync import lockorder, mutex
from sennit.sync.locks import Mutex
from sennit.sync.wait_histogram import WaitHistogram
from sennit.testing.preempt import Case, explore, point

WATCHED = [mutex]
SEEDS = range(60)


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """The lock-order check would raise before the deadlocks that are wanted here."""
    with lockorder.checking(on=False):
        yield


# ---------------------------------------------------------------- Mutex


def test_a_mutex_lets_one_in_at_a_time() -> None:
    def make_case() -> Case:
        guard, inside, entered = Mutex("guard"), [0], [0]

        def body() -> None:
            with guard:
                inside[0] += 1
                point()
                assert inside == [1]
                inside[0] -= 1
                entered[0] += 1

        def check() -> bool:
            figures = guard.statistics()
            return entered == [3] and figures.acquisitions == 3 and figures.holder is None

        return Case([body] * 3, check)

    assert explore(make_case, SEEDS, watch=WATCHED).schedules > 50


class LateClear(Mutex):
    """Clears its owner after the release: it may be the next one's name by then."""

    __slots__ = ()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
        self._owner = 0


def test_a_mutex_that_forgets_its_next_owner_is_found() -> None:
    def make_case() -> Case:
        guard = LateClear("guard")

        def body() -> None:
            with guard:
                point()
                assert guard.statistics().holder is not None

        return Case([body] * 2)

    with pytest.raises(SeedFailed):
        explore(make_case, range(300), watch=WATCHED)


def test_a_deadlock_of_mutexes_is_named_by_one_of_its_two_and_nobody_hangs() -> None:
    named: list[LockDeadlock] = []

    def make_case() -> Case:
        left, right = Mutex("left"), Mutex("right")

        def take(first: Mutex, second: Mutex) -> None:
            try:
                with first, second:
                    pass
            except LockDeadlock as error:
                named.append(error)

        return Case([lambda: take(left, right), lambda: take(right, left)], lambda: not left.locked())

    explore(make_case, SEEDS, watch=WATCHED)

    assert named
    assert all(len(error.cycle) == 2 for error in named)
    assert {error.name for error in named} == {"left", "right"}
    assert "test_mutex.py" in named[0].cycle[0]
    assert "test_mutex.py" in named[0].cycle[1]


def test_a_mutex_acquired_twice_is_an_error_at_once() -> None:
    guard = Mutex("guard")

    with guard, pytest.raises(LockDeadlock, match="has 'guard' already"):
        guard.acquire()

    assert not guard.locked()


def test_only_its_holder_releases_a_mutex() -> None:
    guard = Mutex("guard")
    with pytest.raises(UsageError, match="nobody has it"):
        guard.release()
    guard.acquire()
    caught: list[BaseException] = []

    def steal() -> None:
        try:
            guard.release()
        except UsageError as error:
            caught.append(error)

    thief = threading.Thread(target=steal, name="thief")
    thief.start()
    thief.join()

    assert "'thief'" in str(caught[0])
    assert guard.locked()
    assert guard.statistics().holder == f"OS thread {threading.current_thread().name!r}"


def test_a_mutex_tells_how_long_was_waited_and_how_long_it_has_been_held_at_least() -> None:
    held_s = []

    def make_case() -> Case:
        guard = Mutex("guard")

        def hold() -> None:
            with guard:
                time.sleep(5)  # sleep: virtual seconds
                held_s.append(guard.statistics().held_s)

        def wait() -> None:
            with guard:
                pass

        def check() -> bool:
            figures = guard.statistics()
            waited = figures.contended == 1 and figures.wait_p99_s > 0
            return figures.acquisitions == 2 and (waited or figures.contended == 0) and figures.wait_p99_s < 6.3

        return Case([hold, wait], check)

    explore(make_case, SEEDS)

    assert 4.9 < max(held_s) < 5.1
    assert min(held_s) == 0.0  # nobody waited: no clock was read


def test_an_acquisition_that_times_out_leaves_no_trace() -> None:
    def make_case() -> Case:
        guard = Mutex("guard")

        def hold() -> None:
            with guard:
                time.sleep(1)  # sleep: virtual seconds

        def impatient() -> None:
            if guard.acquire(timeout=0.2):
                guard.release()

        def patient() -> None:
            with guard:
                pass

        return Case([hold, impatient, patient], lambda: not guard.locked() and guard.statistics().timeouts <= 1)

    explore(make_case, SEEDS, watch=WATCHED)


def test_a_condition_works_on_a_mutex() -> None:
    def make_case() -> Case:
        news = threading.Condition(Mutex("news"))  # type: ignore[arg-type]  # the stubs name two types, it takes any lock
        told = [False]

        def wait() -> None:
            with news:
                news.wait_for(lambda: told[0])

        def tell() -> None:
            with news:
                told[0] = True
                news.notify_all()

        return Case([wait, wait, tell])

    explore(make_case, SEEDS, watch=WATCHED)


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=40), st.sampled_from([0.5, 0.99, 1.0]))
def test_a_quantile_is_right_to_a_quarter(waits_s: list[float], quantile: float) -> None:
    histogram = WaitHistogram()
    for wait_s in waits_s:
        histogram.note(wait_s)

    within = sum(wait_s <= histogram.quantile_s(quantile) for wait_s in waits_s)
    true_s = sorted(waits_s)[min(int(quantile * len(waits_s)), len(waits_s) - 1)]

    if max(waits_s) < 4e6:  # beyond 50 days all is one bucket
        assert within >= quantile * len(waits_s)
    assert histogram.quantile_s(quantile) <= true_s * 1.25 + 2e-6


def test_a_lock_whose_holder_has_ended_is_refused_and_not_waited_for() -> None:
    mutex = Mutex("left behind")
    holder = threading.Thread(target=mutex.acquire)
    holder.start()
    holder.join()

    with pytest.raises(LockDeadlock, match="never gave it back"):
        mutex.acquire()

    assert mutex.locked()
