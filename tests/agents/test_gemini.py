"""The gemini adapter: what it starts, and what it makes of lines as gemini 0.61.0 wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sennit.errors import SettingsError
from sennit.execute.adapters.base import AgentRun, Exit
from sennit.execute.adapters.gemini import Gemini, GeminiReader
from sennit.model.agent import AgentEvent, RunEnd

SESSION = "3e312103-329c-4365-8426-4cee84d92b16"
INIT = (
    '{"type":"init","timestamp":"2026-11-22T01:43:30.363Z","session_id":"' + SESSION + '","model":"gemini-2.5-flash"}'
)
ASKED = '{"type":"message","timestamp":"2026-11-22T01:43:30.366Z","role":"user","content":"do it"}'
TOOL_USE = (
    '{"type":"tool_use","timestamp":"2026-11-22T01:43:30.481Z","tool_name":"write_file","tool_id":"write_file__1",'
    '"parameters":{"file_path":"new.txt","content":"hello"}}'
)
TOOL_RESULT = (
    '{"type":"tool_result","timestamp":"2026-11-22T01:43:30.552Z","tool_id":"write_file__1","status":"success"}'
)
DONE = '{"type":"message","timestamp":"2026-11-22T01:43:30.570Z","role":"assistant","content":"All done.","delta":true}'
RESULT = (
    '{"type":"result","timestamp":"2026-11-22T01:43:30.573Z","status":"success","stats":{"total_tokens":30,"input_tokens":20,'
    '"output_tokens":10,"cached":4,"input":16,"duration_ms":210,"tool_calls":1,"models":{"gemini":{"total_tokens":30}}}}'
)
REFUSED = (
    '{"type":"result","timestamp":"2026-11-22T01:43:43.297Z","status":"error","error":{"type":"unknown","message":'
    '"[API Error: {\\"error\\":{\\"code\\":%d,\\"message\\":\\"no\\",\\"status\\":\\"X\\"}}]"},"stats":{"total_tokens":0}}'
)
ATTEMPT = (
    b"Attempt 1 failed with status 429. Retrying with backoff... "
    b'_ApiError: {"error":{"code":429,"message":"no","status":"RESOURCE_EXHAUSTED"}}'
)


def run_of(folder: Path, **more: object) -> AgentRun:
    facts = {"prompt": "do it", "session_id": SESSION, "is_resume": False, "cwd": folder, "folder": folder, **more}
    return AgentRun(**facts)  # type: ignore[arg-type]


@pytest.fixture
def reader(tmp_path: Path) -> GeminiReader:
    return Gemini().reader(run_of(tmp_path))


def read(reader: GeminiReader, *lines: str) -> list[AgentEvent]:
    return [event for line in lines for event in reader.feed(line.encode())]


def test_a_run_that_uses_a_tool_is_read_from_end_to_end(reader: GeminiReader) -> None:
    events = read(reader, INIT, ASKED, TOOL_USE, TOOL_RESULT, DONE, RESULT)

    kinds = [event.kind for event in events]
    assert kinds == ["session", "tool_begin", "tool_end", "text", "usage", "result"]
    assert (events[1].tool, events[1].call_id, events[1].input["file_path"]) == (
        "write_file",
        "write_file__1",
        "new.txt",
    )
    end = reader.end(Exit(code=0))
    assert (end.outcome, end.text, end.session_id, end.turns) == ("success", "All done.", SESSION, 2)
    assert (end.usage.input_tokens, end.usage.output_tokens, end.usage.cached_input_tokens) == (20, 10, 4)


def test_pieces_of_one_message_are_one_text_and_what_was_said_before_a_tool_is_not_the_result(
    reader: GeminiReader,
) -> None:
    piece = '{"type":"message","role":"assistant","content":"%s","delta":true}'

    read(
        reader,
        INIT,
        piece % "I will ",
        piece % "write.",
        TOOL_USE,
        TOOL_RESULT,
        piece % "All ",
        piece % "done.",
        RESULT,
    )

    end = reader.end(Exit(code=0))
    assert (end.text, end.turns) == ("All done.", 2)


@pytest.mark.parametrize(
    ("status", "code", "outcome"), [(401, 145, "unauthorised"), (429, 173, "limited"), (500, 244, "error")]
)
def test_a_refusal_of_the_provider_is_told_by_its_status(
    reader: GeminiReader, status: int, code: int, outcome: str
) -> None:
    events = read(reader, INIT, REFUSED % status)

    assert events[-1].is_error
    end = reader.end(Exit(code=code))
    assert (end.outcome, end.status) == (outcome, status)


def test_calls_that_are_repeated_are_seen_on_stderr(reader: GeminiReader) -> None:
    read(reader, INIT, ASKED)

    assert [event.status for event in reader.feed_error(ATTEMPT)] == [429]
    assert reader.feed_error(b"    at async Turn.run (chunk.js:333001:24) {") == []
    assert reader.feed_error(b"YOLO mode is enabled. All tool calls will be automatically approved.") == []


def test_a_run_that_was_ended_idle_while_it_repeated_its_call_was_limited(reader: GeminiReader) -> None:
    read(reader, INIT)
    reader.feed_error(ATTEMPT)

    assert reader.end(Exit(signal=9, cause="idle")).outcome == "limited"


def test_a_run_that_was_ended_idle_after_an_answer_is_an_error(reader: GeminiReader) -> None:
    reader.feed_error(ATTEMPT)
    read(reader, INIT, DONE)

    assert reader.end(Exit(signal=9, cause="idle")).outcome == "error"


@pytest.mark.parametrize(
    ("code", "said", "outcome"),
    [
        (41, "Invalid auth method selected.", "unauthorised"),
        (41, "When using Gemini API, you must specify the GEMINI_API_KEY environment variable.", "unauthorised"),
        (42, f'Error resuming session: Invalid session identifier "{SESSION}".', "lost_session"),
        (42, "Error resuming session: No previous sessions found for this project.", "lost_session"),
        (
            42,
            f'Error starting session: Session ID "{SESSION}" already exists. Use --resume to resume it.',
            "busy_session",
        ),
        (55, "Gemini CLI is not running in a trusted directory.", "error"),
        (1, "Unknown argument: wrong", "error"),
        (0, "", "no_result"),
    ],
)
def test_an_end_without_a_result_is_what_code_and_words_say(
    reader: GeminiReader, code: int, said: str, outcome: str
) -> None:
    reader.feed_error(said.encode())

    end = reader.end(Exit(code=code))

    assert end.outcome == outcome
    assert said in end.text


def test_a_result_does_not_make_up_for_a_bad_exit(reader: GeminiReader) -> None:
    read(reader, INIT, DONE, RESULT)

    assert outcomes(reader, Exit(code=3), Exit(signal=11), Exit(signal=9, cause="memory")) == ["error"] * 3
    assert outcomes(reader, Exit(code=0), Exit(signal=9, cause="linger")) == ["success"] * 2


def outcomes(reader: GeminiReader, *exits: Exit) -> list[str]:
    ends: list[RunEnd] = [reader.end(ended) for ended in exits]
    return [end.outcome for end in ends]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe\x00",
        b"[1]",
        b'{"type":3}',
        b'{"type":"init","session_id":7,"model":null}',
        b'{"type":"message","role":"assistant","content":{"a":1},"delta":"yes"}',
        b'{"type":"tool_use","tool_id":[],"tool_name":null}',
        b'{"type":"tool_result","status":null}',
        b'{"type":"error","message":["x"]}',
        b'{"type":"result","status":"error","error":"x","stats":[1]}',
        b'{"type":"result","status":"error","error":{"message":"{{{\\"error\\""}}',
        b'{"type":"result","status":"error","error":{"message":"{\\"error\\":{\\"code\\":1e999}}"}}',
    ],
)
def test_no_line_makes_it_raise(reader: GeminiReader, line: bytes) -> None:
    reader.feed(line)
    reader.feed_error(line)

    assert reader.end(Exit(code=1)).outcome == "error"
    assert reader.end(Exit(code=1)).session_id == SESSION


def test_it_starts_a_session_of_ours_and_takes_the_prompt_from_stdin(tmp_path: Path) -> None:
    gemini = Gemini(model="m", approval_mode="yolo", folders=("/a", "/b"), mcp_servers=(), args=("--debug",))
    session_id = gemini.new_session_id()

    new = gemini.launch(run_of(tmp_path, session_id=session_id))
    resumed = gemini.launch(run_of(tmp_path, session_id=session_id, is_resume=True, prompt=""))

    assert new.argv[:5] == ("gemini", "-o", "stream-json", "--session-id", session_id)
    assert new.argv[5:10] == ("--skip-trust", "--model", "m", "--approval-mode", "yolo")
    assert new.argv[-3:] == ("--include-directories", "/a,/b", "--debug")
    assert (new.stdin, new.talks) == (b"do it", False)
    assert resumed.argv[3:5] == ("--resume", session_id)
    assert resumed.stdin
    assert gemini.new_session_id() != session_id


def test_what_sennit_says_itself_is_refused_in_args() -> None:
    with pytest.raises(SettingsError, match="--session-id"):
        Gemini(args=("--session-id=x",))
