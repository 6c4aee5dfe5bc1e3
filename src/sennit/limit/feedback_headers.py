"""What the headers of a response say of waits and limits.

    retry-after  retry-after-ms  x-ms-retry-after-ms                              how long to wait
    x-ratelimit-{limit,remaining,reset}-{requests,tokens,…}[-{minute,hour,day}]   OpenAI, Azure, Groq, Mistral, Cerebras, xAI
    anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}
    anthropic-ratelimit-unified-{status,reset,5h-status,5h-reset,7d-status,…}     Claude subscriptions
    x-codex-{primary,secondary}-{used-percent,reset-after-seconds,reset-at}       ChatGPT subscriptions
    x-ratelimit-{limit,remaining,reset}, ratelimit-{…}                            OpenRouter and most gateways

Sources: the "rate limits" pages of OpenAI, Anthropic, Groq, Mistral, Cerebras and OpenRouter; for the two families of the
subscriptions, which no page describes, responses shown in anomalyco/opencode#49499, anthropics/claude-code#12829 and
earendil-works/pi#4172.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from sennit.limit.feedback_values import bounded_wait_s, count, number, sender_now_s, wait_s, wait_until_s
from sennit.model.provider import RateFeedback

# A per-minute bucket is whole again within a minute, or two fixed ones; what takes longer is no limit per minute.
# So `x-ratelimit-limit-requests: 200` with a reset of 7m12s is OpenAI's limit per day, in the same header.
MINUTE_RESET_S_MAX: Final = 120.0

_KINDS: Final = {
    "requests": "requests",
    "req": "requests",
    "tokens": "tokens",
    "input-tokens": "input",
    "output-tokens": "output",
}
_OPENAI: Final = re.compile(
    r"x-ratelimit-(limit|remaining|reset)-(requests|req|tokens|input-tokens|output-tokens)(?:-(minute|hour|day|month))?"
)
_ANTHROPIC: Final = re.compile(
    r"anthropic-ratelimit-(requests|tokens|input-tokens|output-tokens)-(limit|remaining|reset)"
)
_PLAIN: Final = re.compile(r"(?:x-)?ratelimit-(limit|remaining|reset)")
_UNIFIED: Final = "anthropic-ratelimit-unified-"
_UNIFIED_WINDOW: Final = re.compile(rf"{_UNIFIED}(\d+[hd][\w-]*)-status")


class HeaderFeedback(msgspec.Struct, kw_only=True, frozen=True):
    """What headers say.

    Attributes:
        wait_s: the longest wait that is asked for in so many words; None when none is.
        rates: by kind, `requests`, `tokens`, `input`, `output`: what is said of the limit per minute.
        window: a quota of hours or days is said to be used up.
        minute: a limit per minute has nothing left. reset_s: when what has nothing left is whole again.
    """

    wait_s: float | None = None
    rates: Mapping[str, RateFeedback] = {}
    window: bool = False
    minute: bool = False
    reset_s: float | None = None


class _Limit:
    """One limit as three headers spell it. `period` is "" when they do not say."""

    def __init__(self, kind: str, period: str) -> None:
        self.kind = kind
        self.period = period
        self.limit: int | None = None
        self.remaining: int | None = None
        self.reset_s: float | None = None

    @property
    def is_window(self) -> bool:
        if self.period:
            return self.period != "minute"
        return self.reset_s is not None and self.reset_s > MINUTE_RESET_S_MAX


def read_headers(headers: Mapping[str, str], now_wall_s: float) -> HeaderFeedback:
    """Return what headers say.

    Args:
        headers: by lower-case name.
        now_wall_s: our wall clock, s since the epoch.
    """
    now_s = sender_now_s(headers, now_wall_s)
    limits = _limits(headers, now_s)
    rejected, rejected_s = _rejected_windows(headers, now_s)
    asked = [found for found in (_retry_after_s(headers, now_s), rejected_s) if found is not None]
    empty = [limit for limit in limits if limit.remaining == 0]
    resets = [limit.reset_s for limit in empty if limit.reset_s is not None]
    return HeaderFeedback(
        wait_s=max(asked, default=None),
        rates=_rates(limits),
        window=rejected or any(limit.is_window for limit in empty),
        minute=any(not limit.is_window for limit in empty if limit.kind or limit.reset_s is not None),
        reset_s=max(resets, default=None),
    )


def _retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Return the wait of the Retry-After family; the one in ms is the more exact. A wait of 0 says nothing."""
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        ms = number(headers.get(name))
        if ms and bounded_wait_s(ms / 1000) is not None:
            return ms / 1000
    return wait_s(headers.get("retry-after"), now_s) or None


def _limits(headers: Mapping[str, str], now_s: float) -> list[_Limit]:
    found: dict[tuple[str, str, str], _Limit] = {}
    for name, value in headers.items():
        if (match := _OPENAI.fullmatch(name)) is not None:
            family, what, kind, period = "openai", match[1], _KINDS[match[2]], match[3] or ""
        elif (match := _ANTHROPIC.fullmatch(name)) is not None:
            family, what, kind, period = "anthropic", match[2], _KINDS[match[1]], "minute"
        elif (match := _PLAIN.fullmatch(name)) is not None:
            family, what, kind, period = "plain", match[1], "", ""
        else:
            continue
        limit = found.setdefault((family, kind, period), _Limit(kind, period))
        if what == "limit":
            limit.limit = count(value) or None  # a limit of 0 would stop everything for ever: nobody means it
        elif what == "remaining":
            limit.remaining = count(value)
        else:
            limit.reset_s = wait_s(value, now_s)
    return list(found.values())


def _rates(limits: list[_Limit]) -> dict[str, RateFeedback]:
    """Return what is said of limits per minute; of two for one kind the tighter."""
    rates: dict[str, RateFeedback] = {}
    for limit in limits:
        if not limit.kind or limit.is_window or (limit.limit is None and limit.remaining is None):
            continue
        other = rates.get(limit.kind)
        if other is not None and other.remaining is not None and other.remaining <= (limit.remaining or 0):
            continue
        rates[limit.kind] = RateFeedback(limit=limit.limit, remaining=limit.remaining, reset_s=limit.reset_s)
    return rates


def _rejected_windows(headers: Mapping[str, str], now_s: float) -> tuple[bool, float | None]:
    """Return whether a subscription's window is used up, and in how many seconds all that are come back.

    Every window must have room, so the latest reset counts. The `overage` of a Claude subscription is `rejected` wherever
    it was not bought, while requests are answered: it is no window.
    """
    rejected = False
    waits: list[float | None] = []
    if headers.get(f"{_UNIFIED}status") == "rejected":
        rejected = True
        for name, value in headers.items():
            match = _UNIFIED_WINDOW.fullmatch(name)
            if match is not None and value == "rejected":
                waits.append(wait_until_s(headers.get(f"{_UNIFIED}{match[1]}-reset"), now_s))
        if not any(waits):
            waits.append(wait_until_s(headers.get(f"{_UNIFIED}reset"), now_s))
    for window in ("primary", "secondary"):
        used = number(headers.get(f"x-codex-{window}-used-percent"))
        minutes = number(headers.get(f"x-codex-{window}-window-minutes"))
        if used is not None and used >= 100 and minutes != 0:
            rejected = True
            after = wait_s(headers.get(f"x-codex-{window}-reset-after-seconds"), now_s)
            waits.append(after or wait_until_s(headers.get(f"x-codex-{window}-reset-at"), now_s))
    return rejected, max((wait for wait in waits if wait), default=None)
