"""Each watch of `sennit profile` in a program that does on purpose what it looks for."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from queue import Queue
from time import monotonic, perf_counter
from types import ModuleType
from typing import Any

import pytest

from sennit.execute.workload import Sample
from sennit.observe.profile import places
from sennit.observe.profile.copies import CopyWatch, PickleWatch, copies
from sennit.observe.profile.facts import BLOCK_S_MIN, COPY_BYTES_MIN, LockFacts
from sennit.observe.profile.locks import LockWatch, waited_here_s
from sennit.observe.profile.loops import LoopWatch, stack_of
from sennit.observe.profile.pools import PoolWatch, is_importable


def compute(seconds: float) -> None:
    """Keep this OS thread in Python for so long."""
    until_s = perf_counter() + seconds
    while perf_counter() < until_s:
        pass


# ---------------------------------------------------------------- event loops


def test_a_step_that_keeps_the_loop_is_named_with_where_it_stood() -> None:
    async def quick() -> None:
        await asyncio.sleep(0)

    async def slow() -> None:
        compute(0.2)

    async def main() -> None:
        await asyncio.gather(quick(), slow(), quick())

    watch = LoopWatch()
    watch.start()
    try:
        asyncio.run(main())
    finally:
        blocks = watch.stop()

    (block,) = [block for block in blocks if "slow" in block.what]
    assert block.count == 1
    assert block.blocked_s >= 0.2
    assert "compute" in block.stack[0]
    assert any("slow" in place for place in block.stack)


def test_what_another_watch_took_of_a_step_is_not_the_programs() -> None:
    async def main() -> None:
        compute(BLOCK_S_MIN * 2)

    watch = LoopWatch(lambda began_s, ended_s: ended_s - began_s)
    watch.start()
    try:
        asyncio.run(main())
    finally:
        blocks = watch.stop()

    assert not [block for block in blocks if "main" in block.what]


def test_a_stack_says_whether_the_program_has_a_part_in_it() -> None:
    found: list[tuple[list[str], bool]] = []

    def look() -> None:
        found.append(stack_of(sys._getframe(1)))
        found.append(stack_of(sys._getframe()))

    asyncio.run(asyncio.to_thread(look))
    ours = compile("look()", places.__file__, "exec")
    threading.Thread(target=exec, args=(ours, {"look": look})).start()
    while len(found) < 4:
        compute(0.001)

    assert [is_sennit for _, is_sennit in found] == [False, False, True, False]


def test_the_loops_are_left_as_they_were() -> None:
    before = asyncio.Handle._run
    watch = LoopWatch()
    watch.start()

    watch.stop()

    assert asyncio.Handle._run is before


# ---------------------------------------------------------------- locks


def lock_of_this_test() -> threading.Lock:
    """The place that the tests look for: others make locks, too."""
    return threading.Lock()


@contextmanager
def watched() -> Iterator[Callable[[], list[LockFacts]]]:
    watch = LockWatch()
    watch.start()
    seen: list[LockFacts] = []
    try:
        yield lambda: seen
    finally:
        seen += watch.stop()


def test_a_lock_that_is_waited_for_is_counted_by_the_place_that_made_it() -> None:
    with watched() as seen:
        inside = threading.Event()
        lock = lock_of_this_test()

        def wait_for_it() -> None:
            inside.set()
            with lock:
                pass

        waiter = threading.Thread(target=wait_for_it)
        with lock:
            waiter.start()
            inside.wait()
            compute(0.05)
        waiter.join()

    (facts,) = [f for f in seen() if "lock_of_this_test" in f.where]
    assert facts.acquisitions == 2
    assert (facts.contended, facts.waiters) == (1, 1)
    assert 0 < facts.waited_s == facts.waited_s_max


def test_a_lock_used_as_a_signal_is_no_lock() -> None:
    """One that another OS thread releases, or that its holder asks for again: who waits there waits for work."""
    with watched() as seen:
        parked = lock_of_this_test()
        parked.acquire()
        waker = threading.Thread(target=parked.release)
        waker.start()
        parked.acquire()
        waker.join()
        parked.release()

    assert not [f for f in seen() if "lock_of_this_test" in f.where]


def test_queues_conditions_and_events_work_on_watched_locks() -> None:
    with watched():
        line: Queue[int] = Queue(2)
        condition = threading.Condition()
        event = threading.Event()
        again = threading.RLock()
        taken: list[int] = []

        def take() -> None:
            while (n := line.get()) >= 0:
                taken.append(n)
            with condition:
                with again, again:
                    event.set()
                condition.notify_all()

        taker = threading.Thread(target=take)
        with condition:
            taker.start()
            for n in [*range(20), -1]:
                line.put(n)
            assert condition.wait_for(event.is_set, 30)
        taker.join()

        assert taken == list(range(20))
        assert not threading.Lock().locked()
        with pytest.raises(RuntimeError):
            again.release()


def test_a_wait_for_a_semaphore_counts_as_waiting_of_the_os_thread() -> None:
    waited_s: list[float] = []
    with watched():
        slots = threading.Semaphore(0)

        def wait_for_a_slot() -> None:
            before_s = waited_here_s()
            slots.acquire()
            waited_s.append(waited_here_s() - before_s)

        waiter = threading.Thread(target=wait_for_a_slot)
        waiter.start()
        while not slots._cond._waiters:  # type: ignore[attr-defined]
            compute(0.001)
        compute(0.05)
        slots.release()
        waiter.join()

    assert waited_s[0] >= 0.05


# ---------------------------------------------------------------- pools


class Measuring:
    """Tells the pool watch that each call took two seconds, one of them on a core."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def begin(self, name: str) -> Callable[[], Sample]:
        del name
        return lambda: Sample(2.0, 1.0)

    def note(self, name: str, sample: Any) -> None:
        del sample
        self.noted.append(name)

    def judge(self, name: str) -> tuple[str, bool | None]:
        del name
        return "mixed", None


def fails() -> None:
    raise ValueError("on purpose")


def test_calls_are_counted_by_function_however_they_reach_the_pool() -> None:
    detector = Measuring()
    watch = PoolWatch(detector, (ThreadPoolExecutor,))

    async def through_the_loop(pool: ThreadPoolExecutor) -> None:
        await asyncio.to_thread(compute, 0.0)
        await asyncio.get_running_loop().run_in_executor(pool, compute, 0.0)

    before = ThreadPoolExecutor.submit
    watch.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(compute, [0.0] * 3))
            asyncio.run(through_the_loop(pool))
            assert isinstance(pool.submit(fails).exception(), ValueError)
    finally:
        functions, pools = watch.stop()

    assert ThreadPoolExecutor.submit is before
    calls = {f.name.rpartition(":")[2]: f.calls for f in functions}
    assert calls == {"compute": 5, "fails": 1}
    (computed,) = [f for f in functions if f.name.endswith(":compute")]
    assert (computed.ran_s, computed.cpu_s, computed.importable, computed.kind) == (10.0, 5.0, True, "mixed")
    assert [(p.calls, p.name) for p in pools if p.workers_max == 2] == [(5, "ThreadPoolExecutor")]
    assert all(p.queued_s >= 0 and p.active_s > 0 for p in pools)


def test_the_time_in_which_calls_stand_in_the_queue_is_not_that_in_which_the_pool_is_idle() -> None:
    """What a larger pool could gain: not the pause between two bursts, and of calls that stand together not their sum."""
    watch = PoolWatch(Measuring(), ())
    with ThreadPoolExecutor(1) as pool:
        books = watch.pool(pool)
    began_s = monotonic()
    for stood_s in (10.0, 10.0, 5.0, 0.0):
        watch.measured(books, "test:nothing", True, monotonic() - stood_s, lambda: None)
    took_s = monotonic() - began_s
    _, (facts,) = watch.stop()

    assert 10.0 <= facts.backlog_s <= 10.0 + took_s
    assert facts.queued_s >= 25.0


def test_a_function_inside_another_cannot_be_imported() -> None:
    def inner() -> None:
        """Nobody else finds it."""

    assert is_importable(compute)
    assert not is_importable(inner)
    assert not is_importable(lambda: None)


# ---------------------------------------------------------------- memory


def test_equal_large_contents_are_found_once_per_content() -> None:
    size_bytes = COPY_BYTES_MIN * 3 + 17
    kept = [bytes([7]) * size_bytes for _ in range(3)] + [bytes([8]) * size_bytes]
    kept.append(kept[0])  # a second reference is no copy

    found = [copy for copy in copies(until_s=float("inf")) if copy.size_bytes == size_bytes]

    assert [(copy.kind, copy.copies) for copy in found] == [("bytes", 3)]
    assert found[0].wasted_bytes == 2 * size_bytes
    del kept


def test_views_of_an_array_are_no_copies_of_it() -> None:
    np = pytest.importorskip("numpy")
    whole = np.arange(COPY_BYTES_MIN + 3, dtype="u1")
    kept = [whole, whole[:], whole.view(), whole.copy()]

    found = [copy for copy in copies(until_s=float("inf")) if copy.size_bytes == whole.nbytes]

    assert [copy.copies for copy in found] == [2]
    del kept


def test_memory_is_looked_through_also_while_numpy_is_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", ModuleType("numpy"))  # as the import system leaves it until the end
    size_bytes = COPY_BYTES_MIN * 7 + 1
    kept = [bytes([n]) * size_bytes for n in (7, 7)]

    assert [c.copies for c in copies(until_s=float("inf")) if c.size_bytes == size_bytes] == [2]
    del kept


def test_the_time_that_a_look_takes_is_known_to_others() -> None:
    watch = CopyWatch(look_s=0.01)
    before_s = monotonic()
    watch._look()
    after_s = monotonic()

    assert 0 < watch.overlap_s(before_s, after_s) <= after_s - before_s
    assert watch.overlap_s(before_s - 2, before_s - 1) == 0.0
    assert watch.overlap_s(after_s, after_s + 1) == 0.0


def test_the_memory_watch_looks_at_the_end_at_the_latest() -> None:
    watch = CopyWatch(look_s=float("inf"))
    watch.start()
    size_bytes = COPY_BYTES_MIN * 5 + 3
    kept = [b"x" * size_bytes, b"xx"[:1] * size_bytes]

    found = watch.stop()

    assert any(copy.size_bytes == size_bytes for copy in found)
    assert watch.looked_at_s
    assert watch.memory_bytes_max > 0
    del kept


def test_what_is_pickled_for_other_processes_is_counted_by_place() -> None:
    before = ForkingPickler.dumps(b"abc")
    watch = PickleWatch()
    watch.start()
    try:
        message = ForkingPickler.dumps(b"x" * 1000)
        ForkingPickler.dumps(b"y" * 1000)
    finally:
        facts = watch.stop()

    assert len(message) > 1000
    assert [(f.messages, f.sent_bytes > 2000) for f in facts if "counted_by_place" in f.where] == [(1, False)] * 2
    assert bytes(ForkingPickler.dumps(b"abc")) == bytes(before)
