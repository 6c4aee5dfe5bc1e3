"""The governor of one provider: all that decides whether one more call may be made now. Pure.

    room ──n──► grant ──Mark──► (the call) ──CallReport──► settle ──┬─► the adaptive limit moves
      ▲                                                             ├─► the rates are settled with what was used
      └─────────────── limit, rates, pause, breaker ◄───────────────┼─► a 429 pauses, the reset is probed and ramped up
                                                                    └─► the breaker counts

The store keeps a `GovernorState` per provider, counts the permits that are out, and calls these functions inside its
transactions: that is what makes the limits hold for all processes and survive a restart. A state is changed in place;
`revision` grows with each change, so that a store need not compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

import msgspec

from sennit.limit import breaker as breakers
from sennit.limit import pause as pauses
from sennit.limit import rate, strategies
from sennit.limit.breaker import BreakerState
from sennit.limit.pause import PauseState
from sennit.limit.rate import RateState
from sennit.limit.strategies import LimitState
from sennit.model.provider import (
    BreakerSpec,
    CallOutcome,
    CallReport,
    PauseKind,
    ProviderSpec,
    RateFeedback,
    Rates,
    Usage,
    WaitReason,
)

# Far above what anybody pays, and still an integer in JSON and in every store.
_SUM_MAX: Final = 4 * 10**18

# A provider without a breaker can be isolated by hand all the same.
_ANY_BREAKER: Final = BreakerSpec()

# Such a call was turned away before it cost tokens; of all others without usage the estimate stands.
_TURNED_AWAY: Final[frozenset[CallOutcome]] = frozenset({"throttled", "overloaded", "refused"})


class Room(NamedTuple):
    """How many calls may be begun now.

    Attributes:
        n: at least 0.
        reason: what holds the next one back; "" while `n` is greater than 0.
        wake_us: when it may be otherwise though nobody reports anything; None when only a report changes it.
        is_closed: a pause, or the breaker: fallbacks stand in. False when it is merely full.
    """

    n: int
    reason: WaitReason = ""
    wake_us: int | None = None
    is_closed: bool = False


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """What a permit must remember until it is settled. JSON-encodable; kept in the permit's row.

    Attributes:
        generation: of the breaker that let it through.
        tokens: what was reserved.
        is_probe: it finds out whether the provider answers again.
        epoch: of the pauses, when it was granted.
    """

    generation: int = 0
    tokens: int = 0
    is_probe: bool = False
    model: str = ""
    granted_us: int = 0
    epoch: int = 0


class Counts(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Sums since the provider was declared first."""

    granted: int = 0
    succeeded: int = 0
    throttled: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0


class GovernorState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is known of one provider beside its spec and its permits.

    Attributes:
        rates: what is known of each bound, by `model|kind`; "" is the provider itself.
    """

    revision: int = 0
    limit: LimitState = msgspec.field(default_factory=LimitState)
    breaker: BreakerState = msgspec.field(default_factory=BreakerState)
    pause: PauseState = msgspec.field(default_factory=PauseState)
    rates: dict[str, RateState] = {}
    counts: Counts = msgspec.field(default_factory=Counts)


def fresh(spec: ProviderSpec, now_us: int) -> GovernorState:
    """Return what is known of a provider that nobody has called yet."""
    del now_us
    return GovernorState(limit=strategies.new_state(spec.strategy, ceiling=spec.parallel))


# ---------------------------------------------------------------- may one more begin?


def room(
    spec: ProviderSpec,
    state: GovernorState,
    now_us: int,
    *,
    in_use: int,
    model: str = "",
    model_in_use: int = 0,
    tokens: int = 0,
) -> Room:
    """Return how many calls may be begun now, each with an estimate of `tokens`. Does not change `state`."""
    through, when_us = _through_breaker(spec, state, now_us)
    if through == 0:
        return Room(0, "breaker", when_us, is_closed=True)
    allowed, when_us = pauses.allowed(state.pause, now_us)
    if allowed == 0:
        return Room(0, "pause", when_us, is_closed=not state.pause.is_open)
    n = strategies.allowed(state.limit, strategy=spec.strategy, ceiling=spec.parallel) - in_use
    own = spec.models.get(model)
    if own is not None and own.parallel:
        n = min(n, own.parallel - model_in_use)
    if n <= 0:
        return Room(0, "limit")
    n = min(n, *(bound for bound in (through, allowed) if bound is not None), n)
    for key, per_minute, units in _bounds(spec, model, tokens):
        known = state.rates.get(key)
        if known is None:
            if not per_minute:
                continue
            known = RateState()
        most, when_us = rate.calls(per_minute, known, now_us, units=units)
        if most == 0:
            return Room(0, "rate", when_us)
        if most is not None:
            n = min(n, most)
    return Room(n)


def grant(
    spec: ProviderSpec, state: GovernorState, now_us: int, *, in_use: int, model: str = "", tokens: int = 0
) -> Mark:
    """Take note that one call begins; `room` has just said that it may. `in_use` does not count it yet."""
    del in_use
    state.revision += 1
    state.counts.granted += 1
    generation = 0 if spec.breaker is None else breakers.admit(spec.breaker, state.breaker, now_us)
    is_probe = pauses.sent(state.pause, now_us)
    for key, per_minute, units in _bounds(spec, model, tokens):
        if per_minute and units:
            rate.reserve(per_minute, state.rates.setdefault(key, RateState()), units, now_us)
    return Mark(generation, tokens, is_probe, model, now_us, state.pause.epoch)


def _through_breaker(spec: ProviderSpec, state: GovernorState, now_us: int) -> tuple[int | None, int | None]:
    if spec.breaker is None and state.breaker.at != "isolated":
        return None, None
    return breakers.room(spec.breaker or _ANY_BREAKER, state.breaker, now_us)


def _bounds(spec: ProviderSpec, model: str, tokens: int) -> Iterator[tuple[str, int, int]]:
    """Yield (key, bound per minute, units that one call takes) of the provider, then of the model."""
    scopes: list[tuple[str, Rates]] = [("", spec.rates)]
    own = spec.models.get(model)
    if own is not None:
        scopes.append((model, own))
    for scope, rates in scopes:
        yield f"{scope}|requests", rates.rpm, 1
        yield f"{scope}|tokens", rates.tpm, tokens
        # Estimates do not tell input from output; most of what can be known before a call is its input.
        yield f"{scope}|input", rates.input_tpm, tokens
        yield f"{scope}|output", rates.output_tpm, 0


# ---------------------------------------------------------------- how did it go?


def settle(
    spec: ProviderSpec, state: GovernorState, mark: Mark | None, report: CallReport | None, now_us: int, *, in_use: int
) -> None:
    """Take note of how a call went.

    Args:
        mark: of its permit; None when it had none (a report without permit).
        report: None when it was not made, or its process has died: the tokens that were reserved are given back, and
            nothing is learnt. That a request was sent is not taken back: it may have been.
        in_use: permits that are out, this one included.
    """
    state.revision += 1
    epoch = state.pause.epoch if mark is None else mark.epoch
    outcome: CallOutcome = "cancelled" if report is None else report.outcome
    duration_us = 0 if mark is None else max(0, now_us - mark.granted_us)
    _settle_rates(spec, state, mark, report, now_us)
    if spec.breaker is not None and (mark is not None or outcome in breakers.FAILURES):
        generation = state.breaker.generation if mark is None else mark.generation
        breakers.settle(
            spec.breaker, state.breaker, generation=generation, outcome=outcome, duration_us=duration_us, now_us=now_us
        )
    if report is None:
        pauses.answered(state.pause, epoch=epoch, passed=False, limit=spec.parallel)
        return
    _count(state.counts, report)
    usage = report.usage or _NO_USAGE
    if report.pause not in {"minute", "window"}:  # an empty quota says nothing of how many calls at once are too many
        strategies.sample(
            state.limit, strategy=spec.strategy, ceiling=spec.parallel, in_flight=max(in_use, 1), outcome=outcome,
            duration_us=report.duration_us or duration_us, work=usage.output_tokens or usage.input_tokens, now_us=now_us,
        )  # fmt: skip
    if outcome in {"throttled", "overloaded"}:
        pauses.throttled(state.pause, report, epoch=epoch, now_us=now_us, pause_s_max=spec.pause_s_max, name=spec.name)
    else:
        limit = strategies.allowed(state.limit, strategy=spec.strategy, ceiling=spec.parallel)
        pauses.answered(state.pause, epoch=epoch, passed=outcome in {"ok", "refused"}, limit=limit)


_NO_USAGE: Final = Usage()


def _settle_rates(
    spec: ProviderSpec, state: GovernorState, mark: Mark | None, report: CallReport | None, now_us: int
) -> None:
    """Correct what was reserved to what was used; believe the provider's headers."""
    model = mark.model if mark is not None else "" if report is None else report.model
    reserved = 0 if mark is None else mark.tokens
    usage = None if report is None else report.usage
    used = {"requests": 1, "tokens": reserved, "input": reserved, "output": 0}
    if usage is not None:
        used |= {"tokens": usage.tokens, "input": usage.input_tokens, "output": usage.output_tokens}
    elif report is None or report.outcome in _TURNED_AWAY:
        used |= {"tokens": 0, "input": 0}
    for key, per_minute, units in _bounds(spec, model, reserved):
        actual = used[key.rpartition("|")[2]]
        before = units if mark is not None else 0
        if per_minute and actual != before:
            known = state.rates.setdefault(key, RateState())
            rate.settle(per_minute, known, reserved=before, actual=actual, now_us=now_us)
    if report is not None:
        _believe(spec, state, model, report, now_us)


def _believe(spec: ProviderSpec, state: GovernorState, model: str, report: CallReport, now_us: int) -> None:
    """Lower our rates to what the headers say is left. They are the model's, if it has limits of its own."""
    said: dict[str, RateFeedback | None] = {
        "requests": report.requests, "tokens": report.tokens, "input": report.input, "output": report.output
    }  # fmt: skip
    scope = model if model in spec.models else ""
    for key, per_minute, _ in _bounds(spec, model, 0):
        of, _, kind = key.rpartition("|")
        feedback = said[kind]
        if of != scope or feedback is None or feedback.remaining is None:
            continue
        if per_minute or feedback.remaining <= 0:
            rate.feedback(per_minute, state.rates.setdefault(key, RateState()), feedback, now_us)


def _count(counts: Counts, report: CallReport) -> None:
    match report.outcome:
        case "ok":
            counts.succeeded += 1
        case "throttled" | "overloaded":
            counts.throttled += 1
        case "error" | "timeout":
            counts.failed += 1
        case "refused" | "cancelled":
            pass
    if report.usage is not None:
        counts.input_tokens = min(counts.input_tokens + report.usage.input_tokens, _SUM_MAX)
        counts.output_tokens = min(counts.output_tokens + report.usage.output_tokens, _SUM_MAX)
        counts.cost_nano = min(counts.cost_nano + report.usage.cost_nano, _SUM_MAX)


# ---------------------------------------------------------------- by hand


def redeclare(old: ProviderSpec, new: ProviderSpec, state: GovernorState, now_us: int) -> None:
    """Fit what was learnt into new bounds."""
    state.revision += 1
    if old.strategy != new.strategy:
        state.limit = strategies.new_state(new.strategy, ceiling=new.parallel)
    if new.breaker is None and state.breaker.at != "isolated":
        breakers.reset(state.breaker, now_us)
    state.rates = {key: known for key, known in state.rates.items() if key.rpartition("|")[0] in {"", *new.models}}


def isolate(spec: ProviderSpec, state: GovernorState, now_us: int) -> None:
    """Give no permit until `reset`."""
    del spec
    state.revision += 1
    breakers.isolate(state.breaker, now_us)


def pause(spec: ProviderSpec, state: GovernorState, now_us: int, *, until_us: int) -> None:
    """Give no permit until `until_us`; then probe and ramp up."""
    state.revision += 1
    pauses.begin(state.pause, kind="window", until_us=until_us, now_us=now_us, name=spec.name)


def reset(spec: ProviderSpec, state: GovernorState, now_us: int) -> None:
    """Lift pause and isolation, close the breaker, let the limit begin anew."""
    state.revision += 1
    breakers.reset(state.breaker, now_us)
    pauses.lift(state.pause)
    state.pause.level = state.pause.bursts = 0
    state.limit = strategies.new_state(spec.strategy, ceiling=spec.parallel)
    state.rates = {}


class Facts(NamedTuple):
    """What `ProviderView` shows of a state."""

    limit: int
    closed_until_us: int | None
    reason: WaitReason
    pause: PauseKind | Literal[""]
    breaker: str
    counts: Counts


def facts(spec: ProviderSpec, state: GovernorState, now_us: int, *, in_use: int) -> Facts:
    """Return what people want to know."""
    now = room(spec, state, now_us, in_use=in_use)
    limit = strategies.allowed(state.limit, strategy=spec.strategy, ceiling=spec.parallel)
    if now.is_closed and not (now.reason == "pause" and state.pause.ramp):
        limit = 0
    elif state.pause.ramp:  # open again, if only by degrees
        limit = min(limit, state.pause.ramp)
    return Facts(
        limit=limit,
        closed_until_us=now.wake_us if now.reason in {"pause", "breaker"} else None,
        reason=now.reason,
        pause=state.pause.kind if not state.pause.is_open else "burst" if now_us < state.pause.hold_us else "",
        breaker="" if spec.breaker is None and state.breaker.at != "isolated" else state.breaker.at,
        counts=state.counts,
    )
