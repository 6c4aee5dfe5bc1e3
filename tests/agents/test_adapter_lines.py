"""What all adapters share: JSON that never raises, what errors mean, and until when."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.execute.adapters import lines, troubles
from sennit.execute.adapters.base import Exit
from sennit.model.agent import AgentUsage, RunOutcome

NOON_S = datetime(2026, 11, 22, 12, 0, 30, tzinfo=UTC).timestamp()


def at(day: int, hour: int, minute: int = 0, *, month: int = 11, year: int = 2026) -> float:
    return datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp()


# ---------------------------------------------------------------- lines


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"[1]", b'"text"', b"Error: no", b'{"a": \xff}', b'{"a": "\xff"}', b'{"a": 1e999}', b'{"a":' * 50_000,
        b'{"type": "result", "result": "cut off he',
    ],
    ids=lambda line: str(line[:12]),
)  # fmt: skip
def test_a_line_that_is_no_json_object_is_none(line: bytes) -> None:
    assert lines.read_object(line) is None


@given(st.binary())
def test_no_line_raises(line: bytes) -> None:
    lines.read_object(line)
    lines.read_object(b"{" + line)


def test_a_line_that_is_one_is_read() -> None:
    assert lines.read_object(b' {"type": "result"} \r') == {"type": "result"}


def test_values_of_the_wrong_type_are_empty() -> None:
    told = lines.read_object(b'{"a": {"b": 7}, "c": [1, {"d": true}], "e": "x", "f": true, "g": -3, "h": 2.5}') or {}

    assert (lines.text(told["e"]), lines.text(told["a"]), lines.text(None)) == ("x", "", "")
    assert [lines.whole(told[name]) for name in "efgh"] == [0, 0, 0, 2]
    assert [lines.number(told[name]) for name in "efgh"] == [None, None, -3.0, 2.5]
    assert (lines.part(told, "a"), lines.part(told, "a", "b"), lines.part(told, "e", "x")) == ({"b": 7}, {}, {})
    assert (lines.parts(told["c"]), lines.parts(told["a"])) == ([{"d": True}], [])


def test_half_a_surrogate_becomes_writable() -> None:
    assert lines.text(json.loads('"a \\ud800"')).encode() == b"a ?"


def test_usage_counts_what_went_through_the_cache_once() -> None:
    claude = {"input_tokens": 3, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20, "output_tokens": 5}
    codex = {"input_tokens": 123, "cached_input_tokens": 100, "output_tokens": 5}

    expected = AgentUsage(input_tokens=123, cached_input_tokens=100, output_tokens=5)
    assert lines.usage_of(claude) == lines.usage_of(codex) == expected
    assert lines.added(expected, AgentUsage(cost_usd=0.5)).cost_usd == 0.5
    assert lines.added(expected, expected).cost_usd is None


def test_last_words_are_bounded() -> None:
    words = lines.LastWords()

    for number in range(1000):
        words.add(b"%d " % number + b"x" * 100_000)
        words.add(b"   ")

    assert len(str(words).splitlines()) == lines.LastWords.LINES_MAX
    assert str(words).splitlines()[-1].startswith("999 ")
    assert len(str(words)) <= lines.LastWords.LINES_MAX * (lines.LastWords.LINE_BYTES_MAX + 1)


@pytest.mark.parametrize(
    ("exited", "is_well", "words"),
    [
        (Exit(code=0), True, "exit code 0"),
        (Exit(code=3), False, "exit code 3"),
        (Exit(code=143, cause="linger"), True, "exit code 143 (linger)"),
        (Exit(signal=9, cause="linger"), True, "ended by SIGKILL (linger)"),
        (Exit(signal=9, cause="memory"), False, "ended by SIGKILL (memory)"),
        (Exit(signal=15), False, "ended by SIGTERM"),
        (Exit(signal=200), False, "ended by signal 200"),
        (Exit(), False, "ended by signal 0"),
    ],
)
def test_only_exit_0_and_our_own_end_after_a_result_are_well(*, exited: Exit, is_well: bool, words: str) -> None:
    assert lines.has_ended_well(exited) is is_well
    assert lines.words_of(exited) == words


# ---------------------------------------------------------------- what errors mean


@pytest.mark.parametrize(
    ("words", "status", "outcome"),
    [
        ("anything", 429, "limited"),
        ("anything", 529, "limited"),
        ("anything", 401, "unauthorised"),
        ("anything", 403, "unauthorised"),
        ("API Error: 500 Internal server error", 500, "error"),
        ("Credit balance is too low", 400, "limited"),
        ("No conversation found with session ID: a43c38c1", 0, "lost_session"),
        ("thread/resume failed: no rollout found for thread id a43c38c1 (code -32600)", 0, "lost_session"),
        ("Error: Session ID 010c365f is already in use.", 0, "busy_session"),
        ("API Error: Request rejected (429) · Rate limited. Please try again later.", 0, "limited"),
        ("You've hit your session limit · resets 3pm", 0, "limited"),
        ("You’ve hit your usage limit. Upgrade to Pro or try again at 2:52 AM.", 0, "limited"),
        ("Quota exceeded. Check your plan and billing details.", 0, "limited"),
        ("exceeded retry limit, last status: 429 Too Many Requests, request id: req_0", 0, "limited"),
        ("unexpected status 503 Service Unavailable: The engine is currently overloaded", 503, "limited"),
        ("You have exhausted your daily quota on this model.", 0, "limited"),
        ("RESOURCE_EXHAUSTED", 0, "limited"),
        ("Invalid API key · Fix external API key", 0, "unauthorised"),
        ("Not logged in · Please run /login", 0, "unauthorised"),
        ("unexpected status 401 Unauthorized: Incorrect API key provided.", 0, "unauthorised"),
        ("Missing environment variable: `OPENAI_API_KEY`.", 0, "unauthorised"),
        ("Please set an Auth method in your settings.json", 0, "unauthorised"),
        ("API Error: Unable to connect to API (ConnectionRefused)", 0, "error"),
        ("Reached maximum number of turns (2)", 0, "error"),
        ("stream disconnected before completion", 0, "error"),
        ("prompt is too long: 429,000 tokens", 0, "error"),
        ("", 0, "error"),
    ],
)  # fmt: skip
def test_an_error_means_what_its_status_or_its_words_say(words: str, status: int, outcome: RunOutcome) -> None:
    assert troubles.trouble(words, status) == outcome


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("exceeded retry limit, last status: 429 Too Many Requests", 429),
        ("unexpected status 401 Unauthorized", 401),
        ("API Error: 529 Overloaded", 529),
        ("HTTP/1.1 404", 0),
        ("status: 200", 0),
        ("4290 ships", 0),
    ],
)
def test_a_status_is_found_in_words(words: str, status: int) -> None:
    assert troubles.status_in(words) == status


@pytest.mark.parametrize(
    ("words", "wait_s"),
    [
        ("Please try again in 6m0s.", 360.0),
        ("Please try again in 20ms.", 0.02),
        ("Try again in 3 days 4 hours 5 minutes.", 3 * 86400 + 4 * 3600 + 5 * 60),
        ("Please retry in 32.5s.", 32.5),
        ("Your quota will reset after 3h20m5s.", 12005.0),
        ("retry-after: 30", 30.0),
        ("try again at 8:24 AM", None),
        ("try again later", None),
        ("resets 3pm", None),
    ],
)
def test_a_wait_is_read_from_words(words: str, wait_s: float | None) -> None:
    assert troubles.retry_after_s(words) == pytest.approx(wait_s)


@pytest.mark.parametrize(
    ("words", "resets_at_s"),
    [
        ("Try again at 2:52 PM.", at(22, 14, 53)),
        ("or try again at 8:24 AM.", at(23, 8, 25)),
        ("try again at 12:00 PM", at(22, 12, 1)),  # this very minute
        ("try again at 11:57 AM", at(22, 11, 58)),  # just past: no wait, and not until tomorrow
        ("try again at 11:50 AM", at(23, 11, 51)),
        ("Try again at Nov 23rd, 2026 8:24 AM.", at(23, 8, 25)),
        ("Try again at Jan 2nd, 2027 12:05 AM.", at(2, 0, 6, month=1, year=2027)),
        ("You've hit your session limit · resets 3pm", at(22, 15, 1)),
        ("You've hit your session limit · resets 2:55am (UTC)", at(23, 2, 56)),
        ("You've hit your weekly limit · resets 3pm (Europe/Berlin)", at(22, 14, 1)),
        ("resets Jan 9, 5pm", at(9, 17, 1, month=1, year=2027)),
        ("resets at 15:00", at(22, 15, 1)),
        ("Claude AI usage limit reached|1795316105", 1795316105.0),
        ("quota resets at 2026-11-23T00:00:00Z", at(23, 0)),
        ("quota resets at 2026-11-23 00:00:00", at(23, 0)),
        ("resets 5 times", None),
        ("try again at 25:00", None),
        ("try again at 13:00 PM", None),
        ("resets Feb 31, 5pm", None),
        ("resets 3pm (No/Where)", None),
        ("resets at 9999-99-99T00:00:00Z", None),
        ("try again later", None),
    ],
)  # fmt: skip
def test_the_end_of_a_limit_is_read_from_words(words: str, resets_at_s: float | None) -> None:
    assert troubles.resets_at_s(words, now_s=NOON_S, zone=UTC) == resets_at_s


def test_a_time_without_a_zone_is_that_of_the_place() -> None:
    berlin = troubles.resets_at_s("try again at 3:00 PM", now_s=NOON_S, zone=ZoneInfo("Europe/Berlin"))

    assert berlin == at(22, 14, 1)


@given(st.text(alphabet=st.sampled_from("try again resets at in |0123456789:.,()-TZapmsh/Nov JanMarUTC"), max_size=80))
def test_no_words_raise(words: str) -> None:
    text = f"try again at {words}"

    troubles.trouble(text)
    troubles.status_in(text)
    troubles.retry_after_s(text)
    troubles.resets_at_s(text, now_s=NOON_S)
