"""Rate arithmetic: what passes in a minute, what comes back, and what a provider or a clock can say about it."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.limit.rate import RateState, burst_units, calls, feedback, reserve, room, settle
from sennit.model.provider import RateFeedback

S = 1_000_000
MINUTE = 60 * S
T0 = 1_700_000_000 * S


def drained(per_minute: int, now_us: int = T0) -> RateState:
    """Return a bound whose burst has just been taken."""
    state = RateState()
    reserve(per_minute, state, burst_units(per_minute), now_us)
    return state


def free(per_minute: int, state: RateState, now_us: int) -> int:
    units, _ = room(per_minute, state, now_us)
    assert units is not None
    return units


# ---------------------------------------------------------------- examples


def test_a_fresh_bound_has_ten_seconds_worth_and_at_least_one() -> None:
    assert [free(n, RateState(), T0) for n in (600, 60, 6, 1)] == [100, 10, 1, 1]


def test_without_a_bound_anything_passes() -> None:
    state = RateState()
    reserve(0, state, 10**9, T0)

    assert room(0, state, T0, units=10**9) == (None, None)
    assert state == RateState()


def test_room_says_to_the_microsecond_when_there_will_be_enough() -> None:
    state = drained(600)

    assert room(600, state, T0) == (0, T0 + S // 10)
    assert room(600, state, T0, units=50) == (0, T0 + 5 * S)
    assert room(600, state, T0 + 5 * S - 1, units=50) == (49, T0 + 5 * S)
    assert room(600, state, T0 + 5 * S, units=50) == (50, None)


@pytest.mark.parametrize("per_minute", [1, 7, 59, 60, 61, 7_000_001])
def test_rounding_is_never_in_our_favour(per_minute: int) -> None:
    state = drained(per_minute)
    _, when_us = room(per_minute, state, T0)
    assert when_us is not None

    assert (when_us - T0) * per_minute >= MINUTE
    assert (when_us - T0 - 1) * per_minute < MINUTE
    assert free(per_minute, state, when_us) == 1
    assert free(per_minute, state, when_us - 1) == 0


def test_what_was_reserved_too_much_comes_back() -> None:
    state = RateState()
    reserve(600, state, 80, T0)

    settle(600, state, reserved=80, actual=30, now_us=T0)

    assert free(600, state, T0) == 70


def test_more_never_comes_back_than_was_taken() -> None:
    state = RateState()
    reserve(600, state, 80, T0)

    settle(600, state, reserved=80, actual=0, now_us=T0 + MINUTE)

    assert free(600, state, T0 + MINUTE) == 100


def test_what_was_used_beyond_the_reservation_is_waited_for() -> None:
    state = RateState()
    reserve(600, state, 100, T0)

    settle(600, state, reserved=100, actual=300, now_us=T0)

    assert room(600, state, T0) == (0, T0 + 20 * S + S // 10)


def test_an_absurd_usage_shuts_us_out_for_a_minute_and_not_for_hours() -> None:
    state = RateState()
    reserve(600, state, 1, T0)

    settle(600, state, reserved=1, actual=10**15, now_us=T0)

    assert room(600, state, T0) == (0, T0 + MINUTE + S // 10)


def test_more_than_the_whole_bound_passes_when_the_bucket_is_full_and_only_then() -> None:
    state = RateState()
    assert room(600, state, T0, units=5000) == (100, None)
    reserve(600, state, 1, T0)
    assert room(600, state, T0, units=5000) == (99, T0 + S // 10)

    reserve(600, state, 5000, T0 + S)

    assert room(600, state, T0 + S) == (0, T0 + S + MINUTE + S // 10)


def test_calls_counts_whole_calls() -> None:
    state = RateState()

    assert calls(600, state, T0, units=30) == (3, None)
    assert calls(600, state, T0, units=500) == (1, None)
    assert calls(600, drained(600), T0, units=30) == (0, T0 + 3 * S)
    assert calls(600, state, T0, units=0) == (None, None)
    assert calls(0, state, T0, units=30) == (None, None)


def test_a_bound_that_is_lowered_holds_within_a_minute() -> None:
    state = drained(1_000_000)

    _, when_us = room(60, state, T0)

    assert when_us is not None
    assert when_us <= T0 + MINUTE + S


def test_a_state_survives_the_way_through_json() -> None:
    state = drained(10**9)
    feedback(10**9, state, RateFeedback(remaining=0, reset_s=9), T0)

    assert msgspec.json.decode(msgspec.json.encode(state), type=RateState) == state
    assert len(msgspec.json.encode(state)) < 150


# ---------------------------------------------------------------- what the provider says


def test_less_left_than_we_think_is_believed() -> None:
    state = RateState()

    feedback(600, state, RateFeedback(remaining=7), T0)

    assert free(600, state, T0) == 7
    assert free(600, state, T0 + S) == 17


def test_more_left_than_we_think_is_not_believed() -> None:
    state = drained(600)

    feedback(600, state, RateFeedback(limit=10**6, remaining=10**6, reset_s=0), T0)

    assert free(600, state, T0) == 0


@pytest.mark.parametrize("per_minute", [0, 600])
def test_nothing_left_shuts_it_until_the_reset_also_without_a_bound(per_minute: int) -> None:
    state = RateState()

    feedback(per_minute, state, RateFeedback(remaining=0, reset_s=30), T0)

    assert room(per_minute, state, T0) == (0, T0 + 30 * S)
    assert room(per_minute, state, T0 + 30 * S - 1) == (0, T0 + 30 * S)
    assert room(per_minute, state, T0 + 30 * S)[1] is None


def test_a_reset_that_is_told_again_shorter_does_not_open_it_early() -> None:
    state = RateState()
    feedback(600, state, RateFeedback(remaining=0, reset_s=30), T0)

    feedback(600, state, RateFeedback(remaining=0, reset_s=2), T0 + S)

    assert room(600, state, T0 + S) == (0, T0 + 30 * S)


def test_after_the_reset_the_debt_still_has_to_flow_off() -> None:
    state = drained(6)

    feedback(6, state, RateFeedback(remaining=0, reset_s=1), T0)

    assert room(6, state, T0) == (0, T0 + 10 * S)


@pytest.mark.parametrize(
    ("said", "shut_s"),
    [
        (RateFeedback(remaining=0, reset_s=math.inf), 3600),
        (RateFeedback(remaining=0, reset_s=1e30), 3600),
        (RateFeedback(remaining=-5, reset_s=2), 2),
        (RateFeedback(remaining=0, reset_s=math.nan), 0),
        (RateFeedback(remaining=0, reset_s=-1), 0),
        (RateFeedback(remaining=0), 0),
        (RateFeedback(reset_s=50), 0),
        (RateFeedback(limit=0), 0),
    ],
)
def test_what_makes_no_sense_does_no_harm(said: RateFeedback, shut_s: int) -> None:
    state = RateState()

    feedback(0, state, said, T0)

    assert room(0, state, T0) == ((0, T0 + shut_s * S) if shut_s else (None, None))


# ---------------------------------------------------------------- clocks


def test_a_clock_read_a_moment_before_another_process_gains_nothing() -> None:
    state = drained(600)

    for n in range(10):  # two processes by turns, one reads its clock 5 s behind the other
        reserve(600, state, 0, T0 + (5 * S if n % 2 else 0))

    assert free(600, state, T0 + 5 * S) == 50


def test_a_clock_set_back_for_good_shuts_nobody_out() -> None:
    state = drained(600)
    feedback(600, state, RateFeedback(remaining=0, reset_s=3600), T0)
    early_us = T0 - 86_400 * S

    assert room(600, state, early_us) == (100, None)
    reserve(600, state, 100, early_us)
    assert room(600, state, early_us) == (0, early_us + S // 10)


def test_a_clock_set_back_by_less_than_a_minute_costs_less_than_a_minute() -> None:
    state = drained(600)

    _, when_us = room(600, state, T0 - 59 * S)

    assert when_us == T0 + S // 10


# ---------------------------------------------------------------- properties

Step = tuple[int, int, int, int]  # µs since the last step, units, of which are used, what is settled meanwhile
STEPS = st.lists(
    st.tuples(st.integers(0, 30 * S), st.integers(0, 400), st.integers(0, 400), st.integers(0, 3)),
    max_size=60,
)


def greedy(per_minute: int, steps: list[Step]) -> list[tuple[int, int]]:
    """Send whatever may be sent as early as it may; return (when, units) of all that passed, refunds as negatives."""
    state = RateState()
    now_us = T0
    passed: list[tuple[int, int]] = []
    out: list[tuple[int, int]] = []
    for wait_us, size, used, settled in steps:
        units = min(size, per_minute + burst_units(per_minute))
        now_us += wait_us
        for reserved, actual in out[:settled]:
            settle(per_minute, state, reserved=reserved, actual=actual, now_us=now_us)
            passed.append((now_us, actual - reserved))
        del out[:settled]
        _, when_us = room(per_minute, state, now_us, units=units)
        if when_us is not None:
            assert when_us > now_us
            assert room(per_minute, state, when_us, units=units)[1] is None
            assert room(per_minute, state, when_us - 1, units=units)[1] is not None
            now_us = when_us
        reserve(per_minute, state, units, now_us)
        passed.append((now_us, units))
        out.append((units, min(units, used)))
    return passed


def most_in_a_minute(passed: list[tuple[int, int]]) -> int:
    return max(
        (
            sum(units for at_us, units in passed[i:] if at_us < began_us + MINUTE)
            for i, (began_us, _) in enumerate(passed)
        ),
        default=0,
    )


@given(st.integers(1, 3000), STEPS)
def test_never_more_than_the_bound_and_one_burst_in_any_minute(per_minute: int, steps: list[Step]) -> None:
    passed = greedy(per_minute, [(wait, units, units, 0) for wait, units, _, _ in steps])

    largest = max((units for _, units in passed), default=0)

    assert most_in_a_minute(passed) <= per_minute + max(burst_units(per_minute), largest)


@given(st.integers(1, 3000), STEPS)
def test_what_comes_back_may_be_sent_again_and_no_more(per_minute: int, steps: list[Step]) -> None:
    passed = greedy(per_minute, steps)

    largest = max((units for _, units in passed), default=0)

    for i in range(len(passed)):
        in_minute = [u for at_us, u in passed[i:] if at_us < passed[i][0] + MINUTE]
        refunds = -sum(u for u in in_minute if u < 0)
        assert sum(u for u in in_minute if u > 0) <= per_minute + max(burst_units(per_minute), largest) + refunds


@given(st.integers(1, 3000), st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_a_line_that_never_rests_gets_the_whole_bound(per_minute: int, sizes: list[int]) -> None:
    """The limit is not only kept but used: what passes is what the bound gives, to the µs per call."""
    passed = greedy(per_minute, [(0, units, units, 0) for units in sizes if units <= burst_units(per_minute)])
    total = sum(units for _, units in passed)
    if not passed:
        return

    took_us = passed[-1][0] - T0

    assert (took_us - len(passed)) * per_minute < max(0, total - burst_units(per_minute)) * MINUTE + 1


@given(st.integers(0, 3000), st.lists(st.tuples(st.integers(-2 * MINUTE, MINUTE), st.integers(0, 500), st.booleans())))
def test_whatever_happens_it_is_open_again_within_a_little_more_than_a_minute(
    per_minute: int, steps: list[tuple[int, int, bool]]
) -> None:
    """Also when the clock runs to and fro; a provider's own reset aside."""
    state, now_us = RateState(), T0
    for step_us, units, is_feedback in steps:
        now_us += step_us
        if is_feedback:
            feedback(per_minute, state, RateFeedback(remaining=units), now_us)
        else:
            settle(per_minute, state, reserved=0, actual=units, now_us=now_us)

    _, when_us = room(per_minute, state, now_us)

    assert when_us is None or when_us <= now_us + 2 * MINUTE + MINUTE // per_minute + 1
