"""Streams of the four families, in pieces of every size, whole and cut off; and usage of whole answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.limit import feedback_stream
from sennit.limit.feedback import StreamReader, read_request, usage_of
from sennit.model.provider import CallReport, Usage

NOW_S = 1_790_000_000.0


def sse(*events: dict[str, Any] | str, named: bool = False) -> bytes:
    lines = []
    for event in events:
        data = event if isinstance(event, str) else json.dumps(event)
        if named and isinstance(event, dict):
            lines.append(f"event: {event['type']}\n")
        lines.append(f"data: {data}\n\n")
    return "".join(lines).encode()


def chunk(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-x", "choices": [{"delta": {"content": text}, "finish_reason": None}], "usage": None, **more}


CHAT = sse(
    chunk("hel"),
    chunk('lo "finish_reason": "stop"'),
    {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": None},
    {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}},
    "[DONE]",
)
ANTHROPIC = sse(
    {"type": "message_start", "message": {"model": "claude-x", "usage": {"input_tokens": 9, "output_tokens": 1}}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 'a "type":"message_stop" b'}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 0, "output_tokens": 40}},
    {"type": "message_stop"},
    named=True,
)
RESPONSES = sse(
    {"type": "response.created", "response": {"status": "in_progress", "usage": None, "error": None}},
    {"type": "response.output_text.delta", "delta": "hello"},
    {"type": "response.completed", "response": {"model": "gpt-y", "usage": {"input_tokens": 3, "output_tokens": 4}}},
    named=True,
)
GEMINI = sse(
    {"candidates": [{"content": {}}], "usageMetadata": {"promptTokenCount": 5}},
    {
        "candidates": [{"finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 6, "thoughtsTokenCount": 20},
    },
)
STREAMS = [(CHAT, 11, 7), (ANTHROPIC, 9, 40), (RESPONSES, 3, 4), (GEMINI, 5, 26)]


def report_of(reader: StreamReader, *, complete: bool = True) -> CallReport:
    return reader.report(200, {}, now_wall_s=NOW_S, complete=complete)


@given(stream=st.sampled_from(STREAMS), cuts=st.lists(st.integers(0, 800), max_size=12), crlf=st.booleans())
def test_pieces_of_any_size_tell_the_same(stream: tuple[bytes, int, int], cuts: list[int], crlf: bool) -> None:  # noqa: FBT001
    data, into, out = stream
    data = data.replace(b"\n", b"\r\n") if crlf else data
    reader = StreamReader()

    at = 0
    for cut in [*sorted(cuts), len(data)]:
        reader.feed(data[at:cut])
        at = max(at, cut)
    report = report_of(reader)

    assert (report.outcome, report.usage) == ("ok", Usage(input_tokens=into, output_tokens=out))
    assert reader.ended


@given(stream=st.sampled_from(STREAMS), share=st.floats(0.0, 1.0))
def test_a_stream_that_is_cut_off_is_an_error_until_its_end_has_come(
    stream: tuple[bytes, int, int], share: float
) -> None:
    reader = StreamReader()
    reader.feed(stream[0][: int(share * len(stream[0]))])

    report = report_of(reader)

    assert reader.truncated == (reader.known and not reader.ended)
    assert report.outcome == ("error" if reader.truncated else "ok")


def test_a_cut_inside_the_text_is_an_error_and_keeps_the_usage_so_far() -> None:
    reader = StreamReader()
    reader.feed(ANTHROPIC[: ANTHROPIC.index(b"message_delta")])

    report = report_of(reader)

    assert (report.outcome, report.status) == ("error", 200)
    assert report.usage == Usage(input_tokens=9, output_tokens=1)
    assert "cut off" in report.message


def test_a_reader_that_stops_early_is_no_failure_of_the_provider() -> None:
    reader = StreamReader()
    reader.feed(CHAT[:150])

    assert report_of(reader, complete=False).outcome == "cancelled"


def test_a_reader_that_stops_at_the_end_has_read_it_all() -> None:
    reader = StreamReader()
    reader.feed(CHAT)

    assert report_of(reader, complete=False).outcome == "ok"


@pytest.mark.parametrize(
    ("event", "outcome", "pause"),
    [
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "overloaded", ""),
        ({"type": "error", "error": {"type": "api_error", "message": "Internal"}}, "error", ""),
        ({"type": "error", "error": {"type": "rate_limit_error", "message": "per minute"}}, "throttled", "minute"),
        ({"type": "error", "code": "server_error", "message": "oh"}, "error", ""),
        (
            {
                "type": "response.failed",
                "response": {"error": {"code": "rate_limit_exceeded", "message": "Please try again in 300s."}},
            },
            "throttled",
            "window",
        ),
        ({"type": "chunk", "error": {"message": "something", "code": 503}}, "overloaded", ""),
        ({"type": "chunk", "error": "out of memory"}, "error", ""),
    ],
)
def test_an_error_in_the_stream_is_what_the_call_came_to(event: dict[str, Any], outcome: str, pause: str) -> None:
    reader = StreamReader()
    reader.feed(ANTHROPIC[:200] + b"\n\n" + sse(event, named=True))

    report = report_of(reader)

    assert (report.outcome, report.pause) == (outcome, pause)
    assert not reader.truncated


def test_events_that_are_no_json_and_comments_are_passed_over() -> None:
    reader = StreamReader()
    reader.feed(b": keep-alive\n\ndata: {oops\n\nretry: 3\n\ndata: 17\n\n" + CHAT)

    assert report_of(reader).usage == Usage(input_tokens=11, output_tokens=7)


def test_an_endless_line_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback_stream, "LINE_BYTES_MAX", 1000)
    reader = StreamReader()

    for _ in range(100):
        reader.feed(b"data: " + b"x" * 90)
        assert len(reader._rest) <= 1000
    reader.feed(b"\n" + CHAT)

    assert report_of(reader).usage == Usage(input_tokens=11, output_tokens=7)


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_make_it_raise(data: bytes, complete: bool) -> None:  # noqa: FBT001
    reader = StreamReader()
    reader.feed(b'data: {"choices":' + data)
    reader.feed(b"\n\n" + data + b"\n\n")

    report_of(reader, complete=complete)


# ---------------------------------------------------------------- whole answers, and requests


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, Usage(input_tokens=3, output_tokens=4)),
        ({"usage": {"prompt_tokens": 3, "total_tokens": 3}}, Usage(input_tokens=3)),
        (
            {"usage": {"input_tokens": 3, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 900}},
            Usage(input_tokens=8),
        ),
        (
            {"usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 2, "thoughtsTokenCount": 3}},
            Usage(input_tokens=1, output_tokens=5),
        ),
        ({"usage": {"prompt_tokens": 1, "cost": 0.00014}}, Usage(input_tokens=1, cost_nano=140_000)),
        ({"usage": {"prompt_tokens": -3, "completion_tokens": 2}}, Usage(output_tokens=2)),
        ({"usage": {"prompt_tokens": "many"}}, None),
        ({"usage": None}, None),
        ({"usage": [1]}, None),
        ([], None),
    ],
)
def test_usage_is_read_from_bytes_and_from_objects_alike(body: Any, usage: Usage | None) -> None:
    assert usage_of(json.dumps(body).encode()) == usage
    if isinstance(body, dict):
        assert usage_of(body) == usage


def test_a_request_is_estimated_by_its_text_and_what_it_asks_for() -> None:
    body = {
        "model": "claude-x",
        "max_tokens": 100,
        "stream": True,
        "system": "x" * 40,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "y" * 400}]},
            {"role": "user", "content": [{"type": "image", "source": {"data": "A" * 100_000}}]},
        ],
    }

    found = read_request(json.dumps(body).encode())

    assert (found.model, found.stream) == ("claude-x", True)
    assert 100 + 110 + 1000 <= found.tokens <= 100 + 110 + 1000 + 20


@pytest.mark.parametrize("body", [None, b"", b"\xff", b"[1]", b'{"messages": 7, "max_tokens": "many"}'])
def test_a_request_that_says_nothing_is_worth_nothing(body: bytes | None) -> None:
    assert read_request(body).tokens == 0
