"""Work stealing under schedules drawn from a seed: every item runs exactly once or is cancelled, and none is left.

Each scenario runs under hundreds of orders of its OS threads (`sennit.testing.preempt`), which also report a pool that
sleeps while work is queued as the deadlock it is. To know that they would see it, the same scenarios run with pools from
which one precaution was left out: each must fail.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from sennit.errors import OsThreadDeadlock, SeedFailed, StepLimit
from sennit.execute import executor_parts, stealing_queues
from sennit.execute.executor_parts import WorkItem
from sennit.execute.stealing_pool import WorkStealingExecutor
from sennit.execute.stealing_queues import StealingQueues, StealingWorker
from sennit.testing.preempt import Case, explore, point

WATCH = (stealing_queues, executor_parts)


class FreeThreaded(StealingQueues):
    """Takes the way of a build without a GIL; its memory order is not what this can show."""


class Run:
    """One pool under a schedule: what was accepted, what ran, how often."""

    def __init__(self, workers: int = 2, queues: type[StealingQueues] = StealingQueues, **options: Any) -> None:
        self.pool = WorkStealingExecutor(workers, seed=1, **options)
        self.pool._pool.__class__ = queues
        self.pool._pool.has_gil = queues is not FreeThreaded
        self.ran: Counter[str] = Counter()
        self.futures: dict[str, Future[Any]] = {}
        self.refused = 0

    def item(self, name: str) -> None:
        point()
        self.ran[name] += 1

    def submit(self, name: str, body: Callable[[], object] | None = None) -> None:
        try:
            self.futures[name] = self.pool.submit(body or partial(self.item, name))
        except RuntimeError:
            self.refused += 1

    def submit_many(self, name: str, count: int) -> None:
        for number in range(count):
            self.submit(f"{name}{number}")

    def shut(self, *, cancel: bool = False) -> None:
        self.pool.shutdown(cancel_futures=cancel)

    def park_all(self) -> None:
        """Have every worker started and on its way to sleep: in some orders it sleeps by now, in some it does not yet."""
        barrier = threading.Barrier(self.pool._pool.workers_max)
        for future in [self.pool.submit(barrier.wait) for _ in range(self.pool._pool.workers_max)]:
            future.result()

    def nothing_is_pending_and_each_ran_once_or_is_cancelled(self) -> None:
        for name, future in self.futures.items():
            assert future.done(), f"{name} is pending"
            assert self.ran[name] == (not future.cancelled()), f"{name} ran {self.ran[name]} times, {future}"
        assert not any(self.pool._pool.queues)


# ---------------------------------------------------------------- scenarios


def submits_and_shutdown(queues: type[StealingQueues] = StealingQueues, *, cancel: bool = False) -> Case:
    """Two submit, one shuts down: before, between or after them."""
    run = Run(2, queues)
    return Case(
        [partial(run.submit_many, "a", 3), partial(run.submit_many, "b", 2), partial(run.shut, cancel=cancel)],
        run.nothing_is_pending_and_each_ran_once_or_is_cancelled,
    )


def items_for_sleepers(queues: type[StealingQueues] = StealingQueues, *, at_once: int = 1) -> Case:
    """All workers sleep; what comes then must wake enough of them: the items wait for each other."""
    run = Run(3, queues)
    together = threading.Barrier(at_once)

    def main() -> None:
        run.park_all()
        for number in range(at_once):
            run.submit(f"a{number}", together.wait)
        for future in run.futures.values():
            future.result()
        run.shut()

    return Case([main])


def child_of_a_busy_worker(queues: type[StealingQueues] = StealingQueues) -> Case:
    """A task waits for its own child, which only another worker can run, by stealing the only item of a queue."""
    run = Run(2, queues)

    def parent() -> None:
        run.submit("child")
        run.futures["child"].result()

    def main() -> None:
        run.pool.submit(point).result()
        run.submit("first", parent)
        run.futures["first"].result()
        run.shut()

    return Case([main], lambda: run.ran["child"] == 1)


def children_that_need_each_other(queues: type[StealingQueues] = StealingQueues) -> Case:
    """Two children of one task run only side by side: the one who steals both must have the second one seen."""
    run = Run(3, queues)
    together = threading.Barrier(2)

    def parent() -> None:
        run.submit("left", together.wait)
        run.submit("right", together.wait)
        run.futures["left"].result()
        run.futures["right"].result()

    def main() -> None:
        run.park_all()
        run.pool.submit(parent).result()
        run.shut()

    return Case([main])


def cancelled_while_a_thief_carries(queues: type[StealingQueues] = StealingQueues) -> Case:
    """Of what is queued when shutdown cancels, each worker may run the one it has in hand, and nothing else."""
    run = Run(2, queues)
    ran_before: list[int] = []

    def parent() -> None:
        run.submit_many("child", 9)

    def main() -> None:
        run.park_all()
        run.pool.submit(parent).result()
        run.pool.shutdown(wait=False, cancel_futures=True)
        ran_before.append(run.ran.total())
        run.shut()

    def check() -> None:
        run.nothing_is_pending_and_each_ran_once_or_is_cancelled()
        assert run.ran.total() - ran_before[0] <= 2

    return Case([main], check)


def broken_start(queues: type[StealingQueues] = StealingQueues) -> Case:
    """The initializer of the second worker fails while others submit."""
    starts = iter(range(100))

    def prepare() -> None:
        if next(starts) == 1:
            raise ValueError("the second worker")

    run = Run(2, queues, initializer=prepare)

    def main() -> None:
        run.submit_many("b", 2)
        run.shut()

    def check() -> None:
        for name, future in run.futures.items():
            assert future.done(), f"{name} is pending"
            assert run.ran[name] == (future.exception() is None)

    return Case([partial(run.submit_many, "a", 2), main], check)


SCENARIOS: dict[str, Callable[..., Case]] = {
    "submits and shutdown": submits_and_shutdown,
    "submits and cancelling shutdown": partial(submits_and_shutdown, cancel=True),
    "one item for sleepers": items_for_sleepers,
    "three items that wait for each other": partial(items_for_sleepers, at_once=3),
    "child of a busy worker": child_of_a_busy_worker,
    "children that need each other": children_that_need_each_other,
    "cancelled while a thief carries": cancelled_while_a_thief_carries,
    "broken start": broken_start,
}


@pytest.mark.parametrize("queues", [StealingQueues, FreeThreaded])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_item_is_lost_or_run_twice_and_no_wake_up_is_missed(scenario: str, queues: type[StealingQueues]) -> None:
    explored = explore(partial(SCENARIOS[scenario], queues), seeds=range(20), watch=WATCH)

    assert explored.schedules > 10


# ---------------------------------------------------------------- what the scenarios would see


class NoSecondLook(StealingQueues):
    """Sleeps without looking again after it has said that it sleeps."""

    def _is_anything_queued(self) -> bool:
        return self._is_ending() and super()._is_anything_queued()


class NoChain(StealingQueues):
    """A woken worker that leaves work behind wakes nobody."""

    def call_one(self) -> None:
        pass


class ClosesAtOnce(StealingQueues):
    """Does not wait for a submit that is half done."""

    def close(self) -> None:
        self.door.closed = True


class HomeWhateverCame(StealingQueues):
    """A thief does not ask whether its load was to be cancelled meanwhile."""

    def _bring_home(self, thief: StealingWorker, loot: list[WorkItem], home: deque[WorkItem]) -> WorkItem | None:
        point()
        with thief.lock:
            home.extend(loot[1:])
        return loot[0]


class KeepsTheLast(StealingQueues):
    """Steals half, rounded down."""

    def _take(self, worker: StealingWorker) -> WorkItem | None:
        if any(len(queue) > 1 for queue in self.queues) or worker.queue or worker.children:
            return super()._take(worker)
        return None


@pytest.mark.parametrize(
    ("scenario", "queues", "what"),
    [
        ("child of a busy worker", NoSecondLook, OsThreadDeadlock),
        ("children that need each other", NoChain, OsThreadDeadlock),
        ("submits and cancelling shutdown", ClosesAtOnce, AssertionError),
        ("cancelled while a thief carries", HomeWhateverCame, AssertionError),
        ("child of a busy worker", KeepsTheLast, StepLimit),
    ],
)
def test_the_scenarios_see_what_a_pool_without_one_of_its_precautions_does(
    scenario: str, queues: type[StealingQueues], what: type[Exception]
) -> None:
    with pytest.raises(SeedFailed) as failed:
        explore(partial(SCENARIOS[scenario], queues), seeds=range(600), watch=WATCH, step_limit=3000)

    assert isinstance(failed.value.__cause__, what)
