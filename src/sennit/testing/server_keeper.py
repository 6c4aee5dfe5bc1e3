"""Stands between a test and its server, so that the server never outlives the test: a program, not a module to import.

    owner ── Popen ──► keeper ── Popen ──► server ──► its own children
      │ pidfd, stdin     │ stdout "pid 7", "ready"
      └───────────────►  └ the server's output, to our stderr (the log file)

The owner sends signals to the server itself. The keeper does the three things an owner cannot do once it is dead: it
stops the server, waits for the last of its processes, and removes the folder. It ends when no process of the server is
left, so "the keeper has ended" is a fact to wait for; its exit code is the server's.

It is started with `python -I -S` and imports nothing but the standard library: up in about 20 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypedDict

QUIT_S: Final = 8.0  # PostgreSQL itself kills what has not quit after 5 s (SIGKILL_CHILDREN_AFTER_SECS in postmaster.c)
PR_SET_PDEATHSIG: Final = 1  # Source: linux/prctl.h
PR_SET_CHILD_SUBREAPER: Final = 36
IPC_RMID: Final = 0  # Source: linux/ipc.h and sys/ipc.h of macOS

Prctl = Callable[[int, int], None]


class Orders(TypedDict):
    """What the keeper is told, as JSON in its only argument."""

    owner_pid: int
    account: tuple[int, int] | None  # uid and gid to become; None: stay who we are
    folder: str  # removed after the owner's death
    prepare: list[str]  # run to its end first, or empty
    run: list[str]
    ready: str  # the line of the server's output that contains this says that clients may come
    quit_signal: int  # the fast way to end the server with all its children


def main(orders: Orders) -> int:
    """Run the server until it ends by itself or its owner has died. Return its exit code."""
    become(orders["account"])
    prctl = find_prctl()
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the server leaves behind becomes our child, and we can wait for it
    owner = watch(orders["owner_pid"])
    if orders["prepare"]:
        done = subprocess.run(orders["prepare"], stdin=subprocess.DEVNULL, stdout=2, check=False)
        if done.returncode:
            return done.returncode

    def die_with_keeper() -> None:
        prctl(PR_SET_PDEATHSIG, orders["quit_signal"])

    with subprocess.Popen(
        orders["run"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_keeper,  # noqa: PLW1509 - this program has one OS thread
    ) as server:
        say(f"pid {server.pid}")
        orphaned = follow(server, owner, orders)
        code = server.wait()
    reap()
    if orphaned:
        clean_up(Path(orders["folder"]))
    return code if code >= 0 else 128 - code


def become(account: tuple[int, int] | None) -> None:
    """Give up root: PostgreSQL refuses it, and a test server needs none of it."""
    if account is not None:
        uid, gid = account
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    os.chdir("/")


def find_prctl() -> Prctl:
    """Return Linux's prctl, or a function that does nothing where there is none."""
    found = getattr(ctypes.CDLL(None), "prctl", None)

    def prctl(option: int, value: int) -> None:
        if found is not None:
            found(option, value, 0, 0, 0)

    return prctl


def watch(pid: int) -> list[int]:
    """Return descriptors that tell when the owner has died: its pipe, and its pidfd where the system has them.

    A process that the owner forked may hold the other end of the pipe; the pidfd is not fooled by that.
    """
    descriptors = [0]
    if hasattr(os, "pidfd_open"):
        try:
            descriptors.append(os.pidfd_open(pid))
        except ProcessLookupError:
            sys.exit("the owner died before its server was started")
        except OSError as error:
            sys.stderr.write(f"keeper: no pidfd ({error}); the owner's pipe remains\n")
    return descriptors


def follow(server: subprocess.Popen[bytes], owner: list[int], orders: Orders) -> bool:
    """Pass the server's output on until all who could write it have ended. Return whether the owner died first."""
    assert server.stdout is not None  # noqa: S101 - for the type checker
    output = server.stdout.fileno()
    poll = select.poll()
    for descriptor in (output, *owner):
        poll.register(descriptor, select.POLLIN)
    seen: bytes | None = b""  # the output so far; None once the server is ready
    orphaned = False
    deadline_s: float | None = None
    while True:
        left_ms = None if deadline_s is None else max(0.0, deadline_s - time.monotonic()) * 1000
        events = dict(poll.poll(left_ms))
        if not events:
            server.kill()  # frozen, or stuck in the kernel; its children see that it is gone
            deadline_s = None
        if output in events:
            piece = os.read(output, 65536)
            if not piece:
                return orphaned
            os.write(2, piece)
            if seen is not None:
                seen += piece
                if orders["ready"].encode() in seen:
                    seen = None
                    say("ready")
        if not orphaned and events.keys() & set(owner):
            orphaned, deadline_s = True, time.monotonic() + QUIT_S
            for descriptor in owner:
                poll.unregister(descriptor)
            server.send_signal(signal.SIGCONT)  # it may be frozen
            server.send_signal(orders["quit_signal"])


def say(line: str) -> None:
    """Tell the owner, if it still listens."""
    with contextlib.suppress(BrokenPipeError):  # it died; the poll says so too
        os.write(1, line.encode() + b"\n")


def reap() -> None:
    """Wait for everything the server has left behind."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        return


def clean_up(folder: Path) -> None:
    """Remove the folder, and the shared memory of a PostgreSQL that was killed."""
    free_shared_memory(folder / "data" / "postmaster.pid")
    shutil.rmtree(folder, ignore_errors=True)


def free_shared_memory(pid_file: Path) -> None:
    """Remove the System V segment named in a postmaster.pid that outlived its server; harmless when there is none.

    Source: PostgreSQL, miscadmin.h, LOCK_FILE_LINE_SHMEM_KEY: line 7 holds its key and id.
    """
    try:
        segment = pid_file.read_text(encoding="utf-8").splitlines()[6].split()[1]
    except (OSError, IndexError):
        return
    ctypes.CDLL(None).shmctl(int(segment), IPC_RMID, None)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
