"""So many units a minute, requests or tokens, as a value: reserve what a call may use, settle what it has used.

    room ──► reserve 800 ──► (the call) ──► settle 800 → 350: 450 come back; 800 → 1200: 400 more, if need be as debt
                                        └─► feedback: the provider says that less is left: then less is left

This is the continuous leaky bucket: `spent` flows off at the bound's rate, and a call may begin while it fits under the
burst. It is the same algorithm as GCRA's virtual scheduling (`at_us + spent / rate` is the theoretical arrival time).
Source: ITU-T Recommendation I.371, annex A, "Generic Cell Rate Algorithm"; both forms stand there side by side.

What holds: of what was reserved, less what came back, at most bound + burst passes in any 60 s (one burst or the largest
single call, whichever is more; a call above the bound itself is let through and counts as a minute's debt). Estimates
that are too high are given back in full, as providers do that count `max_tokens` first and correct it afterwards; so what
was *used* in 60 s may be more by what was over-reserved before.

The burst is ten seconds' worth. Providers fill up continuously and hold about a minute's worth, so a minute at once would
fit; but they also enforce a minute's limit over seconds, and some count in fixed minutes, where whatever we send at once
after a rest comes on top: a sixth too much at most, once. Less than ten seconds would make a fleet that starts wait
though the whole minute is there. It is at least one unit.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from sennit.model.provider import RateFeedback

BURST_S: Final = 10.0
MINUTE_US: Final = 60_000_000
# A unit in the finest measure of `spent`: a bound of r per minute then takes off exactly r per µs, in whole numbers.
UNIT: Final = MINUTE_US
# A reset that lies further ahead is no rate's but a quota's, and that is a pause's business.
SHUT_S_MAX: Final = 3600.0


class RateState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is known of one bound. Changed in place by the functions below; JSON-encodable. A fresh one is unspent.

    Attributes:
        spent: what has not flowed off yet, in 1/UNIT units; as of `at_us`.
        shut_until_us: the provider says that nothing is left until then. shut_us: when it said so.
    """

    spent: int = 0
    at_us: int = 0
    shut_us: int = 0
    shut_until_us: int = 0


def burst_units(per_minute: int, burst_s: float = BURST_S) -> int:
    """Return how many units may be sent at once after a rest: `burst_s` seconds' worth, at least 1."""
    return max(1, int(per_minute * burst_s / 60))


def room(
    per_minute: int, state: RateState, now_us: int, *, units: int = 1, burst_s: float = BURST_S
) -> tuple[int | None, int | None]:
    """Return (units that are free now, when `units` of them can be had). Changes nothing.

    The first is None without a bound; the second is None when they can be had now. More than a burst is let through as
    soon as the bucket is full, or it would wait for ever: so the second may be None while fewer than `units` are free.

    Args:
        per_minute: the bound; 0 is none, and then only the provider's own word shuts it.
    """
    shut_us = state.shut_until_us if state.shut_us - MINUTE_US <= now_us < state.shut_until_us else 0
    if per_minute <= 0:
        return (0, shut_us) if shut_us else (None, None)
    full = burst_units(per_minute, burst_s) * UNIT
    free = full - _spent(per_minute, state, now_us, burst_s)
    short = min(units * UNIT, full) - free
    if short <= 0 and not shut_us:
        return free // UNIT, None
    # Nothing flows off before `at_us`, if the clock was set back.
    when_us = max(now_us, state.at_us) - (-max(0, short) // per_minute)
    return (0, max(shut_us, when_us)) if shut_us else (max(0, free // UNIT), when_us)


def calls(
    per_minute: int, state: RateState, now_us: int, *, units: int = 1, burst_s: float = BURST_S
) -> tuple[int | None, int | None]:
    """Return (how many calls of `units` each may begin now, when the next one may). None: any number; now."""
    free, when_us = room(per_minute, state, now_us, units=units, burst_s=burst_s)
    if when_us is not None:
        return 0, when_us
    if free is None or units <= 0:
        return None, None
    return max(1, free // units), None


def reserve(per_minute: int, state: RateState, units: int, now_us: int, *, burst_s: float = BURST_S) -> None:
    """Take `units`; `room` has just said that they can be had."""
    _spend(per_minute, state, units, now_us, burst_s)


def settle(
    per_minute: int, state: RateState, *, reserved: int, actual: int, now_us: int, burst_s: float = BURST_S
) -> None:
    """Correct a reservation to what was used. More than was reserved is owed: nothing passes until it has flowed off."""
    _spend(per_minute, state, max(0, actual) - reserved, now_us, burst_s)


def feedback(per_minute: int, state: RateState, said: RateFeedback, now_us: int, *, burst_s: float = BURST_S) -> None:
    """Believe the provider when it says that less is left than we think; never that more is.

    Nothing left and a reset: nothing passes before it, also without a bound. `limit` is not used: some servers state
    it per second or per day, and a limit that is really lower shows in what remains.
    """
    if said.remaining is None:
        return
    if per_minute > 0:
        _spend(per_minute, state, 0, now_us, burst_s)
        full = burst_units(per_minute, burst_s) * UNIT
        state.spent = max(state.spent, full - max(0, said.remaining) * UNIT)
    if said.remaining <= 0 and said.reset_s is not None and said.reset_s > 0 and not math.isnan(said.reset_s):
        until_us = now_us + round(min(said.reset_s, SHUT_S_MAX) * 1e6)
        is_shut = state.shut_us - MINUTE_US <= now_us < state.shut_until_us
        state.shut_until_us = max(until_us, state.shut_until_us) if is_shut else until_us
        state.shut_us = now_us


# ---------------------------------------------------------------- inside


def _spent(per_minute: int, state: RateState, now_us: int, burst_s: float) -> int:
    """Return what has not flowed off by now.

    Transactions of several processes read the clock before they begin, so `now_us` may lie a little before `at_us`:
    then nothing has flowed off since. If it lies a minute before it, the clock was set back: no rate remembers that.
    """
    if now_us < state.at_us - MINUTE_US:
        return 0
    return max(0, min(state.spent, _spent_max(per_minute, burst_s)) - per_minute * max(0, now_us - state.at_us))


def _spent_max(per_minute: int, burst_s: float) -> int:
    """A minute's debt at most: no rate remembers more, and one absurd usage must not shut us out for hours.

    It also holds when the bound is lowered: what was spent under the old one would take long to flow off.
    """
    return (burst_units(per_minute, burst_s) + per_minute) * UNIT


def _spend(per_minute: int, state: RateState, units: int, now_us: int, burst_s: float) -> None:
    if per_minute <= 0:
        return
    spent = max(0, _spent(per_minute, state, now_us, burst_s) + units * UNIT)
    state.spent = min(spent, _spent_max(per_minute, burst_s))
    state.at_us = now_us if now_us < state.at_us - MINUTE_US else max(state.at_us, now_us)
