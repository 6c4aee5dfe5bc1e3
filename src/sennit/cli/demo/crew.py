"""The worker processes of the demo: started, watched, one of them killed, all of them stopped.

    crew(…) ─► watch: a worker that ends by itself is an error, one that somebody killed is one more kill
            ─► kill_one: SIGSTOP, look if it holds tasks, then SIGKILL (or SIGCONT and another)
            ─► leaving: stdin closed ─► bodies drain ─► exit; SIGKILL for what is left

Nobody looks whether a worker is alive: the operating system tells when one has ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from sennit.errors import SennitError
from sennit.store.protocol import Store
from sennit.sync.clock import uptime_us

STOP_S = 5.0
_TAIL_CHARS = 2000


class Killed(NamedTuple):
    """A worker process that was killed, and how many tasks it held then."""

    pid: int
    held: int


class Crew:
    """Some worker processes of one store; `workermain` says what each of them is.

    Attributes:
        processes: in the order of their start.
        killed_us: pid → uptime at which it was killed, by us or by somebody else.
    """

    def __init__(self, log: Path) -> None:
        self.processes: list[asyncio.subprocess.Process] = []
        self.killed_us: dict[int, int] = {}
        self._log = log

    async def kill_one(self, store: Store) -> Killed | None:
        """Kill -9 the worker that holds most; None when none holds a task just now, or only one is left.

        It is stopped first, so that what it holds cannot end between the look and the kill.
        """
        alive = [process.pid for process in self._alive()]
        if len(alive) < 2:
            return None
        held = await self._held(store)
        for pid in sorted(alive, key=lambda pid: -held.get(pid, 0)):
            os.kill(pid, signal.SIGSTOP)
            holds = (await self._held(store)).get(pid, 0)
            if holds:
                os.kill(pid, signal.SIGKILL)
                self.killed_us[pid] = uptime_us()
                return Killed(pid, holds)
            os.kill(pid, signal.SIGCONT)
        return None

    def _alive(self) -> list[asyncio.subprocess.Process]:
        return [process for process in self.processes if process.returncode is None]

    async def _held(self, store: Store) -> dict[int, int]:
        return {worker.pid: worker.running for worker in await store.workers() if worker.role == "worker"}

    async def watch(self) -> None:
        """Note who is killed, until nobody can go on.

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
        finally:
            for future in waiting:
                future.cancel()

    def _ended(self, process: asyncio.subprocess.Process) -> SennitError:
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
            if process.stdin is not None:
                process.stdin.close()
        if not alive:
            return
        _, late = await asyncio.wait([asyncio.ensure_future(p.wait()) for p in alive], timeout=STOP_S)
        for process in alive:
            if process.returncode is None:
                process.kill()
        if late:
            await asyncio.wait(late)


@asynccontextmanager
async def crew(url: str, *, n: int, environ: Mapping[str, str], log: Path) -> AsyncIterator[Crew]:
    """Start `n` workers of the store at `url`; what they print goes to the file `log`. On leaving they are stopped.

    They are in a session of their own: a Ctrl-C in the terminal reaches the director alone, which then stops them.
    """
    started = Crew(log)
    try:
        with log.open("ab") as output:
            for _ in range(n):
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", "sennit.cli.demo.workermain", url,
                    stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output, env=environ, start_new_session=True,
                )  # fmt: skip
                started.processes.append(process)
        yield started
    finally:
        await started.dismiss()
