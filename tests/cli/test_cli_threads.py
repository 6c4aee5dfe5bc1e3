"""`sennit threads` as real processes: what a worker's tasks remember is seen, changed and compared from outside."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.processes import Sennit, Start, on_terminal

TALK = """
from __future__ import annotations

from sennit import App, ask, thread

app = App("sqlite:///fleet.db")


@app.task
async def review(path: str) -> int:
    state = await thread().update(lambda s: {**s, "seen": [*s.get("seen", []), path]})
    return len(state["seen"])


@app.task
async def release(version: str) -> bool:
    yes = await ask(f"Release {version}?")
    await thread().update(lambda s: {**s, "released": version if yes else None})
    return yes
"""


@pytest.fixture
def talk(folder: Path, start: Start) -> subprocess.Popen[str]:
    """A worker whose tasks remember."""
    (folder / "talk.py").write_text(TALK, encoding="utf-8")
    process = start("worker", "talk:app")
    assert process.stderr is not None
    assert "serves" in process.stderr.readline()
    return process


def test_a_conversation_is_followed_from_its_first_version_to_a_fork(
    sennit: Sennit, talk: subprocess.Popen[str]
) -> None:
    for path in ("a.py", "b.py"):
        assert sennit("run", "talk:app", "review", path, "--thread-id", "r 9", "--wait").returncode == 0
    fixed = sennit("threads", "set", "r 9", '{"seen": ["b.py"]}', "--expected", "2")

    changes = sennit("threads", "diff", "r 9", "2").stdout
    sennit("threads", "fork", "r 9", "try", "--version", "2")
    again = sennit("run", "talk:app", "review", "c.py", "--thread-id", "try", "--wait")

    assert fixed.stdout == "state of r 9 is at version 3\n"
    assert changes == 'version 2 → 3   -1\n- /seen/0  "a.py"\n'
    assert again.stdout == "3\n"
    assert json.loads(sennit("threads", "state", "r 9").stdout) == {"seen": ["b.py"]}


def test_a_thread_shows_who_has_the_turn_and_the_question_it_waits_for(
    sennit: Sennit, talk: subprocess.Popen[str]
) -> None:
    holder = sennit("run", "talk:app", "release", "v9", "--thread-id", "r").stdout.strip()
    sennit("tasks", "wait", holder, "--or-asked")
    behind = sennit("run", "talk:app", "review", "a.py", "--thread-id", "r").stdout.strip()

    shown = sennit("threads", "show", "r").stdout
    busy = sennit("threads", "forget", "r", "--yes")
    reason = json.loads(sennit("tasks", "get", behind, "--json").stdout)

    assert "open       2 tasks, 1 question" in shown
    assert "Release v9?" in shown
    assert "turn of thread r (1 before it)" in shown
    assert busy.returncode == 3, "there is no state yet"
    assert (reason["state"], reason["reason"], reason["position"]) == ("waiting", "thread", 1)
    ask_id = json.loads(sennit("inbox", "--json").stdout)["id"]
    sennit("inbox", "approve", str(ask_id))
    assert sennit("tasks", "wait", holder, behind).returncode == 0


def test_forget_on_a_terminal_says_what_goes_and_asks(
    sennit: Sennit, folder: Path, environment: dict[str, str]
) -> None:
    sennit("db", "init")
    sennit("threads", "set", "t", '{"n": 1}')
    for answer, code in (("", 1), ("y", 0)):
        with on_terminal(folder, environment, "threads", "forget", "t") as terminal:
            seen = terminal.read_until("[y/N] ")
            terminal.type(answer)

        assert "its state (version 1, 7 B" in seen
        assert terminal.process.returncode == code
    assert sennit("threads", "state", "t").returncode == 3
