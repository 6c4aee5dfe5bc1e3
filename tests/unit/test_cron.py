"""Schedules as arithmetic: clock changes, missed runs, and expressions that can never fire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.errors import SettingsError
from sennit.schedule.cron import RUNS_MAX, CronSpec, due_runs, next_after

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
BERLIN = ZoneInfo("Europe/Berlin")
NOON_US = int(datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp()) * 1_000_000


def runs_of(spec: CronSpec, after: datetime, count: int) -> list[str]:
    runs = []
    for _ in range(count):
        after = next_after(spec, after)
        runs.append(after.isoformat())
    return runs


# ---------------------------------------------------------------- the next run


def test_the_next_run_is_later_than_asked_even_on_the_dot() -> None:
    spec = CronSpec(name="n", expression="0 12 * * *")

    assert runs_of(spec, datetime(2026, 3, 2, 12, tzinfo=UTC), 1) == ["2026-03-03T12:00:00+00:00"]
    assert runs_of(spec, datetime(2026, 3, 2, 11, 59, 59, 999_999, tzinfo=UTC), 1) == ["2026-03-02T12:00:00+00:00"]


def test_fields_are_read_in_the_time_zone_of_the_schedule() -> None:
    spec = CronSpec(name="n", expression="0 9 * * MON-FRI", tz="America/New_York")

    assert runs_of(spec, datetime(2026, 1, 9, 20, tzinfo=UTC), 1) == ["2026-01-12T09:00:00-05:00"]


def test_a_time_that_spring_skips_runs_right_after_the_gap() -> None:
    spec = CronSpec(name="n", expression="30 2 * * *", tz="Europe/Berlin")

    assert runs_of(spec, datetime(2026, 3, 28, 3, tzinfo=BERLIN), 2) == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]


def test_two_times_that_spring_skips_are_one_run() -> None:
    spec = CronSpec(name="n", expression="0,30 2 * * *", tz="Europe/Berlin")

    assert runs_of(spec, datetime(2026, 3, 28, 12, tzinfo=BERLIN), 2) == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:00:00+02:00",
    ]


def test_a_time_that_autumn_repeats_runs_once() -> None:
    spec = CronSpec(name="n", expression="30 2 * * *", tz="Europe/Berlin")

    assert runs_of(spec, datetime(2026, 10, 24, 12, tzinfo=BERLIN), 2) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]


def test_asked_from_within_the_repeated_hour_it_does_not_go_back() -> None:
    spec = CronSpec(name="n", expression="30 2 * * *", tz="Europe/Berlin")
    second_ten_past_two = datetime(2026, 10, 25, 2, 10, tzinfo=BERLIN, fold=1)

    assert runs_of(spec, second_ten_past_two, 1) == ["2026-10-26T02:30:00+01:00"]


@pytest.mark.parametrize(("day", "hours"), [((2026, 3, 29), 23), ((2026, 10, 25), 25)])
def test_a_schedule_of_every_hour_runs_by_elapsed_time(day: tuple[int, int, int], hours: int) -> None:
    spec = CronSpec(name="n", expression="0 * * * *", tz="Europe/Berlin")
    midnight = datetime(*day, tzinfo=BERLIN)
    run = midnight
    count = 0

    while (run := next_after(spec, run)).date() == midnight.date():
        count += 1

    assert count + 1 == hours


def test_a_leap_day_comes_every_four_years() -> None:
    spec = CronSpec(name="n", expression="0 0 29 2 *")

    assert runs_of(spec, datetime(2026, 1, 1, tzinfo=UTC), 2) == [
        "2028-02-29T00:00:00+00:00",
        "2032-02-29T00:00:00+00:00",
    ]


EXPRESSIONS = st.sampled_from(
    ["30 2 * * *", "*/7 * * * *", "0 */3 * * *", "15,45 1-3 * * *", "0 0 1 * *", "*/40 * * * * *", "0 3 * * SUN"]
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kolkata"])
MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(EXPRESSIONS, ZONES, MOMENTS)
def test_runs_always_move_forward(expression: str, tz: str, after: datetime) -> None:
    spec = CronSpec(name="n", expression=expression, tz=tz)
    moments = [after]

    for _ in range(5):
        moments.append(next_after(spec, moments[-1]))

    assert all(later.astimezone(UTC) > earlier.astimezone(UTC) for earlier, later in pairwise(moments))


# ---------------------------------------------------------------- what is due


def test_nothing_is_due_before_its_time() -> None:
    spec = CronSpec(name="n", expression="0 * * * *")

    assert due_runs(spec, last_us=NOON_US, now_us=NOON_US + HOUR_US - 1) == ([], NOON_US + HOUR_US)


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_a_run_a_moment_late_is_submitted_under_every_policy(missed: str) -> None:
    spec = CronSpec(name="n", expression="0 * * * *", missed=missed)  # type: ignore[arg-type]

    assert due_runs(spec, last_us=NOON_US, now_us=NOON_US + HOUR_US + 3_000) == (
        [NOON_US + HOUR_US],
        NOON_US + 2 * HOUR_US,
    )


@pytest.mark.parametrize(("missed", "hours"), [("skip", []), ("once", [5]), ("all", [1, 2, 3, 4, 5])])
def test_five_missed_hours(missed: str, hours: list[int]) -> None:
    spec = CronSpec(name="n", expression="0 * * * *", missed=missed)  # type: ignore[arg-type]

    runs, next_us = due_runs(spec, last_us=NOON_US, now_us=NOON_US + 5 * HOUR_US + 30 * MINUTE_US)

    assert runs == [NOON_US + hour * HOUR_US for hour in hours]
    assert next_us == NOON_US + 6 * HOUR_US


def test_all_missed_runs_come_in_bounded_portions_and_none_is_dropped() -> None:
    spec = CronSpec(name="n", expression="* * * * *", missed="all")
    now_us = NOON_US + 250 * MINUTE_US
    last_us = NOON_US
    portions = []

    while True:
        runs, next_us = due_runs(spec, last_us=last_us, now_us=now_us)
        portions.append(len(runs))
        assert runs == [last_us + minute * MINUTE_US for minute in range(1, len(runs) + 1)]
        if next_us > now_us:
            break
        assert next_us == runs[-1] + MINUTE_US
        last_us = runs[-1]

    assert portions == [RUNS_MAX, RUNS_MAX, 50]


@pytest.mark.parametrize("missed", ["skip", "once"])
def test_ten_years_of_missed_seconds_are_not_walked_through(missed: str) -> None:
    """Walking would visit 315 million runs and hit the time limit of the test."""
    spec = CronSpec(name="n", expression="* * * * * *", missed=missed)  # type: ignore[arg-type]
    last_us = NOON_US - 10 * 365 * 24 * HOUR_US

    runs, next_us = due_runs(spec, last_us=last_us, now_us=NOON_US)

    assert runs[-1] == NOON_US
    assert len(runs) == (1 if missed == "once" else 61)
    assert next_us == NOON_US + 1_000_000


def test_once_finds_the_run_that_spring_has_moved() -> None:
    spec = CronSpec(name="n", expression="30 2 * * *", tz="Europe/Berlin", missed="once")
    now = datetime(2026, 3, 29, 12, tzinfo=BERLIN)
    moved = datetime(2026, 3, 29, 3, tzinfo=BERLIN)

    runs, _ = due_runs(spec, last_us=to_us(now - timedelta(days=40)), now_us=to_us(now))

    assert runs == [to_us(moved)]


@given(EXPRESSIONS, ZONES, MOMENTS, st.integers(0, 25))
def test_once_is_the_last_of_all(expression: str, tz: str, last: datetime, hours: int) -> None:
    last_us, now_us = to_us(last), to_us(last) + hours * HOUR_US
    walked = to_us(last)
    every = CronSpec(name="n", expression=expression, tz=tz)
    while (run_us := to_us(next_after(every, last))) <= now_us:
        last, walked = next_after(every, last), run_us

    runs, next_us = due_runs(
        CronSpec(name="n", expression=expression, tz=tz, missed="once"), last_us=last_us, now_us=now_us
    )

    assert runs == ([walked] if walked > last_us else [])
    assert next_us == run_us


def test_a_clock_that_went_back_repeats_no_run() -> None:
    spec = CronSpec(name="n", expression="0 * * * *", missed="all")

    assert due_runs(spec, last_us=NOON_US, now_us=NOON_US - HOUR_US + 1) == ([], NOON_US + HOUR_US)


def test_jitter_delays_a_schedule_but_does_not_rename_its_runs() -> None:
    spec = CronSpec(name="report", expression="0 * * * *", jitter_s=600)

    runs, next_us = due_runs(spec, last_us=NOON_US, now_us=NOON_US + 30 * MINUTE_US)
    assert runs == []
    delay_us = next_us - (NOON_US + HOUR_US)
    assert 0 < delay_us < 600_000_000
    assert due_runs(spec, last_us=NOON_US, now_us=next_us - 1) == ([], next_us)
    assert due_runs(spec, last_us=NOON_US, now_us=next_us) == ([NOON_US + HOUR_US], next_us + HOUR_US)


def test_jitter_is_the_same_in_every_process_and_different_between_names() -> None:
    def delay_us(name: str) -> int:
        spec = CronSpec(name=name, expression="0 * * * *", jitter_s=600)
        return due_runs(spec, last_us=NOON_US, now_us=NOON_US)[1] - NOON_US - HOUR_US

    assert delay_us("report") == delay_us("report")
    assert len({delay_us(f"schedule {number}") for number in range(50)}) == 50


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "expression", ["", "* * * *", "61 * * * *", "0 0 30 2 *", "0 0 31 4,6 *", "nonsense", "0 0 * * FOO", "*/0 * * * *"]
)
def test_an_expression_that_can_never_fire_is_refused(expression: str) -> None:
    with pytest.raises(SettingsError, match="is not a cron expression") as caught:
        CronSpec(name="backup", expression=expression)

    assert "backup" in caught.value.what
    assert caught.value.why
    assert caught.value.fix


@pytest.mark.parametrize("tz", ["Mars/Olympus", "", "../etc/passwd", "Europe"])
def test_an_unknown_time_zone_is_refused(tz: str) -> None:
    with pytest.raises(SettingsError, match="is not a time zone") as caught:
        CronSpec(name="n", expression="* * * * *", tz=tz)

    assert "IANA" in caught.value.fix


@pytest.mark.parametrize("jitter_s", [-1.0, 86_401.0, float("nan")])
def test_a_jitter_out_of_bounds_is_refused(jitter_s: float) -> None:
    with pytest.raises(SettingsError, match="out of bounds"):
        CronSpec(name="n", expression="* * * * *", jitter_s=jitter_s)


def test_a_policy_or_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="not a policy"):
        CronSpec(name="n", expression="* * * * *", missed="maybe")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="cannot name a schedule"):
        CronSpec(name="", expression="* * * * *")


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(SettingsError, match="no time zone"):
        next_after(CronSpec(name="n", expression="* * * * *"), datetime(2026, 1, 1))  # noqa: DTZ001


def to_us(moment: datetime) -> int:
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
