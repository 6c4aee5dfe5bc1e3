"""Runs OS threads one at a time and draws from a seed who goes on: the races of locks and queues, found and repeatable.

    OS thread 0:  line  line ─┐        at each line of a watched file, and at each lock operation, the one that runs
    OS thread 1:              └► line ─┐      may have to hand the baton on; the seed says when and to whom
    OS thread 2:                       └► acquire: held by 0 ─► 0 or 1 goes on; nobody can: OsThreadDeadlock

They are real OS threads and real `threading` code; only locks, sleeping and the monotonic clock are replaced while a
schedule is open (`preempt_parts`). Time is virtual: a time-out comes when nothing else can run; one of a second or less now and then earlier.

    def make_case() -> Case:
        counter = Counter()                                  # made inside the schedule, so that its locks belong to it
        return Case([counter.add, counter.add], lambda: counter.n == 2)

    explore(make_case, seeds=range(300))                     # SeedFailed names the seed: explore(make_case, seeds=[17])

Plain stress is a false green: the interpreter switches at few places, 5 ms apart. What this cannot see: switches inside
one C call, the weaker memory order of free-threaded builds, and code that blocks outside of `threading`, `queue` and
`time` (sockets, asyncio), which is reported as stuck.

Source: one OS thread at a time under a controlled scheduler is CHESS (Musuvathi et al., OSDI 2008); drawing few
preemptions rather than many follows PCT (Burckhardt et al., ASPLOS 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

from sennit.errors import SeedFailed, UsageError
from sennit.testing.preempt_parts import open_schedule
from sennit.testing.preempt_schedule import STEP_LIMIT, Schedule

__all__ = ["Case", "Explored", "Schedule", "explore", "point"]


def _nothing() -> None:
    """Check nothing: that all bodies end, and raise nothing, is enough."""


class Case(NamedTuple):
    """What one seed runs: the bodies, each in an OS thread of its own, and what must hold when all have ended."""

    bodies: Sequence[Callable[[], object]]
    check: Callable[[], object] = _nothing  # False, or an exception, fails the seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """What `explore` has covered: seeds, schedules that differ, and points passed over all of them."""

    seeds: int
    schedules: int
    steps: int


def explore(
    make_case: Callable[[], Case | tuple[Sequence[Callable[[], object]], Callable[[], object]]],
    seeds: Iterable[int] = range(300),
    *,
    watch: Sequence[ModuleType | str] = (),
    opcodes: bool = False,
    step_limit: int = STEP_LIMIT,
) -> Explored:
    """Run the case under each seed; it is made anew each time, inside the schedule.

    Args:
        make_case: returns a `Case`, or a tuple (bodies, check).
        watch, opcodes, step_limit: as of `Schedule`.

    Raises:
        SeedFailed: the first seed under which a body raises, the bodies deadlock, or the check fails.
    """
    schedules, steps, count = set(), 0, 0
    for seed in seeds:
        schedule = Schedule(seed, watch=watch, opcodes=opcodes, step_limit=step_limit)
        try:
            with schedule:
                bodies, check = make_case()
                schedule.run(bodies)
                if check() is False:
                    raise AssertionError("the check is False")  # noqa: TRY301 - the seed is what its caller wants to know
        except UsageError:
            raise
        except Exception as error:
            raise _failure(make_case, schedule, error, watch) from error
        schedules.add(schedule.fingerprint)
        steps += schedule.steps
        count += 1
    return Explored(seeds=count, schedules=len(schedules), steps=steps)


def _failure(
    make_case: Callable[..., object], schedule: Schedule, error: Exception, watch: Sequence[object]
) -> SeedFailed:
    name = getattr(make_case, "__qualname__", repr(make_case))
    options = f", watch=[{', '.join(getattr(item, '__name__', repr(item)) for item in watch)}]" if watch else ""
    options += ", opcodes=True" if schedule.opcodes else ""
    return SeedFailed(
        f"{name} fails with seed {schedule.seed}: {type(error).__name__}: {error}\n"
        f"  last switches of {schedule.steps} steps:\n    " + "\n    ".join(schedule.trace()),
        seed=schedule.seed,
        reproduction=f"explore({name}, seeds=[{schedule.seed}]{options})",
        trace=schedule.trace(),
    )


def point() -> None:
    """Let the schedule switch here; does nothing outside of one. For code whose lines are not watched."""
    schedule = open_schedule()
    if schedule is not None and schedule.here() is not None:
        schedule.point()
