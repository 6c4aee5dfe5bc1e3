"""What an exception says of the call that raised it, whichever package it comes from.

No package is imported: an exception is known by what it carries (a status, a response with headers, a body) or by the
name of its class and of those it derives from.

    openai, anthropic, litellm      status_code, response.headers, body
    httpx2, httpx, requests         response.status_code, response.headers, response.content
    aiohttp, urllib                 status or code, headers
    google-genai, pydantic-ai       code or status_code, details or body
    time-outs, lost connections     TimeoutError, ConnectionError, and their namesakes

What wraps another (`raise … from error`, an exception group) is looked into.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Final

from sennit.limit.feedback_body import decoded
from sennit.limit.feedback_response import read_answer
from sennit.limit.feedback_text import shortened
from sennit.model.provider import CallOutcome, CallReport
from sennit.sync.clock import wall_us

_DEPTH_MAX: Final = 50

# By the name of a class, in the order of the class and what it derives from.
_BY_NAME: Final[Mapping[str, CallOutcome]] = {
    "APITimeoutError": "timeout",
    "TimeoutException": "timeout",
    "TimeoutError": "timeout",
    "Timeout": "timeout",
    "DeadlineExceeded": "timeout",
    "ServerTimeoutError": "timeout",
    # A request that could not even be written down is the caller's.
    "LocalProtocolError": "refused",
    "UnsupportedProtocol": "refused",
    "InvalidURL": "refused",
    "APIConnectionError": "error",
    "ConnectionError": "error",
    "NetworkError": "error",
    "ProtocolError": "error",
    "ProxyError": "error",
    "TransportError": "error",
    "ClientConnectionError": "error",
    "ClientPayloadError": "error",
    "ServiceUnavailable": "overloaded",
    "IncompleteRead": "error",
    "IncompleteReadError": "error",
    "SSLError": "error",
    "gaierror": "error",
}


def read_exception(error: BaseException, *, now_wall_s: float | None = None) -> CallReport | None:
    """Return what an exception says of a call to a provider; None when it says nothing of one.

    A cancellation is `cancelled`. Sennit's own exceptions, and what wraps them without a status, say nothing.

    Args:
        now_wall_s: our wall clock, s since the epoch; the clock itself by default.
    """
    now_s = wall_us() / 1e6 if now_wall_s is None else now_wall_s
    vague: CallReport | None = None
    is_ours = False
    for link in _chain(error):
        report = _read(link, now_s)
        if report is not None and report.status:
            return report  # even far down: it says more than "connection error" does
        vague = vague or report
        is_ours = is_ours or _is_ours(link)
    # The anthropic package wraps whatever its transport raises into an APIConnectionError: our own refusals, too.
    return None if is_ours else vague


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those it is made of, nearest first, each once."""
    waiting = [error]
    seen: set[int] = set()
    while waiting and len(seen) < _DEPTH_MAX:
        link = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        if isinstance(link, BaseExceptionGroup):
            waiting.extend(link.exceptions)
        if link.__cause__ is not None:
            waiting.append(link.__cause__)
        elif link.__context__ is not None and not link.__suppress_context__:
            waiting.append(link.__context__)


def _read(error: BaseException, now_s: float) -> CallReport | None:
    if isinstance(error, asyncio.CancelledError):
        return CallReport(outcome="cancelled")
    if not isinstance(error, Exception) or _is_ours(error):
        return None
    response = getattr(error, "response", None)
    status = _status(error, response)
    message = shortened(str(error))
    if status >= 400:  # below, a good answer could not be read: that is nobody's limit
        return read_answer(status, _headers(error, response), _body(error, response), now_wall_s=now_s)
    outcome = _outcome_by_name(type(error))
    return None if outcome is None else CallReport(outcome=outcome, message=message)


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "sennit"


def _outcome_by_name(kind: type[BaseException]) -> CallOutcome | None:
    return next((_BY_NAME[base.__name__] for base in kind.__mro__ if base.__name__ in _BY_NAME), None)


def _status(error: BaseException, response: object) -> int:
    """Return the HTTP status that an exception or its response carries, 0 when there is none."""
    if isinstance(response, Mapping):  # botocore
        metadata = response.get("ResponseMetadata")
        return _as_status(metadata.get("HTTPStatusCode")) if isinstance(metadata, Mapping) else 0
    for holder, names in ((error, ("status_code", "status", "code")), (response, ("status_code", "status"))):
        for name in names:
            if found := _as_status(getattr(holder, name, None)):
                return found
    return 0


def _as_status(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 100 <= value < 600 else 0


def _headers(error: BaseException, response: object) -> Mapping[str, str]:
    """Return the headers of the response. litellm keeps the true ones aside where it makes a response up."""
    found: dict[str, str] = {}
    if isinstance(response, Mapping):
        metadata = response.get("ResponseMetadata")
        holders = [metadata.get("HTTPHeaders") if isinstance(metadata, Mapping) else None]
    else:
        holders = [
            getattr(error, "litellm_response_headers", None),
            getattr(error, "headers", None),
            getattr(response, "headers", None),
        ]
    for holder in reversed(holders):
        items = getattr(holder, "items", None)
        if callable(items):
            found.update({str(name).lower(): str(value) for name, value in items()})
    return found


def _body(error: BaseException, response: object) -> object:
    """Return the decoded body that an exception carries; its text when it carries none."""
    for name in ("body", "details"):
        found = getattr(error, name, None)
        if isinstance(found, Mapping | list | str | bytes) and found:
            return decoded(found)
    if isinstance(response, Mapping):  # botocore: {"Error": {"Code", "Message"}}
        inner = response.get("Error")
        return {"message": inner.get("Message"), "code": inner.get("Code")} if isinstance(inner, Mapping) else None
    try:
        content = getattr(response, "content", None)
    except RuntimeError:
        content = None  # httpx: the body was streamed away, or never read
    return decoded(content) if isinstance(content, bytes | str) and content else str(error) or None
