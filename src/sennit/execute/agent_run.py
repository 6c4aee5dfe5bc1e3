"""One run of an agent: its process, its lines, its time.

    launch ─► spawn ─► lines of stdout, stderr ─► events ─► on_event
                │            │                      └─ result ─► linger_s, then its end is ours
                │            └─ nothing for idle_s ─► stop        wall_s ─► stop
                └─► exited, all lines read ─► the adapter's verdict

What it writes is in files before anybody reads it, so a reader that is slow, or none at all, holds nothing up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from sennit.execute.adapters.base import Adapter, AgentRun, Exit, Reader
from sennit.execute.agent_environ import environment, secrets_in
from sennit.execute.agent_output import tail
from sennit.execute.supervisor import AgentProcess, ProcessSpec, Supervisor
from sennit.model.agent import AgentEvent, Ceilings, RunEnd
from sennit.sync.clock import monotonic_s

__all__ = ["Finished", "RunPlan", "run_agent"]

# What a body may take to end its agent when it is interrupted: the worker waits one second for bodies at a stop.
INTERRUPT_TERM_S: Final = 0.5


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended: what the adapter makes of it, and what the kernel says."""

    end: RunEnd
    exit: Exit
    duration_s: float


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one run needs besides its adapter.

    Attributes:
        environ: added to what passes the allow-list.  passes: names that pass besides the adapter's own.
        secrets: values that are never written down, besides those of the adapter's variables.
    """

    run: AgentRun
    ceilings: Ceilings
    environ: Mapping[str, str] = {}
    passes: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


async def run_agent(
    supervisor: Supervisor,
    adapter: Adapter,
    plan: RunPlan,
    *,
    on_event: Callable[[AgentEvent], None],
    on_started: Callable[[AgentProcess], None] = lambda _: None,
) -> Finished:
    """Run it to its end. When this is cancelled the whole tree of its processes is ended first.

    Raises:
        AgentMissing, AgentUnsupported, AgentError: nothing was started.
    """
    run, ceilings = plan.run, plan.ceilings
    launch = adapter.launch(run)
    environ = environment(os.environ, passes=(*adapter.passes, *plan.passes), added={**launch.environ, **plan.environ})
    spec = ProcessSpec(
        argv=launch.argv,
        environ=environ,
        cwd=run.cwd,
        folder=run.folder,
        stdin=launch.stdin,
        talks=launch.talks,
        secrets=(*secrets_in(environ, adapter.secrets), *plan.secrets),
        memory_bytes_max=ceilings.memory_bytes_max,
        output_bytes_max=ceilings.output_bytes_max,
    )
    begun_s = monotonic_s()
    process = await supervisor.spawn(spec)
    reading = _Reading(process, adapter.reader(run), ceilings, on_event, talks=launch.talks)
    try:
        on_started(process)
        reading.begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(reading.follow("stdout.log"))
            group.create_task(reading.follow("stderr.log"))
        ended = await asyncio.shield(process.exited)
    except BaseException as error:
        process.stop("stopped", term_s=min(ceilings.term_s, INTERRUPT_TERM_S))
        await asyncio.shield(process.exited)
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            raise error.exceptions[0] from None
        raise
    finally:
        reading.close()
    return Finished(end=reading.reader.end(ended), exit=ended, duration_s=monotonic_s() - begun_s)


class _Reading:
    """Follows one process: feeds its reader, answers it, keeps its time."""

    def __init__(
        self,
        process: AgentProcess,
        reader: Reader,
        ceilings: Ceilings,
        on_event: Callable[[AgentEvent], None],
        *,
        talks: bool,
    ) -> None:
        self._process = process
        self.reader = reader
        self._ceilings = ceilings
        self._on_event = on_event
        self._talks = talks
        self._loop = asyncio.get_running_loop()
        self._event_s = self._loop.time()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def begin(self) -> None:
        """Say what is to be said first, and set the ceilings of time."""
        self._say()
        if self._ceilings.wall_s:
            self._timers["wall"] = self._loop.call_later(self._ceilings.wall_s, self._stop, "wall")
        if self._ceilings.idle_s:
            self._timers["idle"] = self._loop.call_later(self._ceilings.idle_s, self._check_idle)

    def close(self) -> None:
        """No timer is left."""
        for timer in self._timers.values():
            timer.cancel()

    async def follow(self, name: str) -> None:
        """Feed the reader with one of the two files until the process has ended and all of it is read."""
        feed = self.reader.feed if name == "stdout.log" else self.reader.feed_error
        async for line in tail(self._process.folder / name, until=self._process.exited):
            for event in feed(line):
                self._note(event)
            self._say()

    def _note(self, event: AgentEvent) -> None:
        self._event_s = self._loop.time()
        self._on_event(event)
        if event.kind == "result" and "linger" not in self._timers:
            if self._talks:
                self._process.close_stdin()
            self._timers["linger"] = self._loop.call_later(self._ceilings.linger_s, self._stop, "linger")

    def _say(self) -> None:
        data = self.reader.to_say()
        if data and self._talks and not self._process.exited.done():
            self._process.write(data)

    def _check_idle(self) -> None:
        left_s = self._event_s + self._ceilings.idle_s - self._loop.time()
        if left_s <= 0:
            self._stop("idle")
        else:
            self._timers["idle"] = self._loop.call_later(left_s, self._check_idle)

    def _stop(self, cause: str) -> None:
        self._process.stop(cause, term_s=self._ceilings.term_s)
