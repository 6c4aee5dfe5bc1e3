"""What the body of an error says: its kind, its sentence, the wait it asks for, and of what there was too much.

    {"error": {"type", "code", "message"}}                               OpenAI, Anthropic and all that imitate them
    {"error": {"type": "usage_limit_reached", "resets_in_seconds"}}      ChatGPT subscriptions
    {"error": {"status": "RESOURCE_EXHAUSTED", "details": [RetryInfo, QuotaFailure]}}      Gemini
    {"error": {"code": 429, "metadata": {"headers": {…}}}}               OpenRouter
    {"response": {"error": {…}}}, {"type": "error", "error": {…}}        events of a stream

Sources: the error pages of OpenAI, Anthropic and OpenRouter, google/rpc/error_details.proto, and bodies shown in
router-for-me/CLIProxyAPI#1666 and google-gemini/gemini-cli#10925.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from sennit.limit.feedback_headers import HeaderFeedback, read_headers
from sennit.limit.feedback_text import period_in, shortened, wait_in_s
from sennit.limit.feedback_values import lower_names, wait_s, wait_until_s

# An account has nothing left, whatever wait comes with it.
QUOTA_CODES: Final = frozenset(
    {
        "insufficient_quota",
        "usage_limit_reached",
        "usage_not_included",
        "billing_hard_limit_reached",
        "billing_not_active",
        "quota_exceeded",
    }
)
# The status that an error in the body of a 200, or in a stream, would have had.
STATUS_OF: Final = {
    "overloaded_error": 529,
    "overloaded": 529,
    "server_overloaded": 529,
    "slow_down": 503,
    "unavailable": 503,
    "service_unavailable": 503,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "rate_limit_reached": 429,
    "resource_exhausted": 429,
    "tokens": 429,
    "requests": 429,
    "timeout_error": 504,
    "deadline_exceeded": 504,
    "api_error": 500,
    "server_error": 500,
    "internal_server_error": 500,
    "internal": 500,
    "invalid_request_error": 400,
    "invalid_argument": 400,
    "invalid_prompt": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "request_too_large": 413,
} | dict.fromkeys(QUOTA_CODES, 429)

_LONG_QUOTA: Final = re.compile(r"per_?(?:hour|day|week|month)|daily|weekly|monthly", re.IGNORECASE)
_MINUTE_QUOTA: Final = re.compile(r"per_?minute", re.IGNORECASE)


class ErrorFeedback(msgspec.Struct, kw_only=True, frozen=True):
    """What the body of an error says.

    Attributes:
        kinds: its type, code and status, in small letters.
        wait_s: the wait that a field asks for; text_wait_s: the one that its sentence does.
        period: `window`, `burst` or `minute`, of what there was too much; "" when it does not say.
    """

    kinds: frozenset[str] = frozenset()
    message: str = ""
    wait_s: float | None = None
    text_wait_s: float | None = None
    period: str = ""
    status: int = 0


def decoded(body: object) -> object:
    """Return JSON as objects, or the body as text when it is none."""
    if not isinstance(body, bytes | str):
        return body
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace") if isinstance(body, bytes) else body


def error_in(body: object) -> Mapping[str, Any] | str | None:
    """Return the error of a decoded body: an object, or its text; None when there is none."""
    if isinstance(body, list) and body:
        body = body[0]  # Gemini streams an array
    if not isinstance(body, Mapping):
        return body if isinstance(body, str) and body else None
    for holder in (body, body.get("response")):
        if isinstance(holder, Mapping) and (found := holder.get("error")):
            return found if isinstance(found, Mapping | str) else str(found)
    # The openai package hands out the inner object alone; others send {"message": …} or {"detail": …}.
    return body if any(body.get(name) for name in ("message", "code", "detail")) else None


def read_error(error: Mapping[str, Any] | str | None, now_wall_s: float) -> ErrorFeedback:
    """Return what an error object says."""
    if error is None:
        return ErrorFeedback()
    if isinstance(error, str):
        # A page of HTML from some gateway says nothing; its sentences are about browsers.
        return ErrorFeedback() if error.lstrip().startswith("<") else _of_text(error, now_wall_s)
    kinds = frozenset(
        str(error[name]).lower() for name in ("type", "code", "status") if isinstance(error.get(name), str)
    )
    message = next((str(error[name]) for name in ("message", "detail") if error.get(name)), "")
    text = _of_text(message, now_wall_s)
    hints = _hints(error)
    waits = [
        wait_s(error.get("resets_in_seconds"), now_wall_s) or wait_until_s(error.get("resets_at"), now_wall_s),
        wait_s(error.get("retry_after"), now_wall_s),
        *(wait_s(hints.get(name), now_wall_s) for name in ("retryDelay", "quotaResetDelay", "retry_after_seconds")),
    ]
    forwarded = _forwarded(error, now_wall_s)
    code = error.get("code")
    return ErrorFeedback(
        kinds=kinds,
        message=text.message,
        wait_s=max((wait for wait in (*waits, forwarded.wait_s, forwarded.reset_s) if wait), default=None),
        text_wait_s=text.text_wait_s,
        period=_period(kinds, hints, forwarded) or text.period,
        status=_status(code, kinds),
    )


def _of_text(message: str, now_wall_s: float) -> ErrorFeedback:
    return ErrorFeedback(
        message=shortened(message), text_wait_s=wait_in_s(message, now_wall_s), period=period_in(message)
    )


def _status(code: object, kinds: frozenset[str]) -> int:
    if isinstance(code, int) and 400 <= code < 600:
        return code
    return max((STATUS_OF[kind] for kind in kinds if kind in STATUS_OF), default=0)


def _period(kinds: frozenset[str], hints: Mapping[str, str], forwarded: HeaderFeedback) -> str:
    quota = hints.get("quota", "")
    if kinds & QUOTA_CODES or _LONG_QUOTA.search(quota) or forwarded.window:
        return "window"
    return "minute" if _MINUTE_QUOTA.search(quota) or forwarded.minute else ""


def _hints(error: Mapping[str, Any]) -> dict[str, str]:
    """Return what Google's error details say, flat: `retryDelay`, `quotaResetDelay`, and all names of quotas in `quota`."""
    found: dict[str, str] = {}
    quotas = []
    for detail in _mappings(error.get("details")):
        if isinstance(delay := detail.get("retryDelay"), str):
            found["retryDelay"] = delay
        quotas += [str(one.get("quotaId") or one.get("subject") or "") for one in _mappings(detail.get("violations"))]
        quotas += _from_metadata(detail.get("metadata"), found)
    quotas += _from_metadata(error.get("metadata"), found)
    found["quota"] = " ".join(quotas)
    return found


def _from_metadata(metadata: object, found: dict[str, str]) -> list[str]:
    if not isinstance(metadata, Mapping):
        return []
    for name in ("quotaResetDelay", "retry_after_seconds"):
        if isinstance(value := metadata.get(name), str | int | float):
            found[name] = str(value)
    return [str(metadata[name]) for name in ("quota_limit", "quota_id") if metadata.get(name)]


def _mappings(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, list):
        yield from (item for item in value[:50] if isinstance(item, Mapping))


def _forwarded(error: Mapping[str, Any], now_wall_s: float) -> HeaderFeedback:
    """Return what the headers say that a gateway found at its own upstream and put into the body."""
    metadata = error.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, Mapping) else None
    return read_headers(lower_names(headers), now_wall_s) if isinstance(headers, Mapping) else HeaderFeedback()
