"""The retry policy: how often, how long after, and for which exceptions not at all."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.model.retry import NotRetryable, RetryPolicy, Rule

policies = st.builds(
    RetryPolicy,
    retries=st.integers(0, 1000),
    delay_s=st.floats(0, 1e6),
    factor=st.floats(1, 1e6),
    delay_s_max=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
)
chances = st.floats(0, 1, exclude_max=True)


@given(policy=policies, failures=st.integers(1, 10**9), jitter=chances)
def test_a_delay_is_finite_not_negative_and_at_most_the_cap(policy: RetryPolicy, failures: int, jitter: float) -> None:
    delay_s = policy.next_delay_s(ValueError(), failures=failures, jitter=jitter)

    if failures > policy.retries:
        assert delay_s is None
    else:
        assert delay_s is not None
        assert math.isfinite(delay_s)
        assert 0 <= delay_s <= policy.delay_s_max


@given(policy=policies, failures=st.integers(1, 1000), jitter=chances)
def test_jitter_only_ever_takes_away_its_part(policy: RetryPolicy, failures: int, jitter: float) -> None:
    full_s = policy.next_delay_s(None, failures=failures, jitter=0.0)
    part_s = policy.next_delay_s(None, failures=failures, jitter=jitter)

    if full_s is None or part_s is None:
        assert full_s is part_s
    else:
        assert full_s * (1 - policy.jitter) <= part_s * (1 + 1e-9)
        assert part_s <= full_s


@given(policy=policies, failures=st.integers(1, 100))
def test_without_jitter_delays_never_shrink(policy: RetryPolicy, failures: int) -> None:
    one, next_one = (policy.next_delay_s(None, failures=n, jitter=0.0) for n in (failures, failures + 1))

    assert next_one is None or (one is not None and next_one >= one)


def test_delays_double_until_the_cap() -> None:
    policy = RetryPolicy(retries=6, delay_s=1, factor=2, delay_s_max=10, jitter=0)

    delays = [policy.next_delay_s(None, failures=n, jitter=0.5) for n in range(1, 8)]

    assert delays == [1, 2, 4, 8, 10, 10, None]


def test_the_first_rule_that_matches_decides() -> None:
    policy = RetryPolicy(
        retries=1,
        delay_s=1,
        jitter=0,
        rules=(
            Rule(on=(ConnectionResetError,), retries=0),
            Rule(on=(ConnectionError, TimeoutError), retries=5, delay_s=30),
        ),
    )

    assert policy.next_delay_s(ConnectionResetError(), failures=1, jitter=0) is None
    assert policy.next_delay_s(BrokenPipeError(), failures=5, jitter=0) == 480
    assert policy.next_delay_s(TimeoutError(), failures=6, jitter=0) is None
    assert policy.next_delay_s(ValueError(), failures=1, jitter=0) == 1
    assert policy.next_delay_s(None, failures=2, jitter=0) is None


def test_what_is_not_retryable_fails_at_once_whatever_the_rules_say() -> None:
    class NoSuchUser(NotRetryable):
        pass

    policy = RetryPolicy(retries=9, never_on=(KeyError,), rules=(Rule(on=(Exception,), retries=9),))

    assert policy.next_delay_s(NoSuchUser(), failures=1, jitter=0) is None
    assert policy.next_delay_s(KeyError(), failures=1, jitter=0) is None
    assert policy.next_delay_s(LookupError(), failures=1, jitter=0) is not None


def test_failures_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="counts from 1"):
        RetryPolicy().next_delay_s(None, failures=0, jitter=0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"retries": -1}, "retries must be 0 or more, not -1"),
        ({"delay_s": -0.1}, "must not be negative"),
        ({"delay_s_max": -1}, "must not be negative"),
        ({"jitter": 1.1}, "jitter must be between 0 and 1, not 1.1"),
        ({"jitter": -0.1}, "jitter must be between"),
        ({"factor": 0.5}, "factor must be at least 1, not 0.5"),
    ],
)
def test_a_policy_out_of_bounds_is_refused(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RetryPolicy(**wrong)  # type: ignore[arg-type]  # that is the test
