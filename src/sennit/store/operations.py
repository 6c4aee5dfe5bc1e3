"""Operations that a store may know better than one statement after the other.

Each is what it says when it is called, like any operation of the writer. A store whose database can do the plain case of
many at once (`postgres_hot`) recognises them by their class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from sennit.errors import LeaseLost
from sennit.model.agent import AgentView
from sennit.model.task import Claim, Ending, TaskSpec
from sennit.store.agent_views import noted
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import agent
from sennit.store.moves import finish as finishes
from sennit.store.moves.submit import submit

if TYPE_CHECKING:
    from sennit.store.desk import Desk

T = TypeVar("T")

_SAVE = "INSERT INTO sennit_step (task_id, key, result) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"


class Submit:
    """Tasks are handed in."""

    def __init__(self, desk: Desk, specs: Sequence[TaskSpec]) -> None:
        self._desk = desk
        self.specs = specs

    def __call__(self, connection: Connection, effects: Effects) -> list[int]:
        """Store them, one after the other."""
        return self._desk.submit(connection, effects, self.specs)


class AddChildren:
    """A running attempt hands in children, before it ends."""

    def __init__(self, desk: Desk, claim: Claim, specs: Sequence[TaskSpec]) -> None:
        self._desk = desk
        self.claim = claim
        self.specs = specs

    def __call__(self, connection: Connection, effects: Effects) -> list[int]:
        """Store them, if the attempt is still held.

        Raises:
            LeaseLost: it is not.
        """
        if not finishes.still_held(connection, self.claim):
            self._desk.refused += 1
            raise LeaseLost(*self.claim)
        return submit(connection, effects, self.specs)


class Finish:
    """Attempts end."""

    def __init__(self, endings: Sequence[Ending]) -> None:
        self.endings = endings

    def __call__(self, connection: Connection, effects: Effects) -> list[bool | None]:
        """Record them, one after the other."""
        return finishes.finish(connection, effects, self.endings)


class SaveStep:
    """An attempt has finished a step."""

    def __init__(self, desk: Desk, claim: Claim, key: str, result: bytes) -> None:
        self.desk = desk
        self.claim = claim
        self.row = (*claim, key, result)

    def __call__(self, connection: Connection, effects: Effects) -> bool:
        """Keep its result if the attempt is still held."""
        if not self.desk.still_held(connection, self.claim):
            effects.counts["refused"] += 1
            return False
        task_id, _, key, result = self.row
        connection.execute(_SAVE, (task_id, key, result))
        return True


class NoteAgent:
    """An attempt says how its agent is."""

    def __init__(self, desk: Desk, claim: Claim, view: AgentView) -> None:
        self.desk = desk
        self.claim = claim
        self.row = noted(claim, view)

    def __call__(self, connection: Connection, effects: Effects) -> bool:
        """Keep that if the attempt is still held."""
        if not self.desk.still_held(connection, self.claim):
            effects.counts["refused"] += 1
            return False
        agent.note(connection, self.row)
        self.desk.has_noted()
        return True


class Beside(Generic[T]):
    """Something that touches only rows of this process, or reads: it needs no writer to stand still."""

    def __init__(self, operation: Callable[[Connection, Effects], T]) -> None:
        self._operation = operation

    def __call__(self, connection: Connection, effects: Effects) -> T:
        """Do it."""
        return self._operation(connection, effects)


class Look(Beside[None]):
    """Somebody waits for the ends of tasks: whoever ends one must know that this process is to be rung."""
