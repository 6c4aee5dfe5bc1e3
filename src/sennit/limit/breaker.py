"""A circuit breaker as a value: no more calls to a provider that fails, until a few of them find that it works again.

              too many failed                      open_s has passed
    closed ────────────────────► open ◄───────────────────────────────► half_open: `half_open` calls at once
      ▲                                     one of them failed              │
      └──────────────────────── `successes` of them succeeded ──────────────┘
    isolate ─► isolated: nothing, until reset                  reset ─► closed        trip ─► open

Who is let through gets a number, its *generation*, and hands it back with the result. All calls of one closed period have
the number of the period; each half-open call has its own. A result whose number is not current says nothing of the
present and does not count. A half-open call holds its permit for `probe_s`: if nobody reports it, its place is free
again, and should its result still come, it does not count once somebody else has the place.

The store keeps a `BreakerState` in a row and calls these functions in its transactions; `breaker_live` is the breaker for
one process. `room` changes nothing. Every state takes less than a kilobyte, whatever happens.

Sources: states and names as in M. Nygard, Release It! (2007); time buckets, minimum of calls and slow-call rate as in
resilience4j, half-open permits that lapse as in Polly 8 (there one permit).
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from sennit.errors import SettingsError, UsageError
from sennit.model.provider import BreakerSpec, CallOutcome

BreakerPhase = Literal["closed", "open", "half_open", "isolated"]

# A 429 or a 503 is for the adaptive limit, and a 400 is the caller's own: neither failure nor success.
FAILURES: Final[frozenset[CallOutcome]] = frozenset({"error", "timeout"})

# The window moves on in tenths. Source: Failsafe, TimedCircuitStats: 10 buckets.
BUCKETS: Final = 10


class Bucket(msgspec.Struct, array_like=True):
    """What a tenth of the window has seen; `index` is its number since the epoch."""

    index: int
    calls: int = 0
    failures: int = 0
    slow: int = 0


class Probe(msgspec.Struct, array_like=True, frozen=True):
    """A half-open call that is under way."""

    generation: int
    since_us: int


class BreakerState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Where a breaker stands. Changed in place by the functions below; JSON-encodable. A fresh one is closed.

    Attributes:
        at: the phase. since_us: when it began.
        generation: of the phase. last: the highest number given out.
        failures: in a row, while closed. successes: while half open.
        probes: half-open calls under way, oldest first; at most `half_open`.
        buckets: what the window has seen, oldest first; at most 10. seen: their sums, as of its index.
    """

    at: BreakerPhase = "closed"
    since_us: int = 0
    generation: int = 0
    last: int = 0
    failures: int = 0
    successes: int = 0
    probes: list[Probe] = []
    buckets: list[Bucket] = []
    seen: Bucket | None = None


def checked_spec(spec: BreakerSpec) -> BreakerSpec:
    """Return `spec` if a breaker can work with it.

    Raises:
        SettingsError: a count is below 1, a time is not above 0, or a rate is not in 0 to 1.
    """
    counts = ("failures", "successes", "half_open", "calls_min")
    times = ("open_s", "probe_s", "window_s")
    for name in (*counts, *times, "rate", "slow_rate", "slow_s"):
        value = getattr(spec, name)
        wanted = ""
        if name in counts:
            wanted = "" if type(value) is int and value >= 1 else "a whole number of at least 1"
        elif name in times:
            wanted = "" if 1e-3 <= value <= 1e8 else "seconds, 0.001 to 100 000 000"
        elif name == "slow_s":
            wanted = "" if 0 <= value <= 1e8 else "seconds, 0 to 100 000 000"
        elif not 0 <= value <= 1:
            wanted = "a share, 0 to 1; 0 turns it off"
        if wanted:
            raise SettingsError(f"{name} of a breaker cannot be {value!r}", why=f"it is {wanted}")
    if spec.slow_rate and not spec.slow_s:
        raise SettingsError("a breaker with slow_rate needs slow_s", fix="say how many seconds are slow: slow_s=30")
    return spec


def room(spec: BreakerSpec, state: BreakerState, now_us: int) -> tuple[int | None, int | None]:
    """Return how many calls would be let through now, None is any number; and when it changes though nobody reports.

    Changes nothing, so a breaker stays `open` until somebody is let through, however long that takes.
    """
    match state.at:
        case "closed":
            return None, None
        case "isolated":
            return 0, None
        case "open":
            open_us = _us(spec.open_s)
            if _is_past(state.since_us, open_us, now_us):
                return spec.half_open, None
            return 0, state.since_us + open_us
        case "half_open":
            probe_us = _us(spec.probe_s)
            live = [p.since_us for p in state.probes if not _is_past(p.since_us, probe_us, now_us)]
            free = spec.half_open - len(live)
            return (free, None) if free > 0 else (0, min(live) + probe_us)


def admit(spec: BreakerSpec, state: BreakerState, now_us: int) -> int:
    """Let one call through and return its generation, for `settle`.

    Raises:
        UsageError: there is no room.
    """
    if state.at == "closed":
        return state.generation
    if room(spec, state, now_us)[0] == 0:
        raise UsageError("the breaker lets no call through now", fix="ask room() first, in the same transaction")
    if state.at == "open":
        _enter(state, "half_open", now_us)
    if len(state.probes) >= spec.half_open:
        probe_us = _us(spec.probe_s)
        lost = next(p for p in state.probes if _is_past(p.since_us, probe_us, now_us))
        state.probes.remove(lost)
    state.last += 1
    state.probes.append(Probe(state.last, now_us))
    return state.last


def settle(
    spec: BreakerSpec,
    state: BreakerState,
    *,
    generation: int,
    outcome: CallOutcome,
    now_us: int,
    duration_us: int = 0,
) -> bool:
    """Take note of how a call went. True if the breaker is in another phase now.

    A half-open call that is slow counts as failed when the breaker has a `slow_rate`: what opened it for being slow is
    not closed by being slow.
    """
    if state.at == "closed":
        return generation == state.generation and _settle_closed(spec, state, outcome, duration_us, now_us)
    if state.at != "half_open":
        return False
    probe = next((p for p in state.probes if p.generation == generation), None)
    if probe is None:
        return False
    state.probes.remove(probe)
    if outcome in FAILURES or (outcome == "ok" and _is_slow(spec, duration_us)):
        _enter(state, "open", now_us)
        return True
    if outcome == "ok":
        state.successes += 1
        if state.successes >= spec.successes:
            _enter(state, "closed", now_us)
            return True
    return False


def isolate(state: BreakerState, now_us: int) -> None:
    """Let nothing through until `reset` or `trip`; what is under way does not count."""
    _enter(state, "isolated", now_us)


def reset(state: BreakerState, now_us: int) -> None:
    """Close it and forget what was counted."""
    _enter(state, "closed", now_us)


def trip(state: BreakerState, now_us: int) -> None:
    """Open it, as if too many calls had failed."""
    _enter(state, "open", now_us)


def window(spec: BreakerSpec, state: BreakerState, now_us: int) -> Bucket:
    """Return the sums of the window: `calls`, `failures`, `slow`."""
    newest = now_us // _bucket_us(spec)
    seen = [b for b in state.buckets if newest - BUCKETS < b.index]
    return Bucket(newest, sum(b.calls for b in seen), sum(b.failures for b in seen), sum(b.slow for b in seen))


# ---------------------------------------------------------------- inside


def _settle_closed(spec: BreakerSpec, state: BreakerState, outcome: CallOutcome, duration_us: int, now_us: int) -> bool:
    is_failure = outcome in FAILURES
    if not is_failure and outcome != "ok":
        return False
    if spec.rate > 0 or spec.slow_rate > 0:
        seen = _count(spec, state, now_us, is_failure=is_failure, is_slow=_is_slow(spec, duration_us))
        opens = seen.calls >= spec.calls_min and (
            (spec.rate > 0 and seen.failures >= spec.rate * seen.calls)
            or (spec.slow_rate > 0 and seen.slow >= spec.slow_rate * seen.calls)
        )
    else:
        opens = False
    if spec.rate <= 0:
        state.failures = state.failures + 1 if is_failure else 0
        opens = opens or state.failures >= spec.failures
    if opens:
        _enter(state, "open", now_us)
    return opens


def _count(spec: BreakerSpec, state: BreakerState, now_us: int, *, is_failure: bool, is_slow: bool) -> Bucket:
    """Count a call and return the sums of the window. They are added up anew only when a tenth of it is over."""
    newest = now_us // _bucket_us(spec)
    seen = state.seen
    if seen is None or seen.index != newest:
        _move_window(state, newest)
        state.seen = seen = window(spec, state, now_us)
    for bucket in (state.buckets[-1], seen):
        bucket.calls += 1
        bucket.failures += is_failure
        bucket.slow += is_slow
    return seen


def _move_window(state: BreakerState, newest: int) -> None:
    # Buckets of the future are what a clock that was set back leaves: they age from now on.
    kept = [b for b in state.buckets if newest - BUCKETS < b.index < newest]
    current = Bucket(newest)
    for bucket in state.buckets:
        if bucket.index >= newest:
            current.calls += bucket.calls
            current.failures += bucket.failures
            current.slow += bucket.slow
    state.buckets = [*kept, current]


def _enter(state: BreakerState, at: BreakerPhase, now_us: int) -> None:
    state.at = at
    state.since_us = now_us
    state.last += 1
    state.generation = state.last
    state.failures = state.successes = 0
    state.probes = []
    state.buckets = []
    state.seen = None


def _is_past(since_us: int, span_us: int, now_us: int) -> bool:
    """True when the span is over. One that begins further ahead than it is long is not believed: the clock was set back."""
    return not since_us - span_us <= now_us < since_us + span_us


def _is_slow(spec: BreakerSpec, duration_us: int) -> bool:
    return spec.slow_rate > 0 and duration_us > spec.slow_s * 1e6


def _bucket_us(spec: BreakerSpec) -> int:
    return max(1, round(spec.window_s * 1e6 / BUCKETS))


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
