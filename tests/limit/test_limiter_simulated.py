"""What the strategies make of providers: the numbers that are promised, in simulated hours, for three seeds each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sennit.limit.strategies import Tuning
from sennit.model.provider import Strategy
from sennit.testing.limitsim import CONSTANT, LOCAL, REMOTE, STEP, UNCAPPED, Provider, Run, oracle, simulate

SEEDS = (1, 2, 3)
MOVING: tuple[Strategy, ...] = ("aimd", "gradient", "vegas")

each_seed = pytest.mark.parametrize("seed", SEEDS)
each_strategy = pytest.mark.parametrize("strategy", MOVING)


def blind(provider: Provider) -> Provider:
    """Return the same, with callers who do not know how many tokens a call came to."""
    return replace(provider, reports_work=False)


def p50(run: Run) -> float:
    return sorted(run.latencies_s)[len(run.latencies_s) // 2]


@each_seed
@pytest.mark.parametrize("provider", [REMOTE, CONSTANT, blind(REMOTE)], ids=lambda p: f"{p.name} {p.reports_work}")
@each_strategy
def test_an_unknown_cap_of_40_yields_80_percent_of_the_oracle_and_2_percent_of_429s(
    strategy: Strategy, provider: Provider, seed: int
) -> None:
    run = simulate(provider, strategy, seed=seed)

    assert run.done >= 0.8 * oracle(provider, seed=seed).done
    assert run.throttled_share <= 0.02


@each_seed
def test_aimd_does_better_than_is_asked(seed: int) -> None:
    run = simulate(REMOTE, "aimd", seed=seed)

    assert run.done >= 0.9 * oracle(REMOTE, seed=seed).done
    assert run.throttled_share <= 0.01


@each_seed
@pytest.mark.parametrize("cap", [1, 2, 4, 12])
def test_small_caps_are_not_hammered_either(cap: int, seed: int) -> None:
    provider = replace(REMOTE, name=f"cap {cap}", cap=lambda _s: cap)

    run = simulate(provider, "aimd", seed=seed, seconds=3600.0)

    assert run.done >= 0.9 * oracle(provider, seed=seed, seconds=3600.0).done
    assert run.throttled_share <= 0.02


@each_seed
def test_half_of_the_cap_is_in_use_within_a_minute(seed: int) -> None:
    run = simulate(REMOTE, "aimd", seed=seed, seconds=90.0, warm_up_s=0.0)

    assert min(point.at_s for point in run.trace if point.in_flight >= 20) <= 60.0


@each_seed
@each_strategy
def test_a_cap_that_falls_to_a_quarter_is_followed_down_and_up_again(strategy: Strategy, seed: int) -> None:
    """The cap is 10 from 900 s to 1500 s."""
    run = simulate(STEP, strategy, seed=seed, seconds=2400.0)

    assert 6.0 <= run.mean_limit(1000.0, 1500.0) <= 13.0
    assert run.mean_limit(2000.0, 2400.0) >= 30.0
    assert run.done >= 0.8 * oracle(STEP, seed=seed, seconds=2400.0).done
    assert run.throttled_share <= 0.02


@each_seed
def test_a_fall_of_the_cap_costs_a_handful_of_429s_and_no_storm(seed: int) -> None:
    run = simulate(STEP, "aimd", seed=seed, seconds=1000.0)
    before = max(point.throttled for point in run.trace if point.at_s < 900.0)

    assert run.trace[-1].throttled - before <= 30


@each_seed
@each_strategy
def test_slowness_that_is_not_our_doing_costs_a_tenth_at_most_and_is_got_over(strategy: Strategy, seed: int) -> None:
    """Three times slower from 900 s to 1200 s, at any load: only half of it tells that giving way does not help."""
    run = simulate(UNCAPPED, strategy, seed=seed, seconds=2400.0)
    at_ceiling = simulate(UNCAPPED, "fixed", seed=seed, seconds=2400.0)

    assert run.done >= 0.9 * at_ceiling.done
    assert run.mean_limit(2200.0, 2400.0) >= 180.0


@each_seed
def test_without_the_delay_term_slowness_costs_nothing(seed: int) -> None:
    run = simulate(UNCAPPED, "aimd", seed=seed, seconds=1800.0, tuning=Tuning(delay_ratio=0.0))

    assert run.mean_limit(900.0, 1800.0) == 200.0


@each_seed
@each_strategy
def test_the_knee_of_a_local_server_is_found_by_time_per_token(strategy: Strategy, seed: int) -> None:
    """Eight cores, shared evenly: more than eight calls at once only make each of them slower."""
    run = simulate(LOCAL, strategy, seed=seed, seconds=2400.0)
    best = oracle(LOCAL, seed=seed, seconds=2400.0)
    unlimited = simulate(LOCAL, "fixed", seed=seed, seconds=2400.0, ceiling=40)

    assert 8.0 <= run.mean_limit(300.0) <= 24.0
    assert run.done >= 0.95 * best.done
    assert p50(run) <= 0.75 * p50(unlimited)
    assert run.timeouts <= unlimited.timeouts / 2


@each_seed
def test_without_tokens_time_outs_alone_hold_a_local_server_back(seed: int) -> None:
    run = simulate(blind(LOCAL), "aimd", seed=seed, seconds=2400.0)
    known = simulate(LOCAL, "aimd", seed=seed, seconds=2400.0)

    assert 8.0 <= run.mean_limit(300.0) <= 40.0
    assert run.timeouts > known.timeouts  # what reporting tokens is good for


@each_seed
def test_the_limit_does_not_starve_on_long_answers(seed: int) -> None:
    """Raw duration as a sign of load left Vegas at 6 of 40 (research); per token it stays near the cap."""
    run = simulate(REMOTE, "vegas", seed=seed)

    assert run.mean_limit(300.0) >= 30.0


def test_a_run_is_repeated_exactly_by_its_seed() -> None:
    first, again, other = (simulate(REMOTE, "aimd", seed=seed, seconds=600.0) for seed in (5, 5, 6))

    assert first == again
    assert first.trace != other.trace


def test_the_oracle_is_never_refused_where_the_cap_stays() -> None:
    run = oracle(REMOTE, seed=1, seconds=900.0, warm_up_s=0.0)

    assert run.throttled == 0
    assert all(point.in_flight == 40 for point in run.trace)


def test_a_loaded_server_shares_its_cores_evenly() -> None:
    """16 calls on 8 cores: each takes twice as long, and as many are done as with 8."""
    provider = replace(LOCAL, service_s=lambda _random: 8.0)

    run = simulate(provider, "fixed", seed=1, ceiling=16, seconds=1600.0, warm_up_s=0.0)

    assert p50(run) == pytest.approx(16.0)
    assert run.done == pytest.approx(1600, abs=16)
