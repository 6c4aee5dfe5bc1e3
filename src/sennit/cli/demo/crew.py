"""The worker processes of the demo: forked, watched, one of them killed, all of them stopped.

    crew(…) ─► hire: fork; each waits at its line
            ─► start: they are told where the model is, open the store and work
            ─► watch: a worker that ends by itself is an error, one that somebody killed is one more kill
            ─► kill_one: SIGSTOP, look if it holds tasks, then SIGKILL (or SIGCONT and another)
            ─► dismiss: lines half closed ─► bodies drain ─► exit; SIGKILL for what is left

They are forked because all that a worker imports is here already: three of them cost what one costs, and the first
result comes in half the time. A fork copies the calling OS thread only, so `hire` comes before anything that starts one.

Nobody looks whether a worker is alive: its line, a socket that it never writes to, is hung up by the operating system.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec

from sennit.cli.demo import workermain
from sennit.errors import SennitError
from sennit.store.protocol import Store
from sennit.sync.clock import uptime_us
from sennit.sync.forks import drop_after_fork, end_forked_child

STOP_S = 5.0
_TAIL_CHARS = 2000


class Killed(NamedTuple):
    """A worker process that was killed, and how many tasks it held then."""

    pid: int
    held: int


class WorkerProcess:
    """One forked worker, from the director's side.

    Attributes:
        returncode: None until it has ended and `wait` or `reap` has said so; -9 for SIGKILL.
    """

    def __init__(self, line: socket.socket) -> None:
        self.pid = 0
        self.started = False
        self.returncode: int | None = None
        self._line = line
        self._hung_up = asyncio.Event()
        drop_after_fork(self)

    def drop_after_fork(self) -> None:
        """Let no worker keep the line of another, or its own other end, open."""
        self._line.close()

    def start(self, environ: Mapping[str, str]) -> None:
        """Let it open the store and work, with `environ` on top of our environment."""
        self.started = True
        with suppress(BrokenPipeError):  # it has ended; `wait` says how
            self._line.sendall(msgspec.json.encode(environ) + b"\n")

    def dismiss(self) -> None:
        """Tell it to end; so does the death of this process."""
        with suppress(OSError):  # it has ended
            self._line.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait until it has ended; return its exit code."""
        if self.returncode is None and not self._hung_up.is_set():
            asyncio.get_running_loop().add_reader(self._line.fileno(), self._ended)
            await self._hung_up.wait()
        return self.reap()

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._line.fileno())
        self._hung_up.set()

    def reap(self) -> int:
        """Return the exit code of one whose line is hung up, or that was killed: it is ending, if not ended."""
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
            self._line.close()
        return self.returncode


class Crew:
    """Some worker processes of one store; `workermain` says what each of them is.

    Attributes:
        processes: in the order of their start.
        killed_us: pid → uptime at which it was killed, by us or by somebody else.
    """

    def __init__(self, log: Path) -> None:
        self.processes: list[WorkerProcess] = []
        self.killed_us: dict[int, int] = {}
        self._environ: Mapping[str, str] = {}
        self._log = log

    def hire(self, url: str) -> None:
        """Fork one more worker; it waits for `start` before it opens the store at `url`.

        It is in a session of its own: a Ctrl-C in the terminal reaches the director alone, which then stops it.
        """
        ours, theirs = socket.socketpair()
        process = WorkerProcess(ours)
        sys.stdout.flush()
        sys.stderr.flush()
        process.pid = os.fork()
        if process.pid == 0:
            _be_worker(url, theirs, self._log)
        theirs.close()
        self.processes.append(process)

    def start(self, environ: Mapping[str, str], *, n: int | None = None) -> None:
        """Let `n` of those that wait, or all of them, open the store and work."""
        self._environ = environ
        for process in [process for process in self.processes if not process.started][:n]:
            process.start(environ)

    async def kill_one(self, store: Store, *, first: Container[int] = ()) -> Killed | None:
        """Kill -9 the worker that holds most, of `first` if it can be; None when none holds a task, or only one is left.

        It is stopped first, so that what it holds cannot end between the look and the kill.
        """
        alive = [process.pid for process in self._alive()]
        if len(alive) < 2:
            return None
        held = await self._held(store)
        for pid in sorted(alive, key=lambda pid: (pid not in first, -held.get(pid, 0))):
            os.kill(pid, signal.SIGSTOP)
            holds = (await self._held(store)).get(pid, 0)
            if holds:
                os.kill(pid, signal.SIGKILL)
                self.killed_us[pid] = uptime_us()
                return Killed(pid, holds)
            os.kill(pid, signal.SIGCONT)
        return None

    def _alive(self) -> list[WorkerProcess]:
        return [process for process in self.processes if process.returncode is None]

    async def _held(self, store: Store) -> dict[int, int]:
        return {worker.pid: worker.running for worker in await store.workers() if worker.role == "worker"}

    async def watch(self) -> None:
        """Note who is killed, and let the others work, until nobody can go on.

        Raises:
            SennitError: a worker ended by itself, or the last one was killed.
        """
        waiting = {asyncio.ensure_future(process.wait()): process for process in self.processes}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for process in map(waiting.pop, done):
                    if process.returncode != -signal.SIGKILL or not self._alive():
                        raise self._ended(process)
                    self.killed_us.setdefault(process.pid, uptime_us())
                    self.start(self._environ)  # perhaps it was the only one that worked
        finally:
            for future in waiting:
                future.cancel()

    def _ended(self, process: WorkerProcess) -> SennitError:
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARS:].strip()
        return SennitError(
            f"worker process {process.pid} ended with exit code {process.returncode}",
            why=tail or "it has written nothing; -9 is often the kernel, out of memory",
            fix="mend what it says and run the demo again",
        )

    async def dismiss(self) -> None:
        """Let all end in order; kill those that have not after `STOP_S`."""
        alive = self._alive()
        for process in alive:
            process.dismiss()
        if not alive:
            return
        _, late = await asyncio.wait([asyncio.ensure_future(p.wait()) for p in alive], timeout=STOP_S)
        for process in self._alive():
            process.kill()
        if late:
            await asyncio.wait(late)

    def kill_all(self) -> None:
        """SIGKILL whoever was never dismissed."""
        for process in self._alive():
            process.kill()
            process.reap()


@contextmanager
def crew(url: str, *, n: int, log: Path) -> Iterator[Crew]:
    """Fork `n` workers of the store at `url`, not started yet; what they print goes to the file `log`.

    Call it before this process has a second OS thread. Leaving kills those that `dismiss` has not brought to an end.
    """
    hired = Crew(log)
    try:
        for _ in range(n):
            hired.hire(url)
        yield hired
    finally:
        hired.kill_all()


def _be_worker(url: str, line: socket.socket, log: Path) -> NoReturn:
    """Be the worker in the forked child, to its end; nothing of the director's own goes on in here."""
    try:
        os.setsid()
        with open(os.devnull, "rb") as nothing, log.open("ab") as output:  # noqa: PTH123 - a device
            for file, fd in ((nothing, 0), (output, 1), (output, 2)):
                os.dup2(file.fileno(), fd)
        with line.makefile("rb") as told:
            environ = told.readline()
        if environ:
            os.environ.update(msgspec.json.decode(environ, type=dict[str, str]))
            workermain.work(url, line)
    except BaseException as error:  # noqa: BLE001 - printed to the log; it must not run on into the director's code
        end_forked_child(error)
    end_forked_child(None)
