"""`sennit threads` and `locks`, in process: what is printed, what is refused, and with which exit code."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sennit import App
from sennit.model.thread import StateWrite
from sennit.sync.filelocks import FileLock
from sennit.threads.workspace import Workspace
from tests.unit.command_line import Run

ODD = "rel\n9/ü \x1b[2J"  # an id is any text


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.chdir(tmp_path)
    for name in ("SENNIT_DB", "SENNIT_JSON", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    app = App()
    app.ledger().result()  # makes the database
    yield app
    app.close()


def write(app: App, thread_id: str, *values: Any) -> None:
    store = app.store
    for expected, value in enumerate(values):
        data = json.dumps(value, separators=(",", ":")).encode()
        store.write_states([StateWrite(thread_id=thread_id, expected=expected, data=data)]).result()


# ---------------------------------------------------------------- looking


def test_ls_shows_open_tasks_holder_and_version(app: App, run: Run) -> None:
    @app.task(name="quiet")
    async def quiet() -> None: ...

    write(app, "done", {"n": 1})
    first, _ = (quiet.options(thread_id=ODD).submit() for _ in "ab")
    first.view().result()

    (busy, done) = run.json("threads")
    text = run("threads", "ls")

    assert list(busy) == ["schema", "thread_id", "open_tasks", "holder_id", "asks", "version", "changed_at"]
    assert (busy["thread_id"], busy["open_tasks"], busy["holder_id"], busy["changed_at"]) == (ODD, 2, first.id, None)
    assert (done["thread_id"], done["version"], done["holder_id"]) == ("done", 1, None)
    assert "\\x1b[2J" in text
    assert "\x1b" not in text
    run("threads", "ls", "--limit", "1")
    assert run.err == "showing 1 of more than 1; more with --limit\n"
    assert len(run.json("threads", "ls", "--limit", "2")) == 2
    assert run.err == ""


def test_show_has_the_tasks_and_the_state(app: App, run: Run) -> None:
    @app.task(name="quiet")
    async def quiet() -> None: ...

    write(app, ODD, {"reviews": 3})
    tasks = [quiet.options(thread_id=ODD).submit() for _ in "ab"]
    tasks[1].view().result()

    text = run("threads", "show", ODD)
    (found,) = run.json("threads", "show", ODD)

    assert "open       2 tasks, 0 questions\n" in text
    assert "(1 before it)" in text
    assert "state      version 1, 13 B" in text
    assert '    "reviews": 3\n' in text
    assert "config     nothing yet\n" in text
    assert [task["id"] for task in found["tasks"]] == [task.id for task in tasks]
    assert (found["state"], found["version"], found["config"], found["config_version"]) == ({"reviews": 3}, 1, None, 0)


def test_state_is_json_of_any_kept_version(app: App, run: Run) -> None:
    write(app, ODD, {"n": 1}, {"n": 2})

    assert json.loads(run("threads", "state", ODD)) == {"n": 2}
    assert json.loads(run("threads", "state", ODD, "--version", "1")) == {"n": 1}
    (found,) = run.json("threads", "state", ODD)
    assert (found["schema"], found["version"], found["name"], found["data"]) == ("sennit.state/1", 2, "state", {"n": 2})


def test_history_says_who_wrote_what(app: App, run: Run) -> None:
    write(app, "t", {"n": 1}, {"n": 2, "m": 0})
    app.thread("t").update(lambda s: {**s, "n": 3}, operation_id="op-1").result()

    text = run("threads", "history", "t")

    rows = [line.split() for line in text.splitlines()[1:]]
    assert [row[0] for row in rows] == ["3", "2", "1"]
    assert rows[0][-2:] == ["~1", "op-1"]
    assert rows[1][-2:] == ["+1", "~1"]
    assert [view["version"] for view in run.json("threads", "history", "t", "--limit", "2")] == [3, 2]


def test_diff_shows_what_has_changed(app: App, run: Run) -> None:
    write(app, "t", {"n": 1, "old": 0}, {"n": 2, "new": [1]})

    assert run("threads", "diff", "t", "1") == "version 1 → 2   +1 -1 ~1\n~ /n  1 → 2\n- /old  0\n+ /new  [1]\n"
    assert run("threads", "diff", "t", "2", "2") == "version 2 → 2   no difference\n"
    assert run.json("threads", "diff", "t", "0", "1")[0]["changes"] == [
        {"op": "replace", "path": "", "value": {"n": 1, "old": 0}, "old": None}
    ]


# ---------------------------------------------------------------- changing


def test_set_writes_a_version_and_refuses_an_older_one(app: App, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("threads", "set", "t", '{"n": 1}') == "state of t is at version 1\n"
    assert run("threads", "set", "t", '{"n": 2}', "--expected", "1") == "state of t is at version 2\n"
    run("threads", "set", "t", "3", "--expected", "1")
    assert run.code == 4
    assert "error[S330]" in run.err
    monkeypatch.setattr("sys.stdin", io.StringIO('{"n": 4}\n'))
    assert run.json("threads", "set", "t", "-", "--config")[0]["name"] == "config"

    assert app.thread("t").get().result() == {"n": 2}
    assert app.thread("t").config.get().result() == {"n": 4}


def test_set_refuses_what_is_not_json_or_too_large(app: App, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("threads", "set", "t", "{n: 1}")
    assert run.code == 2
    monkeypatch.setenv("SENNIT_THREAD_MEMORY_BYTES_MAX", "10")
    run("threads", "set", "t", '"too much for it"')

    assert "error[S333]" in run.err
    assert run.json("threads") == []


def test_fork_copies_a_version_and_never_overwrites(app: App, run: Run) -> None:
    write(app, "t", {"n": 1}, {"n": 2})
    run("threads", "set", "t", '{"c": 1}', "--config")

    assert run("threads", "fork", "t", ODD, "--version", "1") == "rel\\n9/ü \\x1b[2J begins as t at version 1\n"
    run("threads", "fork", "t", ODD)
    assert run.code == 4

    assert app.thread(ODD).get().result() == {"n": 1}
    assert app.thread(ODD).config.get().result() == {"c": 1}


def test_forget_asks_or_wants_to_be_told(app: App, run: Run) -> None:
    write(app, "t", {"n": 1})

    run("threads", "forget", "t")
    assert run.code == 2
    assert "add --yes" in run.err
    assert run("threads", "forget", "t", "--yes") == "t is forgotten\n"
    run("threads", "forget", "t", "--yes")

    assert run.code == 3


def test_a_thread_with_open_tasks_is_not_forgotten(app: App, run: Run) -> None:
    @app.task(name="quiet")
    async def quiet() -> None: ...

    write(app, "t", {"n": 1})
    quiet.options(thread_id="t").submit().view().result()

    run("threads", "forget", "t", "--yes")

    assert run.code == 4
    assert app.thread("t").get().result() == {"n": 1}


# ---------------------------------------------------------------- what is not there


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["show", "nobody"], 3, "there is no thread 'nobody'"),
        (["show", "--", "-x"], 3, "there is no thread '-x'"),
        (["show", ""], 2, "thread_id is empty"),
        (["show", "\udcff"], 2, "surrogate"),
        (["state", "nobody"], 3, "there is no thread 'nobody'"),
        (["state", "of tasks"], 3, "thread 'of tasks' has no state"),
        (["forget", "of tasks", "--yes"], 3, "thread 'of tasks' has no state"),
        (["state", "t", "--config"], 3, "has no config"),
        (["state", "t", "--version", "7"], 3, "versions 1 to 2 are kept"),
        (["history", "nobody"], 3, "there is no thread 'nobody'"),
        (["history", "t", "--config"], 3, "has no config"),
        (["diff", "t", "1", "7"], 3, "version 7"),
        (["fork", "nobody", "new"], 3, "there is no thread 'nobody'"),
        (["fork", "t", "new", "--version", "7"], 3, "version 7"),
        (["forget", "nobody", "--yes"], 3, "there is no thread"),
        (["context", "nobody"], 3, "has nothing in"),
    ],
)
def test_what_is_not_there_has_its_exit_code(app: App, run: Run, words: list[str], code: int, text: str) -> None:
    write(app, "t", 1, 2)

    @app.task(name="quiet")
    async def quiet() -> None: ...

    quiet.options(thread_id="of tasks").submit()

    out = run("threads", *words)

    assert (out, run.code) == ("", code)
    assert text in run.err
    assert len(run.err.splitlines()) <= 3


# ---------------------------------------------------------------- files


def test_context_lists_values_and_outputs_of_the_workspace(app: App, run: Run) -> None:
    workspace = Workspace()
    workspace.set_context(ODD, "plan", {"steps": 2})
    workspace.set_context(ODD, "blob", b"\x00\x01")
    workspace.add_output(ODD, "report.md", "# done")

    text = run("threads", "context", ODD)
    found = run.json("threads", "context", ODD)

    assert '{"steps":2}' in text
    assert "1 report.md" in text
    assert {(one["what"], one["name"], one["bytes"]) for one in found} == {
        ("context", "plan", 11), ("context", "blob", 2), ("output", "report.md", 6),
    }  # fmt: skip


def test_locks_shows_who_holds_one(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "below"
    folder.mkdir()
    with FileLock(folder / "a.lock"):
        pass

    with FileLock(folder / "b.lock", purpose="the report"):
        text = run("locks", "ls", str(tmp_path))
        (held,) = run.json("locks", "ls", str(tmp_path))
        both = run.json("locks", "ls", str(tmp_path), "--all")
    free = run("locks", "ls", str(tmp_path))

    assert "exclusive  the report" in text
    assert (held["path"], held["held"], held["purpose"]) == (str(folder / "b.lock"), True, "the report")
    assert [lock["held"] for lock in both] == [False, True]
    assert free == f"none is held: 2 locks in {tmp_path}\n"
    assert run("locks", "ls") == "none is held: 0 locks in .sennit\n"


def test_a_lock_that_cannot_be_looked_at_says_why(run: Run, tmp_path: Path) -> None:
    (tmp_path / "real.lock").touch()
    (tmp_path / "link.lock").symlink_to("real.lock")

    (found,) = run.json("locks", "ls", str(tmp_path / "link.lock"))

    assert (found["held"], "symbolic" in found["error"]) == (None, True)


# ---------------------------------------------------------------- the reference


def test_every_key_of_the_json_is_in_the_reference(app: App, run: Run, tmp_path: Path) -> None:
    Workspace().set_context("t", "plan", {"steps": 2})
    Workspace().add_output("t", "report.md", "# done")
    (tmp_path / "a.lock").touch()
    calls = [
        "threads set t 1", "threads ls", "threads show t", "threads state t", "threads history t", "threads diff t 0",
        "threads fork t u", "threads context t", f"locks ls {tmp_path / 'a.lock'} --all", "threads forget t --yes",
        "signal paid", "cache invalidate --tag x",
    ]  # fmt: skip
    reference = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
    rows = {row.split("`")[1]: row for row in reference.read_text().splitlines() if row.startswith("| `sennit.")}

    found = [(words, line) for words in calls for line in run.json(*words.split())]

    assert {words for words, _ in found} == set(calls)
    missing = [
        (words, key) for words, line in found for key in line if key != "schema" and f"`{key}`" not in rows[line["schema"]]
    ]  # fmt: skip
    assert missing == []
