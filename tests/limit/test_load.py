"""Decisions about load: they fall fast, rise slowly on proof, never swing, and give way in the order that is documented."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sennit.limit.shedding import (
    FALL_EVERY_US,
    MULTIPLIER_MIN,
    RISE_EVERY_US,
    Decision,
    LoadBounds,
    LoadInputs,
    LoadState,
    decide,
    scaled,
)
from sennit.model.order import Priority

S = 1_000_000
BOUNDS = LoadBounds(cpu_pressure_max=0.8, memory_free_min=0.1, lag_s_max=0.25, queue_age_s_max=60.0)
CALM = LoadInputs(cpu=0.0, memory=0.0, memory_free=0.9)
BETWEEN = LoadInputs(cpu=0.6, memory=0.0, memory_free=0.9)
BUSY = LoadInputs(cpu=0.9, memory=0.0, memory_free=0.9)

a_share = st.none() | st.floats(0, 1)
some_inputs = st.builds(
    LoadInputs,
    since_us=st.integers(-(10**9), 10**12),
    cpu=a_share,
    memory=a_share,
    memory_free=a_share,
    lag_s=st.floats(-1, 100),
    queue_age_s=st.none() | st.floats(0, 10**6),
)


def run(steps: Sequence[tuple[int, LoadInputs]], state: LoadState = LoadState(), now_us: int = 0) -> list[Decision]:  # noqa: B008 - frozen
    """Make one decision after the other; each step says how much later, and what it finds."""
    made = []
    for later_us, inputs in steps:
        since_us, now_us = now_us, now_us + later_us
        made.append(decide(replace(inputs, since_us=since_us), state, BOUNDS, now_us))
        state = made[-1].after
    return made


def multipliers(made: Sequence[Decision]) -> list[float]:
    return [decision.after.multiplier for decision in made]


# ---------------------------------------------------------------- falling and rising


def test_it_falls_at_once_and_then_by_a_factor_every_two_seconds() -> None:
    made = run([(1 * S, BUSY)] * 6)

    assert multipliers(made) == [0.7, 0.7, 0.49, 0.49, 0.343, 0.343]


def test_under_lasting_load_it_falls_to_the_least_and_stays_there() -> None:
    made = run([(2 * S, BUSY)] * 60)

    assert multipliers(made)[-1] == MULTIPLIER_MIN
    assert [decision.is_change for decision in made].count(True) == 9


def test_it_rises_by_a_tenth_for_every_five_calm_seconds() -> None:
    made = run([(2 * S, CALM)] * 10, LoadState(multiplier=0.49, fell_us=0))

    assert multipliers(made) == [0.49, 0.49, 0.59, 0.59, 0.69, 0.69, 0.69, 0.79, 0.79, 0.89]


def test_it_never_rises_above_one() -> None:
    made = run([(5 * S, CALM)] * 5, LoadState(multiplier=0.85, fell_us=0))

    assert multipliers(made) == [0.95, 1.0, 1.0, 1.0, 1.0]
    assert made[-1].after.level == "normal"


def test_between_the_bounds_it_stays_and_the_proof_of_calm_begins_anew() -> None:
    steps = [(4 * S, CALM), (1 * S, BETWEEN), (4 * S, CALM), (1 * S, CALM)]

    made = run(steps, LoadState(multiplier=0.5, fell_us=0))

    assert multipliers(made) == [0.5, 0.5, 0.5, 0.6]


def test_a_break_counts_for_as_long_as_it_was_calm() -> None:
    made = run([(2 * S, BUSY), (600 * S, CALM)])

    assert multipliers(made) == [0.7, 1.0]


def test_calm_does_not_count_from_before_it_fell() -> None:
    fell = run([(2 * S, BUSY)])[0]

    after = decide(LoadInputs(cpu=0.0, since_us=-100 * S), fell.after, BOUNDS, fell.at_us + 4 * S).after

    assert after.multiplier == 0.7


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    ("inputs", "reasons"),
    [
        (LoadInputs(cpu=0.81), ("cpu",)),
        (LoadInputs(cpu=0.8), ()),
        (LoadInputs(memory=0.11), ("memory",)),
        (LoadInputs(memory_free=0.09), ("memory_free",)),
        (LoadInputs(memory_free=0.1), ()),
        (LoadInputs(lag_s=0.26), ("lag",)),
        (LoadInputs(lag_s=0.25), ()),
        (LoadInputs(cpu=1.0, memory=1.0, memory_free=0.0, lag_s=9.0), ("cpu", "memory", "lag", "memory_free")),
        (LoadInputs(queue_age_s=10**6), ()),
        (LoadInputs(), ()),
    ],
)
def test_each_input_has_a_bound_and_a_decision_says_which_were_over(
    inputs: LoadInputs, reasons: tuple[str, ...]
) -> None:
    decision = run([(1, inputs)])[0]

    assert decision.reasons == reasons
    assert decision.has_fallen == bool(reasons)
    assert decision.inputs.cpu == inputs.cpu


def test_what_is_unknown_decides_nothing() -> None:
    made = run([(5 * S, LoadInputs())] * 2, LoadState(multiplier=0.9, fell_us=0))

    assert multipliers(made) == [1.0, 1.0]


def test_an_old_queue_throttles_those_who_hand_in_and_not_those_who_work_it_off() -> None:
    old, younger, young = (LoadInputs(queue_age_s=age_s) for age_s in (61.0, 31.0, 29.0))

    made = run([(S, old), (S, younger), (S, young)])

    assert multipliers(made) == [1.0, 1.0, 1.0]
    assert [decision.after.level for decision in made] == ["throttled", "throttled", "normal"]
    assert [decision.after.should_throttle(Priority.LOW) for decision in made] == [True, True, False]


def test_with_very_little_memory_nothing_is_started_until_all_that_was_asked_for_is_free() -> None:
    free = [0.06, 0.049, 0.06, 0.099, 0.1, 0.06]

    made = run([(1, LoadInputs(memory_free=share)) for share in free])

    assert [decision.after.is_stopped for decision in made] == [False, True, True, True, False, False]


def test_without_a_bound_on_memory_none_is_too_little() -> None:
    bounds = LoadBounds(memory_free_min=0.0)

    decision = decide(LoadInputs(memory_free=0.0), LoadState(), bounds, 1)

    assert (decision.reasons, decision.after.is_stopped) == ((), False)


def test_a_bound_of_one_on_the_cores_is_none() -> None:
    bounds = LoadBounds(cpu_pressure_max=1.0)

    after = decide(LoadInputs(cpu=1.0), LoadState(multiplier=0.5, calm_us=0), bounds, 5 * S).after

    assert after.multiplier == 0.6


@pytest.mark.parametrize("memory_free_min", [0.1, 0.5, 0.9])
def test_memory_can_always_become_calm_again(memory_free_min: float) -> None:
    bounds = LoadBounds(memory_free_min=memory_free_min)

    after = decide(LoadInputs(memory_free=0.99), LoadState(multiplier=0.5, calm_us=0), bounds, 5 * S).after

    assert after.multiplier == 0.6


# ---------------------------------------------------------------- who gives way

LOW_ONLY = {Priority.LOW}
NOT_HIGH = {Priority.LOW, Priority.NORMAL}
NOT_URGENT = {Priority.LOW, Priority.NORMAL, Priority.HIGH}


@pytest.mark.parametrize(
    ("state", "level", "throttled"),
    [
        (LoadState(), "normal", set()),
        (LoadState(multiplier=0.95), "throttled", LOW_ONLY),
        (LoadState(is_late=True), "throttled", LOW_ONLY),
        (LoadState(multiplier=0.51), "throttled", LOW_ONLY),
        (LoadState(multiplier=0.5), "shedding", NOT_HIGH),
        (LoadState(multiplier=0.06), "shedding", NOT_HIGH),
        (LoadState(multiplier=MULTIPLIER_MIN), "shedding", NOT_URGENT),
        (LoadState(is_stopped=True), "shedding", NOT_URGENT),
    ],
)
def test_low_gives_way_first_then_normal_then_high_and_urgent_never(
    state: LoadState, level: str, throttled: set[Priority]
) -> None:
    assert state.level == level
    assert {priority for priority in Priority if state.should_throttle(priority)} == throttled


@pytest.mark.parametrize(
    ("n", "multiplier", "expected"),
    [
        (100, 1.0, 100),
        (100, 0.7, 70),
        (10, 0.49, 4),
        (1, 0.05, 1),
        (3, 0.05, 1),
        (0, 1.0, 0),
        (0, 0.05, 0),
        (2, 0.5, 1),
    ],
)
def test_a_part_of_a_number_is_rounded_down_but_not_to_nothing(n: int, multiplier: float, expected: int) -> None:
    assert scaled(n, multiplier) == expected
    assert LoadState(multiplier=multiplier).recommend_concurrency(n) == expected


# ---------------------------------------------------------------- properties


@given(st.lists(st.tuples(st.integers(-(10**7), 10**8), some_inputs), max_size=60))
def test_the_multiplier_never_leaves_its_bounds_whatever_is_measured(steps: list[tuple[int, LoadInputs]]) -> None:
    state, now_us = LoadState(), 0
    for later_us, inputs in steps:
        now_us += later_us
        decision = decide(inputs, state, BOUNDS, now_us)

        assert MULTIPLIER_MIN <= decision.after.multiplier <= 1
        assert (decision.after.multiplier < state.multiplier) <= bool(decision.reasons)
        assert (decision.after.multiplier > state.multiplier) <= (not decision.reasons)
        assert 1 <= decision.after.recommend_concurrency(100) <= 100
        state = decision.after


@given(st.lists(st.tuples(st.integers(1, 4 * S), st.sampled_from([CALM, BETWEEN, BUSY])), min_size=1, max_size=200))
def test_it_falls_once_in_two_seconds_at_most_and_rises_once_in_five(steps: list[tuple[int, LoadInputs]]) -> None:
    made = run(steps)
    falls = [decision.at_us for decision in made if decision.has_fallen]
    rises = [decision for decision in made if decision.after.multiplier > decision.before.multiplier]

    assert all(later - earlier >= FALL_EVERY_US for earlier, later in pairwise(falls))
    for decision in rises:
        calm_us = decision.before.calm_us
        began_us = decision.inputs.since_us if calm_us is None else calm_us
        assert decision.at_us - began_us >= RISE_EVERY_US
    spent_us = sum(later_us for later_us, _ in steps)
    assert len(rises) <= spent_us // RISE_EVERY_US


@given(period_us=st.integers(S // 10, RISE_EVERY_US // 2 - 1), n=st.integers(1, 100))
def test_under_alternating_load_it_settles_and_does_not_swing(period_us: int, n: int) -> None:
    """Calm that is shorter than five seconds proves nothing: from look to look it only falls, and then stays."""
    made = run([(period_us, BUSY), (period_us, CALM)] * n)

    values = multipliers(made)
    assert values == sorted(values, reverse=True)


@given(load=st.floats(0.35, 0.79), falls=st.integers(1, 8))
def test_at_the_edge_of_the_bound_it_stays_where_it_is(load: float, falls: int) -> None:
    """Above the lower bound and below the upper one: no change in an hour, however it got there."""
    state = run([(2 * S, BUSY)] * falls)[-1].after
    edge = LoadInputs(cpu=max(load, 0.4), memory=0.0, memory_free=0.9)

    made = run([(2 * S, edge)] * 1800, state, now_us=2 * S * falls)

    assert {decision.is_change for decision in made} == {False}
