"""Agents for tests of supervision: small shell programs, and how to see who of them lives.

A program says where it is by a line in a FIFO; a test reads it and so waits for the fact. Processes are known by the nonce of their
run in their environment, as `clean_up` knows them.
"""

from __future__ import annotations

import asyncio
import functools
import os
import select
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec

from sennit.execute.agent_leftover import NONCE, read_record
from sennit.execute.agent_proc import everybody, read, stat_of
from sennit.execute.supervisor import AgentProcess, ProcessSpec, Supervisor

PATIENCE_S = 50.0  # less than pytest's: the assert says more than its time-out

P = ParamSpec("P")


def on_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@asynccontextmanager
async def supervising() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor()
    try:
        yield supervisor
    finally:
        await supervisor.close()


class Runs:
    """Run folders in a folder of the test, and a FIFO in which programs say something."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fifo = folder / "said"
        if not self.fifo.exists():
            os.mkfifo(self.fifo)
        self._fifo = os.open(self.fifo, os.O_RDWR | os.O_CLOEXEC)

    def spec(self, *argv: str, **more: Any) -> ProcessSpec:
        """Return what to start, in a run folder of its own. $SAID is the FIFO."""
        run = self.folder / f"run{len(self.folders())}"
        run.mkdir(mode=0o700)
        environ = {"PATH": os.environ["PATH"], "SAID": str(self.fifo)} | more.pop("environ", {})
        return ProcessSpec(argv=argv, environ=environ, cwd=more.pop("cwd", self.folder), folder=run, **more)

    def shell(self, script: str, **more: Any) -> ProcessSpec:
        return self.spec("sh", "-c", script, **more)

    def folders(self) -> list[Path]:
        """Return the run folders."""
        return sorted(self.folder.glob("run*"))

    def said(self, lines: int = 1) -> list[str]:
        """Return that many lines from the FIFO, when they are there."""
        text = b""
        until_s = time.monotonic() + PATIENCE_S
        while text.count(b"\n") < lines:
            ready, _, _ = select.select([self._fifo], [], [], max(0.0, until_s - time.monotonic()))
            assert ready, f"only {text!r} was said"
            text += os.read(self._fifo, 1)  # no more than was asked for: a read of a FIFO takes what is there
        return text.decode().split()

    def close(self) -> None:
        os.close(self._fifo)


def stdout(process: AgentProcess) -> bytes:
    return (process.folder / "stdout.log").read_bytes()


def marked(folders: Iterable[Path]) -> list[int]:
    """Return the pids of what lives of these runs."""
    marks = [f"{NONCE}={record.nonce}".encode() for folder in folders if (record := read_record(folder))]
    pids = [stat.pid for stat in everybody()]
    return [pid for pid in pids if any(mark in read(f"/proc/{pid}/environ").split(b"\0") for mark in marks)]


def has_ended(pid: int) -> bool:
    """Wait for the end of a process that is no child of ours; False if it goes on. A zombie has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], PATIENCE_S)[0])
    finally:
        os.close(pidfd)


def opened() -> set[str]:
    """Return the numbers of the descriptors that this process has."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def os_threads() -> int:
    """Return how many OS threads this process has, also those that Python does not know."""
    return len(list(Path("/proc/self/task").iterdir()))


def parent_of(pid: int) -> int:
    stat = stat_of(pid)
    assert stat is not None
    return stat.parent
