"""Providers as the command line shows them: their state in a few words, in a row, in full, as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

import msgspec

from sennit.cli.output import moment, rfc3339, safe, span
from sennit.model.provider import NANO, BreakerSpec, ProviderView, Rates

ProviderState = Literal["open", "full", "rate", "paused", "breaker_open", "half_open", "isolated"]

HEAD: Final = ("provider", "limit", "in use", "waiting", "calls", "429", "failed", "tokens", "cost", "state")
RIGHT: Final = frozenset(HEAD[1:-1])

_BY_REASON: Final[dict[str, ProviderState]] = {"": "open", "limit": "full", "rate": "rate", "pause": "paused"}


def state_of(view: ProviderView) -> ProviderState:
    """Return what holds the next call back, `open` when nothing does."""
    if view.breaker == "isolated":
        return "isolated"
    if view.reason == "breaker":
        return "half_open" if view.breaker == "half_open" else "breaker_open"
    state = _BY_REASON.get(view.reason, "open")
    return "half_open" if state == "open" and view.breaker == "half_open" else state


def state_words(view: ProviderView, now_us: int) -> str:
    """Return the state for people, and until when: `paused until 14:02:11 (window)`."""
    until = "" if view.closed_until_us is None else f" until {moment(view.closed_until_us, now_us)}"
    match state_of(view):
        case "isolated":
            return "isolated until it is reset"
        case "breaker_open":
            return f"breaker open{until}"
        case "half_open":
            return f"breaker half open{until}"
        case "paused" if not until:
            return f"probing after a pause{_in_brackets(view.pause)}"
        case "paused":
            return f"paused{until}{_in_brackets(view.pause)}"
        case "rate":
            return "out of its rate per minute"
        case "full":
            return "full"
        case "open":
            return "open"


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def usd(cost_nano: int) -> str:
    """Return an amount for people: cents, and four digits below ten of them."""
    amount = cost_nano / NANO
    return f"${amount:,.2f}" if amount >= 0.1 or not cost_nano else f"${amount:.4f}"


def in_use_words(view: ProviderView) -> str:
    """Return `3 of 4 in use`; `none in use` while it takes no calls."""
    if view.limit:
        return f"{view.in_use:,} of {view.limit:,} in use"
    return f"{view.in_use:,} in use" if view.in_use else "none in use"


def row(view: ProviderView, now_us: int) -> list[object]:
    """Return the cells of `providers ls`."""
    return [
        safe(view.spec.name),
        f"{view.limit:,} of {view.spec.parallel:,}",
        f"{view.in_use:,}",
        f"{view.waiting + view.ready:,}",
        f"{view.granted:,}",
        f"{view.throttled:,}",
        f"{view.failed:,}",
        f"{view.input_tokens + view.output_tokens:,}",
        usd(view.cost_nano),
        state_words(view, now_us),
    ]


def provider_json(view: ProviderView) -> dict[str, Any]:
    """Return the keys of `sennit.provider/1`."""
    spec = view.spec
    return {
        "schema": "sennit.provider/1",
        "name": spec.name,
        "state": state_of(view),
        "reason": view.reason,
        "pause": view.pause,
        "closed_until_at": rfc3339(view.closed_until_us),
        "breaker": view.breaker,
        "limit": view.limit,
        "in_use": view.in_use,
        "waiting_calls": view.waiting,
        "waiting_tasks": view.ready,
        "granted": view.granted,
        "succeeded": view.succeeded,
        "throttled": view.throttled,
        "failed": view.failed,
        "input_tokens": view.input_tokens,
        "output_tokens": view.output_tokens,
        "cost_usd": view.cost_nano / NANO,
        **_rates_json(spec.rates),
        "parallel": spec.parallel,
        "models": {model: _rates_json(rates) for model, rates in spec.models.items()},
        "strategy": spec.strategy,
        "singleton": spec.singleton,
        "breaker_spec": None if spec.breaker is None else msgspec.structs.asdict(spec.breaker),
        "fallbacks": list(spec.fallbacks),
        "idle_s": spec.idle_s,
    }


def _rates_json(rates: Rates) -> dict[str, int]:
    return msgspec.structs.asdict(rates)


def in_full(view: ProviderView, now_us: int) -> Iterator[str]:
    """Yield the lines of `providers get`."""
    spec = view.spec
    facts: Sequence[tuple[str, str]] = [
        ("provider", spec.name),
        ("state", state_words(view, now_us)),
        ("limit", f"{view.limit:,} of {spec.parallel:,} at once, {'one by one' if spec.singleton else spec.strategy}"),
        ("in use", f"{view.in_use:,}"),
        ("waiting", f"{count(view.waiting, 'call')}, {count(view.ready, 'task')}"),
        ("rates", rates_words(msgspec.structs.replace(spec.rates, parallel=0))),
        *((f"model {model}", rates_words(rates) or "no bound of its own") for model, rates in spec.models.items()),
        ("breaker", _breaker_words(spec.breaker, view.breaker)),
        ("fallbacks", ", ".join(spec.fallbacks)),
        ("calls", _calls(view)),
        ("used", f"{view.input_tokens:,} tokens in, {view.output_tokens:,} out, {_cost(view)}"),
    ]
    yield from (safe(f"{name:<12} {value}") for name, value in facts if value)


def _calls(view: ProviderView) -> str:
    went = f"{view.succeeded:,} succeeded, {view.throttled:,} throttled (429), {view.failed:,} failed"
    # of calls that were cancelled, or whose process died
    silent = view.granted - view.in_use - view.succeeded - view.throttled - view.failed
    return f"{view.granted:,} let through, {went}" + (f", {silent:,} without a report" if silent > 0 else "")


def _cost(view: ProviderView) -> str:
    tokens = view.input_tokens + view.output_tokens
    return usd(view.cost_nano) + unpriced(view.cost_nano, tokens)


def unpriced(cost_nano: int, tokens: int) -> str:
    """Return a note when there were tokens and none of them cost anything: a budget in USD would never end."""
    return " (no prices)" if tokens and not cost_nano else ""


def rates_words(rates: Rates) -> str:
    """Return the bounds per minute, and of a model its `parallel`; "" for none."""
    return ", ".join(f"{name} {n:,}" for name, n in msgspec.structs.asdict(rates).items() if n)


def _breaker_words(spec: BreakerSpec | None, at: str) -> str:
    if spec is None:
        return at or "none"
    when = f"{spec.failures:,} failures in a row"
    if spec.rate:
        when = f"{spec.rate:.0%} of at least {spec.calls_min:,} calls in {span(spec.window_s)} failed"
    return f"{at.replace('_', ' ')}; opens for {span(spec.open_s)} after {when}"


def count(n: int, word: str) -> str:
    """Return `1 call`, `2 calls`."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"
