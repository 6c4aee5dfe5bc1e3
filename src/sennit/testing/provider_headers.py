"""What the headers of an answer say of the limits, as the real ones do.

    OpenAI      x-ratelimit-remaining-requests: 59       x-ratelimit-reset-requests: 6m0s           a duration
    Anthropic   anthropic-ratelimit-requests-remaining: 59   …-requests-reset: 2026-09-17T09:13:32Z  RFC 3339
                anthropic-ratelimit-unified-status: rejected   …-unified-5h-reset: 1774472400        Unix seconds
    both        retry-after: 20                                                                      seconds, a 429 only

Sources: "Rate limits" in the documentation of both; the unified headers are undocumented and follow logs that users published
(anthropics/claude-code 12829, Yeachan-Heo/gajae-code 2444, anomalyco/opencode 49653).
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Final

from sennit.testing.provider_knobs import Knobs
from sennit.testing.provider_limits import Dimension, RateStanding, Refusal, WindowStanding

Headers = list[tuple[str, str]]

# A window of more than a day is announced as Anthropic's week, a shorter one as its five hours.
DAY_S: Final = 86_400.0
# Anthropic rounds remaining tokens to the nearest thousand; a small limit of a test would vanish by it.
ROUNDED_FROM: Final = 10_000


def duration(seconds: float) -> str:
    """Return it as OpenAI writes it, which is how Go does: `20ms`, `8.64s`, `6m0s`, `1h23m31s`."""
    ms = math.ceil(max(0.0, seconds) * 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{ms / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if hours or minutes else ''}{rest}s"


def rfc3339(wall_s: float) -> str:
    """Return a time as Anthropic writes it, the next whole second: `2026-09-17T09:13:32Z`."""
    return datetime.fromtimestamp(math.ceil(wall_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def retry_after(wait_s: float | None, knobs: Knobs, wall_s: float) -> Headers:
    """Return the Retry-After of a refusal, in the way that `knobs.retry_after` asks for; none without a wait."""
    if wait_s is None or knobs.retry_after == "none":
        return []
    whole = str(max(1, math.ceil(wait_s)))
    values = {
        "seconds": whole,
        "ms": whole,
        "decimal": f"{wait_s:.3f}",
        "date": formatdate(math.ceil(wall_s + wait_s), usegmt=True),
        "zero": "0",
        "negative": f"-{whole}",
        "absurd": "1000000000000",
        "past_date": formatdate(wall_s - 3600.0, usegmt=True),
        "garbage": "soon",
        "infinity": "inf",
    }
    exact = [("retry-after-ms", str(math.ceil(wait_s * 1000)))] if knobs.retry_after == "ms" else []
    return [("retry-after", values[knobs.retry_after]), *exact]


def openai_rates(
    rates: dict[Dimension, RateStanding], window: WindowStanding | None, refusal: Refusal | None, knobs: Knobs
) -> Headers:
    """Return x-ratelimit-*; a used up window of requests stands in the place of the minute's."""
    shown = {name: rates[name] for name in ("requests", "tokens") if name in rates}
    if refusal and refusal.kind == "window" and window:
        shown = {}
        if knobs.window_style == "day":
            shown["requests"] = RateStanding(window.limit, 0, window.reset_s)
    return [
        (f"x-ratelimit-{what}-{name}", value)
        for name, rate in shown.items()
        for what, value in (
            ("limit", str(rate.limit)),
            ("remaining", str(rate.remaining)),
            ("reset", duration(rate.reset_s)),
        )
    ]


def anthropic_rates(
    rates: dict[Dimension, RateStanding],
    window: WindowStanding | None,
    refusal: Refusal | None,
    knobs: Knobs,
    wall_s: float,
) -> Headers:
    """Return anthropic-ratelimit-*; the unified ones only where there is a window."""
    names: dict[Dimension, str] = {
        "requests": "requests",
        "tokens": "tokens",
        "input": "input-tokens",
        "output": "output-tokens",
    }
    found: Headers = []
    for dimension, rate in rates.items():
        remaining = rate.remaining
        if dimension != "requests" and rate.limit >= ROUNDED_FROM:
            remaining = round(remaining, -3)
        start = f"anthropic-ratelimit-{names[dimension]}"
        found += [
            (f"{start}-limit", str(rate.limit)),
            (f"{start}-remaining", str(remaining)),
            (f"{start}-reset", rfc3339(wall_s + rate.reset_s)),
        ]
    is_rejected = bool(refusal and refusal.kind == "window")
    if window is None or (is_rejected and knobs.window_style == "quota"):
        return found
    status = "rejected" if is_rejected else "allowed"
    reset = str(math.ceil(wall_s + window.reset_s))
    short, claim = ("7d", "seven_day") if knobs.window_s > DAY_S else ("5h", "five_hour")
    unified = {
        "status": status,
        "reset": reset,
        "representative-claim": claim,
        f"{short}-status": status,
        f"{short}-reset": reset,
        f"{short}-utilization": f"{window.used_share:.2f}",
    }
    if is_rejected:
        unified |= {"overage-status": "rejected", "overage-disabled-reason": "out_of_credits"}
    return found + [(f"anthropic-ratelimit-unified-{name}", value) for name, value in unified.items()]
