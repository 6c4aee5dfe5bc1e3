"""Bells between processes: rung from anywhere, never blocking, never silently deaf."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sennit.errors import SettingsError, UsageError
from sennit.store.wakeup import Bell, Hint, ring

ALL = 255
KINDS = pytest.mark.parametrize("abstract", [True, False], ids=["abstract", "socket file"])


@pytest.mark.skipif(sys.platform != "linux", reason="abstract addresses are Linux's")
def test_on_linux_a_bell_leaves_no_file(tmp_path: Path) -> None:
    bell = Bell.open(tmp_path, "worker")

    assert list(tmp_path.iterdir()) == []
    assert bell.address.isprintable()
    bell.close()


@KINDS
def test_hints_add_up_until_they_are_drained(tmp_path: Path, *, abstract: bool) -> None:
    bell = Bell.open(tmp_path, "worker", abstract=abstract)

    assert bell.drain() == 0
    ring([bell.address], Hint.READY)
    ring([bell.address], Hint.STOP)
    assert bell.drain() == Hint.READY | Hint.STOP
    assert bell.drain() == 0
    bell.close()


@KINDS
def test_a_ring_from_another_process_reaches_the_loop(tmp_path: Path, *, abstract: bool) -> None:
    async def hear() -> int:
        heard: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        bell = Bell.open(tmp_path, "worker", abstract=abstract)
        bell.attach(asyncio.get_running_loop(), heard.set_result)
        code = f"from sennit.store.wakeup import ring; ring([{bell.address!r}], 2)"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        try:
            return await heard
        finally:
            await process.wait()
            bell.close()

    assert asyncio.run(hear()) == Hint.DONE


def test_every_os_thread_can_ring(tmp_path: Path) -> None:
    bell = Bell.open(tmp_path, "worker")
    ringers = [threading.Thread(target=ring, args=([bell.address], hint)) for hint in Hint]

    for ringer in ringers:
        ringer.start()
    for ringer in ringers:
        ringer.join()

    assert bell.drain() == ALL
    bell.close()


@KINDS
def test_a_receiver_whose_queue_was_full_looks_everywhere(tmp_path: Path, *, abstract: bool) -> None:
    """The STOP is lost, but not the fact that something was."""
    bell = Bell.open(tmp_path, "worker", abstract=abstract)

    for _ in range(2000):
        ring([bell.address], Hint.READY)
    ring([bell.address], Hint.STOP)

    assert bell.drain() == ALL
    bell.close()


def test_stopped_receivers_do_not_silence_the_others(tmp_path: Path) -> None:
    """Unread datagrams are charged to the sender's buffer: a few full queues would use it up for everybody."""
    stopped = [Bell.open(tmp_path, "stopped") for _ in range(100)]
    healthy = Bell.open(tmp_path, "healthy")

    for _ in range(30):
        ring([bell.address for bell in stopped], Hint.READY)
    ring([healthy.address], Hint.STOP)

    assert healthy.drain() == Hint.STOP
    for bell in (*stopped, healthy):
        bell.close()


@KINDS
def test_a_receiver_that_is_gone_is_skipped(tmp_path: Path, *, abstract: bool) -> None:
    gone = Bell.open(tmp_path, "gone", abstract=abstract)
    here = Bell.open(tmp_path, "here", abstract=abstract)
    gone.close()

    ring([gone.address, "@sennit/never-was", str(tmp_path / "never-was.bell"), here.address], Hint.PEER)

    assert here.drain() == Hint.PEER
    here.close()
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_does_not_answer_through_its_forked_child(tmp_path: Path) -> None:
    """The child lives on, but the ring is refused; that is how the dead one's socket file gets removed."""
    code = (
        "import os, sys, pathlib\n"
        "from sennit.store.wakeup import Bell\n"
        "bell = Bell.open(pathlib.Path(sys.argv[1]), 'parent', abstract=False)\n"
        "if os.fork() == 0:\n"
        "    print(bell.address, flush=True)\n"
        "    sys.stdin.read()\n"
        "os.wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        address = parent.stdout.readline().strip()
        parent.kill()
        parent.wait()

        assert Path(address).exists()
        ring([address], Hint.READY)
        assert not Path(address).exists()


def test_a_detached_bell_keeps_its_hints_for_the_next_listener(tmp_path: Path) -> None:
    async def hear() -> int:
        loop = asyncio.get_running_loop()
        heard: asyncio.Future[int] = loop.create_future()
        bell = Bell.open(tmp_path, "worker")
        bell.attach(loop, lambda _: pytest.fail("detached"))
        bell.detach()
        ring([bell.address], Hint.TIMER)
        bell.attach(loop, heard.set_result)
        try:
            return await heard
        finally:
            bell.close()

    assert asyncio.run(hear()) == Hint.TIMER


def test_a_bell_has_one_listener(tmp_path: Path) -> None:
    async def attach_twice() -> None:
        bell = Bell.open(tmp_path, "worker")
        bell.attach(asyncio.get_running_loop(), print)
        try:
            with pytest.raises(UsageError, match="already has a listener"):
                bell.attach(asyncio.get_running_loop(), print)
        finally:
            bell.close()

    asyncio.run(attach_twice())


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 49])
def test_a_name_that_is_no_address_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="cannot name a bell"):
        Bell.open(tmp_path, name)


def test_a_directory_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="longer than") as caught:
        Bell.open(tmp_path / ("d" * 120), "worker", abstract=False)

    assert "shorter path" in caught.value.fix
