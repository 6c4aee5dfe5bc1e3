"""The one question of a run: how long it waits, what silence means, and what became of it.

    plan ─► approve: "Publish the report of 60 files?" ─► suspended, while the others work ─► answered ─► report

It is asked first and needed last, so that nobody waits for a person who answers while the fleet is busy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from sennit.cli.demo.records import Approval, Discrepancies, Record
from sennit.model.thread import AskView

# Nobody is there: long enough for somebody with `sennit inbox`, short enough to end with the reviews.
ALONE_S: Final = 10.0
ALONE_FAST_S: Final = 2.0
# Somebody is: silence is no consent.
PERSON_S: Final = 60.0


class Asking(Record, frozen=True):
    """How the question is put.

    Attributes:
        silence: what counts as the answer when nobody has answered for `expires_s`.
    """

    expires_s: float
    silence: bool


def asking(*, somebody: bool, fast: bool) -> Asking:
    """Return how to ask `somebody` at a terminal, or nobody."""
    if somebody:
        return Asking(PERSON_S, silence=False)
    return Asking(ALONE_FAST_S if fast else ALONE_S, silence=True)


def is_yes(view: AskView) -> bool:
    """Tell whether a closed question was answered with yes, by somebody or by silence."""
    return view.answer is not None and view.answer.state != "denied" and bool(_value(view))


def _value(view: AskView) -> object:
    value = view.answer.value if view.answer is not None else None
    return msgspec.json.decode(value) if value else None


def approval_of(view: AskView, since_start_s: Callable[[int], float]) -> Approval | None:
    """Return what became of a question; None of one that is not closed, or whose task ended without an answer.

    Args:
        since_start_s: from the store's clock (µs) to seconds of the run.
    """
    if view.answer is None or view.closed_us is None:
        return None
    return Approval(
        question=view.spec.question,
        approved=is_yes(view),
        state=view.answer.state,
        by=view.answer.by,
        reason=view.answer.reason,
        asked_s=since_start_s(view.created_us),
        closed_s=since_start_s(view.closed_us),
    )


def in_words(approval: Approval) -> str:
    """Return who has decided what, as in "approved by ann" or "rejected by ann: not today"."""
    if approval.state == "expired":
        means = "which counts as yes" if approval.approved else "so it stays a draft"
        return f"nobody answered within {approval.closed_s - approval.asked_s:.0f} s, {means}"
    said = "approved" if approval.approved else "rejected"
    said += f" by {approval.by}" if approval.by else ""
    return f"{said}: {approval.reason}" if approval.reason else said


# ---------------------------------------------------------------- the stocktaking


def compare(asked: Sequence[AskView], heard: Mapping[int, bool | None], *, published: bool | None) -> Discrepancies:
    """Hold the questions of a run against who has asked them and what they have heard.

    Args:
        heard: task that asks → the answer it succeeded with; None if it has not.
        published: what the report says; None without a report.
    """
    return Discrepancies(
        lost=tuple(sentence for task_id, answer in heard.items() for sentence in _lost(task_id, answer, asked)),
        twice=tuple(_twice(asked, heard)),
        wrong=tuple(_wrong(asked, heard, published)),
    )


def _lost(task_id: int, answer: bool | None, asked: Sequence[AskView]) -> list[str]:  # noqa: FBT001 - a value
    """Say whether a task that succeeded has no question, or no answer to it."""
    mine = [view for view in asked if view.task_id == task_id]
    if answer is None:
        return []
    if not mine:
        return [f"lost: the question of task {task_id} is not in the store"]
    return [
        f"lost: question {view.id} of task {task_id} is {view.state}, and its task has an answer"
        for view in mine
        if view.answer is None
    ]


def _twice(asked: Sequence[AskView], askers: Container[int]) -> list[str]:
    n = Counter(view.task_id for view in asked)
    twice = [f"duplicated: task {task_id} has asked {times} times" for task_id, times in n.items() if times > 1]
    return twice + [
        f"duplicated: question {view.id} is of task {view.task_id}, which was to ask nothing"
        for view in asked
        if view.task_id not in askers
    ]


def _wrong(asked: Sequence[AskView], heard: Mapping[int, bool | None], published: bool | None) -> Iterator[str]:  # noqa: FBT001 - a value
    for view in asked:
        answer = heard.get(view.task_id)
        if view.answer is None or answer is None:
            continue
        said = is_yes(view)
        if answer is not said:
            yield f"question {view.id} was answered {_word(said)}, and its task has heard {_word(answer)}"
        if published is not None and published is not said:
            yield f"question {view.id} was answered {_word(said)}, and the report has heard {_word(published)}"


def _word(yes: bool) -> str:  # noqa: FBT001 - private, and the word it stands for
    return "yes" if yes else "no"
