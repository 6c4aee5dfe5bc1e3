"""The strategies, call by call: growth, refusals that count once, delay, and what must hold whatever is reported."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.limit.strategies import DEFAULT, START, LimitState, Tuning, allowed, new_state, sample
from sennit.model.provider import STRATEGIES, CallOutcome, Strategy

S = 1_000_000  # µs
MOVING: tuple[Strategy, ...] = ("aimd", "gradient", "vegas")
OUTCOMES: tuple[CallOutcome, ...] = ("ok", "throttled", "overloaded", "timeout", "error", "refused", "cancelled")


class Rig:
    """One limit, and calls that end at full use unless a test says otherwise."""

    def __init__(
        self, strategy: Strategy = "aimd", *, ceiling: int = 200, floor: int = 1, tuning: Tuning = DEFAULT
    ) -> None:
        self.strategy = strategy
        self.ceiling = ceiling
        self.floor = floor
        self.tuning = tuning
        self.now_us = 1000 * S
        self.state = new_state(strategy, ceiling=ceiling, floor=floor)

    def ended(
        self, outcome: CallOutcome = "ok", *, in_flight: int | None = None, seconds: float = 8.0, work: int = 0
    ) -> float:
        sample(
            self.state,
            strategy=self.strategy,
            ceiling=self.ceiling,
            floor=self.floor,
            in_flight=int(self.state.limit) if in_flight is None else in_flight,
            outcome=outcome,
            duration_us=round(seconds * S),
            work=work,
            now_us=self.now_us,
            tuning=self.tuning,
        )
        return self.state.limit

    def round(self, *, seconds: float = 8.0, work: int = 0) -> float:
        """Let as many calls end well as are allowed."""
        self.now_us += round(seconds * S)
        for _ in range(int(self.state.limit)):
            self.ended(seconds=seconds, work=work)
        return self.state.limit


def at(limit: float, strategy: Strategy = "aimd", *, tuning: Tuning = DEFAULT) -> Rig:
    """Return a rig past slow start, refused long ago."""
    rig = Rig(strategy, tuning=tuning)
    rig.state.limit = rig.state.threshold = limit
    rig.state.decreased_us = rig.now_us - 100 * S
    return rig


# ---------------------------------------------------------------- growing


def test_it_starts_small_and_doubles_per_round_until_it_is_refused() -> None:
    rig = Rig()

    limits = [rig.state.limit] + [rig.round() for _ in range(3)]

    assert limits == [START, 8.0, 16.0, 32.0]


def test_after_a_refusal_it_grows_by_one_per_round() -> None:
    rig = at(20.0)

    assert 20.9 < rig.round() <= 21.0


def test_the_longer_nothing_is_refused_the_faster_it_grows() -> None:
    rig = at(20.0)
    for _ in range(30):
        rig.round()

    before = rig.state.limit
    gained = rig.round() - before

    assert 3.0 < gained <= DEFAULT.growth_max


@pytest.mark.parametrize("strategy", MOVING)
def test_an_idle_fleet_learns_nothing_of_its_ceiling(strategy: Strategy) -> None:
    rig = at(20.0, strategy)

    for _ in range(1000):
        rig.ended(in_flight=9)

    assert rig.state.limit == 20.0


def test_where_it_was_refused_last_is_not_tried_again_for_a_hundred_calls() -> None:
    """At a cap of 4 additive growth alone would be refused every tenth call."""
    rig = at(5.0)
    rig.ended("throttled", seconds=0.1)

    for _ in range(DEFAULT.probe_calls - 1):
        rig.ended()
        assert int(rig.state.limit) == 4
    for _ in range(5):
        rig.ended()

    assert int(rig.state.limit) == 5


def test_fixed_is_the_ceiling_whatever_happens() -> None:
    rig = Rig("fixed", ceiling=7)

    limits = {rig.ended(outcome) for outcome in OUTCOMES}

    assert limits == {7.0}
    assert allowed(rig.state, strategy="fixed", ceiling=3) == 3  # resized, before any call has ended


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("strategy", MOVING)
@pytest.mark.parametrize(("outcome", "by"), [("throttled", 0.85), ("overloaded", 0.85), ("timeout", 0.7)])
def test_a_refusal_takes_its_share(strategy: Strategy, outcome: CallOutcome, by: float) -> None:
    rig = at(40.0, strategy)

    assert rig.ended(outcome) == pytest.approx(40.0 * by)


@pytest.mark.parametrize("outcome", ["refused", "cancelled", "error"])
def test_what_says_nothing_of_load_moves_nothing(outcome: CallOutcome) -> None:
    rig = at(40.0)
    before = msgspec.structs.astuple(rig.state)

    rig.ended(outcome)

    assert msgspec.structs.astuple(rig.state) == before


@pytest.mark.parametrize("seconds_each", [0.0, 2.0])
@pytest.mark.parametrize("outcome", ["throttled", "overloaded", "timeout"])
def test_a_volley_counts_once_however_long_it_takes_to_come_in(outcome: CallOutcome, seconds_each: float) -> None:
    rig = at(40.0)
    begun_us = rig.now_us
    rig.now_us += 100_000
    once = rig.ended(outcome, seconds=0.1)

    for out in range(39, 0, -1):
        rig.now_us += round(seconds_each * S)
        rig.ended(outcome, in_flight=out, seconds=(rig.now_us - begun_us) / S)

    assert rig.state.limit == once


def test_a_volley_without_durations_counts_once_per_cool_down() -> None:
    rig = at(40.0)

    for out in range(40, 0, -1):
        rig.ended("throttled", in_flight=out, seconds=0.0)

    assert rig.state.limit == pytest.approx(34.0)


def test_a_call_of_the_new_limit_that_is_refused_too_says_how_many_there_is_room_for() -> None:
    rig = at(40.0)
    rig.ended("throttled", seconds=0.1)
    rig.now_us += 5 * S

    assert rig.ended("throttled", in_flight=30, seconds=0.1) == 29.0


def test_after_the_cool_down_a_refusal_counts_again() -> None:
    rig = at(40.0)
    rig.ended("throttled", seconds=0.1)
    rig.now_us += DEFAULT.cooldown_us

    assert rig.ended("throttled", seconds=0.1) == pytest.approx(34 * 0.85)


def test_what_was_out_was_too_much_and_not_what_would_have_been_allowed() -> None:
    rig = at(100.0)

    assert rig.ended("throttled", in_flight=60) == pytest.approx(51.0)
    assert at(100.0).ended("throttled", in_flight=2) == 50.0  # but no single answer takes more than half


def test_it_never_falls_below_the_floor() -> None:
    rig = Rig(floor=3)
    for _ in range(50):
        rig.now_us += 60 * S
        rig.ended("throttled", in_flight=1, seconds=0.1)

    assert rig.state.limit == 3.0


# ---------------------------------------------------------------- the clock


def test_a_clock_that_steps_back_costs_one_cool_down() -> None:
    rig = at(40.0)
    rig.ended("throttled", seconds=0.1)
    rig.now_us -= 3600 * S

    rig.ended("throttled", seconds=-3600.0)
    rig.now_us += DEFAULT.cooldown_us
    limit = rig.ended("throttled", in_flight=40, seconds=0.1)

    assert limit == pytest.approx(34.0 * 0.85)


@pytest.mark.parametrize("strategy", MOVING)
def test_durations_below_zero_say_nothing_of_delay(strategy: Strategy) -> None:
    rig = at(40.0, strategy)

    for _ in range(200):
        rig.ended(seconds=-5.0, work=100)

    assert rig.state.base_us == 0.0
    assert rig.state.window_calls == 0
    assert rig.state.limit > 40.0  # as aimd


# ---------------------------------------------------------------- delay


@pytest.mark.parametrize("strategy", MOVING)
def test_long_calls_are_no_slow_calls(strategy: Strategy) -> None:
    """Ten times the tokens in ten times the time: raw duration would say overload."""
    rig = at(40.0, strategy)
    for _ in range(3):
        rig.round(seconds=8.0, work=400)

    before = rig.state.limit
    for _ in range(3):
        rig.round(seconds=80.0, work=4000)

    assert rig.state.limit > before


@pytest.mark.parametrize("strategy", MOVING)
def test_when_work_takes_three_times_as_long_it_backs_off(strategy: Strategy) -> None:
    rig = at(40.0, strategy)
    for _ in range(3):
        rig.round(seconds=8.0, work=400)

    before = rig.state.limit
    for _ in range(3):
        rig.round(seconds=24.0, work=400)

    assert rig.state.limit < before


@pytest.mark.parametrize("strategy", MOVING)
def test_slowness_that_half_the_load_does_not_mend_is_the_new_normal(strategy: Strategy) -> None:
    rig = at(40.0, strategy)
    for _ in range(3):
        rig.round(seconds=8.0, work=400)
    for _ in range(60):
        rig.round(seconds=24.0, work=400)

    assert rig.state.base_us == pytest.approx(24 * S / 400)
    assert rig.state.limit > 40.0


def test_the_delay_term_of_aimd_can_be_off() -> None:
    rig = at(40.0, tuning=Tuning(delay_ratio=0.0))
    rig.round(seconds=8.0, work=400)

    before = rig.state.limit
    for _ in range(3):
        rig.round(seconds=80.0, work=400)

    assert rig.state.limit > before


@pytest.mark.parametrize("strategy", ["gradient", "vegas"])
def test_without_work_the_delay_strategies_are_aimd(strategy: Strategy) -> None:
    rigs = at(40.0, strategy), at(40.0)
    for n in range(300):
        for rig in rigs:
            rig.now_us += S
            rig.ended("throttled" if n % 97 == 0 else "ok", seconds=(n * 7919 % 50) + 0.1)

    assert msgspec.structs.astuple(rigs[0].state) == msgspec.structs.astuple(rigs[1].state)


# ---------------------------------------------------------------- whatever is reported

calls = st.lists(
    st.tuples(
        st.sampled_from(OUTCOMES),
        st.integers(0, 300),  # in flight
        st.sampled_from([-5 * S, 0, 1, 100_000, 8 * S, 900 * S]),  # duration
        st.sampled_from([0, 0, 1, 400, 10**9]),  # work
        st.sampled_from([-(10**12), -S, 0, 1, S, 20 * S, 10**13]),  # the clock goes on by this
    ),
    max_size=120,
)


def run(state: LimitState, strategy: Strategy, ceiling: int, floor: int, report: list[tuple[CallOutcome, int, int, int, int]]) -> list[float]:  # fmt: skip
    limits, now_us = [], 10**15
    for outcome, in_flight, duration_us, work, step_us in report:
        now_us += step_us
        sample(
            state, strategy=strategy, ceiling=ceiling, floor=floor, in_flight=in_flight, outcome=outcome,
            duration_us=duration_us, work=work, now_us=now_us,
        )  # fmt: skip
        limits.append(state.limit)
    return limits


bounds = st.tuples(st.integers(1, 250), st.integers(1, 250)).map(sorted)


@given(st.sampled_from(STRATEGIES), bounds, calls)
def test_the_limit_never_leaves_its_bounds(strategy: Strategy, bounds: list[int], report: list[tuple[CallOutcome, int, int, int, int]]) -> None:  # fmt: skip
    floor, ceiling = bounds

    limits = run(new_state(strategy, ceiling=ceiling, floor=floor), strategy, ceiling, floor, report)

    assert all(floor <= limit <= ceiling for limit in limits)


@given(st.sampled_from(MOVING), calls)
def test_no_sample_moves_the_limit_far(strategy: Strategy, report: list[tuple[CallOutcome, int, int, int, int]]) -> None:  # fmt: skip
    limits = [START, *run(new_state(strategy, ceiling=250), strategy, 250, 1, report)]

    for before, after in pairwise(limits):
        assert after >= before / 2 - 1e-9 or after == 1.0
        assert after <= before + 1.0 + DEFAULT.growth_max


@given(st.sampled_from(STRATEGIES), calls, st.integers(0, 120))
def test_a_state_that_went_through_json_behaves_alike(strategy: Strategy, report: list[tuple[CallOutcome, int, int, int, int]], at_call: int) -> None:  # fmt: skip
    state = new_state(strategy, ceiling=200)
    run(state, strategy, 200, 1, report[:at_call])
    copy = msgspec.json.decode(msgspec.json.encode(state), type=LimitState)

    assert run(copy, strategy, 200, 1, report[at_call:]) == run(state, strategy, 200, 1, report[at_call:])


@given(st.sampled_from(MOVING), st.integers(2, 200), st.lists(st.integers(0, 3 * S), min_size=1, max_size=60))
def test_a_volley_counts_once_for_any_arrival_times(strategy: Strategy, limit: int, gaps_us: list[int]) -> None:
    rig = at(float(limit), strategy)
    begun_us = rig.now_us
    rig.now_us += 1
    once = rig.ended("throttled", seconds=1e-6)

    for gap_us in gaps_us:
        rig.now_us += gap_us
        rig.ended("throttled", seconds=(rig.now_us - begun_us) / S)

    assert rig.state.limit == once


@given(bounds, st.integers(1, 250), st.sampled_from(STRATEGIES))
def test_what_is_allowed_obeys_a_new_ceiling_at_once(bounds: list[int], limit: int, strategy: Strategy) -> None:
    floor, ceiling = bounds

    assert floor <= allowed(LimitState(limit=float(limit)), strategy=strategy, ceiling=ceiling, floor=floor) <= ceiling


def test_the_state_is_small() -> None:
    rig = at(40.0, "vegas")
    for n in range(500):
        rig.now_us += S
        rig.ended("throttled" if n % 50 == 49 else "ok", seconds=8.123456, work=397)

    assert len(msgspec.json.encode(rig.state)) < 300
