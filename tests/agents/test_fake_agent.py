"""The fake agent behaves as the real programs do: its sessions, its effects, its limits, seen through their own adapters."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sennit.execute.adapters.claude import Claude
from sennit.execute.adapters.codex import Codex
from sennit.testing.fakeagent import (
    FakeAgent,
    Shape,
    Step,
    append,
    commit,
    dies,
    dies_at_line,
    ends,
    exits,
    fails,
    forgets_session,
    is_limited,
    reaches_window,
    read,
    retries,
    say,
    shell,
    think,
    touch,
    usage,
    uses,
    wait_for,
    write,
)
from tests.agents.fakes import SHAPES, FakeDesk, desk_of, kill, wait_until_it_is_there

Made = tuple[FakeAgent, FakeDesk]
Make = Callable[..., Made]


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    found: Shape = request.param
    return found


@pytest.fixture
def make(tmp_path: Path, shape: Shape) -> Make:
    """Make a fake agent that does these steps at its first prompt, and its desk."""

    def made(*steps: Step, **options: str) -> Made:
        agent = FakeAgent(tmp_path / "fake", shape, **options)  # type: ignore[arg-type]
        if steps:
            agent.does(*steps)
        return agent, desk_of(agent, tmp_path / "desk")

    return made


def lines_of(agent: FakeAgent) -> list[str]:
    return [effect.facts["line"] for effect in agent.effects()]


# ---------------------------------------------------------------- every shape


def test_it_says_what_it_is_told_to_and_succeeds(make: Make) -> None:
    agent, desk = make(think("hm"), say("hello"), say("all is well"))

    seen = desk.run("do it")

    assert seen.end.outcome == "success"
    assert seen.end.text == ("helloall is well" if agent.shape == "gemini" else "all is well")  # gemini tells pieces
    assert [event.text for event in seen.of("text")] == ["hello", "all is well"]
    assert seen.end.session_id == agent.sessions()[0]
    assert agent.prompts() == ["do it"]


def test_its_tools_have_real_effects(make: Make) -> None:
    agent, desk = make(
        write("new/a.txt", "text"),
        append("notes.txt", "one"),
        append("notes.txt", "two"),
        shell("echo three >> notes.txt"),
        read("notes.txt"),
    )

    seen = desk.run("do it")

    assert seen.end.outcome == "success"
    assert (desk.cwd / "new" / "a.txt").read_text() == "text"
    assert (desk.cwd / "notes.txt").read_text() == "one\ntwo\nthree\n"
    assert len(seen.of("tool_begin")) == len(seen.of("tool_end")) == 5
    assert [effect.facts["do"] for effect in agent.effects()] == ["write", "append", "append", "shell"]


def test_a_tool_that_fails_is_told_and_the_agent_goes_on(make: Make) -> None:
    _, desk = make(shell("exit 3"), uses("Search", {"q": "x"}, output="nothing", is_error=True), say("so be it"))

    seen = desk.run("do it")

    assert [event.is_error for event in seen.of("tool_end")] == [True, True]
    assert (seen.end.outcome, seen.end.text) == ("success", "so be it")


def test_after_a_kill_the_next_run_goes_on_where_the_transcript_ends(make: Make) -> None:
    agent, desk = make(append("notes.txt", "one"), dies(), append("notes.txt", "two"), say("both"))

    first = desk.run("do it")
    second = desk.run("go on", resume=True)

    assert first.end.outcome == "error"
    assert (second.end.outcome, second.end.text) == ("success", "both")
    assert (desk.cwd / "notes.txt").read_text() == "one\ntwo\n"
    assert lines_of(agent) == ["one", "two"]
    assert [run.run for run in agent.events("prompt")] == [1, 2]
    assert len(agent.sessions()) == 1


@pytest.mark.parametrize("line", [1, 2, 3, 4, 5])
def test_a_kill_before_any_line_of_its_output_leaves_each_effect_done_once(line: int, tmp_path: Path) -> None:
    agent = FakeAgent(tmp_path / "fake", SHAPES[line % len(SHAPES)])
    agent.does(dies_at_line(line), append("notes.txt", "one"), append("notes.txt", "two"), say("done"))
    desk = desk_of(agent, tmp_path / "desk")

    first = desk.run("do it")
    desk.session_id = agent.sessions()[0]
    second = desk.run("go on", resume=True)

    assert (first.end.outcome, len(first.lines)) == ("error", line - 1)
    assert (second.end.outcome, lines_of(agent)) == ("success", ["one", "two"])


def test_the_next_prompt_of_a_session_is_its_next_turn(make: Make) -> None:
    agent, desk = make(say("first"))
    agent.does(say("second")).otherwise(say("again"))

    said = [desk.run("a").end.text, *(desk.run("b", resume=True).end.text for _ in range(3))]

    assert said == ["first", "second", "again", "again"]


def test_the_prompt_may_say_what_to_do(make: Make) -> None:
    agent, desk = make()

    seen = desk.run('Work on it.\nfake: append notes.txt "a b"\nfake: {"do": "say", "text": "as you say"}\n')

    assert seen.end.text == "as you say"
    assert lines_of(agent) == ["a b"]


def test_usage_is_what_the_script_says(make: Make) -> None:
    _, desk = make(usage(input_tokens=100, output_tokens=7, cached_input_tokens=40), say("x"))

    used = desk.run("do it").end.usage

    assert used.output_tokens == 7
    assert used.cached_input_tokens == 40
    assert used.input_tokens in {100, 140}  # claude's number leaves the cached ones out


def test_a_limit_is_told_after_the_retries_and_the_next_run_goes_on(make: Make) -> None:
    agent, desk = make(append("notes.txt", "one"), is_limited(429), append("notes.txt", "two"))

    first = desk.run("do it")
    second = desk.run("go on", resume=True)

    assert (first.end.outcome, first.end.status) == ("limited", 429)
    assert {event.status for event in first.of("retry")} == (set() if agent.shape == "codex" else {429})
    assert second.end.outcome == "success"
    assert lines_of(agent) == ["one", "two"]


def test_refused_calls_that_were_repeated_are_told_and_then_it_goes_on(make: Make) -> None:
    _, desk = make(retries(2), say("after all"))

    seen = desk.run("do it")

    assert len(seen.of("retry")) == 2
    assert (seen.end.outcome, seen.end.text) == ("success", "after all")


def test_a_quota_ends_the_run_as_limited(make: Make) -> None:
    _, desk = make(reaches_window(resets_in_s=3600))

    assert desk.run("do it").end.outcome == "limited"


def test_a_wrong_key_is_unauthorised(make: Make) -> None:
    _, desk = make(is_limited(401, "no"))

    assert desk.run("do it").end.outcome == "unauthorised"


def test_an_error_result_is_none_of_its_successes_whatever_the_exit_code(make: Make) -> None:
    _, desk = make(fails("boom"), exits(0))

    end = desk.run("do it").end

    assert (end.outcome, end.text) == ("error", "boom")


def test_exit_0_without_a_result_is_no_success(make: Make) -> None:
    _, desk = make(say("nearly"), exits(0))

    assert desk.run("do it").end.outcome == "no_result"


def test_a_result_may_be_given_before_the_last_step(make: Make) -> None:
    agent, desk = make(ends("done"), say("by the way"))

    seen = desk.run("do it")

    assert [event.text for event in seen.of("text")][-1] == "by the way"
    assert seen.end.outcome == "success"
    assert seen.end.text == ("by the way" if agent.shape == "codex" else "done")  # codex has no result with a text


def test_a_session_that_it_lost_is_told_as_lost(make: Make) -> None:
    _, desk = make(say("x"), forgets_session())

    first = desk.run("do it")
    second = desk.run("go on", resume=True)

    assert first.end.outcome == "success"
    assert second.end.outcome == "lost_session"


def test_two_processes_on_one_session_are_not_kept_apart(make: Make, tmp_path: Path) -> None:
    here, go = tmp_path / "here", tmp_path / "go"
    agent, desk = make(say("first"))
    agent.otherwise(touch(here), wait_for(go), say("x"))
    desk.run("begin")

    first = desk.start("one", resume=True)
    wait_until_it_is_there(here)
    second = desk.start("two", resume=True)
    go.touch()

    assert [desk.finish(run).end.outcome for run in (first, second)] == ["success", "success"]


def test_a_tool_use_that_a_kill_left_without_an_answer_is_seen_and_not_repeated(make: Make, tmp_path: Path) -> None:
    here = tmp_path / "here"
    agent, desk = make(shell(f"echo once >> notes.txt; touch {here}; exec sleep 60"), say("looked"))
    first = desk.start("do it")
    wait_until_it_is_there(here)

    kill(first)
    desk.finish(first)
    second = desk.run("go on", resume=True)

    assert [event.facts["is_there"] for event in agent.events("unanswered")] == [True]
    assert (desk.cwd / "notes.txt").read_text() == "once\n"
    assert second.end.outcome == "success"


def test_a_term_ends_it_without_a_result(make: Make, tmp_path: Path) -> None:
    agent, desk = make(touch(tmp_path / "here"), wait_for(tmp_path / "never"))
    running = desk.start("do it")
    wait_until_it_is_there(tmp_path / "here")

    running.process.send_signal(signal.SIGTERM)
    seen = desk.finish(running)

    assert running.process.returncode == (-signal.SIGTERM if agent.shape == "codex" else 143)
    assert (seen.end.outcome, seen.of("result")) == ("error", [])


@pytest.mark.parametrize("kind", [Claude, Codex])
def test_what_a_schema_asks_for_is_given_as_data(kind: type[Claude | Codex], tmp_path: Path) -> None:
    agent = FakeAgent(tmp_path / "fake", "claude" if kind is Claude else "codex", structured={"n": 1})
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    desk = FakeDesk(tmp_path / "desk", kind(program=agent.program, schema=schema), agent.environ)

    end = desk.run("count").end

    assert (end.outcome, end.structured) == ("success", {"n": 1})


def test_usage_of_codex_counts_the_whole_thread_and_its_adapter_the_run(tmp_path: Path) -> None:
    agent = FakeAgent(tmp_path / "fake", "codex").otherwise(usage(input_tokens=10, output_tokens=3), say("x"))
    desk = desk_of(agent, tmp_path / "desk")

    first, second = desk.run("one"), desk.run("two", resume=True)

    assert (first.end.usage.input_tokens, first.end.usage.output_tokens) == (10, 3)
    assert b'"input_tokens":20' in second.lines[-1]


def test_codex_waits_for_the_end_of_a_stdin_that_nobody_closes(tmp_path: Path) -> None:
    agent = FakeAgent(tmp_path / "fake", "codex")
    argv = [agent.program, "exec", "--json", "--skip-git-repo-check", "do it"]
    with subprocess.Popen(
        argv, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as it:
        assert it.stderr is not None
        assert it.stderr.readline() == b"Reading additional input from stdin...\n"
        assert agent.prompts() == []

        said, _ = it.communicate(b"more", timeout=50)

    assert b"turn.completed" in said
    assert agent.prompts() == ["do it\n\n<stdin>\nmore</stdin>"]


def test_sessions_are_never_kept_among_those_of_the_user(shape: Shape, tmp_path: Path) -> None:
    agent = FakeAgent(tmp_path / "fake", shape)
    home = tmp_path / "home"
    home.mkdir()
    flags = {
        "claude": ("-p", "x"),
        "codex": ("exec", "--skip-git-repo-check", "x"),
        "gemini": ("-p", "x"),
    }[shape]

    subprocess.run([agent.program, *flags], check=True, cwd=tmp_path, env={"HOME": str(home)}, stdin=subprocess.DEVNULL)

    assert list(home.iterdir()) == []
    assert list((agent.folder / "config").rglob("*.jsonl"))


def test_it_commits_with_git(tmp_path: Path) -> None:
    agent = FakeAgent(tmp_path / "fake").does(commit("a.txt", "text", "add a"))
    desk = desk_of(agent, tmp_path / "desk")
    for words in ("init -q", "config user.name A", "config user.email a@example.com"):
        subprocess.run(["git", *words.split()], cwd=desk.cwd, check=True)

    assert desk.run("do it").end.outcome == "success"

    log = subprocess.run(["git", "log", "--format=%s"], cwd=desk.cwd, check=True, capture_output=True, text=True)
    assert log.stdout == "add a\n"
