"""File locks between processes: nothing is lost, a killed holder is no obstacle, a frozen one is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sennit.errors import LockTimeout
from sennit.sync import lockline
from sennit.sync.filelocks import FileLock

PROCESSES = 4
EACH = 200
WAIT_S = 30.0
AT_ONCE_S = 5.0  # measured on two idle cores: about 2 ms

COUNT = """
import asyncio, contextlib, os, pathlib, sys
from sennit.sync.filelocks import FileLock
folder, how = pathlib.Path(sys.argv[1]), sys.argv[2]
count, lock = folder / "count", FileLock(folder / "lock")

def add():
    n = int(count.read_text())
    os.sched_yield()
    count.write_text(str(n + 1))

async def add_all():
    for _ in range(int(sys.argv[3]) // 4):
        await asyncio.gather(*[add_one() for _ in range(4)])

async def add_one():
    async with lock:
        add()

print("ready", flush=True)
sys.stdin.readline()
if how == "async":
    asyncio.run(add_all())
else:
    for _ in range(int(sys.argv[3])):
        with lock if how == "sync" else contextlib.nullcontext():
            add()
"""

HOLD = """
import sys
from sennit.sync.filelocks import FileLock
with FileLock(sys.argv[1], purpose="keeping others out"):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


class Program:
    """A child process that is told to go on by a line, and says how far it is by lines."""

    def __init__(self, code: str, *argv: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, argv)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        program.end()


def counted(folder: Path, programs: list[Program], hows: list[str]) -> int:
    """Let a process per entry of `hows` add to one file at the same time and return what it comes to."""
    (folder / "count").write_text("0")
    programs += [Program(COUNT, folder, how, EACH) for how in hows]
    assert [program.read() for program in programs] == ["ready"] * len(hows)
    for program in programs:
        program.go_on()
    # Without the lock a process may read the file while another has emptied it to write: it ends there.
    codes = [program.process.wait(WAIT_S) for program in programs]
    assert codes == [0] * len(hows) or "none" in hows
    return int((folder / "count").read_text() or 0)


@pytest.mark.parametrize("hows", [["sync"] * 4, ["async"] * 4, ["sync", "async"] * 2], ids=["sync", "async", "both"])
def test_processes_that_share_a_lock_lose_no_update(tmp_path: Path, programs: list[Program], hows: list[str]) -> None:
    assert counted(tmp_path, programs, hows) == PROCESSES * EACH
    assert FileLock(tmp_path / "lock").owner() is None


def test_without_the_lock_updates_are_lost(tmp_path: Path, programs: list[Program]) -> None:
    """The same window, unprotected: shows that the test above can fail."""
    assert counted(tmp_path, programs, ["none"] * 4) < PROCESSES * EACH


def test_a_killed_holder_lets_the_next_go_on_at_once(tmp_path: Path, programs: list[Program]) -> None:
    path = tmp_path / "lock"
    programs += [Program(HOLD, path)]
    holder = programs[0]
    assert holder.read() == "held"
    held_s: list[float] = []

    def wait() -> None:
        with FileLock(path, timeout_s=WAIT_S):
            held_s.append(time.monotonic())

    waiter = threading.Thread(target=wait)
    waiter.start()
    while lockline.line_if_any(FileLock(path).path) is None:
        os.sched_yield()
    killed_s = time.monotonic()
    os.kill(holder.pid, signal.SIGKILL)
    waiter.join()

    assert held_s[0] - killed_s < AT_ONCE_S


def test_a_frozen_holder_is_named_and_a_killed_one_is_not(tmp_path: Path, programs: list[Program]) -> None:
    path = tmp_path / "lock"
    programs += [Program(HOLD, path)]
    [holder] = programs
    assert holder.read() == "held"
    os.kill(holder.pid, signal.SIGSTOP)

    with pytest.raises(LockTimeout) as caught:
        FileLock(path, timeout_s=0.05).acquire()
    assert caught.value.pids == (holder.pid,)
    assert f"process {holder.pid} on {os.uname().nodename}" in str(caught.value)
    assert "keeping others out" in str(caught.value)
    owner = FileLock(path).owner()
    assert owner is not None
    assert owner.pid == holder.pid

    os.kill(holder.pid, signal.SIGKILL)  # its line stays in the file
    with FileLock(path, timeout_s=WAIT_S):
        pass
    assert str(holder.pid) not in path.read_text()
    assert FileLock(path).owner() is None


def test_the_line_of_a_killed_holder_is_believed_by_nobody(tmp_path: Path, programs: list[Program]) -> None:
    path = tmp_path / "lock"
    programs += [Program(HOLD, path)]
    [holder] = programs
    assert holder.read() == "held"
    holder.process.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a zombie: its process id is still taken

    assert str(holder.pid) in path.read_text()
    assert FileLock(path).owner() is None


FORK = """
import os, sys
from sennit.sync.filelocks import FileLock
lock = FileLock(sys.argv[1], timeout_s=30)
lock.acquire()
if os.fork() == 0:
    print("child asks", flush=True)
    with lock:
        print("child holds", flush=True)
    os._exit(0)
sys.stdin.readline()
print("parent holds", flush=True)
lock.release()
os.wait()
"""

FORK_AND_STAY = """
import os, sys
from sennit.sync.filelocks import FileLock
FileLock(sys.argv[1]).acquire()
if os.fork() == 0:
    print("child lives", flush=True)
sys.stdin.read()
"""

FORK_BESIDE_WAITERS = """
import os, sys, threading
from sennit.sync.filelocks import FileLock
path = sys.argv[1]
threads = [threading.Thread(target=lambda: FileLock(path).__enter__().release(), daemon=True) for _ in range(20)]
for thread in threads: thread.start()
for _ in range(30):
    if os.fork() == 0:
        with FileLock(path, timeout_s=30): pass
        os._exit(0)
codes = [os.wait()[1] for _ in range(30)]
for thread in threads: thread.join()
print(set(codes), flush=True)
"""


def test_a_forked_child_has_to_wait_for_its_parent(tmp_path: Path, programs: list[Program]) -> None:
    """A copied descriptor is the same lock to the kernel: with it the child would walk straight in."""
    programs += [Program(FORK, tmp_path / "lock")]
    asked = programs[0].read()
    programs[0].go_on()

    assert [asked, programs[0].read(), programs[0].read()] == ["child asks", "parent holds", "child holds"]


def test_a_child_does_not_keep_the_lock_of_a_killed_parent(tmp_path: Path, programs: list[Program]) -> None:
    programs += [Program(FORK_AND_STAY, tmp_path / "lock")]
    assert programs[0].read() == "child lives"
    os.kill(programs[0].pid, signal.SIGKILL)

    with FileLock(tmp_path / "lock", timeout_s=WAIT_S):
        pass


def test_forks_beside_os_threads_that_lock_harm_neither(tmp_path: Path, programs: list[Program]) -> None:
    programs += [Program(FORK_BESIDE_WAITERS, tmp_path / "lock")]

    assert programs[0].read() == "{0}"


BUSY = """
import sys
from sennit.sync.filelocks import FileLock
lock = FileLock(sys.argv[1])
turns = 0
while True:
    with lock:
        turns += 1
        if turns == 1: print("busy", flush=True)
"""


def test_a_process_that_never_rests_lets_others_in(tmp_path: Path, programs: list[Program]) -> None:
    programs += [Program(BUSY, tmp_path / "lock") for _ in range(2)]
    assert [program.read() for program in programs] == ["busy"] * 2

    for _ in range(50):
        with FileLock(tmp_path / "lock", timeout_s=WAIT_S):
            pass
