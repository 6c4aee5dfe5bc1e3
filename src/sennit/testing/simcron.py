"""Schedules in a simulation: the real planner by the simulated wall clock, and the book of what has fired.

The kernel's timer descriptor, which tells the planner that somebody has set the clock, is the loop's word here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, Literal, cast

from sennit.model.task import TaskSpec
from sennit.schedule.cron import CronSpec
from sennit.schedule.planner import Planned, Planner
from sennit.store.protocol import Store
from sennit.testing.simloop import SimLoop

__all__ = ["CronBook", "SimPlanner", "draw_schedules"]

_PERIODS_S: Final = (6, 10, 30)
_SECOND_US: Final = 1_000_000


def draw_schedules(random: Random) -> tuple[CronSpec, ...]:
    """Draw none, or one or two that fire every few seconds."""
    policies: tuple[Literal["skip", "once", "all"], ...] = ("skip", "once", "all")
    return tuple(
        CronSpec(name=f"every {period_s} s", expression=f"*/{period_s} * * * * *", missed=random.choice(policies))
        for period_s in random.sample(_PERIODS_S, random.choice((0, 0, 0, 1, 2)))
    )


class SimPlanner(Planner):
    """`schedule.planner.Planner` on a simulated loop."""

    def __init__(self, store: Store, schedules: Sequence[Planned], *, wall_us: Callable[[], int]) -> None:
        del wall_us  # the real one
        loop = cast("SimLoop", asyncio.get_running_loop())
        super().__init__(store, (), wall_us=loop.now_us)
        self._schedules = {planned.spec.name: planned for planned in schedules}
        self._unwatch = loop.watch_clock(self._clock_set)

    async def close(self) -> None:
        """Submit nothing any more."""
        self._unwatch()
        await super().close()


@dataclass(slots=True)
class _Fired:
    """What is known of one schedule: its period, when it had to fire first, and the nominal times it has fired for."""

    period_us: int
    policy: str
    first_us: int | None = None
    last_us: int = 0
    runs_us: set[int] = field(default_factory=set)


class CronBook:
    """The nominal times for which each schedule was submitted, by whichever process.

    Args:
        object_to: called with the sentence when a promise is broken.
    """

    def __init__(self, object_to: Callable[[str], object]) -> None:
        self._object_to = object_to
        self._fired: dict[str, _Fired] = {}
        self._made: dict[int, int] = {}

    def plan(self, specs: Iterable[CronSpec]) -> None:
        """Note what there is."""
        for spec in specs:
            period_s = int(spec.expression.split()[0].removeprefix("*/"))
            self._fired[spec.name] = _Fired(period_s * _SECOND_US, spec.missed)

    def made(self, spec: TaskSpec, run_us: int) -> TaskSpec:
        """Note for which nominal time a task was made; return it."""
        self._made[spec.ref.id] = run_us
        return spec

    def remembered(self, name: str, next_us: int) -> None:
        """The store holds this as the next run; the first answer is when the schedule begins."""
        fired = self._fired[name]
        if fired.first_us is None:
            fired.first_us, fired.last_us = next_us, next_us - fired.period_us

    def submitted(self, name: str, specs: Sequence[TaskSpec]) -> None:
        """Check and note runs that were stored: no nominal time twice, none of another schedule, with `all` none left out."""
        fired = self._fired[name]
        for run_us in (self._made[spec.ref.id] for spec in specs):
            if run_us in fired.runs_us:
                self._object_to(f"schedule {name!r} fires twice for {run_us}")
            if run_us % fired.period_us or run_us < (fired.first_us or run_us):
                self._object_to(f"schedule {name!r} fires for {run_us}, which is none of its times")
            if fired.policy == "all" and run_us != fired.last_us + fired.period_us:
                self._object_to(f"schedule {name!r} fires for {run_us} after {fired.last_us}: it left some out")
            fired.runs_us.add(run_us)
            fired.last_us = run_us

    def faults(self, *, now_us: int, late_us_max: int) -> list[str]:
        """Say which schedules have not fired for what was due, `late_us_max` ago or longer, by the wall clock."""
        return [
            f"schedule {name!r} has fired for {fired.last_us}, and by {now_us} it should have again"
            for name, fired in self._fired.items()
            if fired.first_us is not None and fired.last_us + fired.period_us + late_us_max < now_us
        ]
