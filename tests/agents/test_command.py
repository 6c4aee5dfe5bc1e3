"""The command adapter: any program, with its prompt in argv or on stdin, with lines of JSON or without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sennit.errors import SettingsError
from sennit.execute.adapters.base import AgentRun, Exit
from sennit.execute.adapters.command import Command, CommandReader
from sennit.model.agent import AgentEvent, RunEnd
from tests.agents.fakes import FakeDesk

SESSION = "my-session"


def run_of(folder: Path = Path("/w"), **more: Any) -> AgentRun:
    facts = {"prompt": "do it", "session_id": SESSION, "is_resume": False, "cwd": folder, "folder": folder, **more}
    return AgentRun(**facts)


def told(*lines: str | dict[str, Any], exit: Exit | None = None, **options: Any) -> tuple[list[AgentEvent], RunEnd]:  # noqa: A002
    """Return what the reader makes of lines."""
    reader = Command(("agent",), **options).reader(run_of(session_id=""))
    events = [
        event for line in lines for event in reader.feed((line if isinstance(line, str) else json.dumps(line)).encode())
    ]
    return events, reader.end(exit or Exit(code=0))


# ---------------------------------------------------------------- what it starts


def test_a_real_program_gets_the_prompt_on_stdin_and_its_output_is_the_result(tmp_path: Path) -> None:
    seen = FakeDesk(tmp_path, Command(("tr", "a-z", "A-Z"))).run("say it\nloud")

    assert (seen.end.outcome, seen.end.text) == ("success", "SAY IT\nLOUD")


def test_a_real_program_gets_the_prompt_as_one_argument_and_no_shell_sees_it(tmp_path: Path) -> None:
    seen = FakeDesk(tmp_path, Command(("printf", "%s|%s", "{prompt}", "in {cwd}"))).run("$(touch x); {cwd} 'a'\"")

    assert seen.end.text == f"$(touch x); {{cwd}} 'a'\"|in {tmp_path}/work"
    assert not (tmp_path / "work" / "x").exists()


def test_a_program_that_is_told_an_id_goes_on_with_its_session(tmp_path: Path) -> None:
    script = 'echo "{\\"result\\": \\"$1 $2\\"}"'
    new, again = (("sh", "-c", script, "-", word, "{session_id}") for word in ("new", "again"))
    desk = FakeDesk(tmp_path, Command(new, resume=again, needs_result=True))

    texts = [desk.run("x").end.text, desk.run("x", resume=True).end.text]

    assert texts == [f"new {desk.session_id}", f"again {desk.session_id}"]
    assert len(desk.session_id) == 36


def test_where_the_program_names_its_session_it_is_what_it_says() -> None:
    resumable = Command(("agent",), resume=("agent", "--go-on={session_id}"))
    events, end = told({"session_id": "s1", "model": "m"}, resume=resumable.resume)

    assert resumable.new_session_id() == ""
    assert [event.session_id for event in events] == [end.session_id] == ["s1"]
    assert resumable.launch(run_of(session_id="s1", is_resume=True)).argv == ("agent", "--go-on=s1")


def test_without_a_way_to_go_on_there_is_no_session() -> None:
    events, end = told({"session_id": "s1", "text": "x"})

    assert [event.kind for event in events] == ["text"]
    assert end.session_id == ""
    with pytest.raises(SettingsError, match="does not know how"):
        Command(("agent",)).launch(run_of(is_resume=True))


def test_a_prompt_that_is_too_long_for_an_argument_is_refused_with_the_way_out() -> None:
    with pytest.raises(SettingsError, match="stdin"):
        Command(("agent", "{prompt}")).launch(run_of(prompt="é" * 70_000))

    assert Command(("agent",)).launch(run_of(prompt="é" * 70_000)).stdin == ("é" * 70_000).encode()


@pytest.mark.parametrize(
    "wrong", [{"argv": ()}, {"argv": "my-agent --yes"}, {"argv": ("a",), "resume": ("a", "--go-on")}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Command(**wrong)


# ---------------------------------------------------------------- what it reads


def test_plain_lines_are_text_and_together_the_result() -> None:
    events, end = told("one", "", "two", '{"a": 1}', "[3]")

    assert [event.text for event in events] == ["one", "two", '{"a": 1}', "[3]"]
    assert (end.outcome, end.text) == ("success", 'one\n\ntwo\n{"a": 1}\n[3]')


def test_plain_output_without_end_keeps_its_last_part_only() -> None:
    reader = CommandReader(run_of())
    for number in range(20_000):
        reader.feed(b"line %d" % number)
    reader.feed(b"x" * 10_000_000)
    reader.feed(b"the end")

    end = reader.end(Exit(code=0))

    assert end.text.endswith("the end")
    assert len(end.text) <= 70_000


def test_lines_of_json_are_events_by_their_type() -> None:
    events, end = told(
        {"type": "thinking", "text": "hm"},
        {"type": "tool_begin", "call_id": "1", "tool": "edit", "input": {"a": 1}},
        {"type": "tool_end", "call_id": "1", "is_error": True},
        {"type": "retry", "status": 429, "retry_after_s": 2.5},
        {"type": "limit", "resets_at_s": 1.9e9},
        {"type": "usage", "input_tokens": 3, "output_tokens": 2, "cost_usd": 0.5},
        {"type": "result", "result": "fine", "turns": 4, "usage": {"input_tokens": 5, "cached_input_tokens": 1}},
        needs_result=True,
    )

    kinds = [event.kind for event in events]
    assert kinds == ["thinking", "tool_begin", "tool_end", "retry", "limit", "usage", "usage", "result"]
    assert (events[1].tool, events[1].input, events[2].is_error) == ("edit", {"a": 1}, True)
    assert (events[3].status, events[3].retry_after_s, events[4].resets_at_s) == (429, 2.5, 1.9e9)
    assert events[5].usage is not None
    assert events[5].usage.cost_usd == 0.5
    assert (end.outcome, end.text, end.turns, end.usage.input_tokens) == ("success", "fine", 4, 5)


def test_lines_of_json_are_events_by_their_keys() -> None:
    events, end = told({"text": "x", "usage": {"input_tokens": 1}}, {"result": {"n": 1}, "error": None})

    assert [event.kind for event in events] == ["usage", "text", "result"]
    assert (end.outcome, end.structured, end.text) == ("success", {"n": 1}, '{"n":1}')


@pytest.mark.parametrize(
    ("lines", "exit", "options", "outcome", "text"),
    [
        (["x"], Exit(code=2), {}, "error", "exit code 2\nx"),
        (["x"], Exit(signal=9, cause="wall"), {}, "error", "ended by SIGKILL (wall)\nx"),
        (["x"], Exit(code=0), {"needs_result": True}, "no_result", "it ended without a result"),
        ([{"result": "no", "is_error": True}], Exit(code=0), {}, "error", "no"),
        ([{"result": None, "error": {"message": "no"}}], Exit(code=0), {}, "error", "no"),
        ([{"error": "no"}], Exit(code=0), {}, "error", "no"),
        ([{"error": "no"}, {"result": "after all"}], Exit(code=0), {}, "success", "after all"),
        ([{"result": "x"}], Exit(code=1), {}, "error", "exit code 1 after a result that was no error"),
        ([{"result": "x"}], Exit(signal=9, cause="linger"), {}, "success", "x"),
        ([{"type": "limit", "text": "full"}], Exit(code=1), {}, "limited", "full"),
        ([{"result": "slow", "is_error": True, "status": 429}], Exit(code=1), {}, "limited", "slow"),
        ([], Exit(code=75), {}, "limited", "exit code 75"),
        (["HTTP 429 Too Many Requests"], Exit(code=1), {}, "error", "exit code 1\nHTTP 429 Too Many Requests"),
    ],
)
def test_how_a_run_ended_is_what_exit_and_lines_say(
    lines: list[str | dict[str, Any]],
    exit: Exit,  # noqa: A002 - that is what it is
    options: dict[str, Any],
    outcome: str,
    text: str,
) -> None:
    _, end = told(*lines, exit=exit, **options)

    assert (end.outcome, end.text) == (outcome, text)


def test_a_limit_carries_until_when() -> None:
    _, end = told({"type": "limit", "resets_at_s": 1.9e9, "retry_after_s": 30}, exit=Exit(code=1))

    assert (end.resets_at_s, end.retry_after_s, end.status) == (1.9e9, 30.0, 429)


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b'{"type":["result"],"result":"x"}',
        b'{"type":"usage","usage":7}',
        b'{"usage":{"input_tokens":"many"}}',
        b'{"type":"session","session_id":{}}',
        b'{"type":"result"}',
        b'{"type":"error"}',
        b'{"error":[1,2]}',
        b'{"type":"tool_begin","call_id":4,"input":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"text":"\\ud800"}',
        b'{"result":{"a":"\\ud800"}}',
    ],
)
def test_no_line_makes_it_raise(line: bytes) -> None:
    reader = Command(("agent",), resume=("agent", "{session_id}")).reader(run_of())

    reader.feed(line)
    reader.feed_error(line)

    assert reader.end(Exit(code=3)).outcome == "error"
