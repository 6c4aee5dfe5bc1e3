"""The pen: one writer at a time, in turn, and free again whatever ends its holder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sennit.errors import UsageError
from sennit.sync.filelock import Pen


def run_program(code: str, *argv: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_that_share_a_pen_lose_no_update(tmp_path: Path) -> None:
    """Read, a system call in between, write: without the pen most of these are lost."""
    (tmp_path / "count").write_text("0")
    code = (
        "import sys, pathlib\n"
        "from sennit.sync.filelock import Pen\n"
        "folder = pathlib.Path(sys.argv[1]); pen = Pen(folder / 'pen'); count = folder / 'count'\n"
        "for _ in range(200):\n"
        "    with pen:\n"
        "        count.write_text(str(int(count.read_text()) + 1))\n"
    )
    writers = [run_program(code, tmp_path) for _ in range(4)]

    for writer in writers:
        writer.communicate()

    assert (tmp_path / "count").read_text() == "800"


def test_a_waiter_comes_before_the_last_writer_comes_again(tmp_path: Path) -> None:
    mine, other = Pen(tmp_path / "pen"), Pen(tmp_path / "pen")
    order = []

    def write() -> None:
        with other:
            order.append("waiter")

    mine.acquire()
    waiter = threading.Thread(target=write, daemon=True)
    waiter.start()
    while other.statistics().contended == 0:  # Counted when it has the gate and found the pen taken.
        os.sched_yield()
    mine.release()
    with mine:
        order.append("last writer")
    waiter.join()

    assert order == ["waiter", "last writer"]
    assert other.statistics().waited_us > 0
    mine.close()
    other.close()


def test_a_killed_holder_frees_the_pen(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from sennit.sync.filelock import Pen\n"
        "Pen(pathlib.Path(sys.argv[1])).acquire()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with run_program(code, tmp_path / "pen") as holder:
        assert read_line(holder) == "held"
        holder.kill()

        pen = Pen(tmp_path / "pen")
        with pen:
            pass
        pen.close()


def test_a_forked_child_has_to_wait_for_its_parent(tmp_path: Path) -> None:
    """A copied descriptor is the same lock to the kernel: with it the child would walk straight in."""
    code = (
        "import os, sys, pathlib\n"
        "from sennit.sync.filelock import Pen\n"
        "pen = Pen(pathlib.Path(sys.argv[1])); pen.acquire()\n"
        "if os.fork() == 0:\n"
        "    print('child asks', flush=True)\n"
        "    with pen: print('child writes', flush=True)\n"
        "    os._exit(0)\n"
        "sys.stdin.readline()\n"
        "print('parent writes', flush=True)\n"
        "pen.release()\n"
        "os.wait()\n"
    )
    with run_program(code, tmp_path / "pen") as parent:
        assert parent.stdin is not None
        asked = read_line(parent)
        parent.stdin.write("go\n")
        parent.stdin.flush()

        assert [asked, read_line(parent), read_line(parent)] == ["child asks", "parent writes", "child writes"]


def test_a_child_does_not_keep_the_pen_of_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from sennit.sync.filelock import Pen\n"
        "pen = Pen(pathlib.Path(sys.argv[1])); pen.acquire()\n"
        "if os.fork() == 0:\n"
        "    print('child lives', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with run_program(code, tmp_path / "pen") as parent:
        assert read_line(parent) == "child lives"
        parent.kill()

        pen = Pen(tmp_path / "pen")
        with pen:
            pass
        pen.close()


def test_misuse_is_refused_and_not_a_deadlock(tmp_path: Path) -> None:
    pen = Pen(tmp_path / "pen")

    with pen, pytest.raises(UsageError, match="already held"):
        pen.acquire()
    with pytest.raises(UsageError, match="not held"):
        pen.release()

    pen.close()


def test_a_closed_pen_is_free_and_opens_again(tmp_path: Path) -> None:
    first, second = Pen(tmp_path / "pen"), Pen(tmp_path / "pen")
    first.acquire()

    first.close()

    with second:
        pass
    with first:
        pass
    assert first.statistics().acquired == 2
    first.close()
    second.close()
