"""What the governor makes of providers, in simulated time: the promised numbers, with pauses and breaker in play."""

from __future__ import annotations

from functools import cache

import pytest

from sennit.model.provider import Strategy
from sennit.testing.governorsim import (
    CONSTANT_LATENCY,
    LOCAL_SERVER,
    NO_CAP,
    SCENARIOS,
    STEPS,
    UNKNOWN_CAP,
    WINDOW,
    WINDOW_S,
    Scenario,
    govern,
    oracle,
)

SEEDS = (1, 2, 3)
MOVING: tuple[Strategy, ...] = ("aimd", "gradient", "vegas")

best = cache(oracle)  # the same for each strategy

# Without a cap two hundred calls are always out, which costs ten times what the others do.
CHANGING = [(scenario, seed) for scenario in (STEPS, LOCAL_SERVER, WINDOW) for seed in SEEDS] + [(NO_CAP, SEEDS[0])]

each_seed = pytest.mark.parametrize("seed", SEEDS)
each_strategy = pytest.mark.parametrize("strategy", MOVING)
each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.slug)


@each_seed
@each_strategy
@pytest.mark.parametrize("scenario", [UNKNOWN_CAP, CONSTANT_LATENCY], ids=lambda scenario: scenario.slug)
def test_a_cap_that_nobody_has_told_yields_80_percent_of_the_oracle_and_2_percent_of_429s(
    scenario: Scenario, strategy: Strategy, seed: int
) -> None:
    run = govern(scenario, strategy, seed=seed, seconds=1800.0)

    assert run.done >= 0.8 * best(scenario, seed=seed, seconds=1800.0).done
    assert run.throttled_share <= 0.02


@each_strategy
@pytest.mark.parametrize(("scenario", "seed"), CHANGING, ids=lambda value: getattr(value, "slug", value))
def test_what_changes_meanwhile_costs_a_fifth_at_most(scenario: Scenario, strategy: Strategy, seed: int) -> None:
    run = govern(scenario, strategy, seed=seed)

    assert run.done >= 0.8 * best(scenario, seed=seed).done
    assert run.throttled_share <= 0.02


@each_seed
@each_strategy
def test_a_used_up_window_is_found_out_once_and_nothing_more_is_sent_until_its_reset(
    strategy: Strategy, seed: int
) -> None:
    run = govern(WINDOW, strategy, seed=seed)
    begin_s, end_s = WINDOW_S
    closed = [point for point in run.trace if begin_s + 5.0 < point.at_s < end_s]

    assert run.in_window >= 1
    assert run.sent_in_pause == 0
    assert closed
    assert all(point.limit == 0 for point in closed)
    assert next(point.at_s for point in run.trace if point.at_s > end_s and point.in_flight > 0) <= end_s + 10.0
    assert run.trace[-1].in_flight >= 30


@each_scenario
def test_the_oracle_is_never_refused(scenario: Scenario) -> None:
    run = best(scenario, seed=1)

    assert (run.throttled, run.in_window) == (0, 0) or scenario is STEPS  # calls may be out when its cap falls
    assert run.done > 1000


@each_scenario
@each_strategy
def test_there_are_never_more_calls_out_than_the_ceiling(scenario: Scenario, strategy: Strategy) -> None:
    run = govern(scenario, strategy, seed=1, ceiling=12, seconds=900.0)

    assert max(point.in_flight for point in run.trace) == 12
    assert max(point.limit for point in run.trace) == 12


def test_a_governed_run_is_repeated_exactly_by_its_seed() -> None:
    first, again, other = (govern(UNKNOWN_CAP, "aimd", seed=seed, seconds=600.0) for seed in (5, 5, 6))

    assert first == again
    assert first.trace != other.trace
