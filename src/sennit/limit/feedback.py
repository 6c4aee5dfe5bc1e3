"""What the answers of model providers say of their limits: reading only, nothing is decided here.

    response ──► read_response ──┐
    bytes    ──► StreamReader  ──┼──► CallReport ──► the limits (governor, limiter, rate budget, breaker)
    exception ─► read_exception ─┘    outcome, which of the three 429s, how long to wait, rates, usage

    feedback_response.py   the report, and THE RULE that tells the three 429s apart
    feedback_headers.py    retry-after, x-ratelimit-*, anthropic-ratelimit-*, x-codex-*
    feedback_body.py       error objects of OpenAI, Anthropic, Gemini, OpenRouter
    feedback_text.py       "Please try again in 1.2s"
    feedback_stream.py     server-sent events as they pass
    feedback_usage.py      tokens used            feedback_request.py   tokens that a request may use
    feedback_errors.py     exceptions of any SDK  feedback_values.py    numbers, durations, moments

Nothing here raises over what a server sent. What makes no sense (negative, NaN, a date in the past, a wait of a year) is
left out of the report, and the limits fall back on their own back-off.
"""

from __future__ import annotations

from sennit.limit.feedback_errors import read_exception
from sennit.limit.feedback_request import RequestFeedback, read_request
from sennit.limit.feedback_response import outcome_of_status, read_response
from sennit.limit.feedback_stream import StreamReader
from sennit.limit.feedback_usage import usage_of

__all__ = [
    "RequestFeedback",
    "StreamReader",
    "outcome_of_status",
    "read_exception",
    "read_request",
    "read_response",
    "usage_of",
]
