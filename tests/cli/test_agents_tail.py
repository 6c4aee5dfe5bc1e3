"""`sennit agents tail`: what an agent wrote and writes, for people, programs and pipes; nothing hostile reaches a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sennit.store.postgres import PostgresStore
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import got
from tests.cli.agents_fleet import HOSTILE, RESULT, Fleet, fleet_of, says, uses
from tests.cli.processes import on_terminal
from tests.crash.nursery import Nursery
from tests.unit.command_line import Run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    store = SqliteStore(tmp_path / "fleet.db", durability="normal")
    with fleet_of(store, "sqlite:///fleet.db", tmp_path, monkeypatch) as fleet:
        yield fleet


# ---------------------------------------------------------------- tail


def test_tail_tells_in_human_words_what_it_says_which_tools_it_uses_and_its_result(fleet: Fleet, run: Run) -> None:
    lines = says("I look\nat it") + uses("Bash", command="ls -la") + b"not JSON: a stack trace\n" + RESULT
    task = fleet.begin(stdout=lines)

    text = run("agents", "tail", str(task.id))

    assert text.splitlines() == ["I look", "at it", "→ Bash ls -la", "not JSON: a stack trace", "✓ all is done"]


def test_tail_as_json_gives_the_events(fleet: Fleet, run: Run) -> None:
    task = fleet.begin(stdout=says("hello") + uses("Bash", command="ls"))

    events = run.json("agents", "tail", str(task.id))

    assert [event["kind"] for event in events] == ["text", "tool_begin"]
    assert events[0]["text"] == "hello"
    assert {event["schema"] for event in events} == {"sennit.agent_event/1"}
    assert {(event["task_id"], event["run"]) for event in events} == {(task.id, 1)}


def test_nothing_that_a_program_wrote_reaches_people_unescaped(fleet: Fleet, run: Run) -> None:
    hostile = says(HOSTILE) + uses(f"Bash{HOSTILE}", command=HOSTILE) + HOSTILE.encode() + b"\xff\x9b2J\n"
    task = fleet.begin(
        stdout=hostile, stderr=hostile, doing=HOSTILE, session_id=HOSTILE, model=HOSTILE, agent=f"a{HOSTILE}"
    )
    strange = fleet.begin(stdout=hostile, adapter=f"unknown{HOSTILE}")

    for words in [
        ("ls",), ("show", str(task.id)), ("tail", str(task.id)), ("tail", str(task.id), "--stderr"), ("tail", str(strange.id)),
    ]:  # fmt: skip
        text = run("agents", *words)
        assert all(line.isprintable() for line in text.splitlines()), words
        assert "owned" in text


def test_a_pipe_that_asks_for_raw_gets_the_bytes_untouched(fleet: Fleet, nursery: Nursery, tmp_path: Path) -> None:
    written = HOSTILE.encode() + b"\xff\x00\r\n" + b"x" * 3_000_000 + b"\nno newline"
    task = fleet.begin(stdout=written, stderr=b"oops\r")
    out = tmp_path / "out"

    for words, expected in (((), written), (("--stderr",), b"oops\r")):
        with out.open("wb") as file:
            argv = ["tests.cli.processes:sennit", "agents", "tail", str(task.id), "--raw", *words]
            assert nursery.start(*argv, folder=tmp_path, descriptors={1: file.fileno()}).wait() == 0
        assert out.read_bytes() == expected


def test_a_terminal_that_asks_for_raw_gets_the_lines_escaped(fleet: Fleet, tmp_path: Path) -> None:
    task = fleet.begin(stdout=HOSTILE.encode() + b"\nthe end\n")

    with on_terminal(tmp_path, dict(os.environ), "agents", "tail", str(task.id), "--raw") as terminal:
        seen = terminal.read_until("the end")

    assert "\\x1b]0;owned\\x07\\x1b[2J" in seen
    assert "\x1b" not in seen


def test_tail_of_another_host_and_of_removed_files_says_where_they_are(fleet: Fleet, run: Run) -> None:
    far = fleet.begin(host="elsewhere")
    gone = fleet.begin()
    for path in fleet.folder(gone.id).iterdir():
        path.unlink()
    fleet.folder(gone.id).rmdir()

    run("agents", "tail", str(far.id))
    assert (run.code, "elsewhere" in run.err) == (1, True)
    run("agents", "tail", str(gone.id))
    assert (run.code, "not there any more" in run.err) == (1, True)


class Follower:
    """`agents tail -f` as a process: what it prints, and what it says on stderr."""

    def __init__(self, nursery: Nursery, folder: Path, task_id: int, *words: str) -> None:
        pipes = [os.pipe(), os.pipe()]
        argv = ["tests.cli.processes:sennit", "agents", "tail", str(task_id), "-f", *words]
        self._process = nursery.start(*argv, folder=folder, descriptors={1: pipes[0][1], 2: pipes[1][1]})
        for _, theirs in pipes:
            os.close(theirs)
        self._out, self._err = (os.fdopen(ours) for ours, _ in pipes)

    def line(self) -> str:
        """Wait for the next line."""
        return self._out.readline().rstrip("\n")

    def said(self) -> str:
        """Wait for the next line on stderr."""
        return self._err.readline().rstrip("\n")

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: the exit code, and what it printed and said meanwhile."""
        with self._out, self._err:
            rest, said = self._out.read(), self._err.read()
        return self._process.wait(), rest, said


@pytest.fixture(params=["sqlite", "postgres"])
def any_fleet(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    if request.param == "sqlite":
        yield request.getfixturevalue("fleet")
        return
    url = request.getfixturevalue("postgres_url")
    with fleet_of(PostgresStore(url, durability="normal"), url, tmp_path, monkeypatch) as fleet:
        yield fleet


def test_following_goes_on_from_run_to_run_until_the_task_has_ended(
    any_fleet: Fleet, nursery: Nursery, tmp_path: Path
) -> None:
    fleet = any_fleet
    task = fleet.begin(stdout=says("one"))
    follower = Follower(nursery, tmp_path, task.id)
    assert follower.line() == "one"

    fleet.append(task, says("two") + b"half a line")
    assert follower.line() == "two"
    fleet.note(task, run=2, stdout=says("three"))
    fleet.append(task, says("four"), run=2)
    assert [follower.line() for _ in range(3)] == ["half a line", "three", "four"]
    fleet.append(task, says("five"), run=2)
    assert follower.line() == "five"
    fleet.append(task, RESULT.rstrip(b"\n"), run=2)
    fleet.note(task, "done", run=2)
    fleet.rig.succeed(task)

    assert follower.end() == (0, "✓ all is done\n", "── run 2 of writer, attempt 1 ──\n")


def test_following_begins_before_the_agent_does_and_tells_when_it_goes_on_elsewhere(
    any_fleet: Fleet, nursery: Nursery, tmp_path: Path
) -> None:
    fleet = any_fleet
    task = fleet.rig.start()
    follower = Follower(nursery, tmp_path, task.id, "--raw")

    fleet.note(task, stdout=b"raw \x07 bytes\n")
    assert follower.line() == "raw \x07 bytes"
    fleet.note(task, run=2, host="elsewhere")
    assert follower.said() == "── run 2 of writer, attempt 1 ──"
    assert follower.said().startswith("it runs on elsewhere: what it writes is there")
    assert got(fleet.store.cancel([task.id])) == [True]

    assert follower.end() == (0, "", "")


def test_following_a_task_that_never_has_an_agent_ends_with_it_as_an_error(
    fleet: Fleet, nursery: Nursery, tmp_path: Path
) -> None:
    task = fleet.rig.start()
    follower = Follower(nursery, tmp_path, task.id)

    fleet.rig.succeed(task)

    code, rest, said = follower.end()
    assert (code, rest) == (1, "")
    assert f"task {task.id} has no agent" in said
