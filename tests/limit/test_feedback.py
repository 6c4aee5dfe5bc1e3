"""Reading responses: what vendors send, told by their own examples, and what makes no sense."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.limit.feedback import read_response
from sennit.limit.feedback_values import WAIT_S_MAX
from sennit.model.provider import CallReport, RateFeedback

NOW_S = 1_790_000_000.0  # Mon, 21 Sep 2026 14:13:20 GMT


def read(status: int = 429, headers: dict[str, str] | None = None, body: Any = None) -> CallReport:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_response(status, headers or {}, data, now_wall_s=NOW_S)


# ---------------------------------------------------------------- how long to wait


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry-After": "20"}, 20),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"x-ms-retry-after-ms": "800"}, 0.8),
        ({"retry-after": "Mon, 21 Sep 2026 14:14:20 GMT"}, 60),
        ({"retry-after": "1790000034"}, 34),
        ({"retry-after": "6m0s"}, 360),
    ],
)
def test_the_wait_is_read_in_every_form_it_is_sent_in(headers: dict[str, str], wait_s: float) -> None:
    assert read(headers=headers).retry_after_s == wait_s


@pytest.mark.parametrize(
    "value",
    [
        "-5",
        "nan",
        "inf",
        "1e400",
        "",
        "soon",
        "0",
        "99999999",
        "Mon, 21 Sep 2020 14:14:20 GMT",
        "Mon, 99 Foo",
        "9" * 500,
    ],
)
def test_a_wait_that_makes_no_sense_was_not_asked_for(value: str) -> None:
    report = read(headers={"retry-after": value})

    assert report.outcome == "throttled"
    assert report.retry_after_s is None
    assert report.pause == "burst"


def test_a_date_is_read_by_the_clock_of_who_sent_it() -> None:
    """Our clock is an hour behind the server's: the wait is a minute all the same."""
    headers = {"date": "Mon, 21 Sep 2026 15:13:20 GMT", "retry-after": "Mon, 21 Sep 2026 15:14:20 GMT"}

    assert read(headers=headers).retry_after_s == 60


def test_a_date_header_of_whole_seconds_does_not_round_a_reset_away() -> None:
    headers = {"date": "Mon, 21 Sep 2026 14:13:19 GMT", "anthropic-ratelimit-unified-status": "rejected"}
    headers["anthropic-ratelimit-unified-reset"] = "1790000010"

    assert read(headers=headers).retry_after_s == 10


# ---------------------------------------------------------------- rates


def test_openai_headers_give_both_rates() -> None:
    report = read(
        200,
        {
            "x-ratelimit-limit-requests": "5000",
            "x-ratelimit-remaining-requests": "4999",
            "x-ratelimit-reset-requests": "12ms",
            "x-ratelimit-limit-tokens": "160000",
            "x-ratelimit-remaining-tokens": "159976",
            "x-ratelimit-reset-tokens": "1m30.5s",
        },
    )

    assert report.requests == RateFeedback(limit=5000, remaining=4999, reset_s=0.012)
    assert report.tokens == RateFeedback(limit=160_000, remaining=159_976, reset_s=90.5)
    assert (report.outcome, report.pause, report.retry_after_s) == ("ok", "", None)


def test_a_limit_per_day_in_the_same_headers_is_not_taken_for_one_per_minute() -> None:
    report = read(
        200,
        {
            "x-ratelimit-limit-requests": "200",
            "x-ratelimit-remaining-requests": "199",
            "x-ratelimit-reset-requests": "7m12s",
        },
    )

    assert report.requests is None


def test_anthropic_headers_give_four_rates() -> None:
    headers = {}
    for kind in ("requests", "tokens", "input-tokens", "output-tokens"):
        headers[f"anthropic-ratelimit-{kind}-limit"] = "4000"
        headers[f"anthropic-ratelimit-{kind}-remaining"] = "3999"
        headers[f"anthropic-ratelimit-{kind}-reset"] = "2026-09-21T14:13:50Z"

    report = read(200, headers)

    expected = RateFeedback(limit=4000, remaining=3999, reset_s=30)
    assert [report.requests, report.tokens, report.input, report.output] == [expected] * 4


def test_names_with_a_period_are_read() -> None:
    report = read(
        200,
        {
            "x-ratelimit-limit-req-minute": "720",
            "x-ratelimit-remaining-req-minute": "717",
            "x-ratelimit-limit-requests-day": "14400",
            "x-ratelimit-remaining-requests-day": "3",
            "x-ratelimit-remaining-tokens-minute": "4999911",
        },
    )

    assert report.requests == RateFeedback(limit=720, remaining=717)
    assert report.tokens == RateFeedback(remaining=4_999_911)


@pytest.mark.parametrize("nonsense", ["-1", "nan", "many", "9223372036854775807", ""])
def test_a_limit_that_makes_no_sense_is_left_out(nonsense: str) -> None:
    report = read(200, {"x-ratelimit-limit-tokens": nonsense, "x-ratelimit-remaining-tokens": nonsense})

    assert report.tokens is None


def test_a_limit_of_zero_would_stop_a_fleet_for_ever_and_is_left_out() -> None:
    assert read(200, {"x-ratelimit-limit-tokens": "0", "x-ratelimit-reset-tokens": "0"}).tokens is None


# ---------------------------------------------------------------- the three 429s


def gemini(quota_id: str, delay: str) -> dict[str, Any]:
    return {
        "error": {
            "code": 429,
            "message": "You exceeded your current quota, please check your plan and billing details.",
            "status": "RESOURCE_EXHAUSTED",
            "details": [
                {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota_id}]},
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay},
            ],
        }
    }


def openai(code: str, message: str) -> dict[str, Any]:
    return {"error": {"type": code, "code": code, "message": message, "param": None}}


THREE: list[tuple[str, dict[str, str], Any, str, float | None]] = [
    ("no headers, no body", {}, None, "burst", None),
    ("a page of some gateway", {}, b"<html>Too many requests this hour limit</html>", "burst", None),
    ("a short wait", {"retry-after": "1"}, None, "burst", 1),
    ("two seconds", {"retry-after": "2"}, None, "minute", 2),
    ("two minutes", {"retry-after": "120"}, None, "minute", 120),
    ("more than two minutes", {"retry-after": "121"}, None, "window", 121),
    (
        "concurrency, whatever wait is sent",
        {"retry-after": "30"},
        openai("rate_limit_error", "Number of concurrent connections has exceeded your rate limit."),
        "burst",
        30,
    ),
    (
        "nothing left this minute",
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"},
        None,
        "minute",
        1,
    ),
    (
        "nothing left today",
        {"x-ratelimit-remaining-requests-day": "0", "x-ratelimit-reset-requests-day": "4000"},
        None,
        "window",
        4000,
    ),
    (
        "openai tokens per minute",
        {"x-ratelimit-remaining-tokens": "900"},
        openai(
            "rate_limit_exceeded", "Rate limit reached on tokens per min (TPM): Limit 10. Please try again in 1.2s."
        ),
        "minute",
        1.2,
    ),
    (
        "openai requests per day",
        {},
        openai("rate_limit_exceeded", "Rate limit reached on requests per day (RPD). Please try again in 7m12s."),
        "window",
        432,
    ),
    ("openai, no money left", {"retry-after": "1"}, openai("insufficient_quota", "You exceeded."), "window", 1),
    (
        "chatgpt subscription",
        {},
        {"error": {"type": "usage_limit_reached", "message": "reached", "resets_in_seconds": 13_872}},
        "window",
        13_872,
    ),
    (
        "chatgpt subscription, in headers",
        {
            "x-codex-primary-used-percent": "100",
            "x-codex-primary-window-minutes": "300",
            "x-codex-primary-reset-after-seconds": "13873",
            "x-codex-secondary-used-percent": "80",
            "x-codex-secondary-reset-after-seconds": "316705",
        },
        None,
        "window",
        13_873,
    ),
    (
        "claude subscription: the last of the rejected windows counts",
        {
            "retry-after": "180",
            "anthropic-ratelimit-unified-status": "rejected",
            "anthropic-ratelimit-unified-5h-status": "rejected",
            "anthropic-ratelimit-unified-5h-reset": "1790000180",
            "anthropic-ratelimit-unified-7d-status": "rejected",
            "anthropic-ratelimit-unified-7d-reset": "1790200000",
            "anthropic-ratelimit-unified-reset": "1790000180",
        },
        None,
        "window",
        200_000,
    ),
    (
        "claude subscription: no overage is no rejected window",
        {"anthropic-ratelimit-unified-status": "allowed", "anthropic-ratelimit-unified-overage-status": "rejected"},
        None,
        "burst",
        None,
    ),
    ("gemini per day", {}, gemini("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "36s"), "window", 36),
    ("gemini per minute", {}, gemini("GenerateRequestsPerMinutePerProjectPerModel", "34.5s"), "minute", 34.5),
    (
        "openrouter",
        {},
        {
            "error": {
                "code": 429,
                "message": "Rate limit exceeded: free-models-per-day",
                "metadata": {"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1790003600000"}},
            }
        },
        "window",
        3600,
    ),
]


@pytest.mark.parametrize(
    ("headers", "body", "pause", "wait_s"), [case[1:] for case in THREE], ids=[c[0] for c in THREE]
)
def test_the_three_429s_are_told_apart(headers: dict[str, str], body: Any, pause: str, wait_s: float | None) -> None:
    report = read(429, headers, body)

    assert (report.outcome, report.pause, report.retry_after_s) == ("throttled", pause, wait_s)


# ---------------------------------------------------------------- the other outcomes


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        *[(200, "ok"), (529, "overloaded"), (503, "overloaded"), (408, "timeout"), (504, "timeout"), (524, "timeout")],
        *[(500, "error"), (502, "error"), (400, "refused"), (401, "refused"), (404, "refused"), (413, "refused")],
    ],
)
def test_the_status_decides_the_outcome(status: int, outcome: str) -> None:
    report = read(status, {"retry-after": "3"})

    assert (report.outcome, report.status, report.pause) == (outcome, status, "")
    assert report.retry_after_s == (None if outcome in {"ok", "refused"} else 3)


def test_a_request_that_is_larger_than_a_whole_minute_allows_is_refused_and_pauses_nobody() -> None:
    message = (
        "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 43432. "
        "The input or output tokens must be reduced in order to run successfully."
    )
    report = read(body=openai("rate_limit_exceeded", message))
    assert (report.outcome, report.pause, report.retry_after_s) == ("refused", "", None)


def test_an_error_in_the_body_of_a_200_is_an_error() -> None:
    assert read(200, {}, {"error": {"code": 502, "message": "upstream"}}).outcome == "error"
    assert read(200, {}, {"error": {"type": "overloaded_error", "message": "Overloaded"}}).outcome == "overloaded"
    assert read(200, {}, {"error": None, "usage": {"input_tokens": 1}}).outcome == "ok"


def test_a_message_is_short_and_holds_no_key() -> None:
    body = {"error": {"message": "Incorrect API key provided: sk-proj-abcdefghijklmnop.\n" + "x" * 5000}}

    message = read(401, {}, body).message

    assert "abcdefgh" not in message
    assert message.startswith("Incorrect API key provided: (key)")
    assert len(message) <= 300


values = st.one_of(
    st.text(max_size=60),
    st.floats().map(str),
    st.integers().map(str),
    st.sampled_from(
        ["9e99", "-0", "1e-400", "٣", "0x10", "1_000", "Sun, 06 Nov 0000 08:49:37 GMT", "9999-12-31T23:59:59Z"]
    ),
)
names = st.sampled_from(
    [
        "retry-after",
        "retry-after-ms",
        "date",
        "x-ratelimit-reset",
        "x-ratelimit-remaining",
        "x-ratelimit-limit-tokens",
        "x-ratelimit-reset-tokens",
        "x-ratelimit-remaining-tokens",
        "anthropic-ratelimit-input-tokens-reset",
        "anthropic-ratelimit-input-tokens-remaining",
        "anthropic-ratelimit-unified-status",
        "anthropic-ratelimit-unified-reset",
        "x-codex-primary-used-percent",
        "x-codex-primary-reset-at",
    ]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "details", "metadata", "headers", "usage", "type", "response"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    status=st.sampled_from([200, 400, 429, 503]),
    headers=st.dictionaries(names, values),
    body=st.none() | st.binary(max_size=60) | json_values.map(lambda v: json.dumps(v).encode()),
)
def test_nothing_a_server_sends_raises_or_asks_for_the_absurd(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    report = read_response(status, headers, body, now_wall_s=NOW_S)

    rates = [rate for rate in (report.requests, report.tokens, report.input, report.output) if rate]
    waits = [report.retry_after_s, *(rate.reset_s for rate in rates)]
    assert all(wait is None or 0 <= wait <= WAIT_S_MAX for wait in waits)
    assert all((rate.limit is None or rate.limit > 0) and (rate.remaining or 0) >= 0 for rate in rates)
    assert (report.pause != "") == (report.outcome == "throttled")
