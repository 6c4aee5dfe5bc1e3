"""What one response says of the limits: the report of a call, read from its status, headers and body.

The three 429s. The first rule that fits decides, from what is hardest to mistake to what is a guess:

    window   an account's quota is used up (`insufficient_quota`, `usage_limit_reached`, …), a subscription's window is
             `rejected`, or a quota per hour, day, week or month is named or has nothing left
             the wait asked for is over 120 s: a per-minute limit is whole again sooner
    burst    the message speaks of concurrency or of too steep an increase
    minute   a quota per minute is named, or has nothing left
             the wait asked for is 2 to 120 s
    burst    everything else: a shorter wait, or none said

A 429 that says the request itself is too large for the limit is none of them, but `refused`: no wait lets it through, and
to give its task back would pause the provider for all others again and again.

Which wait: the longest that is asked for in so many words (Retry-After and its relatives, RetryInfo, `resets_at`, the
reset of a rejected window), because all limits must have room; else the one in the message's sentence; else the reset of
what has nothing left. A wait of 0, one in the past, beyond 32 days, or one that cannot be read, was not asked for.

A quota may be a window and ask for seconds (Gemini says "retry in 36s" of a quota per day): both are reported as sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from sennit.limit.feedback_body import ErrorFeedback, decoded, error_in, read_error
from sennit.limit.feedback_headers import MINUTE_RESET_S_MAX, HeaderFeedback, read_headers
from sennit.limit.feedback_text import is_too_large
from sennit.limit.feedback_usage import answer_of
from sennit.limit.feedback_values import lower_names
from sennit.model.provider import CallOutcome, CallReport, PauseKind, Usage

# A wait below this is less than the noise of a call: there were too many at once, not too many in a minute.
MINUTE_WAIT_S_MIN: Final = 2.0
WINDOW_WAIT_S_MIN: Final = MINUTE_RESET_S_MAX

_OVERLOADED: Final = frozenset({503, 529})
_TIMEOUT: Final = frozenset({408, 504, 522, 524})  # the last two are Cloudflare's


def outcome_of_status(status: int) -> CallOutcome:
    """Return how a call went by its HTTP status."""
    if status == 429:
        return "throttled"
    if status in _OVERLOADED:
        return "overloaded"
    if status in _TIMEOUT:
        return "timeout"
    if status >= 500:
        return "error"
    return "refused" if status >= 400 else "ok"


def read_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes | None,
    *,
    now_wall_s: float,
    duration_us: int = 0,
) -> CallReport:
    """Return the report of a call from its response. Nothing a server sends makes it raise.

    Args:
        status: of the response.
        headers: in any case. Where they carry a Date, moments are read by the sender's clock.
        body: decompressed; None when it was not kept (a stream: see StreamReader).
        now_wall_s: our wall clock, s since the epoch.
        duration_us: from sending to the last byte.
    """
    usage, model, is_error = (None, "", False) if body is None or status >= 400 else answer_of(body)
    error = decoded(body) if body is not None and (status >= 400 or is_error) else None
    return read_answer(status, headers, error, now_wall_s=now_wall_s, duration_us=duration_us, usage=usage, model=model)


def read_answer(
    status: int,
    headers: Mapping[str, str],
    error: object,
    *,
    now_wall_s: float,
    duration_us: int = 0,
    usage: Usage | None = None,
    model: str = "",
) -> CallReport:
    """Return the report of a call whose body is already decoded.

    Args:
        error: the decoded body when it tells of an error, in a response of 4xx or 5xx, of 200, or in a stream; else None.
    """
    said = read_headers(lower_names(headers), now_wall_s)
    # What the sentence of an error means by "at 8:24 AM" is our clock, so the Date of the response plays no part in it.
    told = read_error(error_in(error), now_wall_s)
    effective = status if status >= 400 else told.status or (500 if error is not None else status)
    outcome = outcome_of_status(effective)
    if outcome == "throttled" and is_too_large(told.message):
        outcome = "refused"
    explicit = max((wait for wait in (said.wait_s, told.wait_s) if wait), default=None)
    wait = explicit if outcome != "throttled" else explicit or told.text_wait_s or said.reset_s or None
    return CallReport(
        outcome=outcome,
        status=status,
        pause=_pause(said, told, wait) if outcome == "throttled" else "",
        retry_after_s=wait if outcome not in {"ok", "refused"} else None,
        duration_us=duration_us,
        usage=usage,
        model=model,
        requests=said.rates.get("requests"),
        tokens=said.rates.get("tokens"),
        input=said.rates.get("input"),
        output=said.rates.get("output"),
        message=told.message if outcome != "ok" else "",
    )


def _pause(said: HeaderFeedback, told: ErrorFeedback, wait: float | None) -> PauseKind | Literal[""]:
    """Return which of the three 429s it is, by the rule at the top of this file."""
    if said.window or told.period == "window" or (wait is not None and wait > WINDOW_WAIT_S_MIN):
        return "window"
    if told.period == "burst":
        return "burst"
    if said.minute or told.period == "minute" or (wait is not None and wait >= MINUTE_WAIT_S_MIN):
        return "minute"
    return "burst"
