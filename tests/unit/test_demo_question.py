"""What the demo's question says in words, and what counts as an answer to it."""

from __future__ import annotations

import msgspec
import pytest

from sennit.cli.demo.question import approval_of, asking, compare, in_words, is_yes
from sennit.cli.demo.records import Approval
from sennit.model.thread import NOTHING, Answer, AskSpec, AskView

YES, NO = msgspec.Raw(b"true"), msgspec.Raw(b"false")


def question(answer: Answer | None, *, ask_id: int = 1, task_id: int = 7) -> AskView:
    return AskView(
        id=ask_id,
        task_id=task_id,
        handler="sennit.cli.demo.fleet.approve",
        spec=AskSpec(key="k", question="Publish the report of 3 files?"),
        state="open" if answer is None else answer.state,
        created_us=1_000_000,
        closed_us=None if answer is None else 3_000_000,
        answer=answer,
    )


@pytest.mark.parametrize(
    ("answer", "yes", "words"),
    [
        (Answer(state="answered", value=YES, by="ann"), True, "approved by ann"),
        (Answer(state="answered", value=NO, by="ann"), False, "rejected by ann"),
        (Answer(state="denied", by="ann", reason="not today"), False, "rejected by ann: not today"),
        (Answer(state="expired", value=YES), True, "nobody answered within 2 s, which counts as yes"),
        (Answer(state="expired", value=NO), False, "nobody answered within 2 s, so it stays a draft"),
        (Answer(state="expired", value=NOTHING), False, "nobody answered within 2 s, so it stays a draft"),
    ],
)
def test_every_end_of_a_question_has_its_words(answer: Answer, *, yes: bool, words: str) -> None:
    view = question(answer)
    approval = approval_of(view, lambda at_us: at_us / 1e6)

    assert approval is not None
    assert (approval.asked_s, approval.closed_s) == (1.0, 3.0)
    assert is_yes(view) is approval.approved is yes
    assert in_words(approval) == words


def test_an_open_question_has_approved_nothing() -> None:
    assert approval_of(question(None), float) is None
    assert is_yes(question(None)) is False


def test_silence_is_a_no_when_somebody_is_there_and_else_a_yes() -> None:
    assert (asking(somebody=True, fast=False).silence, asking(somebody=True, fast=True).silence) == (False, False)
    assert (asking(somebody=False, fast=False).silence, asking(somebody=False, fast=True).silence) == (True, True)
    assert asking(somebody=False, fast=True).expires_s < asking(somebody=False, fast=False).expires_s <= 10


def test_an_answer_that_all_have_heard_is_right() -> None:
    found = compare([question(Answer(state="answered", value=YES))], {7: True}, published=True)

    assert (found.lost, found.twice, found.wrong) == ((), (), ())


def test_a_task_that_has_not_succeeded_has_lost_no_answer() -> None:
    found = compare([question(None)], {7: None}, published=False)

    assert (found.lost, found.twice, found.wrong) == ((), (), ())


def test_an_answer_that_nobody_gave_is_lost() -> None:
    assert compare([], {7: True}, published=True).lost == ("lost: the question of task 7 is not in the store",)
    assert compare([question(None)], {7: True}, published=True).lost == (
        "lost: question 1 of task 7 is open, and its task has an answer",
    )


def test_a_second_question_and_one_of_a_stranger_are_too_many() -> None:
    yes = Answer(state="answered", value=YES)
    asked = [question(yes), question(yes, ask_id=2), question(yes, ask_id=3, task_id=8)]

    assert compare(asked, {7: True}, published=True).twice == (
        "duplicated: task 7 has asked 2 times",
        "duplicated: question 3 is of task 8, which was to ask nothing",
    )


def test_whoever_has_heard_something_else_is_named() -> None:
    found = compare([question(Answer(state="denied"))], {7: True}, published=True)

    assert found.wrong == (
        "question 1 was answered no, and its task has heard yes",
        "question 1 was answered no, and the report has heard yes",
    )


def test_an_approval_without_a_name_says_only_what_was_decided() -> None:
    assert in_words(Approval("Publish?", approved=True, state="answered")) == "approved"
