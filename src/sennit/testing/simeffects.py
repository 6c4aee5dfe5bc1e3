"""What bodies of simulated fleets do to the world outside, and the book of what took place there.

    [["pay", 0.5], ["pay", 1.5], …]       the amount says what is done when nobody knows: MODES

A payment takes place the moment its function is called, and the answer is under way for a while: between any two of these
moments a process is killed or frozen. What has taken place is never taken back, so the book is the world itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, Final

from sennit.errors import OutcomeUnknown
from sennit.model.task import Claim, TaskView
from sennit.submit.context import attempt_here
from sennit.submit.effects import NOT_DONE, effect
from sennit.sync.pending import Pending
from sennit.testing.simpool import pause

__all__ = ["EFFECTS", "MODES", "EffectBook", "draw_effects", "pay_all", "pay_all_sync"]

Move = tuple[str, float]

EFFECTS: Final = ("pay",)
MODES: Final = ("fail", "check", "repeat", "refused")
"""What becomes of a payment of which nobody knows; `refused` is `fail`, and the first call says that it did nothing."""

_ANSWER_S: Final = 0.3
_MOVES: Final = ("pay", "pay", "pay", "work", "step", "retry", "raise", "sleep")
_LAST: Final = ("work",) * 6 + ("fail", "cancel", "raise")


class Refused(Exception):
    """The world has refused a payment: nothing took place."""


class EffectBook:
    """What took place: at most once per effect, unless it may be repeated.

    Args:
        object_to: called with the sentence when a promise is broken.
        revived: tasks that were ended by somebody while they ran, perhaps, and made ready again. Their old attempt may act
            until it hears of its end, and a check of the new one cannot see that coming: no promise is made of these.
        seen: what happened how often.

    Attributes:
        planned: task → its moves that are effects.
    """

    def __init__(self, object_to: Callable[[str], object], revived: set[int], seen: Counter[str]) -> None:
        self._object_to = object_to
        self._revived = revived
        self._seen = seen
        self.planned: dict[int, list[int]] = {}
        self._taken: Counter[tuple[int, int]] = Counter()
        self._refused: set[tuple[int, int]] = set()
        self._told: dict[tuple[int, int], str] = {}

    def take(self, claim: Claim, n: int, mode: str) -> str:
        """The n-th move of a task takes place; return its receipt.

        Raises:
            Refused: it does not.
        """
        effect_ = (claim.task_id, n)
        if mode == "refused" and effect_ not in self._refused:
            self._refused.add(effect_)
            self._seen["refused"] += 1
            raise Refused
        self._taken[effect_] += 1
        if self._taken[effect_] > 1:
            self._seen["repeated"] += 1
            if mode != "repeat" and not (mode == "check" and claim.task_id in self._revived):
                self._object_to(f"{claim} pays move {n} ({mode}) for the {self._taken[effect_]}. time")
        return f"{claim.task_id}:{n}:{self._taken[effect_]}"

    def receipt(self, task_id: int, n: int) -> str | None:
        """Return the receipt of what took place, None if nothing did."""
        taken = self._taken[task_id, n]
        self._seen["checked, done" if taken else "checked, not done"] += 1
        return f"{task_id}:{n}:{taken}" if taken else None

    def told(self, task_id: int, n: int, receipt: str) -> None:
        """A body has the result: it took place, and every attempt is told the same."""
        before = self._told.setdefault((task_id, n), receipt)
        if before != receipt:
            self._object_to(f"task {task_id} was told {before} for move {n}, and then {receipt}")
        if not self._taken[task_id, n]:
            self._object_to(f"task {task_id} was told {receipt} for move {n}, and nothing took place")
        self._seen["told"] += 1

    def unknown(self) -> None:
        """A body was told that nobody knows."""
        self._seen["unknown"] += 1

    def faults(self, views: Sequence[TaskView]) -> Iterator[str]:
        """Say which tasks have succeeded without their effects."""
        for view in views:
            for n in self.planned.get(view.id, ()):
                if view.state == "succeeded" and (view.id, n) not in self._told:
                    yield f"task {view.id} has succeeded, and was not told what became of move {n}"


def draw_effects(random: Random) -> list[Move]:
    """Draw what a body does."""
    moves = [
        (random.choice(_MOVES), round(random.uniform(0, len(MODES) - 0.01), 3)) for _ in range(random.randint(1, 4))
    ]
    return [*moves, (random.choice(_LAST), round(random.uniform(0, 2), 3))]


async def pay_all(book: EffectBook, n: int, amount: float) -> None:
    """Make one move of an async body."""
    mode = MODES[int(amount)]

    async def pay(n: int) -> str:
        receipt = book.take(attempt_here("pay").task.claim, n, mode)
        await asyncio.sleep(_ANSWER_S)
        return receipt

    async def paid(n: int) -> Any:
        await asyncio.sleep(_ANSWER_S)
        return book.receipt(attempt_here("paid").task.id, n) or NOT_DONE

    try:
        _told(book, n, await _effect(pay, paid, n, mode))
    except OutcomeUnknown:
        book.unknown()
        raise


def pay_all_sync(book: EffectBook, n: int, amount: float) -> None:
    """Make one move of a sync body."""
    mode = MODES[int(amount)]

    def pay(n: int) -> str:
        receipt = book.take(attempt_here("pay").task.claim, n, mode)
        pause(_ANSWER_S)
        return receipt

    def paid(n: int) -> Any:
        pause(_ANSWER_S)
        return book.receipt(attempt_here("paid").task.id, n) or NOT_DONE

    try:
        _told(book, n, _effect(pay, paid, n, mode).result())
    except OutcomeUnknown:
        book.unknown()
        raise


def _effect(pay: Callable[[int], Any], paid: Callable[[int], Any], n: int, mode: str) -> Pending[str]:
    return effect(
        pay,
        n,
        key=f"payment {n}",
        check=paid if mode == "check" else None,
        on_unknown="repeat" if mode == "repeat" else "fail",
        not_done=(Refused,),
    )


def _told(book: EffectBook, n: int, receipt: str) -> None:
    book.told(attempt_here("an effect").task.id, n, receipt)
