"""Worker processes for the tests: real ones, with a journal that says what their bodies did.

    test ── Popen ──► python -m tests.crash.fleet ── one line per event ──► pipe ──► Journal.wait_for(fact)

The journal is a pipe that all worker processes of a test share. What was written before a SIGKILL is still in it, a
line is one `write` (so lines of several processes never mix), and a test that waits for a fact sleeps until one comes.

A body writes that it ends before its ending is stored, so the last line of a body says nothing about the store, and
after it comes no other. Who wants to go on when everything has ended lets the journal say it: `say_when_over`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sennit
from sennit import App, Handle, step
from sennit.errors import AttemptCancelled
from sennit.submit.context import current
from sennit.sync.ack import Ack
from tests.crash.nursery import Forked, Nursery

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 30.0  # for a fact on a busy machine; none of them takes a tenth of it on an idle one


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the journal. `at_s` is the monotonic clock, which all processes of a host share."""

    what: str
    task_id: int
    attempt: int
    pid: int
    at_s: float
    note: str = ""


class Journal:
    """Reads what worker processes write, on an OS thread of its own."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        self._records: list[Record] = []
        self._news = threading.Condition()
        self._marks = itertools.count(1)
        self._read_until = 0  # the last mark
        self._overs = 0
        self._writing = threading.Lock()  # by ourselves; `close` waits for it
        self._is_closed = False
        self._thread = threading.Thread(target=self._read, name="journal", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with open(self._reader, encoding="utf-8") as lines:  # noqa: PTH123 - a descriptor has no path
            for line in lines:
                what, task_id, attempt, pid, at_s, note = line.rstrip("\n").split(" ", 5)
                record = Record(what, int(task_id), int(attempt), int(pid), float(at_s), note)
                with self._news:
                    if what == "mark":
                        self._read_until = int(note)
                    else:
                        self._records.append(record)
                    self._news.notify_all()

    @property
    def records(self) -> list[Record]:
        """All that was written until now, which may not have been read yet: a mark is sent after it and waited for."""
        with self._writing:
            mark = next(self._marks)
            if not self._is_closed:
                write("mark", str(mark), fd=self.writer)
        with self._news:
            assert self._is_closed or self._news.wait_for(lambda: self._read_until >= mark, WAIT_S)
            return list(self._records)

    def of(self, what: str) -> list[Record]:
        """Return the records of one kind that were written until now."""
        return [r for r in self.records if r.what == what]

    def wait_for(self, what: str, n: int = 1, *, where: Callable[[Record], bool] = lambda _: True) -> list[Record]:
        """Wait until `n` records of a kind are there and return them; fail after `WAIT_S`."""

        def found() -> list[Record]:
            return [r for r in self._records if r.what == what and where(r)]

        with self._news:
            if not self._news.wait_for(lambda: len(found()) >= n, WAIT_S):
                raise AssertionError(f"{len(found())} of {n} {what!r} after {WAIT_S:g} s; all: {self._records[-20:]}")
            return found()

    def wait_ready(self, *processes: subprocess.Popen[bytes] | Forked) -> None:
        """Wait until these processes have said that they are ready."""
        for process in processes:
            self.wait_for("ready", where=lambda r, pid=process.pid: r.pid == pid)  # type: ignore[misc]

    def say_when_over(self, watches: Sequence[Ack[Any]]) -> None:
        """Write `over` when the last of these tasks has ended; what bodies have written until then is read before it."""
        self._overs += 1
        left = itertools.count(len(watches) - 1, -1)

        def ended(watch: Ack[Any]) -> None:
            with self._writing:
                if watch.succeeded and not next(left) and not self._is_closed:
                    write("over", fd=self.writer)

        for watch in watches:
            watch.add_done_callback(ended)

    @property
    def is_over(self) -> bool:
        """True once all tasks of every `say_when_over` have ended: nothing more need come."""
        return len(self.of("over")) == self._overs

    def wait_for_more(self, seen: int) -> int:
        """Wait until more than `seen` records are there; return how many there are.

        Only where one is certain to come: after the last of a body only `over` is.
        """
        with self._news:
            assert self._news.wait_for(lambda: len(self._records) > seen, WAIT_S), f"nothing new after {seen} records"
            return len(self._records)

    def close(self) -> None:
        """Read to the end; every worker process must have ended."""
        with self._writing:
            self._is_closed = True
            os.close(self.writer)
        self._thread.join(WAIT_S)


def write(what: str, note: str = "", *, fd: int | None = None) -> None:
    """In a body: write one line."""
    attempt = current()
    task_id, number = (0, 0) if attempt is None else attempt.task.claim
    line = f"{what} {task_id} {number} {os.getpid()} {time.monotonic():.6f} {note}\n"
    os.write(int(os.environ["FLEET_JOURNAL"]) if fd is None else fd, line.encode())


@dataclass(frozen=True, slots=True)
class Handlers:
    """The handlers that worker processes and tests know under the same names."""

    app: App
    leaf: Any
    leaf_sync: Any
    spread: Any
    join: Any
    hold: Any
    hold_sync: Any
    late: Any
    stubborn: Any
    mark: Any


def handlers(app: App) -> Handlers:
    """Register the handlers of the crash tests on `app`."""
    return Handlers(app, **graph_handlers(app), **endless_handlers(app), **late_handlers(app))


def graph_handlers(app: App) -> dict[str, Any]:
    """Register what a graph with steps, children, fan-out and fan-in is made of."""

    @app.task(name="leaf")
    async def leaf(n: int) -> int:
        """Two steps; the journal says when each ran and when it was acknowledged as saved."""
        write("start")

        async def half(which: int) -> int:
            write("ran", f"half-{which}")
            await asyncio.sleep(0.02)
            return n * 10 + which

        total = 0
        for which in (1, 2):
            total += await step(half, which)
            write("saved", f"half-{which}")
        write("end")
        return total

    @app.task(name="leaf_sync")
    def leaf_sync(n: int) -> int:
        write("start")

        def whole(n: int) -> int:
            write("ran", "whole")
            time.sleep(0.03)
            return n

        value = step(whole, n).result()
        write("saved", "whole")
        write("end")
        return value

    @app.task(name="spread")
    async def spread(n: int) -> int:
        """Three children; it waits for them, and after a crash finds them again."""
        write("start")
        children = leaf.options(crashes_max=1000).map(range(n, n + 3))
        total = sum(await children)
        write("end")
        return total

    @app.task(name="join")
    def join(parts: list[int]) -> int:
        write("start")
        write("end")
        return sum(parts)

    return {"leaf": leaf, "leaf_sync": leaf_sync, "spread": spread, "join": join}


def endless_handlers(app: App) -> dict[str, Any]:
    """Register bodies that do not end by themselves, and say how they were stopped."""

    @app.task(name="hold")
    async def hold() -> str:
        """The first attempt waits for ever; it notes how it was stopped."""
        write("start")
        attempt = current()
        if attempt is not None and attempt.task.attempt > 1:
            return "done by another"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            write("stopped")
            raise
        return "never"

    @app.task(name="hold_sync")
    def hold_sync() -> str:
        """The same in an OS thread, in many short Python instructions; it may be stopped at the first of them."""
        try:
            write("start")
            attempt = current()
            while attempt is None or attempt.task.attempt == 1:
                time.sleep(0.01)
        except AttemptCancelled:
            write("stopped")
            raise
        return "done by another"

    @app.task(name="stubborn")
    async def stubborn() -> str:
        """Does not care about being cancelled by us; the second time is `asyncio.run`, which would wait for ever."""
        write("start")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            write("ignored")
        await asyncio.Event().wait()
        return "never"

    return {"hold": hold, "hold_sync": hold_sync, "stubborn": stubborn}


def late_handlers(app: App) -> dict[str, Any]:
    """Register what writes after it was frozen, and what only leaves a mark."""

    @app.task(name="late")
    async def late(how: str, sleep_s: float) -> str:
        """The first attempt writes when it wakes up, told to stop or not: its ending, a step or children."""
        write("start")
        attempt = current()
        number = 0 if attempt is None else attempt.task.attempt
        if number == 1:
            try:
                await asyncio.sleep(sleep_s)
            except asyncio.CancelledError:
                write("told")
            write("woke")
        if how == "step":

            def which() -> int:
                return number

            value = await step(which)
            write("step", str(value))
        if how == "child":
            child = mark.submit(f"child of attempt {number}")
            write("child", await child)
        return f"attempt {number}"

    @app.task(name="mark")
    async def mark(note: str) -> str:
        write("start", note)
        return note

    return {"late": late, "mark": mark}


# ---------------------------------------------------------------- processes


@dataclass(slots=True)
class Fleet:
    """Worker processes on one database, and the journal of their bodies."""

    url: str
    journal: Journal = field(default_factory=Journal)
    settings: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    forked: list[Forked] = field(default_factory=list)

    def start(self, *, argv: Sequence[str] = (), **environ: str) -> subprocess.Popen[bytes]:
        """Start one worker process, by another command line if it is given; `wait_ready` waits until it works."""
        process = subprocess.Popen(
            argv or [sys.executable, "-m", "tests.crash.fleet"],
            cwd=ROOT,
            env=self._environ(environ),
            pass_fds=[self.journal.writer],
        )
        self.processes.append(process)
        return process

    def fork(self, nursery: Nursery, **environ: str) -> Forked:
        """Start one worker process that is only there to be killed: in a tenth of the time."""
        journal = {self.journal.writer: self.journal.writer}
        process = nursery.start("tests.crash.fleet:run", environ=self._environ(environ), descriptors=journal)
        self.forked.append(process)
        return process

    def _environ(self, more: dict[str, str]) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(sennit.__file__).parents[1]), str(ROOT)]),
            "SENNIT_DB": self.url,
            "SENNIT_DURABILITY": "normal",
            "FLEET_JOURNAL": str(self.journal.writer),
            **self.settings,
            **more,
        }

    def start_ready(self, n: int = 1, **environ: str) -> list[subprocess.Popen[bytes]]:
        """Start `n` processes and wait until they work."""
        processes = [self.start(**environ) for _ in range(n)]
        self.journal.wait_ready(*processes)
        return processes

    def close(self) -> None:
        """End every process, frozen ones too, and read the journal to its end."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for forked in self.forked:
            forked.kill()
        self.journal.close()


@contextmanager
def fleet(url: str, **settings: str) -> Iterator[Fleet]:
    """Yield a fleet without processes; settings as `SENNIT_LEASE_S="0.5"`."""
    some = Fleet(url, settings=settings)
    try:
        yield some
    finally:
        some.close()


def client(url: str, *, durability: str = "normal") -> Handlers:
    """Return the same handlers on an app that only submits. `normal`: a server that crashes loses its last moments."""
    return handlers(App(url, durability=durability))


def values(handles: list[Handle[Any]], timeout_s: float = WAIT_S) -> list[Any]:
    """Return all results."""
    return [handle.result(timeout_s) for handle in handles]


def run() -> None:
    """Be a worker process until SIGINT, SIGTERM or worse."""
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        write("left", "interrupted")


async def main() -> None:
    """Work until SIGTERM."""
    app = App()
    handlers(app)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with app:
        write("ready")
        await over.wait()
    write("left")


if __name__ == "__main__":
    run()
