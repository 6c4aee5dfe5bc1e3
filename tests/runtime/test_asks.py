"""Questions and events in bodies: the task suspends, somebody answers, and the body goes on from its steps."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pydantic
import pytest

from sennit import App, AskDenied, AskExpired, Handle, RetryPolicy, TaskFailed, ask, step, thread, wait_event
from sennit.errors import AnswerInvalid, AskClosed, UsageError
from sennit.model.lifecycle import State
from sennit.model.thread import AskView
from sennit.sync.pending import Pending

WAIT_S = 30.0
RETRIES = RetryPolicy(retries=3, delay_s=0.0)


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/fleet.db"
    with App(url, durability="normal") as app:
        yield app


def asked(app: App, n: int = 1) -> list[AskView]:
    """Wait until `n` questions are open and return them."""
    found: dict[int, AskView] = {}
    for view in (question.view for question in app.inbox().watch()):
        if view.state == "open":
            found[view.id] = view
        else:
            found.pop(view.id, None)
        if len(found) >= n:
            return sorted(found.values(), key=lambda v: v.id)
    raise AssertionError("a watch does not end")


class Plan(msgspec.Struct):
    steps: list[str]


class Review(pydantic.BaseModel):
    verdict: Literal["good", "bad"]
    score: int = 0


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("says", ["yes", "no"])
def test_a_yes_or_no_question_is_true_or_false(app: App, says: str) -> None:
    @app.task
    async def body() -> bool:
        return await ask("Publish?")

    handle = body.submit()
    question = asked(app)[0]
    assert (question.spec.question, question.task_id) == ("Publish?", handle.id)
    if says == "yes":
        app.inbox().approve(question.id, by="ana").result()
    else:
        app.inbox().reject(question.id, reason="not today").result()

    assert handle.result(WAIT_S) is (says == "yes")


def test_a_sync_body_asks_with_result(app: App) -> None:
    @app.task
    def body() -> str:
        return "yes" if ask("Publish?").result() else "no"

    handle = body.submit()
    app.inbox().approve(asked(app)[0].id).result()

    assert handle.result(WAIT_S) == "yes"


@pytest.mark.parametrize(
    ("wanted", "value"),
    [(str, "blue"), (int, 7), (list[str], ["a"]), (Plan, Plan(["a", "b"])), (Review, Review(verdict="bad", score=3))],
)
def test_an_answer_comes_back_as_the_type_that_was_asked_for(app: App, wanted: Any, value: Any) -> None:
    seen: list[Any] = []

    @app.task
    async def body() -> None:
        seen.append(await ask("Which?", wanted))

    handle = body.submit()
    app.inbox().respond(asked(app)[0].id, value).result()
    handle.result(WAIT_S)

    assert seen == [value]


def test_a_rejected_value_raises_and_is_not_retried(app: App) -> None:
    attempts: list[int] = []

    @app.task(retries=RETRIES)
    async def body() -> str:
        attempts.append(1)
        return await ask("Which?", str)

    handle = body.submit()
    question = asked(app)[0]
    app.inbox().reject(question.id, reason="none of them", by="ana").result()
    with pytest.raises(TaskFailed) as caught:
        handle.result(WAIT_S)

    assert caught.value.kind == "AskDenied"
    assert len(attempts) == 2  # until it asked, and until it knew


def test_a_denial_says_who_and_why(app: App) -> None:
    @app.task
    async def body() -> list[str | int]:
        try:
            return [await ask("Which?", str)]
        except AskDenied as denied:
            return [denied.ask_id, denied.by, denied.reason]

    handle = body.submit()
    question = asked(app)[0]
    app.inbox().reject(question.id, reason="none of them", by="ana").result()

    assert handle.result(WAIT_S) == [question.id, "ana", "none of them"]


def test_a_proposal_can_be_approved_or_edited(app: App) -> None:
    @app.task
    async def body(n: int) -> list[str]:
        return (await ask(f"Do this? {n}", Plan, proposal=Plan(["draft"]), allow_edit=True)).steps

    first, second = body.submit(1), body.submit(2)
    questions = {q.text: q for q in [app.inbox().show(v.id).result() for v in asked(app, 2)]}
    assert questions["Do this? 1"].proposal == {"steps": ["draft"]}
    questions["Do this? 1"].approve().result()
    questions["Do this? 2"].edit(Plan(["better"])).result()

    assert (first.result(WAIT_S), second.result(WAIT_S)) == (["draft"], ["better"])


# ---------------------------------------------------------------- suspension


def test_a_suspended_task_holds_no_slot_and_no_os_thread(tmp_path: Path) -> None:
    with App("memory://", slots=1) as app:

        @app.task
        def asks(n: int) -> int:
            return n if ask(f"Go {n}?").result() else -1

        @app.task
        async def other() -> str:
            return "ran"

        handles = asks.map(range(20))
        questions = asked(app, 20)
        assert other.submit().result(WAIT_S) == "ran"
        assert {handle.view().result().state for handle in handles} == {State.SUSPENDED}
        assert sum("sennit-body" in t.name for t in threading.enumerate()) < 5

        app.inbox().approve(*(q.id for q in questions)).result()
        assert handles.result(WAIT_S) == list(range(20))


def test_all_questions_that_were_asked_are_in_the_inbox_together(app: App) -> None:
    @app.task
    async def body() -> list[Any]:
        colour = ask("Colour?", str)
        size = ask("Size?", int)
        sure, name = await asyncio.gather(ask("Sure?"), ask("Name?", str))
        return [await colour, await size, sure, name]

    handle = body.submit()
    questions = {q.spec.question: q.id for q in asked(app, 4)}
    inbox = app.inbox()
    inbox.respond(questions["Name?"], "n").result()
    inbox.approve(questions["Sure?"]).result()
    inbox.respond(questions["Size?"], 3).result()
    inbox.respond(questions["Colour?"], "blue").result()

    assert handle.result(WAIT_S) == ["blue", 3, True, "n"]
    assert len(inbox.list(states=()).result()) == 4


def test_steps_before_a_question_are_not_repeated_and_steps_beside_it_end_first(app: App) -> None:
    calls: list[str] = []

    async def slow() -> str:
        calls.append("slow")
        for _ in range(20):
            await asyncio.sleep(0)
        return "slow"

    def quick() -> str:
        calls.append("quick")
        return "quick"

    @app.task
    async def body() -> list[Any]:
        first = await step(quick)
        second, sure = await asyncio.gather(step(slow), ask("Sure?"))
        return [first, second, sure]

    handle = body.submit()
    app.inbox().approve(asked(app)[0].id).result()

    assert handle.result(WAIT_S) == ["quick", "slow", True]
    assert calls == ["quick", "slow"]


def test_children_of_a_task_that_asks_are_stored_and_run_meanwhile(app: App) -> None:
    @app.task
    async def child() -> int:
        return 3

    @app.task
    async def parent() -> int:
        result = child.submit()
        if not await ask("Add it?"):
            return 0
        return await result

    handle = parent.submit()
    question = asked(app)[0]
    for view in app.store.tasks().result():
        if view.parent_id == handle.id:
            app.handle(view.id).result(WAIT_S)
    app.inbox().approve(question.id).result()

    assert handle.result(WAIT_S) == 3
    assert app.ledger().result().submitted == 2


def test_what_a_task_changed_before_it_asked_commits_once(app: App) -> None:
    @app.task
    async def body() -> None:
        await thread().update(lambda s: {"n": s.get("n", 0) + 1})
        assert await ask("Go on?")

    handle = body.options(thread_id="t").submit()
    question = asked(app)[0]
    assert app.thread("t").get_versioned().result() == ({}, 0)
    app.inbox().approve(question.id).result()
    handle.result(WAIT_S)

    assert app.thread("t").get_versioned().result() == ({"n": 1}, 1)


def test_the_same_question_twice_is_asked_twice(app: App) -> None:
    @app.task
    async def body() -> list[bool]:
        return [await ask("Again?"), await ask("Again?")]

    handle = body.submit()
    first = asked(app)[0]
    app.inbox().approve(first.id).result()
    second = next(q for q in app.inbox().watch() if q.state == "open" and q.id != first.id)
    app.inbox().reject(second.id).result()

    assert handle.result(WAIT_S) == [True, False]


def test_a_task_group_can_ask(app: App) -> None:
    @app.task
    async def body() -> list[bool]:
        async with asyncio.TaskGroup() as group:
            both = [group.create_task(_asks(n)) for n in range(2)]
        return [one.result() for one in both]

    async def _asks(n: int) -> bool:
        return await ask(f"Part {n}?")

    handle = body.submit()
    app.inbox().approve(*(q.id for q in asked(app, 2))).result()

    assert handle.result(WAIT_S) == [True, True]


def test_a_cancelled_task_takes_its_questions_along(app: App) -> None:
    @app.task
    async def body() -> bool:
        return await ask("Publish?")

    handle = body.submit()
    question = asked(app)[0]
    assert handle.cancel().result(WAIT_S)

    assert app.inbox().show(question.id).result().state == "void"
    with pytest.raises(AskClosed):
        app.inbox().approve(question.id).result()


# ---------------------------------------------------------------- expiry, in virtual time


HOUR_S = 3600.0


@pytest.fixture
def quiet() -> App:
    return App("memory://")


def test_drain_goes_on_after_an_answer(quiet: App) -> None:
    @quiet.task
    async def body() -> list[bool]:
        return [await ask("One?", expires_s=HOUR_S), await ask("Two?", expires_s=HOUR_S)]

    with quiet.testing() as t:
        handle = body.submit()
        t.drain()
        [one] = t.inbox.list().result()
        one.approve().result()
        t.drain()
        [two] = t.inbox.list().result()
        two.reject().result()
        t.drain()

        assert handle.result() == [True, False]


def test_the_async_harness_has_an_inbox_too(quiet: App) -> None:
    @quiet.task
    async def body() -> bool:
        return await ask("One?")

    async def main() -> bool:
        async with quiet.testing() as t:
            handle = body.submit()
            await t.drain()
            await (await t.inbox.list())[0].approve()
            await t.drain()
            return await handle

    assert asyncio.run(main())


def test_a_question_nobody_answers_expires_and_is_not_retried(quiet: App) -> None:
    @quiet.task(retries=RETRIES)
    async def body() -> bool:
        return await ask("Anybody?", expires_s=HOUR_S)

    with quiet.testing() as t:
        handle = body.submit()
        t.advance(HOUR_S - 1)
        assert handle.view().result().state is State.SUSPENDED
        t.advance(2)
        with pytest.raises(TaskFailed) as caught:
            handle.result()

        assert caught.value.kind == "AskExpired"
        assert caught.value.attempts == 2


def test_an_expired_question_can_be_caught_and_is_no_denial(quiet: App) -> None:
    @quiet.task
    async def body() -> str:
        try:
            return await ask("Which?", str, expires_s=1.0)
        except AskExpired as expired:
            return f"expired {expired.ask_id}"

    with quiet.testing() as t:
        handle = body.submit()
        t.advance(2)

        assert handle.result() == f"expired {t.inbox.list(states=()).result()[0].id}"


def test_an_expired_wait_for_an_event_says_which_it_was(quiet: App) -> None:
    @quiet.task
    async def body() -> str:
        try:
            return str(await wait_event("paid", "7", expires_s=1.0))
        except AskExpired as expired:
            return f"expired {expired.ask_id}: {expired.what}"

    with quiet.testing() as t:
        handle = body.submit()
        t.advance(2)

        [wait] = t.inbox.list(states=(), events=True).result()
        assert handle.result() == f"expired {wait.id}: nobody answered in time: event 'paid' 7"


def test_an_expired_question_can_have_a_default(quiet: App) -> None:
    @quiet.task
    async def body() -> list[Any]:
        sure = ask("Sure?", expires_s=1.0, on_expire="default", default=False)
        plan = ask("Plan?", Plan, expires_s=2.0, on_expire="default", default=Plan(["none"]))
        event = wait_event("go", "k", int, expires_s=2.0, on_expire="default", default=-1)
        return [await sure, (await plan).steps, await event]

    with quiet.testing() as t:
        handle = body.submit()
        t.advance(3)

        assert handle.result() == [False, ["none"], -1]


def test_a_question_escalates_once_and_then_fails(quiet: App) -> None:
    @quiet.task
    async def body() -> bool:
        return await ask("Sure?", expires_s=HOUR_S, on_expire="escalate", assignee="ana", escalate_to="boss")

    with quiet.testing() as t:
        first, second = body.submit(), body.submit()
        t.drain()
        assert [q.view.assignee for q in t.inbox.list().result()] == ["ana", "ana"]
        t.advance(HOUR_S + 1)
        escalated = t.inbox.list(assignee="boss").result()
        assert [(q.view.level, q.state) for q in escalated] == [(1, "open")] * 2
        t.inbox.approve(next(q.id for q in escalated if q.view.task_id == first.id)).result()
        t.advance(HOUR_S + 1)

        assert first.result() is True
        with pytest.raises(TaskFailed, match="nobody answered in time"):
            second.result()


# ---------------------------------------------------------------- events


def test_a_signal_reaches_all_that_wait_for_it_and_is_typed(quiet: App) -> None:
    @quiet.task
    async def body(key: str) -> list[str]:
        plan = await wait_event("planned", key, Plan)
        return plan.steps

    with quiet.testing() as t:
        first, second, other = body.submit("a"), body.submit("a"), body.submit("b")
        t.drain()

        assert t.inbox.list().result() == []
        assert quiet.signal("planned", "a", Plan(["x"])).result() == 2
        t.drain()
        assert (first.result(), second.result()) == (["x"], ["x"])
        assert other.view().result().state is State.SUSPENDED


def test_waits_for_events_are_listed_apart_and_no_person_decides_them(quiet: App) -> None:
    @quiet.task
    async def body() -> list[Any]:
        return [await wait_event("paid", "7"), await ask("Ship it?")]

    with quiet.testing() as t:
        handle = body.submit()
        t.drain()

        assert t.inbox.list().result() == []
        [wait] = t.inbox.list(events=True).result()
        assert (wait.text, wait.state, wait.view.task_id) == ("event 'paid' 7", "open", handle.id)
        assert (wait.view.spec.name, wait.view.spec.event_key) == ("paid", "7")
        decisions: list[Callable[[], Pending[AskView]]]
        decisions = [wait.approve, wait.reject, lambda: wait.respond(1), lambda: wait.edit(1)]
        for decide in decisions:
            with pytest.raises(AnswerInvalid, match="no question"):
                decide().result()
        quiet.signal("paid", "7", 3).result()
        t.drain()

        assert t.inbox.list(events=True).result() == []
        [question] = t.inbox.list().result()
        question.approve().result()
        t.drain()
        assert handle.result() == [3, True]


def test_a_signal_that_came_early_is_kept_and_taken_once(app: App) -> None:
    @app.task
    async def body() -> list[int]:
        return [await wait_event("tick", type=int), await wait_event("tick", type=int)]

    assert app.signal("tick", payload=1).result() == 0
    assert app.signal("tick", payload=2).result() == 0

    assert body.submit().result(WAIT_S) == [1, 2]


def test_a_signal_without_a_payload_is_none(app: App) -> None:
    @app.task
    async def body() -> Any:
        return await wait_event("go")

    app.signal("go").result()

    assert body.submit().result(WAIT_S) is None


def test_a_payload_of_another_type_fails_without_a_retry(app: App) -> None:
    @app.task(retries=RETRIES)
    async def body() -> int:
        return await wait_event("go", "", int)

    app.signal("go", payload="many").result()
    with pytest.raises(TaskFailed) as caught:
        body.submit().result(WAIT_S)

    assert caught.value.kind == "PayloadError"


# ---------------------------------------------------------------- where it can be called


def test_outside_of_a_body_and_in_a_cpu_body_ask_is_refused(tmp_path: Path) -> None:
    for call in (lambda: ask("Sure?"), lambda: wait_event("go")):
        with pytest.raises(UsageError, match="outside of a task body"):
            call()
    app = App(f"sqlite:///{tmp_path}/fleet.db", durability="normal")
    task = app.task(cpu=True)(asks_in_a_process)
    with app, pytest.raises(TaskFailed, match="outside of a task body"):
        task.submit().result(WAIT_S)


def asks_in_a_process() -> bool:
    return ask("Sure?").result()


@pytest.mark.parametrize(
    "options",
    [
        {"on_expire": "default", "default": True},
        {"expires_s": 1.0, "on_expire": "default"},
        {"expires_s": 1.0, "default": True},
        {"expires_s": 1.0, "on_expire": "escalate"},
        {"expires_s": 1.0, "escalate_to": "boss"},
        {"expires_s": 0.0},
        {"expires_s": 1.0, "on_expire": "never"},
        {"allow_edit": True},
        {"allow_edit": True, "proposal": "x"},
        {"type": str, "proposal": 3},
        {"type": int, "expires_s": 1.0, "on_expire": "default", "default": "x"},
        {"context": object()},
    ],
)
def test_options_that_contradict_each_other_fail_at_the_call(app: App, options: dict[str, Any]) -> None:
    @app.task
    async def body() -> Any:
        return await ask("Sure?", **options)

    with pytest.raises(TaskFailed) as caught:
        body.submit().result(WAIT_S)

    assert caught.value.kind in {"UsageError", "PayloadError"}
    assert app.inbox().list(states=()).result() == []


# ---------------------------------------------------------------- processes and restarts


PROGRAM = """
import sys
from sennit import App, ask, step, wait_event

app = App(sys.argv[1], durability="normal")

def note(text):
    with open(sys.argv[2], "a") as file:
        file.write(text + "\\n")

@app.task(name="asks")
async def asks(n: int) -> list:
    await step(note, f"step {n}")
    return [await ask(f"Go {n}?"), await wait_event("word", str(n), str)]

if sys.argv[3] == "work":
    with app:
        print("working", flush=True)
        sys.stdin.read()
elif sys.argv[3] == "submit":
    asks.map(range(3))
else:
    inbox = app.inbox()
    for view in inbox.watch():
        if len(questions := inbox.list().result()) == 3:
            break
    inbox.approve(*(q.id for q in questions), by="elsewhere").result()
    for n in range(3):
        app.signal("word", str(n), f"word {n}").result()
app.close()
"""


def test_asked_in_one_process_answered_in_another_and_resumed_after_a_restart(tmp_path: Path) -> None:
    program, notes = tmp_path / "program.py", tmp_path / "notes"
    program.write_text(PROGRAM, encoding="utf-8")
    words = [sys.executable, str(program), f"sqlite:///{tmp_path}/fleet.db", str(notes)]
    client = App(f"sqlite:///{tmp_path}/fleet.db", durability="normal")

    def work() -> subprocess.Popen[str]:
        worker = subprocess.Popen([*words, "work"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "working\n"
        return worker

    subprocess.run([*words, "submit"], check=True)
    first = work()
    asked(client, 3)
    first.kill()
    first.communicate()
    subprocess.run([*words, "answer"], check=True)
    second = work()
    handles: list[Handle[Any]] = [client.handle(view.id) for view in client.store.tasks().result()]
    results = sorted(str(handle.result(WAIT_S)) for handle in handles)
    second.communicate("")
    ledger = client.ledger().result()
    client.close()

    assert results == [f"[True, 'word {n}']" for n in range(3)]
    assert sorted(notes.read_text(encoding="utf-8").split("\n")) == ["", "step 0", "step 1", "step 2"]
    assert (ledger.succeeded, ledger.live, ledger.missing, ledger.crashed) == (3, 0, 0, 0)
