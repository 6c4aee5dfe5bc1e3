"""How claude is started and read. The lines are as claude 2.1.197 wrote them, shortened; the real one: test_real_claude."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sennit.errors import SettingsError
from sennit.execute.adapters.base import Exit
from sennit.execute.adapters.claude import Claude
from sennit.model.agent import AgentUsage, RunOutcome
from tests.agents.adapter_runs import WELL, agent_run, hostile, read
from tests.agents.claude_shapes import INIT, RESULT, USED, call, result_of, said

# ---------------------------------------------------------------- it is started


def test_a_new_session_has_our_id_and_the_prompt_goes_in_by_stdin(tmp_path: Path) -> None:
    launch = Claude().launch(agent_run(tmp_path, "x" * 200_000))

    assert launch.argv == (
        "claude", "-p", "--output-format", "stream-json", "--verbose", "--session-id", "s-1",
    )  # fmt: skip
    assert launch.stdin == b"x" * 200_000
    assert launch.environ["CLAUDE_CODE_MAX_RETRIES"] == "1"
    assert str(uuid.UUID(Claude().new_session_id())) != Claude().new_session_id()


def test_a_session_goes_on_without_a_prompt_where_only_leave_was_given(tmp_path: Path) -> None:
    launch = Claude(approve=("Bash",)).launch(
        agent_run(tmp_path, "", is_resume=True, decisions={"toolu_1": True, "toolu_2": False})
    )

    assert launch.argv[5:7] == ("--resume", "s-1")
    assert launch.stdin is None
    told = json.loads((tmp_path / "approvals.json").read_text())
    assert told == {"approve": ["Bash"], "decisions": {"toolu_1": True, "toolu_2": False}}


def test_every_option_is_said(tmp_path: Path) -> None:
    claude = Claude(
        program="/opt/claude", model="opus", model_fallback="sonnet", effort="low", system_prompt="s" * 200_000,
        permission_mode="acceptEdits", tools=("Bash", "Read"), tools_allowed=("Bash(git log:*)", "Read"),
        tools_denied=("WebFetch",), turns_max=3, budget_usd=1.5, schema={"type": "object"}, folders=("/a", "/b"),
        mcp_config=("m.json",), settings={"theme": "dark"}, retries=0, config_folder="/c", environ={"A": "b"},
        environ_passes=("C_*",), args=("--strict-mcp-config",),
    )  # fmt: skip

    launch = claude.launch(agent_run(tmp_path))

    system, settings = tmp_path / "system.txt", tmp_path / "settings.json"
    assert launch.argv == (
        "/opt/claude", "-p", "--output-format", "stream-json", "--verbose", "--session-id", "s-1",
        "--model", "opus", "--fallback-model", "sonnet", "--effort", "low", "--permission-mode", "acceptEdits",
        "--max-turns", "3", "--max-budget-usd", "1.5", "--json-schema", '{"type":"object"}',
        "--allowedTools", "Bash(git log:*)", "Read", "--disallowedTools", "WebFetch", "--add-dir", "/a", "/b",
        "--mcp-config", "m.json", "--tools", "Bash,Read", "--append-system-prompt-file", str(system),
        "--settings", str(settings), "--strict-mcp-config",
    )  # fmt: skip
    assert system.read_text() == "s" * 200_000
    assert json.loads(settings.read_text()) == {"theme": "dark"}
    assert {file.stat().st_mode & 0o777 for file in (system, settings)} == {0o600}
    assert launch.environ["CLAUDE_CODE_MAX_RETRIES"] == "0"
    assert (launch.environ["CLAUDE_CONFIG_DIR"], launch.environ["A"]) == ("/c", "b")
    assert "C_*" in claude.passes
    assert set(claude.secrets) >= {"ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"}


def test_the_hook_is_added_to_hooks_that_are_there_and_cannot_be_switched_off(tmp_path: Path) -> None:
    mine = {"matcher": "Write", "hooks": [{"type": "command", "command": "true"}]}
    claude = Claude(approve=("Bash", "Write(deploy/*)"), settings={"hooks": {"PreToolUse": [mine], "Stop": []}})

    launch = claude.launch(agent_run(tmp_path))

    settings = json.loads((tmp_path / "settings.json").read_text())
    first, second = settings["hooks"]["PreToolUse"]
    assert (first, second["matcher"], settings["hooks"]["Stop"]) == (mine, "Bash|Write", [])
    assert second["hooks"][0]["command"].endswith(f"{tmp_path} || exit 2")
    assert settings["disableAllHooks"] is False
    assert launch.environ["CLAUDE_CODE_SIMPLE"] == ""


def test_a_glob_of_tools_asks_the_hook_about_all_of_them(tmp_path: Path) -> None:
    Claude(approve=("Bash", "mcp__db__*")).launch(agent_run(tmp_path))

    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["hooks"]["PreToolUse"][0]["matcher"] == "*"


@pytest.mark.parametrize(
    "options",
    [
        {"args": ("--session-id=1",)},
        {"args": ("-r",)},
        {"args": ("--bare",), "approve": ("Bash",)},
        {"args": ("--settings", "x.json"), "approve": ("Bash",)},
        {"approve": ("Bash(",)},
        {"approve": ("",)},
        {"retries": -1},
        {"turns_max": -1},
        {"budget_usd": -0.5},
        {"schema": {"description": "x" * 200_000}},
    ],
    ids=str,
)
def test_what_cannot_work_is_said_when_it_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Claude(**options)


def test_a_run_without_a_session_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="session id"):
        Claude().launch(agent_run(tmp_path, session_id=""))


# ---------------------------------------------------------------- it is read


def test_a_whole_run_is_told_in_the_shared_words(tmp_path: Path) -> None:
    more = {**USED, "output_tokens": 7}
    events, end = read(
        Claude(),
        agent_run(tmp_path),
        INIT,
        said({"type": "thinking", "thinking": "Hm."}),
        said({"type": "text", "text": "Let me see."}),  # the same message, another block: its tokens count once
        said(call("toolu_1", command="ls")),
        result_of("toolu_1", is_error=True),
        {**said({"type": "text", "text": "Inside."}, message_id="msg_2"), "parent_tool_use_id": "toolu_9"},
        said({"type": "text", "text": "It is done."}, message_id="msg_3"),
        {**RESULT, "usage": more},
    )

    assert [(event.kind, event.text or event.call_id or event.session_id) for event in events if event.kind != "usage"] == [
        ("session", "s-1"), ("thinking", "Hm."), ("text", "Let me see."), ("tool_begin", "toolu_1"),
        ("tool_end", "toolu_1"), ("text", "Inside."), ("text", "It is done."), ("result", "It is done."),
    ]  # fmt: skip
    begin = next(event for event in events if event.kind == "tool_begin")
    assert (begin.tool, begin.input) == ("Bash", {"command": "ls"})
    assert next(event for event in events if event.kind == "tool_end").is_error
    assert [event.usage.input_tokens for event in events if event.usage] == [100, 200, 300, 100]
    assert end.outcome == "success"
    assert (end.text, end.turns, end.model, end.session_id) == ("It is done.", 2, "claude-opus-4-8", "s-1")
    assert end.usage == AgentUsage(input_tokens=100, cached_input_tokens=90, output_tokens=7, cost_usd=0.25)


def test_retries_and_limits_are_events(tmp_path: Path) -> None:
    retry = {"type": "system", "subtype": "api_retry", "attempt": 1, "retry_delay_ms": 564.1, "error_status": 429}
    nowhere = {**retry, "error_status": None, "error": "unknown"}
    info = {"status": "rejected", "resetsAt": 1795316104, "rateLimitType": "five_hour"}
    warning = {**info, "status": "allowed_warning", "resetsAt": 1795316104000}

    events, _ = read(
        Claude(),
        agent_run(tmp_path),
        {**retry, "error": "rate_limit"},
        nowhere,
        {"type": "rate_limit_event", "rate_limit_info": info},
        {"type": "rate_limit_event", "rate_limit_info": warning},
        {"type": "rate_limit_event", "rate_limit_info": {"status": "allowed", "isUsingOverage": False}},
    )

    assert [(event.kind, event.status) for event in events[:2]] == [("retry", 429), ("retry", 0)]
    assert events[0].retry_after_s == pytest.approx(0.5641)
    assert [(event.text, event.is_error, event.status, event.resets_at_s) for event in events[2:]] == [
        ("five_hour rejected", True, 429, 1795316104.0),
        ("five_hour allowed_warning", False, 0, 1795316104.0),
        ("allowed", False, 0, None),
    ]


SYNTHETIC = {"model": "<synthetic>", "id": "x", "content": [{"type": "text", "text": "No."}], "usage": {}}
WRONG = {"is_error": True, "total_cost_usd": 0}


@pytest.mark.parametrize(
    ("result", "exited", "outcome", "words"),
    [
        ({}, WELL, "success", "It is done."),
        ({}, Exit(code=143, cause="linger"), "success", "It is done."),
        ({}, Exit(signal=9, cause="linger"), "success", "It is done."),
        ({}, Exit(code=1), "error", "exit code 1 after a result"),
        ({}, Exit(signal=9), "error", "ended by SIGKILL after a result"),
        ({}, Exit(code=143, cause="wall"), "error", "exit code 143 (wall) after a result"),
        ({"is_error": True}, WELL, "error", "It is done."),
        ({"is_error": None}, WELL, "error", "It is done."),
        ({"subtype": "error_during_execution"}, WELL, "error", "It is done."),
        ({**WRONG, "api_error_status": 429, "result": "Rate limited."}, Exit(code=1), "limited", "Rate limited."),
        ({**WRONG, "api_error_status": 529, "result": "Overloaded"}, Exit(code=1), "limited", "Overloaded"),
        ({**WRONG, "api_error_status": 401, "result": "Invalid API key"}, Exit(code=1), "unauthorised", "Invalid API key"),
        ({**WRONG, "api_error_status": 500, "result": "API Error: 500"}, Exit(code=1), "error", "API Error: 500"),
        ({**WRONG, "result": "Not logged in · Please run /login"}, Exit(code=1), "unauthorised", "Not logged in"),
        ({**WRONG, "result": "API Error: Unable to connect"}, Exit(code=1), "error", "Unable to connect"),
        (
            {**WRONG, "subtype": "error_during_execution", "result": None, "errors": ["No conversation found with …"]},
            Exit(code=1), "lost_session", "No conversation found",
        ),
        (
            {**WRONG, "subtype": "error_max_turns", "result": None, "errors": ["Reached maximum number of turns (429)"]},
            Exit(code=1), "error", "maximum number of turns",
        ),
        ({**WRONG, "stop_reason": "tool_deferred_unavailable", "result": "Gone."}, WELL, "error", "Gone."),
    ],
)  # fmt: skip
def test_success_is_a_result_without_an_error_and_a_good_exit(
    tmp_path: Path, result: dict[str, Any], exited: Exit, outcome: RunOutcome, words: str
) -> None:
    events, end = read(Claude(), agent_run(tmp_path), INIT, {**RESULT, **result}, exited=exited)

    assert (end.outcome, end.status) == (outcome, result.get("api_error_status") or 0)
    assert words in end.text
    assert (end.structured, end.asks) == (None, ())
    assert events[-1].kind == "result"


@pytest.mark.parametrize(
    ("exited", "errors", "outcome", "words"),
    [
        (WELL, (), "no_result", "it ended without a result"),
        (WELL, ("429",), "no_result", "429"),
        (Exit(code=1), ("Error: Session ID 010c is already in use.",), "busy_session", "already in use"),
        (Exit(code=1), ("No conversation found with session ID: a43c",), "lost_session", "exit code 1"),
        (Exit(code=1), ("error: unknown option '--nope'",), "error", "--nope"),
        (Exit(code=127), (), "error", "exit code 127 without a result"),
        (Exit(signal=9), (), "error", "ended by SIGKILL without a result"),
        (Exit(code=1), ("log: 429 ships",), "error", "429 ships"),
        (Exit(signal=9), ("Session ID 010c is already in use",), "error", "SIGKILL"),
        (Exit(signal=9, cause="memory"), ("rate limit",), "error", "SIGKILL (memory)"),
        (Exit(code=143, cause="stopped"), (), "error", "exit code 143 (stopped)"),
    ],
)
def test_without_a_result_nothing_is_a_success(
    tmp_path: Path, exited: Exit, errors: tuple[str, ...], outcome: RunOutcome, words: str
) -> None:
    lines = (INIT, b'{"type":"result","subtype":"success","is_error":false,"result":"cut o')

    _, end = read(Claude(), agent_run(tmp_path), *lines[: len(errors) + 1], exited=exited, errors=errors)

    assert (end.outcome, end.session_id) == (outcome, "s-1")
    assert words in end.text


@pytest.mark.parametrize(("is_tried_again", "outcome"), [(True, "limited"), (False, "error")])
def test_a_run_that_idled_while_its_provider_refused_is_limited(
    *, tmp_path: Path, is_tried_again: bool, outcome: RunOutcome
) -> None:
    retry = {"type": "system", "subtype": "api_retry", "retry_delay_ms": 36000, "error_status": 429}
    after = [] if is_tried_again else [said({"type": "text", "text": "On."})]

    _, end = read(Claude(), agent_run(tmp_path), INIT, retry, *after, exited=Exit(signal=15, cause="idle"))

    assert end.outcome == outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [("rate_limit", "limited"), ("authentication_failed", "unauthorised"), ("server_error", "error"), (None, "error")],
)
def test_the_error_of_a_message_tells_where_the_result_does_not(tmp_path: Path, error: str, outcome: str) -> None:
    refusal = {"type": "assistant", "message": SYNTHETIC, "error": error}

    events, end = read(Claude(), agent_run(tmp_path), INIT, refusal, {**RESULT, **WRONG, "result": "No."})

    assert (end.outcome, end.model) == (outcome, "claude-opus-4-8[1m]")
    assert ("error" in [event.kind for event in events]) is (error is not None)


def test_the_end_of_a_quota_comes_from_its_event_else_from_the_words(tmp_path: Path) -> None:
    limited = {
        **RESULT,
        **WRONG,
        "api_error_status": 429,
        "result": "You've hit your limit · resets 2030-01-01T00:00:00Z",
    }
    event = {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": 1795316104}}

    _, told = read(Claude(), agent_run(tmp_path), event, limited, exited=Exit(code=1))
    _, read_off = read(Claude(), agent_run(tmp_path), limited, exited=Exit(code=1))

    assert told.resets_at_s == 1795316104.0
    assert read_off.resets_at_s == 1893456000.0


def test_two_results_of_one_process_are_one_end(tmp_path: Path) -> None:
    second = {**RESULT, "result": "And more.", "total_cost_usd": 0.75}

    _, end = read(Claude(), agent_run(tmp_path), INIT, RESULT, second)

    assert (end.text, end.turns) == ("And more.", 4)
    assert end.usage == AgentUsage(input_tokens=200, cached_input_tokens=180, output_tokens=10, cost_usd=0.75)


def test_a_result_that_does_not_follow_its_schema_is_no_success(tmp_path: Path) -> None:
    claude = Claude(schema={"type": "object"})

    _, right = read(claude, agent_run(tmp_path), {**RESULT, "structured_output": {"n": 3}})
    _, wrong = read(claude, agent_run(tmp_path), RESULT)

    assert (right.outcome, right.structured) == ("success", {"n": 3})
    assert (wrong.outcome, wrong.structured) == ("error", None)


# ---------------------------------------------------------------- it is hostile

NAMES = [
    "type", "subtype", "message", "content", "id", "usage", "input_tokens", "result", "is_error", "errors", "session_id",
    "rate_limit_info", "status", "resetsAt", "deferred_tool_use", "stop_reason", "name", "input", "error", "model",
    "parent_tool_use_id", "num_turns", "total_cost_usd", "api_error_status", "retry_delay_ms", "error_status",
]  # fmt: skip
WORDS = [
    "system", "init", "api_retry", "assistant", "user", "result", "rate_limit_event", "success", "text", "tool_use",
    "tool_result", "thinking", "tool_deferred", "rejected", "<synthetic>", "\x00", "try again at 25:61",
]  # fmt: skip


@settings(max_examples=40)
@given(st.lists(hostile(NAMES, WORDS), max_size=4), st.sampled_from([WELL, Exit(code=1), Exit(signal=9, cause="idle")]))
def test_no_line_of_any_shape_raises_or_makes_a_success(told: list[dict[str, Any]], exited: Exit) -> None:
    _, end = read(Claude(), agent_run(Path("/nonexistent")), *told, exited=exited)

    last: dict[str, Any] = next((line for line in reversed(told) if line.get("type") == "result"), {})
    if end.outcome == "success":
        assert (exited.code, last.get("is_error"), last.get("subtype")) == (0, False, "success")
