"""Time-outs that learn: from steady, drifting and bimodal latencies, and from the calls they have cut off themselves."""

from __future__ import annotations

import math
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.errors import SettingsError
from sennit.limit.timeouts import LONGEST_S, LatencySketch, observe, quantile_s, timeout_s


def learnt(sketch: LatencySketch, *, factor: float = 2.0) -> float:
    return timeout_s(sketch, factor=factor, floor_s=0.1, ceiling_s=3600)


def run(sketch: LatencySketch, latencies_s: list[float], *, factor: float = 2.0) -> int:
    """Make these calls under the time-out as it is learnt; return how many were given up."""
    given_up = 0
    for latency_s in latencies_s:
        limit_s = learnt(sketch, factor=factor)
        observe(sketch, min(latency_s, limit_s), timed_out=latency_s > limit_s)
        given_up += latency_s > limit_s
    return given_up


def lognormal(median_s: float, n: int, seed: int = 1) -> list[float]:
    chance = Random(seed)
    return [median_s * math.exp(chance.gauss(0, 0.5)) for _ in range(n)]


# ---------------------------------------------------------------- the sketch


@given(st.lists(st.floats(0.001, 600_000), min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_a_quantile_is_right_to_a_bucket(latencies_s: list[float], quantile: float) -> None:
    sketch = LatencySketch()
    for latency_s in latencies_s:
        observe(sketch, latency_s)

    # Newer samples weigh a little more: the true quantile lies among these.
    ordered = sorted(latencies_s)
    low, high = (
        ordered[min(max(math.ceil(len(ordered) * q) - 1, 0), len(ordered) - 1)]
        for q in (quantile - 0.08, quantile + 0.08)
    )

    assert low * 0.999 <= quantile_s(sketch, quantile) <= high * 1.1001


@given(st.lists(st.one_of(st.floats(), st.sampled_from([0.0, -1.0, math.inf, math.nan, 1e300, 5e-324]))))
def test_absurd_durations_do_no_harm(latencies_s: list[float]) -> None:
    sketch = LatencySketch()

    for latency_s in latencies_s:
        observe(sketch, latency_s, timed_out=True)

    assert 0 <= quantile_s(sketch, 0.99) <= LONGEST_S * 1.1
    assert sketch.samples == sum(latency_s >= 0 for latency_s in latencies_s)


def test_a_sketch_stays_small_and_exact_over_a_hundred_thousand_samples() -> None:
    sketch, chance = LatencySketch(), Random(1)

    for _ in range(100_000):
        observe(sketch, 10 ** chance.uniform(-3, 6))

    assert len(sketch.weights) <= 215
    assert len(msgspec.json.encode(sketch)) < 8000
    assert quantile_s(sketch, 0.5) == pytest.approx(10**1.5, rel=0.9)
    assert all(math.isfinite(w) and w > 0 for w in sketch.weights.values())


def test_a_sketch_survives_the_way_through_json() -> None:
    sketch = LatencySketch()
    for latency_s in (0.1, 2, 2, 30):
        observe(sketch, latency_s)

    assert msgspec.json.decode(msgspec.json.encode(sketch), type=LatencySketch) == sketch


def test_two_sketches_share_nothing() -> None:
    observe(LatencySketch(), 1)

    assert LatencySketch().weights == {}


# ---------------------------------------------------------------- the time-out


def test_while_little_is_known_the_ceiling_holds() -> None:
    sketch = LatencySketch()
    run(sketch, [1.0] * 99)
    assert learnt(sketch) == 3600

    run(sketch, [1.0])

    assert learnt(sketch) == pytest.approx(2.0, rel=0.1)


def test_floor_and_ceiling_hold() -> None:
    sketch = LatencySketch()
    run(sketch, [1.0] * 200)

    assert timeout_s(sketch, floor_s=5, ceiling_s=60) == 5
    assert timeout_s(sketch, floor_s=0.1, ceiling_s=1.5) == 1.5


def test_steady_latencies_are_hardly_ever_cut_off() -> None:
    sketch = LatencySketch()
    run(sketch, lognormal(8, 1000))

    given_up = run(sketch, lognormal(8, 10_000, seed=2))

    assert given_up <= 20  # 2 in 1000; a 0.99 quantile without a factor would be 100
    assert 8 * math.exp(0.5 * 2.33) < learnt(sketch) < 120


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("slower", [3, 10, 100])
def test_when_calls_become_slow_for_good_the_time_out_grows_again(slower: int, factor: float) -> None:
    """Every call is cut off at first; counted as what they took until then, they would hold it down for ever."""
    sketch = LatencySketch()
    run(sketch, lognormal(1, 2000), factor=factor)
    before_s = learnt(sketch, factor=factor)

    given_up = run(sketch, lognormal(slower, 2000, seed=2), factor=factor)

    assert learnt(sketch, factor=factor) > before_s * slower / 3
    assert given_up < (120 if factor > 1 else 400)
    if factor > 1:
        assert run(sketch, lognormal(slower, 1000, seed=3), factor=factor) <= 15


def test_cut_off_calls_never_make_it_shorter() -> None:
    sketch = LatencySketch()
    run(sketch, [1.0] * 500)
    limits_s = []

    for _ in range(200):
        limits_s.append(learnt(sketch, factor=1.0))
        observe(sketch, limits_s[-1], timed_out=True)

    assert limits_s == sorted(limits_s)
    assert limits_s[-1] > 3 * limits_s[0]


def test_a_slow_drift_is_followed_up_and_down() -> None:
    sketch = LatencySketch()
    run(sketch, [1.0] * 500)

    given_up = run(sketch, [1.0 + n / 100 for n in range(1000)])
    assert given_up == 0
    assert learnt(sketch) == pytest.approx(22, rel=0.15)

    run(sketch, [11.0 - n / 100 for n in range(1000)] + [1.0] * 4000)
    assert learnt(sketch) == pytest.approx(2, rel=0.15)


def test_the_slow_mode_of_two_is_not_cut_off() -> None:
    """One call in ten is a long one: fifty times as long as the others."""
    chance = Random(1)
    sketch = LatencySketch()

    given_up = run(sketch, [50.0 if chance.random() < 0.1 else 1.0 for _ in range(5000)])

    assert given_up == 0
    assert learnt(sketch) == pytest.approx(100, rel=0.1)


def test_a_mode_rarer_than_the_quantile_is_cut_off_and_that_is_known() -> None:
    """One in a thousand: the 0.99 quantile does not see it. Who cannot lose it takes a higher quantile or the floor."""
    chance = Random(1)
    calls = [50.0 if chance.random() < 0.001 else 1.0 for _ in range(20_000)]
    sketch = LatencySketch()

    given_up = run(sketch, calls)

    assert given_up <= calls.count(50.0)
    assert learnt(sketch) < 5


@pytest.mark.parametrize(
    "knobs",
    [
        {"quantile": 0},
        {"quantile": 1},
        {"factor": 0.9},
        {"factor": math.nan},
        {"floor_s": 0},
        {"floor_s": 20, "ceiling_s": 10},
        {"ceiling_s": math.nan},
    ],
)
def test_knobs_that_make_no_sense_are_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="no time-out"):
        timeout_s(LatencySketch(), **{"floor_s": 1.0, "ceiling_s": 10.0, **knobs})  # type: ignore[arg-type]  # samples_min is an int
