"""Numbers, durations and moments as vendors write them; what makes no sense is None.

    "34"  "6m0s"  "120ms"  "0.5"                      a wait
    "1767225600"  "1767225600000"                     a moment: epoch seconds, epoch ms
    "2026-01-01T00:00:00Z"                            a moment: RFC 3339
    "Thu, 01 Jan 2026 00:00:00 GMT"                   a moment: HTTP date

A moment becomes a wait by the clock of who sent it, where the response says what that clock showed. Nothing here raises:
a header that cannot be read is a header that was not sent, and the limits fall back on what they know themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

# The longest quota that a vendor sells is a month's; a wait beyond it is a mistake of whoever sent it.
WAIT_S_MAX: Final = 32 * 86_400.0
# No vendor counts more in a minute; larger "limits" are ways to write "none" (2**31-1 is one, 2**63-1 another).
COUNT_MAX: Final = 10**12
# A number this large is a moment, not a wait: epoch seconds (2001 and later), ms, µs, ns.
EPOCH_S_MIN: Final = 1e9
# Clocks that differ by less are taken for equal: a Date header has whole seconds.
CLOCK_SKEW_S: Final = 2.0

_UNITS_S: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h|d))+")
_TEXT_LENGTH_MAX: Final = 100


def number(value: object) -> float | None:
    """Return a finite number of at least 0, or None. Text is read; True is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > _TEXT_LENGTH_MAX:
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and found >= 0 else None


def count(value: object) -> int | None:
    """Return a whole number from 0 to COUNT_MAX, or None."""
    found = number(value)
    return int(found) if found is not None and found <= COUNT_MAX else None


def bounded_wait_s(wait_s: float | None) -> float | None:
    """Return a wait if it is one: from 0 to WAIT_S_MAX."""
    return wait_s if wait_s is not None and 0 <= wait_s <= WAIT_S_MAX else None


def duration_s(value: object) -> float | None:
    """Return the seconds of `6m0s`, `1.5s`, `120ms`, or of a plain number, which is seconds; or None.

    Source of the form: Go's time.Duration.String, which OpenAI's and Google's servers print.
    """
    if (plain := number(value)) is not None:
        return bounded_wait_s(plain)
    if not isinstance(value, str) or len(value) > _TEXT_LENGTH_MAX:
        return None
    text = value.strip().lower()
    if not _DURATION.fullmatch(text):
        return None
    return bounded_wait_s(sum(float(amount) * _UNITS_S[unit] for amount, unit in _PART.findall(text)))


def epoch_s(value: object) -> float | None:
    """Return the moment that an epoch number, an RFC 3339 or an HTTP date means, in s since the epoch; or None."""
    plain = number(value)
    if plain is not None:
        if plain < EPOCH_S_MIN:
            return None
        while plain >= EPOCH_S_MIN * 100:
            plain /= 1000  # ms, µs, ns
        return plain
    if not isinstance(value, str) or len(value) > _TEXT_LENGTH_MAX:
        return None
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = read(value.strip())
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None


def wait_until_s(value: object, now_s: float) -> float | None:
    """Return the seconds from `now_s` to a moment; None when it is past, too far off, or none."""
    moment = epoch_s(value)
    return None if moment is None else bounded_wait_s(moment - now_s)


def wait_s(value: object, now_s: float) -> float | None:
    """Return the seconds that a duration, a plain number or a moment means from `now_s`; or None."""
    plain = number(value)
    if plain is not None and plain >= EPOCH_S_MIN:
        return wait_until_s(plain, now_s)
    found = duration_s(value)
    return found if found is not None else wait_until_s(value, now_s)


def lower_names(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers by lower-case name, values stripped."""
    return {str(name).lower(): str(value).strip() for name, value in headers.items()}


def sender_now_s(headers: Mapping[str, str], now_wall_s: float) -> float:
    """Return what the sender's clock shows: its Date, when that is not ours within CLOCK_SKEW_S.

    Args:
        headers: by lower-case name.
    """
    date = epoch_s(headers.get("date"))
    return now_wall_s if date is None or abs(date - now_wall_s) <= CLOCK_SKEW_S else date
