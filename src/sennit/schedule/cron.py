"""Schedules as arithmetic: when a cron expression fires next, and what to do about the runs nobody was there for.

Pure: the clock comes in, the runs come out. A run is named by its nominal time, so that all processes that look at a
schedule name it alike and the store accepts it once. Jitter shifts when a run is submitted, never its name.

Days with a clock change follow Debian's cron, for expressions that name minute and hour: a time that the change skips
runs right after the gap, a time that it repeats runs once, the first time. `*/15 * * * *` and the like run by elapsed time.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from sennit.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CronSpec", "due_runs", "next_after", "offset_us"]

LATE_US_MAX: Final = 60 * 1_000_000
"""Up to here a run is late, beyond it was missed: a busy or just restarted process still runs the minute it is in."""

RUNS_MAX: Final = 100
"""The most runs one call hands out, so that a year of missed minutes does not become one transaction."""

JITTER_S_MAX: Final = 24 * 3600.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class CronSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One schedule.

    Attributes:
        name: what it is called; runs of one name are one schedule, whoever computes them.
        expression: five fields (minute hour day month weekday), or six with seconds in front.
        tz: the IANA time zone in which the fields are read.
        missed: of the runs that passed while no process was up: `skip` all, make up for them `once` (the latest), or
            submit `all`, oldest first.
        jitter_s: the schedule is submitted late by a part of this many seconds, always the same for a name; it keeps
            a hundred schedules of `0 * * * *` from starting together.
    """

    name: str
    expression: str
    tz: str = "UTC"
    missed: Literal["skip", "once", "all"] = "skip"
    jitter_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what could never fire or not be read.

        Raises:
            SettingsError: with what, why and fix.
        """
        if not self.name or not self.name.isprintable():
            raise SettingsError(
                f"{self.name!r} cannot name a schedule", why="its runs are stored by it", fix="use printable text"
            )
        if self.missed not in ("skip", "once", "all"):
            raise SettingsError(
                f"schedule {self.name!r}: missed={self.missed!r} is not a policy", fix="use skip, once or all"
            )
        if not 0 <= self.jitter_s <= JITTER_S_MAX:
            raise SettingsError(
                f"schedule {self.name!r}: jitter_s={self.jitter_s} is out of bounds",
                why="a delay cannot be negative, and one over a day would hide the schedule",
                fix=f"use 0 to {JITTER_S_MAX:.0f} seconds",
            )
        _check_expression(self.name, self.expression, _zone(self.tz))


def next_after(spec: CronSpec, after: datetime) -> datetime:
    """Return the first nominal run later than `after`, in the time zone of `spec`.

    Args:
        spec: the schedule.
        after: an aware datetime of any time zone.

    Raises:
        SettingsError: `after` is naive: on the day of a clock change it would name two moments.
    """
    if after.tzinfo is None:
        raise SettingsError(
            f"{after.isoformat()} has no time zone",
            why="the next run depends on the exact moment",
            fix="pass an aware datetime, for example datetime.now(UTC)",
        )
    return _from_us(next(_runs_after(spec, _to_us(after))), _zone(spec.tz))


def due_runs(spec: CronSpec, *, last_us: int, now_us: int) -> tuple[list[int], int]:
    """Return the runs to submit now, by nominal time, oldest first, and when to ask again.

    At most `RUNS_MAX` runs come at once. If more are due under `missed="all"`, the returned time is not after `now_us`:
    ask again right away, with `last_us` set to the last run returned. Nothing is dropped in silence.

    Args:
        spec: the schedule.
        last_us: nominal time of the last run submitted, or when the schedule was created; µs since the epoch.
        now_us: the store's clock. If it was set back before `last_us`, no run is repeated.
    """
    late_us = offset_us(spec)
    until_us = now_us - late_us
    if spec.missed == "once":
        runs_us = _latest(spec, last_us, until_us)
    else:
        since_us = last_us if spec.missed == "all" else max(last_us, until_us - LATE_US_MAX - 1)
        upcoming = takewhile(lambda run_us: run_us <= until_us, _runs_after(spec, since_us))
        runs_us = [run_us for run_us, _ in zip(upcoming, range(RUNS_MAX), strict=False)]
    truncated = len(runs_us) == RUNS_MAX
    done_us = max([last_us, *runs_us]) if truncated else max(last_us, until_us)
    return runs_us, next(_runs_after(spec, done_us)) + late_us


def _latest(spec: CronSpec, last_us: int, until_us: int) -> list[int]:
    """Return the latest run in (last_us, until_us], as a list of at most one.

    Walking backwards finds a run near the end without visiting a year of missed minutes. Around a clock change the two
    directions disagree about some times, so the walk only gives the place from where to go forward.
    """
    zone = _zone(spec.tz)
    backwards = map(_to_us, CronSim(spec.expression, _from_us(until_us, zone), reverse=True))
    start_us = next((run_us - 1 for run_us in backwards if run_us <= until_us), last_us)
    latest_us = last_us
    for run_us in _runs_after(spec, max(start_us, last_us)):
        if run_us > until_us:
            break
        latest_us = run_us
    return [latest_us] if latest_us > last_us else []


def _runs_after(spec: CronSpec, after_us: int) -> Iterator[int]:
    """Yield the nominal runs later than `after_us`, strictly rising.

    The filter is needed: for a time that a clock change repeats, the simulator names the first of the two moments even
    when asked from between them, and times inside a skipped hour fall on the same moment.
    """
    for run in CronSim(spec.expression, _from_us(after_us, _zone(spec.tz))):
        run_us = _to_us(run)
        if run_us > after_us:
            after_us = run_us
            yield run_us


def offset_us(spec: CronSpec) -> int:
    """Return how late this schedule is submitted: drawn from its name, so that every process draws the same."""
    if not spec.jitter_s:
        return 0
    draw = int.from_bytes(hashlib.blake2b(spec.name.encode(), digest_size=8).digest(), "big")
    return int(spec.jitter_s * 1_000_000 * draw / 2**64)


@lru_cache(maxsize=256)
def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # The simulator has a fast path for this very object.
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        raise SettingsError(
            f"{name!r} is not a time zone this system knows",
            why=str(error),
            fix="use an IANA name such as Europe/Berlin; on a system without time zone data install the tzdata package",
        ) from error


def _check_expression(name: str, expression: str, zone: tzinfo) -> None:
    try:
        next(CronSim(expression, datetime(2000, 1, 1, tzinfo=zone)))
    except CronSimError as error:
        raise SettingsError(
            f"schedule {name!r}: {expression!r} is not a cron expression: {error}",
            why="a field is malformed, out of its range, or names a day that no month has",
            fix="give minute, hour, day of month, month and weekday, for example '30 2 * * MON-FRI'",
        ) from error
    except StopIteration:
        raise SettingsError(
            f"schedule {name!r}: {expression!r} does not fire within 50 years",
            why="its day, month and weekday do not come together",
            fix="check it against a calendar; most schedules name a day of month or a weekday, not both",
        ) from None


def _to_us(moment: datetime) -> int:
    return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def _from_us(moment_us: int, zone: tzinfo) -> datetime:
    return (_EPOCH + timedelta(microseconds=moment_us)).astimezone(zone)
