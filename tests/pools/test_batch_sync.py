"""Batcher: OS threads that call together are answered once each, whoever of them runs the batch."""

from __future__ import annotations

import asyncio
import linecache
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest

from sennit.errors import BatcherClosed, BatcherFull, BatchFailed, UsageError
from sennit.sync import batch, batch_answers, batch_calls, batch_line
from sennit.sync.batch import AsyncBatcher, Batcher

WATCH = [batch, batch_calls, batch_line, batch_answers]


def doubled(items: list[int]) -> list[int]:
    return [2 * item for item in items]


class Doubler:
    """Doubles its items when it is let; `began` counts its calls."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.began = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.began.release()
        self.may_end.acquire()
        return doubled(items)


def wait_until_waiting(batcher: Batcher[int, int], count: int) -> None:
    while batcher.statistics().waiting < count:
        os.sched_yield()


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("sennit-batch")}


# ---------------------------------------------------------------- who runs a batch


def test_a_lone_caller_runs_its_batch_itself() -> None:
    def where(items: list[int]) -> list[int]:
        return [threading.get_ident()] * len(items)

    before = own_threads()
    batcher = Batcher(where)

    assert batcher(1) == threading.get_ident()
    assert own_threads() <= before
    assert batcher.statistics().why == {"idle": 1}


def test_who_calls_while_a_batch_is_under_way_goes_into_the_next() -> None:
    before = own_threads()
    batcher = Batcher(fn := Doubler())
    with ThreadPoolExecutor(8) as callers:
        first = callers.submit(batcher, 1)
        fn.began.acquire()
        rest = [callers.submit(batcher, n) for n in range(2, 8)]
        wait_until_waiting(batcher, 6)
        fn.may_end.release(2)

        assert [each.result() for each in [first, *rest]] == [2 * n for n in range(1, 8)]
    assert [len(batch) for batch in fn.batches] == [1, 6]
    assert own_threads() <= before


def test_submitted_items_are_run_by_an_os_thread_of_the_batcher() -> None:
    batcher = Batcher(doubled)

    assert [future.result() for future in [batcher.submit(n) for n in range(25)]] == [2 * n for n in range(25)]
    assert batcher.close()


def test_with_gather_the_age_of_the_oldest_begins_a_batch() -> None:
    with Batcher(doubled, gather=True, items_max=3, age_s_max=0.02) as batcher, ThreadPoolExecutor(3) as callers:
        assert batcher(1) == 2
        assert batcher.statistics().why == {"age": 1}
        assert sorted(callers.map(batcher, range(3))) == [0, 2, 4]
        assert batcher.submit(5).result() == 10


def test_nothing_wakes_its_os_threads_when_nothing_waits() -> None:
    before = own_threads()
    batcher = Batcher(doubled, gather=True, age_s_max=0.001)
    assert batcher.submit(1).result() == 2
    threads = own_threads() - before
    assert threads

    def switches() -> int:
        texts = [Path(f"/proc/self/task/{thread.native_id}/status").read_text("ascii") for thread in threads]
        return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if "ctxt_switches" in line)

    while (asleep := switches()) != switches() or batcher._keeping_time:  # asleep, or about to be
        os.sched_yield()
    with Batcher(doubled, gather=True, age_s_max=0.001) as other:
        for item in range(50):  # 50 times the age: a timer that goes on would show
            other(item)

    assert switches() - asleep < 10
    batcher.close()


# ---------------------------------------------------------------- failures


def test_an_error_of_the_batch_reaches_every_caller_with_a_short_traceback_of_its_own() -> None:
    """An earlier batch loop dropped the whole batch on an error and only logged results."""

    def fails(items: list[int]) -> list[int]:
        gate()
        raise ConnectionError(f"{len(items)} items")

    started, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def gate() -> None:
        started.release()
        go_on.acquire()

    batcher = Batcher(fails)
    errors = []
    with ThreadPoolExecutor(5) as callers:
        futures = [callers.submit(batcher, 0)]
        started.acquire()
        futures += [callers.submit(batcher, n) for n in range(1, 5)]
        wait_until_waiting(batcher, 4)
        go_on.release(2)
        errors = [future.exception() for future in futures]

    assert [str(error) for error in errors] == ["1 items", *["4 items"] * 4]
    assert len({id(error) for error in errors}) == 5
    assert all(len(traceback.extract_tb(error.__traceback__)) < 15 for error in errors if error is not None)


def test_one_item_fails_alone() -> None:
    def some(items: list[int]) -> Sequence[int | Exception]:
        return [ValueError(item) if item % 2 else item for item in items]

    with Batcher(some, gather=True, items_max=6) as batcher:
        futures = [batcher.submit(n) for n in range(6)]
        assert [type(future.exception()) for future in futures] == [type(None), ValueError] * 3


def test_with_split_on_error_only_the_bad_item_fails() -> None:
    def no_threes(items: list[int]) -> list[int]:
        if 3 in items:
            raise ValueError
        return doubled(items)

    with Batcher(no_threes, gather=True, items_max=8, age_s_max=3000, split_on_error=True) as batcher:
        futures = [batcher.submit(n) for n in range(8)]
        assert [n for n, future in enumerate(futures) if future.exception()] == [3]
        assert batcher.statistics().splits == 6


def test_a_wrong_number_of_results_says_how_many_came_of_how_many() -> None:
    def short(items: list[int]) -> list[int]:
        return items[1:]

    with Batcher(short, gather=True, items_max=3, age_s_max=3000) as batcher:
        for future in [batcher.submit(n) for n in range(3)]:
            with pytest.raises(BatchFailed, match="returned 2 results for 3 items"):
                future.result()


class Halt(BaseException):
    """Neither an error nor an exit."""


def test_what_ends_the_caller_that_runs_a_batch_is_raised_to_it_and_is_the_cause_of_the_others_error() -> None:
    def halts(items: list[int]) -> list[int]:
        fn(items)
        raise Halt

    fn = Doubler()
    batcher = Batcher(halts)
    with ThreadPoolExecutor(4) as callers:
        futures = [callers.submit(batcher, 0)]
        fn.began.acquire()
        futures += [callers.submit(batcher, n) for n in (1, 2, 3)]
        wait_until_waiting(batcher, 3)
        fn.may_end.release(2)
        errors = [future.exception() for future in futures]

    assert sorted(type(error).__name__ for error in errors) == ["BatchFailed", "BatchFailed", "Halt", "Halt"]
    assert all(isinstance(error.__cause__, Halt) for error in errors if isinstance(error, BatchFailed))
    assert batcher.close()


def test_an_exit_in_the_batchers_own_os_thread_answers_all_and_ends_nothing() -> None:
    def exits(items: list[int]) -> list[int]:
        if 0 in items:
            raise SystemExit
        return doubled(items)

    with Batcher(exits, items_max=1) as batcher:
        first, second = batcher.submit(0), batcher.submit(1)
        with pytest.raises(BatchFailed, match="ended by SystemExit"):
            first.result()
        assert second.result() == 2


def test_an_interrupted_caller_leaves_and_the_batch_goes_on_without_it() -> None:
    program = """
import os, signal, threading
from sennit.sync.batch import Batcher
began, may_end = threading.Semaphore(0), threading.Semaphore(0)
def fn(items):
    print(items, flush=True)
    began.release(); may_end.acquire()
    return items
batcher = Batcher(fn)
results = []
callers = [threading.Thread(target=lambda: results.append(batcher(1)))]
callers[0].start()
began.acquire()
def interrupt():
    while batcher.statistics().waiting < 1:
        os.sched_yield()
    callers.append(threading.Thread(target=lambda: results.append(batcher(3))))
    callers[1].start()
    while batcher.statistics().waiting < 2:
        os.sched_yield()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    batcher(2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
may_end.release(2)
for caller in callers:
    caller.join()
print(sorted(results), batcher.close(), batcher.statistics().left)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50)

    assert done.stdout.splitlines() == ["[1]", "interrupted", "[3]", "[1, 3] True 1"], done.stderr


def interrupted_call(batcher: Batcher[int, int], at_line: int) -> bool:
    """Call with an interrupt at the n-th line that the batcher executes; return whether there were so many."""
    left = at_line

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal left
        if frame.f_globals.get("__name__") not in {module.__name__ for module in WATCH}:
            return None
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(
            "with "
        ):
            left -= 1  # a real interrupt never comes between the end of a `with` and the release of its lock
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        batcher(1)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_after_an_interrupt_at_any_line_of_a_call_the_next_one_is_answered() -> None:
    lines = 1
    while interrupted_call(batcher := Batcher(doubled, waiting_max=2), lines):
        assert batcher(2) == 4
        assert batcher.close()
        lines += 1

    assert lines > 50


# ---------------------------------------------------------------- futures, bounds, wrong places


def test_a_future_cancelled_in_time_leaves_its_batch() -> None:
    batcher = Batcher(fn := Doubler())
    futures = [batcher.submit(1)]
    fn.began.acquire()
    futures += [batcher.submit(2), batcher.submit(3)]

    assert not futures[0].cancel()
    assert futures[1].cancel()
    fn.may_end.release(2)

    assert [futures[0].result(), futures[2].result()] == [2, 6]
    assert fn.batches == [[1], [3]]
    with pytest.raises(CancelledError):
        futures[1].result()
    assert batcher.close()


def test_submit_is_held_until_there_is_room_or_says_that_there_is_none() -> None:
    batcher = Batcher(fn := Doubler(), waiting_max=2, items_max=2)
    futures = [batcher.submit(1)]
    fn.began.acquire()
    futures += [batcher.submit(2), batcher.submit(3)]
    with pytest.raises(BatcherFull, match="2 items wait"):
        batcher.submit(4, timeout_s=0)

    with ThreadPoolExecutor(1) as other:
        held = other.submit(batcher.submit, 5)
        fn.may_end.release()  # the next batch begins: now there is room
        futures.append(held.result())
        fn.may_end.release(2)
    assert [future.result() for future in futures] == [2, 4, 6, 10]
    batcher.close()

    refuses = Batcher(fn := Doubler(), waiting_max=1, when_full="error")
    refuses.submit(1)
    fn.began.acquire()
    refuses.submit(2)
    with pytest.raises(BatcherFull):
        refuses(3)
    fn.may_end.release(2)
    assert refuses.close()


def test_on_an_event_loop_it_says_what_to_use_instead() -> None:
    batcher = Batcher(doubled)

    async def main() -> int:
        with pytest.raises(UsageError, match="AsyncBatcher"):
            batcher(1)
        return await asyncio.wrap_future(batcher.submit(1))

    assert asyncio.run(main()) == 2
    batcher.close()


def test_async_functions_are_for_the_async_one() -> None:
    async def fn(items: list[int]) -> list[int]:
        return items

    with pytest.raises(UsageError, match="AsyncBatcher"):
        Batcher(fn)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as executor, pytest.raises(UsageError, match="executor"):
        AsyncBatcher(fn, executor=executor)


def test_a_batch_function_that_calls_its_own_batcher_is_told_so() -> None:
    def again(items: list[int]) -> list[int]:
        return [batcher(item) for item in items]

    batcher = Batcher(again)

    with pytest.raises(UsageError, match="called its own"):
        batcher(1)


# ---------------------------------------------------------------- the end


def test_closing_answers_what_waits_and_takes_nothing_more() -> None:
    batcher = Batcher(doubled, gather=True, age_s_max=3000)
    with ThreadPoolExecutor(1) as caller:
        blocked, future = caller.submit(batcher, 1), batcher.submit(2)
        wait_until_waiting(batcher, 2)
        assert batcher.close()
        assert [blocked.result(), future.result()] == [2, 4]
    for use in (batcher, batcher.submit):
        with pytest.raises(BatcherClosed):
            use(3)
    assert batcher.close()
    assert batcher.statistics().why == {"close": 1}


def test_closing_does_not_wait_for_ever_for_a_function_that_never_returns() -> None:
    batcher = Batcher(fn := Doubler())
    with ThreadPoolExecutor(2) as callers:
        futures: list[Future[int]] = [callers.submit(batcher, 1)]
        fn.began.acquire()
        futures += [callers.submit(batcher, 2), batcher.submit(3)]
        wait_until_waiting(batcher, 2)

        assert not batcher.close(timeout_s=0.01)

        for future in futures[1:]:
            with pytest.raises(BatcherClosed, match="before this item had an answer"):
                future.result()
        fn.may_end.release()  # a real one stays away; the test's OS thread has to end
        with pytest.raises(BatcherClosed):
            futures[0].result()


def test_closing_again_ends_though_a_caller_was_given_up_before_it_could_begin_its_batch() -> None:
    batcher = Batcher(doubled, gather=True, age_s_max=3000)
    with ThreadPoolExecutor(1) as caller:
        future = caller.submit(batcher, 1)
        wait_until_waiting(batcher, 1)
        in_time = batcher.close(timeout_s=0)  # begins the batch, and gives up at once

        assert batcher.close()
        assert isinstance(future.exception(), BatcherClosed) or in_time or future.result() == 2
        assert batcher.statistics().under_way == 0


def test_what_was_submitted_is_done_when_the_program_ends() -> None:
    program = """
from sennit.sync.batch import Batcher
def fn(items):
    print(*items, flush=True)
    return items
batcher = Batcher(fn, gather=True, items_max=2, age_s_max=0.01)
for n in range(5):
    batcher.submit(n)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50)

    assert sorted(done.stdout.split()) == ["0", "1", "2", "3", "4"], done.stderr


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of 3.12: that is what is tested
def test_a_forked_child_has_a_batcher_of_its_own() -> None:
    batcher = Batcher(fn := Doubler())
    with ThreadPoolExecutor(1) as caller:
        future = caller.submit(batcher, 1)
        fn.began.acquire()
        pid = os.fork()  # while a batch is under way
        if pid == 0:
            signal.alarm(20)
            fn.may_end = threading.Semaphore(1)
            os._exit(int(batcher(4) != 8))
        fn.may_end.release()
        assert future.result() == 2
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
