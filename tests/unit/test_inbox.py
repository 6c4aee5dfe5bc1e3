"""The inbox: who may say what to which question, and that a batch of decisions is recorded whole or not at all."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sennit import App, ask
from sennit.errors import AnswerInvalid, AskClosed, AskNotFound, AskStale, UsageError
from sennit.model.thread import Answer, Decision
from sennit.threads.inbox import Question

WAIT_S = 30.0


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Plan(msgspec.Struct):
    steps: list[str]
    budget: float = 0.0


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/fleet.db"
    with App(url, durability="normal") as app:
        yield app


@pytest.fixture
def asked(app: App) -> Callable[..., list[Question]]:
    """Have one task ask all of `asks` at once; return the questions, in that order."""
    asks: list[dict[str, Any]] = []

    @app.task(name="asker")
    async def asker() -> None:
        await asyncio.gather(*(ask(**options) for options in asks))

    def asked(*options: dict[str, Any]) -> list[Question]:
        asks.extend({"question": f"Question {n}?", **option} for n, option in enumerate(options))
        asker.submit()
        seen: set[int] = set()
        for question in app.inbox().watch():
            seen.add(question.id)
            if len(seen) == len(asks):
                break
        return list(app.inbox().list().result())

    return asked


Asked = Callable[..., list[Question]]


def asked_again(app: App, n: int) -> list[Question]:
    """Have another task ask `n` questions one after the other, in this order; return them, open."""
    late: list[Question] = []

    @app.task(name="late")
    async def body() -> None:
        await asyncio.gather(*(ask(f"Late {n}?") for n in range(n)))

    body.submit()
    for question in app.inbox().watch():
        if question.view.handler == "late":
            late.append(question)
        if len(late) == n:
            break
    return sorted(late, key=lambda question: question.id)


def states(app: App) -> list[str]:
    return [question.state for question in app.inbox().list(states=()).result()]


# ---------------------------------------------------------------- looking


def test_a_question_shows_what_was_asked(app: App, asked: Asked) -> None:
    [question] = asked({"type": Plan, "proposal": Plan(["a"]), "context": {"file": "a.py"}, "assignee": "ana"})

    assert question.text == "Question 0?"
    assert question.proposal == {"steps": ["a"], "budget": 0.0}
    assert question.context == {"file": "a.py"}
    assert question.view.handler == "asker"
    assert question.view.spec.schema is not None
    assert app.inbox().show(question.id).result().view == question.view


def test_questions_are_found_by_task_assignee_and_state(app: App, asked: Asked) -> None:
    first, second = asked({"assignee": "ana"}, {"assignee": "ben"})
    inbox = app.inbox()

    def found(**filters: Any) -> list[int]:
        return [question.id for question in inbox.list(**filters).result()]

    assert found() == [first.id, second.id]
    assert found(assignee="ben") == [second.id]
    assert found(task_id=first.view.task_id) == [first.id, second.id]
    assert found(task_id=first.view.task_id + 1) == []
    assert found(limit=1) == [first.id]
    first.approve().result()
    assert (found(), found(states=["answered"]), found(states=())) == ([second.id], [first.id], [first.id, second.id])


def test_a_question_that_does_not_exist_is_not_found(app: App) -> None:
    for call in (app.inbox().show, app.inbox().approve, app.inbox().reject):
        with pytest.raises(AskNotFound):
            call(99).result()


# ---------------------------------------------------------------- deciding


def test_what_was_decided_first_stands(app: App, asked: Asked) -> None:
    [question] = asked({})
    closed = app.inbox().approve(question.id, by="ana").result()[0]

    for late in (question.approve(), question.reject("late"), app.inbox().reject(question.id)):
        with pytest.raises(AskClosed) as caught:
            late.result()
        assert (caught.value.state, caught.value.by) == ("answered", "ana")
    assert closed.answer is not None
    assert (closed.state, closed.answer.by) == ("answered", "ana")


def test_a_batch_of_ids_is_decided_whole_or_not_at_all(app: App, asked: Asked) -> None:
    first, second, third = asked({}, {}, {"type": str})
    inbox = app.inbox()

    with pytest.raises(AskNotFound):
        inbox.reject(first.id, 99, reason="no").result()
    with pytest.raises(AnswerInvalid):
        inbox.approve(first.id, third.id).result()
    assert states(app) == ["open"] * 3

    inbox.reject(first.id, second.id, reason="no").result()
    assert states(app) == ["denied", "denied", "open"]


def test_a_mixed_batch_is_decided_whole_or_not_at_all(app: App, asked: Asked) -> None:
    first, second, third = asked({}, {}, {"type": int})
    inbox = app.inbox()
    batch = [first.approval(by="ana"), second.rejection("no", by="ana"), third.response(3, by="ana")]

    wrong = Answer(state="answered", value=msgspec.Raw(b'"three"'))
    with pytest.raises(AnswerInvalid):
        inbox.decide([*batch[:2], Decision(ask_id=third.id, answer=wrong)]).result()
    with pytest.raises(AskStale):
        inbox.decide([*batch[:2], msgspec.structs.replace(batch[2], version=7)]).result()
    assert states(app) == ["open"] * 3

    inbox.decide(batch).result()
    assert states(app) == ["answered", "denied", "answered"]


def test_a_question_that_changed_since_it_was_looked_at_is_stale() -> None:
    app = App("memory://")

    @app.task
    async def body() -> bool:
        return await ask("Sure?", expires_s=1.0, on_expire="escalate", escalate_to="boss")

    with app.testing() as t:
        handle = body.submit()
        t.drain()
        [seen] = t.inbox.list().result()
        t.advance(1.5)

        with pytest.raises(AskStale) as caught:
            seen.approve().result()
        assert (caught.value.expected, caught.value.actual) == (1, 2)

        t.inbox.approve(seen.id).result()
        t.drain()
        assert handle.result() is True


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"type": int}, "three"),
        ({"type": int}, 3.5),
        ({"type": bool}, "yes"),
        ({"type": Colour}, "green"),
        ({"type": Plan}, {"steps": "all"}),
        ({"type": Plan}, {"budget": 3}),
        ({"type": list[Plan]}, [{"steps": []}, {"steps": [1]}]),
        ({"type": dt.datetime}, "tomorrow"),
        ({"type": dt.date}, "2026-02-30"),
        ({"type": str}, object()),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_and_the_question_stays_open(
    app: App, asked: Asked, options: dict[str, Any], value: Any
) -> None:
    [question] = asked(options)

    responses: list[Callable[[], Any]] = [
        lambda: question.respond(value),
        lambda: app.inbox().respond(question.id, value).result(),
    ]
    for respond in responses:
        with pytest.raises(AnswerInvalid) as caught:
            respond()
        assert caught.value.ask_id == question.id
        assert caught.value.why
        assert caught.value.fix

    assert states(app) == ["open"]


def test_a_misfit_says_where_it_is(asked: Asked) -> None:
    [question] = asked({"type": list[Plan]})

    with pytest.raises(AnswerInvalid) as caught:
        question.response([{"steps": []}, {"steps": [1]}])

    assert "[1]['steps'][0]" in caught.value.why


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"type": Colour}, Colour.BLUE),
        ({"type": Plan}, Plan(["a"], 0.5)),
        ({"type": Plan}, {"steps": ["a"]}),
        ({"type": dt.datetime}, dt.datetime(2026, 1, 2, tzinfo=dt.UTC)),
        ({"type": dt.date}, "2026-02-28"),
        ({"type": bool}, False),
        ({"type": object}, {"any": ["thing"]}),
    ],
)
def test_an_answer_that_fits_is_recorded(app: App, asked: Asked, options: dict[str, Any], value: Any) -> None:
    [question] = asked(options)

    question.respond(value).result()

    assert states(app) == ["answered"]


def test_only_what_was_offered_for_editing_can_be_edited(app: App, asked: Asked) -> None:
    plain, fixed, free = asked(
        {"type": str}, {"type": str, "proposal": "a"}, {"type": str, "proposal": "a", "allow_edit": True}
    )

    for question in (plain, fixed):
        with pytest.raises(AnswerInvalid, match="cannot be edited"):
            question.edition("b")
        with pytest.raises(AnswerInvalid, match="cannot be edited"):
            app.inbox().edit(question.id, "b").result()
    with pytest.raises(AnswerInvalid, match="does not fit"):
        free.edition(3)
    edited = app.inbox().edit(free.id, "b", by="ana").result()

    assert edited.answer == Answer(state="answered", value=msgspec.Raw(b'"b"'), by="ana")


def test_a_value_cannot_be_approved_unless_it_is_proposed(app: App, asked: Asked) -> None:
    plain, proposed = asked({"type": str}, {"type": str, "proposal": "a"})

    with pytest.raises(AnswerInvalid, match="cannot just be approved"):
        app.inbox().approve(plain.id).result()
    approved = proposed.approve().result()

    assert approved.answer == Answer(state="answered", value=msgspec.Raw(b'"a"'))


def test_a_yes_or_no_question_about_a_proposal_is_approved_with_yes(asked: Asked) -> None:
    [question] = asked({"proposal": {"text": "long"}})

    approved = question.approve().result()

    assert approved.answer == Answer(state="answered", value=msgspec.Raw(b"true"))


# ---------------------------------------------------------------- watching


def test_a_watch_shows_what_is_open_then_what_is_new_and_what_changes(app: App, asked: Asked) -> None:
    first, second = asked({}, {})
    news = iter(app.inbox().watch())

    assert {next(news).id, next(news).id} == {first.id, second.id}

    waiter = threading.Thread(target=lambda: seen.append(next(news)))
    seen: list[Question] = []
    waiter.start()
    first.reject("no", by="ana").result()
    waiter.join(WAIT_S)

    assert [(question.id, question.state) for question in seen] == [(first.id, "denied")]


def test_what_a_watch_shows_can_be_answered(app: App, asked: Asked) -> None:
    asked({})

    question = next(iter(app.inbox().watch()))

    assert question.approve(by="ana").result().state == "answered"


def test_a_watch_tells_once_of_a_question_that_was_closed_before_it_looked_again(app: App, asked: Asked) -> None:
    before, first = asked({}, {})
    before.approve().result()
    news = iter(app.inbox().watch())
    shown = [next(news)]

    quick, last = asked_again(app, 2)
    quick.reject("no").result()
    shown += [next(news), next(news)]
    last.approve().result()
    shown.append(next(news))
    first.approve().result()
    shown.append(next(news))

    assert [(question.id, question.state) for question in shown] == [
        (first.id, "open"),
        (quick.id, "denied"),
        (last.id, "open"),
        (last.id, "answered"),
        (first.id, "answered"),
    ]


def test_a_watch_in_async_code_is_woken(app: App, asked: Asked) -> None:
    [first] = asked({})

    async def main() -> list[tuple[int, str]]:
        seen: list[tuple[int, str]] = []
        async for question in app.inbox().watch():
            seen.append((question.id, question.state))
            if question.state != "open":
                return seen
            await question.approve()
        raise AssertionError("a watch does not end")

    assert asyncio.run(asyncio.wait_for(main(), WAIT_S)) == [(first.id, "open"), (first.id, "answered")]


def test_a_blocking_watch_in_async_code_is_refused(app: App) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="async for"):
            next(iter(app.inbox().watch()))

    asyncio.run(main())


def test_a_watch_hears_of_answers_that_another_process_gives(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    with App(url, durability="normal") as app, App(url, durability="normal") as other:

        @app.task
        async def body() -> bool:
            return await ask("Sure?")

        handle = body.submit()
        news = iter(other.inbox().watch())
        app.inbox().approve(next(news).id).result()

        assert next(news).state == "answered"
        assert handle.result(WAIT_S) is True
