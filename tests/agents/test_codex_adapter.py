"""How codex is started and read. The lines are as codex 0.169.0 wrote them, shortened; the real one: test_real_codex."""

from __future__ import annotations

import json
import tomllib
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sennit.errors import SettingsError
from sennit.execute.adapters.base import Exit
from sennit.execute.adapters.codex import Codex, toml
from sennit.model.agent import AgentUsage, RunOutcome
from tests.agents.adapter_runs import WELL, agent_run, hostile, read

BEGUN = {"type": "thread.started", "thread_id": "t-1"}
TURN = {"type": "turn.started"}
USED = {"input_tokens": 100, "cached_input_tokens": 80, "output_tokens": 5, "reasoning_output_tokens": 0}
DONE = {"type": "turn.completed", "usage": USED}
SAID = {"type": "item.completed", "item": {"id": "item_1", "type": "agent_message", "text": "It is done."}}
LIMIT = (
    "You’ve hit your usage limit. Upgrade to Pro (https://chatgpt.com/explore/pro), visit "
    "https://chatgpt.com/settings/usage to purchase more credits or try again at Jan 2nd, 2030 2:52 AM."
)


def failed(words: str) -> list[dict[str, Any]]:
    return [{"type": "error", "message": words}, {"type": "turn.failed", "error": {"message": words}}]


def item(kind: str, moment: str = "completed", **fields: Any) -> dict[str, Any]:
    return {"type": f"item.{moment}", "item": {"id": "item_2", "type": kind, **fields}}


def settings_of(argv: tuple[str, ...]) -> dict[str, Any]:
    """Return what the `-c` of a command line set, read as TOML."""
    told = [value for flag, value in pairwise(argv) if flag == "-c"]
    return {name: tomllib.loads(f"x={value}")["x"] for name, _, value in (setting.partition("=") for setting in told)}


# ---------------------------------------------------------------- it is started


def test_a_new_session_is_named_by_the_program_and_the_prompt_goes_in_by_stdin(tmp_path: Path) -> None:
    launch = Codex().launch(agent_run(tmp_path, "x" * 200_000, session_id=""))

    assert launch.argv[:8] == (
        "codex", "exec", "--json", "--skip-git-repo-check", "-C", str(tmp_path), "-s", "workspace-write",
    )  # fmt: skip
    assert launch.argv[-1] == "-"
    assert launch.stdin == b"x" * 200_000
    assert Codex().new_session_id() == ""


def test_a_session_goes_on_with_all_options_before_the_word_resume(tmp_path: Path) -> None:
    launch = Codex(model="m", args=("--enable", "x")).launch(agent_run(tmp_path, session_id="t-1", is_resume=True))

    assert launch.argv[-5:] == ("--enable", "x", "resume", "t-1", "-")


def test_every_option_is_said(tmp_path: Path) -> None:
    codex = Codex(
        program="/opt/codex", model="m", effort="low", system_prompt='Say "ships".\n\x7f', sandbox="read-only",
        network=True, folders=("/a", "/b"), schema={"type": "object"}, request_retries=2, stream_retries=3, home="/h",
        config={"mcp_servers.db": {"command": "db", "args": ["-x"], "on": True}, "limit": 2.5}, environ={"A": "b"},
        environ_passes=("C",), args=("--enable", "x"),
    )  # fmt: skip

    launch = codex.launch(agent_run(tmp_path))

    assert launch.argv[0] == "/opt/codex"
    assert launch.argv[6:16] == (
        "-s", "read-only", "-m", "m", "--add-dir", "/a", "--add-dir", "/b", "--output-schema", str(tmp_path / "schema.json"),
    )  # fmt: skip
    assert json.loads((tmp_path / "schema.json").read_text()) == {"type": "object"}
    assert settings_of(launch.argv) == {
        "model_reasoning_effort": "low",
        "developer_instructions": 'Say "ships".\n\x7f',
        "sandbox_workspace_write.network_access": True,
        "model_provider": "openai-sennit",
        "model_providers.openai-sennit.name": "OpenAI",
        "model_providers.openai-sennit.wire_api": "responses",
        "model_providers.openai-sennit.requires_openai_auth": True,
        "model_providers.openai-sennit.request_max_retries": 2,
        "model_providers.openai-sennit.stream_max_retries": 3,
        "mcp_servers.db": {"command": "db", "args": ["-x"], "on": True},
        "limit": 2.5,
    }
    assert launch.environ == {"CODEX_HOME": "/h", "A": "b"}
    assert "C" in codex.passes


def test_a_provider_of_ones_own_has_few_retries_and_its_key_is_passed_and_secret(tmp_path: Path) -> None:
    codex = Codex(base_url="http://127.0.0.1:1/v1", key="A_KEY")

    settings = settings_of(codex.launch(agent_run(tmp_path)).argv)

    assert settings["model_providers.openai-sennit.base_url"] == "http://127.0.0.1:1/v1"
    assert settings["model_providers.openai-sennit.env_key"] == "A_KEY"
    assert settings["model_providers.openai-sennit.stream_max_retries"] == 0
    assert "A_KEY" in codex.passes
    assert "A_KEY" in codex.secrets


def test_a_provider_of_the_configuration_is_used_and_its_retries_set_unless_all_is_left_to_it(tmp_path: Path) -> None:
    named = settings_of(Codex(provider="azure").launch(agent_run(tmp_path)).argv)
    left = settings_of(Codex(provider=None).launch(agent_run(tmp_path)).argv)

    assert named == {
        "model_provider": "azure",
        "model_providers.azure.request_max_retries": 1,
        "model_providers.azure.stream_max_retries": 0,
    }
    assert left == {}


@pytest.mark.parametrize(
    "options",
    [
        {"args": ("--ephemeral",)},
        {"args": ("--json",)},
        {"args": ("-C", "/")},
        {"request_retries": -1},
        {"stream_retries": -1},
        {"system_prompt": "x" * 200_000},
        {"config": {"a": None}},
    ],
    ids=lambda options: str(options)[:40],
)
def test_what_cannot_work_is_said_when_it_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Codex(**options)


def test_a_run_without_a_prompt_or_a_resume_without_a_session_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="prompt"):
        Codex().launch(agent_run(tmp_path, ""))
    with pytest.raises(SettingsError, match="session"):
        Codex().launch(agent_run(tmp_path, session_id="", is_resume=True))


@settings(max_examples=40)
@given(
    st.recursive(
        st.text() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_value_reads_back_from_toml(value: object) -> None:
    assert tomllib.loads(f"x={toml(value)}") == {"x": value}


# ---------------------------------------------------------------- it is read


def test_a_whole_run_is_told_in_the_shared_words(tmp_path: Path) -> None:
    events, end = read(
        Codex(),
        agent_run(tmp_path, session_id=""),
        BEGUN,
        item("error", message="Model metadata not found."),
        TURN,
        item("reasoning", text="Hm."),
        item("command_execution", "started", command="ls", aggregated_output="", exit_code=None, status="in_progress"),
        item("command_execution", "updated", command="ls", aggregated_output="a", exit_code=None, status="in_progress"),
        item("command_execution", command="ls", aggregated_output="a", exit_code=3, status="failed"),
        item("mcp_tool_call", server="db", tool="look", arguments={"t": 1}, status="completed", result={}),
        item("todo_list", items=[]),
        SAID,
        DONE,
    )

    assert [(event.kind, event.text or event.tool or event.session_id) for event in events] == [
        ("session", "t-1"), ("error", "Model metadata not found."), ("thinking", "Hm."),
        ("tool_begin", "command_execution"), ("tool_end", ""), ("tool_begin", "mcp__db__look"), ("tool_end", ""),
        ("text", "It is done."), ("usage", ""), ("result", "It is done."),
    ]  # fmt: skip
    assert [(event.input, event.is_error) for event in events if event.kind.startswith("tool")] == [
        ({"command": "ls"}, False),
        (None, True),
        ({"server": "db", "tool": "look", "arguments": {"t": 1}}, False),
        (None, False),
    ]
    assert (end.outcome, end.text, end.turns, end.session_id) == ("success", "It is done.", 1, "t-1")
    assert end.usage == AgentUsage(input_tokens=100, cached_input_tokens=80, output_tokens=5)


def test_the_usage_of_a_session_becomes_that_of_the_run(tmp_path: Path) -> None:
    before = AgentUsage(input_tokens=60, cached_input_tokens=90, output_tokens=2)

    _, resumed = read(Codex(), agent_run(tmp_path, is_resume=True, usage=before), BEGUN, TURN, DONE)
    _, new = read(Codex(), agent_run(tmp_path, usage=before), BEGUN, TURN, DONE)

    assert resumed.usage == AgentUsage(input_tokens=40, cached_input_tokens=0, output_tokens=3)
    assert new.usage.input_tokens == 100


def test_reconnecting_is_a_retry_and_another_error_is_one(tmp_path: Path) -> None:
    retry = "Reconnecting... 1/1 (unexpected status 503 Service Unavailable, url: http://127.0.0.1)"

    events, _ = read(Codex(), agent_run(tmp_path), {"type": "error", "message": retry}, *failed("No."))

    assert [(event.kind, event.status, event.is_error) for event in events] == [
        ("retry", 503, False), ("error", 0, True), ("result", 0, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("told", "exited", "outcome", "status", "words"),
    [
        ([SAID, DONE], WELL, "success", 0, "It is done."),
        ([SAID, DONE], Exit(code=143, cause="linger"), "success", 0, "It is done."),
        ([SAID, DONE], Exit(code=1), "error", 0, "exit code 1 after a turn"),
        ([SAID, DONE], Exit(signal=9, cause="memory"), "error", 0, "SIGKILL (memory) after a turn"),
        ([SAID, DONE, TURN], WELL, "no_result", 0, "without a result"),
        ([SAID, *failed("stream disconnected")], Exit(code=1), "error", 0, "stream disconnected"),
        ([SAID, *failed("stream disconnected")], WELL, "error", 0, "stream disconnected"),
        (failed("exceeded retry limit, last status: 429 Too Many Requests"), Exit(code=1), "limited", 429, "429"),
        (failed("Quota exceeded. Check your plan and billing details."), Exit(code=1), "limited", 0, "Quota"),
        (failed(LIMIT), Exit(code=1), "limited", 0, "usage limit"),
        (failed("unexpected status 401 Unauthorized: Incorrect API key"), Exit(code=1), "unauthorised", 401, "401"),
        (failed("Missing environment variable: `A_KEY`."), Exit(code=1), "unauthorised", 0, "A_KEY"),
        ([{"type": "turn.failed"}], Exit(code=1), "error", 0, "the turn failed"),
    ],
)  # fmt: skip
def test_success_is_a_complete_turn_and_a_good_exit(
    *, tmp_path: Path, told: list[dict[str, Any]], exited: Exit, outcome: RunOutcome, status: int, words: str
) -> None:
    _, end = read(Codex(), agent_run(tmp_path), BEGUN, TURN, *told, exited=exited)

    assert (end.outcome, end.status, end.session_id) == (outcome, status, "t-1")
    assert words in end.text


def test_the_end_of_a_quota_is_read_from_the_words(tmp_path: Path) -> None:
    _, end = read(Codex(), agent_run(tmp_path), TURN, *failed(LIMIT), exited=Exit(code=1))

    assert end.resets_at_s == datetime(2030, 1, 2, 2, 53).astimezone().timestamp()  # local time is what it tells


@pytest.mark.parametrize(
    ("exited", "errors", "outcome", "words"),
    [
        (WELL, (), "no_result", "it ended without a result"),
        (Exit(code=1), ("Error: no rollout found for thread id a43c (code -32600)",), "lost_session", "no rollout"),
        (Exit(code=2), ("error: unexpected argument '--nope' found",), "error", "--nope"),
        (Exit(code=1), ("No prompt provided via stdin.",), "error", "exit code 1"),
        (Exit(signal=9), ("not logged in",), "error", "ended by SIGKILL without a result"),
        (Exit(code=1), ("log: 429 ships",), "error", "429 ships"),
        (Exit(code=1), ("Not logged in",), "unauthorised", "Not logged in"),
        (Exit(signal=9, cause="output"), ("429",), "error", "SIGKILL (output)"),
    ],
)
def test_without_a_result_nothing_is_a_success(
    tmp_path: Path, exited: Exit, errors: tuple[str, ...], outcome: RunOutcome, words: str
) -> None:
    _, end = read(Codex(), agent_run(tmp_path), exited=exited, errors=errors)

    assert (end.outcome, end.session_id) == (outcome, "s-1")
    assert words in end.text


def test_a_run_that_idled_while_its_provider_refused_is_limited(tmp_path: Path) -> None:
    retry = {
        "type": "error",
        "message": "Reconnecting... 1/5 (exceeded retry limit, last status: 429 Too Many Requests)",
    }

    _, end = read(Codex(), agent_run(tmp_path), BEGUN, TURN, retry, exited=Exit(signal=15, cause="idle"))

    assert (end.outcome, end.status) == ("limited", 429)


def test_a_result_that_does_not_follow_its_schema_is_no_success(tmp_path: Path) -> None:
    codex = Codex(schema={"type": "object"})
    data = {"type": "item.completed", "item": {"id": "item_1", "type": "agent_message", "text": '{"n": 3}'}}

    _, right = read(codex, agent_run(tmp_path), TURN, data, DONE)
    _, wrong = read(codex, agent_run(tmp_path), TURN, SAID, DONE)

    assert (right.outcome, right.structured) == ("success", {"n": 3})
    assert (wrong.outcome, wrong.structured) == ("error", None)


# ---------------------------------------------------------------- it is hostile

NAMES = [
    "type",
    "item",
    "id",
    "text",
    "message",
    "error",
    "usage",
    "input_tokens",
    "thread_id",
    "status",
    "server",
    "tool",
]
WORDS = [
    "thread.started", "turn.started", "item.started", "item.completed", "turn.completed", "turn.failed", "error",
    "agent_message", "reasoning", "command_execution", "mcp_tool_call", "failed", "Reconnecting 429", "\x00",
]  # fmt: skip


@settings(max_examples=40)
@given(st.lists(hostile(NAMES, WORDS), max_size=4), st.sampled_from([WELL, Exit(code=1), Exit(signal=9, cause="idle")]))
def test_no_line_of_any_shape_raises_or_makes_a_success(told: list[dict[str, Any]], exited: Exit) -> None:
    _, end = read(Codex(schema={}), agent_run(Path("/nonexistent")), *told, exited=exited)

    if end.outcome == "success":
        assert exited.code == 0
        assert "turn.completed" in [line.get("type") for line in told]
