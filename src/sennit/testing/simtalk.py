"""What bodies of simulated conversations do beside their work: they change threads, ask, and wait for bells.

[["update", 0.5], ["step", 0], ["ask", 2.5], ["save", 0.5], ["asks", 0.1], ["event", 1.0]]

The amount of a move says which thread it is about (below 1: `SHARED`, else that of the task), which kind of question, or
which bell.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final

from sennit.errors import AskDenied, AskExpired
from sennit.model.task import Claimed
from sennit.submit.asking import ask, wait_event
from sennit.submit.context import Pending
from sennit.submit.talk import thread
from sennit.testing.simaudit import Audit
from sennit.testing.simtalkbooks import bump

__all__ = ["BELLS", "SHARED", "TALK", "draw_talk", "tags_of", "talk", "talk_sync"]

Move = tuple[str, float]

SHARED: Final = "shared"
BELLS: Final = ("bell 0", "bell 1")
TALK: Final = ("update", "save", "ask", "asks", "event")

_PATIENCE_S: Final = 4.0
_MOVES: Final = (
    "work", "step", "update", "update", "update saved", "save", "ask", "asks", "event", "retry", "raise", "sleep",
)  # fmt: skip
_LAST: Final = ("work",) * 10 + ("fail", "cancel")


def draw_talk(random: Random) -> list[Move]:
    """Draw what a body does; of events at most one, since two waits for one bell look alike."""
    moves: list[Move] = []
    for _ in range(random.randint(1, 5)):
        what = random.choice(_MOVES)
        if what == "update saved":
            amount = round(random.uniform(0, 4), 3)
            moves += [("update", amount), ("save", amount)]
        elif what != "event" or not any(before == what for before, _ in moves):
            moves.append((what, round(random.uniform(0, 4 if what in TALK else 2), 3)))
    moves.append((random.choice(_LAST), round(random.uniform(0, 2), 3)))
    return moves


def tags_of(task_id: int, moves: list[Move]) -> list[str]:
    """Return the tags of the updates that these moves make."""
    return [_tag(task_id, n) for n, (what, _) in enumerate(moves) if what == "update"]


def _tag(task_id: int, n: int) -> str:
    return f"{task_id}:{n}"


async def talk(audit: Audit, task: Claimed, n: int, move: Move) -> None:
    """Make the n-th move of an async body."""
    for key, pending in _waits(task, n, move):
        try:
            outcome = await pending
        except (AskDenied, AskExpired) as error:
            outcome = type(error).__name__
        if key:
            audit.asks.seen(task.id, key, outcome)


def talk_sync(audit: Audit, task: Claimed, n: int, move: Move) -> None:
    """Make the n-th move of a sync body."""
    for key, pending in _waits(task, n, move):
        try:
            outcome = pending.result()
        except (AskDenied, AskExpired) as error:
            outcome = type(error).__name__
        if key:
            audit.asks.seen(task.id, key, outcome)


def _waits(task: Claimed, n: int, move: Move) -> list[tuple[str, Pending[Any]]]:
    """Begin a move; return what to wait for, and the key under which the audit knows it if it is an ask."""
    what, amount = move
    here = thread(SHARED if amount < 1 or task.thread_id is None else task.thread_id)
    match what:
        case "update":
            return [("", here.update(bump(_tag(task.id, n))))]
        case "save":
            return [("", here.save())]
        case "ask":
            return [_question(f"question {n}", amount)]
        case "asks":
            return [_question(f"question {n} a", amount), _question(f"question {n} b", 4 - amount)]
        case _:
            bell = BELLS[int(amount) % 2]
            return [(bell, wait_event("bell", bell, int))]


def _question(text: str, amount: float) -> tuple[str, Pending[int]]:
    match int(amount):
        case 0:
            return text, ask(text, int, expires_s=_PATIENCE_S)
        case 1:
            return text, ask(text, int, expires_s=_PATIENCE_S, on_expire="default", default=-1)
        case 2:
            return text, ask(text, int, expires_s=_PATIENCE_S, on_expire="escalate", escalate_to="boss")
        case _:
            return text, ask(text, int)
