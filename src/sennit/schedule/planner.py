"""The planner: submits the runs of cron schedules, each once however many processes run.

    stored next_us ──alarm──► due_runs (pure) ──► store.run_schedule: move next_us and submit, in one transaction

Every process arms the same alarm; the first to move the stored time submits, the others find it moved. Times here are
the wall clock, because that is what a schedule means; the alarm is armed on the steady clock for the difference.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sennit.errors import StoreError
from sennit.model.task import TaskSpec
from sennit.schedule.cron import CronSpec, due_runs, offset_us
from sennit.schedule.timers import Alarm, Timers
from sennit.store.protocol import Store
from sennit.sync.wallclock import WallClockWatch

_log = logging.getLogger("sennit")

_RETRY_US = 5_000_000


@dataclass(frozen=True, slots=True)
class Planned:
    """One schedule and what a run of it submits; `make(run_us)` gets the nominal time, wall clock."""

    spec: CronSpec
    make: Callable[[int], TaskSpec]


class Planner:
    """All schedules of one process. All methods belong to its event loop."""

    def __init__(self, store: Store, schedules: Sequence[Planned], *, wall_us: Callable[[], int]) -> None:
        self._store = store
        self._schedules = {planned.spec.name: planned for planned in schedules}
        self._wall_us = wall_us
        self._held: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        self._alarm: Alarm[str] = Alarm(Timers(), now_us=store.now_us, on_due=self._due, loop=loop)
        self._clock = WallClockWatch(loop, self._clock_set) if schedules else None

    async def open(self) -> None:
        """Remember schedules the store does not know yet, and arm the alarm for all."""
        now_us = self._wall_us()
        for name, planned in self._schedules.items():
            _, next_us = due_runs(planned.spec, last_us=now_us, now_us=now_us)
            self._arm(name, await self._store.put_schedule(name, next_us))

    def _clock_set(self) -> None:
        """Somebody set the wall clock: the same times are now nearer or farther away."""
        for name, next_us in list(self._held.items()):
            self._arm(name, next_us)

    async def close(self) -> None:
        """Submit nothing any more."""
        if self._clock is not None:
            self._clock.close()
        self._alarm.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _arm(self, name: str, next_us: int) -> None:
        self._held[name] = next_us
        self._alarm.set(name, self._store.now_us() + next_us - self._wall_us())

    def _due(self, names: list[str]) -> None:
        for name in names:
            task = asyncio.get_running_loop().create_task(self._guarded(name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _guarded(self, name: str) -> None:
        try:
            await self._run(name)
        except StoreError as error:
            _log.error("schedule %r could not run, next try in %g s: %s", name, _RETRY_US / 1_000_000, error)
            self._alarm.set(name, self._store.now_us() + _RETRY_US)

    async def _run(self, name: str) -> None:
        planned, due_us, now_us = self._schedules[name], self._held[name], self._wall_us()
        if now_us < due_us:  # the wall clock was set back
            self._arm(name, due_us)
            return
        last_us = due_us - offset_us(planned.spec) - 1
        runs, next_us = due_runs(planned.spec, last_us=last_us, now_us=now_us)
        if next_us <= now_us:
            _log.warning("schedule %r has missed many runs; submitting %d of them now, more follow", name, len(runs))
        specs = [planned.make(run_us) for run_us in runs]
        if await self._store.run_schedule(name, due_us=due_us, next_us=next_us, specs=specs):
            self._arm(name, next_us)
        else:
            self._arm(name, await self._store.put_schedule(name, next_us))
