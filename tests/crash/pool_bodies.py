"""What the tests of the process pool run in its processes; each of these imports this module anew, so it imports little."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def echo(value: Any) -> Any:
    return value


def own_pid() -> int:
    return os.getpid()


def blob(size_bytes: int) -> str:
    return "x" * size_bytes


class Decorated:
    """What a decorator such as `@app.task` leaves in the module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


@Decorated
def decorated(value: int) -> int:
    return value + 1


class PlainError(Exception):
    pass


class StubbornError(Exception):
    """Pickles, but cannot be made again: the classic."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def fail(kind: str) -> NoReturn:
    match kind:
        case "plain":
            raise PlainError("went wrong", 42)
        case "stubborn":
            raise StubbornError(code=5)
        case "local":

            class LocalError(Exception):
                pass

            raise LocalError(lambda: None)
        case "speechless":
            raise SpeechlessError
        case "exit":
            sys.exit(3)
        case _:
            raise KeyboardInterrupt


def die(how: str) -> None:
    if how == "_exit":
        os._exit(9)
    os.kill(os.getpid(), getattr(signal, how))


def fork_and_return() -> int:
    """The child of the body comes out of the body too."""
    pid = os.fork()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else 0


def fork_and_leave_a_child_behind(pid_path: str, *, in_c: bool) -> None:
    """A child that goes on after the worker process has crashed, with copies of all its descriptors."""
    if (ctypes.CDLL(None).fork() if in_c else os.fork()) == 0:
        write_whole(Path(pid_path), str(os.getpid()))
        signal.pause()
    while not Path(pid_path).exists():
        os.sched_yield()
    os._exit(4)


def use_memory(size_bytes: int) -> int:
    parts = [bytearray(size_bytes // 8) for _ in range(8)]
    return len(parts)


def start_and_spin(folder: str) -> None:
    """Computes for ever, beside a program it has started."""
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    write_whole(Path(folder, "pids"), f"{os.getpid()} {child.pid}")
    while True:
        pass


def write_whole(path: Path, text: str) -> None:
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)


def own_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def append(path: str, word: str) -> str:
    """Says in a file that it has run: one write, so that lines of several processes do not mix."""
    with open(path, "ab", buffering=0) as file:  # noqa: PTH123
        file.write(f"{word}\n".encode())
    return word


def append_and_spin(path: str, word: str) -> None:
    append(path, word)
    while True:
        pass


def append_and_wait_for(path: str, word: str, other: str) -> str:
    """Ends when there is a file `other`."""
    append(path, word)
    while not Path(other).exists():
        os.sched_yield()
    return word


_kept: list[bytearray] = []


def keep(size_bytes: int) -> int:
    """Leaks: what it has taken stays with its process."""
    _kept.append(bytearray(b"x") * size_bytes)
    return os.getpid()


def append_and_unwind(path: str, word: str) -> None:
    """Computes for ever; says what it does when it is told to end."""
    try:
        append(path, word)
        while True:
            pass
    finally:
        append(path, "unwound")
