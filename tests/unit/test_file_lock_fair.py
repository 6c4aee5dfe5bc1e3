"""File locks inside one process: first come first served, and who gives up takes nothing with it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sennit.errors import LockTimeout, UsageError
from sennit.sync import lockfiles, lockline
from sennit.sync.filelocks import FileLock

WAIT_S = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "lock"
    until(lambda: not lockline._lines.by_path)  # every helper has ended
    assert lockfiles._descriptors == set()


def until(fact: Callable[[], object]) -> None:
    while not fact():
        os.sched_yield()


def waiting(path: Path) -> int:
    line = lockline.line_if_any(path)
    return 0 if line is None else len(line._waiting)


def helpers(path: Path) -> int:
    line = lockline.line_if_any(path)
    return 0 if line is None else len(line._helpers)


@contextmanager
def held_elsewhere(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold the body as another process would: by an open file that this process's line knows nothing of."""
    with path.open("a+b") as body:
        fcntl.flock(body, how)
        yield


def os_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


# ---------------------------------------------------------------- exclusion


def test_os_threads_and_coroutines_exclude_each_other(path: Path) -> None:
    """Read, something else runs, write: with the lock none is lost."""
    count = 0

    def work() -> None:
        nonlocal count
        for _ in range(50):
            with FileLock(path):
                seen = count
                os.sched_yield()
                count = seen + 1

    async def work_async() -> None:
        nonlocal count
        for _ in range(50):
            async with FileLock(path):
                seen = count
                await asyncio.sleep(0)
                count = seen + 1

    async def scenario() -> None:
        await asyncio.gather(*[work_async() for _ in range(4)])

    threads = [os_thread(work) for _ in range(4)]
    asyncio.run(scenario())
    for thread in threads:
        thread.join()

    assert count == 8 * 50


def test_without_the_lock_increments_are_lost() -> None:
    """The same window, unprotected: shows that the test above can fail."""
    count = 0

    async def work() -> None:
        nonlocal count
        for _ in range(50):
            seen = count
            await asyncio.sleep(0)
            count = seen + 1

    async def scenario() -> None:
        await asyncio.gather(*[work() for _ in range(8)])

    asyncio.run(scenario())

    assert count < 8 * 50


def test_shared_holders_hold_together_and_keep_an_exclusive_one_out(path: Path) -> None:
    async def scenario() -> None:
        both = asyncio.Barrier(2)

        async def read() -> None:
            async with FileLock(path, shared=True):
                await both.wait()  # never passes unless both hold it

        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(read(), read())
        async with FileLock(path, shared=True):
            with pytest.raises(LockTimeout):
                await asyncio.create_task(acquire_and_release(path, timeout_s=0.01))

    asyncio.run(scenario())


async def acquire_and_release(path: Path, *, shared: bool = False, timeout_s: float | None = None) -> None:
    async with FileLock(path, shared=shared, timeout_s=timeout_s):
        pass


def test_a_reader_that_comes_after_a_writer_does_not_overtake_it(path: Path) -> None:
    order: list[str] = []

    async def take(name: str, *, shared: bool) -> None:
        async with FileLock(path, shared=shared):
            order.append(name)

    async def scenario() -> None:
        async with FileLock(path, shared=True):
            writer = asyncio.create_task(take("writer", shared=False))
            await asyncio.sleep(0)
            reader = asyncio.create_task(take("reader", shared=True))
            await asyncio.sleep(0)
            assert waiting(path) == 2
        await asyncio.gather(writer, reader)

    asyncio.run(scenario())

    assert order == ["writer", "reader"]


# ---------------------------------------------------------------- order


def test_coroutines_get_it_in_the_order_they_came(path: Path) -> None:
    order: list[int] = []

    async def take(n: int) -> None:
        async with FileLock(path):
            await asyncio.sleep(0)
            order.append(n)

    async def scenario() -> None:
        async with FileLock(path):
            tasks = [asyncio.create_task(take(n)) for n in range(20)]
            await asyncio.sleep(0)
            assert waiting(path) == 20
        await asyncio.gather(*tasks)

    asyncio.run(scenario())

    assert order == list(range(20))


def test_os_threads_get_it_in_the_order_they_came(path: Path) -> None:
    order: list[int] = []

    def take(n: int) -> None:
        with FileLock(path):
            order.append(n)

    threads = []
    with FileLock(path):
        for n in range(10):
            threads.append(os_thread(lambda n=n: take(n)))  # type: ignore[misc]
            until(lambda n=n: waiting(path) == n + 1)  # type: ignore[misc]
    for thread in threads:
        thread.join()

    assert order == list(range(10))


def test_the_order_holds_when_another_process_has_it_first(path: Path) -> None:
    order: list[int] = []

    def take(n: int) -> None:
        with FileLock(path):
            order.append(n)

    threads = []
    with held_elsewhere(path):
        for n in range(5):
            threads.append(os_thread(lambda n=n: take(n)))  # type: ignore[misc]
            until(lambda n=n: waiting(path) == n + 1)  # type: ignore[misc]
        assert helpers(path) == 1  # one OS thread waits for all of them
    for thread in threads:
        thread.join()

    assert order == list(range(5))


# ---------------------------------------------------------------- giving up


def test_a_time_out_names_the_holder(path: Path) -> None:
    with FileLock(path, purpose="counting sheep"):
        caught: list[LockTimeout] = []

        def wait() -> None:
            try:
                FileLock(path, timeout_s=0.01).acquire()
            except LockTimeout as error:
                caught.append(error)

        os_thread(wait).join()

    assert caught[0].pids == (os.getpid(),)
    assert "counting sheep" in str(caught[0])
    assert f"process {os.getpid()} (this one)" in str(caught[0])


def test_a_time_out_of_zero_tries_once(path: Path) -> None:
    with held_elsewhere(path):
        with pytest.raises(LockTimeout, match="has not written its name"):
            FileLock(path, timeout_s=0).acquire()
        assert helpers(path) == 0
    with FileLock(path, timeout_s=0):
        pass


def test_who_gives_up_first_in_line_hands_its_place_on(path: Path) -> None:
    async def scenario() -> None:
        with held_elsewhere(path):
            first = asyncio.create_task(acquire_and_release(path))
            second = asyncio.create_task(acquire_and_release(path))
            await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert (waiting(path), helpers(path)) == (1, 1)
        async with asyncio.timeout(WAIT_S):
            await second

    asyncio.run(scenario())


def test_a_cancelled_wait_leaks_neither_the_lock_nor_the_os_thread(path: Path) -> None:
    async def scenario() -> None:
        with held_elsewhere(path):
            waiter = asyncio.create_task(acquire_and_release(path))
            await asyncio.sleep(0)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            assert helpers(path) == 1  # it sleeps in the kernel, where nothing can reach it
        async with FileLock(path, timeout_s=WAIT_S):
            pass

    asyncio.run(scenario())
    until(lambda: helpers(path) == 0)  # and has ended


def test_many_that_give_up_leave_one_os_thread_behind(path: Path) -> None:
    async def scenario() -> None:
        for _ in range(50):
            with pytest.raises(LockTimeout):
                await acquire_and_release(path, timeout_s=0.001)
        assert helpers(path) == 1

    with held_elsewhere(path):
        asyncio.run(scenario())


def test_a_cancellation_at_the_moment_of_the_hand_over_releases_the_lock(path: Path) -> None:
    async def scenario() -> None:
        lock = FileLock(path)
        await lock.acquire_async()
        waiter = asyncio.create_task(acquire_and_release(path))
        await asyncio.sleep(0)
        lock.release()  # the waiter holds it from here on, and has not run yet
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        async with FileLock(path, timeout_s=0):
            pass

    asyncio.run(scenario())


def test_a_writer_that_gave_up_does_not_keep_readers_out(path: Path) -> None:
    """Its helper still sleeps for the lock; it must not stand in the gate meanwhile."""

    async def scenario() -> None:
        with held_elsewhere(path, fcntl.LOCK_SH):
            with pytest.raises(LockTimeout):
                await acquire_and_release(path, timeout_s=0.01)
            assert helpers(path) == 1
            await acquire_and_release(path, shared=True, timeout_s=WAIT_S)
            # And the next writer is served by the helper that was left.
            writer = asyncio.create_task(acquire_and_release(path))
            await asyncio.sleep(0)
            assert helpers(path) == 1
        await writer

    asyncio.run(scenario())


def test_a_waiter_whose_event_loop_is_closed_is_passed_over(path: Path) -> None:
    loop = asyncio.new_event_loop()
    lock = FileLock(path)
    lock.acquire()
    waiter = loop.create_task(acquire_and_release(path))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    lock.release()

    with FileLock(path, timeout_s=0):
        pass
    waiter._log_destroy_pending = False  # type: ignore[attr-defined] # it never ends, on purpose


def test_the_event_loop_runs_while_a_coroutine_waits(path: Path) -> None:
    async def scenario() -> None:
        ticks = 0
        with held_elsewhere(path):
            waiter = asyncio.create_task(acquire_and_release(path))
            while ticks < 100:
                await asyncio.sleep(0)
                ticks += 1
            assert not waiter.done()
        await waiter

    asyncio.run(scenario())


# ---------------------------------------------------------------- misuse


def test_a_second_acquire_by_the_holder_is_an_error_and_not_a_deadlock(path: Path) -> None:
    with FileLock(path), pytest.raises(UsageError, match="already held"):
        FileLock(path).acquire()
    with FileLock(path, shared=True), pytest.raises(UsageError, match="already held"):
        FileLock(path, shared=True).acquire()

    async def scenario() -> None:
        async with FileLock(path):
            with pytest.raises(UsageError, match="already held"):
                await FileLock(path).acquire_async()
            with pytest.raises(UsageError, match="already held"):
                FileLock(path).acquire()

    asyncio.run(scenario())


def test_only_the_holder_can_release(path: Path) -> None:
    with pytest.raises(UsageError, match="not held"):
        FileLock(path).release()
    caught: list[UsageError] = []

    def release() -> None:
        try:
            FileLock(path).release()
        except UsageError as error:
            caught.append(error)

    with FileLock(path):
        os_thread(release).join()

    assert len(caught) == 1


def test_a_blocking_acquire_on_an_event_loop_is_refused_when_it_would_wait(path: Path) -> None:
    async def scenario() -> None:
        with FileLock(path):
            pass
        with held_elsewhere(path), pytest.raises(UsageError, match="async with"):
            FileLock(path).acquire()

    asyncio.run(scenario())


def test_a_symlink_is_no_lock_file(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))

    with pytest.raises(OSError, match="symbolic"):
        FileLock(path).acquire()

    assert not path.with_name("elsewhere").exists()


def test_a_missing_folder_is_an_error_and_leaves_nothing_behind(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileLock(path / "x" / "y").acquire()


# ---------------------------------------------------------------- looking


def test_owners_are_those_who_hold_it_now(path: Path) -> None:
    async def scenario() -> None:
        both, seen = asyncio.Barrier(3), asyncio.Event()

        async def read(purpose: str) -> None:
            async with FileLock(path, shared=True, purpose=purpose):
                await both.wait()
                await seen.wait()

        readers = [asyncio.create_task(read(purpose)) for purpose in ("a\tb", "c")]
        await both.wait()
        assert [(o.pid, o.shared, o.purpose) for o in FileLock(path).owners()] == [
            (os.getpid(), True, "a b"),
            (os.getpid(), True, "c"),
        ]
        seen.set()
        await asyncio.gather(*readers)

    assert FileLock(path).owner() is None
    with FileLock(path, purpose="x" * 1000):
        owner = FileLock(path).owner()
        assert owner is not None
        assert (owner.pid, owner.shared, owner.purpose) == (os.getpid(), False, "x" * 200)
    asyncio.run(scenario())
    assert FileLock(path).owner() is None
    with FileLock(path):
        assert len(FileLock(path).owners()) == 1  # the lines of the two readers are gone


def test_text_that_nobody_alive_wrote_names_nobody(path: Path) -> None:
    with FileLock(path):
        true = path.read_bytes()
    started = true.split(b"\t")[3]

    def blamed() -> str:
        with held_elsewhere(path), pytest.raises(LockTimeout) as caught:
            FileLock(path, timeout_s=0).acquire()
        return caught.value.owner

    path.write_bytes(true)
    assert "this one" in blamed()  # or the lines below show nothing
    for stale in (true.replace(started, started + b"1", 1), b"\xff" * 512, b"1\t2\t3", b""):
        path.write_bytes(stale)
        assert "has not written its name" in blamed()


# ---------------------------------------------------------------- deleting


def test_waiters_on_a_deleted_file_go_on_with_the_new_one(path: Path) -> None:
    order: list[str] = []

    def take() -> None:
        with FileLock(path):
            order.append(f"waiter on {path.stat().st_ino == old}")

    lock = FileLock(path)
    lock.acquire()
    old = path.stat().st_ino
    waiter = os_thread(take)
    until(lambda: waiting(path) == 1)
    keep = path.with_name("keep")
    os.link(path, keep)  # or the new file may get the old one's number
    lock.delete_files()
    order.append("deleted")
    lock.release()
    waiter.join()

    assert order == ["deleted", "waiter on False"]
    assert path.exists()


def test_a_helper_that_got_a_deleted_file_asks_again(path: Path) -> None:
    with held_elsewhere(path):
        waiter = os_thread(lambda: FileLock(path).__enter__().release())
        until(lambda: helpers(path) == 1)
        path.rename(path.with_name("moved away"))
    waiter.join()

    assert path.exists()


def test_only_an_exclusive_holder_can_delete_the_files(path: Path) -> None:
    with pytest.raises(UsageError):
        FileLock(path).delete_files()
    with FileLock(path, shared=True) as lock, pytest.raises(UsageError):
        lock.delete_files()
    with FileLock(path) as lock:
        lock.delete_files()

    assert not path.exists()
    assert not path.with_name("lock.gate").exists()
