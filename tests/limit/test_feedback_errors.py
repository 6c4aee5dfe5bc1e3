"""Exceptions of the real packages, and the sentences of errors."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import aiohttp
import anthropic
import httpx
import httpx2
import openai
import pytest

from sennit.errors import ProviderBusy, ResultTimeout
from sennit.limit.feedback import read_exception
from sennit.limit.feedback_text import period_in, wait_in_s

NOW_S = 1_790_000_000.0

REQUEST = httpx2.Request("POST", "https://model.example/v1/messages")
LIMITED = {"error": {"type": "rate_limit_error", "message": "of 50,000 input tokens per minute"}}


def response(status: int, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, headers={k.replace("_", "-"): v for k, v in headers.items()}, request=REQUEST)


def caused(error: BaseException, cause: BaseException | None) -> BaseException:
    error.__cause__ = cause
    return error


def wrapped(error: BaseException) -> BaseException:
    return caused(RuntimeError("my agent failed"), error)


OPENAI_429 = openai.RateLimitError("slow down", response=response(429, retry_after="7"), body=LIMITED["error"])
ANTHROPIC_429 = anthropic.RateLimitError("slow down", response=response(429, retry_after="700"), body=LIMITED)


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [
        (OPENAI_429, "throttled", 429),
        (ANTHROPIC_429, "throttled", 429),
        (anthropic.OverloadedError("o", response=response(529), body=None), "overloaded", 529),
        (openai.AuthenticationError("no", response=response(401), body=None), "refused", 401),
        (openai.APITimeoutError(REQUEST), "timeout", 0),
        (openai.APIConnectionError(request=REQUEST), "error", 0),
        (anthropic.APIConnectionError(request=REQUEST), "error", 0),
        (httpx2.ReadTimeout("slow"), "timeout", 0),
        (httpx2.ConnectError("no"), "error", 0),
        (httpx2.RemoteProtocolError("peer closed"), "error", 0),
        (httpx2.UnsupportedProtocol("ftp"), "refused", 0),
        (httpx2.HTTPStatusError("x", request=REQUEST, response=response(503)), "overloaded", 503),
        (httpx.PoolTimeout("slow"), "timeout", 0),
        (httpx.ReadError("gone"), "error", 0),
        (aiohttp.ServerDisconnectedError(), "error", 0),
        (aiohttp.ServerTimeoutError(), "timeout", 0),
        (TimeoutError(), "timeout", 0),
        (ConnectionResetError(), "error", 0),
        (asyncio.CancelledError(), "cancelled", 0),
    ],
    ids=lambda value: type(value).__module__ + "." + type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_exception_says_how_the_call_went(error: BaseException, outcome: str, status: int) -> None:
    seen_as = [error, wrapped(error), BaseExceptionGroup("both", [ValueError("x"), error])]
    for seen in seen_as:
        report = read_exception(seen, now_wall_s=NOW_S)
        assert report is not None
        assert (report.outcome, report.status) == (outcome, status)


def test_headers_and_body_of_the_response_are_read() -> None:
    minute, window = (read_exception(error, now_wall_s=NOW_S) for error in (OPENAI_429, ANTHROPIC_429))

    assert minute is not None
    assert window is not None
    assert (minute.pause, minute.retry_after_s) == ("minute", 7)
    assert (window.pause, window.retry_after_s) == ("window", 700)


def test_what_wraps_a_status_says_less_than_the_status() -> None:
    lost = caused(openai.APIConnectionError(request=REQUEST), OPENAI_429)

    report = read_exception(lost, now_wall_s=NOW_S)

    assert report is not None
    assert report.outcome == "throttled"


def test_an_exception_of_something_else_says_nothing() -> None:
    ours: list[BaseException] = [
        ValueError("x"),
        KeyError("status"),
        FileNotFoundError("x"),
        SystemExit(429),
        ResultTimeout("a task took long", task_id=7),
        caused(anthropic.APIConnectionError(request=REQUEST), ProviderBusy("p", reason="limit", retry_after_s=1.0)),
    ]

    assert [read_exception(error, now_wall_s=NOW_S) for error in ours] == [None] * len(ours)


def test_a_loop_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first

    assert read_exception(first) is None


def test_an_answer_of_200_that_could_not_be_parsed_is_nobodys_limit() -> None:
    error = openai.APIResponseValidationError(response(200), None)

    assert read_exception(error) is None


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("message", "wait_s"),
    [
        ("Rate limit reached. Please try again in 1.2s. Visit x", 1.2),
        ("Please try again in 6m0s.", 360),
        ("Please try again in 20ms.", 0.02),
        ("Please retry after 26 seconds.", 26),
        ("Please retry in 36.429760048s.", 36.429760048),
        ("You've hit your usage limit. Try again in 3 days 4 hours 9 minutes.", 274_140),
        ("Try again in 1 hour and 5 minutes", 3900),
        ("try again in about 5 minutes", 300),
        ("Claude AI usage limit reached|1790000600", 600),
        ("limit resets at: 2026-09-21T14:14:20+0000", 60),
        ("Please try again later.", None),
        ("Please wait", None),
        ("try again at 25:99 pm", None),
        ("try again in 900 weeks", None),
        ("resets 3pm (Nowhere/City)", None),
        ("", None),
    ],
)
def test_a_sentence_says_how_long_to_wait(message: str, wait_s: float | None) -> None:
    assert wait_in_s(message, NOW_S) == (None if wait_s is None else pytest.approx(wait_s))


def test_a_time_of_day_is_the_next_one_on_the_local_clock() -> None:
    now = datetime.fromtimestamp(NOW_S).astimezone()
    soon, past = now + timedelta(hours=2), now - timedelta(hours=2)

    def told(when: datetime) -> Any:
        return wait_in_s(f"You've hit your usage limit. Try again at {when:%I:%M %p}.", NOW_S)

    assert told(soon) == pytest.approx(7200, abs=60)
    assert told(past) == pytest.approx(22 * 3600, abs=3660)  # an hour more or less where clocks change that day


def test_a_zone_and_a_date_are_obeyed() -> None:
    rome = datetime.fromtimestamp(NOW_S, ZoneInfo("Europe/Rome"))

    zoned = wait_in_s("You've hit your limit · resets 8pm (Europe/Rome)", NOW_S)
    dated = wait_in_s(f"try again at {(rome + timedelta(days=2)):%b %d}th, {rome.year} 8:24 AM.", NOW_S)

    assert zoned == pytest.approx((rome.replace(hour=20, minute=0, second=0) - rome).total_seconds())
    assert dated is not None
    assert 86_400 < dated < 3 * 86_400


@pytest.mark.parametrize(
    ("message", "period"),
    [
        ("Rate limit reached on requests per day (RPD)", "window"),
        ("This request would exceed your organization's rate limit of 50,000 input tokens per minute", "minute"),
        ("Number of concurrent connections has exceeded your rate limit", "burst"),
        ("exceeded your organization's maximum usage increase rate", "burst"),
        ("You've hit your usage limit", "window"),
        ("You exceeded your current quota, please check your plan and billing details", ""),
    ],
)
def test_a_sentence_says_of_what_there_was_too_much(message: str, period: str) -> None:
    assert period_in(message) == period
