"""From fork to exec: the program waits at a gate until its identity is on disk, so that no crash leaves a process nobody knows.

    keeper ─fork─► child: own group, parent-death signal, stdin, stdout, stderr, folder ─► waits at the gate ─► exec
      └─► process.json: pid, when it began, boot, nonce ─────────────────────────────────► opens it

A child whose keeper dies meanwhile ends at the gate. Forked from a single-threaded process; standard library only.
"""

# ruff: noqa: PTH105, PTH108, PTH118 - the paths are bytes
from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, NoReturn

from sennit.execute.agent_proc import stat_of

__all__ = ["Failed", "Started", "name_process", "prctl", "start", "write_record"]

# prctl(2), linux/prctl.h.
PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, argument: int) -> None:
    """Set a property of this process; an OSError if the kernel does not know it. Source: linux/prctl.h."""
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def name_process(name: bytes) -> None:
    """Set what ps and top show, at most 15 bytes."""
    _libc.prctl(PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0)


class Failed(Exception):
    """The program was not started; `stage` says what could not be done: program, cwd, folder, fork, setup."""

    def __init__(self, stage: str, error: OSError) -> None:
        super().__init__(stage, error)
        self.stage = stage
        self.errno = error.errno or 0


class Started(NamedTuple):
    """A program that runs; `outs` are our ends of its stdout and stderr, which do not block."""

    pid: int
    ticks: int
    outs: tuple[int, int]


def write_record(folder: bytes, name: bytes, content: dict[str, Any]) -> None:
    """Write a file at once or not at all. Without fsync: what it tells of does not survive the machine either.

    Raises:
        OSError: the disk is full, the folder is gone.
    """
    path = os.path.join(folder, name)
    descriptor = os.open(path + b".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        data = json.dumps(content).encode()
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, "only a part could be written")
    finally:
        os.close(descriptor)
    os.replace(path + b".new", path)


def start(order: dict[str, Any], stdin: int | None, *, is_wanted: Callable[[], bool]) -> Started:
    """Start the program of `order`, and close `stdin` here.

    Args:
        order: program, argv, environ, cwd, folder (texts are bytes as latin-1), identity: what process.json has besides
            the pids.
        stdin: what it reads; None is /dev/null.
        is_wanted: asked last of all: a program is not begun for a supervisor that has died meanwhile.

    Raises:
        Failed: it was not started; nothing of it is left.
    """
    try:
        (out, out_write), (err, err_write), (gate_read, gate), (told, tell) = (os.pipe2(os.O_CLOEXEC) for _ in range(4))
        stdin = stdin if stdin is not None else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        keeper = os.getpid()
        pid = os.fork()
    except OSError as error:
        raise Failed("fork", error) from error
    if pid == 0:
        os.close(gate)
        _become(order, keeper, (stdin, out_write, err_write), gate_read, tell)
    for descriptor in (stdin, out_write, err_write, gate_read, tell):
        os.close(descriptor)
    with suppress(OSError):  # the child does it too; whoever is first
        os.setpgid(pid, pid)
    child, folder = stat_of(pid), order["folder"].encode("latin-1")
    ticks = child.ticks if child else 0
    try:
        write_record(folder, b"process.json", _identity(order, pid, ticks))
    except OSError as error:
        os.close(gate)  # it ends there
        os.waitpid(pid, 0)
        raise Failed("folder", error) from error
    wanted = is_wanted()
    if wanted:
        with suppress(BrokenPipeError):  # it has not come so far; it tells why
            os.write(gate, b"!")
    os.close(gate)
    problem = os.read(told, 64)  # exec closes the other end
    os.close(told)
    if problem or not wanted:
        os.waitpid(pid, 0)
        os.unlink(os.path.join(folder, b"process.json"))
        stage, _, number = problem.decode().partition(" ")
        raise Failed(stage or "setup", OSError(int(number or errno.ECANCELED), ""))
    os.set_blocking(out, False)
    os.set_blocking(err, False)
    return Started(pid, ticks, (out, err))


def _identity(order: dict[str, Any], pid: int, ticks: int) -> dict[str, Any]:
    keeper = stat_of(os.getpid())
    of_keeper = {"keeper_pid": os.getpid(), "keeper_started_ticks": keeper.ticks if keeper else 0}
    return {"pid": pid, "started_ticks": ticks, **of_keeper, **order["identity"]}


def _become(order: dict[str, Any], keeper: int, stdio: tuple[int, int, int], gate: int, tell: int) -> NoReturn:
    """In the child: become the program, or say why not. All other descriptors close at the exec."""
    stage = "setup"
    try:
        signal.set_wakeup_fd(-1)
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:  # it died before the line above
            os._exit(1)
        for place, descriptor in enumerate(stdio):
            os.dup2(descriptor, place)
        for number in signal.valid_signals():
            if signal.getsignal(number) == signal.SIG_IGN:  # Python ignores SIGPIPE and SIGXFSZ; no program expects it
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        argv = [word.encode("latin-1") for word in order["argv"]]
        environ = {name.encode("latin-1"): value.encode("latin-1") for name, value in order["environ"].items()}
        stage = "cwd"
        os.chdir(order["cwd"].encode("latin-1"))
        if not os.read(gate, 1):
            os._exit(1)
        stage = "program"
        os.execve(order["program"].encode("latin-1"), argv, environ)  # noqa: S606
    except OSError as error:
        os.write(tell, f"{stage} {error.errno}".encode())
    except Exception as error:  # noqa: BLE001 - it must end here, or there would be two keepers
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os.write(tell, f"setup {errno.EINVAL}".encode())
    os._exit(127)
