"""`sennit inbox` as real processes: a worker's tasks ask, commands answer, and the tasks go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.processes import Sennit, Start, on_terminal

PEOPLE = """
from __future__ import annotations

from typing import Literal

import msgspec

from sennit import App, ask

app = App("sqlite:///fleet.db")


class Mail(msgspec.Struct):
    to: str
    subject: str
    kind: Literal["plain", "html"] = "plain"
    copies: int = 1


@app.task
async def deploy(where: str) -> str:
    try:
        return f"{where}: {await ask(f'Deploy to {where}?', context={'branch': 'main'})}"
    except Exception as error:
        return repr(error)


@app.task
async def send() -> Mail:
    return await ask("Send this?", Mail, proposal=Mail("ann", "hi"), allow_edit=True, expires_s=3600, assignee="ann")
"""


@pytest.fixture
def people(folder: Path, start: Start) -> subprocess.Popen[str]:
    """A worker whose tasks ask."""
    (folder / "people.py").write_text(PEOPLE, encoding="utf-8")
    process = start("worker", "people:app")
    assert process.stderr is not None
    assert "serves" in process.stderr.readline()
    return process


def asked(sennit: Sennit, handler: str, *words: str) -> tuple[str, str]:
    """Hand in a task and wait for its question; return both ids."""
    task_id = sennit("run", "people:app", handler, *words).stdout.strip()
    done = sennit("tasks", "wait", task_id, "--or-asked", "--json")
    assert done.returncode == 5, done.stderr
    return task_id, str(json.loads(done.stdout)["id"])


def result(sennit: Sennit, task_id: str) -> Any:
    done = sennit("tasks", "wait", task_id, "--json")
    assert done.returncode == 0, (done.stdout, done.stderr)
    return json.loads(done.stdout)["result"]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# ---------------------------------------------------------------- deciding


def test_approve_lets_the_task_go_on_and_the_list_says_who_it_was(
    sennit: Sennit, people: subprocess.Popen[str]
) -> None:
    task_id, ask_id = asked(sennit, "deploy", "prod")

    done = sennit("inbox", "approve", ask_id, "--by", "lee")

    assert (done.stdout, done.returncode) == (
        f"question {ask_id} answered: true, by lee; task {task_id} goes on\n",
        0,
    )
    assert result(sennit, task_id) == "prod: True"
    assert "answered: true, by lee" in sennit("inbox", "ls", "--all").stdout
    assert "decided    answered: true, by lee" in sennit("inbox", "show", ask_id).stdout


def test_of_many_who_decide_at_once_one_is_first_and_the_others_are_told(
    sennit: Sennit, people: subprocess.Popen[str], start: Start
) -> None:
    first, second = (asked(sennit, "deploy", where) for where in ("prod", "test"))

    deciders = [start("inbox", "approve", first[1], second[1], "--by", name) for name in ("ann", "bob", "lee")]
    ends = [(decider.communicate(), decider.returncode) for decider in deciders]

    assert sorted(code for _, code in ends) == [0, 4, 4]
    assert {err.split()[0] for (_, err), code in ends if code} == {"error[S322]"}
    assert result(sennit, first[0]) == "prod: True"
    assert result(sennit, second[0]) == "test: True"


def test_edit_in_an_editor_keeps_what_does_not_fit(
    sennit: Sennit, people: subprocess.Popen[str], folder: Path, environment: dict[str, str]
) -> None:
    task_id, ask_id = asked(sennit, "send")
    environment["VISUAL"] = f"{sys.executable} {folder / 'editor.py'}"
    editor = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text().replace('hi', 'hello')"
    (folder / "editor.py").write_text(f"{editor}.replace('1', '-'))", encoding="utf-8")

    wrong = sennit("inbox", "edit", ask_id, "--editor")
    kept = wrong.stderr.split("--value - < ")[1].split()[0]
    text = Path(kept).read_text(encoding="utf-8")
    Path(kept).unlink()
    (folder / "editor.py").write_text(f"{editor})", encoding="utf-8")
    right = sennit("inbox", "edit", ask_id, "--editor")

    assert wrong.returncode == 2
    assert '"subject": "hello"' in text
    assert right.returncode == 0, right.stderr
    assert result(sennit, task_id)["subject"] == "hello"


# ---------------------------------------------------------------- watching, and a terminal


def test_watch_writes_a_line_for_each_new_and_changed_question_when_it_happens(
    sennit: Sennit, people: subprocess.Popen[str], start: Start
) -> None:
    _, before = asked(sennit, "deploy", "before")
    watcher = start("inbox", "watch", "--json")
    assert watcher.stdout is not None
    assert str(json.loads(watcher.stdout.readline())["id"]) == before

    _, new = asked(sennit, "deploy", "new")
    seen = json.loads(watcher.stdout.readline())
    sennit("inbox", "approve", before)
    closed = json.loads(watcher.stdout.readline())
    watcher.send_signal(signal.SIGINT)

    assert (str(seen["id"]), seen["state"]) == (new, "open")
    assert (str(closed["id"]), closed["state"]) == (before, "answered")
    assert watcher.wait() == 130


def test_watch_with_a_filter_shows_only_these(sennit: Sennit, people: subprocess.Popen[str], start: Start) -> None:
    watcher = start("inbox", "watch", "--assignee", "ann")
    assert watcher.stdout is not None

    asked(sennit, "deploy", "prod")
    _, ann = asked(sennit, "send")

    assert watcher.stdout.readline() == f"{ann}@1  open  Send this?  (people.send)\n"


def test_on_a_terminal_respond_asks_field_by_field_until_it_fits(
    sennit: Sennit, people: subprocess.Popen[str], folder: Path, environment: dict[str, str]
) -> None:
    task_id, ask_id = asked(sennit, "send")

    with on_terminal(folder, environment, "inbox", "respond", ask_id) as terminal:
        for prompt, line in (("to (", "bob"), ("subject (", "hello"), ("[plain]: ", ""), ("[1]: ", "many")):
            terminal.read_until(prompt)
            terminal.type(line)
        again = terminal.read_until("to (text): ")
        for line in ("bob", "hello", "html", "2"):
            terminal.type(line)
        terminal.read_until("goes on")

    assert "'many' is not of type 'integer'" in again
    assert terminal.process.returncode == 0
    assert result(sennit, task_id) == {"to": "bob", "subject": "hello", "kind": "html", "copies": 2}


def test_the_list_on_a_terminal_stays_current(
    sennit: Sennit, people: subprocess.Popen[str], folder: Path, environment: dict[str, str]
) -> None:
    with on_terminal(folder, environment, "inbox", "watch") as terminal:
        terminal.read_until("0 waiting")
        _, ask_id = asked(sennit, "deploy", "prod")
        shown = terminal.read_until("Deploy to prod?")
        sennit("inbox", "approve", ask_id)
        terminal.read_until("0 waiting")
        terminal.process.send_signal(signal.SIGINT)

    assert "1 waiting" in shown
    assert terminal.process.returncode == 130
