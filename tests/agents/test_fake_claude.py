"""What only the claude-shaped fake agent does: leave for tools, refusals in claude's words, and every way to misbehave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from sennit.execute.adapters.claude import Claude
from sennit.testing.fakeagent import (
    FakeAgent,
    append,
    dies,
    eats_memory,
    ends,
    exits,
    floods,
    hangs,
    ignores_term,
    leaks,
    leaves_child,
    leaves_daemon,
    prints_garbage,
    prints_half_line,
    prints_long_line,
    prints_nothing,
    prints_raw,
    reaches_window,
    refuses,
    say,
    shell,
    starts_slowly,
    stops_itself,
    touch,
    usage,
    wait_for,
    write,
)
from sennit.testing.provider import FakeProvider
from tests.agents.fakes import FakeDesk, Seen, desk_of, wait_until_it_is_there

STREAM = ("-p", "--output-format", "stream-json", "--verbose")
SESSION = "6f1f0c5e-1b0e-4a53-9a53-0d2b3a7c1e42"


@pytest.fixture
def agent(tmp_path: Path) -> FakeAgent:
    return FakeAgent(tmp_path / "fake")


@pytest.fixture
def desk(agent: FakeAgent, tmp_path: Path) -> FakeDesk:
    return desk_of(agent, tmp_path / "desk")


def call(agent: FakeAgent, *argv: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Call the program as a shell would."""
    known = {"PATH": os.environ["PATH"], **agent.environ, **environ}
    return subprocess.run(
        [agent.program, *argv], cwd=agent.folder, env=known, input=stdin, capture_output=True, text=True, check=False
    )


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


# ---------------------------------------------------------------- its command line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((*STREAM, "--session-id", "mine", "x"), "Invalid session ID"),
        ((*STREAM, "--resume", SESSION, "x"), "No conversation found with session ID"),
        (STREAM, "Input must be provided"),
        ((*STREAM, "--wrong", "x"), "unknown option '--wrong'"),
        (("-p", "x", "--output-format", "stream-json"), "requires --verbose"),
        ((*STREAM, "--settings", "/no/such/file", "x"), "Settings file not found"),
    ],
)
def test_it_refuses_in_the_words_of_claude(agent: FakeAgent, argv: tuple[str, ...], said: str) -> None:
    refused = call(agent, *argv)

    assert refused.returncode == 1
    assert said in refused.stderr
    assert agent.effects() == []


def test_a_session_id_in_use_is_refused(agent: FakeAgent) -> None:
    first, second = (call(agent, *STREAM, "--session-id", SESSION, "x") for _ in range(2))

    assert (first.returncode, second.returncode) == (0, 1)
    assert f"Session ID {SESSION} is already in use" in second.stderr


def test_a_session_belongs_to_the_folder_it_was_started_in(agent: FakeAgent, desk: FakeDesk) -> None:
    desk.run("begin")
    desk.cwd = desk.folder

    assert desk.run("go on", resume=True).end.outcome == "lost_session"


def test_without_events_it_prints_the_result_alone(agent: FakeAgent) -> None:
    agent.does(say("one"), say("two"))

    assert call(agent, "-p", "x").stdout == "two\n"
    assert call(agent, "--version").stdout == "2.1.197 (Claude Code)\n"


def test_the_script_may_come_from_the_environment(agent: FakeAgent) -> None:
    script = json.dumps({"turns": [[{"do": "say", "text": "from there"}]]})

    assert call(agent, "-p", "x", SENNIT_FAKE_AGENT=script).stdout == "from there\n"


# ---------------------------------------------------------------- leave for tools


def approving(agent: FakeAgent, folder: Path) -> FakeDesk:
    """Return a desk whose adapter asks a person before Bash."""
    return FakeDesk(folder, Claude(program=agent.program, approve=("Bash",)), agent.environ)


def test_a_tool_that_waits_for_a_person_is_used_once_after_leave_with_no_process_between(
    agent: FakeAgent, tmp_path: Path
) -> None:
    agent.does(append("notes.txt", "with leave"), say("done"))
    desk = approving(agent, tmp_path / "desk")

    asking = desk.run("do it")
    again = desk.run("", resume=True)
    going_on = desk.run("", resume=True, decisions={asking.end.asks[0].call_id: True})

    assert [seen.end.outcome for seen in (asking, again, going_on)] == ["asks", "asks", "success"]
    assert asking.end.asks[0].tool == "Bash"
    assert again.end.asks[0].call_id == asking.end.asks[0].call_id
    assert (desk.cwd / "notes.txt").read_text() == "with leave\n"
    assert agent.prompts() == ["do it", None, None]


def test_leave_that_is_refused_is_told_and_nothing_is_done(agent: FakeAgent, tmp_path: Path) -> None:
    agent.does(append("notes.txt", "never"), say("as you wish"))
    desk = approving(agent, tmp_path / "desk")

    asking = desk.run("do it")
    going_on = desk.run("", resume=True, decisions={asking.end.asks[0].call_id: False})

    assert (going_on.end.outcome, going_on.end.text) == ("success", "as you wish")
    assert [event.is_error for event in going_on.of("tool_end")] == [True]
    assert agent.effects() == []


def test_to_go_on_without_a_prompt_needs_a_tool_that_waits(agent: FakeAgent, desk: FakeDesk) -> None:
    desk.run("begin")

    end = desk.run("", resume=True).end

    assert end.outcome == "error"
    assert "No deferred tool marker" in end.text


def test_a_strict_one_uses_no_tool_without_leave(tmp_path: Path) -> None:
    agent = FakeAgent(tmp_path / "fake", strict=True).does(shell("echo x > a"), write("b", "x"))
    desk = FakeDesk(tmp_path / "desk", Claude(program=agent.program, permission_mode="acceptEdits"), agent.environ)

    seen = desk.run("do it")

    assert [event.is_error for event in seen.of("tool_end")] == [True, False]
    assert [effect.facts["path"] for effect in agent.effects()] == ["b"]


# ---------------------------------------------------------------- limits


def test_a_window_tells_when_it_resets(agent: FakeAgent, desk: FakeDesk) -> None:
    agent.does(reaches_window(resets_at_s=1_900_000_000, is_rejected=False), reaches_window(resets_at_s=1_900_000_001))

    seen = desk.run("do it")

    assert [event.resets_at_s for event in seen.of("limit")] == [1_900_000_000, 1_900_000_001]
    assert (seen.end.outcome, seen.end.resets_at_s) == ("limited", 1_900_000_001)


def test_the_cost_is_told(agent: FakeAgent, desk: FakeDesk) -> None:
    agent.does(usage(input_tokens=1, cost_usd=0.25), say("x"))

    assert desk.run("do it").end.usage.cost_usd == 0.25


def test_it_calls_a_real_endpoint_and_repeats_what_is_refused(agent: FakeAgent) -> None:
    step = '{"do": "call", "text": "hi", "delay_s": 0.001}'
    with FakeProvider(answer="from the model", max_concurrency=1) as provider:
        answered = call(agent, *STREAM, f"fake: {step}", ANTHROPIC_BASE_URL=provider.url)
        provider.inject("status_429", 3)
        refused = call(agent, *STREAM, f"fake: {step}", ANTHROPIC_BASE_URL=provider.url, CLAUDE_CODE_MAX_RETRIES="2")

    result = json.loads(answered.stdout.splitlines()[-1])
    assert (result["result"], result["is_error"]) == ("from the model", False)
    kinds = [json.loads(line).get("subtype") for line in refused.stdout.splitlines()]
    assert kinds.count("api_retry") == 2
    assert refused.returncode == 1


# ---------------------------------------------------------------- misbehaviour


def test_garbage_half_lines_and_lines_of_10_mb_do_not_hide_the_result(agent: FakeAgent, desk: FakeDesk) -> None:
    agent.does(prints_garbage(), prints_long_line(10_000_000), prints_raw("plain", stderr=True), say("still here"))

    seen = desk.run("do it")

    assert (seen.end.outcome, seen.end.text) == ("success", "still here")
    assert max(len(line) for line in seen.lines) == 10_000_000 - 1


def test_a_flood_is_as_large_as_it_is_told_to_be(agent: FakeAgent, desk: FakeDesk) -> None:
    agent.does(floods(1_000_000), floods(500_000, stderr=True))

    seen = desk.run("do it")

    assert seen.end.outcome == "success"
    assert sum(len(line) + 1 for line in seen.lines if b"noise" in line) == pytest.approx(1_000_000, rel=0.01)
    assert (desk.folder / "run1" / "stderr.log").stat().st_size == pytest.approx(500_000, rel=0.01)


@pytest.mark.parametrize(
    ("steps", "outcome"),
    [
        ((prints_nothing(), exits(0)), "no_result"),
        ((prints_half_line(), exits(0)), "no_result"),
        ((say("x"), ends("done"), exits(3)), "error"),
        ((ends("done"), exits(0)), "success"),
        ((refuses(1, "Invalid API key · Please run /login"),), "unauthorised"),
        ((starts_slowly(0.01), eats_memory(1_000_000), say("x")), "success"),
        ((dies(times=2),), "error"),
    ],
)
def test_each_way_to_end_is_what_its_adapter_calls_it(
    agent: FakeAgent, desk: FakeDesk, steps: tuple[dict[str, object], ...], outcome: str
) -> None:
    agent.does(*steps)

    assert desk.run("do it").end.outcome == outcome


def test_it_can_hang_after_its_result_and_ignore_a_term(agent: FakeAgent, desk: FakeDesk, tmp_path: Path) -> None:
    agent.does(ignores_term(), ends("done"), touch(tmp_path / "here"), hangs())
    running = desk.start("do it")
    wait_until_it_is_there(tmp_path / "here")

    status = Path(f"/proc/{running.process.pid}/status").read_text(encoding="ascii")
    running.process.send_signal(signal.SIGTERM)
    running.process.kill()
    seen = desk.finish(running, cause="linger")

    ignored = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:"))
    assert ignored & 1 << (signal.SIGTERM - 1)
    assert (seen.end.outcome, seen.exit.signal) == ("success", signal.SIGKILL)


def test_it_can_leave_a_child_and_a_daemon_behind(agent: FakeAgent, desk: FakeDesk) -> None:
    agent.does(leaves_child(holds_output=False), leaves_daemon())

    seen = desk.run("do it")

    child, daemon = agent.left_behind()
    try:
        assert seen.end.outcome == "success"
        assert is_alive(child)
        assert is_alive(daemon)
        assert os.getsid(daemon) != os.getsid(child)
    finally:
        for pid in (child, daemon):
            os.kill(pid, signal.SIGKILL)


def test_it_can_stop_itself_until_somebody_lets_it_go_on(agent: FakeAgent, desk: FakeDesk) -> None:
    agent.does(stops_itself(), say("again"))
    running = desk.start("do it")

    _, status = os.waitpid(running.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    running.process.send_signal(signal.SIGCONT)

    assert desk.finish(running).end.text == "again"


def test_it_can_print_a_secret_of_its_environment(agent: FakeAgent) -> None:
    agent.does(leaks("TOKEN"))

    done = call(agent, *STREAM, "x", TOKEN="sesame-42")

    assert "the secret is sesame-42." in done.stdout
    assert done.stderr.splitlines() == ["the secret is sesame-42.", "cut: sesame-42."]


def test_twenty_start_at_once_and_all_of_them_are_in_the_log(agent: FakeAgent, tmp_path: Path) -> None:
    agent.does(append(str(tmp_path / "notes.txt"), "x"))
    environ = {"PATH": os.environ["PATH"], **agent.environ}
    argv = [agent.program, *STREAM, "do it"]

    started = [
        subprocess.Popen(argv, env=environ, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for _ in range(20)
    ]

    assert [process.wait() for process in started] == [0] * len(started)
    assert len(agent.effects()) == len(agent.sessions()) == len(started)


def seen_twice(seen: Seen) -> list[str]:
    return [event.call_id for event in seen.of("tool_begin")]


def test_an_unanswered_tool_use_is_repeated_by_a_careless_one(tmp_path: Path) -> None:
    """As the real one with a model that does not look: the effect is there twice."""
    here = tmp_path / "here"
    agent = FakeAgent(tmp_path / "fake", unanswered="repeat")
    agent.does(shell(f"echo x >> notes.txt; if [ -e {here} ]; then exit 0; fi; touch {here}; exec sleep 60"))
    desk = desk_of(agent, tmp_path / "desk")
    running = desk.start("do it")
    wait_until_it_is_there(here)

    os.killpg(running.process.pid, signal.SIGKILL)
    first = desk.finish(running)
    second = desk.run("go on", resume=True)

    assert (desk.cwd / "notes.txt").read_text() == "x\nx\n"
    assert second.end.outcome == "success"
    assert set(seen_twice(first)).isdisjoint(seen_twice(second))


def test_a_file_that_it_waits_for_lets_it_go_on(agent: FakeAgent, desk: FakeDesk, tmp_path: Path) -> None:
    agent.does(touch(tmp_path / "here"), wait_for(tmp_path / "go"), say("gone on"))
    running = desk.start("do it")
    wait_until_it_is_there(tmp_path / "here")
    assert running.process.poll() is None

    (tmp_path / "go").touch()

    assert desk.finish(running).end.text == "gone on"
