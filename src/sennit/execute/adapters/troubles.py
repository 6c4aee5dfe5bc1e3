"""What a program's error means, and until when: its words, and the status its provider answered, turned into an outcome.

    "You've hit your usage limit. Try again at 8:24 AM." ─trouble─► limited
                                                         ─resets_at_s─► 1764318300.0

Programs tell a limit in prose, and its end in local time at that. Pure: the time comes in as an argument.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from sennit.model.agent import RunOutcome

# No error says more in more; it bounds the work on what a hostile program writes.
LENGTH_MAX: Final = 4000

# The first that matches names it. Each phrase was seen from one of the programs (claude 2.1.197, codex 0.169.0,
# gemini 0.61.0), or stands in what they ship.
_PHRASES: Final[dict[RunOutcome, tuple[str, ...]]] = {
    "lost_session": (
        r"no conversation found",  # claude: "… with session ID: …"
        r"no rollout found",  # codex: "… for thread id …"
        r"invalid session identifier|unknown session",
        r"\b(?:session|thread|conversation)\b.{0,80}\b(?:not found|does not exist)",
    ),
    "busy_session": (
        r"\bsession\b.{0,80}\balready (?:in use|active|running|exists)",  # claude: "Session ID … is already in use."
        r"\bsession is (?:busy|locked)",
    ),
    "limited": (
        r"\b(?:429|529)\b(?![.,]\d)|too many requests|rate[ _-]?limit|overloaded|resource[ _]exhausted",
        r"\busage[ _]limit|\blimit (?:has been )?(?:reached|exceeded)",
        r"(?:hit|reached|exceeded) your [\w ,-]{0,40}limit",  # claude: "You've hit your session limit · resets 3pm"
        r"quota (?:\w+ )?(?:exceeded|exhausted|reached)",  # codex: "Quota exceeded. Check your plan and billing details."
        r"(?:exceeded|exhausted|reached|out of) (?:your |the )?(?:[\w-]+ ){0,3}quota|insufficient[ _]quota",
        r"credit balance is too low|model is at capacity",
    ),
    "unauthorised": (
        r"\b401\b|\b403\b|unauthori[sz]ed|forbidden",
        r"invalid (?:x-)?api[ _-]?key|incorrect api key|api key not valid|missing (?:bearer|environment variable)",
        r"(?:set|provide|specify|missing) .{0,40}api[ _]?key|set an auth method",
        r"authentication[ _](?:error|failed|required)|failed to authenticate",
        r"not logged in|please (?:run )?/?log ?in\b|token (?:has )?(?:expired|been revoked)",
    ),
}
_TROUBLES: Final = {
    outcome: re.compile("|".join(phrases), re.IGNORECASE | re.DOTALL) for outcome, phrases in _PHRASES.items()
}

# Sources: the error pages of Anthropic's and OpenAI's API references; 529 is Anthropic's "overloaded".
_STATUSES: Final[dict[int, RunOutcome]] = {401: "unauthorised", 403: "unauthorised", 429: "limited", 529: "limited"}


def trouble(words: str, status: int = 0) -> RunOutcome:
    """Return what an error means: by the status that the provider answered, else by the words; `error` if neither tells."""
    if status in _STATUSES:
        return _STATUSES[status]
    return next((outcome for outcome, phrases in _TROUBLES.items() if phrases.search(words[:LENGTH_MAX])), "error")


def told_by_stderr(words: str) -> RunOutcome:
    """Return what the last words of a program mean that tells limits elsewhere: never `limited`, which costs no attempt.

    What stands there is anybody's: a log that speaks of 429 must not make a crash one that is repeated for ever.
    """
    outcome = trouble(words)
    return "error" if outcome == "limited" else outcome


_STATUS: Final = re.compile(r"\b(?:status|error|http)\b\W{0,4}(?:code\W{0,4})?([45]\d\d)\b", re.IGNORECASE)


def status_in(words: str) -> int:
    """Return the HTTP status that an error speaks of ("last status: 429 Too Many Requests"), 0 for none."""
    found = _STATUS.search(words[:LENGTH_MAX])
    return int(found.group(1)) if found else 0


# ---------------------------------------------------------------- until when

_AGAIN: Final = r"\b(?:try again|retry|retrying|resets?|available again)\b"

_DELAY: Final = re.compile(rf"{_AGAIN}\D{{0,30}}", re.IGNORECASE)
_SPAN: Final = re.compile(
    r"[\s,]*(?:and\s+)?(\d{1,9}(?:\.\d{1,9})?)\s*"
    r"(ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)(?![a-z])",
    re.IGNORECASE,
)
_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BARE: Final = re.compile(r"\bretry[- ]after\b\W{1,4}(\d{1,9}(?:\.\d{1,9})?)", re.IGNORECASE)


def retry_after_s(words: str) -> float | None:
    """Return the wait that an error asks for ("try again in 6m0s", "in 3 days 4 hours", "retry-after: 30"), None for none."""
    words = words[:LENGTH_MAX]
    for begin in _DELAY.finditer(words):
        wait_s, at = 0.0, begin.end()
        while span := _SPAN.match(words, at):
            unit, at = span.group(2).lower(), span.end()
            wait_s += float(span.group(1)) * (0.001 if unit.startswith(("ms", "mil")) else _UNITS_S[unit[0]])
        if at > begin.end():
            return wait_s
    bare = _BARE.search(words)
    return float(bare.group(1)) if bare else None


_EPOCH: Final = re.compile(r"\|(\d{10})\b")  # "usage limit reached|1764318240", of older versions of claude
_ISO: Final = re.compile(
    rf"{_AGAIN}\D{{0,30}}(\d{{4}}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)", re.IGNORECASE
)
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TIME_OF_DAY: Final = re.compile(
    rf"{_AGAIN}[\s:]*(?:(?:at|on)\s+)?"
    rf"(?:({'|'.join(_MONTHS)})[a-z]*\.?\s+(\d\d?)(?:st|nd|rd|th)?\b(?:,?\s+(\d{{4}}))?,?\s+(?:at\s+)?)?"
    r"(\d\d?)(?::(\d\d))?\s*([ap]\.?m\b)?\.?(?:\s*\(([\w/+-]+)\))?",
    re.IGNORECASE,
)
MINUTE_S: Final = 60.0
# A time of the day that was a moment ago is meant for today, the end of a wait and not a wait until tomorrow.
JUST_PAST_S: Final = 300.0


def resets_at_s(words: str, *, now_s: float, zone: tzinfo | None = None) -> float | None:
    """Return when a limit ends, s since the epoch, None if the words do not tell or make no sense.

    "try again at 8:24 AM", "Nov 23rd, 2026 8:24 AM" (codex), "resets 3pm (Europe/Berlin)", "Oct 9, 5pm" (claude), an ISO
    time, or seconds since the epoch. A time without seconds is the end of its minute: programs cut them off.

    Args:
        now_s: wall clock; a time of the day is the next such one.
        zone: of times that name none; None is this system's, as it is the program's.
    """
    words = words[:LENGTH_MAX]
    if epoch := _EPOCH.search(words):
        return float(epoch.group(1))
    try:
        if iso := _ISO.search(words):
            told = datetime.fromisoformat(iso.group(1))
            return (told if told.tzinfo else told.replace(tzinfo=zone)).timestamp()
        found = _TIME_OF_DAY.search(words)
        return None if found is None else _next(found, now_s, zone)
    except (ValueError, OverflowError, OSError, LookupError):  # the 31st of February, 25 o'clock, no such zone
        return None


def _next(found: re.Match[str], now_s: float, zone: tzinfo | None) -> float | None:
    month, day, year, hour_text, minute, half, zone_name = found.groups()
    if minute is None and half is None:
        return None  # "resets 5 …" of what?
    if zone_name:
        zone = ZoneInfo(zone_name)
    hour = int(hour_text)
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half.lower().startswith("p") else 0)
    now = datetime.fromtimestamp(now_s, zone)
    told = now.replace(hour=hour, minute=int(minute or 0), second=0, microsecond=0)
    earliest_s = now_s - JUST_PAST_S - MINUTE_S
    if month is None:
        if told.timestamp() < earliest_s:
            told += timedelta(days=1)
    else:
        told = told.replace(month=_MONTHS.index(month.lower()) + 1, day=int(day), year=int(year or now.year))
        if year is None and told.timestamp() < earliest_s:
            told = told.replace(year=now.year + 1)
    return told.timestamp() + MINUTE_S
