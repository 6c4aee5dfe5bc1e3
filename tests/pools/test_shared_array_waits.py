"""An exhausted pool of shared arrays makes its callers wait; and nothing of a pool stays, also on a bad day."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from sennit.errors import ArraysExhausted, UsageError
from sennit.sync import array_blocks, array_holds, array_line, arrays
from sennit.sync.arrays import SharedArrayPool
from sennit.testing.preempt import Case, explore, point
from tests.crash.nursery import Nursery
from tests.pools.array_child import Child, ChildError

PAGE = 4096
MIB = 1 << 20
WATCHED = (arrays, array_blocks, array_holds, array_line)


def waits(pool: SharedArrayPool, count: int) -> None:
    """Return when so many callers wait; each of them is another OS thread on its way."""
    while pool.statistics().waiting != count:
        os.sched_yield()


# ---------------------------------------------------------------- the line


def test_who_waits_goes_on_when_another_os_thread_releases() -> None:
    with SharedArrayPool(bytes_max=PAGE) as pool:
        array = pool.acquire(512)
        got: list[float] = []

        def work() -> None:
            with pool.acquire(512) as mine:
                got.append(float(mine.array.sum()))

        other = threading.Thread(target=work)
        other.start()
        waits(pool, 1)
        array[:] = 1.0
        array.release()
        other.join()

        assert got == [0.0]


def test_the_line_is_kept_so_that_a_large_array_has_its_turn() -> None:
    with SharedArrayPool(bytes_max=2 * PAGE) as pool:
        held = [pool.acquire(512), pool.acquire(512)]
        order: list[str] = []

        def work(name: str, length: int) -> None:
            with pool.acquire(length):
                order.append(name)

        large = threading.Thread(target=work, args=("large", 1024))
        large.start()
        waits(pool, 1)
        small = threading.Thread(target=work, args=("small", 512))
        small.start()
        waits(pool, 2)
        held[0].release()  # room for the small one, which is not the first
        assert pool.statistics().waiting == 2
        held[1].release()
        large.join()
        small.join()

        assert order == ["large", "small"]


def test_who_gives_up_leaves_the_line_to_the_next() -> None:
    async def run() -> None:
        with SharedArrayPool(bytes_max=2 * PAGE) as pool:
            held = pool.acquire(512)
            large = asyncio.ensure_future(pool.acquire_async(1024))
            await asyncio.sleep(0)
            small = asyncio.ensure_future(pool.acquire_async(512))
            await asyncio.sleep(0)
            assert pool.statistics().waiting == 2

            large.cancel()
            with pytest.raises(asyncio.CancelledError):
                await large
            (await small).release()
            held.release()
            assert pool.statistics().arrays_held == 0

    asyncio.run(run())


def test_async_callers_wait_without_blocking_the_loop() -> None:
    async def run() -> None:
        with SharedArrayPool(bytes_max=4 * MIB) as pool:
            array = await pool.acquire_async((MIB // 2,))
            array[:] = 1.0
            waiting = asyncio.ensure_future(pool.acquire_async((MIB // 2,), zeroed=True))
            await asyncio.sleep(0)
            assert pool.statistics().waiting == 1
            with pytest.raises(ArraysExhausted):
                await pool.acquire_async(8, timeout_s=0)
            await asyncio.to_thread(array.release)
            with await waiting as second:
                assert not second.array.any()

    asyncio.run(run())


def test_an_array_granted_to_a_caller_that_is_cancelled_comes_back() -> None:
    async def run() -> None:
        with SharedArrayPool(bytes_max=PAGE) as pool:
            array = pool.acquire(512)
            waiting = asyncio.ensure_future(pool.acquire_async(512))
            await asyncio.sleep(0)
            array.release()  # granted, and before it wakes up
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            pool.acquire(512, timeout_s=0).release()

    asyncio.run(run())


def test_a_finalizer_that_runs_inside_the_wait_does_not_stop_it_for_ever(nursery: Nursery) -> None:
    """The garbage collector may begin in any Python code of a wait, and end just the array that is waited for."""
    with closing(Child(nursery)) as child:
        child.run(
            "import gc, sys, threading\n"
            "class Agent: pass\n"
            "pool = SharedArrayPool(bytes_max=4096); agent = Agent()\n"
            "agent.me, agent.array = agent, pool.acquire(512)\n"
            "gc.disable(); del agent\n"
            "def collect(frame, event, arg):\n"
            "    if frame.f_code.co_filename == threading.__file__ and pool._waiters: gc.collect()\n"
            "    return collect\n"
            "sys.settrace(collect)\n"
            "try: pool.acquire(512, timeout_s=0.01).release()\n"
            "except TimeoutError: pass  # nothing was collected\n"
            "finally: sys.settrace(None)\n"
            "gc.collect(); pool.acquire(512, timeout_s=0).release()"
        )


def test_closing_refuses_who_waits_and_who_comes_and_keeps_what_is_held() -> None:
    pool = SharedArrayPool(bytes_max=PAGE)
    array = pool.acquire(512)
    refused: list[BaseException] = []

    def work() -> None:
        try:
            pool.acquire(512)
        except UsageError as error:
            refused.append(error)

    other = threading.Thread(target=work)
    other.start()
    waits(pool, 1)
    pool.close()
    other.join()

    assert "is closed" in str(refused[0])
    with pytest.raises(UsageError, match="is closed"):
        pool.acquire(512)
    array[0] = 1.0
    array.release()
    assert pool.statistics().segments == 0


def test_eight_os_threads_never_have_the_same_block() -> None:
    with SharedArrayPool(bytes_max=3 * PAGE) as pool:
        seen: list[str] = []

        def work(me: float) -> None:
            for n in range(40):
                with pool.acquire(512, zeroed=bool(n % 2)) as array:
                    if n % 2 and array.array.any():
                        seen.append("not zero")
                    array[:] = me
                    os.sched_yield()
                    if (array.array != me).any():
                        seen.append("not mine alone")

        others = [threading.Thread(target=work, args=(float(n),)) for n in range(1, 9)]
        for other in others:
            other.start()
        for other in others:
            other.join()

        assert seen == []
        assert pool.statistics().arrays_held == 0


# ---------------------------------------------------------------- nothing stays


def test_no_name_descriptor_or_mapping_stays(nursery: Nursery) -> None:
    with closing(Child(nursery)) as owner, closing(Child(nursery)) as holder:
        before, there = owner.run("out = open_files()"), holder.run("out = open_files()")
        for _ in range(2):
            forms = owner.run(
                "pool = SharedArrayPool(bytes_max=8 << 20)\n"
                "held = [pool.acquire(length) for length in (1, 512, 100_000, 300_000)]\n"
                "out = [array.plain() for array in held]"
            )
            holder.run("held = [open_form(form) for form in given]", forms)
            owner.run("for array in held: array.release()")
            holder.run("for array in held: array.release()")
            owner.run("pool.close()")
        owner.run("del array, held, pool")
        holder.run("del array, held")

        assert owner.run("out = open_files() + sennit_maps()") == before
        assert holder.run("out = open_files() + sennit_maps()") == there
        assert [path for path in Path("/dev/shm").iterdir() if "sennit-arrays" in path.name] == []


def test_a_pool_that_is_forgotten_closes_its_files(nursery: Nursery) -> None:
    with closing(Child(nursery)) as owner:
        before = owner.run("out = open_files()")
        owner.run(
            "import gc; pool = SharedArrayPool(bytes_max=1 << 20); pool.acquire(512).release(); del pool; gc.collect()"
        )

        assert owner.run("out = open_files() + sennit_maps()") == before


# ---------------------------------------------------------------- bad days


def test_without_numpy_the_error_names_the_extra(nursery: Nursery, tmp_path: Path) -> None:
    program = tmp_path / "without_numpy.py"
    program.write_text(
        "import sys\n"
        "sys.modules['numpy'] = None\n"
        "from sennit.sync.arrays import SharedArrayPool\n"
        "def main():\n"
        "    try:\n"
        "        SharedArrayPool(bytes_max=1 << 20)\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
    )
    said = nursery.run("without_numpy:main", folder=tmp_path, environ=os.environ)

    assert "numpy is not installed" in said.stdout
    assert "pip install 'sennit[numpy]'" in said.stdout


def test_a_limit_of_the_process_is_an_error_and_the_pool_goes_on(nursery: Nursery) -> None:
    with closing(Child(nursery)) as child:
        child.run(
            "import resource; pool = SharedArrayPool(bytes_max=64 << 20); a = pool.acquire(512)\n"
            "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE); resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))"
        )
        with pytest.raises(ChildError, match=r"SharedMemoryFull: the system does not give"):
            child.run("pool.acquire(4 << 20)")
        child.run("resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)); b = pool.acquire(4 << 20)")

        assert child.run("out = pool.statistics().arrays_held") == 2


def test_memory_that_is_full_is_an_error_at_acquire_and_no_signal_at_first_touch(
    nursery: Nursery, tmp_path: Path
) -> None:
    """A small tmpfs of its own stands for the machine: the same calls get the same refusal, ENOSPC."""
    with closing(Child(nursery)) as child:
        try:
            child.run(
                "import ctypes\n"
                "libc = ctypes.CDLL(None, use_errno=True)\n"
                "def mounted(result):\n"
                "    if result: raise OSError(ctypes.get_errno(), 'not allowed')\n"
                "mounted(libc.unshare(0x20000))\n"
                "mounted(libc.mount(b'none', b'/', None, 0x44000, None))\n"
                "mounted(libc.mount(b'small', given.encode(), b'tmpfs', 0, b'size=256k'))\n"
                "def small(name, size_bytes):\n"
                "    fd = os.open(mount, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)\n"
                "    os.ftruncate(fd, size_bytes)\n"
                "    return fd\n"
                "mount = given; array_segments.nameless_memory = small\n"
                "pool = SharedArrayPool(bytes_max=1 << 20); a = pool.acquire(16 << 10, 'u1')",
                str(tmp_path),
            )
        except ChildError as error:
            pytest.skip(f"mounting a small tmpfs needs rights that this run has not: {error}")
        with pytest.raises(ChildError, match=r"SharedMemoryFull: .*No space left on device"):
            child.run("pool.acquire(512 << 10, 'u1')")
        child.run("a[:] = 1; b = pool.acquire(64 << 10, 'u1'); b[:] = 2")

        assert child.run("out = pool.statistics().bytes_memory") == (16 + 64) << 10


def test_a_forked_child_may_not_use_what_it_inherits(nursery: Nursery) -> None:
    with closing(Child(nursery)) as child:
        child.run("pool = SharedArrayPool(bytes_max=4096); a = pool.acquire(512); a[0] = 4.0; form = a.plain()")
        said = child.run(
            "r, w = os.pipe()\n"
            "if not os.fork():\n"
            "    said = []\n"
            "    for use in (lambda: a.array, a.release, lambda: pool.acquire(1)):\n"
            "        try: use()\n"
            "        except Exception as error: said.append(type(error).__name__)\n"
            "    said.append(open_form(form)[0].item())  # the same road as any other process\n"
            "    del a, pool\n"
            "    os.write(w, repr(said).encode()); os._exit(0)\n"
            "os.wait(); out = os.read(r, 1000).decode(); os.close(r); os.close(w)"
        )

        assert said == "['UsageError', 'UsageError', 'UsageError', 4.0]"
        assert (
            child.run("a.release(); pool.acquire(512, timeout_s=0).release(); out = pool.statistics().arrays_away") == 0
        )


# ---------------------------------------------------------------- seeded interleavings


def crowd(bodies: int, blocks: int, turns: int) -> Case:
    """Bodies that take turns on too few blocks; each must find its own values, and zeros where it asked for them."""
    pool = SharedArrayPool(bytes_max=blocks * PAGE)

    def work(me: float) -> None:
        for turn in range(turns):
            array = pool.acquire(512, zeroed=turn > 0)
            assert not (turn and array[0])
            array[0] = me
            point()
            assert array[0] == me
            if turn % 2:
                array.release()
            del array  # by the finalizer, in the middle of what the others do

    def check() -> bool:
        after = pool.statistics()
        pool.close()
        return (after.arrays_held, after.waiting, after.acquired) == (0, 0, bodies * turns)

    return Case([partial(work, float(n + 1)) for n in range(bodies)], check)


def test_no_order_of_os_threads_shares_a_block_or_forgets_a_waiter() -> None:
    covered = explore(lambda: crowd(bodies=3, blocks=1, turns=2), range(60), watch=WATCHED)

    assert covered.schedules > 30


def test_no_order_of_giving_up_and_releasing_loses_room() -> None:
    """A time-out that comes with the release: the room goes to the one that waits, or is free."""

    def make() -> Case:
        pool = SharedArrayPool(bytes_max=PAGE)
        first = pool.acquire(512)

        def give_up() -> None:
            try:
                pool.acquire(512, timeout_s=0.01).release()
            except ArraysExhausted:
                return

        def check() -> bool:
            pool.acquire(512, timeout_s=0).release()
            pool.close()
            return True

        return Case([give_up, first.release, give_up], check)

    assert explore(make, range(100), watch=WATCHED).schedules > 20


def test_no_order_of_finalizers_leaves_work_undone() -> None:
    def make() -> Case:
        done: list[int] = []
        section = array_holds.Section(done.append)

        leave = [partial(section.leave, n) for n in range(3)]
        return Case(leave, lambda: sorted(done) == [0, 1, 2])

    assert explore(make, range(300), watch=WATCHED, opcodes=True).schedules > 20
