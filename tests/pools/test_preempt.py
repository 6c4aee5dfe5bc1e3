"""The explorer of OS-thread schedules finds what plain stress does not, and says the same thing twice."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, thread

import pytest

from sennit.errors import OsThreadDeadlock, SeedFailed, SimulationError, StepLimit, UsageError
from sennit.testing.preempt import Case, Schedule, explore, point


class Counter:
    """Read, call, write: the classic lost update."""

    def __init__(self) -> None:
        self.n = 0

    def increased(self) -> int:
        return self.n + 1

    def add(self) -> None:
        n = self.increased()
        self.n = n


class SafeCounter(Counter):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def add(self) -> None:
        with self.lock:
            super().add()


class Registry:
    """Check, then act."""

    def __init__(self) -> None:
        self.made = 0
        self.values: dict[str, int] = {}

    def get(self) -> None:
        if "key" not in self.values:
            self.made += 1
            self.values["key"] = self.made


class Transfer:
    """Two locks, taken in the order of who calls."""

    def __init__(self) -> None:
        self.left = threading.Lock()
        self.right = threading.Lock()

    def to_right(self) -> None:
        with self.left, self.right:
            pass

    def to_left(self) -> None:
        with self.right, self.left:
            pass


def broken_counter() -> Case:
    counter = Counter()
    return Case([counter.add] * 2, lambda: counter.n == 2)


def safe_counter() -> Case:
    counter = SafeCounter()
    return Case([counter.add] * 3, lambda: counter.n == 3)


def check_then_act() -> Case:
    registry = Registry()
    return Case([registry.get] * 2, lambda: registry.made == 1)


def two_orders() -> Case:
    transfer = Transfer()
    return Case([transfer.to_right, transfer.to_left])


def wait_without_looking() -> Case:
    """The waiter does not look whether the news has come before it waits for them."""
    news = threading.Condition()

    def wait() -> None:
        with news:
            news.wait()

    def tell() -> None:
        with news:
            news.notify()

    return Case([wait, tell])


@pytest.mark.parametrize("make_case", [broken_counter, check_then_act])
def test_a_race_is_found_within_50_seeds(make_case: Callable[[], Case]) -> None:
    with pytest.raises(SeedFailed, match="the check is False") as caught:
        explore(make_case, range(50))

    assert caught.value.reproduction == f"explore({make_case.__name__}, seeds=[{caught.value.seed}])"
    assert any("test_preempt.py" in line for line in caught.value.trace)


def test_plain_stress_finds_none_of_these_races() -> None:
    """The control: the same bodies, free OS threads, as many runs; the interpreter switches 5 ms apart."""
    lost = 0
    for _ in range(50):
        counter = Counter()
        workers = [threading.Thread(target=counter.add) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        lost += counter.n != 2

    assert lost <= 1  # one is possible, if the machine takes the processor away at the right line


def test_a_lock_order_that_differs_is_a_deadlock_and_its_cycle_is_named() -> None:
    with pytest.raises(SeedFailed, match="OsThreadDeadlock") as caught:
        explore(two_orders, range(50))

    deadlock = caught.value.__cause__
    assert isinstance(deadlock, OsThreadDeadlock)
    assert len(deadlock.cycle) == 2
    assert "held by 1:to_left" in deadlock.cycle[0]
    assert "Transfer.to_right (test_preempt.py" in deadlock.cycle[0]
    assert "held by 0:to_right" in deadlock.cycle[1]


def test_a_lost_wake_up_is_a_deadlock_without_a_cycle() -> None:
    with pytest.raises(SeedFailed, match="a wake-up is missing") as caught:
        explore(wait_without_looking, range(50))

    deadlock = caught.value.__cause__
    assert isinstance(deadlock, OsThreadDeadlock)
    assert deadlock.cycle == ()
    assert len(deadlock.waiting) == 1


def test_a_lock_acquired_twice_by_one_os_thread_is_a_cycle_of_one() -> None:
    def twice() -> None:
        lock = threading.Lock()
        with lock, lock:
            pass

    with pytest.raises(OsThreadDeadlock) as caught:
        Schedule(0).run([twice])

    assert len(caught.value.cycle) == 1


def test_correct_code_passes_under_many_different_schedules() -> None:
    explored = explore(safe_counter, range(300))

    assert explored.seeds == 300
    assert explored.schedules > 200
    assert explored.steps > 3000


def test_one_seed_gives_one_schedule_and_another_seed_another() -> None:
    def run(seed: int) -> tuple[int, int]:
        with Schedule(seed) as schedule:
            case = safe_counter()
            schedule.run(case.bodies)
        return schedule.fingerprint, schedule.steps

    assert run(7) == run(7)
    assert len({run(seed) for seed in range(20)}) > 15


def test_exactly_one_os_thread_runs_at_a_time() -> None:
    inside = [0]
    most = [0]

    def body() -> None:
        for _ in range(20):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1

    # Without `watch` the file of the bodies is watched; a switch between += and -= is wanted, so `most` may be above 1,
    # but no update is lost, because between two points nobody else runs.
    Schedule(3).run([body, body, body])

    assert inside == [0]


def test_opcodes_find_a_race_within_a_line() -> None:
    def make_case() -> Case:
        counter = Counter()

        def add() -> None:
            counter.n += len("x")

        return Case([add, add], lambda: counter.n == 2)

    assert explore(make_case, range(100)).seeds == 100
    with pytest.raises(SeedFailed) as caught:
        explore(make_case, range(100), opcodes=True)
    assert caught.value.reproduction.endswith("opcodes=True)")


def test_what_a_body_raises_is_raised_and_the_others_are_unwound() -> None:
    lock = None

    def fails() -> None:
        raise ZeroDivisionError

    before = threading.active_count()
    with Schedule(1) as schedule:
        lock = threading.Lock()
        lock.acquire()
        with pytest.raises(ZeroDivisionError):
            schedule.run([fails, lock.acquire])

    assert threading.active_count() == before


def test_os_threads_that_a_body_starts_belong_to_the_schedule() -> None:
    def make_case() -> Case:
        counter = Counter()

        def body() -> None:
            workers = [threading.Thread(target=counter.add) for _ in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

        return Case([body], lambda: counter.n == 2)

    with pytest.raises(SeedFailed):  # the first has to be stopped before the second is started: 1 seed of 16
        explore(make_case, range(300))


def test_an_executor_runs_under_the_schedule_and_its_idle_workers_are_unwound() -> None:
    def make_case() -> Case:
        executor = ThreadPoolExecutor(2)
        done: list[int] = []

        def submit(number: int) -> None:
            executor.submit(done.append, number).result(timeout=1000)

        return Case([lambda: submit(1), lambda: submit(2)], lambda: sorted(done) == [1, 2])

    before = threading.active_count()
    explore(make_case, range(30), watch=[thread])

    assert threading.active_count() == before


def test_queues_and_events_run_under_the_schedule() -> None:
    def make_case() -> Case:
        bounded: queue.Queue[int] = queue.Queue(1)
        simple: queue.SimpleQueue[int] = queue.SimpleQueue()
        full = threading.Event()

        def put() -> None:
            for number in range(3):
                bounded.put(number)
            full.set()

        def move() -> None:
            for _ in range(3):
                simple.put(bounded.get())

        got: list[int] = []

        def get() -> None:
            full.wait()
            got.extend(simple.get() for _ in range(3))

        return Case([put, move, get], lambda: got == [0, 1, 2])

    explore(make_case, range(50), watch=[queue])


def test_an_hour_passes_without_waiting_and_a_short_time_out_may_come_early() -> None:
    outcomes = set()

    def make_case() -> Case:
        lock = threading.Lock()
        slept: list[float] = []

        def hold() -> None:
            with lock:
                point()

        def sleep() -> None:
            begun_s = time.monotonic()
            time.sleep(3600)  # sleep: virtual time, an hour of it costs nothing
            slept.append(time.monotonic() - begun_s)

        def impatient() -> None:
            got = lock.acquire(timeout=0.5)
            outcomes.add(got)
            if got:
                lock.release()

        return Case([hold, impatient, sleep], lambda: 3600 <= slept[0] < 3601)

    explore(make_case, range(200))

    assert outcomes == {True, False}


def test_a_loop_that_never_ends_meets_the_step_limit() -> None:
    def poll() -> None:
        while True:
            point()

    with pytest.raises(StepLimit):
        Schedule(0, step_limit=500).run([poll])


def test_locks_outside_the_schedule_stay_real() -> None:
    made: list[object] = []
    asked, answered = (
        threading.Lock(),
        threading.Lock(),
    )  # real ones: they may be waited for out of the schedule's sight
    asked.acquire()
    answered.acquire()

    def outsider() -> None:
        asked.acquire()
        made.append(threading.Lock())
        answered.release()

    worker = threading.Thread(target=outsider)
    worker.start()
    with Schedule(0):
        inside = threading.Lock()
        asked.release()
        answered.acquire()
    worker.join()

    assert type(made[0]) is type(threading.Lock())
    assert type(inside) is not type(threading.Lock())
    with inside:  # and one that outlives its schedule still is a lock
        assert inside.locked()


def test_schedules_do_not_nest() -> None:
    with Schedule(0), pytest.raises(UsageError, match="a schedule is open"):
        Schedule(1).run([point])


def test_who_blocks_where_the_scheduler_cannot_see_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sennit.testing.preempt_schedule.STUCK_S", 0.5
    )  # twice this: longer than a start of an OS thread takes
    real = threading.Lock()
    real.acquire()

    def stuck() -> None:
        real.acquire()

    with pytest.raises(SimulationError, match=r"stuck has made no step .* in .*stuck \(test_preempt.py"):
        Schedule(0).run([stuck])
    real.release()
    for os_thread in threading.enumerate():
        if os_thread.name == "0:stuck":
            os_thread.join()  # it runs free now, and ends
