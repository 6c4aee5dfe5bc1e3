"""`sennit inbox`, `signal` and what `tasks` says about waiting, in process, against the tasks of a running app."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from sennit import App, Handle, ask, wait_event
from sennit.errors import AskDenied, TaskFailed
from tests.unit.command_line import Run


class Mail(msgspec.Struct):
    to: str
    subject: str
    kind: Literal["plain", "html"] = "plain"
    copies: int = 1


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.chdir(tmp_path)
    for name in ("SENNIT_DB", "SENNIT_JSON", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    app = App()
    with app:
        yield app


@pytest.fixture
def deploy(app: App) -> Callable[..., Handle[bool]]:
    @app.task(name="deploy")
    async def deploy(where: str) -> bool:
        return await ask(f"Deploy to {where}?", context={"branch": "main"})

    return lambda where, **how: deploy.options(**how).submit(where)


@pytest.fixture
def send(app: App) -> Callable[[], Handle[Mail]]:
    @app.task(name="send")
    async def send() -> Mail:
        mail = Mail("ann", "hi")
        return await ask("Send this?", Mail, proposal=mail, allow_edit=True, expires_s=3600, assignee="ann")

    return send.submit


@pytest.fixture
def naming(app: App) -> Callable[[], Handle[str]]:
    @app.task(name="naming")
    async def naming() -> str:
        return await ask("What is its name?", str)

    return naming.submit


# ---------------------------------------------------------------- looking


def test_without_questions_nothing_waits_for_you(app: App, run: Run) -> None:
    app.ledger().result()  # makes the database

    assert run("inbox") == "needs you  nothing waits for you\n"
    assert "needs you" not in run("status")
    assert run.json("inbox") == []


def test_a_question_is_listed_and_shown_with_what_to_do(run: Run, deploy: Callable[..., Handle[bool]]) -> None:
    ask_id = run.asked(deploy("prod"))

    listed, shown = run("inbox"), run("inbox", "show", ask_id)

    assert "needs you  1 waiting, oldest" in listed
    assert listed.splitlines()[-1].split()[0] == ask_id
    assert shown.startswith(f"question   {ask_id}@1  open\n  Deploy to prod?\n")
    assert '    "branch": "main"' in shown
    assert "answer     yes or no\n" in shown
    assert f"do         sennit inbox approve {ask_id}  |  sennit inbox reject {ask_id} --reason WHY" in shown


def test_status_and_tasks_say_that_somebody_is_needed(run: Run, deploy: Callable[..., Handle[bool]]) -> None:
    task = deploy("prod")
    ask_id = run.asked(task)

    assert "needs you 1 waiting, oldest" in run("status")
    assert run.json("status")[0]["needs_you"]["waiting"] == 1
    assert f"waits for: question {ask_id}: Deploy to prod?" in run("tasks", "ls")
    got = run("tasks", "get", str(task.id))
    assert f"waits for    question {ask_id}: Deploy to prod?\nanswer it    sennit inbox show {ask_id}\n" in got
    assert run.json("tasks", "get", str(task.id))[0]["asks"] == [int(ask_id)]


def test_a_task_that_waits_for_its_turn_or_for_parents_says_so(
    app: App, run: Run, deploy: Callable[..., Handle[bool]]
) -> None:
    @app.task(name="after")
    async def after(one: bool, two: bool) -> None: ...  # noqa: FBT001 - results of the parents

    holder = deploy("prod", thread_id="rel\n9")
    run.asked(holder)
    behind = deploy("test", thread_id="rel\n9")
    last = after.options(thread_id="rel\n9").submit(holder.as_argument(), behind.as_argument())

    (first,) = run.json("tasks", "get", str(behind.id))
    text = run("tasks", "ls", "--thread", "rel\n9")

    assert (first["position"], first["reason"]) == (1, "thread")
    assert "waiting: turn of thread rel\\n9 (1 before it)" in text
    assert f"{last.id}  waiting" in text
    assert "waiting: 2 parents and turn of thread rel\\n9 (2 before it)" in text
    assert run("tasks", "ls", "--thread", "another", "--json") == ""


def test_a_task_that_waits_for_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    app = App(threads_max=1)

    @app.task(name="quiet")
    async def quiet() -> None: ...

    for thread_id in ("one", "two"):
        quiet.options(thread_id=thread_id).submit()
    app.ledger().result()

    assert "waiting: room (threads_max)" in run("tasks", "ls")
    app.close()


def test_a_form_is_described_and_the_expiry_and_the_asked_one_are_named(
    run: Run, send: Callable[[], Handle[Mail]]
) -> None:
    shown = run("inbox", "show", run.asked(send()))

    assert ", of ann\n" in shown
    assert re.search(r"^expires    in (59m\d\ds|1h00m), then it fails$", shown, re.MULTILINE)
    assert '  kind     one of "html", "plain"; default "plain"\n' in shown


def test_ls_filters_and_says_what_it_leaves_out(
    run: Run, deploy: Callable[..., Handle[bool]], send: Callable[[], Handle[Mail]]
) -> None:
    for_all, for_ann = run.asked(deploy("prod", thread_id="t")), run.asked(send())

    assert [str(ask["id"]) for ask in run.json("inbox", "ls", "--assignee", "ann")] == [for_ann]
    assert [str(ask["id"]) for ask in run.json("inbox", "ls", "--thread", "t")] == [for_all]
    assert "2 waiting" in run("inbox", "ls", "--limit", "1")
    assert run.err == "1 of 2; more with --limit\n"


def test_all_lists_closed_ones_too_and_keeps_the_newest(run: Run, deploy: Callable[..., Handle[bool]]) -> None:
    closed, open_ = run.asked(deploy("prod")), run.asked(deploy("test"))
    run("inbox", "approve", closed, "--by", "lee")

    listed = run("inbox", "ls", "--all")
    newest = run.json("inbox", "ls", "--all", "--limit", "1")

    assert "1 waiting" in listed
    assert "answered: true, by lee" in listed
    assert [str(ask["id"]) for ask in newest] == [open_]


def test_a_question_in_json_has_its_keys(run: Run, send: Callable[[], Handle[Mail]]) -> None:
    """Who reads this with jq relies on them: taking one away needs a new schema version."""
    (found,) = run.json("inbox", "show", run.asked(send()))

    assert list(found) == [
        "schema", "id", "version", "state", "kind", "question", "event", "task_id", "handler", "thread_id", "assignee",
        "level", "created_at", "expires_at", "closed_at", "on_expire", "escalate_to", "context", "proposal", "default",
        "allow_edit", "answer_schema", "answer", "by", "reason",
    ]  # fmt: skip
    reference = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    (row,) = (line for line in reference.splitlines() if line.startswith("| `sennit.ask/1`"))
    assert [key for key in found if key != "schema" and f"`{key}`" not in row] == []
    assert (found["schema"], found["kind"], found["context"]) == ("sennit.ask/1", "edit", None)
    assert found["proposal"] == {"to": "ann", "subject": "hi", "kind": "plain", "copies": 1}


def test_what_a_task_asks_cannot_move_the_cursor(app: App, run: Run) -> None:
    @app.task(name="rude")
    async def rude() -> bool:
        return await ask("\x1b[2J\x9b31mapprove?\nsecond line", context={"c": "\x9b2J"}, assignee="\x1b[1m")

    handle = rude.options(thread_id="\x1b]0;title\x07").submit()
    ask_id = run.asked(handle)

    said = [
        run("inbox"), run("inbox", "show", ask_id), run("tasks", "ls"), run("tasks", "get", str(handle.id)),
        run("threads"), run("threads", "show", "\x1b]0;title\x07"), run("inbox", "respond", ask_id, "x") + run.err,
        run("inbox", "approve", ask_id),
    ]  # fmt: skip

    assert not any(character in text for text in said for character in "\x1b\x9b\x07")
    assert "\\x1b[2J" in said[0]
    assert "  second line" in said[1]


def test_an_escalated_question_shows_who_is_asked_now(app: App, run: Run) -> None:
    @app.task(name="brief")
    async def brief() -> bool:
        return await ask("Quick?", expires_s=0.05, on_expire="escalate", escalate_to="bob", assignee="ann")

    with pytest.raises(TaskFailed):
        brief.submit().result()

    (shown,) = run.json("inbox", "ls", "--all")
    assert (shown["level"], shown["assignee"], shown["state"]) == (1, "bob", "expired")
    text = run("inbox", "show", str(shown["id"]))
    assert ", of ann\n" in text
    assert "escalated  to bob" in text


# ---------------------------------------------------------------- deciding


def test_approve_of_a_proposal_takes_it_as_it_is(run: Run, send: Callable[[], Handle[Mail]]) -> None:
    handle = send()

    run("inbox", "approve", run.asked(handle))

    assert handle.result() == Mail("ann", "hi")


def test_reject_reaches_the_body_with_its_reason(app: App, run: Run) -> None:
    @app.task(name="naming")
    async def naming() -> str:
        try:
            return await ask("What is its name?", str)
        except AskDenied as error:
            return f"{error.by}: {error.reason}"

    handle = naming.submit()
    ask_id = run.asked(handle)

    run("inbox", "reject", ask_id, "--reason", "not on a Friday", "--by", "lee")

    assert handle.result() == "lee: not on a Friday"
    assert "decided    denied, by lee (not on a Friday), 20" in run("inbox", "show", ask_id)


def test_approve_of_a_question_that_wants_a_value_is_an_invalid_answer(
    run: Run, naming: Callable[[], Handle[str]]
) -> None:
    ask_id = run.asked(naming())

    run("inbox", "approve", ask_id)

    assert run.code == 2
    assert "error[S324]" in run.err
    assert run.json("inbox")[0]["state"] == "open"


def test_edit_changes_fields_and_refuses_what_does_not_fit(run: Run, send: Callable[[], Handle[Mail]]) -> None:
    handle = send()
    ask_id = run.asked(handle)

    wrong = [("--set", "copies=many"), ("--value", "{"), ("--set", "copies"), ("--set", "to.x=1"), ()]
    for words in wrong:
        run("inbox", "edit", ask_id, *words)
        assert run.code == 2, words
    run("inbox", "edit", ask_id, "--set", "copies=2", "--set", "subject=12")

    assert run.code == 0
    assert handle.result() == Mail("ann", "12", copies=2)


def test_edit_without_a_proposal_that_may_be_edited_is_refused(run: Run, deploy: Callable[..., Handle[bool]]) -> None:
    run("inbox", "edit", run.asked(deploy("prod")), "--value", "false")

    assert run.code == 2
    assert "cannot be edited" in run.err


def test_respond_takes_text_json_and_stdin(
    run: Run,
    naming: Callable[[], Handle[str]],
    send: Callable[[], Handle[Mail]],
    deploy: Callable[..., Handle[bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, mail, typed, no = naming(), send(), naming(), deploy("prod")
    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines\n"))

    run("inbox", "respond", run.asked(text), "12")
    run("inbox", "respond", run.asked(mail), '{"to": "bob", "subject": "x"}')
    run("inbox", "respond", run.asked(typed), "-")
    run("inbox", "respond", run.asked(no), "n")

    assert (text.result(), typed.result(), no.result()) == ("12", "two\nlines", False)
    assert mail.result() == Mail("bob", "x")


def test_nobody_at_a_terminal_is_asked_for_nothing(run: Run, naming: Callable[[], Handle[str]]) -> None:
    run("inbox", "respond", run.asked(naming()))

    assert run.code == 2
    assert "no terminal" in run.err


def test_a_batch_is_decided_whole_or_not_at_all(run: Run, deploy: Callable[..., Handle[bool]]) -> None:
    first, second, third = (run.asked(deploy(where)) for where in "abc")
    run("inbox", "reject", third)

    codes = [(run("inbox", "approve", first, second, last), run.code) for last in (third, "999")]
    still = [str(ask["id"]) for ask in run.json("inbox")]
    both = run.json("inbox", "approve", first, second, first)

    assert codes == [("", 4), ("", 3)]
    assert still == [first, second]
    assert [(ask["state"], ask["version"]) for ask in both] == [("answered", 2), ("answered", 2)]


def test_a_decision_on_another_version_is_refused_as_stale(run: Run, deploy: Callable[..., Handle[bool]]) -> None:
    ask_id = run.asked(deploy("prod"))

    run("inbox", "approve", f"{ask_id}@7")
    stale, said = run.code, run.err
    run("inbox", "approve", f"{ask_id}@1")

    assert (stale, run.code) == (4, 0)
    assert "error[S323]" in said


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ("approve x", 2, "is no id of a question"),
        ("approve 7@", 2, "is no id of a question"),
        ("approve 99", 3, "error[S321]"),
        ("show 99", 3, "error[S321]"),
        ("edit 1 --set a=1 --editor", 2, "exclude each other"),
    ],
)
def test_an_error_has_its_exit_code(app: App, run: Run, words: str, code: int, text: str) -> None:
    app.ledger().result()

    run("inbox", *words.split())

    assert run.code == code
    assert text in run.err


# ---------------------------------------------------------------- events and caches


def test_a_signal_says_how_many_waited_or_that_it_is_kept(app: App, run: Run) -> None:
    @app.task(name="paid")
    async def paid(order: str) -> object:
        return await wait_event("paid", order)

    waiting = paid.submit("o-1")
    while not run.json("tasks", "ls", "--state", "suspended"):
        pass
    listed = run("tasks", "ls")

    told = run("signal", "paid", "o-1", '{"amount": 12}')
    (kept,) = run.json("signal", "paid", "o-2")

    assert "waits for: an event" in listed
    assert told == "paid o-1: 1 task goes on\n"
    assert waiting.result() == {"amount": 12}
    assert (kept["waited"], kept["kept"], kept["payload"]) == (0, True, None)
    assert paid.submit("o-2").result() is None


def test_who_waits_for_which_event_is_listed(app: App, run: Run) -> None:
    @app.task(name="paid")
    async def paid(order: str) -> object:
        return await wait_event("paid", order, expires_s=3600)

    assert run("inbox", "ls", "--events") == "events  nothing waits for an event\n"
    waiting = paid.options(thread_id="shop").submit("o 1")
    while not run.json("tasks", "ls", "--state", "suspended"):
        pass
    text = run("inbox", "ls", "--events")
    (found,) = run.json("inbox", "ls", "--events", "--thread", "shop")
    shown = run("inbox", "show", str(found["id"]))
    run("inbox", "approve", str(found["id"]))

    assert (found["kind"], found["state"], found["event"]) == ("event", "open", {"name": "paid", "key": "o 1"})
    assert (found["task_id"], found["question"]) == (waiting.id, "event 'paid' o 1")
    assert text.splitlines()[0].startswith("events  1 waiting, oldest ")
    assert re.search(rf"in \S+, then it fails +shop +{waiting.id} paid +paid +o 1$", text.splitlines()[-1])
    assert "do         sennit signal paid 'o 1' PAYLOAD\n" in shown
    assert (run.code, "no question" in run.err) == (2, True)
    assert run.json("inbox", "ls") == []
    run("signal", "paid", "o 1", "7")
    assert waiting.result() == 7
    assert "answered: 7" in run("inbox", "ls", "--events", "--all")


def test_cached_results_are_forgotten_by_tag(app: App, run: Run) -> None:
    @app.task(name="price", cache_s=3600, cache_tags=["prices"])
    async def price(of: str) -> str:
        return of

    first = price.submit("apple")
    first.result()

    assert run("cache", "invalidate", "--tag", "stock") == "0 cached results forgotten\n"
    assert price.submit("apple").view().result().id == first.id
    assert run.json("cache", "invalidate", "--tag", "prices", "--tag", "stock")[0]["forgotten"] == 1
    assert price.submit("apple").view().result().id != first.id
