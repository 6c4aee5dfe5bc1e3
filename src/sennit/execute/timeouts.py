"""The time-outs of an attempt: in all, without a sign of life, and learnt from others. Each is one timer of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from sennit.execute.body import Runtime
from sennit.execute.cluster import CpuPool
from sennit.execute.latency import Latencies
from sennit.execute.running import Running
from sennit.execute.verdict import options_of

__all__ = ["Timeouts"]


class Timeouts:
    """Belongs to the worker's event loop.

    Args:
        interrupt: called with an attempt whose time is up, and the reason.
    """

    def __init__(self, runtime: Runtime, processes: CpuPool, interrupt: Callable[[Running, str], None]) -> None:
        self._runtime = runtime
        self._processes = processes
        self._interrupt = interrupt
        self._loop = asyncio.get_running_loop()
        self._latencies = Latencies(self._loop)

    def arm(self, running: Running) -> None:
        """Set the time-outs of an attempt."""
        overrides, body = options_of(running.task), running.body
        timeout_s = body.timeout_s if overrides.timeout_s is None else overrides.timeout_s
        idle_s = body.idle_timeout_s if overrides.idle_timeout_s is None else overrides.idle_timeout_s
        if timeout_s is not None:
            reason = f"the attempt ran longer than timeout_s={timeout_s:g}"
            running.timers.append(self._loop.call_later(timeout_s, self._over_time, running, reason))
        if body.adaptive_timeout is not None and overrides.timeout_s is None:
            running.watch = self._latencies.watch(
                running.task.handler,
                body.adaptive_timeout,
                give_up=partial(self._over_time, running),
                is_whole=not running.task.steps,
            )
        if idle_s is not None:
            running.timers.append(self._loop.call_later(idle_s, self._check_idle, running, idle_s))

    def _over_time(self, running: Running, reason: str) -> None:
        if running.watch is not None and running.reason is None:
            running.watch.timed_out()
        self._time_out(running, reason)

    def _time_out(self, running: Running, reason: str) -> None:
        """What stands in line for its provider or its cluster has not failed: it is given back, and waits without a slot."""
        in_line = running.scope is not None and running.scope.in_line
        in_line |= running.job is not None and self._processes.in_line(running.job)
        self._interrupt(running, "in line" if in_line else reason)

    def _check_idle(self, running: Running, idle_s: float) -> None:
        scope = running.scope if running.job is None else None  # a process gives no signs of life
        beat_us = scope.beat_us if scope is not None else self._runtime.now_us()
        left_s = idle_s - (self._runtime.now_us() - beat_us) / 1_000_000
        if left_s <= 0:
            self._time_out(running, f"no sign of life for idle_timeout_s={idle_s:g}")
        else:
            running.timers.append(self._loop.call_later(left_s, self._check_idle, running, idle_s))
