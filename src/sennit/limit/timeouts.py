"""Time-outs that learn: how long a handler's calls take, in a few hundred bytes, and from that when to give one up.

    call ends ──► observe ──► LatencySketch ──► timeout_s = factor × its 0.99 quantile, between floor and ceiling
    call was given up ──► observe(timed_out=True): it would have taken at least so long

The second line keeps the time-out from strangling itself. Were calls that were given up left out, the sketch would only
know those that were fast enough, and each time-out would be shorter than the last. They count as at least their
time-out (they are *censored*), so when calls become slow for good, the time-out grows by `factor` each time that more
than 1 % of the recent calls have hit it.

The sketch is a histogram with log-spaced buckets, so a quantile is right to 5 % whatever the scale, as in DDSketch
(Masson, Rim, Lee, VLDB 2019). Old samples fade: each new one weighs more than the one before by a constant factor, as in
forward decay (Cormode et al., ICDE 2009).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from sennit.errors import SettingsError

# Each bucket is a tenth wider than the one before: 1 ms to 7 days are 213 buckets.
GROWTH: Final = 1.1
SHORTEST_S: Final = 1e-3
LONGEST_S: Final = 7 * 86_400.0
_INDEX_MAX: Final = math.ceil(math.log(LONGEST_S / SHORTEST_S, GROWTH))

# After so many samples an old one counts half. The 0.99 quantile of a changed latency is then found after about ten
# samples when it has grown, and after about 3000 when it has fallen: quick to wait longer, slow to lose patience.
HALF_LIFE: Final = 500
_FADE: Final = 2 ** (1 / HALF_LIFE)
_WEIGHT_MAX: Final = 2.0**40  # then all weights are scaled down, so that they stay exact
_WEIGHT_MIN: Final = 1e-6  # of a newest sample: forgotten


class LatencySketch(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is known of how long something takes. Changed in place; JSON-encodable; at most 214 buckets.

    Attributes:
        weights: by bucket; bucket i ends at SHORTEST_S × GROWTH ** i.
        weight: of the next sample.
        samples: how many there ever were.
    """

    weights: dict[int, float] = {}
    weight: float = 1.0
    samples: int = 0


def observe(sketch: LatencySketch, duration_s: float, *, timed_out: bool = False) -> None:
    """Take note of one call that has succeeded, or that was given up after `duration_s`.

    Leave out calls that have failed or were cancelled by somebody else: how long those took says nothing of how long a
    good one takes. A duration that is no number of at least 0 is left out here.
    """
    if not duration_s >= 0:
        return
    # Given up: it belongs above the bucket in which it was given up, or a factor of 1 would never grow.
    index = min(_index(duration_s) + timed_out, _INDEX_MAX)
    weights = sketch.weights
    weights[index] = weights.get(index, 0.0) + sketch.weight
    sketch.samples += 1
    sketch.weight *= _FADE
    if sketch.weight > _WEIGHT_MAX:
        scale = sketch.weight
        sketch.weights = {i: w / scale for i, w in weights.items() if w / scale > _WEIGHT_MIN}
        sketch.weight = 1.0


def quantile_s(sketch: LatencySketch, quantile: float) -> float:
    """Return the upper end of the bucket in which the quantile lies, in seconds; 0 for an empty sketch."""
    wanted = quantile * sum(sketch.weights.values())
    seen = 0.0
    index = 0
    for index in sorted(sketch.weights):  # ends at the last one, should rounding leave a little over
        seen += sketch.weights[index]
        if seen >= wanted:
            break
    return float(SHORTEST_S * GROWTH**index) if sketch.weights else 0.0


def timeout_s(
    sketch: LatencySketch,
    *,
    quantile: float = 0.99,
    factor: float = 2.0,
    floor_s: float,
    ceiling_s: float,
    samples_min: int = 100,
) -> float:
    """Return when to give up the next call, in seconds: `ceiling_s` while too little is known.

    Args:
        factor: how much longer than the quantile; at least 1. Above 1 it also says how fast it can grow.
        samples_min: the 0.99 quantile of fewer than 100 is only their maximum.

    Raises:
        SettingsError: the quantile is not between 0 and 1, the factor below 1, or not 0 < floor_s <= ceiling_s.
    """
    if not (0 < quantile < 1 and factor >= 1 and 0 < floor_s <= ceiling_s):
        raise SettingsError(
            f"no time-out can be had from quantile={quantile!r}, factor={factor!r}, floor_s={floor_s!r}, "
            f"ceiling_s={ceiling_s!r}",
            why="it needs 0 < quantile < 1, factor >= 1 and 0 < floor_s <= ceiling_s",
        )
    if sketch.samples < samples_min:
        return ceiling_s
    return min(max(factor * quantile_s(sketch, quantile), floor_s), ceiling_s)


def _index(duration_s: float) -> int:
    """Return the bucket: the first that does not end below `duration_s`."""
    if duration_s <= SHORTEST_S:
        return 0
    if duration_s >= LONGEST_S:
        return _INDEX_MAX
    return math.ceil(math.log(duration_s / SHORTEST_S, GROWTH))
