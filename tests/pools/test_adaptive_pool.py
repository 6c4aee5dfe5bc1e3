"""What the adaptive pool promises beyond the executor contract (test_executors.py).

Its size is judged by facts: bodies that are held, OS threads that came and went. How good the size is that it finds is
tested in virtual time (test_knee.py) and measured by the benchmark.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import pytest

from sennit.errors import PoolQueueFull, SettingsError
from sennit.execute.adaptive_pool import AdaptiveThreadPoolExecutor
from sennit.execute.workload import Kind

LONG_S = 30.0


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def until(fact: Callable[[], bool]) -> None:
    """Wait for a fact that another OS thread brings about."""
    nobody = threading.Event()
    while not fact():
        nobody.wait(0.001)


def nothing() -> None: ...


def hold(pool: AdaptiveThreadPoolExecutor, let_go: threading.Event) -> Future[bool]:
    """Return when a body is running that stays until `let_go`."""
    begun = threading.Event()

    def body() -> bool:
        begun.set()
        return let_go.wait(LONG_S)

    future = pool.submit(body)
    assert begun.wait(LONG_S)
    return future


# ---------------------------------------------------------------- it grows


def test_bodies_that_wait_get_more_workers_until_all_run(let_go: threading.Event) -> None:
    with AdaptiveThreadPoolExecutor(workers_initial=2) as pool:
        futures = [pool.submit(let_go.wait, LONG_S) for _ in range(40)]
        until(lambda: pool.statistics().queued == 0)
        grown = pool.statistics()
        let_go.set()
        wait(futures)

    assert grown.workers_busy == 40
    assert 40 <= grown.size <= 64
    assert grown.steps_up > 0


def test_it_never_has_more_os_threads_than_its_maximum(let_go: threading.Event) -> None:
    with AdaptiveThreadPoolExecutor(5, workers_initial=1) as pool:
        futures = [pool.submit(let_go.wait, LONG_S) for _ in range(20)]
        until(lambda: pool.statistics().workers_busy == 5)
        full = pool.statistics()
        let_go.set()
        wait(futures)
        done = pool.statistics()

    assert (full.queued, full.size, full.size_max) == (15, 5, 5)
    assert done.workers_peak == 5


def test_a_body_that_waits_for_its_own_pool_gets_it_another_worker() -> None:
    with AdaptiveThreadPoolExecutor(workers_initial=1) as pool:

        def outer(depth: int) -> int:
            return 1 + pool.submit(outer, depth - 1).result(LONG_S) if depth else 0

        assert pool.submit(outer, 6).result(LONG_S) == 6


def test_100_busy_agents_never_scale_it_down() -> None:
    """An earlier design measured load after it had removed its own futures: 16, 8, 4, 2 workers for 100 busy agents."""
    sizes = []
    with AdaptiveThreadPoolExecutor(workers_initial=16) as pool:

        def agent() -> None:
            threading.Event().wait(0.010)
            sizes.append(pool._core.knee.size)

        for _ in range(3):
            wait([pool.submit(agent) for _ in range(100)])
        workers = pool.statistics().workers

    assert min(sizes) >= 16
    assert workers >= 16


# ---------------------------------------------------------------- and it shrinks


def test_os_threads_that_nobody_needs_end_and_workers_min_of_them_stay(let_go: threading.Event) -> None:
    with AdaptiveThreadPoolExecutor(workers_min=2, workers_initial=8, idle_s=0.02) as pool:
        futures = [pool.submit(let_go.wait, LONG_S) for _ in range(20)]
        until(lambda: pool.statistics().workers_busy == 20)
        let_go.set()
        wait(futures)
        until(lambda: pool.statistics().workers == 2)
        rested = pool.statistics()
        again = [pool.submit(nothing) for _ in range(50)]
        wait(again, LONG_S)

    assert rested.workers_peak >= 20
    assert (rested.workers_busy, rested.size) == (0, 8)
    assert all(future.done() for future in again)


def test_no_os_thread_ends_while_the_pool_is_used(let_go: threading.Event) -> None:
    with AdaptiveThreadPoolExecutor(5, workers_initial=4, idle_s=0.02) as pool:
        held = [hold(pool, let_go) for _ in range(2)]
        wait([pool.submit(nothing) for _ in range(50)])
        before = pool.statistics().workers
        time.sleep(0.1)  # sleep: five times the idle time; that nothing ends cannot be waited for.
        after = pool.statistics().workers
        let_go.set()
        wait(held)

    assert before == after >= 3


def test_an_idle_pool_costs_no_cpu_time_and_never_wakes() -> None:
    """Each time an OS thread ran and went back to sleep is counted by the system."""
    with AdaptiveThreadPoolExecutor(workers_initial=4, workers_min=4, thread_name_prefix="idle") as pool:
        wait([pool.submit(nothing) for _ in range(400)])
        until(lambda: pool.statistics().workers_busy == 0)
        os_threads = [each for each in threading.enumerate() if each.name.startswith("idle_")]

        def at_rest() -> bool:
            before = [switches(each) for each in os_threads]
            time.sleep(0.2)  # sleep: that nothing wakes cannot be waited for
            return before == [switches(each) for each in os_threads]

        until(at_rest)

    assert os_threads


def switches(os_thread: threading.Thread) -> int:
    """Return how often an OS thread has run; 0 where nobody can tell."""
    try:
        with open(f"/proc/self/task/{os_thread.native_id}/status", encoding="ascii") as status:  # noqa: PTH123
            return sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
    except FileNotFoundError:
        return 0


# ---------------------------------------------------------------- resize


def test_resize_during_submit_from_eight_os_threads_loses_nothing() -> None:
    """An earlier design replaced its pool on resize: 34 of 1,200 submits raised RuntimeError."""
    errors: list[BaseException] = []
    futures: list[Future[int]] = []
    start = threading.Barrier(9)

    with AdaptiveThreadPoolExecutor(16, workers_initial=2) as pool:

        def submit() -> None:
            try:
                start.wait(LONG_S)
                for n in range(150):
                    futures.append(pool.submit(int, n))  # noqa: PERF401 - the others append in between
            except RuntimeError as error:
                errors.append(error)

        os_threads = [threading.Thread(target=submit) for _ in range(8)]
        for os_thread in os_threads:
            os_thread.start()
        start.wait(LONG_S)
        for n in range(300):
            pool.resize(1 + n * 7 % 16)
        for os_thread in os_threads:
            os_thread.join()
        results = sorted(future.result(LONG_S) for future in futures)

    assert errors == []
    assert results == sorted(list(range(150)) * 8)


def test_resize_sends_workers_at_once_and_surplus_ones_finish_first(let_go: threading.Event) -> None:
    with AdaptiveThreadPoolExecutor(8, workers_initial=1) as pool:
        held = [hold(pool, let_go)]
        pool.resize(4)
        held += [hold(pool, let_go) for _ in range(3)]
        pool.resize(1)
        smaller = pool.statistics()
        let_go.set()
        results = [future.result(LONG_S) for future in held]
        after = pool.submit(int, 7).result(LONG_S)

    assert (smaller.size, smaller.workers_busy) == (1, 4)
    assert results == [True] * 4
    assert after == 7


@pytest.mark.parametrize("size", [0, -1, 9])
def test_a_size_out_of_bounds_is_refused(size: int) -> None:
    with AdaptiveThreadPoolExecutor(8) as pool, pytest.raises(SettingsError, match="max_workers, which is 8"):
        pool.resize(size)


# ---------------------------------------------------------------- queue


def test_finished_futures_are_not_kept() -> None:
    """An earlier design counted 500 finished futures as 500 active ones."""
    with AdaptiveThreadPoolExecutor() as pool:
        futures = [pool.submit(nothing) for _ in range(500)]
        wait(futures)
        kept = [weakref.ref(future) for future in futures]
        until(lambda: pool.statistics().workers_busy == 0)
        statistics = pool.statistics()
        futures.clear()
        gc.collect()

        assert [ref for ref in kept if ref() is not None] == []
    assert (statistics.queued, statistics.finished) == (0, 500)


def test_an_urgent_item_passes_normal_ones_and_a_low_one_lets_them_pass(let_go: threading.Event) -> None:
    order: list[str] = []
    with AdaptiveThreadPoolExecutor(1) as pool:
        hold(pool, let_go)
        pool.submit_with("low", order.append, "low")
        for n in range(3):
            pool.submit(order.append, f"normal {n}")
        pool.submit_with("high", order.append, "high")
        pool.submit_with("urgent", order.append, "urgent")
        let_go.set()

    assert order == ["urgent", "high", "normal 0", "normal 1", "normal 2", "low"]


def test_a_priority_must_exist() -> None:
    with AdaptiveThreadPoolExecutor() as pool, pytest.raises(ValueError, match="priority must be one of"):
        pool.submit_with("soon", nothing)


def test_a_full_queue_refuses_and_nothing_is_submitted(let_go: threading.Event) -> None:
    with AdaptiveThreadPoolExecutor(1, queue_max=2, on_full="raise") as pool:
        held = hold(pool, let_go)
        queued = [pool.submit(int, n) for n in range(2)]
        with pytest.raises(PoolQueueFull, match="2 items wait already") as caught:
            pool.submit(int, 3)
        let_go.set()
        results = [held.result(LONG_S), *(future.result(LONG_S) for future in queued)]
        finished = pool.submit(int, 4).result(LONG_S)

    assert isinstance(caught.value, RuntimeError)
    assert caught.value.queue_max == 2
    assert (results, finished) == ([True, 0, 1], 4)


def test_a_full_queue_makes_submitters_wait_and_never_holds_more(let_go: threading.Event) -> None:
    deepest = 0
    with AdaptiveThreadPoolExecutor(1, queue_max=3) as pool:
        hold(pool, let_go)
        results: list[int] = []
        submitters = [
            threading.Thread(target=lambda: [pool.submit(results.append, n) for n in range(50)]) for _ in range(4)
        ]
        for submitter in submitters:
            submitter.start()
        until(lambda: pool._core.submitters == 4)
        deepest = pool.statistics().queued
        let_go.set()
        for submitter in submitters:
            submitter.join(LONG_S)

    assert deepest == 3
    assert sorted(results) == sorted(list(range(50)) * 4)


def test_a_submitter_that_waits_for_room_learns_of_the_shutdown(let_go: threading.Event) -> None:
    pool = AdaptiveThreadPoolExecutor(1, queue_max=1)
    hold(pool, let_go)
    pending = pool.submit(int, 1)
    errors: list[BaseException] = []

    def submit() -> None:
        try:
            pool.submit(int, 2)
        except RuntimeError as error:
            errors.append(error)

    submitter = threading.Thread(target=submit)
    submitter.start()
    until(lambda: pool._core.submitters == 1)
    pool.shutdown(wait=False)
    submitter.join(LONG_S)
    let_go.set()

    assert len(errors) == 1
    assert pending.result(LONG_S) == 1


def test_a_body_never_waits_for_room_in_its_own_pool() -> None:
    with AdaptiveThreadPoolExecutor(1, queue_max=1) as pool:
        futures = pool.submit(lambda: [pool.submit(int, n) for n in range(5)]).result(LONG_S)

        assert [future.result(LONG_S) for future in futures] == list(range(5))


# ---------------------------------------------------------------- bad days, and figures


def test_an_os_thread_that_cannot_start_costs_nothing_but_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only way to run out of OS threads without taking the machine along."""
    started = threading.Thread.start
    allowed = iter([True, True])

    def start(os_thread: threading.Thread) -> None:
        if os_thread.name.startswith("few_") and not next(allowed, False):
            raise RuntimeError("can't start new thread")
        started(os_thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with AdaptiveThreadPoolExecutor(workers_initial=8, thread_name_prefix="few") as pool:
        results = list(pool.map(int, range(100), timeout=LONG_S))
        workers = pool.statistics().workers_peak

    assert results == list(range(100))
    assert workers >= 2


def test_if_not_even_one_os_thread_starts_submit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(os_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = AdaptiveThreadPoolExecutor()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            pool.submit(nothing)

    assert pool.statistics().queued == 0
    assert pool.submit(int, 1).result(LONG_S) == 1
    pool.shutdown()


def test_statistics_name_the_functions_and_what_they_do() -> None:
    with AdaptiveThreadPoolExecutor() as pool:
        while not any(row.kind is not Kind.UNKNOWN for row in pool.statistics().functions):
            wait([pool.submit(threading.Event().wait, 0.1) for _ in range(10)])
        statistics = pool.statistics()

    (row,) = statistics.functions
    assert row.key == "threading:Event.wait"
    assert row.kind is Kind.IO
    assert statistics.busy_s > 0.0


@pytest.mark.parametrize(
    "options",
    [
        {"max_workers": 0},
        {"workers_min": 3, "workers_initial": 2},
        {"workers_min": -1},
        {"workers_initial": 65},
        {"up_at": 0.2, "down_at": 0.7},
        {"up_at": 1.5},
        {"idle_s": 0},
        {"queue_max": 0},
        {"on_full": "drop"},
    ],
)
def test_bounds_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        AdaptiveThreadPoolExecutor(**options)

    assert caught.value.fix


def test_the_search_starts_at_the_documented_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[tuple[int, int | str], int] = {}
    for cpus in (2, 4, 32):
        monkeypatch.setenv("SENNIT_CPUS", str(cpus))
        for agents in (1, 6, 100):
            sizes[cpus, agents] = AdaptiveThreadPoolExecutor(agents=agents).statistics().size
        sizes[cpus, "max 3"] = AdaptiveThreadPoolExecutor(3).statistics().size

    assert sizes == {
        (2, 1): 2,
        (2, 6): 4,
        (2, 100): 4,
        (2, "max 3"): 3,
        (4, 1): 4,
        (4, 6): 6,
        (4, 100): 8,
        (4, "max 3"): 3,
        (32, 1): 32,
        (32, 6): 32,
        (32, 100): 32,
        (32, "max 3"): 3,
    }
