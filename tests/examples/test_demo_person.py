"""The demo asks a person: at a real terminal, from another process, with nobody there, and across a kill -9."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from sennit import App, Handle
from tests.examples.demo_runs import LINE, argv_of, demo, environ_of, shop, started

WAIT_S = 30.0
PIPE_BYTES = 4096
ROOM_BYTES = 80  # one line of the journal has 45 to 70

# Gives the program after it a terminal of its own; what comes in on stdin is typed there.
TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return shop(tmp_path)


def in_a_terminal(key: str, *args: object) -> tuple[int, str]:
    """Run the demo in a terminal and press `key` when it asks; return exit code and all that was shown, `stty -a` last."""
    script = f"trap : INT; {shlex.join(argv_of('demo', *args))}; code=$?; stty -a; exit $code"
    argv = [sys.executable, "-c", TERMINAL, "sh", "-c", script]
    shown = ""
    with subprocess.Popen(argv, env=environ_of(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        while piece := os.read(running.stdout.fileno(), 65536).decode("utf-8", "replace"):
            shown += piece
            if key and "Press y or n" in shown:
                os.write(running.stdin.fileno(), key.encode())
                key = ""
    return running.returncode, shown.replace("\r\n", "\n")


def inbox(*args: object) -> None:
    subprocess.run(argv_of("inbox", *args), env=environ_of(), check=True, capture_output=True)


# ---------------------------------------------------------------- where the answer comes from


def test_a_y_at_the_terminal_publishes_the_report(tree: Path, tmp_path: Path) -> None:
    code, shown = in_a_terminal("y", tree, "--fast", "--out", tmp_path / "out")

    assert code == 0, shown
    line = LINE.search(shown)
    assert line is not None, shown
    assert (line["asked"], line["lost"], line["duplicated"], line["outcome"]) == ("1 human", "0", "0", "report")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.md"]
    assert "Published: approved by " in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert re.search(r"[ ;]icanon\b.*[ ;]echo\b", shown, re.DOTALL)  # the terminal is as it was


def test_an_n_at_the_terminal_leaves_a_draft_and_all_is_well(tree: Path, tmp_path: Path) -> None:
    code, shown = in_a_terminal("n", tree, "--fast", "--out", tmp_path / "out")

    assert code == 0, shown
    line = LINE.search(shown)
    assert line is not None, shown
    assert (line["lost"], line["duplicated"], line["outcome"]) == ("0", "0", "not published, draft")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["draft.html", "draft.md"]
    assert "Draft, not published: rejected by " in (tmp_path / "out" / "draft.html").read_text(encoding="utf-8")


def test_ctrl_c_while_it_asks_gives_the_terminal_back(tree: Path, tmp_path: Path) -> None:
    code, shown = in_a_terminal("\x03", tree, "--fast", "--out", tmp_path / "out")

    assert code == 130, shown
    assert re.search(r"[ ;]icanon\b.*[ ;]echo\b", shown, re.DOTALL)


def test_a_no_from_another_process_leaves_the_report_of_before(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("the one of before", encoding="utf-8")

    with started(tree, tmp_path, until="silence is a yes after 10 s") as (running, _):
        assert running.stderr is not None
        command = next(line for line in running.stderr if "sennit inbox reject" in line).split()
        inbox(*command[command.index("reject") :], "--by", "ann", "--reason", "not today")
        out, err = running.communicate()

    assert running.returncode == 0, err
    line = LINE.fullmatch(out)
    assert line is not None, out
    assert (line["asked"], line["outcome"]) == ("1 human", "not published, draft")
    assert "rejected by ann: not today" in err
    assert "rejected by ann: not today" in (tmp_path / "out" / "draft.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == "the one of before"


def test_yes_on_the_command_line_is_an_answer(tree: Path, tmp_path: Path) -> None:
    done = demo(tree, "--fast", "--yes", "--json", "--out", tmp_path / "out")

    facts = msgspec.json.decode(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (facts["approval"]["state"], facts["approval"]["by"]) == ("answered", "--yes")
    assert facts["published"] is True
    assert facts["report"] == str(tmp_path / "out" / "report.html")


# ---------------------------------------------------------------- a kill in the worst moment


@contextmanager
def working(url: str) -> Iterator[subprocess.Popen[bytes]]:
    argv = argv_of("worker", "sennit.cli.demo.fleet:app", "--quiet", "--db", url)
    with subprocess.Popen(argv, env=environ_of()) as worker:
        try:
            yield worker
        finally:
            worker.terminate()


@contextmanager
def a_narrow_pipe(path: Path) -> Iterator[int]:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES) == PIPE_BYTES
        yield reader
    finally:
        os.close(reader)


def test_an_answer_survives_the_worker_that_has_heard_it_and_not_said_so(tmp_path: Path) -> None:
    """The journal is a pipe with room for one line: the body says that it began, and hangs when it says that it ended."""
    url, journal = f"sqlite:///{tmp_path / 'demo.db'}", tmp_path / "journal"
    arguments = {
        "title": "shop",
        "sizes": {"files": 3},
        "asking": {"expires_s": 600.0, "silence": False},
        "journal": str(journal),
    }
    argv = argv_of("run", "sennit.cli.demo.fleet:app", "approve", msgspec.json.encode(arguments).decode(), "--db", url)
    with a_narrow_pipe(journal) as reader, closing(App(url)) as app:
        submitted = subprocess.run(argv, env=environ_of(), check=True, capture_output=True, text=True)
        approved: Handle[bool] = app.handle(int(submitted.stdout))
        with working(url) as first:
            asked = next(iter(app.inbox().watch()))
            os.read(reader, PIPE_BYTES)
            writer = os.open(journal, os.O_WRONLY)
            os.write(writer, b"-" * (PIPE_BYTES - ROOM_BYTES))
            with select.epoll() as news:
                news.register(reader, select.EPOLLIN | select.EPOLLET)
                assert news.poll(WAIT_S)  # what is there already
                app.inbox().approve(asked.id, by="ann").result()
                assert news.poll(WAIT_S)  # "started": the second attempt has the answer
            assert approved.view().result().attempt == 2
            first.kill()
        assert os.read(reader, PIPE_BYTES).endswith(b'"started"]\n')
        os.close(writer)
        with working(url):
            answer = approved.result(timeout_s=WAIT_S)
        view = approved.view().result()
        questions = app.inbox().list(states=()).result()

    assert answer is True
    assert (view.attempt, view.crashes) == (3, 1)
    assert [question.state for question in questions] == ["answered"]
