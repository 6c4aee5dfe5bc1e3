"""Shared arrays between processes that wait for each other and are killed: real processes, real SIGKILL."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sennit.errors import ArrayGone, ArraysExhausted
from sennit.sync.arrays import SharedArray, SharedArrayPool, open_form
from tests.crash.nursery import Nursery
from tests.pools.array_child import Child, ChildError, sennit_maps

PAGE = 4096


@pytest.fixture
def child_of(nursery: Nursery) -> Iterator[Callable[[], Child]]:
    """Starts processes that end with the test."""
    children: list[Child] = []

    def start() -> Child:
        children.append(Child(nursery))
        return children[-1]

    yield start
    for child in children:
        child.close()


def acquire_later(pool: SharedArrayPool, length: int) -> tuple[threading.Thread, list[SharedArray]]:
    """Acquire in another OS thread; return when it waits."""
    got: list[SharedArray] = []
    other = threading.Thread(target=lambda: got.append(pool.acquire(length)))
    other.start()
    while not pool.statistics().waiting and other.is_alive():
        os.sched_yield()
    return other, got


def watching() -> list[threading.Thread]:
    """Return the OS threads that wait for other processes."""
    return [thread for thread in threading.enumerate() if thread.name == "sennit-arrays"]


def held_here_and_there(pool: SharedArrayPool, child: Child) -> SharedArray:
    """Return an array of a page that the child holds, too."""
    array = pool.acquire(512)
    array[:] = 7.0
    child.run("held = open_form(given); held[0]", array.plain())
    return array


# ---------------------------------------------------------------- who waits goes on


@pytest.mark.parametrize("end", ["killed", "released", "forgotten"])
def test_who_waits_goes_on_when_the_holder_elsewhere_has_let_go(child_of: Callable[[], Child], end: str) -> None:
    child = child_of()
    for thread in watching():  # of a test before, about to end
        thread.join()
    with SharedArrayPool(bytes_max=PAGE) as pool:
        held_here_and_there(pool, child).release()
        assert pool.statistics().arrays_away == 1
        assert watching() == []  # nobody waits yet
        other, got = acquire_later(pool, 512)
        assert len(watching()) == 1

        match end:
            case "killed":
                child.kill()
            case "released":
                child.run("held.release()")
            case "forgotten":
                child.run("del held")
        other.join()

        assert not got[0].array.any()
        for thread in watching():  # nobody waits, so it ends
            thread.join()
        got.pop().release()


def test_each_of_many_holders_frees_what_it_held_when_it_is_killed(child_of: Callable[[], Child]) -> None:
    """Two processes hold one array: one death is not enough. A third holds another one, and that is enough."""
    first, second, third = child_of(), child_of(), child_of()
    with SharedArrayPool(bytes_max=2 * PAGE) as pool:
        both = held_here_and_there(pool, first)
        second.run("held = open_form(given)", both.plain())
        single = held_here_and_there(pool, third)
        both.release()
        single.release()
        other, got = acquire_later(pool, 512)

        first.kill()
        assert pool.statistics().arrays_away == 2  # asked of the kernel: still held by `second` and by `third`
        assert other.is_alive()
        third.kill()
        other.join()
        assert pool.statistics().arrays_away == 1
        assert second.run("out = held[0].item()") == 7.0
        got.pop().release()


def test_async_callers_go_on_when_the_holder_is_killed(child_of: Callable[[], Child]) -> None:
    child = child_of()

    async def run() -> None:
        with SharedArrayPool(bytes_max=PAGE) as pool:
            held_here_and_there(pool, child).release()
            waiting = asyncio.ensure_future(pool.acquire_async(512))
            await asyncio.sleep(0)
            assert pool.statistics().waiting == 1
            child.kill()
            (await waiting).release()

    asyncio.run(run())


def test_many_rounds_of_holding_and_waiting_lose_no_news(child_of: Callable[[], Child]) -> None:
    """The child lets go, comes late or holds at any moment of our looking, marking and going to sleep."""
    child = child_of()
    code = "try:\n    held = open_form(given); out = held[0].item(); held.release()\nexcept LookupError: out = 'late'"
    answers: list[object] = []
    with SharedArrayPool(bytes_max=PAGE) as pool:
        for n in range(200):
            with pool.acquire(512) as array:  # there is one block: it waits for the child, when that was not late
                array[0] = n
                child.send(code, array.plain())
                while n % 3 == 0 and len(answers) <= n:
                    answers.append(child.answer())
        while len(answers) < 200:
            answers.append(child.answer())

    assert all(answer in (n, "late") for n, answer in enumerate(answers))
    assert answers[::3] == list(range(0, 200, 3))


def test_exhausted_says_which_process_holds_what(child_of: Callable[[], Child]) -> None:
    child = child_of()
    with SharedArrayPool(bytes_max=2 * PAGE) as pool, pool.acquire(512):
        held_here_and_there(pool, child).release()

        with pytest.raises(ArraysExhausted) as caught:
            pool.acquire(512, timeout_s=0)

        here, there = sorted(caught.value.holders)[::-1]
        assert "this process, acquired at test_shared_array_kills.py:" in there + here
        assert f"held by process {child.pid} (" in there + here


# ---------------------------------------------------------------- the owner dies


def test_a_holder_goes_on_after_its_owner_was_killed_and_nothing_stays_after_it(child_of: Callable[[], Child]) -> None:
    owner, late = child_of(), child_of()
    form = owner.run("pool = SharedArrayPool(bytes_max=1 << 20); a = pool.acquire(512); a[:] = 3.0; out = a.plain()")
    held = open_form(form)
    owner.kill()

    assert (held.array == 3.0).all()
    held[0] = 4.0  # it can still be written to
    with pytest.raises(ChildError, match=r"ArrayGone: .*its memory is gone"):
        late.run("open_form(given)", form)
    inode = form["$sennit.shared"]["place"]["ino"]
    assert [line for line in sennit_maps() if f" {inode} " in line]
    held.release()
    assert not [line for line in sennit_maps() if f" {inode} " in line]
    with pytest.raises(ArrayGone, match="its memory is gone"):
        open_form(form)


def test_an_owner_that_is_killed_while_it_waits_breaks_no_holder(child_of: Callable[[], Child]) -> None:
    owner, holder = child_of(), child_of()
    form = owner.run("pool = SharedArrayPool(bytes_max=4096); a = pool.acquire(512); a[:] = 3.0; out = a.plain()")
    holder.run("held = open_form(given)", form)
    owner.run(
        "import threading; a.release(); other = threading.Thread(target=pool.acquire, args=(512,)); other.start()\n"
        "while not pool.statistics().waiting: pass"
    )
    owner.kill()

    assert holder.run("out = held.array.tolist() == [3.0] * 512") is True
    assert holder.run("held.release(); out = sennit_maps()") == []  # it rings a bell that is not there any more


# ---------------------------------------------------------------- forks


def test_a_killed_holder_has_let_go_though_its_forked_child_lives(child_of: Callable[[], Child]) -> None:
    holder = child_of()
    with SharedArrayPool(bytes_max=PAGE) as pool:
        array = held_here_and_there(pool, holder)
        grandchild = holder.run(
            "r, w = os.pipe()\n"
            "out = os.fork()\n"
            "if not out:\n"
            "    os.close(given); os.write(w, b'x'); os.close(w)\n"
            "    import signal; signal.pause()\n"
            "os.close(w); os.read(r, 1); os.close(r)",
            3,
        )
        try:
            array.release()
            other, got = acquire_later(pool, 512)
            holder.kill()
            other.join()
            got.pop().release()
            assert Path(f"/proc/{grandchild}").exists()
        finally:
            os.kill(grandchild, 9)


def test_a_forked_child_can_open_what_it_was_forked_with_and_count(child_of: Callable[[], Child]) -> None:
    owner = child_of()
    owner.run("pool = SharedArrayPool(bytes_max=4096); a = pool.acquire(512); a[0] = 5.0; form = a.plain()")
    code = (
        "r, w = os.pipe(); s, v = os.pipe()\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    os.close(given); b = open_form(form); os.write(w, b'x'); os.close(v); os.read(s, 1)\n"
        "    assert b[0] == 5.0; os._exit(7)\n"
        "os.close(s); os.read(r, 1); a.release(); out = [pool.statistics().arrays_away]\n"
        "os.close(v); out.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "out.append(pool.statistics().arrays_away); os.close(r); os.close(w)"
    )

    assert owner.run(code, 3) == [1, 7, 0]


# ---------------------------------------------------------------- figures that are facts


def test_four_processes_share_the_memory_once(child_of: Callable[[], Child]) -> None:
    size_bytes = 8 << 20
    children = [child_of() for _ in range(3)]
    with SharedArrayPool(bytes_max=size_bytes) as pool, pool.acquire(size_bytes // 8) as array:
        array[:] = 1.0
        for child in children:
            assert child.run("held = open_form(given); out = held.array.sum().item()", array.plain()) == size_bytes // 8

        shares = [child.run("out = pss_bytes()") for child in children]

        assert all(abs(share - size_bytes / 4) < size_bytes / 40 for share in shares), shares
        assert array.array.dtype == np.float64


def test_a_forked_child_does_not_go_on_waiting_for_its_parent(child_of: Callable[[], Child]) -> None:
    owner = child_of()
    said = owner.run(
        "pool = SharedArrayPool(bytes_max=4096); a = pool.acquire(512)\n"
        "import threading; other = threading.Thread(target=lambda: pool.acquire(512).release()); other.start()\n"
        "while not pool.statistics().waiting: pass\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    os.close(given); del a; os._exit(len(pool._waiters))\n"
        "out = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]); a.release(); other.join()",
        3,
    )

    assert said == 0
