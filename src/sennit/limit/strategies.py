"""How many calls at once: a limit that finds what a provider bears, from how the calls went. Pure.

                    ┌── doubles per round of calls, until the first decrease (slow start)
    limit           │   ┌── one 429: × 0.85, once per volley and cool-down
      40 ┤         ╱│╲  │╱│    ╱│
      34 ┤        ╱ │ ╲╱  │ ╱╱  │ ╱╱        ← then + 1 per round, faster the longer nothing is refused
       4 ┤ ── ╱ ─╱
         └────────────────────────────────► time

    sample(state, strategy="aimd", ceiling=200, in_flight=…, outcome=…, duration_us=…, work=…, now_us=…)
    allowed(state, …) ─► so many may be in flight

Every strategy backs off from refusals in the same way; they differ in how they grow, and in whether they look at delay.
Delay is *time per unit of work* (µs per token), never raw duration: how long a model call takes is mostly how much it
writes, and a limiter that reads that as congestion starves the fleet. A call that reports no work says nothing of delay,
and then `gradient` and `vegas` are `aimd`.

What a limit does not do: it bounds how many calls are out, not how often. A provider that refuses every call is for a
pause or a breaker to stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from sennit.model.provider import CallOutcome, Strategy

START: Final = 4.0
"""Calls at once before anything is known. Source: RFC 3390, an initial window of at most four segments: few enough not
to slam a server nobody knows, and 40 is reached in four rounds of doubling. Ten (RFC 6928) costs three times the time-outs
on a local server of 4 or 8 slots, whose best time per token is then measured while calls queue; it gains a call or two of time."""


class Tuning(msgspec.Struct, kw_only=True, frozen=True, gc=False, omit_defaults=True):
    """The constants of the strategies. The defaults were chosen by `sennit.testing.limitsim`.

    Attributes:
        decrease: a refusal multiplies the limit by this. Chiu & Jain (1989) show that additive increase with
            multiplicative decrease converges to a fair share among clients that do not know of each other. TCP has 0.5
            since it must empty queues; a provider that refuses has none (CUBIC, RFC 9438: 0.7; Netflix AIMDLimit: 0.9).
        cooldown_us: at most one such decrease in this time.
        timeout_decrease: a time-out does by this: it says that calls were lost and not only turned away. TCP makes
            the same difference, between a loss and a retransmission time-out.
        patience_rounds: after so many rounds of calls without a decrease the limit grows by 2 per round, after twice as
            many by 3, up to `growth_max`, so that a raised cap is found in minutes. After H-TCP (Leith & Shorten 2004),
            which counts time; rounds make it the same for calls of 100 ms and of 100 s.
        probe_calls: where it was refused last is tried again after so many calls that went well. At a cap of 40 additive
            growth takes longer than that anyhow; at a cap of 4 it would be refused every tenth call.
        delay_ratio: `aimd` backs off when time per unit of work is this many times its baseline; 0 is never.
        tolerance: `gradient` lets it be this many times the baseline. Source: Netflix Gradient2Limit, rttTolerance.
    """

    decrease: float = 0.85
    timeout_decrease: float = 0.7
    cooldown_us: int = 10_000_000
    patience_rounds: float = 8.0
    growth_max: float = 8.0
    probe_calls: int = 100
    delay_ratio: float = 2.0
    tolerance: float = 1.5


DEFAULT: Final = Tuning()

HALF: Final = 0.5  # no single sample takes away more than half; also the clamp of Envoy's and Netflix's gradients
WINDOW_CALLS_MIN: Final = 10  # Netflix WindowedLimit, minWindowSize
GRADIENT_STEP: Final = 0.2  # Gradient2Limit, smoothing
VEGAS_FEW, VEGAS_MANY = 3, 6  # Netflix VegasLimit: alpha and beta, times log10(limit)
SHORT_OF_ONE: Final = 1 / 64
VEGAS_BUFFER: Final = 1.15  # a baseline is a smallest value, so noise has made it too small; Envoy's buffer is 1.25
WORSE: Final = 1.1  # less than a tenth more delay is noise
IMPROVED: Final = 0.8  # at half the limit, delay above this share of what it was is not our doing


class LimitState(msgspec.Struct, kw_only=True, gc=False, omit_defaults=True):
    """What is known of one limit: numbers only, about 150 bytes of JSON. Changed by `sample`, and by nothing else.

    Attributes:
        limit: calls at once; a fraction counts when it has grown to a whole call.
        threshold: below this the limit doubles per round; 0 until the first decrease, and then there is no bound.
        decreased_us: when it was decreased last, on the caller's clock; 0 is never. rounds: of calls since then.
        refused_at: how many were in flight at the last refusal; 0 is none yet. calls: that went well since then.
        base_us: µs per unit of work when nothing queues: the smallest seen, smoothed; 0 is unknown.
        window_us, window_work, window_calls: sums over the calls since the last look at delay.
        high_limit, high_us: limit and µs per unit of work at the worst since delay makes us back off; 0 when it does not.
    """

    limit: float = START
    threshold: float = 0.0
    decreased_us: int = 0
    rounds: float = 0.0
    refused_at: int = 0
    calls: int = 0
    base_us: float = 0.0
    window_us: int = 0
    window_work: int = 0
    window_calls: int = 0
    high_limit: float = 0.0
    high_us: float = 0.0


def new_state(strategy: Strategy, *, ceiling: int, floor: int = 1) -> LimitState:
    """Return the state of a limit of which nothing is known."""
    return LimitState(limit=float(ceiling) if strategy == "fixed" else float(min(max(START, floor), ceiling)))


def allowed(state: LimitState, *, strategy: Strategy, ceiling: int, floor: int = 1) -> int:
    """Return how many calls may be in flight: never below `floor`, never above `ceiling`, also just after a change of either."""
    limit = int(state.limit)
    if strategy == "fixed" or limit > ceiling:
        return ceiling
    return max(limit, floor)


def sample(
    state: LimitState,
    *,
    strategy: Strategy,
    ceiling: int,
    floor: int = 1,
    in_flight: int,
    outcome: CallOutcome,
    duration_us: int = 0,
    work: int = 0,
    now_us: int,
    tuning: Tuning = DEFAULT,
) -> None:
    """One call has ended: move `state.limit`.

    Args:
        ceiling: the most that may ever be in flight, at least `floor`; 1 ≤ floor.
        in_flight: how many were, with this one.
        outcome: `throttled`, `overloaded` and `timeout` decrease, `ok` may increase; the others say nothing of load.
        duration_us: from grant to end. 0 or less (a clock that stepped back) is unknown.
        work: tokens or other units that the call was long for; 0 is not reported.
        now_us: any clock, the same for all samples. A step back costs one cool-down.
    """
    if strategy == "fixed":
        state.limit = float(ceiling)
        return
    if outcome == "ok":
        before = state.limit
        state.calls += 1
        # Below half use nothing is learnt of the ceiling, or an idle fleet's limit would drift up over night ("app
        # limited"; Netflix concurrency-limits, all three of its limits).
        if in_flight * 2 >= state.limit:
            _GROW[strategy](state, work if duration_us > 0 else 0, tuning)
        if work > 0 and duration_us > 0:
            _note_delay(state, strategy, duration_us, work, now_us=now_us, tuning=tuning)
        if state.limit >= state.refused_at > 0 and state.calls < tuning.probe_calls and state.limit > before:
            state.limit = max(before, state.refused_at - SHORT_OF_ONE)
            state.rounds = 0.0  # and then carefully
    elif outcome in {"throttled", "overloaded", "timeout"}:
        _refused(state, in_flight, outcome, duration_us, now_us=now_us, tuning=tuning)
    limit = state.limit
    if limit > ceiling:
        state.limit = float(ceiling)
    elif limit < floor:
        state.limit = float(floor)


# ---------------------------------------------------------------- growing


def _grow_additively(state: LimitState, _work: int, tuning: Tuning) -> None:
    """One call more per round of calls; in slow start (RFC 5681, 3.1) one more per call, which doubles it per round."""
    limit = state.limit
    if not state.threshold or limit < state.threshold:
        state.limit = limit + 1.0
        return
    rounds = state.rounds = state.rounds + 1.0 / limit
    step = rounds // tuning.patience_rounds + 1.0
    state.limit = limit + min(step, tuning.growth_max) / limit


def _grow_until_known(state: LimitState, work: int, tuning: Tuning) -> None:
    """For the strategies that grow by delay: a call that reports work grows the limit only in slow start."""
    if not work or not state.threshold or state.limit < state.threshold:
        _grow_additively(state, work, tuning)
    else:
        state.rounds += 1.0 / state.limit


_GROW: Final[Mapping[str, Callable[[LimitState, int, Tuning], None]]] = {
    "aimd": _grow_additively,
    "gradient": _grow_until_known,
    "vegas": _grow_until_known,
}


# ---------------------------------------------------------------- refusals


def _refused(
    state: LimitState, in_flight: int, outcome: CallOutcome, duration_us: int, *, now_us: int, tuning: Tuning
) -> None:
    """Decrease once for all calls that were in flight together, however long their refusals take to come in."""
    is_first = not state.threshold
    since_us = state.decreased_us = min(state.decreased_us, now_us)  # a clock that stepped back: cool down from here
    if duration_us > 0 and now_us - duration_us < since_us and not is_first:
        return  # begun under the old limit, as in TCP NewReno's one reduction per window (RFC 6582)
    if is_first or now_us - since_us >= tuning.cooldown_us:
        # What was really out, and not what would have been allowed to be, was too much (RFC 5681, 3.1: FlightSize).
        by = tuning.timeout_decrease if outcome == "timeout" else tuning.decrease
        state.limit = max(state.limit * HALF, min(state.limit, in_flight) * by)
        state.threshold = state.limit
        state.decreased_us = now_us
    elif outcome != "timeout" and duration_us > 0:
        # A call of the new, lower limit is refused before the cool-down is over. The provider told us how many it
        # bears: those that are out without this one. Never a storm: the next is sent when one of them has ended.
        state.limit = max(state.limit * HALF, min(state.limit, in_flight - 1.0))
        state.threshold = min(state.threshold, state.limit)
    else:
        return
    state.rounds = 0.0
    if outcome != "timeout":
        state.refused_at, state.calls = in_flight, 0


# ---------------------------------------------------------------- delay


def _note_delay(
    state: LimitState, strategy: Strategy, duration_us: int, work: int, *, now_us: int, tuning: Tuning
) -> None:
    """Sum it up, and look every half round: the quotient of two sums, so that long calls weigh more than short ones.

    Calls begun before the last decrease tell of the old limit and are left out (Envoy's adaptive concurrency drops
    samples from before a new baseline, for the same reason).
    """
    if now_us - duration_us < state.decreased_us <= now_us:
        return
    state.window_us += duration_us
    state.window_work += work
    state.window_calls += 1
    if state.window_calls < max(WINDOW_CALLS_MIN, state.limit / 2):
        return  # half a round; in slow start, where the limit grows by one per call, that is a whole one
    unit_us = state.window_us / state.window_work
    state.window_us = state.window_work = state.window_calls = 0
    if not state.base_us:
        state.base_us = unit_us
    _LOOK[strategy](state, unit_us, now_us, tuning)


def _look_aimd(state: LimitState, unit_us: float, now_us: int, tuning: Tuning) -> None:
    """Back off when work takes `delay_ratio` times as long as at best, in proportion, at most to a half."""
    _follow_down(state, unit_us)
    if not tuning.delay_ratio:
        return
    ratio = tuning.delay_ratio * state.base_us / unit_us
    if ratio >= 1.0:
        state.high_limit = 0.0
    elif not _is_not_our_doing(state, unit_us):
        _note_high(state, unit_us)
        state.limit *= max(HALF, min(ratio, tuning.decrease))
        _stop_doubling(state, now_us)


def _look_gradient(state: LimitState, unit_us: float, now_us: int, tuning: Tuning) -> None:
    """Envoy's adaptive concurrency: limit × clamp(tolerance × baseline / now, ½, 1) + √limit, smoothed as in Gradient2.

    Its baseline is not measured by pinning the limit to 3 for a while, which for model calls would be minutes of outage.
    """
    _follow_down(state, unit_us)
    gradient = max(HALF, min(1.0, tuning.tolerance * state.base_us / unit_us))
    if gradient == 1.0:
        state.high_limit = 0.0
        if not state.threshold or state.limit < state.threshold:
            return  # slow start does the growing
    elif _is_not_our_doing(state, unit_us):
        return
    else:
        _note_high(state, unit_us)
    change = GRADIENT_STEP * (state.limit * (gradient - 1.0) + math.sqrt(state.limit))
    state.limit += change
    if change < 0.0:
        _stop_doubling(state, now_us)


def _look_vegas(state: LimitState, unit_us: float, now_us: int, tuning: Tuning) -> None:
    """TCP Vegas (Brakmo & Peterson 1995) as in Netflix VegasLimit: limit × (1 - base / now) calls stand in a queue.

    Fewer than 3 log10(limit) of them: grow by log10(limit). More than twice that: shrink by it.
    """
    _follow_down(state, unit_us)
    queue = state.limit * (1.0 - VEGAS_BUFFER * state.base_us / unit_us)
    step = max(1.0, math.log10(state.limit))
    if queue > VEGAS_MANY * step:
        if not _is_not_our_doing(state, unit_us):
            _note_high(state, unit_us)
            in_slow_start = not state.threshold or state.limit < state.threshold
            state.limit = max(state.limit * HALF, state.limit - (queue - VEGAS_FEW * step if in_slow_start else step))
            _stop_doubling(state, now_us)
        return
    state.high_limit = 0.0
    if queue < VEGAS_FEW * step and state.threshold and state.limit >= state.threshold:
        state.limit += max(step, min(state.rounds // tuning.patience_rounds + 1.0, tuning.growth_max))
    elif queue >= VEGAS_FEW * step:
        state.threshold = min(state.threshold or state.limit, state.limit)  # as many as there should be


def _follow_down(state: LimitState, unit_us: float) -> None:
    """The baseline goes halfway to a smaller value: one lucky window must not set it for ever."""
    if unit_us < state.base_us:
        state.base_us += (unit_us - state.base_us) / 2


def _note_high(state: LimitState, unit_us: float) -> None:
    if not state.high_limit or unit_us > state.high_us * WORSE:
        state.high_limit, state.high_us = state.limit, unit_us


def _is_not_our_doing(state: LimitState, unit_us: float) -> bool:
    """True, with a new baseline, when half the limit has not made it any better: the provider is slow by itself.

    After failsafe-go's adaptive limiter, which asks whether load and delay are correlated before it gives way to delay.
    """
    if not state.high_limit or state.limit > state.high_limit * HALF or unit_us < state.high_us * IMPROVED:
        return False
    state.base_us = unit_us
    state.threshold = max(state.threshold, state.high_limit)  # and back to where it was by doubling
    state.high_limit = 0.0
    return True


def _stop_doubling(state: LimitState, now_us: int) -> None:
    """Delay has answered: from here on additively, and calls that are out now tell of the old limit."""
    state.threshold = min(state.threshold or state.limit, state.limit)
    state.decreased_us = now_us
    state.rounds = 0.0


_LOOK: Final[Mapping[str, Callable[[LimitState, float, int, Tuning], None]]] = {
    "aimd": _look_aimd,
    "gradient": _look_gradient,
    "vegas": _look_vegas,
}
