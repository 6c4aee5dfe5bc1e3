"""A provider: whatever answers model calls under one credential, and what is known of it. Pure values.

    ProviderSpec ──declare──► (stored, shared by all processes) ◄──CallReport── how each call went
         PermitRequest ──► Permit: one call may be made now           └──► ProviderView

A provider is keyed by its credential pool: two programs that use one API key name one provider, and share its limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from sennit.errors import BudgetExceeded, SettingsError

Strategy = Literal["fixed", "aimd", "gradient", "vegas"]
STRATEGIES: Final = ("fixed", "aimd", "gradient", "vegas")

# How a call went, as far as limits care. `throttled` is a 429; `overloaded` a 503 or 529; `error` any other failure that is
# the provider's (5xx, connection); `refused` a failure that is the caller's (400, 401, 404): it counts for nothing.
CallOutcome = Literal["ok", "throttled", "overloaded", "timeout", "error", "refused", "cancelled"]

# Why something waits. One of these is the `reason` of a ready task whose provider has no room for it.
WaitReason = Literal["", "limit", "rate", "pause", "breaker", "budget"]

# The three 429s. `burst`: too many at once, slow down; `minute`: this minute's requests or tokens are used up;
# `window`: a quota of hours or days is, and comes back at a known time.
PauseKind = Literal["burst", "minute", "window"]

NAME_LENGTH_MAX: Final = 200


class Usage(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What a call has used. Cost in nano-dollars (1e-9 USD), so that sums are exact."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


class RateFeedback(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What a response says of one rate limit. None is "it does not say".

    Attributes:
        limit: per minute, as the provider counts it.
        remaining: what is left of it now.
        reset_s: in how many seconds it is whole again, from when the response was read.
    """

    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None


class CallReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """How one call went. What a provider sent and made no sense is left out by who read it (`limit.feedback`).

    Attributes:
        status: of the HTTP response, 0 when there was none.
        pause: which of the three 429s it was, "" when it was none.
        retry_after_s: how long the provider asks to wait, at least 0; None when it does not say.
        duration_us: from sending to the last byte.
        requests, input, output, tokens: what its headers say of each rate.
    """

    outcome: CallOutcome = "ok"
    status: int = 0
    pause: PauseKind | Literal[""] = ""
    retry_after_s: float | None = None
    duration_us: int = 0
    usage: Usage | None = None
    model: str = ""
    requests: RateFeedback | None = None
    tokens: RateFeedback | None = None
    input: RateFeedback | None = None
    output: RateFeedback | None = None
    message: str = ""


class Rates(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Bounds of a provider or of one of its models; 0 is no bound.

    Attributes:
        parallel: calls at once, in all processes.
        rpm: requests per minute.  tpm: tokens per minute, input and output together.
        input_tpm, output_tpm: tokens per minute, for providers that count them apart.
    """

    parallel: int = 0
    rpm: int = 0
    tpm: int = 0
    input_tpm: int = 0
    output_tpm: int = 0


class BreakerSpec(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """When calls are refused for a while because too many failed.

    The simple form (the default): `failures` failures in a row open it. With `rate` > 0 instead: that share of at least
    `calls_min` calls in the last `window_s` failed. With `slow_rate` > 0 also: that share of them took longer than
    `slow_s`; then a half-open call that is slow has failed.
    After `open_s` it lets `half_open` calls through at once; `successes` that succeed close it, one that fails opens it.
    A half-open call that nobody reports within `probe_s` is taken for lost, and its permit is free again.
    """

    failures: int = 5
    successes: int = 2
    open_s: float = 60.0
    half_open: int = 3
    probe_s: float = 120.0
    window_s: float = 60.0
    calls_min: int = 20
    rate: float = 0.0
    slow_s: float = 0.0
    slow_rate: float = 0.0


class ProviderSpec(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What somebody has declared of a provider; the last declaration holds for all processes.

    Attributes:
        name: of the credential pool.
        rates: its bounds; `parallel` is the ceiling, the adaptive limit moves below it.
        models: sub-limits, by model name.
        strategy: how the limit moves below the ceiling; `fixed` does not.
        singleton: a local server that answers one call at a time: `parallel` is 1, and calls queue.
        breaker: None is none.
        fallbacks: providers that stand in, in order, while this one is paused or its breaker is open.
        idle_s: a client that nobody has used for so long is closed.
        pause_s_max: the longest pause that a response can bring about.
    """

    name: str
    rates: Rates = Rates()
    models: Mapping[str, Rates] = {}
    strategy: Strategy = "aimd"
    singleton: bool = False
    breaker: BreakerSpec | None = BreakerSpec()
    fallbacks: tuple[str, ...] = ()
    idle_s: float = 300.0
    pause_s_max: float = 8 * 86_400.0

    @property
    def parallel(self) -> int:
        """The ceiling: calls at once."""
        return 1 if self.singleton else self.rates.parallel


def split_name(provider: str) -> tuple[str, str]:
    """Return (provider, model) of `name` or `name/model`."""
    name, _, model = provider.partition("/")
    return name, model


def checked_provider_name(name: object) -> str:
    """Return `name` if a provider can be called so.

    Raises:
        SettingsError: it is no text, empty, too long, or has a slash, which separates the model.
    """
    if not isinstance(name, str) or not name or len(name) > NAME_LENGTH_MAX or "/" in name:
        raise SettingsError(
            f"a provider cannot be called {name!r}",
            why=f"its name is text of 1 to {NAME_LENGTH_MAX} characters without a slash, which separates the model",
            fix='for example app.provider("anthropic", parallel=10)',
        )
    return name


def is_number(value: object, most: float, *, whole: bool = False) -> bool:
    """Return whether a value is a number from 0 to `most`. NaN and True are none."""
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 <= value <= most


class PermitRequest(msgspec.Struct, kw_only=True, frozen=True):
    """Somebody wants to make one call.

    Attributes:
        id: from `Store.take_ids`; the id of the permit.
        provider: `name` or `name/model`.
        priority: a `Priority`, as its number; FIFO within it.
        tokens: an estimate of what it will use, reserved until it is reported; 0 is unknown.
        task_id: the task on whose behalf, or None: whose budgets it is held against.
        wait: False refuses instead of waiting.
    """

    id: int
    provider: str
    priority: int = 2
    tokens: int = 0
    task_id: int | None = None
    wait: bool = True


class Permit(msgspec.Struct, kw_only=True, frozen=True):
    """One call may be made now.

    Attributes:
        provider, model: which one; a fallback when the one asked for is closed.
        is_probe: it is the one call that finds out whether the provider answers again.
        fallback_for: what was asked for (`name` or `name/model`), when another stands in for it; else "".
        waited_us: how long it was waited for, and `reason` for what at last; "" when it was granted at once.
    """

    id: int
    provider: str
    model: str = ""
    fallback_for: str = ""
    is_probe: bool = False
    granted_us: int = 0
    waited_us: int = 0
    reason: WaitReason = ""


class ProviderView(msgspec.Struct, kw_only=True, frozen=True):
    """One provider as the CLI shows it. Times are store clock, µs since the epoch.

    Attributes:
        limit: calls at once that are allowed now: the adaptive limit, after pause, breaker and load.
        in_use: permits that are out. waiting: calls that wait for one. ready: tasks that do.
        closed_until_us: nothing is sent before this, None when it is open. reason: why, or what is waited for.
        breaker: `closed`, `open`, `half_open`, `isolated`, or "" without one.
    """

    spec: ProviderSpec
    limit: int
    in_use: int = 0
    waiting: int = 0
    ready: int = 0
    closed_until_us: int | None = None
    reason: WaitReason = ""
    pause: PauseKind | Literal[""] = ""
    breaker: str = ""
    granted: int = 0
    succeeded: int = 0
    throttled: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0


# ---------------------------------------------------------------- budgets

BudgetScope = Literal["fleet", "provider", "handler", "thread", "task"]
OnExceeded = Literal["fail", "ask"]


class Budget(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """So much may be spent; 0 is no bound.

    Attributes:
        scope, key: what it is for; the key is the name of the provider, handler or thread, the task's id as text, or "".
        on_exceeded: an attempt that would spend more fails with BudgetExceeded, or asks a person and is suspended.
    """

    scope: BudgetScope
    key: str = ""
    tokens_max: int = 0
    cost_nano_max: int = 0
    on_exceeded: OnExceeded = "fail"


class BudgetView(msgspec.Struct, kw_only=True, frozen=True):
    """A budget and what is spent of it."""

    budget: Budget
    tokens: int = 0
    cost_nano: int = 0

    @property
    def is_exceeded(self) -> bool:
        """True when nothing more may be begun: spent is at or above a bound."""
        b = self.budget
        return bool(
            (b.tokens_max and self.tokens >= b.tokens_max) or (b.cost_nano_max and self.cost_nano >= b.cost_nano_max)
        )


NANO: Final = 1_000_000_000

# Sums of this size fit the integers of every store.
TOKENS_MAX: Final = 10**15
USD_MAX: Final = 10**9


def exceeded(view: BudgetView, provider: str) -> BudgetExceeded:
    """Return the error for a budget that is spent."""
    b = view.budget
    is_tokens = bool(b.tokens_max) and view.tokens >= b.tokens_max
    return BudgetExceeded(
        provider,
        scope=b.scope,
        key=b.key,
        unit="tokens" if is_tokens else "USD",
        spent=view.tokens if is_tokens else view.cost_nano / NANO,
        allowed=b.tokens_max if is_tokens else b.cost_nano_max / NANO,
        on_exceeded=b.on_exceeded,
        bounds=(b.tokens_max, b.cost_nano_max),
    )
