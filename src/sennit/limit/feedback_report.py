"""A report that somebody else has made, held against what can be: what makes no sense is left out, as if never said.

A permit that comes back with "NaN seconds" or "2.5 tokens" must neither stay out nor spoil what is stored of its provider.
"""

from __future__ import annotations

from typing import Final

import msgspec

from sennit.limit.feedback_values import bounded_wait_s, count, number
from sennit.model.provider import NANO, USD_MAX, CallReport, RateFeedback, Usage

MODEL_LENGTH_MAX: Final = 200
DURATION_US_MAX: Final = 366 * 86_400 * 1_000_000


def checked_report(report: CallReport) -> CallReport:
    """Return a report whose numbers can be: counts are whole and at least 0, waits are finite and at most a month."""
    return msgspec.structs.replace(
        report,
        status=count(report.status) or 0,
        retry_after_s=bounded_wait_s(number(report.retry_after_s)),
        duration_us=_bounded(report.duration_us, DURATION_US_MAX),
        usage=_checked_usage(report.usage),
        model=_text(report.model),
        requests=_checked_rate(report.requests),
        tokens=_checked_rate(report.tokens),
        input=_checked_rate(report.input),
        output=_checked_rate(report.output),
    )


def _checked_usage(usage: Usage | None) -> Usage | None:
    if usage is None:
        return None
    return Usage(
        input_tokens=count(usage.input_tokens) or 0,
        output_tokens=count(usage.output_tokens) or 0,
        cost_nano=_bounded(usage.cost_nano, USD_MAX * NANO),
    )


def _checked_rate(rate: RateFeedback | None) -> RateFeedback | None:
    if rate is None:
        return None
    return RateFeedback(
        limit=count(rate.limit) or None, remaining=count(rate.remaining), reset_s=bounded_wait_s(number(rate.reset_s))
    )


def _text(value: object) -> str:
    return value[:MODEL_LENGTH_MAX] if isinstance(value, str) else ""


def _bounded(value: object, most: int) -> int:
    found = number(value)
    return 0 if found is None else min(int(found), most)
