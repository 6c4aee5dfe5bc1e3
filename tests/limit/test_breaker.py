"""The breaker as a value: its moves, its window, lost and late calls, and clocks that step."""

from __future__ import annotations

import math
from typing import get_args

import msgspec
import pytest

from sennit.errors import SettingsError, UsageError
from sennit.limit.breaker import (
    BreakerPhase,
    BreakerState,
    admit,
    checked_spec,
    isolate,
    reset,
    room,
    settle,
    trip,
    window,
)
from sennit.model.provider import BreakerSpec, CallOutcome

S = 1_000_000
T0 = 1_700_000_000 * S
SPEC = BreakerSpec()
RATED = BreakerSpec(rate=0.5, calls_min=10)
SLOW = BreakerSpec(slow_rate=0.5, slow_s=10, calls_min=10)


def call(spec: BreakerSpec, state: BreakerState, outcome: CallOutcome, now_us: int = T0, *, took_s: float = 0) -> bool:
    generation = admit(spec, state, now_us)
    return settle(spec, state, generation=generation, outcome=outcome, now_us=now_us, duration_us=round(took_s * S))


def phase_of(state: BreakerState) -> str:
    """Return `state.at`; mypy would hold an attribute to what was asserted of it before."""
    return state.at


def at(phase: BreakerPhase, now_us: int = T0) -> BreakerState:
    """Return a breaker in this phase since `now_us`; half open without probes."""
    state = BreakerState()
    if phase == "isolated":
        isolate(state, now_us)
    elif phase != "closed":
        trip(state, now_us)
    if phase == "half_open":
        call(SPEC, state, "cancelled", now_us + 60 * S)
    assert state.at == phase
    return state


# ---------------------------------------------------------------- the moves

# (phase, what happens, phase after): what one event does in each phase of the default profile.
MOVES: list[tuple[BreakerPhase, str, BreakerPhase]] = [
    ("closed", "4 errors", "closed"),
    ("closed", "5 errors", "open"),
    ("closed", "5 timeouts", "open"),
    ("closed", "9 throttled", "closed"),
    ("closed", "9 overloaded", "closed"),
    ("closed", "9 refused", "closed"),
    ("closed", "9 cancelled", "closed"),
    ("closed", "trip", "open"),
    ("closed", "isolate", "isolated"),
    ("closed", "reset", "closed"),
    ("open", "trip", "open"),
    ("open", "isolate", "isolated"),
    ("open", "reset", "closed"),
    ("half_open", "1 ok", "half_open"),
    ("half_open", "2 ok", "closed"),
    ("half_open", "1 error", "open"),
    ("half_open", "1 timeout", "open"),
    ("half_open", "9 throttled", "half_open"),
    ("half_open", "9 overloaded", "half_open"),
    ("half_open", "9 refused", "half_open"),
    ("half_open", "9 cancelled", "half_open"),
    ("half_open", "trip", "open"),
    ("half_open", "isolate", "isolated"),
    ("half_open", "reset", "closed"),
    ("isolated", "trip", "open"),
    ("isolated", "isolate", "isolated"),
    ("isolated", "reset", "closed"),
]
OUTCOMES: dict[str, CallOutcome] = {outcome: outcome for outcome in get_args(CallOutcome)}
OUTCOMES |= {"errors": "error", "timeouts": "timeout"}


@pytest.mark.parametrize(("before", "event", "after"), MOVES)
def test_each_event_moves_it_as_the_table_says(before: BreakerPhase, event: str, after: BreakerPhase) -> None:
    state = at(before)
    now_us = T0 + 61 * S

    match event.split():
        case [count, outcome]:
            for _ in range(int(count)):
                call(SPEC, state, OUTCOMES[outcome], now_us)
        case _:
            {"trip": trip, "isolate": isolate, "reset": reset}[event](state, now_us)

    assert state.at == after


@pytest.mark.parametrize("phase", get_args(BreakerPhase))
def test_a_breaker_survives_the_way_through_json(phase: BreakerPhase) -> None:
    state = at(phase)

    assert msgspec.json.decode(msgspec.json.encode(state), type=BreakerState) == state


def test_a_success_between_failures_keeps_it_closed() -> None:
    state = BreakerState()

    for outcome in ["error"] * 4 + ["ok"] + ["error"] * 4:
        call(SPEC, state, OUTCOMES[outcome])

    assert phase_of(state) == "closed"


def test_what_is_neither_failure_nor_success_does_not_interrupt_a_row_of_failures() -> None:
    state = BreakerState()

    moved = [
        call(SPEC, state, OUTCOMES[o]) for o in ("error", "refused", "error", "throttled", "error", "error", "error")
    ]

    assert moved == [False] * 6 + [True]
    assert phase_of(state) == "open"


@pytest.mark.parametrize(
    ("phase", "now_us", "expected"),
    [
        ("closed", T0, (None, None)),
        ("open", T0, (0, T0 + 60 * S)),
        ("open", T0 + 60 * S - 1, (0, T0 + 60 * S)),
        ("open", T0 + 60 * S, (3, None)),
        ("half_open", T0 + 60 * S, (3, None)),
        ("isolated", T0 + 10**9 * S, (0, None)),
    ],
)
def test_room_says_how_many_and_until_when(
    phase: BreakerPhase, now_us: int, expected: tuple[int | None, int | None]
) -> None:
    state = at(phase)
    before = msgspec.json.encode(state)

    assert room(SPEC, state, now_us) == expected
    assert msgspec.json.encode(state) == before


@pytest.mark.parametrize("phase", ["open", "isolated"])
def test_letting_a_call_through_without_room_is_an_error(phase: BreakerPhase) -> None:
    with pytest.raises(UsageError, match="lets no call through"):
        admit(SPEC, at(phase), T0)


# ---------------------------------------------------------------- half open


def test_half_open_lets_three_through_at_once_and_says_when_the_first_is_taken_for_lost() -> None:
    state = at("half_open")
    began_us = T0 + 70 * S

    for n in range(3):
        assert room(SPEC, state, began_us + n) == (3 - n, None)
        admit(SPEC, state, began_us + n)

    assert room(SPEC, state, began_us + 3) == (0, began_us + 120 * S)
    with pytest.raises(UsageError):
        admit(SPEC, state, began_us + 3)


def test_the_place_of_a_lost_call_is_free_again_and_its_late_result_does_not_count() -> None:
    state = at("half_open")
    lost = [admit(SPEC, state, T0 + 70 * S) for _ in range(3)]
    later_us = T0 + 190 * S
    assert room(SPEC, state, later_us) == (3, None)
    after = [admit(SPEC, state, later_us) for _ in range(3)]

    for generation in lost:
        assert not settle(SPEC, state, generation=generation, outcome="error", now_us=later_us)
    assert phase_of(state) == "half_open"
    assert len(state.probes) == 3

    settle(SPEC, state, generation=after[0], outcome="ok", now_us=later_us)
    assert settle(SPEC, state, generation=after[1], outcome="ok", now_us=later_us)
    assert phase_of(state) == "closed"


def test_a_slow_half_open_call_counts_as_long_as_nobody_has_taken_its_place() -> None:
    """A provider whose calls take longer than `probe_s` could never close it otherwise."""
    state = at("half_open")
    slow = [admit(SPEC, state, T0 + 70 * S) for _ in range(2)]

    moved = [settle(SPEC, state, generation=g, outcome="ok", now_us=T0 + 1000 * S) for g in slow]

    assert moved == [False, True]


def test_results_of_an_older_phase_do_not_count() -> None:
    state = BreakerState()
    early = [admit(SPEC, state, T0) for _ in range(20)]
    for generation in early[:5]:
        settle(SPEC, state, generation=generation, outcome="error", now_us=T0)
    assert phase_of(state) == "open"

    assert not settle(SPEC, state, generation=early[5], outcome="ok", now_us=T0)
    probe = admit(SPEC, state, T0 + 60 * S)
    assert not settle(SPEC, state, generation=early[6], outcome="error", now_us=T0 + 60 * S)
    assert (phase_of(state), state.successes, len(state.probes)) == ("half_open", 0, 1)

    settle(SPEC, state, generation=probe, outcome="ok", now_us=T0 + 60 * S)
    call(SPEC, state, "ok", T0 + 60 * S)
    assert phase_of(state) == "closed"
    for generation in early[7:]:
        settle(SPEC, state, generation=generation, outcome="error", now_us=T0 + 60 * S)
    assert (phase_of(state), state.failures) == ("closed", 0)


def test_one_result_counts_once_half_open() -> None:
    state = at("half_open")
    probe = admit(SPEC, state, T0 + 70 * S)

    for _ in range(5):
        settle(SPEC, state, generation=probe, outcome="ok", now_us=T0 + 70 * S)

    assert (phase_of(state), state.successes) == ("half_open", 1)


# ---------------------------------------------------------------- the window


def test_nothing_opens_before_the_minimum_of_calls() -> None:
    state = BreakerState()

    moved = [call(RATED, state, "error") for _ in range(10)]

    assert moved == [False] * 9 + [True]


def test_the_rate_opens_it_and_a_row_of_failures_below_the_rate_does_not() -> None:
    state = BreakerState()
    for _ in range(30):
        call(RATED, state, "ok")

    moved = [call(RATED, state, "error") for _ in range(30)]

    assert moved == [False] * 29 + [True]


def test_the_call_that_completes_the_minimum_may_be_a_good_one() -> None:
    state = BreakerState()

    moved = [call(RATED, state, OUTCOMES[o]) for o in ["error"] * 9 + ["ok"]]

    assert moved[-1]


def test_what_is_older_than_the_window_is_forgotten_by_tenths() -> None:
    state = BreakerState()
    for _ in range(9):
        call(RATED, state, "error", T0)

    assert window(RATED, state, T0 + 50 * S).calls == 9
    assert window(RATED, state, T0 + 60 * S).calls == 0
    for _ in range(9):
        call(RATED, state, "error", T0 + 61 * S)
    assert phase_of(state) == "closed"


def test_slow_calls_open_it_though_they_succeed_and_slow_probes_do_not_close_it() -> None:
    state = BreakerState()
    for _ in range(5):
        call(SLOW, state, "ok", took_s=10.0)

    moved = [call(SLOW, state, "ok", took_s=10.1) for _ in range(5)]

    assert moved == [False] * 4 + [True]
    assert call(SLOW, state, "ok", T0 + 60 * S, took_s=11)
    assert phase_of(state) == "open"
    assert [call(SLOW, state, "ok", T0 + 120 * S, took_s=1) for _ in range(2)] == [False, True]


def test_a_slow_rate_alone_adds_to_the_simple_form() -> None:
    state = BreakerState()

    for _ in range(5):
        call(SLOW, state, "error")

    assert phase_of(state) == "open"


def test_a_state_stays_small_whatever_happens() -> None:
    spec = BreakerSpec(rate=1.0, slow_rate=1.0, slow_s=1, calls_min=10**6)
    state = BreakerState()
    for n in range(5000):
        call(spec, state, "error" if n % 3 else "ok", T0 + n * 777_777 * (-1 if n % 5 else 3), took_s=2)
    assert len(state.buckets) <= 10
    trip(state, T0)
    for n in range(5000):
        admit(spec, state, T0 + (60 + n * 130) * S)

    assert len(state.probes) <= 3
    assert len(msgspec.json.encode(state)) < 1000


# ---------------------------------------------------------------- clocks that step


def test_a_clock_set_back_by_a_moment_does_not_open_it_early() -> None:
    state = at("open")

    assert room(SPEC, state, T0 - S) == (0, T0 + 60 * S)


@pytest.mark.parametrize("back_s", [61, 3600, 10**9])
def test_a_clock_set_back_by_more_than_the_wait_does_not_keep_it_open_for_ever(back_s: int) -> None:
    state = at("open")

    assert room(SPEC, state, T0 - back_s * S) == (3, None)


def test_a_clock_set_back_does_not_keep_a_lost_probe() -> None:
    state = at("half_open")
    for _ in range(3):
        admit(SPEC, state, T0 + 70 * S)

    assert room(SPEC, state, T0 - 3600 * S) == (3, None)


def test_counts_of_the_future_age_from_now_on() -> None:
    state = BreakerState()
    for _ in range(4):
        call(RATED, state, "error", T0 + 86_400 * S)

    call(RATED, state, "error", T0)

    assert window(RATED, state, T0).failures == 5
    assert window(RATED, state, T0 + 60 * S).failures == 0


# ---------------------------------------------------------------- bad specs


@pytest.mark.parametrize(
    "spec",
    [
        BreakerSpec(failures=0),
        BreakerSpec(successes=0),
        BreakerSpec(half_open=0),
        BreakerSpec(calls_min=0),
        BreakerSpec(open_s=0),
        BreakerSpec(open_s=math.inf),
        BreakerSpec(probe_s=-1),
        BreakerSpec(window_s=math.nan),
        BreakerSpec(rate=1.1),
        BreakerSpec(rate=math.nan),
        BreakerSpec(slow_rate=-0.1),
        BreakerSpec(slow_rate=0.5),
        BreakerSpec(slow_s=math.nan),
    ],
)
def test_a_spec_no_breaker_can_work_with_is_refused(spec: BreakerSpec) -> None:
    with pytest.raises(SettingsError, match="breaker"):
        checked_spec(spec)


def test_the_default_spec_is_good() -> None:
    assert checked_spec(SPEC) is SPEC
