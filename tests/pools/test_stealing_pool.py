"""What a work-stealing pool is for, and what an earlier one of ours got wrong.

That one polled when idle, locked every queue on submit, never stole a last item, and dropped what was queued at
shutdown (for that, with 400 items: executor_endings.py).
"""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future, wait
from contextlib import ExitStack
from pathlib import Path

import pytest

from sennit.errors import PoolBroken, SettingsError
from sennit.execute.stealing_pool import WorkStealingExecutor
from sennit.execute.stealing_queues import OUTSIDE_EVERY
from tests.pools.executor_contract import LONG_S, Hold, identity, os_threads

TASKS = Path("/proc/self/task")


def start_all(pool: WorkStealingExecutor, workers: int) -> None:
    """Have every OS thread of the pool up."""
    barrier = threading.Barrier(workers)
    wait([pool.submit(barrier.wait, LONG_S) for _ in range(workers)], timeout=LONG_S)


def switches(prefix: str) -> list[tuple[int | None, list[str]]]:
    """Return how often the system has switched to and from each OS thread of a pool."""
    found = []
    for os_thread in os_threads(prefix):
        lines = (TASKS / str(os_thread.native_id) / "status").read_text().splitlines()
        found.append((os_thread.native_id, [line for line in lines if "ctxt_switches" in line]))
    return found


# ---------------------------------------------------------------- what an earlier version got wrong


@pytest.mark.skipif(not TASKS.exists(), reason="counts context switches in /proc")
def test_an_idle_pool_wakes_up_for_nothing() -> None:
    with WorkStealingExecutor(4, "stealing-idle") as pool:
        start_all(pool, 4)
        nothing = threading.Event()
        for _ in range(50):  # Until all have gone to sleep. One that polls never stays asleep for so long.
            before = switches("stealing-idle")
            nothing.wait(0.2)
            if switches("stealing-idle") == before:
                break
        else:
            pytest.fail(f"workers without work were switched to: {before}, {switches('stealing-idle')}")
        assert len(before) == 4


def test_a_submit_needs_the_lock_of_one_queue_only() -> None:
    with WorkStealingExecutor(3) as pool, ExitStack() as locks:
        holds = [Hold() for _ in range(3)]
        for hold in holds:
            pool.submit(hold)
        assert all(hold.begun.wait(LONG_S) for hold in holds)
        for worker in pool._pool.workers[1:]:
            locks.enter_context(worker.lock)
        pool._pool.turn = 2
        placed: list[Future[int]] = []

        submitter = threading.Thread(target=lambda: placed.append(pool.submit(identity, 4)))
        submitter.start()
        submitter.join(LONG_S)

        assert len(placed) == 1
        assert [len(worker.queue) for worker in pool._pool.workers] == [1, 0, 0]
        locks.close()
        for hold in holds:
            hold.let_go.set()
        assert placed[0].result(LONG_S) == 4


def test_what_waits_behind_a_long_item_is_run_by_the_others_to_the_last() -> None:
    """Items are dealt out in turn, so a third of them lie behind the one that stays: every one is stolen."""
    with WorkStealingExecutor(3) as pool:
        start_all(pool, 3)
        hold = Hold()
        held = pool.submit(hold)
        assert hold.begun.wait(LONG_S)

        others = [pool.submit(identity, n) for n in range(300)]

        assert wait(others, timeout=LONG_S).not_done == set()
        assert not held.done()
        hold.let_go.set()


def test_every_item_runs_once_or_is_cancelled_while_many_submit_cancel_and_steal() -> None:
    ran: Counter[int] = Counter()
    futures: dict[int, Future[None]] = {}
    with WorkStealingExecutor(4) as pool:

        def item(number: int) -> None:
            ran[number] += 1
            for child in (10 * number, 10 * number + 5):
                if 0 < child < 20_000:
                    futures[child] = pool.submit(item, child)

        def submit_some(first: int) -> None:
            for number in range(first, 2_000, 5):
                if number % 10 not in {0, 5}:
                    futures[number] = pool.submit(item, number)
                    if number % 7 == 0:
                        futures[number].cancel()

        submitters = [threading.Thread(target=submit_some, args=(first,)) for first in range(1, 6)]
        for submitter in submitters:
            submitter.start()
        for submitter in submitters:
            submitter.join(LONG_S)
        waited_for = 0
        while waited_for < len(futures):  # A task has submitted its children by the time it is done.
            waited_for = len(futures)
            assert wait(list(futures.values()), timeout=LONG_S).not_done == set()

    assert len(futures) > 3_000
    assert all(ran[number] == (not future.cancelled()) for number, future in futures.items())


# ---------------------------------------------------------------- order


def test_one_worker_runs_what_came_from_outside_in_the_order_it_came() -> None:
    order: list[int] = []
    with WorkStealingExecutor(1) as pool:
        for n in range(200):
            pool.submit(order.append, n)

    assert order == list(range(200))


def test_children_run_before_what_waits_outside_newest_first() -> None:
    order: list[str] = []
    with WorkStealingExecutor(1) as pool:
        hold = Hold()

        def parent() -> None:
            hold()
            for name in ("older", "newer"):
                pool.submit(order.append, name)

        parents = pool.submit(parent)
        assert hold.begun.wait(LONG_S)
        pool.submit(order.append, "outside")
        hold.let_go.set()
        parents.result(LONG_S)

    assert order == ["newer", "older", "outside"]


def test_a_tree_of_tasks_is_worked_off_in_depth_so_few_are_queued_at_once() -> None:
    depth = 10
    queued: list[int] = []
    with WorkStealingExecutor(1) as pool:
        leaves = threading.Semaphore(0)

        def node(level: int) -> None:
            queued.append(pool.statistics().queued)
            if level == depth:
                leaves.release()
                return
            pool.submit(node, level + 1)
            pool.submit(node, level + 1)

        pool.submit(node, 0)
        for _ in range(2**depth):
            assert leaves.acquire(timeout=LONG_S)

    assert len(queued) == 2 ** (depth + 1) - 1
    assert max(queued) == depth


def test_tasks_that_submit_for_ever_do_not_keep_those_from_outside_waiting_for_ever() -> None:
    with WorkStealingExecutor(1) as pool:
        outside = threading.Event()
        generations = 0

        def parent() -> None:
            nonlocal generations
            generations += 1
            if not outside.is_set() and generations < 100 * OUTSIDE_EVERY:
                pool.submit(parent)

        hold = Hold()
        pool.submit(hold)
        pool.submit(parent)
        pool.submit(outside.set)
        hold.let_go.set()
        assert outside.wait(LONG_S)

    assert generations <= OUTSIDE_EVERY + 1


# ---------------------------------------------------------------- figures and refusals


def test_the_figures_add_up() -> None:
    with WorkStealingExecutor(3) as pool:
        start_all(pool, 3)
        hold = Hold()
        pool.submit(hold)
        assert hold.begun.wait(LONG_S)
        wait([pool.submit(identity, n) for n in range(300)], timeout=LONG_S)
        hold.let_go.set()
    figures = pool.statistics()

    assert figures.workers == 3
    assert sum(figures.executed) == 3 + 1 + 300
    assert figures.queued == 0
    assert figures.stolen >= figures.steals >= 1
    assert figures.imbalance == pytest.approx(max(figures.executed) / (304 / 3))
    assert WorkStealingExecutor(2).statistics().imbalance == 0.0


def test_a_pool_whose_first_os_thread_the_system_refuses_says_so_and_works_later() -> None:
    pool = WorkStealingExecutor(2)
    usual = threading.stack_size(1 << 46)  # More than the system has addresses for.
    try:
        with pytest.raises(RuntimeError, match="start new thread"):
            pool.submit(identity, 1)
    finally:
        threading.stack_size(usual)

    with pool:
        assert pool.submit(identity, 2).result(LONG_S) == 2


def test_a_pool_that_cannot_grow_makes_do_with_the_os_threads_it_has() -> None:
    with WorkStealingExecutor(4) as pool:
        pool.submit(identity, 1).result(LONG_S)
        usual = threading.stack_size(1 << 46)
        try:
            futures = [pool.submit(identity, n) for n in range(100)]
            assert [future.result(LONG_S) for future in futures] == list(range(100))
        finally:
            threading.stack_size(usual)
        assert pool.statistics().workers == 1


def test_its_errors_are_the_standard_ones_too_and_say_what_to_do() -> None:
    with pytest.raises(SettingsError, match="at least one"):
        WorkStealingExecutor(0)

    def prepare() -> None:
        raise ValueError("not today")

    pool = WorkStealingExecutor(1, initializer=prepare)
    error = pool.submit(identity, 1).exception(LONG_S)
    pool.shutdown()

    assert isinstance(error, PoolBroken)
    assert "make a new pool" in error.fix
