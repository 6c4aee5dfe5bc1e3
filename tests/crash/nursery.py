"""Starts processes in a few milliseconds: each is forked from one that has imported everything and has nothing open.

    test ── what to call, descriptors ──► nursery ── fork ──► a process that calls it, and ends
         ◄── pid ─────────────────────────┘

An interpreter that imports sennit takes a third of a second of a core, a fork some milliseconds: a test that kills fifty
workers proves the same in a tenth of the time. What is forked is a process as any other, with a pid and descriptors of
its own. The nursery has one OS thread, no event loop and no database, so nothing half-done is copied.

A process that has ended stays a zombie until `kill` or `wait` buries it: its pid never is somebody else's meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import sennit
from tests.crash.nursery_wire import receive, send

ROOT = Path(__file__).resolve().parents[2]

# What the programs below import when they run: a fork has it already.
PRELOADED = (
    "tests.crash.fleet",
    "tests.crash.workspace_writer",
    "tests.contract.programs.ack_and_die",
    "tests.contract.programs.thread_worker",
    "sennit.cli.main",
    "sennit.cli.inbox",
    "sennit.cli.run",
    "sennit.cli.tasks",
    "sennit.cli.verify",
    "sennit.runtime.app",
    "sennit.runtime.engine",
    "sennit.store.postgres",
)


class Forked:
    """A process that the nursery has started."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self._nursery = nursery
        self._code: int | None = None

    def kill(self) -> int:
        """SIGKILL, and wait for the end; return the exit code as `subprocess` has it: -9, if it had not ended before."""
        if self._code is None:
            self._code = self._nursery.ask({"kill": self.pid})
        return self._code

    def wait(self) -> int:
        """Wait for the end of one that is about to end, and return its exit code. Nothing else can be asked meanwhile."""
        if self._code is None:
            self._code = self._nursery.ask({"wait": self.pid})
        return self._code


class Nursery:
    """One process that has imported what workers need, and waits to be asked for some."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._socket, theirs = socket.socketpair()
        path = os.pathsep.join([str(Path(sennit.__file__).parents[1]), str(ROOT)])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.nursery", str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
            )

    def start(
        self,
        call: str,
        *argv: str,
        folder: Path = ROOT,
        environ: Mapping[str, str] | None = None,
        descriptors: Mapping[int, int] | None = None,
    ) -> Forked:
        """Start a process.

        Args:
            call: `module:function`, called with `argv`; what it returns is the exit code.
            folder: where it runs; modules are found there first, as by `python -m`.
            environ: its environment; default: ours.
            descriptors: its number there → the number of ours.
        """
        given = {} if descriptors is None else descriptors
        environ = dict(os.environ if environ is None else environ)
        asked = {"call": call, "argv": argv, "folder": str(folder), "environ": environ, "descriptors": list(given)}
        return Forked(self, self.ask(asked, [*given.values()]))

    def run(
        self, call: str, *argv: str, folder: Path, environ: Mapping[str, str], text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a call to its end with `text` on its stdin, as `subprocess.run` does."""
        stdin, ours = os.pipe()
        os.write(ours, text.encode())  # far less than a pipe holds
        os.close(ours)
        stdout, its_stdout = os.pipe()
        with tempfile.TemporaryFile("w+") as stderr, os.fdopen(stdout) as said:
            given = {0: stdin, 1: its_stdout, 2: stderr.fileno()}
            process = self.start(call, *argv, folder=folder, environ=environ, descriptors=given)
            os.close(stdin)
            os.close(its_stdout)
            out = said.read()
            code = process.wait()
            stderr.seek(0)
            return subprocess.CompletedProcess([call, *argv], code, out, stderr.read())

    def ask(self, asked: Mapping[str, Any], descriptors: list[int] | None = None) -> int:
        """Send one request and return the number that answers it."""
        with self._asking:
            send(self._socket, asked, descriptors or [])
            answer, _ = receive(self._socket)
        assert answer, "the nursery has ended: why, it has written to stderr"
        return int(answer["number"])

    @property
    def descriptor(self) -> int:
        """The socket that it is asked through, for a process of ours to ask while we do not."""
        return self._socket.fileno()

    def close(self) -> None:
        """End it and all that it has started."""
        self._socket.close()
        self._process.wait()


# ---------------------------------------------------------------- in the nursery


def nurse(asking: socket.socket) -> Callable[[], int | None]:
    """Answer requests. Returns in each child, with what it is to call; in the nursery itself never."""
    children: set[int] = set()
    while True:
        asked, descriptors = receive(asking)
        if not asked:
            leave(children)
        if "call" not in asked:
            ((how, ended),) = asked.items()
            children.discard(ended)
            send(asking, {"number": buried(ended, kill=how == "kill")}, [])
            continue
        pid = os.fork()
        if not pid:
            asking.close()
            return become(asked, descriptors)
        children.add(pid)
        for descriptor in descriptors:
            os.close(descriptor)
        send(asking, {"number": pid}, [])


def become(asked: dict[str, Any], descriptors: list[int]) -> Callable[[], int | None]:
    """In a child: set up what it was given, and return what it is to call."""
    above = max(asked["descriptors"], default=0) + 1  # those that are to be replaced
    waiting = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for number, descriptor in zip(asked["descriptors"], waiting, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked["environ"])
    module, _, function = asked["call"].partition(":")
    sys.argv = [module, *asked["argv"]]
    os.chdir(asked["folder"])
    sys.path.insert(0, asked["folder"])
    called: Callable[..., int | None] = getattr(importlib.import_module(module), function)
    return lambda: called(*asked["argv"])


def buried(pid: int, *, kill: bool) -> int:
    if kill:
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def leave(children: set[int]) -> NoReturn:
    """The test has ended: nobody would ever end these."""
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            buried(pid, kill=True)
    sys.exit()


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    # A child's collector, and the end of its interpreter, would write into every object, and so copy all their memory:
    # 0.15 s of a core each.
    gc.collect()
    gc.freeze()
    sys.exit(nurse(socket.socket(fileno=int(sys.argv[1])))())
