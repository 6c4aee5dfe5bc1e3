"""What the sentences of an error say: how long to wait, and of what there was too much.

    Please try again in 1.2s.                        Please retry after 26 seconds.
    try again in 3 days 4 hours 9 minutes            limit reached|1767225600
    You've hit your usage limit. Try again at 8:24 AM.
    try again at Oct 3rd, 2026 8:24 AM.              You've hit your limit · resets 3pm (Europe/Rome)

A time of day without a zone is on the clock of the machine that shows it (the CLI agents print it so): it is the next such
time within 24 hours. Source: the texts of codex-cli and claude-code, and the error messages of OpenAI, Azure and Gemini.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from sennit.limit.feedback_values import bounded_wait_s, wait_until_s

MESSAGE_LENGTH_MAX: Final = 300

# Of what there was too much, where the message names it. Looked up in this order: a message that names a day wins.
# "You exceeded your current quota" is none of them: Gemini says it of limits per minute, too.
_WINDOW: Final = re.compile(
    r"usage limit|per[ _-]?(?:hour|day|week|month)|\b[rt]pd\b|\b(?:daily|weekly|monthly|hourly)\b|hour limit|"
    r"hit your limit|insufficient[ _]quota",
    re.IGNORECASE,
)
_BURST: Final = re.compile(r"concurren|increase rate|acceleration|too many connections|\bburst", re.IGNORECASE)
_MINUTE: Final = re.compile(r"per[ _-]?min|\b(?:rpm|tpm|itpm|otpm)\b", re.IGNORECASE)

# OpenAI answers 429 to one request that is larger than what a whole minute allows: it never gets through, however long one
# waits. (Source: reports of users, for example Aider-AI/aider#1880, "you will always get this error".)
_TOO_LARGE: Final = re.compile(r"request too large|tokens must be reduced", re.IGNORECASE)

_UNIT: Final = r"(milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d|weeks?|w)"
_AMOUNT: Final = re.compile(rf"(\d+(?:\.\d+)?)\s*{_UNIT}(?![a-z])", re.IGNORECASE)
_IN: Final = re.compile(
    rf"(?:try again|retry|wait|resets?)(?: in| after)?(?: about| another)? "
    rf"((?:\d+(?:\.\d+)?\s*{_UNIT}(?![a-z])[\s,]*(?:and\s+)?)+)",
    re.IGNORECASE,
)
_AT: Final = re.compile(
    r"(?:try again|resets?)(?: at| on)?[:\s]+"
    r"(?:(?P<date>[a-z]{3} \d{1,2})(?:st|nd|rd|th)?(?:, (?P<year>\d{4}))?,?(?: at)? )?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s*(?P<half>am|pm)(?:\s*\((?P<zone>[\w/+-]+)\))?",
    re.IGNORECASE,
)
_MOMENT: Final = re.compile(
    r"(?:resets?(?: at)?|try again at|reached)[:\s|]+(\d{10,13}\b|\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:?\d\d)?)"
)
_SECONDS: Final = {"ms": 1e-3, "mi": 60.0, "m": 60.0, "s": 1.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
# A key in a message (a vendor that repeats a wrong one) must not reach logs or the store.
_KEY: Final = re.compile(r"\b(?:sk|pk|key|gsk|xai|AIza|ya29|hf|r8)[-_.]?[\w*.-]{12,}")


def shortened(message: str) -> str:
    """Return a message in one line of at most MESSAGE_LENGTH_MAX characters, without what looks like a key."""
    line = " ".join(message[: 4 * MESSAGE_LENGTH_MAX].split())
    return _KEY.sub("(key)", line)[:MESSAGE_LENGTH_MAX]


def period_in(message: str) -> str:
    """Return of what there was too much: `window`, `burst`, `minute`, or "" when the message does not say."""
    for period, pattern in (("window", _WINDOW), ("burst", _BURST), ("minute", _MINUTE)):
        if pattern.search(message):
            return period
    return ""


def is_too_large(message: str) -> bool:
    """Return whether one request is larger than the limit as a whole: waiting does not help."""
    return _TOO_LARGE.search(message) is not None


def wait_in_s(message: str, now_wall_s: float) -> float | None:
    """Return how many seconds a message asks to wait, or None."""
    text = message[: 20 * MESSAGE_LENGTH_MAX]
    if (match := _IN.search(text)) is not None:
        total = sum(float(amount) * _unit_s(unit) for amount, unit in _AMOUNT.findall(match[1]))
        return bounded_wait_s(total) or None
    if (match := _MOMENT.search(text)) is not None:
        return wait_until_s(match[1], now_wall_s)
    if (match := _AT.search(text)) is not None:
        return _wait_until_clock_s(match, now_wall_s)
    return None


def _unit_s(unit: str) -> float:
    word = unit.lower()
    if word == "ms" or word.startswith("milli"):
        return 1e-3
    return _SECONDS[word[0]]


def _wait_until_clock_s(match: re.Match[str], now_wall_s: float) -> float | None:
    """Return the seconds until `8:24 AM`, or `Oct 3rd, 2026 8:24 AM`; None when it cannot be."""
    try:
        zone = ZoneInfo(match["zone"]) if match["zone"] else None
        now = datetime.fromtimestamp(now_wall_s, zone).astimezone(zone)
        hour = int(match["hour"]) % 12 + (12 if match["half"].lower() == "pm" else 0)
        when = now.replace(hour=hour, minute=int(match["minute"] or 0), second=0, microsecond=0)
        if match["date"]:
            # A year is needed to read February 29th.
            day = datetime.strptime(f"{match['date']} {match['year'] or now.year}", "%b %d %Y")  # noqa: DTZ007
            when = when.replace(year=day.year, month=day.month, day=day.day)
        elif when <= now:
            when += timedelta(days=1)
    except (ValueError, LookupError, OSError, OverflowError):
        return None  # 13:75 PM, or a zone nobody knows
    return bounded_wait_s((when - now).total_seconds()) or None
